//! What a checkpoint says: identity, states, positions, watermark, counts, metadata, what is to be committed. The same content always gives
//! the same bytes. It never holds the bytes of a state.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_core::Timestamp;
use tidegate_core::id::{Epoch, Name};
use tidegate_core::position::{Offset, Partition, SourcePosition};

use crate::id::{CheckpointId, Digest, Generation, PackId};

/// States that one checkpoint may have.
pub const STATES_MAX: usize = 4_096;
/// Sources, partitions of one source, counts, entries of metadata and sinks that one checkpoint may have, each.
pub const ENTRIES_MAX: usize = 65_536;
/// Bytes of one entry of metadata, and of the token of one sink.
pub const VALUE_MAX_BYTES: usize = 1_048_576;
/// Checkpoints that are kept of one job.
pub const KEPT_MAX: usize = 1_024;

/// The NEXT record to read of a partition: everything before it is in the state, nothing from it on is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// By its offset.
    Offset(Offset),
    /// In the words of a data system outside, such as an LSN.
    Source(SourcePosition),
}

/// The positions of all sources: by source, by partition.
pub type Positions = BTreeMap<Name, BTreeMap<Partition, Next>>;

/// Where some bytes of a state lie, and what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    /// The SHA-256 of the bytes: what they are called, and what a verification compares.
    pub digest: Digest,
    /// The XXH3-64 of the bytes: what a recovery compares, at the speed of memory.
    pub sum: u64,
    /// In which pack.
    pub pack: PackId,
    /// From which byte of it.
    pub offset: u32,
    /// How many bytes; at least 1.
    pub length: u32,
}

/// The chunks of a segment, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkList {
    /// Here.
    Inline(Vec<ChunkRef>),
    /// In parts that lie in packs as chunks do, each an envelope of its own. For states of many gigabytes.
    Indexed {
        /// How many chunks there are in all.
        count: u64,
        /// The parts of the list.
        parts: Vec<ChunkRef>,
    },
}

/// A run of bytes of a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// How many bytes.
    pub length: u64,
    /// The SHA-256 over the digests of its chunks, in order.
    pub digest: Digest,
    /// Its chunks.
    pub chunks: ChunkList,
}

/// The state of one operator. An opaque one has one segment; a keyed one has its base and what changed since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRef {
    /// What its segments mean, to who wrote them: 0 = opaque bytes, 1 = [`KeyedState`](crate::keyed::KeyedState).
    pub form: u8,
    /// Its segments, in order; the number groups them (a bucket of keys).
    pub segments: Vec<(u32, Segment)>,
}

impl StateRef {
    /// How many bytes its segments have.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.segments.iter().map(|(_, segment)| segment.length).fold(0, u64::saturating_add)
    }
}

/// A checkpoint before this one that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// In which slot.
    pub generation: Generation,
    /// Of which term.
    pub epoch: Epoch,
    /// The SHA-256 of the slot's bytes: what lies there with another digest is not that checkpoint.
    pub digest: Digest,
    /// When it was made.
    #[serde(with = "unix_ms")]
    pub created: Timestamp,
    /// Its name, if it is a savepoint.
    pub savepoint: Option<Name>,
}

/// What a checkpoint says, without its identity, which stands around it in its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// When it was made.
    #[serde(with = "unix_ms")]
    pub created: Timestamp,
    /// The states of the operators, by name.
    pub states: BTreeMap<Name, StateRef>,
    /// The packs that the states refer to, with their lengths in bytes.
    pub packs: BTreeMap<PackId, u64>,
    /// The next to read of every source.
    pub positions: Positions,
    /// No record of an earlier event time is expected; in milliseconds since 1970. Never goes back.
    #[serde(with = "optional_unix_ms")]
    pub watermark: Option<Timestamp>,
    /// What was counted, by name.
    pub counts: BTreeMap<Name, u64>,
    /// What somebody wanted to be kept with it.
    pub metadata: BTreeMap<Name, Box<str>>,
    /// What each two-phase sink is to commit, now that this checkpoint is durable: opaque tokens.
    pub pending: BTreeMap<Name, Vec<u8>>,
    /// Its name, if it is a savepoint.
    pub savepoint: Option<Name>,
    /// The checkpoints before it that are kept beside it, newest first.
    pub parents: Vec<Parent>,
}

impl Manifest {
    /// Bytes of state that it refers to.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.states.values().map(StateRef::length).fold(0, u64::saturating_add)
    }
}

