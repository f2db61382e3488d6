//! A group: commands that become durable together. Each is decided in its order against the store and what those before it
//! in the group change. It never writes: the writer commits what it gathers, or drops it all.

mod append;
mod floor;
mod work;

pub(crate) use floor::{DUE_COMPACT, DUE_RETAIN, DUE_SWEEP};

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_core::port::{
    AppendedRange, CompareAndSwap, Created, Durability, LogError, LogSpec, MetaEntry, PartitionBounds, Revision,
    StreamId, Swap, SwapOutcome, Trim,
};
use tidegate_core::position::{GapReason, Offset, Partition};

use crate::catalog::{PartitionState, StreamState};
use crate::chunk::Chunk;
use crate::command::{Answer, Command, Place};
use crate::engine::{MetaValue, View, Writes, open_chunk};
use crate::error::{Malformed, ReadError, WriteError};
use crate::key::{self, PartitionKey};
use crate::shared::Shared;
use crate::state::{Counters, LogState, StreamEntry};

/// A metadata entry that the group changes; without a value it is deleted.
#[derive(Debug, Clone)]
pub(crate) struct Changed {
    pub(crate) revision: Revision,
    pub(crate) value: Option<Bytes>,
}

/// What a group does to the store.
pub(crate) struct Group<'a> {
    shared: &'a Shared,
    view: Arc<View>,
    now_ms: i64,
    pub(crate) counters: Counters,
    writes: Writes,
    pub(crate) meta: HashMap<Bytes, Changed>,
    /// Streams that are new, or removed.
    pub(crate) streams: HashMap<StreamId, Option<Arc<StreamState>>>,
    /// Streams that were removed, for their watchers.
    pub(crate) removed: Vec<Arc<StreamState>>,
    pub(crate) partitions: HashMap<PartitionKey, (Place, PartitionState)>,
    pub(crate) fsync: bool,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

impl<'a> Group<'a> {
    pub(crate) fn new(shared: &'a Shared, view: Arc<View>, counters: Counters, now_ms: i64) -> Self {
        Self {
            shared,
            view,
            now_ms,
            counters,
            writes: Writes::default(),
            meta: HashMap::new(),
            streams: HashMap::new(),
            removed: Vec::new(),
            partitions: HashMap::new(),
            fsync: false,
            records: 0,
            bytes: 0,
        }
    }

    /// Decides a command. What it answers holds once the group is written. An error changes nothing.
    pub(crate) fn decide(&mut self, command: &Command) -> Result<Answer, WriteError> {
        match command {
            Command::Create { stream, spec } => self.create(stream, spec).map(Answer::Created),
            Command::Append(batch) => self.append(batch).map(Answer::Appended),
            Command::Trim { stream, trim } => self.trim(stream, *trim).map(Answer::Bounds),
            Command::Swap { swaps, durability } => self.swap(swaps, *durability).map(Answer::Swapped),
            Command::Work(work) => self.work(work).map(|()| Answer::Worked),
        }
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.records.is_empty() && self.writes.index.is_empty() && self.meta.is_empty()
    }

    /// All that is to be written, with the counters.
    pub(crate) fn take_writes(&mut self) -> Writes {
        self.counters.group += 1;
        let mut writes = std::mem::take(&mut self.writes);
        writes.index.insert(key::COUNTERS.to_vec(), Some(LogState::Counters(self.counters).seal()));
        writes.meta = self
            .meta
            .iter()
            .map(|(key, Changed { revision, value })| {
                let sealed = value.clone().map(|value| MetaValue { revision: *revision, value }.seal());
                (key.clone(), sealed)
            })
            .collect();
        writes
    }

    fn stream(&self, id: &StreamId) -> Result<Option<Arc<StreamState>>, WriteError> {
        match self.streams.get(id) {
            Some(changed) => Ok(changed.clone()),
            None => self.shared.stream(id).map_err(unread),
        }
    }

