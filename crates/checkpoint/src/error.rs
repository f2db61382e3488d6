//! What goes wrong, by its cause. A lost race, a term that is over and a fenced writer are outcomes and stand with their operations, not here.

use std::io;
use std::time::Duration;

use object_store::path::Path;
use tidegate_core::id::Name;
use tidegate_core::port::EntropyUnavailable;
use tidegate_core::{ErrorKind, Failure, Retry};
use tidegate_frame::envelope::{OpenError, SealError};

use crate::id::{CheckpointId, Digest, Generation};
use crate::manifest::InvalidDraft;

/// The store did not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It does not answer, or not as it should. Nothing is known to have happened.
    #[error("the store does not answer for {object}")]
    Unavailable {
        /// The object that was asked for.
        object: Box<str>,
        /// What it said.
        #[source]
        source: object_store::Error,
    },
    /// It has no room.
    #[error("the store has no room for {object}")]
    Full {
        /// The object that was to be written.
        object: Box<str>,
        /// What it said.
        #[source]
        source: object_store::Error,
    },
    /// It may not be written, or not by this process.
    #[error("the store lets nobody write {object}")]
    ReadOnly {
        /// The object that was to be written.
        object: Box<str>,
        /// What it said.
        #[source]
        source: object_store::Error,
    },
    /// It cannot create an object only if there is none, without which no two writers can be told apart.
    #[error("the store cannot create an object only where there is none, which checkpoints need")]
    NoConditionalPut(#[source] object_store::Error),
    /// A log has more slots than are listed at a time: retention does not run.
    #[error("there are more than {limit} objects in {folder}: collect what is not needed")]
    TooMany {
        /// Where.
        folder: Box<str>,
        /// The bound.
        limit: usize,
    },
}

impl StoreError {
    pub(crate) fn new(object: &Path, source: object_store::Error) -> Self {
        let text: Box<str> = object.as_ref().into();
        if matches!(source, object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) {
            return Self::NoConditionalPut(source);
        }
        match io_kind(&source) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Self::Full { object: text, source },
            Some(io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
                Self::ReadOnly { object: text, source }
            }
            _ if matches!(
                source,
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }
            ) =>
            {
                Self::ReadOnly { object: text, source }
            }
            _ => Self::Unavailable { object: text, source },
        }
    }
}

/// What the operating system said, if it was asked.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

impl Failure for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "checkpoint_store_unavailable",
            Self::Full { .. } => "checkpoint_store_full",
            Self::ReadOnly { .. } => "checkpoint_store_read_only",
            Self::NoConditionalPut(_) => "checkpoint_store_unsuitable",
            Self::TooMany { .. } => "checkpoint_store_crowded",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoConditionalPut(_) => ErrorKind::Internal,
            _ => ErrorKind::Unavailable,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Unavailable { .. } | Self::Full { .. } => Retry::After(Duration::from_millis(500)),
            _ => Retry::Never,
        }
    }
}

/// An object, or a part of one, that is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{object} is damaged")]
pub struct Damage {
    /// Which object of the store.
    pub object: Box<str>,
    /// What is wrong with it.
    #[source]
    pub kind: DamageKind,
}

/// What is wrong with an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DamageKind {
    /// It is not there, although something refers to it.
    #[error("it is gone")]
    Missing,
    /// Its envelope does not open.
    #[error(transparent)]
    Envelope(OpenError),
    /// It is an entry of another job or slot: somebody renamed or copied it.
    #[error("it is the entry of job {job:?}, generation {generation}")]
    Elsewhere {
        /// Of which job it is.
        job: Name,
        /// Of which slot it is.
        generation: Generation,
    },
    /// Its checksum is right and its form is not the one that its content has.
    #[error("its bytes are not those that its content is written as")]
    NotCanonical,
    /// It is not the checkpoint that its successor names.
    #[error("its bytes have digest {actual}, the checkpoint that its successor names has {expected}")]
    NotTheParent {
        /// By its successor.
        expected: Digest,
        /// In fact.
        actual: Digest,
    },
    /// It has more or fewer bytes than were written.
    #[error("it should have {expected_bytes} bytes and has {actual_bytes}: it was cut, or something was added")]
    Length {
        /// As written.
        expected_bytes: u64,
        /// In fact.
        actual_bytes: u64,
    },
    /// A chunk's bytes are not those that were written.
    #[error("the chunk of {length} bytes at byte {offset} has digest {actual} and should have {expected}")]
    Chunk {
        /// From which byte of the pack.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// By the manifest.
        expected: Digest,
        /// In fact.
        actual: Digest,
    },
    /// Its parts contradict each other.
    #[error("it contradicts itself: {0}")]
    Inconsistent(&'static str),
}

