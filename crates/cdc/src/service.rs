//! The streams of all tenants over the log and the metadata store. One canonical identity a stream: every door (records, groups,
//! Durable Streams) comes through here. It keeps no record itself and never answers before what it says is durable.

mod count;
mod create;
mod publish;
mod ready;
mod remove;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lru::LruCache;
use parking_lot::Mutex;
use tidegate_core::id::Name;
use tidegate_core::limit::Limit;
use tidegate_core::port::{
    ChangeLog, CompareAndSwap, Durability, Entropy, MetaRange, MetaStore, PartitionBounds, StreamId, Swap, Trim,
};
use tidegate_core::position::Offset;
use tidegate_core::principal::{Owner, Principal};
use tidegate_core::{Clock, Timestamp};
use tidegate_frame::envelope::Kind;
use tidegate_lease::capacity::{Capacity, CapacityBounds};
use tidegate_lease::frozen::SettingsCell;

use crate::error::{ReadError, StoreError, StreamError};
use crate::feed::Selection;
use crate::handle::{StoredWatermark, StreamHandle, unseal};
use crate::key;
use crate::merge::positions_after;
use crate::reader::StreamReader;
use crate::spec::{StreamMeta, StreamSpec};

pub(crate) use count::TenantCounts;
pub use create::CreatedStream;
pub(crate) use create::draw;
pub(crate) use publish::Extra;
pub use publish::{LateRecord, PublishRequest, Published};
pub use ready::Readiness;

/// Streams that are kept open at one time; beyond it the one that was used least lately is read again when needed.
pub(crate) const HANDLES_MAX: usize = 16_384;
/// How often a change is tried again that others overtook.
pub(crate) const ATTEMPTS_MAX: usize = 16;
/// Entries of the metadata store that are read or removed at a time.
pub(crate) const SCAN_PAGE: usize = 1_000;

/// The bounds of this crate that cannot be changed.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "stream.description_max_bytes",
        value: crate::spec::DESCRIPTION_MAX_BYTES as u64,
        meaning: "A stream's description; beyond it 400 description_too_long.",
    },
    Limit {
        name: "stream.producer_id_max_bytes",
        value: crate::producer::PRODUCER_ID_MAX_BYTES as u64,
        meaning: "A producer's id; beyond it 400 malformed_producer.",
    },
    Limit {
        name: "stream.producer_remembered",
        value: crate::producer::PRODUCER_REMEMBERED as u64,
        meaning: "A producer's latest appends whose repetition is answered with the offsets of the first time.",
    },
    Limit {
        name: "stream.writer_seq_max_bytes",
        value: crate::durable::WRITER_SEQ_MAX_BYTES as u64,
        meaning: "A writer's sequence (Stream-Seq); beyond it 400 malformed_header.",
    },
    Limit {
        name: "stream.content_type_max_bytes",
        value: crate::durable::content::CONTENT_TYPE_MAX_BYTES as u64,
        meaning: "A stream's content type; beyond it 400 malformed_content_type.",
    },
    Limit {
        name: "stream.fork_depth_max",
        value: crate::durable::FORK_DEPTH_MAX as u64,
        meaning: "Forks of forks, one behind the other; beyond it 409 too_many_forks.",
    },
    Limit {
        name: "stream.open_max",
        value: HANDLES_MAX as u64,
        meaning: "Streams kept open in memory; beyond it the one used least lately is read again when it is needed.",
    },
    Limit {
        name: "stream.readiness_max_ms",
        value: ready::READINESS_MAX.as_millis() as u64,
        meaning: "Storage must answer GET /readyz in this time; beyond it the answer is 503.",
    },
    Limit {
        name: "stream.feed_max_bytes",
        value: crate::feed::FEED_MAX_BYTES,
        meaning: "Newest records kept in memory for the followers of one stream; who is further behind reads the log.",
    },
];

/// What the streams are built from.
pub struct StreamParts {
    /// Records.
    pub log: Arc<dyn ChangeLog>,
    /// Everything else. Must be the store whose entries the log changes together with an append.
    pub meta: Arc<dyn MetaStore>,
    /// The run-time settings.
    pub settings: Arc<SettingsCell>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// By when an append is answered.
    pub durability: Durability,
}

/// What all handles share.
pub(crate) struct Core {
    pub(crate) log: Arc<dyn ChangeLog>,
    pub(crate) meta: Arc<dyn MetaStore>,
    pub(crate) settings: Arc<SettingsCell>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) durability: Durability,
    handles: Mutex<LruCache<StreamId, Arc<StreamHandle>>>,
    pub(crate) tails: Arc<Capacity>,
    /// How many streams each tenant has.
    pub(crate) counts: TenantCounts,
    /// Bytes that all feeds keep.
    pub(crate) kept: Arc<AtomicU64>,
}

