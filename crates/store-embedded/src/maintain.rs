//! What runs by time: retention by age, removing what is gone, compaction. It looks at views and has the writer change
//! things; it never holds anybody up for more than a bounded step, and costs nothing for streams of which nothing is due.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tidegate_core::position::Partition;
use tidegate_core::time::Timestamp;

use crate::command::{Command, Place, Work};
use crate::compact::Round;
use crate::engine::View;
use crate::error::{Absent, ReadError, WriteError};
use crate::group::{DUE_COMPACT, DUE_RETAIN, DUE_SWEEP};
use crate::key;
use crate::metric;
use crate::shared::{Health, Shared};
use crate::state::{DueEntry, LogState};
use crate::store::Queue;

/// Partitions that one step looks at.
const STEP_MAX_PARTITIONS: usize = 256;
/// Chunks that one step removes of one partition or removed stream.
const SWEEP_MAX_CHUNKS: usize = 4_096;

/// When a compaction that met damage is tried again.
const RETRY_MS: i64 = 60_000;

/// What a step of maintenance came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintained {
    /// Partitions, and removed streams, of which something was due.
    pub looked_at: usize,
    /// Whether something is still due: a further step goes on with it.
    pub more: bool,
}

/// The work that is due, one step at a time.
pub(crate) struct Maintenance {
    shared: Arc<Shared>,
    queue: Queue,
    /// The compaction that is on its way, and the entry that it answers; one at a time, so that its memory is bounded.
    round: Option<(Round, Bytes)>,
    /// Where the next step looks for what is due, so that entries that fail again and again hide none behind them.
    from: Bytes,
    stopped: bool,
}

impl Maintenance {
    pub(crate) fn new(shared: Arc<Shared>, queue: Queue) -> Self {
        Self { shared, queue, round: None, from: Bytes::from_static(&key::DUE_START), stopped: false }
    }

    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// One step of everything that is due.
    pub(crate) fn step(&mut self, now: Timestamp) -> Result<Maintained, WriteError> {
        if self.stopped {
            return Err(unread(Absent::Closed.into()));
        }
        if *self.shared.health.borrow() != Health::Writing {
            self.queue.nudge();
        }
        let view = self.shared.view().map_err(|absent| unread(absent.into()))?;
        let mut maintained = Maintained::default();
        // What is wrong with one stream or partition holds up no other; without the store there is nothing to do at all.
        if let Err(error) = self.purge(&view, &mut maintained) {
            self.failed(error, None)?;
        }
        // First, so that nothing that becomes due can keep it from its end.
        maintained.more |= self.go_on(&view)?;
        let to = key::due_before(now.unix_ms().saturating_add(1));
        let from = std::mem::replace(&mut self.from, Bytes::from_static(&key::DUE_START));
        let due = view.index_range(&from, &to, STEP_MAX_PARTITIONS).map_err(unread)?;
        if let Some((last, _)) = due.get(STEP_MAX_PARTITIONS - 1) {
            maintained.more = true;
            self.from = [last, &[0][..]].concat().into();
        }
        for (due, entry) in due {
            maintained.looked_at += 1;
            let done = entry.map_err(unread).and_then(|entry| self.due(due.clone(), &entry, now));
            match done {
                Ok(more) => maintained.more |= more,
                // It stays due.
                Err(error) => self.failed(error, Some(&due))?,
            }
        }
        Ok(maintained)
    }

    /// Says what failed, and gives it on if the store is not there.
    fn failed(&self, error: WriteError, due: Option<&Bytes>) -> Result<(), WriteError> {
        if self.shared.view().is_err() {
            return Err(error);
        }
        let entry = due.and_then(|due| key::due_parts(due));
        let cause: &dyn std::error::Error = &error;
        tracing::error!(cause, ?entry, "a piece of maintenance failed and is left for later");
        metric::maintenance_failed();
        Ok(())
    }

    pub(crate) fn work(&self, work: Work) -> Result<(), WriteError> {
        let bytes = match &work {
            Work::Rewrite { put, .. } => put.iter().map(|(_, value)| value.len() as u64).sum(),
            _ => 0,
        };
        self.queue.ask_blocking(Command::Work(work), bytes).map(|_| ())
    }

