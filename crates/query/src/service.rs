//! The service: opens, resumes, cancels, expires and drains streams. It holds the one registry of leases; whatever ends
//! leaves it. Decisions about leases are made by the pure machine of `tidegate-lease`; this drives it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tidegate_core::failure::{ErrorKind, Failure};
use tidegate_core::id::{CursorToken, Epoch, LeaseId};
use tidegate_core::limit::Settings;
use tidegate_core::port::{Catalogue, Entropy, QuerySource, Statement};
use tidegate_core::principal::{Owner, Principal};
use tidegate_core::time::{Clock, Moment};
use tidegate_frame::ndjson::{RowEncoder, schema_fingerprint};
use tidegate_frame::prefix::PrefixHasher;
use tidegate_lease::audit::{AuditEvent, Auditor};
use tidegate_lease::capacity::{Capacity, CapacityBounds};
use tidegate_lease::cursor::{CursorBounds, CursorEnd, CursorKey, CursorTable, Found};
use tidegate_lease::frozen::SettingsCell;
use tidegate_lease::machine::{Command, LeaseMachine, MachineBounds, Outcome};
use tokio::sync::{Notify, mpsc, watch};

use crate::error::{CancelError, Draining, LeasesExhausted, OpenError, ResumeError, SourceNotReady};
use crate::feed::{Feed, Recipe};
use crate::leased::{LeaseEnd, Leased, Seat, Signal};
use crate::reader::{Reader, millis};
use crate::request::{LeaseInfo, OpenRequest, ResumeRequest};
use crate::statement;
use crate::stream::{Progress, QueryStream};
use crate::tape::Budget;

mod capacity;
mod drain;
mod expiry;
mod resume;

/// Frames that wait for a reader's transport.
const FRAMES_AHEAD: usize = 2;

/// What the service is made of.
pub struct QueryParts {
    /// The databases by name.
    pub sources: BTreeMap<String, Arc<dyn QuerySource>>,
    /// The settings, shared with whoever changes them.
    pub settings: Arc<SettingsCell>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The audit trail.
    pub auditor: Auditor,
}

/// Query-result streams. Cheap to clone; all clones are one service. It spawns onto the tokio runtime that it is made in.
#[derive(Clone)]
pub struct QueryService {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    sources: BTreeMap<String, Arc<dyn QuerySource>>,
    settings: Arc<SettingsCell>,
    pub(crate) clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    pub(crate) auditor: Auditor,
    stream_slots: Arc<Capacity>,
    lease_slots: Arc<Capacity>,
    kept: Arc<Budget>,
    machine: Mutex<LeaseMachine<LeaseId>>,
    cursors: Mutex<CursorTable<Arc<Leased>>>,
    leases: Mutex<HashMap<LeaseId, Arc<Leased>>>,
    /// A deadline may have come nearer.
    rearm: Arc<Notify>,
    draining: AtomicBool,
    stopped: watch::Sender<bool>,
    /// Readers that have not said farewell yet.
    readers: watch::Sender<usize>,
}

impl QueryService {
    /// A service over these parts. Must be called in a tokio runtime: it spawns the task that expires leases.
    #[must_use]
    pub fn new(parts: QueryParts) -> Self {
        let settings = parts.settings.freeze();
        let inner = Arc::new(Inner {
            sources: parts.sources,
            clock: parts.clock,
            entropy: parts.entropy,
            auditor: parts.auditor,
            stream_slots: Capacity::new(CapacityBounds::of_streams(&settings)),
            lease_slots: Capacity::new(CapacityBounds::of_leases(&settings)),
            settings: parts.settings,
            kept: Arc::new(Budget::default()),
            machine: Mutex::new(LeaseMachine::new(MachineBounds::default())),
            cursors: Mutex::new(CursorTable::new(CursorBounds::default())),
            leases: Mutex::new(HashMap::new()),
            rearm: Arc::new(Notify::new()),
            draining: AtomicBool::new(false),
            stopped: watch::Sender::new(false),
            readers: watch::Sender::new(0),
        });
        expiry::spawn(&inner);
        Self { inner }
    }