impl Core {
    /// The stream with this identity.
    pub(crate) async fn find(self: &Arc<Self>, id: &StreamId) -> Result<Arc<StreamHandle>, StreamError> {
        if let Some(handle) = self.handles.lock().get(id)
            && !handle.is_removed()
        {
            return Ok(Arc::clone(handle));
        }
        let not_found = || StreamError::NotFound { name: id.stream.clone() };
        let (meta, revision) = self.load(id).await?.ok_or_else(not_found)?;
        if meta.removing {
            return Err(not_found());
        }
        let mut handles = self.handles.lock();
        // Somebody else may have read it in the meantime: then there is one handle, not two.
        if let Some(handle) = handles.get(id)
            && !handle.is_removed()
            && handle.incarnation() == meta.incarnation
        {
            handle.learn(meta, revision);
            return Ok(Arc::clone(handle));
        }
        let handle = Arc::new(StreamHandle::new(Arc::clone(self), id.clone(), meta, revision));
        handles.put(id.clone(), Arc::clone(&handle));
        Ok(handle)
    }

    /// A stream's entry as it is stored.
    pub(crate) async fn load(
        &self,
        id: &StreamId,
    ) -> Result<Option<(StreamMeta, tidegate_core::port::Revision)>, StoreError> {
        let Some(entry) = self.meta.get(&key::stream(id)).await? else { return Ok(None) };
        let Some(value) = &entry.value else { return Ok(None) };
        let meta = unseal(Kind::Stream, StreamMeta::SCHEMA_VERSION, "a stream's description", value)?;
        Ok(Some((meta, entry.revision)))
    }

    /// Reads a stream's entry again after a change was refused because it is not what was known.
    pub(crate) async fn refresh(&self, handle: &StreamHandle) -> Result<(), StreamError> {
        match self.load(&handle.id).await? {
            Some((meta, revision)) if meta.incarnation == handle.incarnation() && !meta.removing => {
                handle.learn(meta, revision);
                Ok(())
            }
            _ => {
                self.drop_handle(handle);
                Err(handle.not_found())
            }
        }
    }

    /// Reads a stream's entry again after it was changed, or may have been, and tells those who follow. Where that fails the
    /// next change finds out.
    pub(crate) async fn look_again(&self, handle: &StreamHandle) {
        match self.refresh(handle).await {
            Ok(()) | Err(StreamError::NotFound { .. }) => {}
            Err(error) => tracing::warn!(%error, "a stream's entry was not read again"),
        }
        handle.wake();
    }

    /// Whether the stream is gone from the store; then its handle is too.
    pub(crate) async fn forget_if_removed(&self, handle: &StreamHandle) -> bool {
        matches!(self.refresh(handle).await, Err(StreamError::NotFound { .. }))
    }

    pub(crate) fn drop_handle(&self, handle: &StreamHandle) {
        let mut handles = self.handles.lock();
        if handles.peek(&handle.id).is_some_and(|known| known.incarnation() == handle.incarnation()) {
            handles.pop(&handle.id);
        }
        drop(handles);
        handle.mark_removed();
    }

    /// Removes every entry whose key begins so, a bounded number at a time.
    pub(crate) async fn remove_entries(&self, prefix: bytes::Bytes) -> Result<(), StoreError> {
        loop {
            let range = MetaRange { prefix: prefix.clone(), from: prefix.clone(), limit: SCAN_PAGE };
            let entries = self.meta.scan(range).await?;
            if entries.is_empty() {
                return Ok(());
            }
            let swaps = entries
                .into_iter()
                .map(|entry| CompareAndSwap { key: entry.key, expected: Some(entry.revision), swap: Swap::Delete })
                .collect();
            // A mismatch means that somebody writes still: the next round reads again.
            self.meta.compare_and_swap(swaps, Durability::Os).await?;
        }
    }

    pub(crate) fn tail_slot(&self, owner: &Owner) -> Result<tidegate_lease::capacity::Slot, ReadError> {
        let settings = self.settings.freeze();
        self.tails.set_bounds(CapacityBounds {
            global: settings.limits_tail_max_global(),
            per_owner: settings.limits_tail_max_per_principal(),
        });
        Ok(self.tails.try_acquire(owner)?)
    }
}

/// The change streams. Cheap to clone.
#[derive(Clone)]
pub struct StreamService {
    pub(crate) core: Arc<Core>,
}

