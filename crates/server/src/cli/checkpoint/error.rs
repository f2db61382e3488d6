//! Why a command on checkpoints failed, with its code and the process's exit code.

use super::{
    CheckpointListError, CheckpointStoreError, ErrorKind, Exit, Failure, Generation, Name, ReadError, StoreError,
};
use crate::config::ConfigError;

/// Why a command failed that opened a store by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("the configuration cannot be used")]
    Config(#[source] ConfigError),
    #[error("the store of checkpoints {place} cannot be used")]
    Open {
        place: String,
        #[source]
        source: Box<CheckpointStoreError>,
    },
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    List(CheckpointListError),
    #[error(transparent)]
    Read(ReadError),
    #[error("job {job:?} has no checkpoint{}", generation.map_or_else(String::new, |generation| format!(" of generation {generation}")))]
    NoCheckpoint { job: String, generation: Option<u64> },
    #[error("{damaged} of {of} checkpoints are damaged")]
    Damaged { damaged: u64, of: u64 },
    #[error(
        "generation {generation} of job {job:?} is its last complete checkpoint, or holds its log together: it stays"
    )]
    Kept { job: Name, generation: Generation },
}

impl Failed {
    pub(crate) fn exit(&self) -> Exit {
        let kind = match self {
            Self::NoCheckpoint { .. } => ErrorKind::NotFound,
            Self::Open { source, .. } if matches!(**source, CheckpointStoreError::NoDirectory) => ErrorKind::NotFound,
            Self::Store(error) => error.kind(),
            Self::List(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Config(_) | Self::Open { .. } | Self::Damaged { .. } | Self::Kept { .. } => ErrorKind::Internal,
        };
        if kind == ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed }
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "config_invalid",
            Self::Open { source, .. } if matches!(**source, CheckpointStoreError::NoDirectory) => {
                "checkpoint_store_not_found"
            }
            Self::Open { .. } => "checkpoint_store_unusable",
            Self::Store(error) => error.code(),
            Self::List(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::NoCheckpoint { .. } => "checkpoint_not_found",
            Self::Damaged { .. } => "checkpoint_corrupt",
            Self::Kept { .. } => "checkpoint_kept",
        }
    }
}
