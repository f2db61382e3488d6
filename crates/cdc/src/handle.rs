//! One stream as this process knows it: its description with the revision that guards it, reads out of its log, and the
//! wake-up of who waits on it. It never decides what a reader gets first: that is the reader's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::port::{
    CompareAndSwap, LogError, LogReadItem, PartitionBounds, ReadBounds, Revision, StreamId, Swap,
};
use tidegate_core::position::{Offset, Partition};
use tidegate_frame::envelope::{self, Kind};
use tokio::sync::watch;

use crate::durable::Access;
use crate::error::{ReadError, StoreError, StreamError};
use crate::feed::Feeds;
use crate::key::{self, Incarnation};
use crate::producer::ProducerState;
use crate::record::{Item, RawForm, Record};
use crate::service::Core;
use crate::spec::StreamMeta;
use crate::stored;

/// Producers of one stream whose state is kept in memory; beyond it the one that appended least lately is read again.
pub(crate) const PRODUCERS_CACHED: usize = 256;
/// What a wake-up of one follower costs about, its client's work counted too: between two wake-ups of a stream this times the number
/// of its followers passes, so that a thousand followers are woken for many records at once rather than for each. Measured with a
/// thousand event streams at a thousand records a second on two cores: at a third of it they take all of both, and fall behind.
const WAKE_COST: Duration = Duration::from_micros(30);
/// Below this a pause is not worth a timer.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// How long to wait before a broken watch is opened again.
const WATCH_PAUSE: Duration = Duration::from_millis(500);

/// A value with the revision that it has in the store.
#[derive(Debug, Clone)]
pub(crate) struct Known<T> {
    pub(crate) value: T,
    pub(crate) revision: Option<Revision>,
}

/// A producer's state behind its lock; `None` = not read yet.
pub(crate) type ProducerSlot = Arc<tokio::sync::Mutex<Option<Known<Option<ProducerState>>>>>;

/// A stream's watermarks, loaded when first needed; used by one publisher at a time.
pub(crate) type Watermarks = Vec<Option<Known<Option<Timestamp>>>>;

/// What is known of the last sequence that a stream's writers gave; used by one writer at a time.
pub(crate) type WriterSequence = Option<Known<Option<Box<str>>>>;

pub(crate) struct StreamHandle {
    /// Its identity: tenant and name.
    pub(crate) id: StreamId,
    /// What the log calls it: see [`log_id`]. Everything that is asked of the log goes by this one.
    pub(crate) log_id: StreamId,
    key: Bytes,
    pub(crate) core: Arc<Core>,
    known: RwLock<(Arc<StreamMeta>, Revision)>,
    removed: AtomicBool,
    /// Counts requests without keys, which go to the partitions in turn.
    pub(crate) turn: AtomicU32,
    /// One lock a producer: its appends are decided one after the other.
    pub(crate) producers: Mutex<LruCache<Box<str>, ProducerSlot>>,
    /// Counts producers that were not known, and where the last look for those that can be forgotten ended.
    pub(crate) new_producers: AtomicU32,
    pub(crate) swept_to: Mutex<Option<Bytes>>,
    /// Held by a publisher to a stream that drops late records: each must see what the one before it did.
    pub(crate) watermarks: tokio::sync::Mutex<Watermarks>,
    /// Held by a writer that gives a sequence (`Stream-Seq`): each must see what the one before it did.
    pub(crate) writer_seq: tokio::sync::Mutex<WriterSequence>,
    /// When the stream was last used.
    pub(crate) access: Access,
    changed: watch::Sender<u64>,
    pumping: Mutex<bool>,
    pub(crate) feeds: Feeds,
}

