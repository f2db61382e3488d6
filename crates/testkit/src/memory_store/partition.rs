//! One partition in memory: its records, and exact runs of what is gone with the reason. It never renumbers anything.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tidegate_core::port::{
    AppendRecord, AppendedRange, Commit, LogRead, LogReadItem, LogSpec, PartitionBounds, ReadBounds, Retention,
};
use tidegate_core::position::{Gap, GapReason, Offset, Partition};
use tidegate_core::time::Timestamp;

#[derive(Debug)]
struct Stored {
    commit: Commit,
    append_time: Timestamp,
    bytes: Bytes,
    key: Option<Bytes>,
    tombstone: bool,
}

/// A run of missing offsets, by its first one: where it ends and why.
#[derive(Debug, Clone, Copy)]
struct Run {
    to: u64,
    reason: GapReason,
}

/// A partition. Every offset below `next` is either in `records` or in exactly one run.
#[derive(Debug)]
pub(super) struct PartitionState {
    partition: Partition,
    next: u64,
    bytes: u64,
    last_time: Option<Timestamp>,
    records: BTreeMap<u64, Stored>,
    gone: BTreeMap<u64, Run>,
    /// The stream's change counter when this partition last changed.
    pub(super) changed: u64,
}

impl PartitionState {
    /// An empty partition. What lies before a start that is not zero counts as trimmed: whoever made the stream asked
    /// for it, and a reader there is told.
    pub(super) fn new(partition: Partition, start: Offset) -> Self {
        let mut gone = BTreeMap::new();
        if start > Offset::ZERO {
            gone.insert(0, Run { to: start.0, reason: GapReason::Trim });
        }
        Self { partition, next: start.0, bytes: 0, last_time: None, records: BTreeMap::new(), gone, changed: 0 }
    }

    pub(super) fn next(&self) -> Offset {
        Offset(self.next)
    }

    pub(super) fn bounds(&self) -> PartitionBounds {
        let earliest = self.records.first_key_value().map_or(self.next, |(offset, _)| *offset);
        PartitionBounds {
            partition: self.partition,
            earliest: Offset(earliest),
            next: Offset(self.next),
            bytes: self.bytes,
        }
    }

    /// Whether so many more records have an offset each, and the tail after them too.
    pub(super) fn has_room(&self, records: usize) -> bool {
        self.next.checked_add(records as u64).is_some()
    }

    /// Appends; the caller saw to it that there is room.
    pub(super) fn append(
        &mut self,
        records: Vec<AppendRecord>,
        append_time: Timestamp,
        commit: Commit,
    ) -> AppendedRange {
        let append_time = self.last_time.map_or(append_time, |last| last.max(append_time));
        self.last_time = Some(append_time);
        let base = self.next;
        for AppendRecord { bytes, key, tombstone } in records {
            self.bytes += bytes.len() as u64;
            self.records.insert(self.next, Stored { commit, append_time, bytes, key, tombstone });
            self.next += 1;
        }
        AppendedRange { partition: self.partition, base: Offset(base), next: Offset(self.next) }
    }

    /// Reads from `from`, which is at most the tail. Gaps count towards no bound, so a record comes if there is one.
    pub(super) fn read(&self, from: Offset, bounds: ReadBounds) -> LogRead {
        let mut items = Vec::new();
        let (mut at, mut records, mut bytes) = (from.0, 0_u32, 0_u64);
        while at < self.next {
            if let Some(record) = self.records.get(&at) {
                let size = record.bytes.len() as u64;
                let full = records >= bounds.records || bytes.saturating_add(size) > bounds.bytes;
                if records > 0 && full {
                    break;
                }
                records += 1;
                bytes = bytes.saturating_add(size);
                items.push(LogReadItem::Record {
                    offset: Offset(at),
                    commit: record.commit,
                    append_time: record.append_time,
                    bytes: record.bytes.clone(),
                });
                at += 1;
            } else {
                let (_, run) = self.gone.range(..=at).next_back().expect("what is no record lies in a run");
                let gap = Gap { partition: self.partition, from: Offset(at), to: Offset(run.to), reason: run.reason };
                items.push(LogReadItem::Gap(gap));
                at = run.to;
            }
        }
        LogRead { items, next: Offset(at) }
    }

    /// Forgets all before `before`, which is at most the tail. Says whether anything was there.
    pub(super) fn trim(&mut self, before: Offset) -> bool {
        let mut forgot = false;
        while let Some((&first, _)) = self.records.range(..before.0).next() {
            self.forget(first, GapReason::Trim);
            forgot = true;
        }
        forgot
    }

    /// Forgets what is more, or older, than the retention keeps. A record that is exactly as old as allowed stays.
    pub(super) fn retain(&mut self, retention: &Retention, now: Timestamp) -> bool {
        let mut forgot = false;
        while let Some((&first, record)) = self.records.first_key_value() {
            let age_ms = now.unix_ms().saturating_sub(record.append_time.unix_ms());
            let over = retention.records.is_some_and(|most| self.records.len() as u64 > most)
                || retention.bytes.is_some_and(|most| self.bytes > most)
                || retention.age_ms.is_some_and(|most| u64::try_from(age_ms).is_ok_and(|age| age > most));
            if !over {
                break;
            }
            self.forget(first, GapReason::Retention);
            forgot = true;
        }
        forgot
    }

    /// Forgets what a later record of the same key replaced, and tombstones whose grace is over.
    pub(super) fn compact(&mut self, spec: &LogSpec, now: Timestamp) -> bool {
        let Some(compaction) = spec.compaction else { return false };
        let mut newest: HashMap<&Bytes, u64> = HashMap::new();
        for (offset, record) in &self.records {
            if let Some(key) = &record.key {
                newest.insert(key, *offset);
            }
        }
        let replaced: Vec<u64> = self
            .records
            .iter()
            .filter(|(offset, record)| {
                let Some(key) = &record.key else { return false };
                let age_ms = now.unix_ms().saturating_sub(record.append_time.unix_ms());
                let grace_over = u64::try_from(age_ms).is_ok_and(|age| age >= compaction.tombstone_grace_ms);
                newest.get(key) != Some(*offset) || (record.tombstone && grace_over)
            })
            .map(|(offset, _)| *offset)
            .collect();
        for offset in &replaced {
            self.forget(*offset, GapReason::Compaction);
        }
        !replaced.is_empty()
    }

    /// Takes a record out and puts its place into a run, joined with its neighbours of the same reason.
    fn forget(&mut self, offset: u64, reason: GapReason) {
        let Some(record) = self.records.remove(&offset) else { return };
        self.bytes -= record.bytes.len() as u64;
        let mut run = Run { to: offset + 1, reason };
        if let Some(after) = self.gone.get(&run.to).copied().filter(|after| after.reason == reason) {
            self.gone.remove(&run.to);
            run.to = after.to;
        }
        match self.gone.range_mut(..offset).next_back() {
            Some((_, before)) if before.to == offset && before.reason == reason => before.to = run.to,
            _ => {
                self.gone.insert(offset, run);
            }
        }
    }
}