    /// Opens a stream: pins a snapshot, checks and describes the statement, and begins to read. Cost: one connection to the
    /// source and one round of catalogue look-ups. On an error nothing is held.
    pub async fn open(&self, who: &Principal, request: OpenRequest) -> Result<QueryStream, OpenError> {
        self.inner.open(who, request).await
    }

    /// Goes on with a stream after a prefix that the caller holds. From memory if the prefix ends within the kept rows
    /// (`stream.keep_bytes`); else the statement is run again on the pinned snapshot and its first rows are hashed.
    /// On an error nothing has changed: a reader that was there before goes on.
    pub async fn resume(&self, who: &Principal, request: ResumeRequest) -> Result<QueryStream, ResumeError> {
        self.inner.resume(who, request).await
    }

    /// Ends a stream for good and frees what it holds. Idempotent while the cursor is remembered (10 minutes).
    #[allow(clippy::unused_async, reason = "a transport awaits all three operations alike")]
    pub async fn cancel(&self, who: &Principal, cursor: &CursorToken) -> Result<(), CancelError> {
        let found = self.inner.cursors.lock().find(cursor, &who.owner);
        match found {
            Found::Live(leased) => {
                self.inner.end(&leased, LeaseEnd::Cancelled);
                Ok(())
            }
            Found::Ended(_) => Ok(()),
            Found::NotFound => Err(CancelError::CursorNotFound),
        }
    }

    /// The caller's own leases, oldest first.
    #[must_use]
    pub fn leases(&self, who: &Principal) -> Vec<LeaseInfo> {
        self.inner.leases_of(&who.owner)
    }

    /// Whether every source answers, each within two seconds.
    pub async fn ready(&self) -> Result<(), SourceNotReady> {
        for (name, source) in &self.inner.sources {
            let deadline = self.inner.clock.now().after(Duration::from_secs(2));
            let cause = tokio::select! {
                answer = source.ping() => match answer {
                    Ok(()) => continue,
                    Err(error) => Some(error),
                },
                () = self.inner.clock.sleep_until(deadline) => None,
            };
            return Err(SourceNotReady { name: name.as_str().into(), cause });
        }
        Ok(())
    }

    /// The settings that new streams open with.
    #[must_use]
    pub fn settings(&self) -> &Arc<SettingsCell> {
        &self.inner.settings
    }

    /// Takes no new streams from now on, lets the running ones go on for `limits.drain_ms`, then gives them their end line
    /// and ends every lease. Returns when all readers have been told or have not taken it within two seconds.
    pub async fn drain(&self) {
        self.inner.drain().await;
    }
}

impl Inner {
    async fn open(self: &Arc<Self>, who: &Principal, request: OpenRequest) -> Result<QueryStream, OpenError> {
        let opened = self.try_open(who, request).await;
        if let Err(error) = &opened
            && error.kind() == ErrorKind::Exhausted
        {
            self.refused(who, error.code());
        }
        opened
    }

