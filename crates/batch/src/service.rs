//! Objects over a metadata store and a blob store. Every change of an object is one compare-and-swap; what a crash leaves half done
//! stands in a durable record, from which [`ObjectService::recover`] and [`ObjectService::sweep`] finish it. It never answers a write
//! before it is durable as asked, and never gives a byte that differs from what was written.

mod commit;
mod get;
mod list;
mod put;
mod sweep;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_core::limit::Limit;
use tidegate_core::port::{Durability, Entropy, MetaEntry, MetaStore, Revision};
use tidegate_core::time::{Clock, Timestamp};
use tokio::sync::Semaphore;

use crate::blob::{Budget, ColdStore};
use crate::error::StoreError;
use crate::key;
use crate::object::{Collection, METADATA_MAX_BYTES, ObjectKey, PATH_MAX_BYTES};
use crate::operation::INSERT_MAX_BYTES;
use crate::stored::{Head, Place};
use crate::tier::Current;

pub use get::{ByteRange, Get, Got, Object, ObjectBytes};
pub use list::{LIST_MAX, ListRequest, Listing};
pub use put::{Put, Written};
pub use sweep::{SweepPlace, Swept};
pub use upload::{NamedPart, PART_MAX_COUNT, PartWritten, UploadToken};

/// The bounds of this module.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "object_path_max_bytes",
        value: PATH_MAX_BYTES as u64,
        meaning: "An object's scopes, and its key; beyond it 400 invalid_name.",
    },
    Limit {
        name: "object_metadata_max_bytes",
        value: METADATA_MAX_BYTES as u64,
        meaning: "An object's metadata, names and values together; beyond it 413 metadata_too_large.",
    },
    Limit {
        name: "object_insert_max_bytes",
        value: INSERT_MAX_BYTES as u64,
        meaning: "An insert in a batch; beyond it the part fails with 413 object_too_large.",
    },
    Limit {
        name: "object_write_buffer_bytes",
        value: WRITE_BUFFER_BYTES,
        meaning: "Bytes that all writes of large objects hold in memory, of which one tenant's hold at most as many as they leave free; after 10 s of waiting 429 write_capacity_exhausted.",
    },
    Limit {
        name: "object_blob_delete_max_count",
        value: sweep::BLOBS_AT_ONCE as u64,
        meaning: "Blobs that are being deleted at one time; one that takes over 30 s goes on beside the sweep, which comes back to it.",
    },
    Limit { name: "object_list_max", value: LIST_MAX as u64, meaning: "Objects of one page of a listing." },
    Limit {
        name: "object_part_max_count",
        value: PART_MAX_COUNT as u64,
        meaning: "Parts of one upload; beyond it 400 upload_part_number.",
    },
];

/// [`ObjectSpec::write_buffer_bytes`] unless another is given.
const WRITE_BUFFER_BYTES: u64 = 256 * 1_024 * 1_024;
/// The most that [`ObjectSpec::upload_max_open`] can be.
const UPLOADS_MAX: u64 = 65_536;
/// Attempts of a change that others overtake.
const ATTEMPTS_MAX: usize = 64;

/// What the objects are built from.
pub struct ObjectParts {
    /// Heads, small bytes and what must not be forgotten.
    pub meta: Arc<dyn MetaStore>,
    /// Large bytes: any `object_store`, by `into()`.
    pub cold: ColdStore,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// By when a write is answered.
    pub durability: Durability,
    /// Bounds.
    pub spec: ObjectSpec,
}

/// Bounds of the objects.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectSpec {
    /// Objects up to this size lie in the metadata store; at most 8 MiB.
    pub hot_max_bytes: u64,
    /// The largest object, and the largest part of one.
    pub object_max_bytes: u64,
    /// How long the bytes of a replaced or deleted object are kept for those who are reading them.
    pub grace: Duration,
    /// How long one write of a large object may take, from its first byte beyond `hot_max_bytes`; then it is given up.
    pub write_max: Duration,
    /// How long an upload in parts may take.
    pub upload_max: Duration,
    /// Uploads in parts that one tenant has open at one time; at most 65,536.
    pub upload_max_open: u64,
    /// How long the answer of a completed upload is remembered, for a client that lost it.
    pub completed_keep: Duration,
    /// Bytes that all writes of large objects hold in memory together, beyond the first `hot_max_bytes` of each, in parts of 8 MiB; at
    /// least one. Those of one tenant hold at most as much as they leave free, so that slow senders keep nobody else from writing.
    pub write_buffer_bytes: u64,
    /// How long a write waits for its share of them; then it is refused.
    pub write_wait: Duration,
}

