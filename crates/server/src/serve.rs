//! Puts the parts together: a checked configuration becomes sources, the query service and the HTTP transport. It holds no
//! logic of theirs and is the only place that knows them all.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::Value;
use tidegate_batch::blob::{self, ColdStore};
use tidegate_batch::policy::PolicyCell;
use tidegate_batch::service::SweepPlace;
use tidegate_batch::{ObjectParts, ObjectService, ObjectSpec, StoreError};
use tidegate_cdc::source::SourceService;
use tidegate_cdc::{StreamParts, StreamService};
use tidegate_core::limit::{Bound, Limit, Settings};
use tidegate_core::port::{AuditSink, ChangeLog, Durability, MetaStore, QuerySource, SourceError};
use tidegate_core::system::{OsEntropy, SystemClock};
use tidegate_core::time::Clock;
use tidegate_lease::audit::Auditor;
use tidegate_lease::frozen::SettingsCell;
use tidegate_query::{QueryParts, QueryService};
use tidegate_source_postgres::{PostgresConfig, PostgresSource};
use tidegate_source_sqlite::{SqliteConfig, SqliteSource};
use tidegate_store_embedded::{EmbeddedConfig, EmbeddedStore};
use tidegate_transport_http::auth::AuthConfigError;
use tidegate_transport_http::{
    AuthConfig, Authenticator, BindError, ConfigView, HttpConfig, HttpServer, Services, TlsConfig,
};

use crate::audit::{AuditFile, AuditFileError};
use crate::config::{self, Cold, Config, Source};

mod bucket;
mod change;
pub(crate) mod checkpoint;
mod run;
#[cfg(test)]
mod tests;

pub use bucket::BucketError;
pub use checkpoint::CheckpointStoreError;
pub use run::run;
pub(crate) use run::{Signals, log_to_stderr};