impl DamageKind {
    pub(crate) fn at(self, object: &Path) -> Damage {
        Damage { object: object.as_ref().into(), kind: self }
    }
}

impl Failure for Damage {
    fn code(&self) -> &'static str {
        match &self.kind {
            DamageKind::Missing => "checkpoint_object_missing",
            DamageKind::Envelope(error) => error.code(),
            DamageKind::Elsewhere { .. } => "checkpoint_object_elsewhere",
            DamageKind::NotCanonical => "checkpoint_not_canonical",
            DamageKind::NotTheParent { .. } => "checkpoint_parent_mismatch",
            DamageKind::Length { .. } => "checkpoint_length_mismatch",
            DamageKind::Chunk { .. } => "checkpoint_chunk_mismatch",
            DamageKind::Inconsistent(_) => "checkpoint_inconsistent",
        }
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

/// Why something was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is not what was written.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// There is no such checkpoint.
    #[error("job {job:?} has no checkpoint of generation {generation}")]
    NotFound {
        /// Of which job.
        job: Name,
        /// Which one.
        generation: Generation,
    },
    /// The state is larger than the caller wants to hold.
    #[error("the state has {actual_bytes} bytes, {limit_bytes} are allowed")]
    TooLarge {
        /// How large it is.
        actual_bytes: u64,
        /// What was allowed.
        limit_bytes: u64,
    },
    /// As many readers are noted as are taken.
    #[error("{limit} readers are noted at this job, which is the most that there may be")]
    TooManyReaders {
        /// The bound.
        limit: usize,
    },
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyUnavailable),
}

impl Failure for ReadError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Damage(damage) => damage.code(),
            Self::NotFound { .. } => "checkpoint_not_found",
            Self::TooLarge { .. } => "checkpoint_state_too_large",
            Self::TooManyReaders { .. } => "checkpoint_readers_exhausted",
            Self::Entropy(_) => "entropy_unavailable",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Damage(damage) => Failure::kind(damage),
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::TooManyReaders { .. } => ErrorKind::Exhausted,
            Self::Entropy(_) => ErrorKind::Unavailable,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Store(error) => error.retry(),
            Self::Damage(damage) => damage.retry(),
            Self::TooManyReaders { .. } => Retry::After(Duration::from_secs(60)),
            Self::Entropy(_) => Retry::After(Duration::from_millis(500)),
            Self::NotFound { .. } | Self::TooLarge { .. } => Retry::Never,
        }
    }
}

/// Why a term was not claimed. That somebody else holds it is an outcome.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The store. Whether a term began is not known; it ends by itself.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyUnavailable),
    /// The numbers of epochs or slots are used up.
    #[error("the numbers of this job's log are used up")]
    Exhausted,
    /// The entry is larger than an envelope.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl Failure for ClaimError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Entropy(_) => "entropy_unavailable",
            Self::Exhausted => "checkpoint_numbers_exhausted",
            Self::Seal(_) => "checkpoint_too_large",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Entropy(_) => ErrorKind::Unavailable,
            Self::Exhausted | Self::Seal(_) => ErrorKind::Internal,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Store(error) => error.retry(),
            Self::Entropy(_) => Retry::After(Duration::from_millis(500)),
            Self::Exhausted | Self::Seal(_) => Retry::Never,
        }
    }
}