/// What a stream is now.
#[derive(Debug, Clone)]
pub struct StreamDescription {
    /// Its name.
    pub name: Name,
    /// What it was created as.
    pub spec: StreamSpec,
    /// When.
    pub created_at: Timestamp,
    /// Each partition's bounds.
    pub partitions: Vec<PartitionBounds>,
    /// Each partition's watermark, where the stream drops late records.
    pub watermarks: Option<Vec<Option<Timestamp>>>,
    /// The content type of a stream that the Durable Streams protocol made.
    pub content_type: Option<Box<str>>,
}

/// Where to begin to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFrom {
    /// At the first record that is still there.
    Earliest,
    /// At the tail: what comes next.
    Latest,
    /// At this offset, of every selected partition.
    Offset(Offset),
    /// After the record with this id (`partition:offset`), wherever the other partitions were then.
    After(tidegate_core::position::Partition, Offset),
}

impl StreamService {
    /// Streams over these parts. Reads nothing: a stream is read when it is first asked for.
    #[must_use]
    pub fn new(parts: StreamParts) -> Self {
        let StreamParts { log, meta, settings, clock, entropy, durability } = parts;
        let handles = NonZeroUsize::new(HANDLES_MAX).expect("not zero");
        let core = Core {
            log,
            meta,
            settings,
            clock,
            entropy,
            durability,
            handles: Mutex::new(LruCache::new(handles)),
            counts: TenantCounts::default(),
            tails: Capacity::new(CapacityBounds { global: 0, per_owner: 0 }),
            kept: Arc::default(),
        };
        Self { core: Arc::new(core) }
    }

    /// The run-time settings.
    #[must_use]
    pub fn settings(&self) -> &Arc<SettingsCell> {
        &self.core.settings
    }

    pub(crate) fn id(owner: &Owner, name: &Name) -> Result<StreamId, StreamError> {
        let tenant = Name::new(&*owner.tenant).map_err(StreamError::Tenant)?;
        Ok(StreamId { tenant, stream: name.clone() })
    }

    pub(crate) async fn handle(&self, principal: &Principal, name: &Name) -> Result<Arc<StreamHandle>, StreamError> {
        let handle = self.core.find(&Self::id(&principal.owner, name)?).await?;
        self.check_life(&handle).await?;
        Ok(handle)
    }

    /// What a stream is now.
    pub async fn describe(&self, principal: &Principal, name: &Name) -> Result<StreamDescription, StreamError> {
        let handle = self.handle(principal, name).await?;
        self.describe_handle(&handle).await
    }

    async fn describe_handle(&self, handle: &StreamHandle) -> Result<StreamDescription, StreamError> {
        let meta = handle.meta();
        let watermarks = match meta.late {
            crate::spec::LatePolicy::Allow => None,
            crate::spec::LatePolicy::Drop => Some(self.watermarks(handle).await?),
        };
        Ok(StreamDescription {
            name: handle.id.stream.clone(),
            spec: meta.spec(),
            created_at: Timestamp::from_unix_ms(meta.created_at_ms),
            partitions: handle.bounds().await?,
            watermarks,
            content_type: meta.durable.as_ref().map(|durable| durable.content_type.clone()),
        })
    }

    async fn watermarks(&self, handle: &StreamHandle) -> Result<Vec<Option<Timestamp>>, StreamError> {
        let prefix = key::watermark(handle.incarnation(), tidegate_core::position::Partition(0));
        let prefix = prefix.slice(..prefix.len() - 4);
        let partitions = handle.partitions();
        let range = MetaRange { prefix: prefix.clone(), from: prefix.clone(), limit: partitions as usize };
        let mut all = vec![None; partitions as usize];
        for entry in self.core.meta.scan(range).await.map_err(StoreError::from)? {
            let place = entry.key.get(prefix.len()..).and_then(|rest| <[u8; 4]>::try_from(rest).ok());
            let (Some(place), Some(value)) = (place, entry.value) else { continue };
            let stored: StoredWatermark = unseal(Kind::Watermark, 1, "a watermark", &value)?;
            if let Some(slot) = all.get_mut(u32::from_be_bytes(place) as usize) {
                *slot = Some(Timestamp::from_unix_ms(stored.ms));
            }
        }
        Ok(all)
    }

