//! The log's port on the store. It never gives a record that is not durable as its append asked, and never leaves a hole
//! unnamed.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, ChangeLog, Commit, Created, LogError, LogRead, LogReadItem, LogSpec, LogWatch,
    PartitionBounds, ReadBounds, StreamId, Swap, Trim,
};
use tidegate_core::position::{Gap, GapReason, Offset, Partition};
use tidegate_core::time::Timestamp;

use crate::catalog::{PartitionState, StreamState};
use crate::command::{Answer, Command};
use crate::config::{APPEND_MAX_BYTES, META_KEY_MAX_BYTES, META_VALUE_MAX_BYTES, READ_MAX_CHUNKS, RECORD_MAX_BYTES};
use crate::engine::{View, open_chunk};
use crate::error::{Malformed, ReadError};
use crate::metric;
use crate::shared::Shared;
use crate::store::EmbeddedStore;

/// What a change costs in the queue beside its bytes.
const COMMAND_BYTES: u64 = 512;
/// What a record costs in the queue beside its bytes.
const RECORD_BYTES: u64 = 64;
/// What a partition's range adds to the value of a `PutWithRanges`.
const RANGE_BYTES: u64 = 20;

#[async_trait]
impl ChangeLog for EmbeddedStore {
    async fn create(&self, stream: &StreamId, spec: &LogSpec) -> Result<Created, LogError> {
        let command = Command::Create { stream: stream.clone(), spec: spec.clone() };
        match self.inner.queue.ask(command, COMMAND_BYTES).await? {
            Answer::Created(created) => Ok(created),
            other => Err(unexpected(&other)),
        }
    }

