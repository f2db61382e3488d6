//! The blob store as the objects use it: an `object_store`, with what is known of it beyond that trait. It knows how large a blob may be,
//! whether an upload in parts has a name that outlives this process, and when a deletion is durable.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::multipart::MultipartStore;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::{PART_BYTES, path};
use crate::error::{StoreError, blob_error};
use crate::stored::BlobId;

/// The largest blob unless told otherwise: 8,193 parts, where S3 and its like take 10,000.
pub(super) const BLOB_MAX_BYTES: u64 = 8_192 * PART_BYTES as u64;

/// Where large bytes lie: any `object_store`, by `into()`. What can name its uploads in parts should come by [`ColdStore::with_uploads`].
#[derive(Clone)]
pub struct ColdStore {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) uploads: Option<Arc<dyn MultipartStore>>,
    blob_max_bytes: u64,
    /// The directory that it is.
    directory: Option<Arc<FilePath>>,
}

impl ColdStore {
    /// A store whose uploads in parts have names (S3, GCS, Azure): the name of each is written down before its first part, so that what a
    /// crash or a caller that went away leaves of it is given up by who finds the record. Without that such parts, which no listing
    /// shows and which cost money, stay until the store's own rule removes them. One more durable step of the metadata a blob.
    pub fn with_uploads<S: ObjectStore + MultipartStore>(store: Arc<S>) -> Self {
        let uploads: Arc<dyn MultipartStore> = Arc::clone(&store) as _;
        Self { uploads: Some(uploads), ..Self::from(store) }
    }

    /// The most bytes of an object that lie in one blob; larger objects lie in several. 64 GiB unless told otherwise, which is 8,193 parts of
    /// 8 MiB. At least one.
    #[must_use]
    pub fn with_blob_max_bytes(self, bytes: u64) -> Self {
        Self { blob_max_bytes: bytes.max(1), ..self }
    }

    pub(super) fn in_directory(store: Arc<dyn ObjectStore>, directory: &FilePath) -> Self {
        Self { store, uploads: None, blob_max_bytes: u64::MAX, directory: Some(directory.into()) }
    }

    /// The store itself.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The most bytes of an object that lie in one blob.
    pub(crate) fn blob_max_bytes(&self) -> u64 {
        self.blob_max_bytes
    }

    /// Whether its uploads in parts have names.
    pub(crate) fn names_uploads(&self) -> bool {
        self.uploads.is_some()
    }

    /// Begins an upload in parts, where they have names.
    pub(crate) async fn begin(&self, blob: BlobId) -> Result<Option<Box<str>>, StoreError> {
        let Some(uploads) = &self.uploads else { return Ok(None) };
        Ok(Some(uploads.create_multipart(&path(blob)).await.map_err(blob_error)?.into()))
    }

    /// Deletes a blob, and gives its upload up first: what was on its way cannot come to be afterwards. What is not there is deleted already.
    /// Durable when it returns.
    pub(crate) async fn delete(&self, blob: BlobId, upload: Option<&str>) -> Result<(), StoreError> {
        let path = path(blob);
        let gone = |result| match result {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(blob_error(error)),
        };
        if let (Some(uploads), Some(upload)) = (&self.uploads, upload) {
            gone(uploads.abort_multipart(&path, &upload.to_owned()).await)?;
        }
        gone(self.store.delete(&path).await)?;
        let Some(directory) = &self.directory else { return Ok(()) };
        // Also where nothing was there: it may have been removed a moment ago by who did not come to this.
        let folder = path.parts().take(2).fold(directory.to_path_buf(), |folder, part| folder.join(part.as_ref()));
        let synced = tokio::task::spawn_blocking(move || match std::fs::File::open(folder) {
            Ok(folder) => folder.sync_all(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        });
        synced.await.map_err(std::io::Error::from).flatten().map_err(|error| StoreError::Unavailable(Box::new(error)))
    }
}

impl From<Arc<dyn ObjectStore>> for ColdStore {
    fn from(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, uploads: None, blob_max_bytes: BLOB_MAX_BYTES, directory: None }
    }
}

impl<S: ObjectStore> From<Arc<S>> for ColdStore {
    fn from(store: Arc<S>) -> Self {
        Self::from(store as Arc<dyn ObjectStore>)
    }
}

