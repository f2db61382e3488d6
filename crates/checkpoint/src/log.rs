//! The objects of one job in an object store: slots that are created once, listed, read, deleted. It never overwrites one, and never
//! decides what an entry means.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use tidegate_core::id::Name;

use crate::entry::Slot;
use crate::error::{Damage, DamageKind, StoreError};
use crate::id::{Generation, Layout, PackId, slot_number};

/// Objects of one folder of a job that are listed at a time. Retention keeps far fewer.
pub(crate) const LISTED_MAX: usize = 262_144;
/// Objects that are read or deleted at the same time.
pub(crate) const IN_FLIGHT: usize = 8;

/// One job's place in a store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct JobStore {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) job: Name,
}

/// What became of an attempt to create an object.
#[derive(Debug)]
pub(crate) enum Created {
    /// It was created, by this call.
    Made,
    /// There is one.
    Exists,
}

/// What a slot holds.
#[derive(Debug)]
pub(crate) enum Read {
    /// Nothing.
    Absent,
    /// An entry.
    Entry(Box<Slot>),
    /// Something else.
    Damaged(Damage),
}

impl JobStore {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, root: &Path, job: Name) -> Self {
        Self { store, layout: Arc::new(Layout::new(root, &job)), job }
    }

    /// The slots above `after`, in order. Objects of other names are left out: nobody here wrote them.
    pub(crate) async fn slots(&self, after: Option<Generation>) -> Result<Vec<Generation>, StoreError> {
        let log = &self.layout.log;
        let listed = match after {
            Some(after) => self.store.list_with_offset(Some(log), &self.layout.slot(after)),
            None => self.store.list(Some(log)),
        };
        let found = self.gather(log, listed.try_filter_map(async |object| Ok(slot_number(&object.location)))).await?;
        let mut slots: Vec<_> = found.into_iter().filter(|slot| Some(*slot) > after).collect();
        slots.sort_unstable();
        Ok(slots)
    }

    /// The packs that are there, with their lengths.
    pub(crate) async fn packs(&self) -> Result<Vec<(PackId, u64)>, StoreError> {
        let listed = self.store.list(Some(&self.layout.packs)).try_filter_map(async |object| {
            Ok(object.location.filename().and_then(PackId::parse).map(|pack| (pack, object.size)))
        });
        self.gather(&self.layout.packs, listed).await
    }

    /// The names of what is noted about readers.
    pub(crate) async fn readers(&self) -> Result<Vec<String>, StoreError> {
        let listed = self.store.list(Some(&self.layout.readers));
        let names = listed.try_filter_map(async |object| Ok(object.location.filename().map(str::to_owned)));
        self.gather(&self.layout.readers, names).await
    }

    async fn gather<T>(
        &self,
        folder: &Path,
        listed: impl futures::Stream<Item = object_store::Result<T>>,
    ) -> Result<Vec<T>, StoreError> {
        let found: Vec<T> =
            listed.take(LISTED_MAX + 1).try_collect().await.map_err(|error| StoreError::new(folder, error))?;
        if found.len() > LISTED_MAX {
            return Err(StoreError::TooMany { folder: folder.as_ref().into(), limit: LISTED_MAX });
        }
        Ok(found)
    }

    pub(crate) async fn read_slot(&self, generation: Generation) -> Result<Read, StoreError> {
        let path = self.layout.slot(generation);
        let Some(sealed) = self.get(&path).await? else { return Ok(Read::Absent) };
        Ok(match Slot::open(&self.job, generation, &sealed) {
            Ok(slot) => Read::Entry(Box::new(slot)),
            Err(kind) => Read::Damaged(kind.at(&path)),
        })
    }

    /// The bytes of an object; `None` if there is none.
    pub(crate) async fn get(&self, path: &Path) -> Result<Option<Bytes>, StoreError> {
        let got = match self.store.get(path).await {
            Ok(got) => got.bytes().await,
            Err(error) => Err(error),
        };
        match got {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(StoreError::new(path, error)),
        }
    }

    /// Creates an object where there is none. After an error it may be there, or come yet.
    pub(crate) async fn create(&self, path: &Path, payload: PutPayload) -> Result<Created, StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(path, payload, options).await {
            Ok(_) => Ok(Created::Made),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Created::Exists)
            }
            Err(error) => Err(StoreError::new(path, error)),
        }
    }

    /// Deletes an object; one that is not there is deleted.
    pub(crate) async fn delete(&self, path: &Path) -> Result<(), StoreError> {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::new(path, error)),
        }
    }

    pub(crate) fn missing(path: &Path) -> Damage {
        DamageKind::Missing.at(path)
    }
}