/// A checkpoint: what it is called and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// What it is called.
    pub id: CheckpointId,
    /// What it says.
    pub manifest: Manifest,
    /// The SHA-256 of the bytes of its slot.
    pub digest: Digest,
    /// How many bytes its slot has.
    pub manifest_bytes: u64,
}

impl Checkpoint {
    pub(crate) fn parent(&self) -> Parent {
        Parent {
            generation: self.id.generation,
            epoch: self.id.epoch,
            digest: self.digest,
            created: self.manifest.created,
            savepoint: self.manifest.savepoint.clone(),
        }
    }
}

/// What a processor gives besides its states when it makes a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    /// The next to read of every source.
    pub positions: Positions,
    /// The watermark; not before the last checkpoint's.
    pub watermark: Option<Timestamp>,
    /// Counts.
    pub counts: BTreeMap<Name, u64>,
    /// Metadata.
    pub metadata: BTreeMap<Name, Box<str>>,
    /// Tokens of two-phase sinks.
    pub pending: BTreeMap<Name, Vec<u8>>,
    /// A name makes it a savepoint: it is kept until it is removed.
    pub savepoint: Option<Name>,
}

/// Why a draft cannot become a checkpoint. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDraft {
    /// The watermark would go back.
    #[error("the watermark would go back from {from} to {}", to.map_or_else(|| "none".to_owned(), |to| to.to_string()))]
    WatermarkWentBack {
        /// The last checkpoint's.
        from: Timestamp,
        /// The draft's.
        to: Option<Timestamp>,
    },
    /// There is a savepoint of this name.
    #[error("there is a savepoint {name:?} already, generation {generation}")]
    SavepointExists {
        /// Its name.
        name: Name,
        /// Where it is.
        generation: Generation,
    },
    /// As many checkpoints and savepoints are kept as may be.
    #[error("{} savepoints are kept, which is the most that there may be", KEPT_MAX / 2)]
    TooManySavepoints,
    /// There is more of something than a checkpoint may have.
    #[error("{actual} {what}: a checkpoint has at most {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        actual: usize,
        /// The bound.
        limit: usize,
    },
    /// A value has more bytes than it may have.
    #[error("a value of {what} has {actual} bytes, at most {limit} are taken")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        actual: usize,
        /// The bound.
        limit: usize,
    },
}

impl Draft {
    /// Whether it can follow `last`.
    pub(crate) fn check(&self, last: Option<&Checkpoint>) -> Result<(), InvalidDraft> {
        let counts = [
            ("sources", self.positions.len()),
            ("partitions", self.positions.values().map(BTreeMap::len).max().unwrap_or(0)),
            ("counts", self.counts.len()),
            ("metadata", self.metadata.len()),
            ("sinks", self.pending.len()),
        ];
        for (what, actual) in counts {
            if actual > ENTRIES_MAX {
                return Err(InvalidDraft::TooMany { what, actual, limit: ENTRIES_MAX });
            }
        }
        let metadata = self.metadata.values().map(|value| ("metadata", value.len()));
        for (what, actual) in metadata.chain(self.pending.values().map(|token| ("pending", token.len()))) {
            if actual > VALUE_MAX_BYTES {
                return Err(InvalidDraft::TooLarge { what, actual, limit: VALUE_MAX_BYTES });
            }
        }
        let Some(last) = last else { return Ok(()) };
        if let Some(from) = last.manifest.watermark
            && self.watermark.is_none_or(|to| to < from)
        {
            return Err(InvalidDraft::WatermarkWentBack { from, to: self.watermark });
        }
        if let Some(name) = &self.savepoint {
            let kept = || last.manifest.parents.iter().cloned().chain([last.parent()]);
            if let Some(same) = kept().find(|parent| parent.savepoint.as_ref() == Some(name)) {
                return Err(InvalidDraft::SavepointExists { name: name.clone(), generation: same.generation });
            }
            if kept().filter(|parent| parent.savepoint.is_some()).count() >= KEPT_MAX / 2 {
                return Err(InvalidDraft::TooManySavepoints);
            }
        }
        Ok(())
    }
}

/// Times in milliseconds: their own form is a text that is cut below milliseconds only when it is read.
mod unix_ms {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use tidegate_core::Timestamp;

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.unix_ms())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        Ok(Timestamp::from_unix_ms(i64::deserialize(deserializer)?))
    }
}

mod optional_unix_ms {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use tidegate_core::Timestamp;

    #[allow(clippy::ref_option, reason = "the signature is serde's")]
    pub(super) fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(Timestamp::unix_ms).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?.map(Timestamp::from_unix_ms))
    }
}
