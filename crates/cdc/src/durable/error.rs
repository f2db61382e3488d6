//! Why an operation of the Durable Streams protocol was refused.

use tidegate_core::failure::{ErrorKind, Failure, Retry};
use tidegate_core::id::Name;
use tidegate_core::position::{Gap, Offset};

use crate::error::{CreateError, PublishError, ReadError, StoreError, StreamError};
use crate::record::gap_reason;

/// A body or a content type that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// The content type is none.
    #[error("a content type is type/subtype of at most {limit_bytes} ASCII characters")]
    Type {
        /// The bound.
        limit_bytes: usize,
    },
    /// The body is not JSON.
    #[error("the body is not valid JSON at line {line}, column {column}")]
    Json {
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
}

/// Why an operation of the Durable Streams protocol was refused. Nothing was changed, unless storage says that it may have been.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DurableError {
    /// Another stream of that name is there.
    #[error("stream {name:?} exists and is different: {difference}")]
    Exists {
        /// Which.
        name: Name,
        /// What differs, for people.
        difference: &'static str,
    },
    /// The stream has several partitions, which this protocol does not know.
    #[error("stream {name:?} has {partitions} partitions; Durable Streams reads streams of one")]
    Partitioned {
        /// Which.
        name: Name,
        /// How many.
        partitions: u32,
    },
    /// The body or the content type cannot be taken.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// An append without content.
    #[error("an append needs a body")]
    EmptyBody,
    /// An append of an empty JSON array.
    #[error("an append of an empty JSON array appends nothing")]
    EmptyArray,
    /// An append without a content type.
    #[error("an append needs a Content-Type")]
    ContentTypeMissing,
    /// The stream that was to be forked is being removed.
    #[error("stream {name:?} was removed: nothing can be forked from it")]
    SourceGone {
        /// Which.
        name: Name,
    },
    /// The fork would have another content type than its source.
    #[error("the source has content type {expected}, the fork asks for {given}")]
    SourceContentType {
        /// The source's.
        expected: Box<str>,
        /// The request's.
        given: Box<str>,
    },
    /// The place of the fork is not in the source.
    #[error("offset {} is beyond the source's tail, {}", asked.0, next.0)]
    ForkOffset {
        /// What was asked for.
        asked: Offset,
        /// The tail.
        next: Offset,
    },
    /// The place within the append is beyond its end.
    #[error("sub-offset {asked} is beyond the {available} that the append at the fork's offset has")]
    ForkSubOffset {
        /// What was asked for.
        asked: u64,
        /// How many records or bytes there are.
        available: u64,
    },
    /// A sub-offset without the offset that it counts from.
    #[error("a sub-offset needs the offset that it counts from")]
    ForkOffsetMissing,
    /// Too many forks of forks.
    #[error("a fork has at most {limit} sources, one behind the other")]
    ForkDepth {
        /// The bound.
        limit: u32,
    },
    /// What was asked for is gone.
    #[error("records {} to {} are gone: {}", gap.from.0, gap.to.0, gap_reason(gap.reason))]
    Gap {
        /// Which.
        gap: Gap,
    },
    /// Creating failed.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Appending failed.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The stream cannot be reached.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl From<StoreError> for DurableError {
    fn from(error: StoreError) -> Self {
        Self::Stream(StreamError::Store(error))
    }
}

impl Failure for DurableError {
    fn code(&self) -> &'static str {
        match self {
            Self::Exists { .. } => "stream_exists",
            Self::Partitioned { .. } => "stream_partitioned",
            Self::Content(ContentError::Type { .. }) => "malformed_content_type",
            Self::Content(ContentError::Json { .. }) => "malformed_json",
            Self::EmptyBody => "empty_body",
            Self::EmptyArray => "empty_batch",
            Self::ContentTypeMissing => "content_type_missing",
            Self::SourceGone { .. } => "stream_gone",
            Self::SourceContentType { .. } => "content_type_mismatch",
            Self::ForkOffset { .. } | Self::ForkSubOffset { .. } => "offset_out_of_range",
            Self::ForkOffsetMissing => "malformed_fork",
            Self::ForkDepth { .. } => "too_many_forks",
            Self::Gap { .. } => "gap",
            Self::Create(error) => error.code(),
            Self::Publish(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::Stream(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Exists { .. }
            | Self::Partitioned { .. }
            | Self::SourceGone { .. }
            | Self::SourceContentType { .. }
            | Self::ForkDepth { .. } => ErrorKind::Conflict,
            Self::Content(_)
            | Self::EmptyBody
            | Self::EmptyArray
            | Self::ContentTypeMissing
            | Self::ForkOffset { .. }
            | Self::ForkSubOffset { .. }
            | Self::ForkOffsetMissing => ErrorKind::Invalid,
            Self::Gap { .. } => ErrorKind::Gone,
            Self::Create(error) => error.kind(),
            Self::Publish(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Stream(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Create(error) => error.retry(),
            Self::Publish(error) => error.retry(),
            Self::Read(error) => error.retry(),
            Self::Stream(error) => error.retry(),
            _ => Retry::Never,
        }
    }
}
