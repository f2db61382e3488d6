//! The operations of a batch, and what comes of each. It runs none.

use bytes::Bytes;
use tidegate_core::principal::Scope;

use crate::object::{Metadata, ObjectKey};

/// The most bytes of an insert in a batch: larger objects have requests of their own.
pub const INSERT_MAX_BYTES: usize = 1_024 * 1_024;

/// One operation on one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Writes an object; without a key the server makes one.
    Insert {
        /// Which.
        key: Option<ObjectKey>,
        /// What is said of it.
        metadata: Metadata,
        /// Its bytes, at most [`INSERT_MAX_BYTES`].
        payload: Bytes,
    },
    /// Reads an object.
    Get {
        /// Which.
        key: ObjectKey,
    },
    /// What is known of an object.
    Head {
        /// Which.
        key: ObjectKey,
    },
    /// Removes an object.
    Delete {
        /// Which.
        key: ObjectKey,
    },
}

/// What an operation does, without its particulars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OperationKind {
    /// Writes.
    Insert,
    /// Reads.
    Get,
    /// Reads what is known.
    Head,
    /// Removes.
    Delete,
}

impl OperationKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Insert, Self::Get, Self::Head, Self::Delete];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Get => "get",
            Self::Head => "head",
            Self::Delete => "delete",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// What a caller must be allowed to.
    #[must_use]
    pub const fn permission(self) -> Scope {
        match self {
            Self::Insert => Scope::ObjectWrite,
            Self::Get | Self::Head => Scope::ObjectRead,
            Self::Delete => Scope::ObjectDelete,
        }
    }
}

impl Operation {
    /// What it does.
    #[must_use]
    pub const fn kind(&self) -> OperationKind {
        match self {
            Self::Insert { .. } => OperationKind::Insert,
            Self::Get { .. } => OperationKind::Get,
            Self::Head { .. } => OperationKind::Head,
            Self::Delete { .. } => OperationKind::Delete,
        }
    }

    /// On which object; `None` = the server will make a key.
    #[must_use]
    pub const fn key(&self) -> Option<&ObjectKey> {
        match self {
            Self::Insert { key, .. } => key.as_ref(),
            Self::Get { key } | Self::Head { key } | Self::Delete { key } => Some(key),
        }
    }

    /// What a caller must be allowed to.
    #[must_use]
    pub const fn permission(&self) -> Scope {
        self.kind().permission()
    }

    /// Bytes that it brings along.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Self::Insert { payload, .. } => payload.len() as u64,
            Self::Get { .. } | Self::Head { .. } | Self::Delete { .. } => 0,
        }
    }
}