    /// Removes a part of what removed streams left.
    fn purge(&mut self, view: &View, maintained: &mut Maintained) -> Result<(), WriteError> {
        let removed = view.index_keys(&key::REMOVED_START, STEP_MAX_PARTITIONS).map_err(unread)?;
        let mut left = SWEEP_MAX_CHUNKS;
        for log in removed.iter().filter_map(|key| key::removed_log(key)) {
            if left == 0 {
                maintained.more = true;
                break;
            }
            let keys = view.chunk_keys(&key::chunks(log), None, left).map_err(unread)?;
            left -= keys.len();
            let index = view.index_keys(&key::floors(log), left).map_err(unread)?;
            left -= index.len();
            let done = left > 0;
            let chunks = keys.iter().filter_map(|key| key[..].try_into().ok()).collect();
            self.work(Work::Purge { log, chunks, index, done })?;
            maintained.looked_at += 1;
            maintained.more |= !done;
        }
        Ok(())
    }

    /// A step of one partition's work; `true` = there is more.
    fn due(&mut self, due: Bytes, entry: &LogState, now: Timestamp) -> Result<bool, WriteError> {
        let (Some((kind, partition)), LogState::Due(DueEntry { tenant, stream })) = (key::due_parts(&due), entry)
        else {
            return Err(unread(ReadError::damaged("no work lies where it should")));
        };
        let found = self.shared.stream_named(tenant, stream).map_err(unread)?;
        let Some(stream) = found.filter(|stream| stream.log == partition.log) else {
            self.work(Work::Forget { due })?;
            return Ok(false);
        };
        let place = Place { stream, partition: Partition(partition.partition) };
        let done = match kind {
            DUE_RETAIN => self.retain(place.clone(), due),
            DUE_SWEEP => self.sweep(place.clone(), due),
            DUE_COMPACT => self.compact(place.clone(), due, now),
            _ => return Err(unread(ReadError::damaged("work of an unknown kind"))),
        };
        done.inspect_err(|error| {
            tracing::error!(stream = ?place.stream.id, partition = partition.partition, %error, "maintenance failed");
        })
    }

    fn retain(&self, place: Place, due: Bytes) -> Result<bool, WriteError> {
        let before = self.floor(&place)?;
        self.work(Work::Retain { place: place.clone(), due })?;
        // What was forgotten is still to be removed.
        Ok(self.floor(&place)? != before)
    }

    fn floor(&self, place: &Place) -> Result<u64, WriteError> {
        let (_, state) = self.shared.partition(&place.stream, place.partition).map_err(unread)?;
        Ok(state.floor.earliest)
    }

    /// Removes chunks that lie wholly below the floor.
    fn sweep(&self, place: Place, due: Bytes) -> Result<bool, WriteError> {
        // Compaction may have changed the chunks since the step began.
        let view = self.shared.view().map_err(|absent| unread(absent.into()))?;
        let partition = place.stream.key(place.partition);
        let floor = view.floor(partition).map_err(unread)?;
        let Some(floor) = floor else { return Ok(false) };
        // The last chunk that begins at or before the floor holds it, unless nothing is left.
        let to = partition.chunk(floor.earliest);
        let last = view.chunk_before(partition, floor.earliest).map_err(unread)?;
        let end = match last {
            Some((base, value)) => {
                let chunk = crate::engine::open_chunk(partition, base, value).map_err(unread)?;
                if chunk.end <= floor.earliest { to } else { partition.chunk(base) }
            }
            None => to,
        };
        let keys = view.chunk_keys(&partition.chunk(0), Some(&end), SWEEP_MAX_CHUNKS).map_err(unread)?;
        let more = keys.len() == SWEEP_MAX_CHUNKS;
        let chunks = keys.iter().filter_map(|key| key[..].try_into().ok()).collect();
        self.work(Work::Sweep { place, due, chunks, done_to: (!more).then_some(floor.earliest) })?;
        Ok(more)
    }

    /// Begins to compact a partition, unless another one is being compacted: then this one waits its turn.
    fn compact(&mut self, place: Place, due: Bytes, now: Timestamp) -> Result<bool, WriteError> {
        if self.round.is_some() {
            return Ok(true);
        }
        match Round::begin(&self.shared, place.clone(), now)? {
            Ok(round) => {
                self.round = Some((round, due));
                let view = self.shared.view().map_err(|absent| unread(absent.into()))?;
                self.go_on(&view)
            }
            Err(later_ms) => {
                let (clean_to, again_ms) = (0, Some(later_ms));
                self.work(Work::Compacted { place, due, clean_to, again_ms, postponed: true })?;
                Ok(false)
            }
        }
    }

