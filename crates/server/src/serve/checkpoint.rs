//! The store of checkpoints: a directory or a bucket, opened. Nothing is asked of it and nothing written.

use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use tidegate_checkpoint::{CheckpointParts, Checkpoints, Spec};
use tidegate_core::system::{OsEntropy, SystemClock};
use tidegate_core::time::Clock;

use super::bucket::{self, BucketError};
use crate::config::Cold;

/// Why a store of checkpoints cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointStoreError {
    /// There is no such directory.
    #[error("it is not there, or is no directory")]
    NoDirectory,
    /// The directory cannot be made.
    #[error("it cannot be made")]
    Make(#[source] std::io::Error),
    /// The directory cannot be used.
    #[error("it cannot be used")]
    Directory(#[source] object_store::Error),
    /// The bucket cannot be used.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// Where a store lies, for people.
pub(crate) fn place(store: &Cold) -> String {
    match store {
        Cold::Directory(path) => path.display().to_string(),
        Cold::S3(s3) => s3.place(),
    }
}

/// Opens the checkpoints of a store that must be there.
pub(crate) fn open(store: &Cold) -> Result<Checkpoints, CheckpointStoreError> {
    let store: Arc<dyn ObjectStore> = match store {
        Cold::Directory(path) => Arc::new(directory(path)?),
        Cold::S3(s3) => Arc::new(bucket::client(s3, &|name| std::env::var(name).ok())?),
    };
    Ok(Checkpoints::new(CheckpointParts {
        store,
        root: object_store::path::Path::default(),
        clock: Arc::new(SystemClock::new()) as Arc<dyn Clock>,
        entropy: Arc::new(OsEntropy),
        spec: Spec::default(),
    }))
}

/// Opens them for a server: a directory is made, so that jobs find it.
pub(super) fn open_or_make(store: &Cold) -> Result<Checkpoints, CheckpointStoreError> {
    if let Cold::Directory(path) = store {
        std::fs::create_dir_all(path).map_err(CheckpointStoreError::Make)?;
    }
    open(store)
}

fn directory(path: &Path) -> Result<LocalFileSystem, CheckpointStoreError> {
    if !path.is_dir() {
        return Err(CheckpointStoreError::NoDirectory);
    }
    let store = LocalFileSystem::new_with_prefix(path).map_err(CheckpointStoreError::Directory)?;
    // A removal counts when the disk has it.
    Ok(store.with_fsync(true))
}
