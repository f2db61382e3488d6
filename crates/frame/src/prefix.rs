//! The prefix hash: the proof that a reader holds exactly the rows that were sent. It never sees line breaks as content and
//! never compares hashes in a time that depends on them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// SHA-256 over the row lines from row 0, each without its line break, in order. 64 hex digits on the wire. Comparison
/// takes the same time for every input.
#[derive(Clone, Copy)]
pub struct PrefixHash([u8; 32]);

/// Text that is not a prefix hash: not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a prefix hash is 64 hexadecimal digits")]
pub struct MalformedPrefixHash;

impl PrefixHash {
    /// The hash with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hex digits, either case.
    pub fn parse(text: &str) -> Result<Self, MalformedPrefixHash> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| MalformedPrefixHash)?;
        Ok(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PrefixHash {
    type Err = MalformedPrefixHash;

    fn from_str(text: &str) -> Result<Self, MalformedPrefixHash> {
        Self::parse(text)
    }
}

impl PartialEq for PrefixHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PrefixHash {}

impl fmt::Display for PrefixHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PrefixHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrefixHash({self})")
    }
}

impl Serialize for PrefixHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PrefixHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Hashes row lines as they pass. A clone goes on from the same prefix on its own: keep one at a verified prefix, and a
/// resume from there hashes only what follows.
#[derive(Clone, Default)]
pub struct PrefixHasher {
    hash: Sha256,
    rows: u64,
}

impl PrefixHasher {
    /// A hasher at row 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many rows went in.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes one row: its line without the line break.
    pub fn line(&mut self, line_without_newline: &[u8]) {
        self.hash.update(line_without_newline);
        self.rows += 1;
    }

    /// Takes the lines of a chunk. Each line break ends a row and is not hashed itself. A piece may end inside a line: the
    /// next piece goes on there, and the row counts when its line break comes.
    pub fn lines(&mut self, chunk_bytes: &[u8]) {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', chunk_bytes) {
            self.hash.update(&chunk_bytes[start..end]);
            self.rows += 1;
            start = end + 1;
        }
        self.hash.update(&chunk_bytes[start..]);
    }

    /// The hash of what went in so far; the hasher goes on.
    #[must_use]
    pub fn digest(&self) -> PrefixHash {
        PrefixHash(self.hash.clone().finalize().into())
    }
}

impl fmt::Debug for PrefixHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrefixHasher").field("rows", &self.rows).finish_non_exhaustive()
    }
}
