//! Steps of maintenance within a group. It never trusts that what a step saw is still so.

use std::sync::Arc;

use tidegate_core::position::{GapReason, Offset};

use super::floor::{DUE_COMPACT, DUE_RETAIN, too_old_at};
use super::{Group, damaged};
use crate::catalog::PartitionState;
use crate::command::{Place, Work};
use crate::error::WriteError;
use crate::key::{self, ChunkKey};

impl Group<'_> {
    pub(super) fn work(&mut self, work: &Work) -> Result<(), WriteError> {
        match work {
            Work::Forget { due } => {
                self.writes.index.insert(due.to_vec(), None);
            }
            Work::Purge { log, chunks, index, done } => {
                self.writes.records.extend(chunks.iter().map(|chunk| (*chunk, None)));
                self.writes.index.extend(index.iter().map(|key| (key.to_vec(), None)));
                if *done {
                    self.writes.index.insert(key::removed(*log), None);
                }
            }
            Work::Retain { place, due } => {
                if self.is_there(place)? {
                    return self.retain_due(place, due);
                }
            }
            Work::Sweep { place, due, chunks, done_to } => {
                if self.is_there(place)? {
                    let mut state = self.state(&place.stream, place.partition)?;
                    let end = self.swept_to(place, &state)?;
                    let below = chunks.iter().filter(|chunk| **chunk < end);
                    self.writes.records.extend(below.map(|chunk| (*chunk, None)));
                    if *done_to == Some(state.floor.earliest) {
                        self.writes.index.insert(due.to_vec(), None);
                        self.edit_floor(place, &mut state, |floor| floor.sweep_due = false);
                        self.put_state(place, state);
                    }
                }
            }
            Work::Rewrite { place, put, remove, gone } => {
                if self.is_there(place)? {
                    let partition = place.stream.key(place.partition);
                    self.writes.records.extend(remove.iter().map(|base| (partition.chunk(*base), None)));
                    self.writes
                        .records
                        .extend(put.iter().map(|(base, value)| (partition.chunk(*base), Some(value.clone()))));
                    return self.rewritten(place, gone);
                }
            }
            Work::Compacted { place, due, clean_to, again_ms, postponed } => {
                if self.is_there(place)? {
                    let mut state = self.state(&place.stream, place.partition)?;
                    self.writes.index.insert(due.to_vec(), None);
                    let more = !postponed && state.next > *clean_to;
                    let again_ms = if more { Some(self.now_ms) } else { *again_ms };
                    self.edit_floor(place, &mut state, |floor| {
                        floor.clean_to = floor.clean_to.max(*clean_to);
                        floor.compact_due_ms = again_ms;
                    });
                    if let Some(again_ms) = again_ms {
                        self.put_due(place, DUE_COMPACT, again_ms);
                    }
                    self.put_state(place, state);
                }
            }
        }
        Ok(())
    }

    /// Up to where chunks lie wholly below the floor, as it is now: a chunk that was listed may have become one with those
    /// that hold the floor.
    fn swept_to(&self, place: &Place, state: &PartitionState) -> Result<ChunkKey, WriteError> {
        let (partition, earliest) = (place.stream.key(place.partition), state.floor.earliest);
        let last = self.chunk_before(partition, earliest);
        let last = last.map_err(|error| damaged(&place.stream, place.partition, Offset(earliest), error))?;
        let base = last.filter(|chunk| chunk.end > earliest).map_or(earliest, |chunk| chunk.base);
        Ok(partition.chunk(base))
    }

    /// Whether the stream that a step looked at is still the one of that name.
    fn is_there(&self, place: &Place) -> Result<bool, WriteError> {
        Ok(self.stream(&place.stream.id)?.is_some_and(|stream| Arc::ptr_eq(&stream, &place.stream)))
    }

    fn retain_due(&mut self, place: &Place, due: &[u8]) -> Result<(), WriteError> {
        let mut state = self.state(&place.stream, place.partition)?;
        self.fsync = true;
        self.writes.index.insert(due.to_vec(), None);
        let retained = self.retain(place, &mut state).and_then(|more| {
            let earliest = if more { None } else { self.earliest_time(place, &mut state)? };
            Ok((more, earliest))
        });
        let (more, earliest) = retained.inspect_err(|_| {
            // Nothing was changed: it stays due.
            self.writes.index.remove(due);
        })?;
        if !more {
            let age_ms = place.stream.spec.retention.age_ms;
            let next_ms = age_ms.zip(earliest).map(|(age_ms, time_ms)| too_old_at(time_ms, age_ms));
            self.edit_floor(place, &mut state, |floor| floor.retain_due = next_ms.is_some());
            if let Some(next_ms) = next_ms {
                self.put_due(place, DUE_RETAIN, next_ms);
            }
        }
        self.put_state(place, state);
        Ok(())
    }

    fn earliest_time(&self, place: &Place, state: &mut PartitionState) -> Result<Option<i64>, WriteError> {
        let earliest = state.floor.earliest;
        if earliest == state.next {
            return Ok(None);
        }
        if state.earliest_time_ms.is_none() {
            let chunk = self.chunk_at(place.stream.key(place.partition), earliest);
            let chunk = chunk.map_err(|error| damaged(&place.stream, place.partition, Offset(earliest), error))?;
            state.earliest_time_ms = Some(chunk.run(earliest).time_ms);
        }
        Ok(state.earliest_time_ms)
    }

    /// Accounts for records that compaction took out.
    fn rewritten(&mut self, place: &Place, gone: &[(u64, u64)]) -> Result<(), WriteError> {
        let mut state = self.state(&place.stream, place.partition)?;
        let earliest = state.floor.earliest;
        let gone = gone.iter().filter(|(offset, _)| *offset >= earliest);
        let (mut records, mut bytes, mut first_gone) = (0, 0, false);
        for (offset, len) in gone {
            records += 1;
            bytes += len;
            first_gone |= *offset == earliest;
        }
        if records == 0 {
            return Ok(());
        }
        self.edit_floor(place, &mut state, |floor| {
            floor.kept_records = floor.kept_records.saturating_sub(records);
            floor.kept_bytes = floor.kept_bytes.saturating_sub(bytes);
        });
        if first_gone {
            // The floor stands on a record that is there.
            self.raise_floor(place, &mut state, earliest + 1, GapReason::Compaction)?;
        }
        self.put_state(place, state);
        Ok(())
    }
}
