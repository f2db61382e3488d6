//! What is stored of a source: one entry with its position and whose term it is, and one for each of its streams. It never holds records:
//! those that a stream refused lie in a log of their own.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_core::id::{Epoch, Name};
use tidegate_core::port::{CompareAndSwap, Resume, Revision, StreamId, Swap};
use tidegate_core::position::SourcePosition;
use tidegate_frame::envelope::Kind;

use crate::error::StoreError;
use crate::handle::{seal, unseal};
use crate::key::Incarnation;

const VERSION: u16 = 1;

/// One process, for as long as it lives: 128 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Holder(pub(crate) [u8; 16]);

/// A source's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredSource {
    /// Grows with each holder: an earlier one's appends carry a revision that is no more.
    pub(crate) epoch: u64,
    pub(crate) holder: Holder,
    /// Grows with each change: says whether one that may have happened did.
    pub(crate) beat: u64,
    /// Up to where everything is durable here; `None` = the first copy has not begun.
    pub(crate) position: Option<Box<str>>,
    /// What the source gets back with it.
    pub(crate) state: Vec<u8>,
    /// How many records were appended for the source so far.
    pub(crate) records: u64,
    /// The source no longer has what comes after the position; a person must say how to go on.
    pub(crate) gap: Option<StoredGap>,
}

/// A gap that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredGap {
    pub(crate) from: Box<str>,
    pub(crate) reason: Box<str>,
    pub(crate) since_ms: i64,
}

impl StoredSource {
    pub(crate) fn first(holder: Holder) -> Self {
        Self { epoch: 0, holder, beat: 0, position: None, state: Vec::new(), records: 0, gap: None }
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        unseal(Kind::Source, VERSION, "a source's position", bytes)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch::new(self.epoch)
    }

    /// Where to go on.
    pub(crate) fn resume(&self) -> Option<Resume> {
        let position = SourcePosition(self.position.clone()?);
        Some(Resume { position, state: Bytes::copy_from_slice(&self.state) })
    }

    /// Puts this entry in the place of the one with this revision.
    pub(crate) fn swap(&self, key: &Bytes, expected: Option<Revision>) -> CompareAndSwap {
        CompareAndSwap { key: key.clone(), expected, swap: Swap::Put(seal(Kind::Source, VERSION, self)) }
    }
}

/// What is known of one stream of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredTable {
    /// The life of the stream that its records went to last. `None` = to none yet, so the stream is made where it is missing.
    pub(crate) life: Option<Incarnation>,
    /// Where the records lie that the stream refused.
    pub(crate) spill: Option<StoredSpill>,
}

/// A log of records that a stream refused. It stays when it is empty, for the next time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredSpill {
    pub(crate) log: Incarnation,
    /// The first record that the stream has not got.
    pub(crate) next: u64,
    /// The source's position before the first of them, for people.
    pub(crate) after: Option<Box<str>>,
}

impl StoredTable {
    pub(crate) fn open(bytes: &[u8]) -> Result<Self, StoreError> {
        unseal(Kind::SourceStream, VERSION, "a source's stream", bytes)
    }

    pub(crate) fn swap(&self, key: &Bytes, expected: Option<Revision>) -> CompareAndSwap {
        CompareAndSwap { key: key.clone(), expected, swap: Swap::Put(seal(Kind::SourceStream, VERSION, self)) }
    }
}

impl StoredSpill {
    /// What the log calls it: a name that no stream's entry knows, so nobody reads it but the source.
    pub(crate) fn log_id(&self, tenant: &Name) -> StreamId {
        let stream = Name::new(hex::encode(self.log.0)).expect("32 hexadecimal digits are a name");
        StreamId { tenant: tenant.clone(), stream }
    }
}
