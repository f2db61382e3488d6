//! The port to the log: append-only partitions with dense offsets. What an append carries beside records (a producer's
//! sequence, a source's position, a group's commit) becomes durable in the same atomic step.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use super::meta::{CompareAndSwap, Durability, Revision};
use crate::id::Name;
use crate::position::{Gap, Offset, Partition};
use crate::time::Timestamp;

/// A stream's identity: names of two tenants never meet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    /// Whose.
    pub tenant: Name,
    /// Its name.
    pub stream: Name,
}

/// The log.
#[async_trait]
pub trait ChangeLog: Send + Sync + 'static {
    /// Creates a stream. An equal one is [`Created::Existed`]; a different one of that name is [`Created::Differs`].
    async fn create(&self, stream: &StreamId, spec: &LogSpec) -> Result<Created, LogError>;

    /// Appends to one or several partitions of one or several streams, with conditions and attached state, in one atomic step,
    /// durable when answered: no reader ever sees a part of it.
    async fn append(&self, batch: AppendBatch) -> Result<AppendOutcome, LogError>;

    /// Reads from `from` on, bounded; shares bytes, copies none that it need not. Gaps stand in their place; adjacent
    /// ones of one reason are one. At the tail it gives nothing, beyond it [`LogError::OutOfRange`].
    async fn read(
        &self,
        stream: &StreamId,
        partition: Partition,
        from: Offset,
        bounds: ReadBounds,
    ) -> Result<LogRead, LogError>;

    /// Each partition's bounds, in order; empty if there is no such stream.
    async fn bounds(&self, stream: &StreamId) -> Result<Vec<PartitionBounds>, LogError>;

    /// Forgets records, or the whole stream; durable when answered. Never moves a bound backwards: what is trimmed already
    /// stays so. Returns the bounds as they are afterwards, empty for a stream that was removed.
    async fn trim(&self, stream: &StreamId, trim: Trim) -> Result<Vec<PartitionBounds>, LogError>;

    /// Gives the bounds of a partition each time that something was appended to it or forgotten, and ends when the stream
    /// is removed. It may wake too often, never too seldom: whoever watches first and then reads misses nothing. A slow
    /// watcher gets the newest state, not every one, and costs no memory for what it missed.
    async fn watch(&self, stream: &StreamId) -> Result<LogWatch, LogError>;
}

/// The bounds that moved, newest state only.
pub type LogWatch = BoxStream<'static, PartitionBounds>;

/// What to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trim {
    /// Everything of the partition before this offset; readers there get a gap. Beyond the tail it is
    /// [`LogError::OutOfRange`] and nothing is forgotten.
    Before {
        /// Which partition.
        partition: Partition,
        /// The first offset that stays.
        before: Offset,
    },
    /// The stream itself with all that is in it. A stream of that name that is created later has nothing of it. Removing
    /// what is not there is not an error.
    Stream,
}

/// What a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSpec {
    /// How many partitions, at least 1.
    pub partitions: u32,
    /// The offset of each partition's first record: not zero where the stream goes on from another one.
    pub start: Offset,
    /// How much it keeps.
    pub retention: Retention,
    /// Whether a later record of a key takes the place of an earlier one; `None` = every record stays.
    pub compaction: Option<Compaction>,
}

/// Key compaction: of the records of one key in one partition the newest stays. Records without a key stay. The place of a
/// record that went is a gap with [`GapReason::Compaction`](crate::position::GapReason::Compaction); offsets never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// How long after its append the newest record of a key stays where it is a tombstone, in milliseconds.
    pub tombstone_grace_ms: u64,
}

/// How much a stream keeps; `None` = without bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// At most this many records a partition.
    pub records: Option<u64>,
    /// At most this old, in milliseconds.
    pub age_ms: Option<u64>,
    /// At most this many bytes a partition.
    pub bytes: Option<u64>,
}

/// What `create` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is new.
    New,
    /// The same one was there.
    Existed,
    /// Another one was there: nothing changed.
    Differs(LogSpec),
}

/// One atomic append.
#[derive(Debug, Clone)]
pub struct AppendBatch {
    /// Where to and what, a stream at most once. None = the state alone is swapped.
    pub streams: Vec<StreamAppend>,
    /// State that must not drift from the records: all of it is swapped, or nothing is appended.
    pub state: Vec<CompareAndSwap>,
    /// By when it must be durable.
    pub durability: Durability,
}

impl AppendBatch {
    /// An append to one stream.
    #[must_use]
    pub fn to_one(
        stream: StreamId,
        partitions: Vec<PartitionAppend>,
        state: Vec<CompareAndSwap>,
        durability: Durability,
    ) -> Self {
        Self { streams: vec![StreamAppend { stream, partitions }], state, durability }
    }