/// Where in the data directory the log and the metadata lie.
const STORE_FOLDER: &str = "store";
/// How often expired streams are looked for, and how many streams are looked at each time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const SWEEP_STREAMS: usize = 500;
/// File descriptors that are not connections: sources, files, the runtime's own.
const DESCRIPTORS_ASIDE: u64 = 256;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory cannot be made.
    #[error("the data directory {path} cannot be made")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The audit trail cannot be opened.
    #[error(transparent)]
    Audit(#[from] AuditFileError),
    /// The log cannot be opened.
    #[error("the log cannot be opened")]
    Store(#[from] tidegate_store_embedded::OpenError),
    /// The large objects' directory cannot be used.
    #[error("the objects' directory {} cannot be used", path.display())]
    Objects {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The large objects' bucket cannot be used.
    #[error("the objects' bucket {place} cannot be used")]
    Bucket {
        /// Which, and where.
        place: String,
        /// Why.
        #[source]
        source: Box<BucketError>,
    },
    /// The store of checkpoints cannot be used.
    #[error("the store of checkpoints {place} cannot be used")]
    Checkpoints {
        /// Which.
        place: String,
        /// Why.
        #[source]
        source: Box<CheckpointStoreError>,
    },
    /// The objects cannot be opened.
    #[error("the objects cannot be opened")]
    ObjectService(#[source] StoreError),
    /// A source cannot be opened.
    #[error("source {name:?} cannot be opened")]
    Source {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// A source's certificate authorities cannot be read.
    #[error("the certificate authorities of source {name:?}, {}, cannot be read", path.display())]
    CertificateAuthority {
        /// Of which source.
        name: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A source's address is wrong.
    #[error("source {name:?} is not configured right")]
    SourceConfig {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: tidegate_source_postgres::ConfigError,
    },
    /// A source's changes cannot be read.
    #[error("the changes of source {name:?} cannot be read")]
    Changes {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: tidegate_cdc::source::SourceRequestError,
    },
    /// The keys or tokens cannot be used.
    #[error("the section [auth] cannot be used")]
    Auth(#[from] AuthConfigError),
    /// The address or the certificates cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The metrics cannot be set up.
    #[error("the metrics cannot be set up")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

/// A server, bound and not yet running.
pub struct Server {
    http: HttpServer,
    streams: StreamService,
    sources: SourceService,
    objects: ObjectService,
    recovering: Arc<AtomicBool>,
    clock: Arc<dyn Clock>,
    store: EmbeddedStore,
    audit: Arc<AuditFile>,
}

impl Server {
    /// Opens the sources, the audit trail and the listener. Must be called in a tokio runtime; blocks shortly for files, and waits up to
    /// `objects.s3.start_timeout_ms` for a bucket.
    pub async fn start(config: Config, metrics: PrometheusHandle) -> Result<Self, StartError> {
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|source| StartError::DataDir { path: config.data_dir.clone(), source })?;
        let audit = Arc::new(AuditFile::open(&config.audit_path)?);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let auditor = Auditor::new(Arc::clone(&audit) as Arc<dyn AuditSink>, Arc::clone(&clock));
        let authenticator = Authenticator::new(auth_config(&config), Arc::clone(&clock))?;
        let settings = Arc::new(SettingsCell::new(config.settings));
        let query_sources = open_sources(&config, &settings)?;
        let changes = change::open(&config, &settings)?;
        let store = EmbeddedStore::open(EmbeddedConfig::new(config.data_dir.join(STORE_FOLDER), Arc::clone(&clock)))?;
        let streams = StreamService::new(StreamParts {
            log: Arc::new(store.clone()) as Arc<dyn ChangeLog>,
            meta: Arc::new(store.clone()) as Arc<dyn MetaStore>,
            settings: Arc::clone(&settings),
            clock: Arc::clone(&clock),
            entropy: Arc::new(OsEntropy),
            durability: durability(&config),
        });
        let objects = open_objects(&config, &store, &clock).await?;
        let checkpoints = checkpoint::open_or_make(&config.checkpoints).map_err(|source| StartError::Checkpoints {
            place: checkpoint::place(&config.checkpoints),
            source: Box::new(source),
        })?;
        let recovering = Arc::new(AtomicBool::new(true));
        let query = QueryService::new(QueryParts {
            sources: query_sources,
            settings,
            clock: Arc::clone(&clock),
            entropy: Arc::new(OsEntropy),
            auditor: auditor.clone(),
        });
        let sources = SourceService::new(streams.clone());
        let http = HttpConfig {
            listen: config.listen.http,
            tls: config.listen.tls.as_ref().map(|tls| TlsConfig {
                cert: tls.cert.clone(),
                key: tls.key.clone(),
                client_ca: tls.client_ca.clone(),
            }),
        };
        let services = Services {
            query,
            groups: tidegate_cdc::group::GroupService::new(streams.clone()),
            sources: sources.clone(),
            streams: streams.clone(),
            checkpoints,
            objects: objects.clone(),
            object_policy: Arc::new(PolicyCell::new(config.object_rules.clone(), clock.now())),
            recovering: Arc::clone(&recovering),
            auth: authenticator,
            config: Arc::new(Shown(config.entries())),
            metrics: Arc::new(move || metrics.render()),
            clock: Arc::clone(&clock),
            auditor,
            limits: [limits(), object_limits(objects.spec())].concat(),
        };
        let http = HttpServer::bind(http, services)?;
        // The last thing: who cannot listen takes no source from anybody.
        change::start(&sources, changes)?;
        Ok(Self { http, streams, sources, objects, recovering, clock, store, audit })
    }

    /// Where it listens.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http.local_addr()
    }

    /// Serves until `shutdown`, then drains: see [`HttpServer::run`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let sweeper = tokio::spawn(sweep(self.streams, Arc::clone(&self.clock)));
        let object_sweeper = tokio::spawn(sweep_objects(self.objects, self.recovering, self.clock));
        self.http.run(shutdown).await;
        // Before the log is closed, so that nothing of theirs is cut off.
        self.sources.stop(None).await;
        sweeper.abort();
        object_sweeper.abort();
        // It writes what waits, which blocks.
        let store = self.store;
        if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
            tracing::error!("the log was not closed in good order; nothing that was acknowledged is lost");
        }
        self.audit.close();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("http", &self.http).finish_non_exhaustive()
    }
}

/// Removes streams that expired and what broken-off removals left, a bounded number a second, for ever.
async fn sweep(streams: StreamService, clock: Arc<dyn Clock>) {
    let mut from = None;
    loop {
        clock.sleep_until(clock.now().after(SWEEP_INTERVAL)).await;
        from = match streams.sweep(from.take(), SWEEP_STREAMS).await {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "expired streams were not removed; it is tried again");
                None
            }
        };
    }
}

/// Finishes what an earlier process left half done, until it is done; then removes what has expired and what nobody refers to any
/// more, a bounded number a second, for ever.
async fn sweep_objects(objects: ObjectService, recovering: Arc<AtomicBool>, clock: Arc<dyn Clock>) {
    loop {
        match objects.recover().await {
            Ok(swept) => {
                tracing::info!(
                    given_up = swept.given_up,
                    blobs = swept.blobs,
                    "objects that were half written are cleared away"
                );
                break;
            }
            Err(error) => tracing::warn!(%error, "objects that were half written are not cleared away yet"),
        }
        clock.sleep_until(clock.now().after(SWEEP_INTERVAL)).await;
    }
    recovering.store(false, Ordering::Release);
    let mut place = SweepPlace::default();
    loop {
        clock.sleep_until(clock.now().after(SWEEP_INTERVAL)).await;
        if let Err(error) = objects.sweep(&mut place).await {
            tracing::warn!(%error, "expired objects were not removed; it is tried again");
        }
    }
}

/// The process's metrics recorder, with bounded histograms. Once a process.
pub fn install_metrics() -> Result<PrometheusHandle, StartError> {
    let seconds = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];
    let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &seconds)?;
    Ok(builder.install_recorder()?)
}

