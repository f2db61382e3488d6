//! Why a source of changes did not go on, and why what was asked of it was refused. It never hides which of the two sides failed.

use tidegate_core::failure::{ErrorKind, Failure, Retry};
use tidegate_core::id::Name;
use tidegate_core::port::{ChangeSourceError, EntropyUnavailable};

use super::machine;
use crate::error::{CreateError, PublishError, StoreError, StreamError};

/// Why a request about a source was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceRequestError {
    /// There is no such source, or it is another tenant's.
    #[error("there is no source of changes {name:?}")]
    NotFound {
        /// What was asked for.
        name: Name,
    },
    /// A source of that name is there already.
    #[error("there is a source of changes {name:?} already")]
    Exists {
        /// Which.
        name: Name,
    },
    /// It is in no gap: there is nothing to say about how to go on.
    #[error("source {name:?} has lost nothing")]
    NoGap {
        /// Which.
        name: Name,
    },
    /// Another process reads it now.
    #[error("source {name:?} is read by another process")]
    HeldElsewhere {
        /// Which.
        name: Name,
    },
    /// The tenant is not a name that streams can have.
    #[error("the tenant cannot own streams: {0}")]
    Tenant(#[source] tidegate_core::id::InvalidName),
    /// It did not answer.
    #[error("source {name:?} does not answer: {problem}")]
    Unavailable {
        /// Which.
        name: Name,
        /// What it said.
        problem: Box<str>,
    },
    /// Randomness failed.
    #[error("the system gives no randomness")]
    Entropy(#[from] EntropyUnavailable),
    /// Storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure for SourceRequestError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "source_not_found",
            Self::Exists { .. } => "source_exists",
            Self::NoGap { .. } => "source_no_gap",
            Self::HeldElsewhere { .. } => "source_held_elsewhere",
            Self::Tenant(_) => "tenant_invalid",
            Self::Unavailable { .. } => "source_unavailable",
            Self::Entropy(_) => "internal",
            Self::Store(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Exists { .. } | Self::NoGap { .. } | Self::HeldElsewhere { .. } => ErrorKind::Conflict,
            Self::Tenant(_) => ErrorKind::Forbidden,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Entropy(_) => ErrorKind::Internal,
            Self::Store(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Unavailable { .. } => Retry::After(std::time::Duration::from_millis(500)),
            Self::Store(error) => error.retry(),
            _ => Retry::Never,
        }
    }
}

/// Why a driver gave up for now. Whatever it was, it begins again at the entry that is stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Halt {
    #[error("the service ended")]
    Stopped,
    #[error("a later epoch has the source")]
    Fenced,
    #[error(transparent)]
    Source(#[from] ChangeSourceError),
    #[error("the source of changes ended its stream")]
    Ended,
    #[error("the source gave a position that it cannot compare")]
    Position,
    #[error("streams refuse more than may be kept for them: {records} records, {bytes} bytes wait")]
    SpillFull { records: u64, bytes: u64 },
    #[error("the source has more than {limit} tables")]
    TooManyTables { limit: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a stream cannot be looked at")]
    Stream(#[from] StreamError),
    #[error("the system gives no randomness")]
    Entropy(#[from] EntropyUnavailable),
}

impl Halt {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Fenced => "fenced",
            Self::Source(error) => match error {
                ChangeSourceError::Unavailable(_) => "source_unavailable",
                ChangeSourceError::Setup { code, .. } => code,
                ChangeSourceError::InUse { .. } => "source_in_use",
                ChangeSourceError::Lost { .. } => "source_lost",
                ChangeSourceError::Unreadable(_) => "source_unreadable",
                _ => "source_failed",
            },
            Self::Ended => "source_unavailable",
            Self::Position => "source_unreadable",
            Self::SpillFull { .. } => "source_spill_full",
            Self::TooManyTables { .. } => "source_too_many_tables",
            Self::Store(error) => error.code(),
            Self::Stream(error) => error.code(),
            Self::Entropy(_) => "internal",
        }
    }

    /// Whether it may pass by itself.
    pub(crate) fn failure(&self) -> machine::Failure {
        match self {
            Self::Source(ChangeSourceError::Unavailable(_)) | Self::Ended | Self::Stopped | Self::Fenced => {
                machine::Failure::Passing
            }
            Self::Store(error) | Self::Stream(StreamError::Store(error)) => match error {
                StoreError::Corrupt { .. } | StoreError::TooLarge { .. } => machine::Failure::Standing,
                _ => machine::Failure::Passing,
            },
            _ => machine::Failure::Standing,
        }
    }

    /// Whether a person must mend something.
    pub(crate) fn is_broken(&self) -> bool {
        match self {
            Self::Source(ChangeSourceError::InUse { .. }) | Self::SpillFull { .. } => false,
            _ => self.failure() == machine::Failure::Standing,
        }
    }

    /// The error and what is behind it, in one line.
    pub(crate) fn message(&self) -> Box<str> {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.ends_with(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            cause = error.source();
        }
        text.into()
    }
}

/// Whether an error says that the stream refuses, not that storage failed; then why.
pub(crate) fn refusal(error: CreateError) -> Result<&'static str, Halt> {
    match error {
        CreateError::Stream(error) => stream_refusal(error),
        CreateError::Entropy(error) => Err(error.into()),
        error => Ok(error.code()),
    }
}

pub(crate) fn stream_refusal(error: StreamError) -> Result<&'static str, Halt> {
    match error {
        StreamError::Store(error) => Err(error.into()),
        error => Ok(error.code()),
    }
}

/// The code of a stream that was closed, as whoever publishes to it gets it.
pub(crate) fn closed() -> &'static str {
    PublishError::Closed { tail: tidegate_core::position::Offset::ZERO }.code()
}
