//! Appending within a group. It never stores a part of an append.

use tidegate_core::port::{AppendBatch, AppendOutcome, AppendedRange, Durability, PartitionAppend, StreamAppend};
use tidegate_core::position::{Offset, Partition};

use super::{Group, malformed};
use crate::catalog::PartitionState;
use crate::chunk::{Builder, CHUNK_MAX_RECORDS, CHUNK_TARGET_BYTES, Record, Run};
use crate::command::Place;
use crate::error::{Malformed, WriteError};

impl Group<'_> {
    pub(super) fn append(&mut self, batch: &AppendBatch) -> Result<AppendOutcome, WriteError> {
        let mut places: Vec<(Place, PartitionState)> = Vec::with_capacity(batch.partitions().count());
        for (number, append) in batch.streams.iter().enumerate() {
            if let Some(refused) = self.look(number, append, &mut places)? {
                return Ok(refused);
            }
            // A map would cost an allocation where most appends are to one stream.
            if batch.streams[..number].iter().any(|before| before.stream == append.stream) {
                return Err(malformed(Malformed::StreamTwice));
            }
        }
        let mut known = places.iter();
        for (number, append) in batch.streams.iter().enumerate() {
            for (append, (_, state)) in append.partitions.iter().zip(&mut known) {
                let next = Offset(state.next);
                if append.expected_next.is_some_and(|expected| expected != next) {
                    return Ok(AppendOutcome::OffsetMismatch { stream: number, partition: append.partition, next });
                }
            }
        }
        if let Some((index, current)) = self.mismatch(&batch.state)? {
            return Ok(AppendOutcome::StateMismatch { index, revision: current.map(|entry| entry.revision) });
        }
        // From here on only retention can fail, on damaged bytes at the partition's other end, and it is left out then.
        self.fsync |= batch.durability == Durability::Fsync;
        self.counters.commit += 1;
        let mut ranges = Vec::with_capacity(places.len());
        for (append, (place, mut state)) in batch.partitions().zip(places) {
            let base = state.next;
            self.lay(&place, &mut state, append);
            ranges.push(AppendedRange { partition: append.partition, base: Offset(base), next: Offset(state.next) });
            let mut retained = state.clone();
            match self.retain(&place, &mut retained) {
                Ok(_) => state = retained,
                Err(error) => tracing::error!(
                    stream = ?place.stream.id, partition = append.partition.0, %error, "retention is left out"
                ),
            }
            self.put_state(&place, state);
        }
        self.make(&batch.state, &ranges);
        Ok(AppendOutcome::Appended(ranges))
    }

    /// Finds the partitions that an append goes to; gives the answer where one is not there.
    fn look(
        &self,
        number: usize,
        append: &StreamAppend,
        places: &mut Vec<(Place, PartitionState)>,
    ) -> Result<Option<AppendOutcome>, WriteError> {
        let missing = |partition| Ok(Some(AppendOutcome::NoSuchPartition { stream: number, partition }));
        let Some(stream) = self.stream(&append.stream)? else {
            return missing(append.partitions.first().map_or(Partition(0), |append| append.partition));
        };
        for (index, one) in append.partitions.iter().enumerate() {
            if !stream.has(one.partition) {
                return missing(one.partition);
            }
            if one.records.is_empty() {
                return Err(malformed(Malformed::NoRecord));
            }
            if append.partitions[..index].iter().any(|before| before.partition == one.partition) {
                return Err(malformed(Malformed::PartitionTwice));
            }
            let state = self.state(&stream, one.partition)?;
            if state.next.checked_add(one.records.len() as u64).is_none() {
                return Err(malformed(Malformed::NoOffsetLeft));
            }
            places.push((Place { stream: stream.clone(), partition: one.partition }, state));
        }
        Ok(None)
    }

    /// Lays records into chunks at the tail.
    fn lay(&mut self, place: &Place, state: &mut PartitionState, append: &PartitionAppend) {
        let spec = &place.stream.spec;
        let first = state.next;
        let time_ms = append.append_time.unix_ms();
        let time_ms = state.last_time_ms.map_or(time_ms, |last| last.max(time_ms));
        if state.floor.earliest == state.next {
            state.earliest_time_ms = Some(time_ms);
        }
        state.last_time_ms = Some(time_ms);
        let mut records = Vec::with_capacity(append.records.len().min(CHUNK_MAX_RECORDS));
        let mut chunk_bytes = 0;
        for record in &append.records {
            let key = record.key.clone().filter(|_| spec.compaction.is_some());
            let size = record.bytes.len() + key.as_ref().map_or(0, |key| key.len());
            let full = records.len() >= CHUNK_MAX_RECORDS || chunk_bytes + size > CHUNK_TARGET_BYTES;
            if full && !records.is_empty() {
                self.seal(place, state, std::mem::take(&mut records), time_ms);
                chunk_bytes = 0;
            }
            let offset = state.next + records.len() as u64;
            records.push(Record { offset, bytes: record.bytes.clone(), key, tombstone: record.tombstone });
            chunk_bytes += size;
        }
        self.seal(place, state, records, time_ms);
        self.arm(place, state, first, time_ms);
    }

    fn seal(&mut self, place: &Place, state: &mut PartitionState, records: Vec<Record>, time_ms: i64) {
        let partition = place.stream.key(place.partition);
        let (base, end) = (state.next, state.next + records.len() as u64);
        let bytes_ever = records.iter().map(|record| record.bytes.len() as u64).sum();
        let run = Run { end, commit: self.counters.commit, time_ms };
        self.records += records.len() as u64;
        self.bytes += bytes_ever;
        let builder =
            Builder { partition, base, end, bytes_before: state.bytes_ever, bytes_ever, runs: vec![run], records };
        self.writes.records.insert(partition.chunk(base), Some(builder.seal()));
        state.next = end;
        state.bytes_ever += bytes_ever;
    }
}
