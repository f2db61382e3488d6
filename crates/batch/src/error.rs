//! Why an operation on an object was refused or failed. Every error has a stable code; bounds stand in the text and as fields.

use std::time::Duration;

use tidegate_core::failure::{ErrorKind, Failure, Retry};
use tidegate_core::port::{Cause, MetaError};

use crate::object::{PathError, Version};

/// A store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It certainly did not happen.
    #[error("storage is not available; nothing was changed")]
    Unavailable(#[source] Cause),
    /// It may have happened.
    #[error("storage did not answer; the change may have happened: read before trying again")]
    Indeterminate(#[source] Cause),
    /// There is no space.
    #[error("the disk is full; nothing was changed, reads go on")]
    Full,
    /// Stored bytes are damaged, or are not there although something refers to them.
    #[error("stored data is damaged: {what}")]
    Corrupt {
        /// What, and where.
        what: Box<str>,
    },
    /// Too many others changed the same object at the same time.
    #[error("too many others change the same object at the same time; nothing was changed")]
    Contended,
    /// The system gives no randomness.
    #[error(transparent)]
    Entropy(#[from] tidegate_core::port::EntropyUnavailable),
}

impl Failure for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unavailable(_) | Self::Entropy(_) => "storage_unavailable",
            Self::Indeterminate(_) => "storage_indeterminate",
            Self::Full => "storage_full",
            Self::Corrupt { .. } => "storage_corrupt",
            Self::Contended => "contended",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Corrupt { .. } => ErrorKind::Internal,
            _ => ErrorKind::Unavailable,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Indeterminate(_) | Self::Corrupt { .. } => Retry::Never,
            Self::Unavailable(_) | Self::Full | Self::Entropy(_) => Retry::After(Duration::from_millis(500)),
            Self::Contended => Retry::Now,
        }
    }
}

impl From<MetaError> for StoreError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::Unavailable(cause) => Self::Unavailable(cause),
            MetaError::Indeterminate(cause) => Self::Indeterminate(cause),
            MetaError::Full => Self::Full,
            other @ MetaError::Corrupt { .. } => Self::Corrupt { what: other.to_string().into() },
            other => Self::Unavailable(Box::new(other)),
        }
    }
}

/// What the blob store said. A blob that is not there is a question for who asked.
pub(crate) fn blob_error(error: object_store::Error) -> StoreError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        {
            return StoreError::Full;
        }
        source = cause.source();
    }
    StoreError::Unavailable(Box::new(error))
}

