//! Structures at rest, each in its envelope. Opening never panics on foreign bytes, and a damaged one is never taken for none.

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate_core::time::Timestamp;
use tidegate_frame::envelope::{self, Kind};

use crate::error::StoreError;
use crate::object::{Expiry, Metadata, ObjectInfo, ObjectKey, Tier, Version};

/// Bytes of a large object that share a checksum: what is read whole before any of it is given on, and what a reader has in memory.
pub const BLOCK_BYTES: usize = 256 * 1_024;

/// Of intents, small bytes and the secret.
const SCHEMA: u16 = 1;
/// Of heads, uploads and parts: 1 had the checksums of all blocks in it.
const SCHEMA_OF_PLACES: u16 = 2;

/// A blob's name: 128 random bits. No two writes share one, and none says whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct BlobId(pub(crate) [u8; 16]);

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// An upload's name, without its proof: its place among its tenant's uploads, then 112 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct UploadId(pub(crate) [u8; 16]);

impl UploadId {
    pub(crate) fn new(place: u16, mut random: [u8; 16]) -> Self {
        random[..2].copy_from_slice(&place.to_be_bytes());
        Self(random)
    }

    pub(crate) fn place(self) -> u16 {
        let [first, second, ..] = self.0;
        u16::from_be_bytes([first, second])
    }
}

/// A blob that is a part of an object, or all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) blob: BlobId,
    /// The object's bytes in it, without their checksums.
    pub(crate) length: u64,
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
        self.clone().into_info(key)
    }

    pub(crate) fn into_info(self, key: ObjectKey) -> ObjectInfo {
        ObjectInfo {
            key,
            created: Timestamp::from_unix_ms(self.created_ms),
            expires: self.expires_ms().map(Timestamp::from_unix_ms),
            length: self.length,
            tier: self.tier(),
            version: self.version,
            metadata: self.metadata,
        }
    }

    pub(crate) fn seal(&self) -> Bytes {
        seal(Kind::Object, SCHEMA_OF_PLACES, self)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        open(Kind::Object, SCHEMA_OF_PLACES, "what is known of an object", bytes)
    }
}

/// Why a blob has an intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Intent {
    /// It is being written by this server's life; nothing refers to it yet. After the deadline it is given up.
    Writing { by: [u8; 16], deadline_ms: i64 },
    /// Nothing refers to it any more; it may be deleted from then on.
    Garbage { from_ms: i64 },
    /// As `Writing`, by an upload in parts of this name.
    Uploading { by: [u8; 16], deadline_ms: i64, upload: Box<str> },
    /// As `Garbage`; the upload of this name may be open yet.
    Abandoned { from_ms: i64, upload: Box<str> },
}

impl Intent {
    /// Of what nothing will ever refer to.
    pub(crate) fn garbage(from_ms: i64, upload: Option<Box<str>>) -> Self {
        match upload {
            None => Self::Garbage { from_ms },
            Some(upload) => Self::Abandoned { from_ms, upload },
        }
    }

    pub(crate) fn seal(&self) -> Bytes {
        seal(Kind::BlobIntent, SCHEMA, self)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        open(Kind::BlobIntent, SCHEMA, "a blob's intent", bytes)
    }
}

/// A large object that is being uploaded in parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upload {
    /// Its place is used again when it has ended.
    pub(crate) id: [u8; 16],
    pub(crate) tenant: Box<str>,
    pub(crate) usecase: Box<str>,
    pub(crate) scopes: Box<str>,
    pub(crate) key: Box<str>,
    pub(crate) metadata: Metadata,
    pub(crate) created_ms: i64,
}

impl Upload {
    pub(crate) fn seal(&self) -> Bytes {
        seal(Kind::Upload, SCHEMA_OF_PLACES, self)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        open(Kind::Upload, SCHEMA_OF_PLACES, "an upload", bytes)
    }
}

/// What the completion of an upload was answered, for those who ask again because the answer was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Completed {
    /// When it may be forgotten.
    pub(crate) until_ms: i64,
    pub(crate) created: bool,
    /// The object as it was made; where its bytes lie is not kept.
    pub(crate) head: Head,
}

impl Completed {
    pub(crate) fn seal(&self) -> Bytes {
        seal(Kind::Upload, SCHEMA_OF_PLACES, self)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        open(Kind::Upload, SCHEMA_OF_PLACES, "a completed upload", bytes)
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
        seal(Kind::Upload, SCHEMA_OF_PLACES, self)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        open(Kind::Upload, SCHEMA_OF_PLACES, "a part of an upload", bytes)
    }
}

pub(crate) fn seal_secret(secret: &[u8; 32]) -> Bytes {
    seal(Kind::Upload, SCHEMA, secret)
}

pub(crate) fn open_secret(bytes: &[u8]) -> Result<[u8; 32], StoreError> {
    open(Kind::Upload, SCHEMA, "the secret of upload ids", bytes)
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

fn seal<T: Serialize>(kind: Kind, schema: u16, value: &T) -> Bytes {
    envelope::seal(kind, schema, value).expect("what this crate stores is plain and below the envelope's bound")
}

fn open<T: DeserializeOwned>(kind: Kind, schema: u16, what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    envelope::open(kind, &[schema], bytes)
        .map_err(|error| StoreError::Corrupt { what: format!("{what}: {error}").into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            version: Version([1; 16]),
            place: Place::Cold(vec![Piece { blob: BlobId([2; 16]), length: 300_000 }]),
            length: 300_000,
            created_ms: 1_795_255_200_007,
            used_ms: 1_795_255_200_007,
            metadata: Metadata { content_type: Some("text/plain".into()), ..Metadata::default() },
        }
    }

    #[test]
    fn what_is_stored_is_pinned_to_the_byte() {
        let part = Part { version: Version([3; 16]), piece: Piece { blob: BlobId([4; 16]), length: 7 } };
        let upload = Upload {
            id: UploadId::new(258, [5; 16]).0,
            tenant: "t".into(),
            usecase: "u".into(),
            scopes: "_".into(),
            key: "k".into(),
            metadata: Metadata::default(),
            created_ms: 9,
        };
        let completed = Completed { until_ms: 10, created: true, head: head() };
        let garbage = Intent::Garbage { from_ms: 11 };
        let found: Vec<String> =
            [head().seal(), part.seal(), upload.seal(), completed.seal(), garbage.seal()].map(hex::encode).into();
        assert_eq!(found, PINNED);
        assert_eq!(Head::open(&head().seal()).unwrap(), head());
    }

    #[test]
    fn what_was_stored_before_checksums_moved_into_blobs_is_refused_and_not_guessed() {
        let old = envelope::seal(Kind::Object, 1, &head()).unwrap();
        let refused = Head::open(&old).unwrap_err();
        assert!(refused.to_string().contains("version 1, which this program does not read"), "{refused}");
    }

    const PINNED: [&str; 5] = [
        "54444754010d0002004d00000001010101010101010101010101010101010102020202020202020202020202020202fce0930400fce0930400fd0ed218fb43030000fd0ed218fb43030000010a746578742f706c61696e000000c2d61fa7",
        "54444754011000020021000000030303030303030303030303030303030404040404040404040404040404040407e209c757",
        "5444475401100002001d0000000102050505050505050505050505050501740175015f016b000000001288ac29e1",
        "5444475401100002004f000000140101010101010101010101010101010101010102020202020202020202020202020202fce0930400fce0930400fd0ed218fb43030000fd0ed218fb43030000010a746578742f706c61696e00000063752966",
        "54444754010f0001000200000001165c2c0018",
    ];
}
