//! The port to a source of changes, such as a database's replication stream. It never acknowledges more than it is told.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::position::SourcePosition;
use crate::record::Change;

/// A source of changes, read from a position.
#[async_trait]
pub trait ChangeSource: Send + Sync + 'static {
    /// Where the source is now.
    async fn position(&self) -> Result<SourcePosition, ChangeSourceError>;

    /// The changes after `from`, transaction by transaction; `None` begins with a consistent copy of what is there. Errors
    /// end the stream; it is opened again from the last position that was stored.
    async fn changes(
        &self,
        from: Option<SourcePosition>,
    ) -> Result<BoxStream<'static, Result<ChangeBatch, ChangeSourceError>>, ChangeSourceError>;

    /// Everything up to and including `position` is durable here: the source may forget it. Never called with more.
    async fn confirm(&self, position: &SourcePosition) -> Result<(), ChangeSourceError>;
}

/// All changes of one transaction. They are appended together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeBatch {
    /// The position after the transaction.
    pub position: SourcePosition,
    /// Its changes in order, each with the stream that it belongs to.
    pub changes: Vec<(Box<str>, Change)>,
    /// What the source wants to get back at the next start, opaque.
    pub state: Bytes,
}

/// Why a source of changes did not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeSourceError {
    /// It does not answer.
    #[error("the source of changes is not reachable")]
    Unavailable(#[source] super::query::Cause),
    /// It no longer has what comes after the position: records are lost, and the reader must be told which.
    #[error("the source no longer has the changes after {from:?}")]
    Lost {
        /// After what.
        from: SourcePosition,
    },
    /// It sent what this version cannot read.
    #[error("the source sent a change that cannot be read")]
    Unreadable(#[source] super::query::Cause),
}