    fn state(&self, stream: &StreamState, partition: Partition) -> Result<PartitionState, WriteError> {
        match self.partitions.get(&stream.key(partition)) {
            Some((_, state)) => Ok(state.clone()),
            None => {
                let loaded = self.shared.partition(stream, partition);
                loaded.map(|(_, state)| state).map_err(|error| damaged(stream, partition, Offset::ZERO, error))
            }
        }
    }

    fn put_state(&mut self, place: &Place, state: PartitionState) {
        self.partitions.insert(place.stream.key(place.partition), (place.clone(), state));
    }

    fn create(&mut self, id: &StreamId, spec: &LogSpec) -> Result<Created, WriteError> {
        if spec.partitions == 0 {
            return Err(malformed(Malformed::NoPartition));
        }
        if let Some(existing) = self.stream(id)? {
            let same = existing.spec == *spec;
            return Ok(if same { Created::Existed } else { Created::Differs(existing.spec.clone()) });
        }
        self.fsync = true;
        self.counters.log += 1;
        let log = self.counters.log;
        let entry = LogState::Stream(StreamEntry::new(log, spec)).seal();
        self.writes.index.insert(key::stream(id), Some(entry));
        self.streams.insert(id.clone(), Some(StreamState::new(id.clone(), log, spec.clone())));
        Ok(Created::New)
    }

    fn trim(&mut self, id: &StreamId, trim: Trim) -> Result<Vec<PartitionBounds>, WriteError> {
        let found = self.stream(id)?;
        match (trim, found) {
            (Trim::Stream, None) => Ok(Vec::new()),
            (Trim::Stream, Some(stream)) => {
                self.fsync = true;
                self.writes.index.insert(key::stream(id), None);
                self.writes.index.insert(key::removed(stream.log), Some(LogState::Removed.seal()));
                self.partitions.retain(|key, _| key.log != stream.log);
                self.streams.insert(id.clone(), None);
                self.removed.push(stream);
                Ok(Vec::new())
            }
            (Trim::Before { .. }, None) => Err(LogError::NotFound.into()),
            (Trim::Before { partition, before }, Some(stream)) => {
                if !stream.has(partition) {
                    return Err(LogError::NotFound.into());
                }
                let place = Place { stream, partition };
                let mut state = self.state(&place.stream, partition)?;
                if before.0 > state.next {
                    return Err(LogError::OutOfRange { asked: before, next: Offset(state.next) }.into());
                }
                if before.0 > state.floor.earliest {
                    self.fsync = true;
                    self.raise_floor(&place, &mut state, before.0, GapReason::Trim)?;
                    self.put_state(&place, state);
                }
                let numbers = (0..place.stream.spec.partitions).map(Partition);
                numbers.map(|partition| Ok(self.state(&place.stream, partition)?.bounds(partition))).collect()
            }
        }
    }

    fn current(&self, key: &Bytes) -> Result<Option<MetaValue>, WriteError> {
        if let Some(changed) = self.meta.get(key) {
            let value = changed.value.clone();
            return Ok(value.map(|value| MetaValue { revision: changed.revision, value }));
        }
        if let Some(value) = self.shared.cached_meta(key) {
            return Ok(Some(value));
        }
        self.shared.meta(key).map_err(unread)
    }

    /// The first swap whose condition does not hold, with what is there. A key that stands in the list twice does not
    /// hold the second time: what it should find there could not be told beforehand.
    fn mismatch(&self, swaps: &[CompareAndSwap]) -> Result<Option<(usize, Option<MetaEntry>)>, WriteError> {
        let mut seen = std::collections::HashSet::with_capacity(swaps.len());
        for (index, swap) in swaps.iter().enumerate() {
            let current = self.current(&swap.key)?;
            let holds = current.as_ref().map(|current| current.revision) == swap.expected;
            if !seen.insert(&swap.key) || !holds {
                let entry = current.map(|current| MetaEntry {
                    key: swap.key.clone(),
                    value: Some(current.value),
                    revision: current.revision,
                });
                return Ok(Some((index, entry)));
            }
        }
        Ok(None)
    }