/// Raises the limit of open files as far as the system allows, for `limits.connection_max` connections; says so where that
/// is less.
pub fn raise_open_files(settings: &Settings) {
    let wanted = settings.limits_connection_max() + 4 * settings.limits_lease_max_global() + DESCRIPTORS_ASIDE;
    match rlimit::increase_nofile_limit(wanted) {
        Ok(given) if given < wanted => {
            tracing::warn!(given, wanted, "the system allows fewer open files than connections and snapshots may need");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files was not raised"),
    }
}

/// The bounds of the query service that it does not list itself.
const QUERY_LIMITS: &[Limit] = &[
    Limit {
        name: "query.cursors_remembered_max",
        value: 65_536,
        meaning: "Ended cursors that are remembered; beyond it the one that ended first is forgotten: 404 cursor_not_found.",
    },
    Limit {
        name: "query.cursors_remembered_ms",
        value: 600_000,
        meaning: "How long an ended cursor is remembered; then it is 404 cursor_not_found.",
    },
    Limit {
        name: "query.readiness_max_ms",
        value: 2_000,
        meaning: "A source must answer GET /readyz in this time; beyond it the answer is 503.",
    },
];

/// What `GET /v1/limits` lists beside the settings and the transport's own.
fn limits() -> Vec<Limit> {
    [
        tidegate_core::limit::LIMITS,
        QUERY_LIMITS,
        tidegate_cdc::LIMITS,
        tidegate_cdc::group::LIMITS,
        tidegate_cdc::source::LIMITS,
        tidegate_checkpoint::LIMITS,
        tidegate_batch::policy::LIMITS,
        tidegate_batch::service::LIMITS,
        tidegate_batch::blob::LIMITS,
        tidegate_store_embedded::LIMITS,
        tidegate_source_sqlite::LIMITS,
        tidegate_source_postgres::LIMITS,
        crate::audit::LIMITS,
    ]
    .concat()
}

fn durability(config: &Config) -> Durability {
    match config.durability {
        config::Durability::Fsync => Durability::Fsync,
        config::Durability::Os => Durability::Os,
    }
}

/// Where large objects lie, tried.
async fn open_cold(cold: &Cold, clock: &dyn Clock) -> Result<ColdStore, StartError> {
    let s3 = match cold {
        Cold::Directory(path) => {
            return blob::local(path).map_err(|source| StartError::Objects { path: path.clone(), source });
        }
        Cold::S3(s3) => s3,
    };
    let refused = |source| StartError::Bucket { place: s3.place(), source: Box::new(source) };
    let bucket = bucket::client(s3, &|name| std::env::var(name).ok()).map_err(refused)?;
    bucket::probe(&bucket, clock, s3.start_timeout).await.map_err(refused)?;
    Ok(ColdStore::with_uploads(Arc::new(bucket)))
}

/// Small objects lie in the store, large ones in a directory of their own or in a bucket.
async fn open_objects(
    config: &Config,
    store: &EmbeddedStore,
    clock: &Arc<dyn Clock>,
) -> Result<ObjectService, StartError> {
    let mut spec = ObjectSpec::default();
    spec.hot_max_bytes = config.objects.hot_max_bytes;
    ObjectService::new(ObjectParts {
        meta: Arc::new(store.clone()) as Arc<dyn MetaStore>,
        cold: open_cold(&config.objects.cold, clock.as_ref()).await?,
        clock: Arc::clone(clock),
        entropy: Arc::new(OsEntropy),
        durability: durability(config),
        spec,
    })
    .map_err(StartError::ObjectService)
}

/// The bounds of objects that are set when they are opened.
fn object_limits(spec: &ObjectSpec) -> Vec<Limit> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    vec![
        Limit {
            name: "object_hot_max_bytes",
            value: spec.hot_max_bytes,
            meaning: "Objects up to this size lie with the metadata (objects.hot_max_bytes), the others in the cold store.",
        },
        Limit {
            name: "object_max_bytes",
            value: spec.object_max_bytes,
            meaning: "An object, and a part of an upload; beyond it 413 object_too_large.",
        },
        Limit {
            name: "object_write_max_ms",
            value: ms(spec.write_max),
            meaning: "How long one write may take; beyond it 504 write_timeout.",
        },
        Limit {
            name: "object_upload_max_ms",
            value: ms(spec.upload_max),
            meaning: "How long an upload in parts may take; then it is given up.",
        },
        Limit {
            name: "object_upload_max_open",
            value: spec.upload_max_open,
            meaning: "Uploads in parts that are open at one time; beyond it 429 upload_capacity_exhausted.",
        },
    ]
}