/// Why an entry was not written. That the term is over is an outcome.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The store said no, and the entry is known not to be there.
    #[error(transparent)]
    Store(StoreError),
    /// The store did not answer; the entry may be there, or come yet. The next entry settles it.
    #[error("whether generation {generation} was written is not known")]
    Indeterminate {
        /// Which slot.
        generation: Generation,
        /// What the store said.
        #[source]
        source: StoreError,
    },
    /// As many entries for one slot are in doubt as are remembered: settle them first.
    #[error("{limit} entries for generation {generation} are in doubt: settle them first")]
    Unsettled {
        /// Which slot.
        generation: Generation,
        /// The bound.
        limit: usize,
    },
    /// The log lost entries that are never deleted: the folder was deleted or edited under the writer. It stops.
    #[error("the log lost generation {missing}, which is never deleted: somebody deleted or edited it")]
    Vanished {
        /// What is missing.
        missing: Generation,
    },
    /// An object that it refers to is not there as it was written.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The draft is not one that can be published.
    #[error(transparent)]
    Draft(#[from] InvalidDraft),
    /// It is larger than an envelope.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The numbers of slots are used up.
    #[error("the numbers of this job's log are used up")]
    Exhausted,
    /// A state could not be read from who gave it.
    #[error("the state {state:?} was not given whole")]
    State {
        /// Which one.
        state: Name,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A save was begun before another checkpoint was published: its chunks may be gone.
    #[error("the save was begun before {published}, which was published since")]
    Overtaken {
        /// The newer one.
        published: CheckpointId,
    },
}

impl AppendError {
    /// What it says of the store, if it is the store's.
    #[must_use]
    pub const fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) | Self::Indeterminate { source: error, .. } => Some(error),
            _ => None,
        }
    }
}

impl Failure for AppendError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Indeterminate { .. } | Self::Unsettled { .. } => "checkpoint_indeterminate",
            Self::Vanished { .. } => "checkpoint_log_vanished",
            Self::Damage(damage) => damage.code(),
            Self::Draft(InvalidDraft::WatermarkWentBack { .. }) => "checkpoint_watermark_went_back",
            Self::Draft(InvalidDraft::SavepointExists { .. }) => "savepoint_exists",
            Self::Draft(_) | Self::Seal(_) => "checkpoint_too_large",
            Self::Exhausted => "checkpoint_numbers_exhausted",
            Self::State { .. } => "checkpoint_state_incomplete",
            Self::Overtaken { .. } => "checkpoint_overtaken",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Indeterminate { .. } | Self::Unsettled { .. } => ErrorKind::Unavailable,
            Self::Draft(InvalidDraft::WatermarkWentBack { .. }) => ErrorKind::Unprocessable,
            Self::Draft(InvalidDraft::SavepointExists { .. }) | Self::Overtaken { .. } => ErrorKind::Conflict,
            Self::Draft(_) | Self::Seal(_) => ErrorKind::TooLarge,
            Self::Vanished { .. } | Self::Damage(_) | Self::Exhausted | Self::State { .. } => ErrorKind::Internal,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Store(error) => error.retry(),
            Self::Indeterminate { .. } | Self::Overtaken { .. } => Retry::Now,
            _ => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_a_read_only_and_a_silent_store_are_told_apart() {
        let said = |kind: io::ErrorKind| {
            let source = Box::new(io::Error::from(kind));
            StoreError::new(&Path::from("x"), object_store::Error::Generic { store: "local", source })
        };
        let codes = [
            (io::ErrorKind::StorageFull, "checkpoint_store_full", Retry::After(Duration::from_millis(500))),
            (io::ErrorKind::QuotaExceeded, "checkpoint_store_full", Retry::After(Duration::from_millis(500))),
            (io::ErrorKind::ReadOnlyFilesystem, "checkpoint_store_read_only", Retry::Never),
            (io::ErrorKind::PermissionDenied, "checkpoint_store_read_only", Retry::Never),
            (io::ErrorKind::ConnectionReset, "checkpoint_store_unavailable", Retry::After(Duration::from_millis(500))),
        ];
        for (kind, code, retry) in codes {
            let error = said(kind);
            assert_eq!((error.code(), error.retry()), (code, retry));
            assert_eq!(error.kind(), ErrorKind::Unavailable);
        }
        let unsuitable = object_store::Error::NotImplemented { operation: "put".into(), implementer: "x".into() };
        assert_eq!(StoreError::new(&Path::from("x"), unsuitable).code(), "checkpoint_store_unsuitable");
    }
}