    /// The tenant's streams in the order of their names, after `after`, at most `limit`. Streams being removed are left out.
    pub async fn list(
        &self,
        principal: &Principal,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<StreamDescription>, StreamError> {
        let tenant = Name::new(&*principal.owner.tenant).map_err(StreamError::Tenant)?;
        let prefix = key::streams_of(&tenant).freeze();
        let mut from = match after {
            None => prefix.clone(),
            Some(after) => {
                let mut from = key::streams_of(&tenant);
                from.extend_from_slice(after.as_str().as_bytes());
                // The least key after that of `after` itself.
                from.extend_from_slice(&[0]);
                from.freeze()
            }
        };
        let mut found = Vec::new();
        while found.len() < limit {
            let page = limit - found.len();
            let range = MetaRange { prefix: prefix.clone(), from: from.clone(), limit: page };
            let entries = self.core.meta.scan(range).await.map_err(StoreError::from)?;
            let whole = entries.len() == page;
            for entry in entries {
                let mut next = entry.key.to_vec();
                let name = std::str::from_utf8(&entry.key[prefix.len()..]).ok().and_then(|text| Name::new(text).ok());
                next.push(0);
                from = next.into();
                let Some(name) = name else {
                    return Err(StoreError::Corrupt { what: "the name of a stream".into() }.into());
                };
                match self.handle(principal, &name).await {
                    Ok(handle) => match self.describe_handle(&handle).await {
                        Ok(described) => found.push(described),
                        // Removed between the two looks.
                        Err(StreamError::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    },
                    Err(StreamError::NotFound { .. } | StreamError::Gone { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            if !whole {
                break;
            }
        }
        Ok(found)
    }

    /// Removes a stream with its records, its groups and its producers. Who reads it is told.
    pub async fn delete(&self, principal: &Principal, name: &Name) -> Result<(), StreamError> {
        let handle = self.handle(principal, name).await?;
        // In a task of its own: a caller that goes away does not leave half of it.
        let service = self.clone();
        match tokio::spawn(async move { service.remove(&handle).await }).await {
            Ok(removed) => removed,
            Err(error) => Err(StoreError::Unavailable(Box::new(error)).into()),
        }
    }

    /// Forgets the records of a partition before an offset. Readers there get a gap with the reason `trim`.
    pub async fn trim(
        &self,
        principal: &Principal,
        name: &Name,
        partition: tidegate_core::position::Partition,
        before: Offset,
    ) -> Result<Vec<PartitionBounds>, ReadError> {
        let handle = self.handle(principal, name).await?;
        handle.check_partition(partition)?;
        match self.core.log.trim(&handle.log_id, Trim::Before { partition, before }).await {
            Ok(bounds) => Ok(bounds),
            Err(tidegate_core::port::LogError::OutOfRange { asked, next }) => {
                Err(ReadError::OutOfRange { partition, asked, next, earliest: Offset::ZERO })
            }
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    /// A reader of one partition, or of all merged. `follow`: it will wait for what comes, and takes one of the slots that
    /// `limits.tail_max_global` and `limits.tail_max_per_principal` bound; others read what is there.
    pub async fn read(
        &self,
        principal: &Principal,
        name: &Name,
        selection: Selection,
        from: ReadFrom,
        follow: bool,
    ) -> Result<StreamReader, ReadError> {
        let handle = self.handle(principal, name).await?;
        handle.touch();
        let slot = if follow { Some(self.core.tail_slot(&principal.owner)?) } else { None };
        if let Selection::One(partition) = selection {
            handle.check_partition(partition)?;
        }
        // Before the bounds are looked at: what is appended in between is then not missed.
        let changed = follow.then(|| handle.subscribe());
        let bounds = handle.bounds().await?;
        let selected = |bound: &&PartitionBounds| match selection {
            Selection::One(partition) => bound.partition == partition,
            Selection::All => true,
        };
        let mut positions = Vec::new();
        if let (ReadFrom::After(partition, offset), Selection::All) = (&from, selection) {
            handle.check_partition(*partition)?;
            positions = positions_after(&handle, *partition, *offset).await?;
        } else {
            for bound in bounds.iter().filter(selected) {
                let position = match from {
                    ReadFrom::Earliest => bound.earliest,
                    ReadFrom::Latest => bound.next,
                    ReadFrom::Offset(offset) => offset,
                    ReadFrom::After(partition, offset) if partition == bound.partition => {
                        offset.checked_add(1).unwrap_or(offset)
                    }
                    ReadFrom::After(partition, _) => {
                        return Err(StreamError::PartitionNotFound {
                            name: name.clone(),
                            partition,
                            partitions: handle.partitions(),
                        }
                        .into());
                    }
                };
                if position > bound.next {
                    let (partition, next, earliest) = (bound.partition, bound.next, bound.earliest);
                    return Err(ReadError::OutOfRange { partition, asked: position, next, earliest });
                }
                positions.push(position);
            }
        }
        Ok(StreamReader::new(handle, selection, positions, changed, slot))
    }
}