impl Default for ObjectSpec {
    fn default() -> Self {
        Self {
            hot_max_bytes: 1_024 * 1_024,
            object_max_bytes: 1 << 40,
            grace: Duration::from_secs(60),
            write_max: Duration::from_secs(24 * 3_600),
            upload_max: Duration::from_secs(7 * 24 * 3_600),
            upload_max_open: 1_000,
            completed_keep: Duration::from_secs(3_600),
            write_buffer_bytes: WRITE_BUFFER_BYTES,
            write_wait: Duration::from_secs(10),
        }
    }
}

pub(crate) struct Core {
    pub(crate) meta: Arc<dyn MetaStore>,
    pub(crate) cold: ColdStore,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) durability: Durability,
    pub(crate) spec: ObjectSpec,
    /// What large writes may hold in memory.
    pub(crate) budget: Budget,
    /// Deletions of blobs that are under way.
    pub(crate) deletions: Arc<Semaphore>,
    /// Tenants that have no place for another upload.
    pub(crate) full: upload::Full,
    /// Damage that was told.
    pub(crate) damaged: sweep::Damaged,
    /// This life of the server: what others left half done is told from what this one is doing.
    pub(crate) life: [u8; 16],
}

/// The objects. Cheap to clone.
#[derive(Clone)]
pub struct ObjectService {
    pub(crate) core: Arc<Core>,
}

impl ObjectService {
    /// Over these stores. Call [`recover`](Self::recover) before the first write where nobody else uses them, and
    /// [`sweep`](Self::sweep) now and then.
    pub fn new(parts: ObjectParts) -> Result<Self, StoreError> {
        let ObjectParts { meta, cold, clock, entropy, durability, mut spec } = parts;
        spec.hot_max_bytes = spec.hot_max_bytes.min(8 * 1_024 * 1_024);
        spec.upload_max_open = spec.upload_max_open.min(UPLOADS_MAX);
        let mut life = [0; 16];
        entropy.fill(&mut life)?;
        let budget = Budget::new(spec.write_buffer_bytes, spec.write_wait, Arc::clone(&clock));
        let deletions = Arc::new(Semaphore::new(sweep::BLOBS_AT_ONCE));
        let (full, damaged) = Default::default();
        let core = Core { meta, cold, clock, entropy, durability, spec, budget, deletions, full, damaged, life };
        Ok(Self { core: Arc::new(core) })
    }

    /// Bytes that writes of large objects hold in memory now, against [`ObjectSpec::write_buffer_bytes`].
    #[must_use]
    pub fn write_buffer_held_bytes(&self) -> u64 {
        self.core.budget.held_bytes()
    }

    /// Its bounds.
    #[must_use]
    pub fn spec(&self) -> &ObjectSpec {
        &self.core.spec
    }
}

impl std::fmt::Debug for ObjectService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectService").field("spec", &self.core.spec).finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.timestamp()
    }

    pub(crate) fn draw(&self) -> Result<[u8; 16], StoreError> {
        let mut bits = [0; 16];
        self.entropy.fill(&mut bits)?;
        Ok(bits)
    }

    pub(crate) fn garbage_from_ms(&self) -> i64 {
        let grace = i64::try_from(self.spec.grace.as_millis()).unwrap_or(i64::MAX);
        self.now().unix_ms().saturating_add(grace)
    }

    /// What lies under a head's key.
    pub(crate) async fn head(&self, key: &Bytes) -> Result<Option<(Head, Revision)>, StoreError> {
        match self.meta.get(key).await? {
            Some(MetaEntry { value: Some(value), revision, .. }) => Ok(Some((Head::open(&value)?, revision))),
            _ => Ok(None),
        }
    }

    /// The same with what a change must know.
    pub(crate) async fn current(&self, head_key: &Bytes) -> Result<Current, StoreError> {
        let head = self.head(head_key).await?;
        let body = match &head {
            Some((Head { place: Place::Hot, .. }, _)) => {
                self.meta.get(&key::body_of(head_key)).await?.map(|entry| entry.revision)
            }
            _ => None,
        };
        Ok(Current { head, body })
    }
}

/// An object's place in the metadata store.
pub(crate) fn head_key(collection: &Collection, object: &ObjectKey) -> Bytes {
    key::head(collection, object)
}
