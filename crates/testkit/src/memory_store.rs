//! The log and the metadata in memory, under one lock: what an append carries is atomic with its records. It never writes
//! to a disk, so "durable" means for as long as the store lives.

mod entries;
mod partition;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, Cause, ChangeLog, Commit, CompareAndSwap, Created, Durability, LogError, LogRead,
    LogSpec, LogWatch, MetaEntry, MetaError, MetaRange, MetaStore, MetaWatch, PartitionBounds, ReadBounds,
    StreamAppend, StreamId, SwapOutcome, Trim,
};
use tidegate_core::position::{Offset, Partition};
use tidegate_core::time::{Clock, Timestamp};
use tokio::sync::watch;

use entries::Entries;
use partition::PartitionState;

/// A [`ChangeLog`] and a [`MetaStore`] in memory, to build domains on and to run the suites against.
///
/// What the port leaves open, it answers like this: retention is exact and happens at each append (of the partitions
/// appended to) and at [`maintain`](Self::maintain); compaction happens at `maintain` alone. Bytes are those of the
/// records, without keys. A reason stays with a record's place: a trim over what retention took leaves two gaps. What lies
/// before a start that is not zero is a gap of the reason trim. A batch that breaks the port's form (a stream or a partition twice, no
/// record, offsets beyond 2^64 - 1) changes nothing and is [`LogError::Unavailable`] with the cause [`MalformedBatch`]. An
/// append of no partitions swaps its state alone. `Check` of an absent entry gives the revision 0.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the watchers of metadata; the value says nothing.
    meta_changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    streams: HashMap<StreamId, StreamState>,
    entries: Entries,
    commit: u64,
    /// How many streams were ever created: tells a stream from one of the same name before it.
    incarnations: u64,
}

struct StreamState {
    spec: LogSpec,
    incarnation: u64,
    partitions: Vec<PartitionState>,
    changes: u64,
    /// Wakes the watchers; dropped with the stream, which ends them.
    changed: watch::Sender<()>,
}

/// What is wrong with a batch or a spec that the port's form does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedBatch {
    /// A partition stands in the batch more than once.
    #[error("a partition stands in the batch more than once")]
    PartitionTwice,
    /// A stream stands in the batch more than once.
    #[error("a stream stands in the batch more than once")]
    StreamTwice,
    /// A partition is given no record.
    #[error("a partition is given no record")]
    NoRecord,
    /// The offsets would pass 2^64 - 1.
    #[error("the partition has no offsets left")]
    NoOffsetLeft,
    /// A stream is to have no partition.
    #[error("a stream has at least one partition")]
    NoPartition,
}

fn malformed(what: MalformedBatch) -> LogError {
    let cause: Cause = what.into();
    LogError::Unavailable(cause)
}

impl State {
    /// Whether an append can be made to a stream; gives the answer where it is not there.
    fn look(&self, number: usize, append: &StreamAppend) -> Result<Option<AppendOutcome>, LogError> {
        let missing = |partition| Ok(Some(AppendOutcome::NoSuchPartition { stream: number, partition }));
        let Some(stream) = self.streams.get(&append.stream) else {
            return missing(append.partitions.first().map_or(Partition(0), |one| one.partition));
        };
        for (index, one) in append.partitions.iter().enumerate() {
            let Some(partition) = stream.partition(one.partition) else { return missing(one.partition) };
            if one.records.is_empty() {
                return Err(malformed(MalformedBatch::NoRecord));
            }
            if append.partitions[..index].iter().any(|before| before.partition == one.partition) {
                return Err(malformed(MalformedBatch::PartitionTwice));
            }
            if !partition.has_room(one.records.len()) {
                return Err(malformed(MalformedBatch::NoOffsetLeft));
            }
        }
        Ok(None)
    }
}

impl StreamState {
    fn partition(&self, partition: Partition) -> Option<&PartitionState> {
        self.partitions.get(usize::try_from(partition.0).ok()?)
    }

    fn bounds(&self) -> Vec<PartitionBounds> {
        self.partitions.iter().map(PartitionState::bounds).collect()
    }

    /// Notes that a partition changed and wakes the watchers.
    fn touch(&mut self, index: usize) {
        self.changes += 1;
        self.partitions[index].changed = self.changes;
        self.changed.send_replace(());
    }