    async fn try_open(self: &Arc<Self>, who: &Principal, request: OpenRequest) -> Result<QueryStream, OpenError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Draining.into());
        }
        let settings = self.settings.freeze();
        self.kept.set_limit(settings.limits_kept_max_bytes());
        let source = self.source(&request.source)?;
        check_bounds(&request, &settings)?;
        let slot = self.stream_slot(&who.owner, &settings)?;
        let id = LeaseId::draw(&*self.entropy)?;
        let token = CursorToken::draw(&*self.entropy)?;
        let statement = Statement { sql: request.sql.as_str().into(), parameters: request.parameters };
        let read = statement::read(&request.sql, source.dialect());
        let opening = async {
            let lease_slot = self.lease_slot(&who.owner, &settings).await?;
            let snapshot = self.snapshot(&request.source, source, &who.owner).await?;
            let description = snapshot.describe(&statement).await?;
            let judgement = match &read {
                None => Err(statement::NotResumable::NotAPlainQuery),
                Some(read) => {
                    let asks = read.asks();
                    let nothing = asks.relations.is_empty() && asks.functions.is_empty();
                    let known = if nothing { Catalogue::default() } else { snapshot.catalogue(&asks).await? };
                    read.judge(&known)
                }
            };
            Ok::<_, OpenError>((lease_slot, snapshot, description, judgement))
        };
        let limit_ms = settings.limits_open_timeout_ms();
        let deadline = self.clock.now().after(Duration::from_millis(limit_ms));
        let (lease_slot, snapshot, description, judgement) = tokio::select! {
            opened = opening => opened?,
            () = self.clock.sleep_until(deadline) => return Err(OpenError::SourceTimeout { limit_ms }),
        };
        let encoder = Arc::new(RowEncoder::new(&description.columns, request.shape)?);
        let recipe =
            Recipe { snapshot: Arc::clone(&snapshot), statement, encoder, settings, clock: Arc::clone(&self.clock) };
        let mut feed = Feed::new(recipe, Arc::clone(&self.kept));
        let epoch = self.acquire(id, &who.owner).ok_or_else(|| full(&settings, self.leases.lock().len()))?;
        feed.start();
        let signal = watch::Sender::new(Signal { epoch, end: None, resumes: 0 });
        let leased = Arc::new(Leased {
            id,
            cursor: judgement.is_ok().then(|| CursorKey::of(&token)),
            owner: who.owner.clone(),
            source: request.source.into(),
            query_hash: Sha256::digest(request.sql.as_bytes()).into(),
            snapshot,
            schema: schema_fingerprint(&description.columns),
            columns: description.columns.into(),
            not_resumable_because: judgement.err().map(|reason| reason.to_string()),
            settings,
            opened_at: self.clock.timestamp(),
            feed: tokio::sync::Mutex::new(feed),
            seat: Mutex::new(Seat { epoch, slot: Some(slot), left_at: None, completed: false, ended: false }),
            signal,
            sent_rows: AtomicU64::new(0),
            pinned: AtomicBool::new(true),
            lease_slot: Mutex::new(Some(lease_slot)),
        });
        self.register(&leased, &token).inspect_err(|_| {
            let _released = self.machine.lock().apply(self.clock.now(), Command::Release { resource: id, epoch });
        })?;
        metrics::counter!("tidegate_stream_opened_total", "kind" => "open").increment(1);
        self.auditor.emit(
            Some(&who.owner),
            AuditEvent::StreamOpened {
                lease: id,
                source: Arc::clone(&leased.source),
                snapshot: leased.snapshot.id().clone(),
                query_hash: leased.query_hash,
                from_row: 0,
            },
        );
        let cursor = leased.cursor.map(|_| token);
        Ok(self.read(leased, cursor, epoch, PrefixHasher::new(), who))
    }

    pub(super) fn read(
        self: &Arc<Self>,
        leased: Arc<Leased>,
        cursor: Option<CursorToken>,
        epoch: Epoch,
        hasher: PrefixHasher,
        who: &Principal,
    ) -> QueryStream {
        let (frames, stream) = mpsc::channel(FRAMES_AHEAD);
        let progress = Progress::default();
        let reader = Reader {
            service: Arc::clone(self),
            signal: leased.signal.subscribe(),
            leased,
            cursor,
            epoch,
            frames,
            progress: progress.clone(),
            from_row: hasher.rows(),
            hasher,
            token_expires_at: who.token_expires_at,
        };
        let present = Present::new(Arc::clone(self));
        tokio::spawn(async move {
            let _present = present;
            reader.run().await;
        });
        QueryStream::new(stream, progress)
    }

    /// Ends a lease: for its reader, for its cursor, and for the database. Idempotent.
    fn end(&self, leased: &Arc<Leased>, end: LeaseEnd) {
        if self.leases.lock().remove(&leased.id).is_none() {
            return;
        }
        let epoch = {
            let mut seat = leased.seat.lock();
            seat.ended = true;
            seat.epoch
        };
        // The reader first: it must not take another row once the cursor is told to be at its end.
        leased.end(end);
        let now = self.clock.now();
        // It may have expired, which is how it came here.
        let _released = self.machine.lock().apply(now, Command::Release { resource: leased.id, epoch });
        if let Some(cursor) = &leased.cursor {
            let why = if end == LeaseEnd::Cancelled { CursorEnd::Cancelled } else { CursorEnd::Expired };
            self.cursors.lock().end_key(cursor, why, now);
        }
        drop(leased.lease_slot.lock().take());
        metrics::gauge!("tidegate_lease_held").decrement(1.0);
        let leased = Arc::clone(leased);
        tokio::spawn(async move { leased.close().await });
    }

    /// The first epoch of a new lease: above every epoch that the machine has forgotten, so not always 1. `None` where the
    /// machine is full, which the bound of the lease slots rules out.
    fn acquire(&self, id: LeaseId, holder: &Owner) -> Option<Epoch> {
        let acquire = Command::Acquire { resource: id, holder: holder.clone(), ttl: Duration::MAX };
        match self.machine.lock().apply(self.clock.now(), acquire) {
            Outcome::Acquired { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// Makes a lease known, unless the service drains: what is known when the drain looks gets its end line.
    fn register(&self, leased: &Arc<Leased>, token: &CursorToken) -> Result<(), OpenError> {
        let mut leases = self.leases.lock();
        if self.draining.load(Ordering::Acquire) {
            return Err(Draining.into());
        }
        if leased.cursor.is_some() && self.cursors.lock().insert(token, &leased.owner, Arc::clone(leased)).is_err() {
            // The bound of the lease slots rules this out.
            return Err(full(&leased.settings, leases.len()).into());
        }
        leases.insert(leased.id, Arc::clone(leased));
        metrics::gauge!("tidegate_lease_held").increment(1.0);
        Ok(())
    }

    fn source(&self, name: &str) -> Result<&Arc<dyn QuerySource>, OpenError> {
        self.sources.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.sources.keys().map(String::as_str).collect();
            OpenError::UnknownSource { name: name.into(), known: known.join(", ").into() }
        })
    }

    fn leases_of(&self, owner: &Owner) -> Vec<LeaseInfo> {
        let now = self.clock.now();
        let mut mine: Vec<Arc<Leased>> =
            self.leases.lock().values().filter(|leased| leased.owner == *owner).cloned().collect();
        mine.sort_by_key(|leased| (leased.opened_at, leased.id));
        mine.iter()
            .map(|leased| {
                let seat = leased.seat.lock();
                let ttl = Duration::from_millis(leased.settings.stream_snapshot_ttl_ms());
                let idle = seat.left_at.map_or(Duration::ZERO, |left: Moment| now.saturating_since(left));
                LeaseInfo {
                    lease: leased.id,
                    source: leased.source.to_string(),
                    snapshot: leased.snapshot.id().clone(),
                    reading: seat.slot.is_some(),
                    resumable: leased.cursor.is_some(),
                    epoch: seat.epoch.get(),
                    rows: leased.sent_rows.load(Ordering::Relaxed),
                    opened_at: leased.opened_at,
                    expires_in_ms: millis(ttl.saturating_sub(idle)),
                }
            })
            .collect()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The expiry task finds the service gone and ends.
        self.rearm.notify_one();
    }
}

/// Counts a reader until its task ends, however it ends.
struct Present {
    service: Arc<Inner>,
}

impl Present {
    fn new(service: Arc<Inner>) -> Self {
        service.readers.send_modify(|count| *count += 1);
        metrics::gauge!("tidegate_stream_readers").increment(1.0);
        Self { service }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.service.readers.send_modify(|count| *count -= 1);
        metrics::gauge!("tidegate_stream_readers").decrement(1.0);
    }
}

/// What rules itself out while the lease slots are bounded by the same setting.
fn full(settings: &Settings, leases: usize) -> LeasesExhausted {
    let limit = settings.limits_lease_max_global();
    LeasesExhausted { limit, current: leases as u64, setting: "limits.lease_max_global" }
}

fn check_bounds(request: &OpenRequest, settings: &Settings) -> Result<(), OpenError> {
    let (bytes, limit_bytes) = (request.sql.len() as u64, settings.limits_sql_max_bytes());
    if bytes > limit_bytes {
        return Err(OpenError::SqlTooLarge { bytes, limit_bytes });
    }
    let (given, limit) = (request.parameters.len() as u64, settings.limits_parameter_max());
    if given > limit {
        return Err(OpenError::TooManyParameters { given, limit });
    }
    Ok(())
}
