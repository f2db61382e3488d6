//! What a job brings to the runtime: a source, an operator, a sink; and how a run may end. It never says how records are stored anywhere.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tidegate_core::id::Name;
use tidegate_core::position::Partition;
use tidegate_core::{ErrorKind, Failure, Timestamp};

use super::watermark::WatermarkSpec;
use crate::claim::Mode;
use crate::coordinator::Schedule;
use crate::error::{AppendError, ClaimError, ReadError};
use crate::keyed::KeyedState;
use crate::manifest::Next;

/// What somebody else's part said when it failed.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A record of a source.
#[derive(Debug, Clone)]
pub struct Sourced<R> {
    /// The next to read, once this one was.
    pub next: Next,
    /// When it happened.
    pub time: Timestamp,
    /// Its key.
    pub key: Bytes,
    /// It.
    pub record: R,
}

/// The records of one partition.
pub type Records<R> = BoxStream<'static, Result<Sourced<R>, Cause>>;

/// A source of records in partitions, each of which can be read again from any position that a checkpoint keeps.
#[async_trait]
pub trait Source: Send {
    /// Its records.
    type Record: Send + 'static;
    /// What it is called in a checkpoint.
    fn name(&self) -> Name;
    /// Its partitions.
    fn partitions(&self) -> Vec<Partition>;
    /// The records of a partition from `next` on; `None` = from the first. The stream may end.
    async fn open(&mut self, partition: Partition, next: Option<Next>) -> Result<Records<Self::Record>, Cause>;
}

/// An operator whose state is by key. The same state, records and watermarks give the same outputs.
pub trait Operator<R>: Send {
    /// What it puts out.
    type Output: Send + 'static;
    /// What it is called in a checkpoint.
    fn name(&self) -> Name;
    /// Takes a record.
    fn record(&mut self, state: &mut KeyedState, record: &Sourced<R>, out: &mut Vec<Self::Output>)
    -> Result<(), Cause>;
    /// No record before `watermark` comes any more, late ones excepted.
    fn watermark(
        &mut self,
        state: &mut KeyedState,
        watermark: Timestamp,
        out: &mut Vec<Self::Output>,
    ) -> Result<(), Cause>;
}

/// A sink that commits in two phases.
#[async_trait]
pub trait TwoPhaseSink<O>: Send + 'static {
    /// What it is called in a checkpoint.
    fn name(&self) -> Name;
    /// Takes outputs; nobody outside sees them yet.
    async fn write(&mut self, outputs: Vec<O>) -> Result<(), Cause>;
    /// Makes everything that was written since the last commit durable, still unseen, such that it can be committed by the token that is
    /// given, in this process or another, now or after a crash. `None` = there was nothing. An earlier token that was not committed is
    /// void from then on: its checkpoint was not published, and what it stood for is in this one.
    async fn pre_commit(&mut self) -> Result<Option<Vec<u8>>, Cause>;
    /// Lets everybody see what the token stands for. Twice is once, also after a crash in the middle.
    async fn commit(&mut self, token: &[u8]) -> Result<(), Cause>;
    /// Gives up everything that was written or pre-committed and not committed, but for the token that is to be kept.
    async fn abort_others(&mut self, keep: Option<&[u8]>) -> Result<(), Cause>;
}

/// How a processor runs.
#[derive(Debug, Clone)]
pub struct ProcessorSpec {
    /// Who it is, for people.
    pub holder: Name,
    /// How long its term lasts from each entry on.
    pub ttl: Duration,
    /// How it gets its term.
    pub mode: Mode,
    /// When it makes checkpoints.
    pub schedule: Schedule,
    /// Watermarks and late records.
    pub watermark: WatermarkSpec,
}

/// How a run ended, if nothing failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The source ended, and everything is committed.
    Finished,
    /// It was told to stop, and everything up to there is committed.
    Stopped,
    /// Somebody else holds the job; nothing was begun.
    HeldBy,
    /// Another writer has the job, or the term was not renewed in time: what was not published is the next one's to do.
    Fenced,
}

/// Why a run failed. Everything since the last checkpoint is done again by the next one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The term was not claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// No state could be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An entry was not written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// All checkpoints that the job has are damaged: a person must say whether to begin from nothing.
    #[error("none of the job's {rejected} checkpoints can be read")]
    NothingWhole {
        /// How many there are.
        rejected: usize,
    },
    /// The source failed.
    #[error("the source failed")]
    Source(#[source] Cause),
    /// The operator failed.
    #[error("the operator failed")]
    Operator(#[source] Cause),
    /// The sink failed.
    #[error("the sink failed")]
    Sink(#[source] Cause),
    /// A record came too late, and the policy is to fail.
    #[error("a record of {time} came after the watermark")]
    Late {
        /// When it had happened.
        time: Timestamp,
    },
    /// A checkpoint was not published in time, and never will be. What it would have committed is in the next one.
    #[error("a checkpoint was not published in time")]
    NotPublished(#[source] Option<AppendError>),
    /// Too many attempts to make a checkpoint failed one after the other.
    #[error("{failures} attempts to make a checkpoint failed one after the other")]
    GaveUp {
        /// How many.
        failures: u32,
        /// The last one's.
        #[source]
        last: Option<Box<RunError>>,
    },
}

impl Failure for RunError {
    fn code(&self) -> &'static str {
        match self {
            Self::Claim(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::Append(error) => error.code(),
            Self::NothingWhole { .. } => "checkpoint_nothing_whole",
            Self::Source(_) => "processor_source_failed",
            Self::Operator(_) => "processor_operator_failed",
            Self::Sink(_) => "processor_sink_failed",
            Self::Late { .. } => "processor_late_record",
            Self::NotPublished(_) => "checkpoint_not_published",
            Self::GaveUp { .. } => "checkpoint_gave_up",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Claim(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Append(error) => error.kind(),
            Self::Source(_) | Self::Sink(_) | Self::GaveUp { .. } | Self::NotPublished(_) => ErrorKind::Unavailable,
            Self::NothingWhole { .. } | Self::Operator(_) => ErrorKind::Internal,
            Self::Late { .. } => ErrorKind::Unprocessable,
        }
    }
}
