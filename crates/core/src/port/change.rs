//! The port to a source of changes, such as a database's replication stream. It never acknowledges more than it is told.

use std::cmp::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::position::SourcePosition;
use crate::record::Change;

/// A source of changes, read from a position.
#[async_trait]
pub trait ChangeSource: Send + Sync + 'static {
    /// The changes after what was stored last; `None` begins with a consistent copy of what is there. One reader at a time:
    /// a second one is [`ChangeSourceError::InUse`]. Errors end the stream; it is opened again from the last state that was
    /// stored.
    async fn changes(&self, from: Option<Resume>) -> Result<ChangeStream, ChangeSourceError>;

    /// Everything up to and including `position` is durable here: the source may forget it. Never called with more, nor
    /// with a position before an earlier call's.
    async fn confirm(&self, position: &SourcePosition) -> Result<(), ChangeSourceError>;

    /// Which of two positions is the earlier one; `None` where one of the texts is no position of this source.
    fn compare(&self, left: &SourcePosition, right: &SourcePosition) -> Option<Ordering>;

    /// How far behind it is, asked of the source itself. Cheap enough for every few seconds.
    async fn status(&self) -> Result<ChangeSourceStatus, ChangeSourceError>;
}

/// Changes as they come.
pub type ChangeStream = BoxStream<'static, Result<ChangeBatch, ChangeSourceError>>;

/// Where to go on: what the last [`ChangeBatch`] that was stored said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// Its position.
    pub position: SourcePosition,
    /// Its state. Empty where a person said, after a loss, to go on from this position without what lies before: no copy is made
    /// then.
    pub state: Bytes,
}

/// Changes that are appended together or not at all: all of one transaction, or a part of one that is larger than the source's
/// bound for a batch, or rows of the first copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeBatch {
    /// The position up to which everything is in this batch and those before it. Parts of one transaction that are not its last
    /// say the position before the transaction.
    pub position: SourcePosition,
    /// The changes in order, each with the name of its table: `schema.table`. None = the position moved on alone.
    pub changes: Vec<(Box<str>, Change)>,
    /// What the source wants to get back with the position, opaque: such as how much of a large transaction or of the first copy
    /// is in the batches up to this one.
    pub state: Bytes,
}

/// What a source is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeSourceStatus {
    /// Where the source itself is now.
    pub position: SourcePosition,
    /// Bytes that it keeps for this reader beyond what was confirmed.
    pub lag_bytes: u64,
    /// How much of the first copy is done.
    pub copy: CopyStatus,
}

/// How much of the first copy is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyStatus {
    /// It has not begun.
    Waiting,
    /// It is being made.
    Running {
        /// Tables that are copied whole.
        tables_done: u64,
        /// Tables in all.
        tables: u64,
        /// Rows that were read by this process.
        rows: u64,
    },
    /// It is done.
    Done,
}

/// Why a source of changes did not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeSourceError {
    /// It does not answer: try again later.
    #[error("the source of changes is not reachable")]
    Unavailable(#[source] super::query::Cause),
    /// It cannot be read as it is set up; a person must mend it.
    #[error("the source of changes is not set up right: {problem}")]
    Setup {
        /// What is wrong, where, and what to do.
        problem: Box<str>,
        /// A stable code, in snake_case.
        code: &'static str,
    },
    /// Somebody else is reading it: try again later.
    #[error("the source of changes is being read by somebody else: {holder}")]
    InUse {
        /// Who, as far as the source tells.
        holder: Box<str>,
    },
    /// It no longer has what comes after the position, or is another source than it was: records are lost, and reading must
    /// not go on until a person says how.
    #[error("the source no longer has the changes after {}: {reason}", from.0)]
    Lost {
        /// After what.
        from: SourcePosition,
        /// Why: the slot is gone, was invalidated, the system's identifier or timeline is another one.
        reason: Box<str>,
    },
    /// It sent what this version cannot read.
    #[error("the source sent a change that cannot be read")]
    Unreadable(#[source] super::query::Cause),
}
