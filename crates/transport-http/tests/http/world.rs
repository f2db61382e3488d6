//! A server in this process, with everything around it that a test may want to look at.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_batch::policy::{PolicyCell, Rules};
use tidegate_batch::{ObjectParts, ObjectService, ObjectSpec, blob};
use tidegate_cdc::group::GroupService;
use tidegate_cdc::source::SourceService;
use tidegate_cdc::{StreamParts, StreamService};
use tidegate_checkpoint::{CheckpointParts, Checkpoints, Spec};
use tidegate_core::Clock;
use tidegate_core::port::{ChangeLog, Durability, MetaStore, QuerySource};
use tidegate_core::system::{OsEntropy, SystemClock};
use tidegate_lease::audit::Auditor;
use tidegate_lease::frozen::SettingsCell;
use tidegate_query::{QueryParts, QueryService};
use tidegate_testkit::{BlobPlan, FaultyBlobs, MemoryAudit, MemoryStore, Script, ScriptedSource, within};
use tidegate_transport_http::{
    AuthConfig, Authenticator, BindError, ConfigView, HttpConfig, HttpServer, Services, TlsConfig,
};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::client::{Answer, Connection, ask, request};

pub(crate) const SELECT: &str = "select id, name, version from item order by id";

/// The configuration that the routes show. It panics when told to: the only way to make a handler panic from outside.
#[derive(Default)]
pub(crate) struct TestConfig {
    pub(crate) panics: AtomicBool,
}

impl ConfigView for TestConfig {
    fn entries(&self) -> Vec<(String, Value)> {
        assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
        vec![("listen.http".into(), json!("127.0.0.1:7070")), ("auth.audience".into(), json!("tidegate"))]
    }
}

pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) source: ScriptedSource,
    pub(crate) audit: MemoryAudit,
    pub(crate) settings: Arc<SettingsCell>,
    pub(crate) policy: Arc<PolicyCell>,
    pub(crate) config: Arc<TestConfig>,
    pub(crate) recovering: Arc<AtomicBool>,
    pub(crate) sources: SourceService,
    /// What goes wrong where large objects lie.
    pub(crate) blobs: BlobPlan,
    cold: TempDir,
    in_flight: watch::Receiver<usize>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

/// How a world differs from the plain one.
pub(crate) struct Setup {
    pub(crate) rows: u64,
    pub(crate) auth: AuthConfig,
    pub(crate) settings: Vec<(&'static str, u64)>,
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) objects: ObjectSpec,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            rows: 3,
            auth: AuthConfig::Anonymous,
            settings: Vec::new(),
            tls: None,
            clock: Arc::new(SystemClock::new()),
            objects: ObjectSpec::default(),
        }
    }
}

impl Setup {
    pub(crate) fn start(self) -> World {
        self.try_start().unwrap()
    }

    pub(crate) fn try_start(self) -> Result<World, BindError> {
        let source = ScriptedSource::new(Script::numbers(self.rows));
        let audit = MemoryAudit::new();
        let auditor = Auditor::new(Arc::new(audit.clone()), Arc::clone(&self.clock));
        let settings = Arc::new(SettingsCell::default());
        settings.patch(&self.settings).unwrap();
        let config = Arc::new(TestConfig::default());
        let sources: BTreeMap<String, Arc<dyn QuerySource>> =
            [("main".to_owned(), Arc::new(source.clone()) as Arc<dyn QuerySource>)].into();
        let query = QueryService::new(QueryParts {
            sources,
            settings: Arc::clone(&settings),
            clock: Arc::clone(&self.clock),
            entropy: Arc::new(OsEntropy),
            auditor: auditor.clone(),
        });
        let store = MemoryStore::new(Arc::clone(&self.clock));
        let streams = StreamService::new(StreamParts {
            log: Arc::clone(&store) as Arc<dyn ChangeLog>,
            meta: Arc::clone(&store) as Arc<dyn MetaStore>,
            settings: Arc::clone(&settings),
            clock: Arc::clone(&self.clock),
            entropy: Arc::new(OsEntropy),
            durability: Durability::Fsync,
        });
        let cold = tempfile::tempdir().unwrap();
        let blobs = FaultyBlobs::new(Arc::new(Arc::clone(blob::local(cold.path()).unwrap().store())));
        let faults = blobs.plan().clone();
        let objects = ObjectService::new(ObjectParts {
            meta: Arc::clone(&store) as Arc<dyn MetaStore>,
            cold: blobs.into(),
            clock: Arc::clone(&self.clock),
            entropy: Arc::new(OsEntropy),
            durability: Durability::Fsync,
            spec: self.objects,
        })
        .unwrap();
        let policy = Arc::new(PolicyCell::new(Rules::default(), self.clock.now()));
        let recovering = Arc::new(AtomicBool::new(false));
        let sources = SourceService::new(streams.clone());
        let services = Services {
            query,
            groups: GroupService::new(streams.clone()),
            sources: sources.clone(),
            streams,
            checkpoints: Checkpoints::new(CheckpointParts {
                store: Arc::new(object_store::memory::InMemory::new()),
                root: "checkpoints".into(),
                clock: Arc::clone(&self.clock),
                entropy: Arc::new(OsEntropy),
                spec: Spec::default(),
            }),
            objects,
            object_policy: Arc::clone(&policy),
            recovering: Arc::clone(&recovering),
            auth: Authenticator::new(self.auth, Arc::clone(&self.clock)).unwrap(),
            config: Arc::clone(&config) as Arc<dyn ConfigView>,
            metrics: Arc::new(|| "# TYPE tidegate_test counter\ntidegate_test 1\n".to_owned()),
            clock: self.clock,
            auditor,
            limits: tidegate_cdc::LIMITS.to_vec(),
        };
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = HttpServer::bind(HttpConfig { listen, tls: self.tls }, services)?;
        let address = server.local_addr();
        let in_flight = server.in_flight();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async move {
            let _ = stopped.await;
        }));
        Ok(World {
            address,
            source,
            audit,
            settings,
            policy,
            config,
            recovering,
            sources,
            blobs: faults,
            cold,
            in_flight,
            stop: Some(stop),
            running,
        })
    }
}

impl World {
    pub(crate) fn start() -> Self {
        Setup::default().start()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        ask(self.address, "GET", path, &[], b"").await
    }

    pub(crate) async fn get_as(&self, token: &str, path: &str) -> Answer {
        ask(self.address, "GET", path, &[("authorization", &format!("Bearer {token}"))], b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        ask(self.address, "POST", path, &[], body.as_ref()).await
    }

    pub(crate) async fn put(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        ask(self.address, "PUT", path, &[], body.as_ref()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        ask(self.address, "DELETE", path, &[], b"").await
    }

    /// Sends a query and gives the connection, on which nothing was read yet.
    pub(crate) async fn query(&self, sql: &str, headers: &[(&str, &str)]) -> Connection {
        let mut connection = Connection::open(self.address).await;
        let body = json!({"source": "main", "sql": sql}).to_string();
        connection.send(request("POST", "/v1/query", headers, body.as_bytes())).await;
        connection
    }

    /// Where large objects lie.
    pub(crate) fn cold(&self) -> &Path {
        self.cold.path()
    }

    /// Requests that are being served.
    pub(crate) fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Tells the server to go.
    pub(crate) fn stop(&mut self) {
        self.stop.take().expect("stopped once").send(()).expect("the server runs");
    }

    /// Waits until it is gone.
    pub(crate) async fn gone(self) {
        within("the server to end", self.running).await.unwrap();
    }
}