/// Opens the sources. What a setting bounds they read from `settings` when a snapshot is opened, so that a change counts.
fn open_sources(
    config: &Config,
    settings: &Arc<SettingsCell>,
) -> Result<BTreeMap<String, Arc<dyn QuerySource>>, StartError> {
    // PostgreSQL sends bytes as hexadecimal text, which is longer than the base64 of the row's line.
    let row_bytes = |factor: u64| {
        let settings = Arc::clone(settings);
        Bound::live(move || settings.freeze().limits_row_max_bytes().saturating_mul(factor))
    };
    let mut sources: BTreeMap<String, Arc<dyn QuerySource>> = BTreeMap::new();
    for (name, source) in &config.sources {
        let opened: Arc<dyn QuerySource> = match source {
            Source::Sqlite { path, journal_mode } => {
                let mut sqlite = SqliteConfig::new(path);
                // Every snapshot has a lease: `limits.lease_max_global` bounds them, as it is now.
                sqlite.max_snapshots = usize::MAX;
                sqlite.max_value_bytes = row_bytes(1);
                sqlite.journal_mode = match journal_mode {
                    config::JournalMode::Wal => tidegate_source_sqlite::JournalMode::Wal,
                    config::JournalMode::Keep => tidegate_source_sqlite::JournalMode::Keep,
                };
                let opened = SqliteSource::open(sqlite)
                    .map_err(|source| StartError::Source { name: name.to_string(), source })?;
                Arc::new(opened)
            }
            Source::Postgres { url, max_connections, ca, .. } => {
                let postgres = postgres(name.as_str(), url, *max_connections, ca.as_deref(), row_bytes(2))?;
                let opened = PostgresSource::connect(postgres)
                    .map_err(|source| StartError::SourceConfig { name: name.to_string(), source })?;
                Arc::new(opened)
            }
        };
        sources.insert(name.to_string(), opened);
    }
    Ok(sources)
}

/// How a PostgreSQL is reached.
fn postgres(
    name: &str,
    url: &config::Secret,
    max_connections: Option<usize>,
    authorities: Option<&std::path::Path>,
    row_bytes: Bound,
) -> Result<PostgresConfig, StartError> {
    let mut postgres = PostgresConfig::new(url.reveal());
    if let Some(most) = max_connections {
        postgres.max_snapshots = most;
    }
    postgres.max_row_bytes = row_bytes;
    if let Some(path) = authorities {
        let pem = std::fs::read(path).map_err(|source| StartError::CertificateAuthority {
            name: name.to_owned(),
            path: path.to_owned(),
            source,
        })?;
        postgres.certificate_authorities = Some(pem.into());
    }
    Ok(postgres)
}

fn auth_config(config: &Config) -> AuthConfig {
    config.auth.clone().map_or(AuthConfig::Anonymous, AuthConfig::Token)
}

/// The part of the configuration that `GET /v1/config` shows beside the settings. Redacted where it was made.
struct Shown(Vec<(String, Value)>);

impl ConfigView for Shown {
    fn entries(&self) -> Vec<(String, Value)> {
        self.0.clone()
    }
}