impl StreamHandle {
    pub(crate) fn new(core: Arc<Core>, id: StreamId, meta: StreamMeta, revision: Revision) -> Self {
        Self {
            log_id: log_id(&id, meta.incarnation),
            key: key::stream(&id),
            id,
            core,
            known: RwLock::new((Arc::new(meta), revision)),
            removed: AtomicBool::new(false),
            turn: AtomicU32::new(0),
            // Bounded by who inserts: a capacity given here would be allocated for every stream.
            producers: Mutex::new(LruCache::unbounded()),
            new_producers: AtomicU32::new(0),
            swept_to: Mutex::new(None),
            watermarks: tokio::sync::Mutex::new(Vec::new()),
            writer_seq: tokio::sync::Mutex::new(None),
            access: Access::default(),
            changed: watch::Sender::new(0),
            pumping: Mutex::new(false),
            feeds: Feeds::default(),
        }
    }

    /// What the stream is, as last seen.
    pub(crate) fn meta(&self) -> Arc<StreamMeta> {
        Arc::clone(&self.known.read().0)
    }

    pub(crate) fn known(&self) -> (Arc<StreamMeta>, Revision) {
        let known = self.known.read();
        (Arc::clone(&known.0), known.1)
    }

    /// Takes in what was written or read; an older revision changes nothing.
    pub(crate) fn learn(&self, meta: StreamMeta, revision: Revision) {
        let mut known = self.known.write();
        if revision > known.1 {
            *known = (Arc::new(meta), revision);
        }
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.known.read().0.incarnation
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.known.read().0.partitions
    }

    /// The condition that the stream is still what it was: attached to every change of something that belongs to it, so that
    /// nothing is written into a stream that was removed, made again or closed meanwhile.
    pub(crate) fn unchanged(&self) -> CompareAndSwap {
        let revision = self.known.read().1;
        self.unchanged_at(revision)
    }

    /// The same of the state that was decided on, where more was read of it than its revision.
    pub(crate) fn unchanged_at(&self, revision: Revision) -> CompareAndSwap {
        CompareAndSwap { key: self.key.clone(), expected: Some(revision), swap: Swap::Check }
    }

