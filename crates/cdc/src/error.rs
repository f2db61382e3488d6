//! Why an operation on a stream was refused or failed. Every error has a stable code; bounds stand in the text and as fields.

use std::time::Duration;

use tidegate_core::failure::{ErrorKind, Failure, Retry};
use tidegate_core::id::Name;
use tidegate_core::port::{Cause, LogError, MetaError};
use tidegate_core::position::{Offset, Partition};
use tidegate_lease::capacity::{CapacityExhausted, CapacityScope};

use crate::producer::PRODUCER_ID_MAX_BYTES;

/// The store did not do what it was asked.
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
    /// Stored bytes are damaged.
    #[error("stored data is damaged: {what}")]
    Corrupt {
        /// What, and where.
        what: Box<str>,
    },
    /// More than the store takes at a time.
    #[error("{bytes} bytes are more than storage takes at a time, {limit_bytes}; nothing was changed")]
    TooLarge {
        /// How many.
        bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// Too many others changed the same thing at the same time.
    #[error("too many others change the same thing at the same time; nothing was changed")]
    Contended,
}

impl Failure for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "storage_unavailable",
            Self::Indeterminate(_) => "storage_indeterminate",
            Self::Full => "storage_full",
            Self::Corrupt { .. } => "storage_corrupt",
            Self::TooLarge { .. } => "batch_too_large",
            Self::Contended => "contended",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable(_) | Self::Indeterminate(_) | Self::Full | Self::Contended => ErrorKind::Unavailable,
            Self::Corrupt { .. } => ErrorKind::Internal,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
        }
    }

    /// What may have happened must be looked at first: to send it again blindly is to do it twice.
    fn retry(&self) -> Retry {
        match self {
            Self::Indeterminate(_) | Self::Corrupt { .. } | Self::TooLarge { .. } => Retry::Never,
            Self::Unavailable(_) | Self::Full => Retry::After(Duration::from_millis(500)),
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

impl From<LogError> for StoreError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Unavailable(cause) => Self::Unavailable(cause),
            LogError::Indeterminate(cause) => Self::Indeterminate(cause),
            LogError::Full => Self::Full,
            LogError::TooLarge { bytes, limit_bytes } => Self::TooLarge { bytes, limit_bytes },
            LogError::Corrupt { stream, partition, offset } => Self::Corrupt {
                what: format!("stream {:?}, partition {}, offset {}", stream.stream.as_str(), partition.0, offset.0)
                    .into(),
            },
            other => Self::Unavailable(Box::new(other)),
        }
    }
}

/// Why a stream could not be reached. Unknown and foreign are the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// There is no such stream.
    #[error("there is no stream {name:?}")]
    NotFound {
        /// What was asked for.
        name: Name,
    },
    /// It was removed, and is kept only because other streams were forked from it.
    #[error("stream {name:?} was removed")]
    Gone {
        /// Which.
        name: Name,
    },
    /// The caller's tenant is not a name that streams can have.
    #[error("the tenant of the token cannot own streams: {0}")]
    Tenant(#[source] tidegate_core::id::InvalidName),
    /// There is no such partition.
    #[error("stream {name:?} has partitions 0 to {}, not {}", partitions - 1, partition.0)]
    PartitionNotFound {
        /// Which stream.
        name: Name,
        /// What was asked for.
        partition: Partition,
        /// How many there are.
        partitions: u32,
    },
    /// Storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure for StreamError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "stream_not_found",
            Self::Gone { .. } => "stream_gone",
            Self::Tenant(_) => "tenant_invalid",
            Self::PartitionNotFound { .. } => "partition_not_found",
            Self::Store(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::PartitionNotFound { .. } => ErrorKind::NotFound,
            Self::Gone { .. } => ErrorKind::Gone,
            Self::Tenant(_) => ErrorKind::Forbidden,
            Self::Store(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Store(error) => error.retry(),
            _ => Retry::Never,
        }
    }
}

impl StreamError {
    /// Storage failed.
    pub(crate) fn store(error: impl Into<StoreError>) -> Self {
        Self::Store(error.into())
    }
}