    fn maintain(&mut self, now: Timestamp) {
        for index in 0..self.partitions.len() {
            let partition = &mut self.partitions[index];
            // Retention first, as at an append: what is too old anyway needs no compaction.
            let retained = partition.retain(&self.spec.retention, now);
            let compacted = partition.compact(&self.spec, now);
            if retained || compacted {
                self.touch(index);
            }
        }
    }

    /// The partition that changed first after `seen`, and when.
    fn change_after(&self, seen: u64) -> Option<(u64, PartitionBounds)> {
        let changed = self.partitions.iter().filter(|partition| partition.changed > seen);
        changed.min_by_key(|partition| partition.changed).map(|partition| (partition.changed, partition.bounds()))
    }
}

impl MemoryStore {
    /// An empty store. The clock is what retention by age goes by at an append.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let state = Mutex::new(State::default());
        Arc::new(Self { clock, shared: Arc::new(Shared { state, meta_changed: watch::Sender::new(()) }) })
    }

    /// What a store does on a timer: retention and compaction of every stream, as of `now`. Costs a pass over all records.
    pub fn maintain(&self, now: Timestamp) {
        for stream in self.shared.state.lock().streams.values_mut() {
            stream.maintain(now);
        }
    }

    fn append_now(&self, batch: AppendBatch) -> Result<AppendOutcome, LogError> {
        let now = self.clock.timestamp();
        let state = &mut *self.shared.state.lock();
        for (number, append) in batch.streams.iter().enumerate() {
            if let Some(refused) = state.look(number, append)? {
                return Ok(refused);
            }
            if batch.streams[..number].iter().any(|before| before.stream == append.stream) {
                return Err(malformed(MalformedBatch::StreamTwice));
            }
        }
        for (number, append) in batch.streams.iter().enumerate() {
            for one in &append.partitions {
                let next = state.streams[&append.stream].partitions[one.partition.0 as usize].next();
                if one.expected_next.is_some_and(|expected| expected != next) {
                    return Ok(AppendOutcome::OffsetMismatch { stream: number, partition: one.partition, next });
                }
            }
        }
        if let Some((index, current)) = state.entries.mismatch(&batch.state) {
            return Ok(AppendOutcome::StateMismatch { index, revision: current.map(|entry| entry.revision) });
        }
        // Nothing can fail from here on.
        state.commit += 1;
        let commit = Commit(state.commit);
        let mut ranges = Vec::new();
        for append in batch.streams {
            let stream = state.streams.get_mut(&append.stream).expect("it was looked at");
            for one in append.partitions {
                let index = one.partition.0 as usize;
                let partition = &mut stream.partitions[index];
                ranges.push(partition.append(one.records, one.append_time, commit));
                partition.retain(&stream.spec.retention, now);
                stream.touch(index);
            }
        }
        if !batch.state.is_empty() {
            state.entries.apply(batch.state, &ranges, self.shared.watched());
            self.shared.meta_changed.send_replace(());
        }
        Ok(AppendOutcome::Appended(ranges))
    }
}

impl Shared {
    fn watched(&self) -> bool {
        self.meta_changed.receiver_count() > 0
    }
}

#[async_trait]
impl ChangeLog for MemoryStore {
    async fn create(&self, stream: &StreamId, spec: &LogSpec) -> Result<Created, LogError> {
        if spec.partitions == 0 {
            return Err(malformed(MalformedBatch::NoPartition));
        }
        let state = &mut *self.shared.state.lock();
        if let Some(existing) = state.streams.get(stream) {
            let same = existing.spec == *spec;
            return Ok(if same { Created::Existed } else { Created::Differs(existing.spec.clone()) });
        }
        state.incarnations += 1;
        let partitions = (0..spec.partitions).map(|number| PartitionState::new(Partition(number), spec.start));
        let created = StreamState {
            spec: spec.clone(),
            incarnation: state.incarnations,
            partitions: partitions.collect(),
            changes: 0,
            changed: watch::Sender::new(()),
        };
        state.streams.insert(stream.clone(), created);
        Ok(Created::New)
    }

    async fn append(&self, batch: AppendBatch) -> Result<AppendOutcome, LogError> {
        self.append_now(batch)
    }

