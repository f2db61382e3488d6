//! Why the executor was not made, why a batch was refused, and why an item has no result. No panic's message is in any of them.

use tidegate_core::failure::{ErrorKind, Failure, Retry};

use super::{BYTES_MAX, PERMITS_MAX};

/// Why there is no executor with these limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// The permits are none or too many.
    #[error("{permits} permits, there must be 1 to {PERMITS_MAX}")]
    Permits {
        /// What was given.
        permits: u32,
    },
    /// The share of a batch is nothing or more than everything.
    #[error("a window of {percent} percent of the free permits, it must be 1 to 100")]
    Window {
        /// What was given.
        percent: u8,
    },
    /// The bytes in flight are none or too many.
    #[error("{bytes} bytes in flight, there must be 1 to {BYTES_MAX}")]
    Bytes {
        /// What was given.
        bytes: u64,
    },
}

impl Failure for LimitsError {
    fn code(&self) -> &'static str {
        "batch_limits_invalid"
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// Why a batch got no window. Nothing of it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AtCapacity {
    /// Every permit is in use.
    #[error("all {permits} permits of the batch executor are in use")]
    InUse {
        /// How many there are.
        permits: u32,
    },
    /// The batches of this owner hold as many permits as they leave free.
    #[error("other batches of the same owner hold their share of the permits, {permits}")]
    Share {
        /// How many that is.
        permits: u32,
    },
    /// Asked for within an operation of the same executor, or of one that was made later: waiting there could wait for ever. It
    /// is a mistake of the program and will be refused every time.
    #[error("a batch within an operation needs an executor that was made after the one that runs the operation")]
    Nested,
}

impl Failure for AtCapacity {
    fn code(&self) -> &'static str {
        "batch_capacity_exhausted"
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Exhausted
    }

    fn retry(&self) -> Retry {
        match self {
            Self::InUse { .. } | Self::Share { .. } => Retry::After(std::time::Duration::from_secs(1)),
            Self::Nested => Retry::Never,
        }
    }
}

/// Why an item of a batch has no result. It concerns that item alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ItemError<E, I = E> {
    /// It came as an error in the input and was passed through.
    #[error(transparent)]
    Input(I),
    /// The operation was run and failed.
    #[error(transparent)]
    Failed(E),
    /// The operation panicked. What it had done by then is done.
    #[error("the operation panicked")]
    Panicked,
    /// The operation weighs more than may be in flight altogether; it was not begun.
    #[error("the operation holds {weight_bytes} bytes, at most {max_bytes} may be in flight")]
    TooLarge {
        /// What it weighs.
        weight_bytes: u64,
        /// The bound.
        max_bytes: u64,
    },
    /// The runtime went away before the operation ended: whether it took effect is not known.
    #[error("the operation was cancelled, its effect is not known")]
    Cancelled,
    /// The batch is read within an operation of the same executor, or of one that was made later; it was not begun. See
    /// [`AtCapacity::Nested`].
    #[error(transparent)]
    Nested(AtCapacity),
}

impl<E: Failure + 'static, I: Failure + 'static> Failure for ItemError<E, I> {
    fn code(&self) -> &'static str {
        match self {
            Self::Input(error) => error.code(),
            Self::Failed(error) => error.code(),
            Self::Panicked => "batch_operation_panicked",
            Self::TooLarge { .. } => "batch_operation_too_large",
            Self::Cancelled => "batch_operation_cancelled",
            Self::Nested(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Input(error) => error.kind(),
            Self::Failed(error) => error.kind(),
            Self::Panicked => ErrorKind::Internal,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Cancelled => ErrorKind::Unavailable,
            Self::Nested(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Input(error) => error.retry(),
            Self::Failed(error) => error.retry(),
            Self::Panicked | Self::TooLarge { .. } => Retry::Never,
            Self::Cancelled => Retry::After(std::time::Duration::from_millis(500)),
            Self::Nested(error) => error.retry(),
        }
    }
}
