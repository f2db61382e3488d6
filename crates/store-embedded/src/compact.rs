//! Key compaction: of the records of one key the newest stays. It never takes out the newest record of a key, but for a
//! tombstone whose grace is over, and never changes an offset, a commit or a time.
//!
//! A round reads the part of a partition that was appended since the last one and notes the newest offset of each key in
//! it (as many keys as fit), then goes through the partition from its beginning and rewrites the chunks in which something
//! was replaced. Each rewriting is one atomic step, from older to newer, so a crash leaves at worst replaced records behind
//! their newer ones, and the next round finds them again. The idea is Kafka's log cleaner.

use std::collections::HashMap;

use bytes::Bytes;
use tidegate_core::time::Timestamp;

use crate::chunk::{Builder, CHUNK_MAX_RECORDS, CHUNK_TARGET_BYTES, Chunk, Record, Run};
use crate::command::{Place, Work};
use crate::config::{COMPACTION_MAX_KEY_BYTES, COMPACTION_MAX_KEYS};
use crate::engine::{View, open_chunk};
use crate::error::{ReadError, WriteError};
use crate::maintain::unread;
use crate::shared::Shared;

/// A round waits until this share of the records is new, so that its reading pays...
const NEW_SHARE: u64 = 4;
/// ...but not longer than this.
const PATIENCE_MS: i64 = 60_000;
/// How often it looks meanwhile.
const LOOK_MS: i64 = 1_000;
/// Runs that a joined chunk may have.
const MAX_RUNS: usize = 512;

/// A compaction of one partition on its way.
#[derive(Debug)]
pub(crate) struct Round {
    place: Place,
    /// Tombstones of this time or older have had their grace.
    grace_over_ms: i64,
    /// The newest offset of each key in the part that is new.
    newest: HashMap<Bytes, u64>,
    key_bytes: usize,
    /// Where the new part ends that this round takes in.
    to: u64,
    /// Where the next chunk is looked for.
    at: u64,
    rewriting: bool,
    /// The oldest tombstone that stays.
    oldest_tombstone_ms: Option<i64>,
}

/// Chunks that become one.
#[derive(Debug, Default)]
struct Joined {
    builder: Option<Builder>,
    bases: Vec<u64>,
    gone: Vec<(u64, u64)>,
    bytes: usize,
}

