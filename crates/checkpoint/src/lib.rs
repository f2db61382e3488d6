#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.

mod chunk;
pub mod claim;
pub mod collect;
pub mod coordinator;
mod entry;
pub mod error;
pub mod id;
pub mod job;
pub mod keyed;
mod log;
pub mod manifest;
pub mod pin;
pub mod read;
pub mod recover;
pub mod retention;
pub mod runtime;
pub mod save;
mod survey;
pub mod writer;

use tidegate_core::limit::Limit;

pub use claim::Mode;
pub use collect::Collected;
pub use coordinator::{Coordinator, Schedule};
pub use error::{AppendError, ClaimError, Damage, DamageKind, ReadError, StoreError};
pub use id::{CheckpointId, Digest, Generation, PackId};
pub use job::{CheckpointParts, Checkpoints, ClaimOutcome, Job, Listed, Page, Removed};
pub use keyed::{KeyedSnapshot, KeyedState};
pub use manifest::{Checkpoint, Draft, InvalidDraft, Manifest, Next, Parent, Positions};
pub use pin::Pinned;
pub use read::StateReader;
pub use recover::{Recovered, Recovery};
pub use retention::Retention;
pub use save::{Save, SaveStats};
pub use survey::Rejected;
pub use writer::{Settled, Writer, Written};

/// What may be chosen about the checkpoints of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// How many are kept, and for how long.
    pub retention: Retention,
    /// Bytes of a pack; the last chunk is not cut for it. Up to four packs are in memory while a checkpoint is saved.
    pub pack_bytes: usize,
    /// A save copies at most one in so many bytes of the state out of packs of which little is needed.
    pub repack_share: u64,
    /// Chunks that a manifest names itself; the lists of states beyond them lie in packs. About 40 bytes each: a manifest has at most 64 MiB.
    pub inline_chunks: usize,
    /// How long a reader in another process is honoured from when the collector first saw it.
    pub reader_ttl: std::time::Duration,
}

impl Default for Spec {
    /// 3 checkpoints, packs of 32 MiB, one in 256 bytes copied, readers for an hour.
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            pack_bytes: 32 * 1_024 * 1_024,
            repack_share: 256,
            inline_chunks: 32_768,
            reader_ttl: std::time::Duration::from_secs(3_600),
        }
    }
}

/// The bounds of this crate.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "checkpoint_kept_max",
        value: manifest::KEPT_MAX as u64,
        meaning: "Checkpoints and savepoints that are kept of one job; half of them may be savepoints, a further one is refused.",
    },
    Limit {
        name: "checkpoint_states_max",
        value: manifest::STATES_MAX as u64,
        meaning: "States of operators in one checkpoint; one with more is refused.",
    },
    Limit {
        name: "checkpoint_entries_max",
        value: manifest::ENTRIES_MAX as u64,
        meaning: "Sources, partitions of a source, counts, entries of metadata and sinks in one checkpoint, each; one with more is refused.",
    },
    Limit {
        name: "checkpoint_value_max_bytes",
        value: manifest::VALUE_MAX_BYTES as u64,
        meaning: "Bytes of an entry of metadata and of a sink's token in a checkpoint; a larger one is refused.",
    },
    Limit { name: "checkpoint_page_max", value: job::PAGE_MAX as u64, meaning: "Checkpoints on one page of a list." },
    Limit {
        name: "checkpoint_listed_max",
        value: log::LISTED_MAX as u64,
        meaning: "Objects of one folder of a job that are listed; with more, the job is refused until they are collected.",
    },
];