    /// Makes swaps that were found to hold.
    fn make(&mut self, swaps: &[CompareAndSwap], ranges: &[AppendedRange]) -> Vec<Revision> {
        let mut revisions = Vec::with_capacity(swaps.len());
        for CompareAndSwap { key, expected, swap } in swaps {
            let value = match swap {
                Swap::Check => {
                    revisions.push(expected.unwrap_or(Revision(0)));
                    continue;
                }
                Swap::Put(value) => Some(value.clone()),
                Swap::PutWithRanges(value) => Some(with_ranges(value, ranges)),
                Swap::Delete => None,
            };
            self.counters.revision += 1;
            let revision = Revision(self.counters.revision);
            revisions.push(revision);
            self.meta.insert(key.clone(), Changed { revision, value });
        }
        revisions
    }

    fn swap(&mut self, swaps: &[CompareAndSwap], durability: Durability) -> Result<SwapOutcome, WriteError> {
        if let Some((index, current)) = self.mismatch(swaps)? {
            return Ok(SwapOutcome::Mismatch { index, current });
        }
        self.fsync |= durability == Durability::Fsync;
        Ok(SwapOutcome::Swapped(self.make(swaps, &[])))
    }

    /// The last chunk that begins at or before an offset, as the group leaves it.
    fn chunk_before(&self, partition: PartitionKey, offset: u64) -> Result<Option<Chunk>, ReadError> {
        let range = partition.chunk(0)..=partition.chunk(offset);
        let mut written = self.writes.records.range(range).rev();
        let written = written.find_map(|(key, value)| Some((key::chunk_base(key)?, value.clone()?)));
        let mut before = offset;
        let stored = loop {
            match self.view.chunk_before(partition, before)? {
                // Removed or replaced by the group itself: what it replaced stands in `written`.
                Some((base, _)) if self.writes.records.contains_key(&partition.chunk(base)) => {
                    match base.checked_sub(1) {
                        Some(earlier) => before = earlier,
                        None => break None,
                    }
                }
                found => break found,
            }
        };
        let found = written.into_iter().chain(stored).max_by_key(|(base, _)| *base);
        found.map(|(base, value)| open_chunk(partition, base, value)).transpose()
    }

    /// The chunk in which an offset lies, as the group leaves it; offsets are dense, so there is one.
    fn chunk_at(&self, partition: PartitionKey, offset: u64) -> Result<Chunk, ReadError> {
        let chunk = self.chunk_before(partition, offset)?.filter(|chunk| chunk.end > offset);
        chunk.ok_or_else(|| ReadError::damaged("a chunk is missing"))
    }
}

/// A value with where the append's records came to lie behind it.
fn with_ranges(value: &Bytes, ranges: &[AppendedRange]) -> Bytes {
    let mut out = Vec::with_capacity(value.len() + 20 * ranges.len());
    out.extend_from_slice(value);
    for range in ranges {
        out.extend(range.partition.0.to_be_bytes());
        out.extend(range.base.0.to_be_bytes());
        out.extend(range.next.0.to_be_bytes());
    }
    out.into()
}

fn malformed(what: Malformed) -> WriteError {
    WriteError::NotMade(Box::new(what))
}

fn unread(error: ReadError) -> WriteError {
    WriteError::NotMade(error.into_cause())
}

/// A read that failed, with the place for one that is damaged.
fn damaged(stream: &StreamState, partition: Partition, offset: Offset, error: ReadError) -> WriteError {
    match error {
        ReadError::Damaged(cause) => {
            tracing::error!(stream = ?stream.id, partition = partition.0, offset = offset.0, cause, "stored records are damaged");
            LogError::Corrupt { stream: stream.id.clone(), partition, offset }.into()
        }
        error => unread(error),
    }
}
