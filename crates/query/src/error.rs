//! Why a stream was not opened, resumed or cancelled. One enum an operation; each keeps its code on every transport.

use std::sync::Arc;

use tidegate_core::failure::{ErrorKind, Failure, Retry};
use tidegate_core::port::{EntropyUnavailable, SourceError};
use tidegate_frame::ndjson::DuplicateColumn;
use tidegate_lease::capacity::CapacityExhausted;

/// The server is going away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server is shutting down and takes no new streams; ask another, or again when it is back")]
pub struct Draining;

/// All leases are in use, and none of them has ended that could be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{current} snapshots are pinned and at most {limit} may be ({setting}); finish or cancel one, or wait for one to expire"
)]
pub struct LeasesExhausted {
    /// The bound.
    pub limit: u64,
    /// How many there are.
    pub current: u64,
    /// The setting that bounds it.
    pub setting: &'static str,
}

/// Why a stream was not opened. Nothing is held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The server is going away.
    #[error(transparent)]
    Draining(#[from] Draining),
    /// There is no such source.
    #[error("there is no source {name:?}; the sources are: {known}")]
    UnknownSource {
        /// What was asked for.
        name: Box<str>,
        /// What there is, comma-separated.
        known: Box<str>,
    },
    /// The statement's text is too long.
    #[error("the statement has {bytes} bytes, at most {limit_bytes} are taken (limits.sql_max_bytes)")]
    SqlTooLarge {
        /// How long it is.
        bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// There are too many parameters.
    #[error("{given} parameters were given, at most {limit} are taken (limits.parameter_max)")]
    TooManyParameters {
        /// How many came.
        given: u64,
        /// The bound.
        limit: u64,
    },
    /// Too many streams are being read.
    #[error(transparent)]
    Capacity(#[from] CapacityExhausted),
    /// Too many snapshots are pinned.
    #[error(transparent)]
    Leases(#[from] LeasesExhausted),
    /// Two columns share a name and rows are objects.
    #[error(transparent)]
    DuplicateColumn(#[from] DuplicateColumn),
    /// No randomness, so no token.
    #[error(transparent)]
    Entropy(#[from] EntropyUnavailable),
    /// The source took too long to open and describe.
    #[error("the source did not open and describe the statement within {limit_ms} ms (limits.open_timeout_ms)")]
    SourceTimeout {
        /// The bound.
        limit_ms: u64,
    },
    /// The source refused.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl Failure for OpenError {
    fn code(&self) -> &'static str {
        match self {
            Self::Draining(_) => "draining",
            Self::UnknownSource { .. } => "source_not_found",
            Self::SqlTooLarge { .. } => "sql_too_large",
            Self::TooManyParameters { .. } => "too_many_parameters",
            Self::Capacity(error) => error.code(),
            Self::Leases(_) => "lease_capacity_exhausted",
            Self::DuplicateColumn(error) => error.code(),
            Self::Entropy(_) => "entropy_unavailable",
            Self::SourceTimeout { .. } => "source_timeout",
            Self::Source(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Draining(_) | Self::Entropy(_) => ErrorKind::Unavailable,
            Self::UnknownSource { .. } => ErrorKind::NotFound,
            Self::SqlTooLarge { .. } => ErrorKind::TooLarge,
            Self::TooManyParameters { .. } => ErrorKind::Invalid,
            Self::Capacity(error) => error.kind(),
            Self::Leases(_) => ErrorKind::Exhausted,
            Self::DuplicateColumn(error) => error.kind(),
            Self::SourceTimeout { .. } => ErrorKind::Timeout,
            Self::Source(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Capacity(error) => error.retry(),
            Self::Source(error) => error.retry(),
            Self::Draining(_) | Self::Leases(_) | Self::Entropy(_) | Self::SourceTimeout { .. } => {
                Retry::After(std::time::Duration::from_secs(1))
            }
            Self::UnknownSource { .. }
            | Self::SqlTooLarge { .. }
            | Self::TooManyParameters { .. }
            | Self::DuplicateColumn(_) => Retry::Never,
        }
    }
}

impl OpenError {
    /// The bound that was met and the present value, for refusals by capacity.
    #[must_use]
    pub fn bound(&self) -> Option<(u64, u64)> {
        match self {
            Self::Capacity(error) => Some((error.limit, error.current)),
            Self::Leases(error) => Some((error.limit, error.current)),
            Self::Source(SourceError::ConnectionsExhausted { limit }) => Some((*limit as u64, *limit as u64)),
            _ => None,
        }
    }
}

/// Why a stream was not resumed. A reader that was there before still is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// The server is going away.
    #[error(transparent)]
    Draining(#[from] Draining),
    /// There is no such cursor, or it is somebody else's: the answer is the same.
    #[error("there is no such cursor")]
    CursorNotFound,
    /// It was cancelled.
    #[error("the stream was cancelled; send the query again")]
    Cancelled,
    /// The snapshot is not pinned any more.
    #[error("the snapshot is not pinned any more; send the query again to read the present rows")]
    SnapshotExpired(#[source] Option<Arc<SourceError>>),
    /// What the caller holds is not a prefix of the result.
    #[error(
        "rows 0 to {rows} of the result do not have this hash: what the caller holds is not a prefix of this result"
    )]
    PrefixHashMismatch {
        /// How many rows the caller claims to hold.
        rows: u64,
    },
    /// Running the query again gave other rows than were sent before.
    #[error("running the query again on the snapshot gave fewer rows than were sent before; send the query again")]
    Diverged,
    /// It took too long to find the row.
    #[error("row {rows} was not reached within {limit_ms} ms (limits.resume_timeout_ms)")]
    Timeout {
        /// How many rows the caller holds.
        rows: u64,
        /// The bound.
        limit_ms: u64,
    },
    /// Too many streams are being read.
    #[error(transparent)]
    Capacity(#[from] CapacityExhausted),
    /// The database refused to give the rows again.
    #[error("the rows could not be read again")]
    Source(#[source] Arc<SourceError>),
}

impl Failure for ResumeError {
    fn code(&self) -> &'static str {
        match self {
            Self::Draining(_) => "draining",
            Self::CursorNotFound => "cursor_not_found",
            Self::Cancelled => "cursor_cancelled",
            Self::SnapshotExpired(_) => "snapshot_expired",
            Self::PrefixHashMismatch { .. } => "prefix_hash_mismatch",
            Self::Diverged => "snapshot_diverged",
            Self::Timeout { .. } => "resume_timeout",
            Self::Capacity(error) => error.code(),
            Self::Source(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Draining(_) => ErrorKind::Unavailable,
            Self::CursorNotFound => ErrorKind::NotFound,
            Self::Cancelled | Self::PrefixHashMismatch { .. } => ErrorKind::Conflict,
            Self::SnapshotExpired(_) => ErrorKind::Gone,
            Self::Diverged => ErrorKind::Internal,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Capacity(error) => error.kind(),
            Self::Source(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Draining(_) | Self::Timeout { .. } => Retry::After(std::time::Duration::from_secs(1)),
            Self::Capacity(error) => error.retry(),
            Self::Source(error) => error.retry(),
            Self::CursorNotFound
            | Self::Cancelled
            | Self::SnapshotExpired(_)
            | Self::PrefixHashMismatch { .. }
            | Self::Diverged => Retry::Never,
        }
    }
}

impl ResumeError {
    /// The bound that was met and the present value, for refusals by capacity.
    #[must_use]
    pub fn bound(&self) -> Option<(u64, u64)> {
        match self {
            Self::Capacity(error) => Some((error.limit, error.current)),
            _ => None,
        }
    }
}

/// Why a stream was not cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CancelError {
    /// There is no such cursor, or it is somebody else's: the answer is the same.
    #[error("there is no such cursor")]
    CursorNotFound,
}

impl Failure for CancelError {
    fn code(&self) -> &'static str {
        match self {
            Self::CursorNotFound => "cursor_not_found",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::CursorNotFound => ErrorKind::NotFound,
        }
    }
}

/// A source does not answer.
#[derive(Debug, thiserror::Error)]
#[error("source {name:?} does not answer")]
pub struct SourceNotReady {
    /// Which.
    pub name: Box<str>,
    /// Why; `None` = it took too long.
    #[source]
    pub cause: Option<SourceError>,
}