impl Round {
    /// Begins a round; `Err` = it is not worth it before this time.
    pub(crate) fn begin(shared: &Shared, place: Place, now: Timestamp) -> Result<Result<Self, i64>, WriteError> {
        let (_, state) = shared.partition(&place.stream, place.partition).map_err(unread)?;
        let floor = &state.floor;
        let now_ms = now.unix_ms();
        let new = state.next - floor.clean_to.clamp(floor.earliest, state.next);
        let waited = state.last_time_ms.is_none_or(|last| now_ms.saturating_sub(last) >= PATIENCE_MS);
        if new > 0 && new < state.kept_records() / NEW_SHARE && !waited {
            return Ok(Err(now_ms.saturating_add(LOOK_MS)));
        }
        let grace_ms = place.stream.spec.compaction.map_or(u64::MAX, |compaction| compaction.tombstone_grace_ms);
        Ok(Ok(Self {
            place,
            grace_over_ms: now_ms.saturating_sub_unsigned(grace_ms),
            newest: HashMap::new(),
            key_bytes: 0,
            to: state.next,
            at: floor.clean_to.max(floor.earliest),
            rewriting: false,
            oldest_tombstone_ms: None,
        }))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Looks at so many chunks. At the end: up to where the partition is clean, and when a tombstone's grace is over.
    pub(crate) fn step(
        &mut self,
        view: &View,
        max_chunks: usize,
        write: impl Fn(Work) -> Result<(), WriteError>,
    ) -> Result<Option<(u64, Option<i64>)>, WriteError> {
        let partition = self.place.stream.key(self.place.partition);
        let earliest =
            view.floor(partition).map_err(unread)?.map_or(self.place.stream.spec.start.0, |floor| floor.earliest);
        let mut left = max_chunks;
        if !self.rewriting {
            self.at = self.at.max(earliest);
            if self.at < self.to {
                for chunk in chunks(view, &self.place, self.at, self.to) {
                    if left == 0 {
                        return Ok(None);
                    }
                    left -= 1;
                    let chunk = chunk.map_err(unread)?;
                    self.note(&chunk);
                    self.at = chunk.end;
                    if self.newest.len() >= COMPACTION_MAX_KEYS || self.key_bytes >= COMPACTION_MAX_KEY_BYTES {
                        self.to = self.at;
                        break;
                    }
                }
            }
            self.rewriting = true;
            self.at = earliest;
        }
        self.at = self.at.max(earliest);
        // What is joined does not outlive the step: until the next one the floor may pass its chunks, and who removes what
        // lies below the floor knows nothing of a join.
        let mut joined = Joined::default();
        if self.at < self.to {
            for chunk in chunks(view, &self.place, self.at, self.to) {
                if left == 0 {
                    joined.finish(&self.place, &write)?;
                    return Ok(None);
                }
                left -= 1;
                let chunk = chunk.map_err(unread)?;
                self.at = chunk.end;
                self.rewrite(&mut joined, &chunk, &write)?;
            }
        }
        joined.finish(&self.place, &write)?;
        let grace_ms = self.place.stream.spec.compaction.map_or(u64::MAX, |compaction| compaction.tombstone_grace_ms);
        Ok(Some((self.to, self.oldest_tombstone_ms.map(|time_ms| time_ms.saturating_add_unsigned(grace_ms)))))
    }

    fn note(&mut self, chunk: &Chunk) {
        for slot in &chunk.slots {
            if let Some(key) = chunk.key(slot) {
                let bytes = key.len();
                // A copy, so that the map does not hold whole chunks in memory.
                if self.newest.insert(Bytes::copy_from_slice(&key), slot.offset).is_none() {
                    self.key_bytes += bytes + 64;
                }
            }
        }
    }

    fn rewrite(
        &mut self,
        joined: &mut Joined,
        chunk: &Chunk,
        write: &impl Fn(Work) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let mut gone = Vec::new();
        let mut stay = Vec::with_capacity(chunk.slots.len());
        for slot in &chunk.slots {
            let key = chunk.key(slot);
            let time_ms = chunk.run(slot.offset).time_ms;
            let replaced =
                key.as_ref().and_then(|key| self.newest.get(key)).is_some_and(|newest| *newest > slot.offset);
            let forgotten = key.is_some() && slot.tombstone && time_ms <= self.grace_over_ms;
            if replaced || forgotten {
                gone.push((slot.offset, slot.len()));
                continue;
            }
            if slot.tombstone && key.is_some() {
                self.oldest_tombstone_ms = Some(self.oldest_tombstone_ms.map_or(time_ms, |oldest| oldest.min(time_ms)));
            }
            stay.push(Record { offset: slot.offset, bytes: chunk.bytes(slot), key, tombstone: slot.tombstone });
        }
        let small = chunk.stored_bytes() < CHUNK_TARGET_BYTES / 2;
        if gone.is_empty() && !small {
            // It stays as it is, and what was joined before it ends here.
            return joined.finish(&self.place, write);
        }
        if !joined.has_room(chunk, stay.len()) {
            joined.finish(&self.place, write)?;
        }
        joined.add(&self.place, chunk, stay, gone);
        Ok(())
    }
}

/// Chunks with offsets in a range that begins in the first of them; each must follow the one before.
fn chunks(view: &View, place: &Place, from: u64, to: u64) -> impl Iterator<Item = Result<Chunk, ReadError>> + use<> {
    let partition = place.stream.key(place.partition);
    let first = view.chunk_before(partition, from).map(|found| found.map_or(from, |(base, _)| base));
    let (first, failed) = match first {
        Ok(first) => (first, None),
        Err(error) => (to, Some(Err(error))),
    };
    let mut expected = first;
    let stored = view.chunks(partition, first, to).map(move |found| {
        let (base, value) = found?;
        if base != expected {
            return Err(ReadError::damaged("a chunk is missing"));
        }
        let chunk = open_chunk(partition, base, value)?;
        expected = chunk.end;
        Ok(chunk)
    });
    failed.into_iter().chain(stored)
}

impl Joined {
    /// Whether a chunk may be added: it follows without a hole, and all of it stays within a chunk's bounds.
    fn has_room(&self, chunk: &Chunk, records: usize) -> bool {
        self.builder.as_ref().is_none_or(|builder| {
            builder.end == chunk.base
                && self.bytes + chunk.stored_bytes() <= CHUNK_TARGET_BYTES
                && builder.records.len() + records <= CHUNK_MAX_RECORDS
                && builder.runs.len() + chunk.runs.len() <= MAX_RUNS
        })
    }

    fn add(&mut self, place: &Place, chunk: &Chunk, stay: Vec<Record>, gone: Vec<(u64, u64)>) {
        self.bases.push(chunk.base);
        self.gone.extend(gone);
        self.bytes += stay.iter().map(|record| record.bytes.len() + 16).sum::<usize>();
        let builder = self.builder.get_or_insert_with(|| Builder {
            partition: place.stream.key(place.partition),
            base: chunk.base,
            end: chunk.base,
            bytes_before: chunk.bytes_before,
            bytes_ever: 0,
            runs: Vec::new(),
            records: Vec::new(),
        });
        builder.end = chunk.end;
        builder.bytes_ever += chunk.bytes_ever;
        for run in &chunk.runs {
            push_run(&mut builder.runs, *run);
        }
        builder.records.extend(stay);
    }

    /// Writes what was joined, unless it is one chunk that stays as it is.
    fn finish(&mut self, place: &Place, write: &impl Fn(Work) -> Result<(), WriteError>) -> Result<(), WriteError> {
        let Self { builder, bases, gone, .. } = std::mem::take(self);
        let Some(builder) = builder else { return Ok(()) };
        if gone.is_empty() && bases.len() < 8 {
            // Joining a few small chunks is not worth the writing.
            return Ok(());
        }
        let remove = bases.into_iter().filter(|base| *base != builder.base).collect();
        let put = vec![(builder.base, builder.seal())];
        write(Work::Rewrite { place: place.clone(), put, remove, gone })
    }
}

/// Runs of which nothing is left but their place are one.
fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.commit == run.commit && last.time_ms == run.time_ms => last.end = run.end,
        _ => runs.push(run),
    }
}
