//! Where a reader is: partitions, dense offsets and gaps. It never holds records.

use serde::{Deserialize, Serialize};

/// A partition of a stream, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub u32);

/// The place of a record in its partition: dense, from 0. "next" is always the offset of the record to read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl Offset {
    /// The first offset of a partition.
    pub const ZERO: Self = Self(0);

    /// The offset `count` records further on; `None` beyond 2^64 - 1.
    #[must_use]
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(offset) => Some(Self(offset)),
            None => None,
        }
    }
}

/// Records that a reader will never get: `from` up to, and not including, `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Whose.
    pub partition: Partition,
    /// The first missing offset.
    pub from: Offset,
    /// The first offset that is there again.
    pub to: Offset,
    /// Why they are missing.
    pub reason: GapReason,
}

/// Why records are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// They were older, or more, than the stream keeps.
    Retention,
    /// A later record of the same key took their place.
    Compaction,
    /// Somebody asked for it.
    Trim,
}

/// A place in a data system outside, such as a log sequence number: opaque text, ordered only by its source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourcePosition(pub Box<str>);
