//! The structures at rest other than records, each in a checked envelope (kind `LogState`, schema version 1). It never
//! believes bytes before their checksum.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_core::port::{Compaction, LogSpec, Retention, StreamId};
use tidegate_core::position::{GapReason, Offset};
use tidegate_frame::envelope::{self, Kind};

const SCHEMA: u16 = 1;

/// Reasons for what is gone, beyond which the oldest two are told as one.
pub(crate) const MAX_LOST: usize = 256;

/// What lies under one of the index's keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum LogState {
    Counters(Counters),
    Stream(StreamEntry),
    Floor(Floor),
    Due(DueEntry),
    Removed,
    Acknowledged(u64),
}

impl LogState {
    pub(crate) fn seal(&self) -> Bytes {
        envelope::seal(Kind::LogState, SCHEMA, self).expect("bookkeeping is small and has known lengths")
    }

    pub(crate) fn open(sealed: &[u8]) -> Result<Self, envelope::OpenError> {
        envelope::open(Kind::LogState, &[SCHEMA], sealed)
    }
}

/// Counters that never go back, written with every group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// How many groups were written.
    pub(crate) group: u64,
    /// The last append's commit.
    pub(crate) commit: u64,
    /// The last change's revision.
    pub(crate) revision: u64,
    /// The last stream's number.
    pub(crate) log: u64,
}

/// A stream in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamEntry {
    pub(crate) log: u64,
    partitions: u32,
    start: Offset,
    records: Option<u64>,
    age_ms: Option<u64>,
    bytes: Option<u64>,
    tombstone_grace_ms: Option<u64>,
}

impl StreamEntry {
    pub(crate) fn new(log: u64, spec: &LogSpec) -> Self {
        let Retention { records, age_ms, bytes } = spec.retention;
        let tombstone_grace_ms = spec.compaction.map(|compaction| compaction.tombstone_grace_ms);
        Self { log, partitions: spec.partitions, start: spec.start, records, age_ms, bytes, tombstone_grace_ms }
    }

    pub(crate) fn spec(&self) -> LogSpec {
        LogSpec {
            partitions: self.partitions,
            start: self.start,
            retention: Retention { records: self.records, age_ms: self.age_ms, bytes: self.bytes },
            compaction: self.tombstone_grace_ms.map(|tombstone_grace_ms| Compaction { tombstone_grace_ms }),
        }
    }
}

/// Offsets that are gone for one reason: from where the one before ends up to, and not including, `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    pub(crate) to: u64,
    pub(crate) reason: GapReason,
}

/// What is gone at the beginning of a partition, and what was left at the time that this was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Floor {
    /// The first record that is still there; the tail if there is none.
    pub(crate) earliest: u64,
    /// Everything below lies in one of these, in order, from offset 0 on.
    pub(crate) lost: Vec<Lost>,
    /// The tail when this was written.
    pub(crate) as_of_next: u64,
    /// Bytes ever appended when this was written.
    pub(crate) as_of_bytes: u64,
    /// Records that were there when this was written.
    pub(crate) kept_records: u64,
    /// Their bytes.
    pub(crate) kept_bytes: u64,
    /// The newest append's time when this was written.
    pub(crate) last_time_ms: Option<i64>,
    /// Below it no key is there twice.
    pub(crate) clean_to: u64,
    /// Whether chunks below `earliest` may still lie there, and work to remove them is due.
    pub(crate) sweep_due: bool,
    /// When compaction is due.
    pub(crate) compact_due_ms: Option<i64>,
    /// Whether retention by age is due at some time.
    pub(crate) retain_due: bool,
}

impl Floor {
    /// A partition to which nothing was appended. What lies before a start that is not zero counts as trimmed: whoever
    /// made the stream asked for it.
    pub(crate) fn new(start: u64) -> Self {
        let mut floor = Self {
            earliest: start,
            lost: Vec::new(),
            as_of_next: start,
            as_of_bytes: 0,
            kept_records: 0,
            kept_bytes: 0,
            last_time_ms: None,
            clean_to: start,
            sweep_due: false,
            compact_due_ms: None,
            retain_due: false,
        };
        floor.lose(start, GapReason::Trim);
        floor
    }

    /// Notes that everything up to `to` is gone, what was not gone before for this reason.
    pub(crate) fn lose(&mut self, to: u64, reason: GapReason) {
        let from = self.lost.last().map_or(0, |lost| lost.to);
        if to <= from {
            return;
        }
        match self.lost.last_mut() {
            Some(last) if last.reason == reason => last.to = to,
            _ => self.lost.push(Lost { to, reason }),
        }
        if self.lost.len() > MAX_LOST {
            // Bounds stay exact; of the two oldest the longer one gives the reason.
            let (first, second) = (self.lost[0], self.lost[1]);
            if first.to > second.to - first.to {
                self.lost[1].reason = first.reason;
            }
            self.lost.remove(0);
            if self.lost[0].reason == self.lost[1].reason {
                self.lost.remove(0);
            }
        }
    }
}

/// Whose work is due; what and when stands in the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DueEntry {
    pub(crate) tenant: Box<str>,
    pub(crate) stream: Box<str>,
}

impl DueEntry {
    pub(crate) fn of(id: &StreamId) -> LogState {
        LogState::Due(Self { tenant: id.tenant.as_str().into(), stream: id.stream.as_str().into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_told_by_reason_and_stays_bounded() {
        let mut floor = Floor::new(5);
        floor.lose(8, GapReason::Trim);
        floor.lose(10, GapReason::Retention);
        floor.lose(9, GapReason::Compaction);
        let trim = |to| Lost { to, reason: GapReason::Trim };
        assert_eq!(floor.lost, [trim(8), Lost { to: 10, reason: GapReason::Retention }]);
        for step in 0..1_000 {
            floor.lose(11 + step, if step % 2 == 0 { GapReason::Trim } else { GapReason::Retention });
            assert!(floor.lost.len() <= MAX_LOST);
            assert!(floor.lost.is_sorted_by(|a, b| a.to < b.to && a.reason != b.reason));
        }
        assert_eq!(floor.lost.last().map(|lost| lost.to), Some(1_010));
    }

    #[test]
    fn structures_come_back_and_a_changed_bit_does_not() {
        let sealed = LogState::Floor(Floor::new(5)).seal();
        assert_eq!(LogState::open(&sealed).unwrap(), LogState::Floor(Floor::new(5)));
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(LogState::open(&flipped).is_err());
        }
    }
}
