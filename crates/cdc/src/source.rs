//! Change streams out of a source of changes: each of its tables is a stream, and where the source was read to is stored in the same
//! atomic step as the records. It never confirms what is not durable, never gives a record twice, and never skips one by itself.

mod drain;
mod driver;
mod error;
mod machine;
mod prepare;
mod route;
mod status;
mod stored;
mod tell;
mod term;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_core::id::Name;
use tidegate_core::limit::Limit;
use tidegate_core::port::ChangeSource;
use tidegate_core::principal::Principal;
use tidegate_core::{Clock, Moment};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use error::SourceRequestError;
pub use machine::SpillBounds;
pub use status::{SourceFault, SourceGap, SourceState, SourceStatus, SourceStreamStatus};

use crate::key;
use crate::service::StreamService;
use driver::{Ask, Driver};
use machine::SourceMachine;
use status::Live;
use stored::Holder;

/// Requests that wait for one source.
const QUEUE_MAX: usize = 16;

/// The bounds of sources that cannot be changed.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "source.gather_max_records",
        value: prepare::GATHER_MAX_RECORDS,
        meaning: "Records of a source of changes beyond which no further transaction goes into the same append.",
    },
    Limit {
        name: "source.gather_max_bytes",
        value: prepare::GATHER_MAX_BYTES,
        meaning: "The same, in bytes; a larger transaction is appended alone.",
    },
    Limit {
        name: "source.table_max",
        value: route::TABLES_MAX as u64,
        meaning: "Tables of one source of changes; beyond it the source stops and says so.",
    },
    Limit {
        name: "source.queue_max",
        value: QUEUE_MAX as u64,
        meaning: "Requests that wait for one source of changes; beyond it the next one waits to be taken.",
    },
];

/// What a source is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    /// Its name: its streams are called `{name}.{schema}.{table}`.
    pub name: Name,
    /// What kind of system it is, for people.
    pub kind: Box<str>,
    /// Whose its streams are.
    pub tenant: Name,
    /// Partitions of a stream that is made for it; one that is there is used as it is.
    pub partitions: u32,
    /// How much may be kept for streams that refuse their records; beyond it the source waits.
    pub spill: SpillBounds,
    /// How long the process that reads it may be silent before another one takes over.
    pub term: Duration,
}

impl SourceSpec {
    /// A source of the tenant `default` with one partition a stream and a term of 15 seconds.
    #[must_use]
    pub fn new(name: Name, kind: &str) -> Self {
        let tenant = Name::new("default").expect("`default` is a name");
        let term = Duration::from_secs(15);
        Self { name, kind: kind.into(), tenant, partitions: 1, spill: SpillBounds::default(), term }
    }
}

/// How to go on where a source no longer has what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapAction {
    /// With a new copy of everything: rows that were there come again, as inserts.
    RestartCopy,
    /// With what happens from now on: whatever lies between is in no stream.
    GoOnFromCurrent,
}

/// What the driver and the service share.
pub(crate) struct Shared {
    pub(crate) live: Mutex<Live>,
    name: Box<str>,
    clock: Arc<dyn Clock>,
}

impl Shared {
    /// Tells the metrics what is shown.
    pub(crate) fn measure(&self) {
        let live = self.live.lock();
        let name = self.name.to_string();
        metrics::gauge!("tidegate_source_lag_bytes", "source" => name.clone())
            .set(live.lag_bytes.unwrap_or_default() as f64);
        let seconds = live.lag_seconds(self.clock.timestamp());
        metrics::gauge!("tidegate_source_lag_seconds", "source" => name.clone()).set(seconds as f64);
        let spilled = live
            .streams
            .values()
            .fold((0, 0), |(records, bytes), stream| (records + stream.spilled_records, bytes + stream.spilled_bytes));
        metrics::gauge!("tidegate_source_spilled_records", "source" => name.clone()).set(spilled.0 as f64);
        metrics::gauge!("tidegate_source_spilled_bytes", "source" => name.clone()).set(spilled.1 as f64);
        for state in SourceState::ALL {
            let is = f64::from(u8::from(live.state == *state));
            metrics::gauge!("tidegate_source_state", "source" => name.clone(), "state" => state.name()).set(is);
        }
    }
}

struct Running {
    spec: SourceSpec,
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    task: JoinHandle<()>,
}

/// The sources of changes of this process. Cheap to clone; when the last clone is dropped, their tasks end.
#[derive(Clone)]
pub struct SourceService {
    streams: StreamService,
    running: Arc<Mutex<BTreeMap<Name, Running>>>,
}