    /// The change of the stream's entry, as it was at `revision`, to `meta`.
    pub(crate) fn change_at(&self, revision: Revision, meta: &StreamMeta) -> CompareAndSwap {
        let value = seal(Kind::Stream, StreamMeta::SCHEMA_VERSION, meta);
        CompareAndSwap { key: self.key.clone(), expected: Some(revision), swap: Swap::Put(value) }
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Whether the stream was deleted, and is kept for others that were forked from it.
    pub(crate) fn is_hidden(&self) -> bool {
        self.known.read().0.durable.as_ref().is_some_and(|durable| durable.soft_deleted)
    }

    /// The stream is no more: whoever follows it is told.
    pub(crate) fn mark_removed(&self) {
        self.removed.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the stream takes nothing more, as last seen.
    pub(crate) fn is_closed(&self) -> bool {
        self.known.read().0.durable.as_ref().is_some_and(|durable| durable.closed)
    }

    pub(crate) fn not_found(&self) -> StreamError {
        StreamError::NotFound { name: self.id.stream.clone() }
    }

    pub(crate) fn check_partition(&self, partition: Partition) -> Result<(), StreamError> {
        let partitions = self.partitions();
        if partition.0 < partitions {
            return Ok(());
        }
        Err(StreamError::PartitionNotFound { name: self.id.stream.clone(), partition, partitions })
    }

    /// The bounds of every partition, a consistent cut; a fork's begin where its source's do.
    pub(crate) async fn bounds(&self) -> Result<Vec<PartitionBounds>, StreamError> {
        let mut bounds = self.core.log.bounds(&self.log_id).await.map_err(StoreError::from)?;
        if bounds.is_empty() {
            return Err(self.not_found());
        }
        if let Some(source) = self.fork_source().await? {
            let start = self.meta().start;
            for (own, inherited) in bounds.iter_mut().zip(source.bounds_boxed().await?) {
                if own.earliest.0 <= start {
                    own.earliest = Offset(inherited.earliest.0.min(start));
                    own.bytes = own.bytes.saturating_add(inherited.bytes);
                }
            }
        }
        Ok(bounds)
    }

    /// The offset that the next record of the first partition gets.
    pub(crate) async fn tail(&self) -> Result<Offset, StreamError> {
        let bounds = self.core.log.bounds(&self.log_id).await.map_err(StoreError::from)?;
        bounds.first().map(|bounds| bounds.next).ok_or_else(|| self.not_found())
    }

    fn bounds_boxed(&self) -> BoxFuture<'_, Result<Vec<PartitionBounds>, StreamError>> {
        Box::pin(self.bounds())
    }

    /// The stream that this one was forked from, if it was.
    async fn fork_source(&self) -> Result<Option<Arc<Self>>, StreamError> {
        let meta = self.meta();
        let Some(fork) = meta.durable.as_ref().and_then(|durable| durable.fork.as_ref()) else { return Ok(None) };
        let id = StreamId { tenant: self.id.tenant.clone(), stream: fork.source.clone() };
        let source: BoxFuture<'_, _> = Box::pin(Core::find(&self.core, &id));
        source.await.map(Some)
    }

    /// Reads one partition from `from` on: items in order, and where to read on.
    pub(crate) async fn read(
        &self,
        partition: Partition,
        from: Offset,
        bounds: ReadBounds,
    ) -> Result<(Vec<Item>, Offset), ReadError> {
        let meta = self.meta();
        if from.0 < meta.start
            && let Some(source) = self.fork_source().await?
        {
            let (mut items, mut next) = source.read_boxed(partition, from, bounds).await?;
            // What the source got after the fork is not the fork's.
            while items.last().is_some_and(|last| last.next().0 > meta.start) {
                match items.last_mut() {
                    Some(Item::Gap(gap)) if gap.from.0 < meta.start => gap.to = Offset(meta.start),
                    _ => drop(items.pop()),
                }
            }
            next.0 = next.0.min(meta.start);
            if !items.is_empty() || next.0 < meta.start {
                return Ok((items, next));
            }
        }
        let raw_form = match &meta.durable {
            Some(durable) if durable.is_text() => RawForm::Text,
            _ => RawForm::Base64,
        };
        let from = Offset(from.0.max(meta.start));
        let read = self.core.log.read(&self.log_id, partition, from, bounds).await;
        let read = match read {
            Ok(read) => read,
            Err(LogError::NotFound) => return Err(self.not_found().into()),
            Err(LogError::OutOfRange { asked, next }) => {
                let earliest = self.bounds().await?.get(partition.0 as usize).map_or(Offset::ZERO, |one| one.earliest);
                return Err(ReadError::OutOfRange { partition, asked, next, earliest });
            }
            Err(LogError::Corrupt { offset, .. }) => return Err(self.corrupt(partition, offset).into()),
            Err(error) => return Err(StoreError::from(error).into()),
        };
        let mut items = Vec::with_capacity(read.items.len());
        for item in read.items {
            items.push(match item {
                LogReadItem::Gap(gap) => Item::Gap(gap),
                LogReadItem::Record { offset, commit, append_time, bytes } => {
                    let stored_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    let stored = stored::open(bytes).map_err(|_| self.corrupt(partition, offset))?;
                    Item::Record(Record { partition, offset, commit, append_time, stored, raw_form, stored_bytes })
                }
            });
        }
        Ok((items, read.next))
    }

    fn read_boxed(
        &self,
        partition: Partition,
        from: Offset,
        bounds: ReadBounds,
    ) -> BoxFuture<'_, Result<(Vec<Item>, Offset), ReadError>> {
        Box::pin(self.read(partition, from, bounds))
    }

    fn corrupt(&self, partition: Partition, offset: Offset) -> StoreError {
        let name = self.id.stream.as_str();
        StoreError::Corrupt { what: format!("stream {name:?}, partition {}, offset {}", partition.0, offset.0).into() }
    }

