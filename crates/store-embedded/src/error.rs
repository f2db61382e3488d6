//! Why a store was not opened, or did not answer. It never holds a record's or a key's bytes.

use std::path::PathBuf;

use tidegate_core::port::{Cause, LogError, MetaError};
use tidegate_core::{ErrorKind, Failure};

/// Why a store was not opened. Nothing that was acknowledged was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another store, in this process or in another one, has the folder open.
    #[error("{path:?} is in use by another process, or open already in this one")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Stored bytes are damaged, and going on would lose what was acknowledged.
    #[error("{path:?} is damaged at byte {at:?}: {what}")]
    Corrupt {
        /// The damaged file; the folder where the database does not say which.
        path: PathBuf,
        /// Where in the file, if it is known.
        at: Option<u64>,
        /// What is wrong.
        what: &'static str,
    },
    /// The folder was written by a version that this program does not read.
    #[error("{path:?} has a format that this program does not read")]
    UnknownFormat {
        /// The folder.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("{path:?} cannot be opened")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The database refused.
    #[error("the database in {path:?} cannot be opened")]
    Database {
        /// The folder.
        path: PathBuf,
        /// What it said.
        source: Cause,
    },
}

impl Failure for OpenError {
    fn code(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "store_in_use",
            Self::Corrupt { .. } => "store_corrupt",
            Self::UnknownFormat { .. } => "store_unknown_format",
            Self::Io { .. } => "store_io",
            Self::Database { .. } => "store_unavailable",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::InUse { .. } => ErrorKind::Conflict,
            Self::Io { .. } | Self::Database { .. } => ErrorKind::Unavailable,
            Self::Corrupt { .. } | Self::UnknownFormat { .. } => ErrorKind::Internal,
        }
    }
}

/// What is wrong with a request whose form the ports do not allow; the source of an `Unavailable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A partition stands in the batch more than once.
    #[error("a partition stands in the batch more than once")]
    PartitionTwice,
    /// A stream stands in the batch more than once.
    #[error("a stream stands in the batch more than once")]
    StreamTwice,
    /// A partition is given no record.
    #[error("a partition is given no record")]
    NoRecord,
    /// The offsets would pass 2^64 - 1.
    #[error("the partition has no offsets left")]
    NoOffsetLeft,
    /// A stream is to have no partition.
    #[error("a stream has at least one partition")]
    NoPartition,
    /// A metadata key is longer than the store takes.
    #[error("a metadata key is longer than the store takes")]
    KeyTooLong,
    /// A metadata value is larger than the store takes.
    #[error("a metadata value is larger than the store takes")]
    ValueTooLarge,
}

/// Why the store is not there at the moment; the source of an `Unavailable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Absent {
    /// It was closed.
    #[error("the store is closed")]
    Closed,
    /// It is being opened again after a failure of the disk.
    #[error("the store is being opened again after a failure")]
    Reopening,
}

/// Why a change was not made, or is not known to have been.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("it was not made")]
    NotMade(#[source] Cause),
    #[error("it may have been made")]
    Unknown(#[source] Cause),
    #[error("there is no space")]
    Full,
    #[error(transparent)]
    Log(#[from] LogError),
}

impl WriteError {
    /// The same for another caller of the group: causes cannot be copied, so their words are.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::NotMade(cause) => Self::NotMade(words(cause)),
            Self::Unknown(cause) => Self::Unknown(words(cause)),
            Self::Full => Self::Full,
            Self::Log(error) => Self::NotMade(error.to_string().into()),
        }
    }
}

fn words(cause: &Cause) -> Cause {
    let mut text = cause.to_string();
    let mut source = cause.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text.into()
}

impl From<WriteError> for LogError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NotMade(cause) => Self::Unavailable(cause),
            WriteError::Unknown(cause) => Self::Indeterminate(cause),
            WriteError::Full => Self::Full,
            WriteError::Log(error) => error,
        }
    }
}

impl From<WriteError> for MetaError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NotMade(cause) => Self::Unavailable(cause),
            WriteError::Unknown(cause) => Self::Indeterminate(cause),
            WriteError::Full => Self::Full,
            WriteError::Log(error) => Self::Unavailable(Box::new(error)),
        }
    }
}

/// Why a read did not give anything.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the store is not there")]
    Absent(#[from] Absent),
    /// Stored bytes are damaged.
    #[error("stored bytes are damaged: {0}")]
    Damaged(#[source] Cause),
    /// The file system failed.
    #[error("the file system failed")]
    Disk(#[source] Cause),
}

impl ReadError {
    pub(crate) fn damaged(cause: impl Into<Cause>) -> Self {
        Self::Damaged(cause.into())
    }

    pub(crate) fn into_cause(self) -> Cause {
        Box::new(self)
    }
}

/// The database's error, told apart: are the bytes wrong, or was the disk not there.
impl From<fjall::Error> for ReadError {
    fn from(error: fjall::Error) -> Self {
        let disk = match &error {
            fjall::Error::Io(io) | fjall::Error::Storage(fjall::LsmError::Io(io)) => !is_damage(io),
            fjall::Error::Poisoned | fjall::Error::Locked => true,
            _ => false,
        };
        if disk { Self::Disk(Box::new(error)) } else { Self::Damaged(Box::new(error)) }
    }
}

/// Whether an error says that a file is not as it was written: it is cut, or not there.
pub(crate) fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | InvalidData | InvalidInput | NotFound)
}
