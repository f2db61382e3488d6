//! Why a group refused, or could not be asked. Every error has a stable code.

use tidegate_core::failure::{ErrorKind, Failure, Retry};
use tidegate_core::id::Name;
use tidegate_core::position::{Gap, Offset, Partition};
use tidegate_lease::capacity::CapacityExhausted;

use super::spec::GroupMode;
use crate::error::{ReadError, StoreError, StreamError, tail_code};

/// Why a group refused. Nothing was changed, unless storage says that it may have been.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// There is no such group.
    #[error("there is no group {name:?}")]
    NotFound {
        /// What was asked for.
        name: Name,
    },
    /// Another group of that name is there.
    #[error("group {name:?} exists and is different: {difference}")]
    Exists {
        /// Which.
        name: Name,
        /// What differs, for people.
        difference: Box<str>,
    },
    /// The group has moved on: the generation is old, or the partition belongs to another member, or to members at all.
    #[error("the group is at generation {generation}: ask for the assignment by a heartbeat, or join")]
    Fenced {
        /// The present one.
        generation: u64,
    },
    /// There is no such member (any more).
    #[error("the group has no member {member:?}: it must join again")]
    UnknownMember {
        /// What was given.
        member: Box<str>,
    },
    /// The commit would go back.
    #[error("partition {} is committed up to {}, {} would go back; only a seek does", partition.0, committed.0, given.0)]
    Regression {
        /// Which partition.
        partition: Partition,
        /// Up to where it is committed.
        committed: Offset,
        /// What was given.
        given: Offset,
    },
    /// The commit is beyond what was delivered.
    #[error("partition {} was delivered up to {}, {} is beyond it", partition.0, delivered.0, given.0)]
    BeyondDelivered {
        /// Which partition.
        partition: Partition,
        /// Up to where it was delivered.
        delivered: Offset,
        /// What was given.
        given: Offset,
    },
    /// Records are gone, and the group is to stop there.
    #[error("records {} to {} of partition {} are gone; seek to go on", gap.from.0, gap.to.0, gap.partition.0)]
    Gap {
        /// Which.
        gap: Gap,
    },
    /// The stream has as many groups as it may.
    #[error("the stream has {current} groups, the bound is {limit} (limits.group_max_per_stream)")]
    Quota {
        /// The bound.
        limit: u64,
        /// How many there are.
        current: u64,
    },
    /// The group has as many members as it may.
    #[error("the group has {current} members, the bound is {limit} (limits.member_max_per_group)")]
    MemberQuota {
        /// The bound.
        limit: u64,
        /// How many there are.
        current: u64,
    },
    /// A commit on a shared group, or an acknowledgement on an ordered one.
    #[error("the group is {}: {}", mode_name(*.mode), mode_advice(*.mode))]
    WrongMode {
        /// What the group is.
        mode: GroupMode,
    },
    /// A field of a specification is outside its range.
    #[error("{field} is {given}, it must be from {min} to {max}")]
    InvalidSpec {
        /// Which.
        field: &'static str,
        /// What was given.
        given: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Only a shared group sends records to a stream of dead letters.
    #[error("an ordered group has no dead_letter: only a shared one gives a record up")]
    DeadLetterOfOrdered,
    /// The dead letters would come back to the group for ever.
    #[error("dead_letter must be another stream than the one that the group reads")]
    DeadLetterIsSource,
    /// The stream for dead letters takes only what the Durable Streams protocol gives it.
    #[error("dead_letter {name:?} is a stream of the Durable Streams protocol, which cannot take records with headers")]
    DeadLetterKind {
        /// Which.
        name: Name,
    },
    /// A field of a request is outside its range.
    #[error("{field} is {given}, the bound is {limit}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What was given.
        given: u64,
        /// The bound that it breaks.
        limit: u64,
    },
    /// There is no stream for the dead letters.
    #[error("there is no stream {name:?} for the dead letters")]
    DeadLetterNotFound {
        /// What was asked for.
        name: Name,
    },
    /// A seek to where nothing is.
    #[error("partition {} has offsets {} to {}, not {}", partition.0, earliest.0, next.0, asked.0)]
    OutOfRange {
        /// Which partition.
        partition: Partition,
        /// What was asked for.
        asked: Offset,
        /// The tail.
        next: Offset,
        /// The first offset that is there.
        earliest: Offset,
    },
    /// Too many wait on streams now.
    #[error(transparent)]
    Capacity(#[from] CapacityExhausted),
    /// Randomness failed.
    #[error("the system gives no randomness")]
    Entropy(#[from] tidegate_core::port::EntropyUnavailable),
    /// The stream cannot be reached (any more).
    #[error(transparent)]
    Stream(#[from] StreamError),
}

fn mode_name(mode: GroupMode) -> &'static str {
    match mode {
        GroupMode::Ordered => "ordered",
        GroupMode::Shared => "shared",
    }
}

fn mode_advice(mode: GroupMode) -> &'static str {
    match mode {
        GroupMode::Ordered => "its positions are committed, its records are not acknowledged one by one",
        GroupMode::Shared => "its records are acknowledged one by one, its positions are not committed",
    }
}