impl SourceService {
    /// No source yet, over these streams.
    #[must_use]
    pub fn new(streams: StreamService) -> Self {
        Self { streams, running: Arc::default() }
    }

    /// Begins to read a source, in a task of its own on the present runtime. Where another process reads it, that one is fenced:
    /// whoever begins last has it.
    pub fn start(&self, spec: SourceSpec, source: Arc<dyn ChangeSource>) -> Result<(), SourceRequestError> {
        let core = Arc::clone(&self.streams.core);
        let mut bits = [0; 16];
        core.entropy.fill(&mut bits)?;
        let holder = Holder(bits);
        let mut running = self.running.lock();
        if running.contains_key(&spec.name) {
            return Err(SourceRequestError::Exists { name: spec.name });
        }
        let shared = Arc::new(Shared {
            live: Mutex::new(Live::new()),
            name: spec.name.as_str().into(),
            clock: Arc::clone(&core.clock),
        });
        let (asks, queue) = mpsc::channel(QUEUE_MAX);
        let driver = Driver {
            key: key::source(&spec.tenant, &spec.name),
            streams: self.streams.clone(),
            machine: SourceMachine::new(holder, spec.term, spec.spill),
            spec: spec.clone(),
            source,
            holder,
            held: None,
            tables: route::Tables::new(),
            shared: Arc::clone(&shared),
            asks: queue,
            fresh: true,
            beat_at: Moment::NEVER,
            blocked: None,
            core,
        };
        let task = tokio::spawn(driver.run());
        running.insert(spec.name.clone(), Running { spec, shared, asks, task });
        Ok(())
    }

    /// The tenant's sources, in the order of their names.
    #[must_use]
    pub fn list(&self, principal: &Principal) -> Vec<SourceStatus> {
        let running = self.running.lock();
        let own = running.values().filter(|one| *one.spec.tenant.as_str() == *principal.owner.tenant);
        own.map(|one| self.status(one)).collect()
    }

    /// One source of the tenant. A foreign one is not there.
    pub fn show(&self, principal: &Principal, name: &Name) -> Result<SourceStatus, SourceRequestError> {
        let running = self.running.lock();
        let one = Self::find(&running, principal, name)?;
        Ok(self.status(one))
    }

    /// The state of every source of this process, whoever's it is: for whoever asks whether the process is well.
    #[must_use]
    pub fn states(&self) -> Vec<(Name, SourceState)> {
        self.running.lock().iter().map(|(name, one)| (name.clone(), one.shared.live.lock().state)).collect()
    }

    /// Says how a source goes on that lost changes; durable when answered.
    pub async fn acknowledge(
        &self,
        principal: &Principal,
        name: &Name,
        action: GapAction,
    ) -> Result<(), SourceRequestError> {
        let asks = Self::find(&self.running.lock(), principal, name)?.asks.clone();
        let (answer, answered) = oneshot::channel();
        let gone = || SourceRequestError::NotFound { name: name.clone() };
        asks.send(Ask::Acknowledge(action, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Tries a source at once that waits.
    pub async fn retry(&self, principal: &Principal, name: &Name) -> Result<(), SourceRequestError> {
        let asks = Self::find(&self.running.lock(), principal, name)?.asks.clone();
        asks.send(Ask::Retry).await.map_err(|_| SourceRequestError::NotFound { name: name.clone() })
    }

    /// Ends a source's task, or all of them; what is on its way into the log may still arrive there. The source goes on where it was
    /// when it is started again.
    pub async fn stop(&self, name: Option<&Name>) {
        let ended: Vec<Running> = {
            let mut running = self.running.lock();
            match name {
                Some(name) => running.remove(name).into_iter().collect(),
                None => std::mem::take(&mut *running).into_values().collect(),
            }
        };
        for Running { asks, task, .. } in ended {
            drop(asks);
            // A task that panicked has ended too.
            let _ = task.await;
        }
    }

    fn find<'a>(
        running: &'a BTreeMap<Name, Running>,
        principal: &Principal,
        name: &Name,
    ) -> Result<&'a Running, SourceRequestError> {
        let one = running.get(name).filter(|one| *one.spec.tenant.as_str() == *principal.owner.tenant);
        one.ok_or_else(|| SourceRequestError::NotFound { name: name.clone() })
    }

    fn status(&self, one: &Running) -> SourceStatus {
        let now = self.streams.core.clock.timestamp();
        one.shared.live.lock().status(one.spec.name.as_str(), &one.spec.kind, now)
    }
}

impl std::fmt::Debug for SourceService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceService").field("sources", &self.running.lock().len()).finish_non_exhaustive()
    }
}