impl fmt::Debug for ColdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ColdStore({})", self.store)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{StreamExt as _, TryStreamExt as _, stream};
    use object_store::memory::InMemory;
    use tidegate_core::id::Name;
    use tidegate_core::port::Durability;
    use tidegate_testkit::{ManualClock, MemoryStore, SeededEntropy};

    use super::*;
    use crate::error::{PutError, UploadError};
    use crate::service::{ByteRange, Get, Got, Put};
    use crate::{Collection, Condition, Metadata, ObjectKey, ObjectParts, ObjectService, ObjectSpec, Scopes};

    const BLOB_BYTES: u64 = 600_000;

    fn objects(cold: ColdStore) -> ObjectService {
        let clock = Arc::new(ManualClock::new());
        let spec = ObjectSpec { hot_max_bytes: 1_000, object_max_bytes: 3_000_000, ..ObjectSpec::default() };
        ObjectService::new(ObjectParts {
            meta: MemoryStore::new(Arc::clone(&clock) as _),
            cold,
            clock,
            entropy: Arc::new(SeededEntropy::new(1)),
            durability: Durability::Fsync,
            spec,
        })
        .unwrap()
    }

    fn body(bytes: &Bytes) -> super::super::Body<'static> {
        let pieces: Vec<_> = bytes.chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces).boxed()
    }

    #[tokio::test]
    async fn an_object_larger_than_a_blob_lies_in_several_and_is_read_as_one() {
        let store = Arc::new(InMemory::new());
        let objects = objects(ColdStore::with_uploads(Arc::clone(&store)).with_blob_max_bytes(BLOB_BYTES));
        let name = |text| Name::new(text).unwrap();
        let collection = Collection { tenant: name("a"), usecase: name("b"), scopes: Scopes::parse("_").unwrap() };
        let key = ObjectKey::new("k").unwrap();
        let blobs = || store.list(None).count();
        for (length, count) in [(BLOB_BYTES, 1), (BLOB_BYTES + 1, 2), (4 * BLOB_BYTES, 4), (2_500_000, 5)] {
            let content: Bytes = (0..length).map(|at| (at % 251) as u8 ^ (at >> 9) as u8).collect();
            let before = blobs().await;
            objects.put(&collection, &key, Put::default(), body(&content)).await.unwrap();
            // Those of the one before wait for their grace.
            assert_eq!(blobs().await - before, count, "{length}");
            for (from, to) in [(0, length), (BLOB_BYTES - 1, BLOB_BYTES), (BLOB_BYTES - 5, length), (7, BLOB_BYTES)] {
                let range = Some(ByteRange::FromTo(from, to - 1));
                let get = Get { range, ..Get::default() };
                let Ok(Got::Object(found)) = objects.get(&collection, &key, &get).await else { panic!("it is there") };
                let found: Vec<Bytes> = found.body.try_collect().await.unwrap();
                assert!(found.concat() == content[from as usize..to as usize], "{length}: {from} to {to}");
            }
        }
        // A part of an upload is one blob.
        let token = objects.begin_upload(&collection, &key, Metadata::default()).await.unwrap();
        let whole = Bytes::from(vec![1; BLOB_BYTES as usize]);
        objects.put_part(&collection, &key, token, 1, None, body(&whole)).await.unwrap();
        let more = Bytes::from(vec![1; BLOB_BYTES as usize + 1]);
        let refused = objects.put_part(&collection, &key, token, 2, None, body(&more)).await;
        assert!(
            matches!(refused, Err(UploadError::Put(PutError::TooLarge { limit_bytes: BLOB_BYTES }))),
            "{refused:?}"
        );
        objects.complete_upload(&collection, &key, token, None, &Condition::default()).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_there_is_deleted_already() {
        let folder = tempfile::tempdir().unwrap();
        let cold = super::super::local(folder.path()).unwrap();
        let blob = BlobId([7; 16]);
        cold.delete(blob, None).await.unwrap();
        cold.store().put(&path(blob), "x".into()).await.unwrap();
        cold.delete(blob, None).await.unwrap();
        cold.delete(blob, None).await.unwrap();
        assert_eq!(cold.store().list(None).count().await, 0);
    }
}