impl From<StoreError> for GroupError {
    fn from(error: StoreError) -> Self {
        Self::Stream(StreamError::Store(error))
    }
}

impl From<ReadError> for GroupError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::OutOfRange { partition, asked, next, earliest } => {
                Self::OutOfRange { partition, asked, next, earliest }
            }
            ReadError::Capacity(error) => Self::Capacity(error),
            ReadError::Stream(error) => Self::Stream(error),
        }
    }
}

impl Failure for GroupError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "group_not_found",
            Self::Exists { .. } => "group_exists",
            Self::Fenced { .. } => "fenced",
            Self::UnknownMember { .. } => "unknown_member",
            Self::Regression { .. } => "offset_regression",
            Self::BeyondDelivered { .. } => "offset_beyond_delivered",
            Self::Gap { .. } => "gap",
            Self::Quota { .. } => "group_quota_exhausted",
            Self::MemberQuota { .. } => "member_quota_exhausted",
            Self::WrongMode { .. } => "wrong_mode",
            Self::InvalidSpec { .. }
            | Self::DeadLetterOfOrdered
            | Self::DeadLetterIsSource
            | Self::DeadLetterKind { .. } => "invalid_group",
            Self::Invalid { .. } => "invalid_field",
            Self::DeadLetterNotFound { .. } => "dead_letter_not_found",
            Self::OutOfRange { .. } => "offset_out_of_range",
            Self::Capacity(error) => tail_code(error),
            Self::Entropy(_) => "internal",
            Self::Stream(error) => error.code(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::UnknownMember { .. } | Self::DeadLetterNotFound { .. } => ErrorKind::NotFound,
            Self::Exists { .. } | Self::Fenced { .. } | Self::WrongMode { .. } => ErrorKind::Conflict,
            Self::Regression { .. } | Self::BeyondDelivered { .. } => ErrorKind::Unprocessable,
            Self::Gap { .. } => ErrorKind::Gone,
            Self::Quota { .. } | Self::MemberQuota { .. } | Self::Capacity(_) => ErrorKind::Exhausted,
            Self::InvalidSpec { .. }
            | Self::DeadLetterOfOrdered
            | Self::DeadLetterIsSource
            | Self::DeadLetterKind { .. }
            | Self::Invalid { .. } => ErrorKind::Invalid,
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::Entropy(_) => ErrorKind::Internal,
            Self::Stream(error) => error.kind(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Stream(error) => error.retry(),
            Self::Quota { .. } | Self::MemberQuota { .. } | Self::Capacity(_) => {
                Retry::After(std::time::Duration::from_secs(1))
            }
            _ => Retry::Never,
        }
    }
}
