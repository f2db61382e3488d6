//! What readers and the writer share: what is shown at the moment. It never shows a part of a group.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tidegate_core::id::Name;
use tidegate_core::port::StreamId;
use tidegate_core::position::Partition;
use tokio::sync::{Semaphore, watch};

use crate::catalog::{Catalog, PartitionState, StreamState};
use crate::config::EmbeddedConfig;
use crate::engine::{MetaValue, View};
use crate::error::{Absent, ReadError};
use crate::key;
use crate::meta_cache::{MetaCache, MetaWatchers};

/// Whether the store takes changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It reads and writes.
    Writing,
    /// It reads; changes are refused until there is space again.
    Full,
    /// The disk failed, and the store tries to go on by itself; or the writer came to a bad end, and it must be opened again.
    Failed,
    /// It was closed.
    Closed,
}

/// What is shown.
pub(crate) enum Shown {
    View(Arc<View>),
    Nothing(Absent),
}

pub(crate) struct Shared {
    pub(crate) config: EmbeddedConfig,
    /// Held for the moment in which a group is shown, and in which a reader takes a view together with bounds.
    shown: RwLock<Shown>,
    /// Wakes who waits for the database to be there again.
    pub(crate) health: watch::Sender<Health>,
    pub(crate) catalog: Catalog,
    pub(crate) cache: Mutex<MetaCache>,
    pub(crate) watchers: MetaWatchers,
    /// Bounds reads that may touch the disk.
    pub(crate) reads: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(config: EmbeddedConfig, view: Arc<View>) -> Self {
        Self {
            shown: RwLock::new(Shown::View(view)),
            health: watch::Sender::new(Health::Writing),
            catalog: Catalog::new(config.loaded_stream_max),
            cache: Mutex::new(MetaCache::new()),
            watchers: MetaWatchers::default(),
            reads: Arc::new(Semaphore::new(config.read_max.clamp(1, 256))),
            config,
        }
    }

    /// What is shown now.
    pub(crate) fn view(&self) -> Result<Arc<View>, Absent> {
        match &*self.shown.read() {
            Shown::View(view) => Ok(Arc::clone(view)),
            Shown::Nothing(absent) => Err(*absent),
        }
    }

    /// Shows something else, with everything that `with` changes, in one step.
    pub(crate) fn show(&self, next: Shown, with: impl FnOnce()) {
        let old = {
            let mut shown = self.shown.write();
            with();
            std::mem::replace(&mut *shown, next)
        };
        // Outside the lock: the last holder of a view closes a snapshot.
        drop(old);
    }

    /// What `with` finds in memory together with the view of the same moment.
    pub(crate) fn at<T>(&self, with: impl FnOnce(&Arc<View>) -> T) -> Result<T, Absent> {
        match &*self.shown.read() {
            Shown::View(view) => Ok(with(view)),
            Shown::Nothing(absent) => Err(*absent),
        }
    }

    /// The stream, from memory or from the database; `None` = there is none. May read the disk.
    pub(crate) fn stream(&self, id: &StreamId) -> Result<Option<Arc<StreamState>>, ReadError> {
        let key = key::stream(id);
        loop {
            if let Some(stream) = self.catalog.get(id) {
                return Ok(Some(stream));
            }
            let Some(found) = self.view()?.stream(&key)? else { return Ok(None) };
            // It may have been removed since: look again at the moment of putting it in. The block is in memory by now.
            let inserted = self.at(|view| {
                let still = view.stream(&key)?.filter(|still| *still == found);
                let state = still.map(|entry| StreamState::new(id.clone(), entry.log, entry.spec()));
                Ok::<_, ReadError>(state.map(|state| self.catalog.insert(state)))
            })?;
            if let Some(stream) = inserted? {
                return Ok(Some(stream));
            }
        }
    }

    /// A stream by the names that stand in the index.
    pub(crate) fn stream_named(&self, tenant: &str, stream: &str) -> Result<Option<Arc<StreamState>>, ReadError> {
        let (Ok(tenant), Ok(stream)) = (Name::new(tenant), Name::new(stream)) else {
            return Err(ReadError::damaged("a name in the index is none"));
        };
        self.stream(&StreamId { tenant, stream })
    }

    /// A partition's state, from memory or from the database, with a view of the same moment. May read the disk.
    pub(crate) fn partition(
        &self,
        stream: &StreamState,
        partition: Partition,
    ) -> Result<(Arc<View>, PartitionState), ReadError> {
        loop {
            let (view, state) = self.at(|view| (Arc::clone(view), stream.loaded(partition)))?;
            if let Some(state) = state {
                return Ok((view, state));
            }
            let state = PartitionState::load(&view, stream.key(partition), &stream.spec)?;
            // An empty place says that the writer has not touched the partition since the stream was loaded, unless the
            // database was opened again in between.
            self.at(|now| {
                if Arc::ptr_eq(&now.engine, &view.engine) {
                    stream.fill(partition, state);
                }
            })?;
        }
    }

    /// A metadata entry, if it was read or written lately.
    pub(crate) fn cached_meta(&self, key: &[u8]) -> Option<MetaValue> {
        // Not while a group is being shown: who saw its records must find what they carried.
        self.at(|_| self.cache.lock().get(key)).ok().flatten()
    }

    /// A metadata entry. May read the disk.
    pub(crate) fn meta(&self, key: &[u8]) -> Result<Option<MetaValue>, ReadError> {
        let view = self.view()?;
        let value = view.meta(key)?;
        if let Some(value) = &value {
            self.at(|now| {
                if Arc::ptr_eq(now, &view) {
                    self.cache.lock().insert(bytes::Bytes::copy_from_slice(key), value.clone());
                }
            })?;
        }
        Ok(value)
    }
}
