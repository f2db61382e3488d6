//! Structures at rest, each in its envelope. Opening never panics on foreign bytes, and a damaged one is never taken for none.

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate_core::time::Timestamp;
use tidegate_frame::envelope::{self, Kind};

use crate::error::StoreError;
use crate::object::{Expiry, Metadata, ObjectInfo, ObjectKey, Tier, Version};

/// Bytes of a blob that share a checksum: what is read whole before any of it is given on.
pub const BLOCK_BYTES: usize = 1_024 * 1_024;

const SCHEMA: u16 = 1;

/// A blob's name: 128 random bits. No two writes share one, and none says whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct BlobId(pub(crate) [u8; 16]);

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// An upload's name, without its proof.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct UploadId(pub(crate) [u8; 16]);

/// A blob that is a part of an object, or all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) blob: BlobId,
    pub(crate) length: u64,
    /// The CRC-32C of each [`BLOCK_BYTES`], the last one shorter.
    pub(crate) sums: Vec<u32>,
}

/// Where an object's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// Beside the head, under the body's key.
    Hot,
    /// In blobs, one after the other.
    Cold(Vec<Piece>),
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) version: Version,
    pub(crate) place: Place,
    pub(crate) length: u64,
    pub(crate) created_ms: i64,
    /// When it was last noted to be used.
    pub(crate) used_ms: i64,
    pub(crate) metadata: Metadata,
}

impl Head {
    pub(crate) fn tier(&self) -> Tier {
        match self.place {
            Place::Hot => Tier::Hot,
            Place::Cold(_) => Tier::Cold,
        }
    }

    /// When it ends; `None` = never.
    pub(crate) fn expires_ms(&self) -> Option<i64> {
        let after = |from: i64, time: std::time::Duration| {
            from.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
        };
        match self.metadata.expiry {
            Expiry::Never => None,
            Expiry::TimeToLive(time) => Some(after(self.created_ms, time)),
            Expiry::TimeToIdle(time) => Some(after(self.used_ms, time)),
        }
    }

    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_ms().is_some_and(|end| now.unix_ms() >= end)
    }

    /// Whether a use at this time is worth writing down.
    pub(crate) fn renews(&self, now: Timestamp) -> bool {
        const DAY_MS: u128 = 24 * 3_600 * 1_000;
        let Expiry::TimeToIdle(time) = self.metadata.expiry else { return false };
        let pause = i64::try_from((time.as_millis() / 4).min(DAY_MS)).unwrap_or(i64::MAX);
        now.unix_ms().saturating_sub(self.used_ms) >= pause
    }

    pub(crate) fn info(&self, key: ObjectKey) -> ObjectInfo {
        ObjectInfo {
            key,
            metadata: self.metadata.clone(),
            created: Timestamp::from_unix_ms(self.created_ms),
            expires: self.expires_ms().map(Timestamp::from_unix_ms),
            length: self.length,
            tier: self.tier(),
            version: self.version,
        }
    }

    pub(crate) fn seal(&self) -> Bytes {
        seal(Kind::Object, self)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        open(Kind::Object, "what is known of an object", bytes)
    }
}

/// Why a blob has an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Intent {
    /// It is being written by this server's life; nothing refers to it yet. After the deadline it is given up.
    Writing { by: [u8; 16], deadline_ms: i64 },
    /// Nothing refers to it any more; it may be deleted from then on.
    Garbage { from_ms: i64 },
}

impl Intent {
    pub(crate) fn seal(&self) -> Bytes {
        seal(Kind::BlobIntent, self)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        open(Kind::BlobIntent, "a blob's intent", bytes)
    }
}

/// A large object that is being uploaded in parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upload {
    pub(crate) tenant: Box<str>,
    pub(crate) usecase: Box<str>,
    pub(crate) scopes: Box<str>,
    pub(crate) key: Box<str>,
    pub(crate) metadata: Metadata,
    pub(crate) created_ms: i64,
}

impl Upload {
    pub(crate) fn seal(&self) -> Bytes {
        seal(Kind::Upload, self)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        open(Kind::Upload, "an upload", bytes)
    }
}

/// One part of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) version: Version,
    pub(crate) piece: Piece,
}

impl Part {
    pub(crate) fn seal(&self) -> Bytes {
        seal(Kind::Upload, self)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        open(Kind::Upload, "a part of an upload", bytes)
    }
}

pub(crate) fn seal_secret(secret: &[u8; 32]) -> Bytes {
    seal(Kind::Upload, secret)
}

pub(crate) fn open_secret(bytes: &[u8]) -> Result<[u8; 32], StoreError> {
    open(Kind::Upload, "the secret of upload ids", bytes)
}

/// A small object's bytes with the write that they are of.
pub(crate) fn seal_body(version: Version, payload: &[u8]) -> Bytes {
    envelope::seal_bytes(Kind::ObjectBody, SCHEMA, &[&version.0, payload])
        .expect("what is hot is smaller than an envelope may be")
}

/// The bytes, and which write they are of.
pub(crate) fn open_body(sealed: &Bytes) -> Result<(Version, Bytes), StoreError> {
    let damaged = |error: &dyn fmt::Display| StoreError::Corrupt { what: format!("an object's bytes: {error}").into() };
    let payload = envelope::open_bytes(Kind::ObjectBody, &[SCHEMA], sealed).map_err(|error| damaged(&error))?;
    let (version, payload) = payload.split_first_chunk().ok_or_else(|| damaged(&"too short"))?;
    Ok((Version(*version), sealed.slice_ref(payload)))
}

fn seal<T: Serialize>(kind: Kind, value: &T) -> Bytes {
    envelope::seal(kind, SCHEMA, value).expect("what this crate stores is plain and below the envelope's bound")
}

fn open<T: DeserializeOwned>(kind: Kind, what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    envelope::open(kind, &[SCHEMA], bytes)
        .map_err(|error| StoreError::Corrupt { what: format!("{what}: {error}").into() })
}
