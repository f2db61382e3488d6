//! The port to metadata: small values under ordered keys, changed by compare-and-swap. A mismatch is a value, not an
//! error, and "did not happen" and "may have happened" are different answers.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

/// A revision of an entry: grows with every change, never comes back, even if the entry is deleted in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// The metadata store.
#[async_trait]
pub trait MetaStore: Send + Sync + 'static {
    /// One entry, or `None`.
    async fn get(&self, key: &[u8]) -> Result<Option<MetaEntry>, MetaError>;

    /// Entries in key order, bounded.
    async fn scan(&self, range: MetaRange) -> Result<Vec<MetaEntry>, MetaError>;

    /// Makes all swaps in one atomic step, or none.
    async fn compare_and_swap(
        &self,
        swaps: Vec<CompareAndSwap>,
        durability: Durability,
    ) -> Result<SwapOutcome, MetaError>;

    /// Entries under `prefix` as they change, newest state only. It may wake too often, never too seldom.
    async fn watch(&self, prefix: Bytes) -> Result<MetaWatch, MetaError>;
}

/// Changes of entries.
pub type MetaWatch = BoxStream<'static, MetaEntry>;

/// A key with its value and revision; a deleted entry, where a watch reports one, has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaEntry {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Option<Bytes>,
    /// The revision of the last change.
    pub revision: Revision,
}

/// Which entries to scan: from `from` (inclusive) while the key begins with `prefix`, at most `limit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaRange {
    /// What keys begin with.
    pub prefix: Bytes,
    /// Where to begin; before the prefix = at its first key.
    pub from: Bytes,
    /// How many at most.
    pub limit: usize,
}

/// A conditional change of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompareAndSwap {
    /// Which.
    pub key: Bytes,
    /// The revision that it must have; `None` = it must be absent.
    pub expected: Option<Revision>,
    /// What to do.
    pub swap: Swap,
}

/// What a swap does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// Sets the value.
    Put(Bytes),
    /// Sets the value to these bytes followed by where the records of the same append came to lie, for each of its partitions
    /// in their order (of several streams: one stream's after the other's): the partition as `u32`, the first offset and the offset after the last as `u64`, all big-endian. So
    /// state that is stored with an append can say where it lies. In a swap without an append nothing follows the bytes.
    PutWithRanges(Bytes),
    /// Removes the entry.
    Delete,
    /// Changes nothing: only the condition counts.
    Check,
}

/// What came of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwapOutcome {
    /// All were made; the new revisions, in order (a deleted entry's is the revision of its deletion).
    Swapped(Vec<Revision>),
    /// A condition did not hold: nothing happened.
    Mismatch {
        /// Which swap, by its place.
        index: usize,
        /// What is there; `None` = nothing.
        current: Option<MetaEntry>,
    },
}

/// By when a change must be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// On stable storage when answered.
    Fsync,
    /// Handed to the operating system when answered: survives the process, not the machine.
    Os,
}

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// It certainly did not happen; try again.
    #[error("the metadata store is not available; nothing was changed")]
    Unavailable(#[source] super::query::Cause),
    /// It may have happened: read before trying again.
    #[error("the metadata store did not answer; the change may have happened")]
    Indeterminate(#[source] super::query::Cause),
    /// There is no space; reads go on.
    #[error("the metadata store's disk is full; nothing was changed")]
    Full,
    /// A stored value is damaged.
    #[error("the value under a key of {key_bytes} bytes is damaged")]
    Corrupt {
        /// The key's length: the key itself may be somebody's name.
        key_bytes: usize,
    },
}
