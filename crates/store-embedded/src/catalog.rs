//! The streams that are in memory: their bounds, and who watches them. It never reads the database for more than one
//! entry, and forgets what was used least lately, so that a hundred thousand streams cost nothing until they are touched.

use std::sync::Arc;

use futures::StreamExt as _;
use lru::LruCache;
use parking_lot::Mutex;
use tidegate_core::port::{LogSpec, LogWatch, PartitionBounds, StreamId};
use tidegate_core::position::{Offset, Partition};
use tokio::sync::watch;

use crate::engine::{View, open_chunk};
use crate::error::ReadError;
use crate::key::PartitionKey;
use crate::state::Floor;

/// A partition as readers see it.
#[derive(Debug, Clone)]
pub(crate) struct PartitionState {
    pub(crate) floor: Arc<Floor>,
    pub(crate) next: u64,
    /// Bytes of all records ever appended.
    pub(crate) bytes_ever: u64,
    pub(crate) last_time_ms: Option<i64>,
    /// The time of the record at `floor.earliest`, once somebody asked; for retention by age.
    pub(crate) earliest_time_ms: Option<i64>,
}

impl PartitionState {
    /// Reads a partition's state: its floor and its last chunk. Cost: two look-ups.
    pub(crate) fn load(view: &View, partition: PartitionKey, spec: &LogSpec) -> Result<Self, ReadError> {
        let floor = view.floor(partition)?.unwrap_or_else(|| Floor::new(spec.start.0));
        let mut state = Self {
            next: floor.as_of_next,
            bytes_ever: floor.as_of_bytes,
            last_time_ms: floor.last_time_ms,
            earliest_time_ms: None,
            floor: Arc::new(floor),
        };
        if let Some((base, value)) = view.chunk_before(partition, u64::MAX)? {
            let last = open_chunk(partition, base, value)?;
            if last.end >= state.next {
                state.next = last.end;
                state.bytes_ever = last.bytes_before.saturating_add(last.bytes_ever);
                state.last_time_ms = Some(last.last_time_ms());
            }
        }
        Ok(state)
    }

    pub(crate) fn kept_records(&self) -> u64 {
        self.floor.kept_records.saturating_add(self.next.saturating_sub(self.floor.as_of_next))
    }

    pub(crate) fn kept_bytes(&self) -> u64 {
        self.floor.kept_bytes.saturating_add(self.bytes_ever.saturating_sub(self.floor.as_of_bytes))
    }

    pub(crate) fn bounds(&self, partition: Partition) -> PartitionBounds {
        PartitionBounds {
            partition,
            earliest: Offset(self.floor.earliest),
            next: Offset(self.next),
            bytes: self.kept_bytes(),
        }
    }
}

/// A stream in memory.
#[derive(Debug)]
pub(crate) struct StreamState {
    pub(crate) id: StreamId,
    pub(crate) log: u64,
    pub(crate) spec: LogSpec,
    slots: Mutex<Slots>,
    /// Wakes the watchers; the value counts changes.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Slots {
    removed: bool,
    version: u64,
    partitions: Box<[Slot]>,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    state: Option<PartitionState>,
    version: u64,
}

impl StreamState {
    pub(crate) fn new(id: StreamId, log: u64, spec: LogSpec) -> Arc<Self> {
        let partitions = vec![Slot::default(); spec.partitions as usize].into();
        let slots = Mutex::new(Slots { removed: false, version: 0, partitions });
        Arc::new(Self { id, log, spec, slots, changed: watch::Sender::new(0) })
    }

    pub(crate) fn has(&self, partition: Partition) -> bool {
        partition.0 < self.spec.partitions
    }

    pub(crate) fn key(&self, partition: Partition) -> PartitionKey {
        PartitionKey { log: self.log, partition: partition.0 }
    }

    /// A partition's state, if it was loaded.
    pub(crate) fn loaded(&self, partition: Partition) -> Option<PartitionState> {
        self.slots.lock().partitions.get(partition.0 as usize)?.state.clone()
    }

    /// All partitions' states, if all were loaded.
    pub(crate) fn all_loaded(&self) -> Option<Vec<PartitionBounds>> {
        let slots = self.slots.lock();
        let numbered = (0_u32..).map(Partition).zip(&slots.partitions[..]);
        numbered.map(|(partition, slot)| slot.state.as_ref().map(|state| state.bounds(partition))).collect()
    }

    /// Puts in what was read, unless the writer was there first.
    pub(crate) fn fill(&self, partition: Partition, state: PartitionState) {
        if let Some(slot) = self.slots.lock().partitions.get_mut(partition.0 as usize) {
            slot.state.get_or_insert(state);
        }
    }