    /// Goes on with the compaction that is on its way; `true` = there is more of it. One that fails is begun anew, later.
    fn go_on(&mut self, view: &View) -> Result<bool, WriteError> {
        let Some((mut round, due)) = self.round.take() else { return Ok(false) };
        let place = round.place().clone();
        let max_chunks = self.shared.config.step_max_chunks.max(1);
        let work = match round.step(view, max_chunks, |work| self.work(work)) {
            Ok(Some((clean_to, again_ms))) => Work::Compacted { place, due, clean_to, again_ms, postponed: false },
            Ok(None) => {
                self.round = Some((round, due));
                return Ok(true);
            }
            Err(error) => {
                tracing::error!(stream = ?place.stream.id, partition = place.partition.0, %error, "compaction failed");
                let now_ms = self.shared.config.clock.timestamp().unix_ms();
                let again_ms = Some(now_ms.saturating_add(RETRY_MS));
                Work::Compacted { place, due, clean_to: 0, again_ms, postponed: true }
            }
        };
        self.work(work).map(|()| false)
    }
}

pub(crate) fn unread(error: ReadError) -> WriteError {
    WriteError::NotMade(error.into_cause())
}

/// The thread that runs maintenance.
pub(crate) struct Timer {
    stop: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Timer {
    pub(crate) fn start(interval: Duration, maintenance: Arc<Mutex<Maintenance>>) -> std::io::Result<Self> {
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new().name("tidegate-store-timer".into()).spawn(move || {
            let mut wait = interval;
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
                let mut maintenance = maintenance.lock();
                let now = maintenance.shared.config.clock.timestamp();
                let more = match maintenance.step(now) {
                    Ok(maintained) => maintained.more,
                    Err(error) => {
                        tracing::debug!(%error, "maintenance is left for later");
                        false
                    }
                };
                // Between the steps of much work the writer's other callers have their turn.
                wait = if more { Duration::from_millis(1) } else { interval };
            }
        })?;
        Ok(Self { stop, thread })
    }

    pub(crate) fn stop(self) {
        let _ = self.stop.try_send(());
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::id::Name;
    use tidegate_core::port::{
        AppendBatch, AppendRecord, ChangeLog as _, Durability, LogSpec, PartitionAppend, Retention, StreamId,
    };
    use tidegate_core::position::Offset;
    use tidegate_core::time::Clock as _;
    use tidegate_testkit::{ManualClock, block_on};

    use super::*;
    use crate::{EmbeddedConfig, EmbeddedStore};

    #[test]
    fn damaged_entries_hold_up_the_work_of_no_other_stream() {
        block_on(async {
            let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
            let mut config = EmbeddedConfig::new(folder.path(), Arc::new(clock.clone()));
            config.maintenance_interval = Duration::ZERO;
            let store = EmbeddedStore::open(config).unwrap();
            // More damaged entries than one step looks at, all due before anything else; and one of an unknown kind.
            let engine = Arc::clone(&store.inner.shared.view().unwrap().engine);
            for log in 0..STEP_MAX_PARTITIONS as u64 + 3 {
                let partition = crate::key::PartitionKey { log: 1_000 + log, partition: 0 };
                engine.index.insert(key::due(1, DUE_RETAIN, partition), b"damaged").unwrap();
            }
            engine.index.insert([key::DUE_START[0], 0], LogState::Removed.seal()).unwrap();
            drop(engine);
            let stream = StreamId { tenant: Name::new("t").unwrap(), stream: Name::new("s").unwrap() };
            let retention = Retention { age_ms: Some(1_000), ..Retention::default() };
            let spec = LogSpec { partitions: 1, start: Offset(0), retention, compaction: None };
            store.create(&stream, &spec).await.unwrap();
            let record = AppendRecord { bytes: "x".into(), key: None, tombstone: false };
            let append = PartitionAppend {
                partition: Partition(0),
                expected_next: None,
                records: vec![record],
                append_time: clock.timestamp(),
            };
            let batch = AppendBatch::to_one(stream.clone(), vec![append], Vec::new(), Durability::Fsync);
            store.append(batch).await.unwrap();
            clock.advance(Duration::from_secs(5));
            for _ in 0..2 {
                store.maintain(clock.timestamp()).unwrap();
            }
            assert_eq!(store.bounds(&stream).await.unwrap()[0].earliest, Offset(1));
        });
    }
}