    /// What it appends, in the order in which [`AppendOutcome::Appended`] answers.
    pub fn partitions(&self) -> impl Iterator<Item = &PartitionAppend> {
        self.streams.iter().flat_map(|append| &append.partitions)
    }
}

/// What an append adds to one stream.
#[derive(Debug, Clone)]
pub struct StreamAppend {
    /// Where to.
    pub stream: StreamId,
    /// What, a partition at most once. None = the stream only has to be there.
    pub partitions: Vec<PartitionAppend>,
}

/// Records for one partition.
#[derive(Debug, Clone)]
pub struct PartitionAppend {
    /// Which.
    pub partition: Partition,
    /// If given, the append happens only if this is the partition's next offset.
    pub expected_next: Option<Offset>,
    /// The records, at least one.
    pub records: Vec<AppendRecord>,
    /// When. Where the partition's last record has a later time (the clock stepped back), that one is stored.
    pub append_time: Timestamp,
}

/// One record to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendRecord {
    /// The bytes that a reader gets, opaque to the log.
    pub bytes: Bytes,
    /// What compaction goes by: equal bytes = the same key. `None` = never compacted away.
    pub key: Option<Bytes>,
    /// Whether the record says that its key is gone, so that compaction may forget it too after the grace.
    pub tombstone: bool,
}

/// The place of an append in the order of all appends to a log: all records of one append, in all its streams,
/// share it, a later append has a higher one, and once an append can be read, every append with a lower one can. So a merge of partitions by (commit,
/// partition, offset) is the same for every reader at every time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Commit(pub u64);

/// What came of an append. A lost race is a value, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendOutcome {
    /// It is there, durable as asked: where, a range for each partition of the batch in its order.
    Appended(Vec<AppendedRange>),
    /// A partition's next offset was not the expected one: nothing happened.
    OffsetMismatch {
        /// Whose, by the stream's place in the batch.
        stream: usize,
        /// Which.
        partition: Partition,
        /// What it is.
        next: Offset,
    },
    /// A piece of state had another revision: nothing happened.
    StateMismatch {
        /// Which, by its place in the batch.
        index: usize,
        /// What it has; `None` = absent.
        revision: Option<Revision>,
    },
    /// There is no such stream or partition: nothing happened.
    NoSuchPartition {
        /// Whose, by the stream's place in the batch.
        stream: usize,
        /// Which; the first one that was to be appended to where there is no such stream.
        partition: Partition,
    },
}

/// Where records came to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendedRange {
    /// Which partition.
    pub partition: Partition,
    /// The first record's offset.
    pub base: Offset,
    /// The offset after the last.
    pub next: Offset,
}

/// How much to read at most; at least one record is given if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadBounds {
    /// Records.
    pub records: u32,
    /// Bytes.
    pub bytes: u64,
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRead {
    /// Records and gaps, in order.
    pub items: Vec<LogReadItem>,
    /// Where to read on.
    pub next: Offset,
}

/// A record or the place where records are missing.
#[derive(Debug, Clone, PartialEq)]
pub enum LogReadItem {
    /// A record.
    Record {
        /// Its place.
        offset: Offset,
        /// Its append's place among all appends.
        commit: Commit,
        /// When it was appended.
        append_time: Timestamp,
        /// The bytes that were appended.
        bytes: Bytes,
    },
    /// Records that are gone.
    Gap(Gap),
}

/// A partition's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionBounds {
    /// Which.
    pub partition: Partition,
    /// The first offset that is still there.
    pub earliest: Offset,
    /// The offset that the next record gets.
    pub next: Offset,
    /// Bytes kept.
    pub bytes: u64,
}

/// Why the log did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// It certainly did not happen; try again.
    #[error("the log is not available; nothing was changed")]
    Unavailable(#[source] super::query::Cause),
    /// It may have happened: read before trying again.
    #[error("the log did not answer; the change may have happened")]
    Indeterminate(#[source] super::query::Cause),
    /// There is no space; reads go on.
    #[error("the log's disk is full; nothing was changed")]
    Full,
    /// A record or a batch is larger than the log takes: nothing was changed.
    #[error("{bytes} bytes are more than the log takes at a time, {limit_bytes}")]
    TooLarge {
        /// How many there are.
        bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// Stored bytes are damaged.
    #[error("{stream:?} partition {partition:?} is damaged at offset {offset:?}")]
    Corrupt {
        /// Whose.
        stream: StreamId,
        /// Which partition.
        partition: Partition,
        /// Where.
        offset: Offset,
    },
    /// The offset is beyond the tail.
    #[error("offset {asked:?} is beyond the tail {next:?}")]
    OutOfRange {
        /// What was asked for.
        asked: Offset,
        /// The tail.
        next: Offset,
    },
    /// There is no such stream or partition.
    #[error("there is no such stream or partition")]
    NotFound,
}
