//! What is gone at a partition's beginning: retention, trims, and the work that they leave for later. It never moves a
//! floor back.

use std::sync::Arc;

use tidegate_core::position::{GapReason, Offset};

use super::{Group, damaged};
use crate::catalog::PartitionState;
use crate::command::Place;
use crate::error::{ReadError, WriteError};
use crate::key;
use crate::state::{DueEntry, Floor, LogState};

/// Chunks that retention looks at in one go; more is left for the next one.
const RETAIN_MAX_CHUNKS: usize = 64;

/// Kinds of work that is due at a time. A number is never used again.
pub(crate) const DUE_RETAIN: u8 = 1;
pub(crate) const DUE_SWEEP: u8 = 2;
pub(crate) const DUE_COMPACT: u8 = 3;

impl Group<'_> {
    /// Changes a floor and writes it, with what is kept at this moment.
    pub(super) fn edit_floor(&mut self, place: &Place, state: &mut PartitionState, edit: impl FnOnce(&mut Floor)) {
        let (kept_records, kept_bytes) = (state.kept_records(), state.kept_bytes());
        let floor = Arc::make_mut(&mut state.floor);
        floor.kept_records = kept_records;
        floor.kept_bytes = kept_bytes;
        floor.as_of_next = state.next;
        floor.as_of_bytes = state.bytes_ever;
        floor.last_time_ms = state.last_time_ms;
        edit(floor);
        let key = place.stream.key(place.partition).floor();
        self.writes.index.insert(key, Some(LogState::Floor(floor.clone()).seal()));
    }

    /// Makes work due.
    pub(super) fn put_due(&mut self, place: &Place, kind: u8, at_ms: i64) {
        let key = key::due(at_ms, kind, place.stream.key(place.partition));
        self.writes.index.insert(key, Some(DueEntry::of(&place.stream.id).seal()));
    }

    /// After an append: sees to it that somebody looks at the partition when its records are too old, or to be compacted.
    pub(super) fn arm(&mut self, place: &Place, state: &mut PartitionState, first: u64, time_ms: i64) {
        let spec = &place.stream.spec;
        if let Some(age_ms) = spec.retention.age_ms.filter(|_| !state.floor.retain_due) {
            self.edit_floor(place, state, |floor| floor.retain_due = true);
            self.put_due(place, DUE_RETAIN, too_old_at(time_ms, age_ms));
        }
        // A partition that was clean waits at most for a tombstone's grace; now there is something new to compact.
        let due_ms = state.floor.compact_due_ms.filter(|_| state.floor.clean_to < first);
        if spec.compaction.is_some() && due_ms.is_none() {
            if let Some(later_ms) = state.floor.compact_due_ms {
                let key = key::due(later_ms, DUE_COMPACT, place.stream.key(place.partition));
                self.writes.index.insert(key, None);
            }
            let now_ms = self.now_ms;
            self.edit_floor(place, state, |floor| floor.compact_due_ms = Some(now_ms));
            self.put_due(place, DUE_COMPACT, now_ms);
        }
    }

    /// Forgets what the retention does not keep; `true` = there may be more of it.
    pub(super) fn retain(&mut self, place: &Place, state: &mut PartitionState) -> Result<bool, WriteError> {
        let retention = place.stream.spec.retention;
        let most_records = retention.records.unwrap_or(u64::MAX);
        let most_bytes = retention.bytes.unwrap_or(u64::MAX);
        // A record that is exactly as old as allowed stays.
        let oldest_ms = retention.age_ms.map_or(i64::MIN, |age_ms| self.now_ms.saturating_sub_unsigned(age_ms));
        let within = |state: &PartitionState| {
            state.kept_records() <= most_records
                && state.kept_bytes() <= most_bytes
                && (retention.age_ms.is_none() || state.earliest_time_ms.is_some_and(|time_ms| time_ms >= oldest_ms))
        };
        if within(state) || state.floor.earliest == state.next {
            return Ok(false);
        }
        let partition = place.stream.key(place.partition);
        let fail = |at, error| damaged(&place.stream, place.partition, Offset(at), error);
        let (mut records, mut bytes) = (state.kept_records(), state.kept_bytes());
        let mut to = state.floor.earliest;
        if place.stream.spec.compaction.is_none() && records > most_records {
            to = state.next - most_records;
            records = most_records;
            let before = self.bytes_up_to(partition, state, to).map_err(|error| fail(to, error))?;
            bytes = state.bytes_ever.saturating_sub(before);
        }
        let mut earliest_time_ms = None;
        let mut chunks = 0;
        let mut more = false;
        let mut at = to;
        'chunks: while at < state.next {
            let found = self.chunk_at(partition, at).map_err(|error| fail(at, error))?;
            at = found.end;
            let from = to;
            for slot in found.slots.iter().filter(|slot| slot.offset >= from) {
                let time_ms = found.run(slot.offset).time_ms;
                if records <= most_records && bytes <= most_bytes && time_ms >= oldest_ms {
                    earliest_time_ms = Some(time_ms);
                    break 'chunks;
                }
                records = records.saturating_sub(1);
                bytes = bytes.saturating_sub(slot.len());
                to = slot.offset + 1;
            }
            chunks += 1;
            if chunks == RETAIN_MAX_CHUNKS && at < state.next {
                more = true;
                break;
            }
        }
        if to > state.floor.earliest {
            self.raise_floor(place, state, to, GapReason::Retention)?;
        }
        state.earliest_time_ms = earliest_time_ms;
        if more {
            // The rest does not wait for the next append.
            if !state.floor.retain_due {
                self.edit_floor(place, state, |floor| floor.retain_due = true);
            }
            self.put_due(place, DUE_RETAIN, self.now_ms);
        }
        Ok(more)
    }

    /// Bytes ever appended before an offset of a partition that is not compacted.
    fn bytes_up_to(&self, partition: key::PartitionKey, state: &PartitionState, to: u64) -> Result<u64, ReadError> {
        if to == state.next {
            return Ok(state.bytes_ever);
        }
        let chunk = self.chunk_at(partition, to)?;
        let before = chunk.slots.iter().take_while(|slot| slot.offset < to);
        Ok(chunk.bytes_before + before.map(super::super::chunk::Slot::len).sum::<u64>())
    }

    /// Moves the floor up to `to`, which is above it and at most the tail. On a compacted stream each place keeps the
    /// reason for which it is gone, and the floor goes on to the next record that is there; that costs one look a chunk.
    pub(super) fn raise_floor(
        &mut self,
        place: &Place,
        state: &mut PartitionState,
        to: u64,
        reason: GapReason,
    ) -> Result<(), WriteError> {
        let partition = place.stream.key(place.partition);
        let fail = |at, error| damaged(&place.stream, place.partition, Offset(at), error);
        let mut lost = Vec::new();
        let (mut earliest, mut dropped_records, mut dropped_bytes) = (to, 0, 0);
        if place.stream.spec.compaction.is_none() {
            let before = self.bytes_up_to(partition, state, to).map_err(|error| fail(to, error))?;
            dropped_records = to - state.floor.earliest;
            dropped_bytes = state.kept_bytes().saturating_sub(state.bytes_ever.saturating_sub(before));
            lost.push((to, reason));
        } else {
            let mut at = state.floor.earliest;
            earliest = state.next;
            'chunks: while at < state.next {
                let found = self.chunk_at(partition, at).map_err(|error| fail(at, error))?;
                for slot in found.slots.iter().filter(|slot| slot.offset >= at) {
                    lost.push((slot.offset, GapReason::Compaction));
                    if slot.offset >= to {
                        earliest = slot.offset;
                        break 'chunks;
                    }
                    dropped_records += 1;
                    dropped_bytes += slot.len();
                    lost.push((slot.offset + 1, reason));
                }
                at = found.end;
            }
            lost.push((earliest, GapReason::Compaction));
        }
        let sweep = !state.floor.sweep_due;
        self.edit_floor(place, state, |floor| {
            floor.earliest = earliest;
            floor.kept_records = floor.kept_records.saturating_sub(dropped_records);
            floor.kept_bytes = floor.kept_bytes.saturating_sub(dropped_bytes);
            floor.clean_to = floor.clean_to.max(earliest);
            floor.sweep_due = true;
            for (to, reason) in lost {
                floor.lose(to, reason);
            }
        });
        state.earliest_time_ms = None;
        if sweep {
            self.put_due(place, DUE_SWEEP, self.now_ms);
        }
        Ok(())
    }
}

/// When a record of this time is too old.
pub(super) fn too_old_at(time_ms: i64, age_ms: u64) -> i64 {
    time_ms.saturating_add_unsigned(age_ms).saturating_add(1)
}