/// Why an object was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The metadata is beyond its bound.
    #[error("the metadata has {bytes} bytes, at most {limit_bytes} are taken")]
    Metadata {
        /// How many.
        bytes: usize,
        /// The bound.
        limit_bytes: usize,
    },
    /// The object is beyond the bound.
    #[error("the object has more than {limit_bytes} bytes; nothing was stored")]
    TooLarge {
        /// The bound.
        limit_bytes: u64,
    },
    /// The bytes are not those that were announced.
    #[error("the bytes do not have the announced SHA-256; nothing was stored")]
    Checksum,
    /// The bytes did not come to their end.
    #[error("the object's bytes broke off; nothing was stored")]
    Body(#[source] Cause),
    /// What the caller made a condition does not hold.
    #[error(transparent)]
    Precondition(#[from] PreconditionFailed),
    /// It took so long that it was given up.
    #[error("writing took longer than {} s and was given up; nothing was stored", limit.as_secs())]
    TookTooLong {
        /// The bound.
        limit: Duration,
    },
    /// Other writes hold all the memory that writes may have, or those of the same tenant their share of it.
    #[error("other writes hold all that they may of the {limit_bytes} bytes for writes; nothing was stored")]
    Busy {
        /// The bound.
        limit_bytes: u64,
    },
    /// Storage.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A condition on the object's version does not hold. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the object is not in the state that the request makes a condition")]
pub struct PreconditionFailed {
    /// What is there; `None` = nothing.
    pub current: Option<Version>,
}

impl Failure for PutError {
    fn code(&self) -> &'static str {
        match self {
            Self::Metadata { .. } => "metadata_too_large",
            Self::TooLarge { .. } => "object_too_large",
            Self::Checksum => "checksum_mismatch",
            Self::Body(_) => "body_incomplete",
            Self::Precondition(_) => "precondition_failed",
            Self::TookTooLong { .. } => "write_timeout",
            Self::Busy { .. } => "write_capacity_exhausted",
            Self::Store(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Metadata { .. } | Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Checksum => ErrorKind::Unprocessable,
            Self::Body(_) => ErrorKind::Invalid,
            Self::Precondition(_) => ErrorKind::Conflict,
            Self::TookTooLong { .. } => ErrorKind::Timeout,
            Self::Busy { .. } => ErrorKind::Exhausted,
            Self::Store(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Store(error) => error.retry(),
            Self::Body(_) => Retry::Now,
            Self::Busy { .. } => Retry::After(Duration::from_secs(1)),
            _ => Retry::Never,
        }
    }
}

/// Why an object was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There is none, or it has expired.
    #[error("there is no object {key:?}")]
    NotFound {
        /// What was asked for.
        key: Box<str>,
    },
    /// The range lies beyond the object's end.
    #[error("the range lies beyond the object's {length} bytes")]
    Range {
        /// How long the object is.
        length: u64,
    },
    /// What the caller made a condition does not hold.
    #[error(transparent)]
    Precondition(#[from] PreconditionFailed),
    /// The object was replaced or deleted while it was being read.
    #[error("the object was replaced or deleted while it was being read: read it again")]
    Replaced,
    /// Storage.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure for GetError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "object_not_found",
            Self::Range { .. } => "range_not_satisfiable",
            Self::Precondition(_) => "precondition_failed",
            Self::Replaced => "object_replaced",
            Self::Store(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Range { .. } => ErrorKind::OutOfRange,
            Self::Precondition(_) => ErrorKind::Conflict,
            Self::Replaced => ErrorKind::Unavailable,
            Self::Store(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Replaced => Retry::Now,
            Self::Store(error) => error.retry(),
            _ => Retry::Never,
        }
    }
}

/// Why an upload in parts was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// The id is none of ours, or not of this object, or of an upload that has ended. Which, is not told.
    #[error("there is no such upload of this object")]
    Unknown,
    /// A part's number is outside its range.
    #[error("part {number}: parts are numbered from 1 to {limit}")]
    Number {
        /// What was given.
        number: u32,
        /// The bound.
        limit: u32,
    },
    /// A part is missing.
    #[error("part {number} is missing; the upload goes on")]
    Missing {
        /// Which.
        number: u32,
    },
    /// The parts that were named are not in ascending order, or one stands there twice.
    #[error("part {number} is out of order: name the parts in ascending order, each once")]
    Order {
        /// Which.
        number: u32,
    },
    /// A part is not the one that was named.
    #[error("part {number} is not the one that was named; it was sent again since")]
    Replaced {
        /// Which.
        number: u32,
    },
    /// There are too many uploads of this tenant.
    #[error("{limit} uploads are open")]
    TooMany {
        /// The bound.
        limit: u64,
    },
    /// Writing a part, or the object, failed.
    #[error(transparent)]
    Put(#[from] PutError),
}

impl From<StoreError> for UploadError {
    fn from(error: StoreError) -> Self {
        Self::Put(error.into())
    }
}

impl Failure for UploadError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "upload_not_found",
            Self::Number { .. } => "upload_part_number",
            Self::Missing { .. } => "upload_part_missing",
            Self::Order { .. } => "upload_part_order",
            Self::Replaced { .. } => "upload_part_replaced",
            Self::TooMany { .. } => "upload_capacity_exhausted",
            Self::Put(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown => ErrorKind::NotFound,
            Self::Number { .. } | Self::Order { .. } => ErrorKind::Invalid,
            Self::Missing { .. } | Self::Replaced { .. } => ErrorKind::Conflict,
            Self::TooMany { .. } => ErrorKind::Exhausted,
            Self::Put(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Put(error) => error.retry(),
            Self::TooMany { .. } => Retry::After(Duration::from_secs(60)),
            _ => Retry::Never,
        }
    }
}

impl Failure for PathError {
    fn code(&self) -> &'static str {
        "invalid_name"
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}