    async fn read(
        &self,
        stream: &StreamId,
        partition: Partition,
        from: Offset,
        bounds: ReadBounds,
    ) -> Result<LogRead, LogError> {
        let state = self.shared.state.lock();
        let partition =
            state.streams.get(stream).and_then(|stream| stream.partition(partition)).ok_or(LogError::NotFound)?;
        let next = partition.next();
        if from > next {
            return Err(LogError::OutOfRange { asked: from, next });
        }
        Ok(partition.read(from, bounds))
    }

    async fn bounds(&self, stream: &StreamId) -> Result<Vec<PartitionBounds>, LogError> {
        Ok(self.shared.state.lock().streams.get(stream).map(StreamState::bounds).unwrap_or_default())
    }

    async fn trim(&self, stream: &StreamId, trim: Trim) -> Result<Vec<PartitionBounds>, LogError> {
        let mut state = self.shared.state.lock();
        match trim {
            Trim::Stream => {
                state.streams.remove(stream);
                Ok(Vec::new())
            }
            Trim::Before { partition, before } => {
                let stream = state.streams.get_mut(stream).ok_or(LogError::NotFound)?;
                let next = stream.partition(partition).ok_or(LogError::NotFound)?.next();
                if before > next {
                    return Err(LogError::OutOfRange { asked: before, next });
                }
                let index = partition.0 as usize;
                if stream.partitions[index].trim(before) {
                    stream.touch(index);
                }
                Ok(stream.bounds())
            }
        }
    }

    async fn watch(&self, stream: &StreamId) -> Result<LogWatch, LogError> {
        let (changed, seen, incarnation) = {
            let state = self.shared.state.lock();
            let found = state.streams.get(stream).ok_or(LogError::NotFound)?;
            (found.changed.subscribe(), found.changes, found.incarnation)
        };
        let start = (Arc::clone(&self.shared), stream.clone(), changed, seen);
        let watch = futures::stream::unfold(start, move |(shared, stream, mut changed, seen)| async move {
            loop {
                // Marked as seen before the look, so that a change after the look wakes again.
                changed.borrow_and_update();
                let found = {
                    let state = shared.state.lock();
                    let found = state.streams.get(&stream).filter(|found| found.incarnation == incarnation)?;
                    found.change_after(seen)
                };
                if let Some((seen, bounds)) = found {
                    return Some((bounds, (shared, stream, changed, seen)));
                }
                changed.changed().await.ok()?;
            }
        });
        Ok(watch.boxed())
    }
}

#[async_trait]
impl MetaStore for MemoryStore {
    async fn get(&self, key: &[u8]) -> Result<Option<MetaEntry>, MetaError> {
        Ok(self.shared.state.lock().entries.get(key))
    }

    async fn scan(&self, range: MetaRange) -> Result<Vec<MetaEntry>, MetaError> {
        Ok(self.shared.state.lock().entries.scan(&range))
    }

    async fn compare_and_swap(&self, swaps: Vec<CompareAndSwap>, _: Durability) -> Result<SwapOutcome, MetaError> {
        let mut state = self.shared.state.lock();
        let outcome = state.entries.compare_and_swap(swaps, self.shared.watched());
        if matches!(outcome, SwapOutcome::Swapped(_)) {
            self.shared.meta_changed.send_replace(());
        }
        Ok(outcome)
    }

    async fn watch(&self, prefix: Bytes) -> Result<MetaWatch, MetaError> {
        let (changed, seen) = {
            let state = self.shared.state.lock();
            (self.shared.meta_changed.subscribe(), state.entries.revision())
        };
        let start = (Arc::clone(&self.shared), prefix, changed, seen);
        let watch = futures::stream::unfold(start, |(shared, prefix, mut changed, seen)| async move {
            loop {
                changed.borrow_and_update();
                let found = shared.state.lock().entries.change_after(seen, &prefix);
                if let Some(entry) = found {
                    let seen = entry.revision;
                    return Some((entry, (shared, prefix, changed, seen)));
                }
                changed.changed().await.ok()?;
            }
        });
        Ok(watch.boxed())
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("MemoryStore").field("streams", &state.streams.len()).finish_non_exhaustive()
    }
}