    /// Shows a partition's new state. The watchers are woken by [`wake`](Self::wake), after everything is shown.
    pub(crate) fn show(&self, partition: Partition, state: PartitionState) {
        let slots = &mut *self.slots.lock();
        slots.version += 1;
        if let Some(slot) = slots.partitions.get_mut(partition.0 as usize) {
            *slot = Slot { state: Some(state), version: slots.version };
        }
    }

    /// Marks the stream as removed, which ends its watches.
    pub(crate) fn remove(&self) {
        self.slots.lock().removed = true;
    }

    /// Forgets what was loaded and takes every partition for changed: after the database was opened again.
    pub(crate) fn forget(&self) {
        let slots = &mut *self.slots.lock();
        slots.version += 1;
        let version = slots.version;
        slots.partitions.fill(Slot { state: None, version });
    }

    pub(crate) fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.slots.lock().removed
    }

    /// The partition that changed first after `seen`, and when; `Err` once the stream is removed.
    fn change_after(&self, seen: u64) -> Result<Option<(u64, Partition, Option<PartitionState>)>, Removed> {
        let slots = self.slots.lock();
        if slots.removed {
            return Err(Removed);
        }
        let changed = (0_u32..).map(Partition).zip(&slots.partitions[..]).filter(|(_, slot)| slot.version > seen);
        let first = changed.min_by_key(|(_, slot)| slot.version);
        Ok(first.map(|(partition, slot)| (slot.version, partition, slot.state.clone())))
    }

    /// Bounds as they change from now on. `load` reads a partition that is not in memory.
    pub(crate) fn watch<F, L>(self: &Arc<Self>, load: F) -> LogWatch
    where
        F: Fn(Arc<Self>, Partition) -> L + Send + 'static,
        L: Future<Output = Option<PartitionState>> + Send,
    {
        let changed = self.changed.subscribe();
        let seen = self.slots.lock().version;
        let start = (Arc::clone(self), changed, seen, load);
        futures::stream::unfold(start, |(stream, mut changed, seen, load)| async move {
            loop {
                // Marked as seen before the look, so that a change after the look wakes again.
                changed.borrow_and_update();
                let Ok(found) = stream.change_after(seen) else { return None };
                if let Some((seen, partition, state)) = found {
                    let state = match state {
                        Some(state) => Some(state),
                        None => load(Arc::clone(&stream), partition).await,
                    };
                    let bounds = state?.bounds(partition);
                    return Some((bounds, (stream, changed, seen, load)));
                }
                changed.changed().await.ok()?;
            }
        })
        .boxed()
    }
}

struct Removed;

/// Streams by name, the least lately used one forgotten first, unless somebody holds it.
#[derive(Debug)]
pub(crate) struct Catalog {
    streams: Mutex<LruCache<StreamId, Arc<StreamState>>>,
    max: usize,
}

impl Catalog {
    pub(crate) fn new(max: usize) -> Self {
        Self { streams: Mutex::new(LruCache::unbounded()), max: max.max(1) }
    }

    pub(crate) fn get(&self, id: &StreamId) -> Option<Arc<StreamState>> {
        self.streams.lock().get(id).cloned()
    }

    /// Puts a stream in, unless one is there, which is given back then.
    pub(crate) fn insert(&self, stream: Arc<StreamState>) -> Arc<StreamState> {
        let mut streams = self.streams.lock();
        if let Some(there) = streams.get(&stream.id) {
            return Arc::clone(there);
        }
        // Whoever holds a stream (a watcher, a reader) must find the writer's changes in it, so those stay; a few looks
        // are enough, as the next insertion looks on.
        for _ in 0..8 {
            if streams.len() < self.max {
                break;
            }
            let Some((id, oldest)) = streams.pop_lru() else { break };
            if Arc::strong_count(&oldest) > 1 {
                streams.put(id, oldest);
            }
        }
        streams.put(stream.id.clone(), Arc::clone(&stream));
        stream
    }

    /// Takes a stream out and ends its watches.
    pub(crate) fn remove(&self, id: &StreamId) -> Option<Arc<StreamState>> {
        let stream = self.streams.lock().pop(id)?;
        stream.remove();
        Some(stream)
    }

    /// All that are in memory.
    pub(crate) fn all(&self) -> Vec<Arc<StreamState>> {
        self.streams.lock().iter().map(|(_, stream)| Arc::clone(stream)).collect()
    }
}