    async fn append(&self, batch: AppendBatch) -> Result<AppendOutcome, LogError> {
        let bytes = size_of(&batch)?;
        match self.inner.queue.ask(Command::Append(batch), bytes).await? {
            Answer::Appended(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    async fn read(
        &self,
        stream: &StreamId,
        partition: Partition,
        from: Offset,
        bounds: ReadBounds,
    ) -> Result<LogRead, LogError> {
        let shared = &self.inner.shared;
        let known = shared.catalog.get(stream);
        if let Some(known) = &known {
            if !known.has(partition) {
                return Err(LogError::NotFound);
            }
            // Most reads of those who follow a stream find nothing: they need no thread.
            if let Some(next) = known.loaded(partition).map(|state| state.next).filter(|next| from.0 >= *next) {
                return at_the_tail(from, next);
            }
        }
        let id = stream.clone();
        let read =
            self.read_blocking(move |shared| Ok::<_, ReadError>(read(shared, &id, known, partition, from, bounds)));
        read.await.map_err(unavailable)?
    }

    async fn bounds(&self, stream: &StreamId) -> Result<Vec<PartitionBounds>, LogError> {
        // Always all of one moment: who merges partitions by commit relies on seeing a group wholly or not at all.
        let shared = &self.inner.shared;
        let loaded = shared.at(|_| shared.catalog.get(stream).and_then(|stream| stream.all_loaded()));
        if let Some(bounds) = loaded.map_err(|absent| unavailable(absent.into()))? {
            return Ok(bounds);
        }
        let id = stream.clone();
        let bounds = self.read_blocking(move |shared| {
            loop {
                let Some(stream) = shared.stream(&id)? else { return Ok::<_, ReadError>(Ok(Vec::new())) };
                for partition in (0..stream.spec.partitions).map(Partition) {
                    if let Err(error) = load(shared, &stream, partition) {
                        return Ok(Err(error));
                    }
                }
                // Nothing is loaded any more if the database was opened again meanwhile.
                let loaded = shared.at(|_| (!stream.is_removed()).then(|| stream.all_loaded()))?;
                match loaded {
                    None => return Ok(Ok(Vec::new())),
                    Some(Some(bounds)) => return Ok(Ok(bounds)),
                    Some(None) => {}
                }
            }
        });
        bounds.await.map_err(unavailable)?
    }

    async fn trim(&self, stream: &StreamId, trim: Trim) -> Result<Vec<PartitionBounds>, LogError> {
        let command = Command::Trim { stream: stream.clone(), trim };
        match self.inner.queue.ask(command, COMMAND_BYTES).await? {
            Answer::Bounds(bounds) => Ok(bounds),
            other => Err(unexpected(&other)),
        }
    }

    async fn watch(&self, stream: &StreamId) -> Result<LogWatch, LogError> {
        let id = stream.clone();
        let found = match self.inner.shared.catalog.get(stream) {
            Some(stream) => Some(stream),
            None => self.read_blocking(move |shared| shared.stream(&id)).await.map_err(unavailable)?,
        };
        let stream = found.ok_or(LogError::NotFound)?;
        let store = Arc::downgrade(&self.inner);
        Ok(stream.watch(move |stream, partition| {
            let store = store.clone();
            async move {
                // Only after the database was opened again is a partition that changed not in memory.
                let store = EmbeddedStore { inner: store.upgrade()? };
                let state = store.read_blocking(move |shared| shared.partition(&stream, partition));
                state.await.ok().map(|(_, state)| state)
            }
        }))
    }
}

fn unavailable(error: ReadError) -> LogError {
    LogError::Unavailable(error.into_cause())
}

fn unexpected(answer: &Answer) -> LogError {
    LogError::Indeterminate(format!("the writer answered something else: {answer:?}").into())
}

/// What an append adds; refused if it is more than the log takes.
fn size_of(batch: &AppendBatch) -> Result<u64, LogError> {
    let (mut bytes, mut records) = (0, 0);
    for record in batch.partitions().flat_map(|append| &append.records) {
        let record_bytes = record.bytes.len() as u64 + record.key.as_ref().map_or(0, |key| key.len() as u64);
        if record_bytes > RECORD_MAX_BYTES {
            return Err(LogError::TooLarge { bytes: record_bytes, limit_bytes: RECORD_MAX_BYTES });
        }
        bytes += record_bytes;
        records += 1;
    }
    let partitions = batch.partitions().count();
    for swap in &batch.state {
        check_swap(&swap.key, &swap.swap, partitions).map_err(|what| LogError::Unavailable(Box::new(what)))?;
        bytes += swap.key.len() as u64 + put_bytes(&swap.swap, partitions);
    }
    if bytes > APPEND_MAX_BYTES {
        return Err(LogError::TooLarge { bytes, limit_bytes: APPEND_MAX_BYTES });
    }
    Ok(COMMAND_BYTES * batch.streams.len().max(1) as u64 + bytes + records * RECORD_BYTES)
}

/// Whether a key and a value are of a size that the store takes, in an append to so many partitions.
pub(crate) fn check_swap(key: &Bytes, swap: &Swap, partitions: usize) -> Result<(), Malformed> {
    if key.len() > META_KEY_MAX_BYTES {
        return Err(Malformed::KeyTooLong);
    }
    if put_bytes(swap, partitions) > META_VALUE_MAX_BYTES as u64 { Err(Malformed::ValueTooLarge) } else { Ok(()) }
}

/// The bytes of the value that a swap sets in an append to so many partitions.
pub(crate) fn put_bytes(swap: &Swap, partitions: usize) -> u64 {
    match swap {
        Swap::Put(value) => value.len() as u64,
        Swap::PutWithRanges(value) => value.len() as u64 + partitions as u64 * RANGE_BYTES,
        Swap::Delete | Swap::Check => 0,
    }
}

fn at_the_tail(from: Offset, next: u64) -> Result<LogRead, LogError> {
    if from.0 > next {
        return Err(LogError::OutOfRange { asked: from, next: Offset(next) });
    }
    Ok(LogRead { items: Vec::new(), next: from })
}

fn load(shared: &Shared, stream: &StreamState, partition: Partition) -> Result<(Arc<View>, PartitionState), LogError> {
    shared.partition(stream, partition).map_err(|error| corrupt(stream, partition, stream.spec.start, error))
}

fn corrupt(stream: &StreamState, partition: Partition, offset: Offset, error: ReadError) -> LogError {
    match error {
        ReadError::Damaged(cause) => {
            let (stream, at) = (stream.id.clone(), offset.0);
            tracing::error!(?stream, partition = partition.0, offset = at, cause, "stored records are damaged");
            LogError::Corrupt { stream, partition, offset }
        }
        error => unavailable(error),
    }
}

fn read(
    shared: &Shared,
    id: &StreamId,
    known: Option<Arc<StreamState>>,
    partition: Partition,
    from: Offset,
    bounds: ReadBounds,
) -> Result<LogRead, LogError> {
    let known = known.filter(|known| !known.is_removed());
    let stream = match known {
        Some(known) => known,
        None => shared.stream(id).map_err(unavailable)?.ok_or(LogError::NotFound)?,
    };
    if !stream.has(partition) {
        return Err(LogError::NotFound);
    }
    let (view, state) = load(shared, &stream, partition)?;
    if from.0 >= state.next {
        return at_the_tail(from, state.next);
    }
    let mut reading = Reading { partition, items: Vec::new(), at: from.0, records: 0, bytes: 0 };
    for lost in &state.floor.lost {
        reading.skip(lost.to, lost.reason);
    }
    let end = reading.records_from(&stream, &view, state.next, bounds);
    end.map_err(|(at, error)| corrupt(&stream, partition, Offset(at), error))?;
    metric::read(reading.bytes);
    Ok(LogRead { items: reading.items, next: Offset(reading.at) })
}

/// A read on its way.
struct Reading {
    partition: Partition,
    items: Vec<LogReadItem>,
    /// Where it goes on.
    at: u64,
    records: u32,
    bytes: u64,
}

impl Reading {
    /// Goes on to `to`, which is where records are there again; says why they are missing.
    fn skip(&mut self, to: u64, reason: GapReason) {
        if to <= self.at {
            return;
        }
        let (from, to) = (Offset(self.at), Offset(to));
        self.at = to.0;
        match self.items.last_mut() {
            Some(LogReadItem::Gap(gap)) if gap.reason == reason => gap.to = to,
            _ => self.items.push(LogReadItem::Gap(Gap { partition: self.partition, from, to, reason })),
        }
    }

    /// Reads chunks until the bounds are met. An error names the offset that cannot be read.
    fn records_from(
        &mut self,
        stream: &StreamState,
        view: &View,
        next: u64,
        bounds: ReadBounds,
    ) -> Result<(), (u64, ReadError)> {
        if self.at >= next {
            return Ok(());
        }
        let key = stream.key(self.partition);
        let missing = || ReadError::damaged("a chunk is missing");
        // Whoever reads on begins where a chunk begins, mostly; else the one before has the offset.
        let mut chunks = view.chunks(key, self.at, next);
        let mut found = chunks.next().transpose().map_err(|error| (self.at, error))?;
        if found.as_ref().is_none_or(|(base, _)| *base != self.at) {
            let before = view.chunk_before(key, self.at).map_err(|error| (self.at, error))?;
            let (base, value) = before.ok_or_else(|| (self.at, missing()))?;
            let chunk = open_chunk(key, base, value).map_err(|error| (self.at, error))?;
            if chunk.end <= self.at {
                return Err((self.at, missing()));
            }
            if self.take(&chunk, bounds) {
                return Ok(());
            }
        }
        let mut looked = 0;
        while let Some((base, value)) = found {
            looked += 1;
            if looked > READ_MAX_CHUNKS && self.records > 0 {
                // Enough for one read; a gap that was begun belongs whole to the next one, which begins with it.
                if let Some(gap) = self.items.pop_if(|item| matches!(item, LogReadItem::Gap(_)))
                    && let LogReadItem::Gap(gap) = gap
                {
                    self.at = gap.from.0;
                }
                return Ok(());
            }
            if base != self.at {
                return Err((self.at, missing()));
            }
            let chunk = open_chunk(key, base, value).map_err(|error| (self.at, error))?;
            if self.take(&chunk, bounds) {
                return Ok(());
            }
            if self.at >= next {
                return Ok(());
            }
            found = chunks.next().transpose().map_err(|error| (self.at, error))?;
        }
        if self.at < next && self.items.is_empty() { Err((self.at, missing())) } else { Ok(()) }
    }

    /// Takes what it wants of a chunk; `true` = it has enough.
    fn take(&mut self, chunk: &crate::chunk::Chunk, bounds: ReadBounds) -> bool {
        let first = chunk.slots.partition_point(|slot| slot.offset < self.at);
        let mut run = chunk.run(self.at);
        for slot in &chunk.slots[first..] {
            let full = self.records >= bounds.records || self.bytes.saturating_add(slot.len()) > bounds.bytes;
            self.skip(slot.offset, GapReason::Compaction);
            if self.records > 0 && full {
                return true;
            }
            if slot.offset >= run.end {
                run = chunk.run(slot.offset);
            }
            self.items.push(LogReadItem::Record {
                offset: Offset(slot.offset),
                commit: Commit(run.commit),
                append_time: Timestamp::from_unix_ms(run.time_ms),
                bytes: chunk.bytes(slot),
            });
            self.records += 1;
            self.bytes += slot.len();
            self.at = slot.offset + 1;
        }
        // A gap at the chunk's end may go on in the next one, so it is told by who reads on. Where what is left of the bound has
        // no room for such a chunk again, the next one would be read and summed up for a part of it, and again by who reads on.
        let left = bounds.bytes.saturating_sub(self.bytes);
        if self.records > 0 && (self.records >= bounds.records || left < chunk.data_len().min(bounds.bytes / 4)) {
            return true;
        }
        self.skip(chunk.end, GapReason::Compaction);
        false
    }
}