/// Why a stream was not created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// Another stream of that name is there.
    #[error("stream {name:?} exists and is different: {difference}")]
    Exists {
        /// Which.
        name: Name,
        /// What differs, for people.
        difference: Box<str>,
    },
    /// Too many partitions, or none.
    #[error("a stream has 1 to {limit} partitions (limits.partition_max), not {given}")]
    Partitions {
        /// What was asked for.
        given: u32,
        /// The bound.
        limit: u64,
    },
    /// A bound of the retention is zero, which would keep nothing.
    #[error("retention.{field} must be at least 1; leave it out to keep everything")]
    Retention {
        /// Which.
        field: &'static str,
    },
    /// The description is too long.
    #[error("a description has at most {limit_bytes} bytes, this one has {bytes}")]
    Description {
        /// How long it is.
        bytes: usize,
        /// The bound.
        limit_bytes: usize,
    },
    /// The tenant has as many as it may.
    #[error("the tenant has {current} streams, the bound is {limit} (limits.stream_max_per_tenant)")]
    Quota {
        /// The bound.
        limit: u64,
        /// How many there are.
        current: u64,
    },
    /// Randomness failed.
    #[error("the system gives no randomness")]
    Entropy(#[from] tidegate_core::port::EntropyUnavailable),
    /// The stream cannot be reached.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl Failure for CreateError {
    fn code(&self) -> &'static str {
        match self {
            Self::Exists { .. } => "stream_exists",
            Self::Partitions { .. } => "too_many_partitions",
            Self::Retention { .. } => "invalid_field",
            Self::Description { .. } => "description_too_long",
            Self::Quota { .. } => "stream_quota_exhausted",
            Self::Entropy(_) => "internal",
            Self::Stream(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Exists { .. } => ErrorKind::Conflict,
            Self::Partitions { .. } | Self::Retention { .. } | Self::Description { .. } => ErrorKind::Invalid,
            Self::Quota { .. } => ErrorKind::Exhausted,
            Self::Entropy(_) => ErrorKind::Internal,
            Self::Stream(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Stream(error) => error.retry(),
            Self::Quota { .. } => Retry::After(Duration::from_secs(1)),
            _ => Retry::Never,
        }
    }
}

/// Why an append was refused. Nothing was appended, unless storage says that it may have been.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// There are no records in it.
    #[error("the request has no records")]
    Empty,
    /// A record is too large.
    #[error("record {index} has {bytes} bytes, a record has at most {limit_bytes} (limits.record_max_bytes)")]
    RecordTooLarge {
        /// Which, from 0.
        index: usize,
        /// How large.
        bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// There are too many records.
    #[error("the request has {records} records, at most {limit} are taken (limits.batch_max_records)")]
    TooManyRecords {
        /// How many.
        records: u64,
        /// The bound.
        limit: u64,
    },
    /// All records together are too large.
    #[error("the records have {bytes} bytes, at most {limit_bytes} are taken (limits.batch_max_bytes)")]
    TooManyBytes {
        /// How many.
        bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// The producer's id is empty or too long.
    #[error("a producer's id has 1 to {PRODUCER_ID_MAX_BYTES} bytes")]
    ProducerId,
    /// A higher epoch of the producer is known.
    #[error("the producer's epoch {epoch} was fenced by {current}")]
    ProducerFenced {
        /// What was given.
        epoch: u64,
        /// The highest that is known.
        current: u64,
    },
    /// An append of the producer is missing in between.
    #[error("the producer's sequence is {received}, {expected} was expected")]
    ProducerGap {
        /// The next one.
        expected: u64,
        /// What was given.
        received: u64,
    },
    /// A new epoch must begin with sequence 0.
    #[error("epoch {epoch} is new: its first sequence must be 0, not {seq}")]
    ProducerEpochStart {
        /// The new epoch.
        epoch: u64,
        /// What was given.
        seq: u64,
    },
    /// The stream is closed and takes no more.
    #[error("the stream is closed")]
    Closed {
        /// Where it ended.
        tail: Offset,
    },
    /// Another writer's order was kept to (`Stream-Seq`).
    #[error("the writer's sequence {given:?} is not after {last:?}")]
    SequenceRegression {
        /// The last one that was taken.
        last: Box<str>,
        /// What was given.
        given: Box<str>,
    },
    /// The content is not of the stream's type.
    #[error("the stream has content type {expected}, the request has {given}")]
    ContentType {
        /// The stream's.
        expected: Box<str>,
        /// The request's.
        given: Box<str>,
    },
    /// The stream cannot be reached.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl From<StoreError> for PublishError {
    fn from(error: StoreError) -> Self {
        Self::Stream(StreamError::Store(error))
    }
}

impl Failure for PublishError {
    fn code(&self) -> &'static str {
        match self {
            Self::Empty => "empty_batch",
            Self::RecordTooLarge { .. } => "record_too_large",
            Self::TooManyRecords { .. } | Self::TooManyBytes { .. } => "batch_too_large",
            Self::ProducerId => "malformed_producer",
            Self::ProducerFenced { .. } => "producer_fenced",
            Self::ProducerGap { .. } => "producer_sequence_gap",
            Self::ProducerEpochStart { .. } => "producer_epoch_start",
            Self::Closed { .. } => "stream_closed",
            Self::SequenceRegression { .. } => "sequence_regression",
            Self::ContentType { .. } => "content_type_mismatch",
            Self::Stream(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Empty | Self::ProducerId | Self::ProducerEpochStart { .. } => ErrorKind::Invalid,
            Self::RecordTooLarge { .. } | Self::TooManyRecords { .. } | Self::TooManyBytes { .. } => {
                ErrorKind::TooLarge
            }
            Self::ProducerFenced { .. } => ErrorKind::Forbidden,
            Self::ProducerGap { .. }
            | Self::Closed { .. }
            | Self::SequenceRegression { .. }
            | Self::ContentType { .. } => ErrorKind::Conflict,
            Self::Stream(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Stream(error) => error.retry(),
            _ => Retry::Never,
        }
    }
}

/// The code where no slot is left for who follows or waits. The slots are those of tails, not of query streams: they have names
/// of their own.
pub(crate) fn tail_code(error: &CapacityExhausted) -> &'static str {
    match error.scope {
        CapacityScope::Global => "tail_capacity_exhausted",
        CapacityScope::Owner => "principal_tail_quota_exhausted",
    }
}

/// Why a read was refused or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The offset is beyond the tail.
    #[error("offset {} of partition {} is beyond the tail, {}", asked.0, partition.0, next.0)]
    OutOfRange {
        /// Which partition.
        partition: Partition,
        /// What was asked for.
        asked: Offset,
        /// The tail: the offset that the next record gets.
        next: Offset,
        /// The first offset that is still there.
        earliest: Offset,
    },
    /// Too many readers follow streams now.
    #[error(transparent)]
    Capacity(#[from] CapacityExhausted),
    /// The stream cannot be reached (any more).
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Stream(StreamError::Store(error))
    }
}

impl Failure for ReadError {
    fn code(&self) -> &'static str {
        match self {
            Self::OutOfRange { .. } => "offset_out_of_range",
            Self::Capacity(error) => tail_code(error),
            Self::Stream(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::Capacity(_) => ErrorKind::Exhausted,
            Self::Stream(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Capacity(error) => error.retry(),
            Self::Stream(error) => error.retry(),
            Self::OutOfRange { .. } => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::GroupError;

    #[test]
    fn no_slot_left_has_one_code_whoever_asks() {
        for (scope, code) in [
            (CapacityScope::Global, "tail_capacity_exhausted"),
            (CapacityScope::Owner, "principal_tail_quota_exhausted"),
        ] {
            let error = || CapacityExhausted { scope, limit: 1, current: 1 };
            assert_eq!((ReadError::from(error()).code(), GroupError::from(error()).code()), (code, code));
        }
    }
}
