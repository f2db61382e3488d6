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

    /// Appends to one or several partitions, with conditions and attached state, in one atomic step, durable when
    /// answered.
    async fn append(&self, batch: AppendBatch) -> Result<AppendOutcome, LogError>;

    /// Reads from `from` on, bounded; shares bytes, copies none that it need not. Gaps stand in their place.
    async fn read(
        &self,
        stream: &StreamId,
        partition: Partition,
        from: Offset,
        bounds: ReadBounds,
    ) -> Result<LogRead, LogError>;

    /// Each partition's bounds, in order; empty if there is no such stream.
    async fn bounds(&self, stream: &StreamId) -> Result<Vec<PartitionBounds>, LogError>;

    /// Forgets what lies before `before`; readers there get a gap. Never moves a bound backwards.
    async fn trim(&self, stream: &StreamId, partition: Partition, before: Offset) -> Result<PartitionBounds, LogError>;

    /// Wakes when something was appended or trimmed. It may wake too often, never too seldom.
    async fn watch(&self, stream: &StreamId) -> Result<LogWatch, LogError>;
}

/// The bounds that moved, newest state only.
pub type LogWatch = BoxStream<'static, PartitionBounds>;

/// What a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSpec {
    /// How many partitions, at least 1.
    pub partitions: u32,
    /// How much it keeps.
    pub retention: Retention,
    /// Whether a later record of a key takes the place of an earlier one.
    pub compact_by_key: bool,
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
    /// Where to.
    pub stream: StreamId,
    /// What, a partition at most once.
    pub partitions: Vec<PartitionAppend>,
    /// State that must not drift from the records: all of it is swapped, or nothing is appended.
    pub state: Vec<CompareAndSwap>,
    /// By when it must be durable.
    pub durability: Durability,
}

/// Records for one partition.
#[derive(Debug, Clone)]
pub struct PartitionAppend {
    /// Which.
    pub partition: Partition,
    /// If given, the append happens only if this is the partition's next offset.
    pub expected_next: Option<Offset>,
    /// The records, each as the bytes that a reader is sent.
    pub records: Vec<Bytes>,
    /// When.
    pub append_time: Timestamp,
}

/// What came of an append. A lost race is a value, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendOutcome {
    /// It is there, durable as asked.
    Appended(Vec<AppendedRange>),
    /// A partition's next offset was not the expected one: nothing happened.
    OffsetMismatch {
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
    NoSuchPartition(Partition),
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