    /// The first offset from `low` up to `high` whose record satisfies a predicate that, once true, stays true for every later
    /// record; `high` if there is none. A place where records are gone counts as the record after it. O(log n) reads.
    pub(crate) async fn first_where(
        &self,
        partition: Partition,
        (mut low, mut high): (Offset, Offset),
        reached: impl Fn(&Record) -> bool + Send,
    ) -> Result<Offset, ReadError> {
        let one = ReadBounds { records: 1, bytes: 1 };
        while low < high {
            let middle = Offset(low.0 + (high.0 - low.0) / 2);
            let mut at = middle;
            let found = loop {
                let (items, next) = self.read(partition, at, one).await?;
                let record = items.into_iter().find_map(|item| match item {
                    Item::Record(record) => Some(record),
                    Item::Gap(_) => None,
                });
                match record {
                    Some(record) => break Some(record),
                    None if next <= at || next >= high => break None,
                    None => at = next,
                }
            };
            match found {
                Some(record) if record.offset < high && !reached(&record) => low = Offset(record.offset.0 + 1),
                _ => high = middle,
            }
        }
        Ok(high)
    }

    /// A receiver that changes when something was appended to the stream, forgotten from it, or when it was removed. Whoever
    /// subscribes first and then reads misses nothing.
    pub(crate) fn subscribe(self: &Arc<Self>) -> watch::Receiver<u64> {
        let receiver = self.changed.subscribe();
        let mut pumping = self.pumping.lock();
        if !*pumping {
            *pumping = true;
            tokio::spawn(pump(Arc::clone(self)));
        }
        receiver
    }

    /// How many follow or wait.
    pub(crate) fn followers(&self) -> usize {
        self.changed.receiver_count()
    }

    /// Wakes who follows or waits: something about the stream changed.
    pub(crate) fn wake(&self) {
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Ends the pump if nobody listens any more. Under the lock that `subscribe` takes, so that none is left without one.
    fn rest(&self) -> bool {
        let mut pumping = self.pumping.lock();
        if self.changed.receiver_count() > 0 {
            return false;
        }
        *pumping = false;
        true
    }
}

/// Passes the log's wake-ups on, as long as anybody listens.
async fn pump(handle: Arc<StreamHandle>) {
    let clock = Arc::clone(&handle.core.clock);
    loop {
        match handle.core.log.watch(&handle.log_id).await {
            Ok(mut log) => {
                // What came before the watch was there is seen by this wake-up.
                handle.feeds.fill(&handle).await;
                handle.wake();
                loop {
                    let moved = tokio::select! {
                        moved = log.next() => moved.is_some(),
                        () = handle.changed.closed() => {
                            if handle.rest() {
                                return;
                            }
                            continue;
                        }
                    };
                    if !moved {
                        break;
                    }
                    handle.feeds.fill(&handle).await;
                    handle.wake();
                    let pause = WAKE_COST * u32::try_from(handle.followers()).unwrap_or(u32::MAX);
                    if pause >= PAUSE_MIN {
                        clock.sleep_until(clock.now().after(pause)).await;
                    }
                }
                if handle.core.forget_if_removed(&handle).await {
                    return;
                }
            }
            Err(LogError::NotFound) => {
                handle.mark_removed();
                return;
            }
            Err(error) => tracing::warn!(%error, "a stream's watch broke"),
        }
        if handle.rest() {
            return;
        }
        clock.sleep_until(clock.now().after(WATCH_PAUSE)).await;
    }
}

/// What the log calls a stream: by its life, so that one that is removed and one that is made again, or two that are made at the
/// same moment, never touch each other's records.
pub(crate) fn log_id(id: &StreamId, incarnation: Incarnation) -> StreamId {
    let stream = Name::new(hex::encode(incarnation.0)).expect("32 hexadecimal digits are a name");
    StreamId { tenant: id.tenant.clone(), stream }
}

/// A structure as it is stored.
pub(crate) fn seal<T: Serialize>(kind: Kind, version: u16, value: &T) -> Bytes {
    envelope::seal(kind, version, value).expect("what this crate stores is plain and below the envelope's bound")
}

/// A structure out of storage.
pub(crate) fn unseal<T: DeserializeOwned>(kind: Kind, version: u16, what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    envelope::open(kind, &[version], bytes)
        .map_err(|error| StoreError::Corrupt { what: format!("{what}: {error}").into() })
}

/// A watermark as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredWatermark {
    pub(crate) ms: i64,
}
