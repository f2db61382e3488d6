//! A metadata store and a blob store in memory that let others go first now and then, and stop for ever at a chosen step: a server that
//! is killed there. What was begun before that step stands; nothing after it does.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};
use parking_lot::Mutex;
use tidegate_core::port::{
    CompareAndSwap, Durability, MetaEntry, MetaError, MetaRange, MetaStore, MetaWatch, SwapOutcome,
};
use tidegate_testkit::SeededEntropy;
use tokio::sync::Notify;

/// What every step passes.
pub(crate) struct Gate {
    steps_left: AtomicI64,
    fails: bool,
    chance: SeededEntropy,
    /// Told when the server stops.
    pub(crate) stopped: Notify,
}

impl Gate {
    pub(crate) fn new(seed: u64, steps: i64) -> Arc<Self> {
        Arc::new(Self {
            steps_left: AtomicI64::new(steps),
            fails: false,
            chance: SeededEntropy::new(seed),
            stopped: Notify::new(),
        })
    }

    /// The same, and the blob store fails now and then, before or after it has done what it was asked.
    pub(crate) fn failing(seed: u64, steps: i64) -> Arc<Self> {
        let gate = Arc::into_inner(Self::new(seed, steps)).unwrap();
        Arc::new(Self { fails: true, ..gate })
    }

    async fn pass_blob(&self) -> object_store::Result<()> {
        self.pass().await;
        if self.fails && self.chance.below(40) == 0 {
            return Err(object_store::Error::Generic { store: "gated", source: "it fails".into() });
        }
        Ok(())
    }

    pub(crate) async fn pass(&self) {
        for _ in 0..self.chance.below(4) {
            tokio::task::yield_now().await;
        }
        if self.steps_left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.stopped.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// The metadata store, with a step before and after each of its own.
pub(crate) struct GatedMeta {
    pub(crate) store: Arc<dyn MetaStore>,
    pub(crate) gate: Arc<Gate>,
}

#[async_trait]
impl MetaStore for GatedMeta {
    async fn get(&self, key: &[u8]) -> Result<Option<MetaEntry>, MetaError> {
        self.gate.pass().await;
        self.store.get(key).await
    }

    async fn scan(&self, range: MetaRange) -> Result<Vec<MetaEntry>, MetaError> {
        self.gate.pass().await;
        self.store.scan(range).await
    }

    async fn compare_and_swap(
        &self,
        swaps: Vec<CompareAndSwap>,
        durability: Durability,
    ) -> Result<SwapOutcome, MetaError> {
        self.gate.pass().await;
        let swapped = self.store.compare_and_swap(swaps, durability).await;
        self.gate.pass().await;
        swapped
    }

    async fn watch(&self, prefix: Bytes) -> Result<MetaWatch, MetaError> {
        self.store.watch(prefix).await
    }
}

/// The blob store, likewise.
pub(crate) struct GatedBlobs {
    pub(crate) store: Arc<InMemory>,
    pub(crate) uploads: Uploads,
    pub(crate) gate: Arc<Gate>,
}

/// How many parts each upload holds that is open, by its name. They outlive the server.
pub(crate) type Uploads = Arc<Mutex<BTreeMap<MultipartId, usize>>>;

impl fmt::Debug for GatedBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GatedBlobs")
    }
}

impl fmt::Display for GatedBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GatedBlobs")
    }
}

#[async_trait]
impl ObjectStore for GatedBlobs {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.gate.pass_blob().await?;
        let put = self.store.put_opts(at, payload, options).await;
        self.gate.pass_blob().await?;
        put
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.gate.pass_blob().await?;
        let upload = self.store.put_multipart_opts(at, options).await?;
        Ok(Box::new(GatedUpload { upload, gate: Arc::clone(&self.gate) }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.gate.pass_blob().await?;
        self.store.get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.gate.pass().await;
        self.store.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let gate = Arc::clone(&self.gate);
        let gated = locations.then(move |at| {
            let gate = Arc::clone(&gate);
            async move {
                gate.pass_blob().await?;
                at
            }
        });
        let gate = Arc::clone(&self.gate);
        let deleted = self.store.delete_stream(gated.boxed());
        deleted
            .then(move |at| {
                let gate = Arc::clone(&gate);
                async move {
                    gate.pass_blob().await?;
                    at
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

/// As S3 has them: an upload outlives who began it, and what is done with one that has ended is refused.
#[async_trait]
impl MultipartStore for GatedBlobs {
    async fn create_multipart(&self, at: &Path) -> object_store::Result<MultipartId> {
        self.gate.pass_blob().await?;
        let id = self.store.create_multipart(at).await?;
        self.uploads.lock().insert(id.clone(), 0);
        self.gate.pass_blob().await?;
        Ok(id)
    }

    async fn put_part(
        &self,
        at: &Path,
        id: &MultipartId,
        number: usize,
        part: PutPayload,
    ) -> object_store::Result<PartId> {
        self.gate.pass_blob().await?;
        self.open(id, at)?;
        let sent = self.store.put_part(at, id, number, part).await?;
        if let Some(parts) = self.uploads.lock().get_mut(id) {
            *parts += 1;
        }
        self.gate.pass_blob().await?;
        Ok(sent)
    }

    async fn complete_multipart(
        &self,
        at: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> object_store::Result<PutResult> {
        self.gate.pass_blob().await?;
        self.open(id, at)?;
        let done = self.store.complete_multipart(at, id, parts).await?;
        self.uploads.lock().remove(id);
        self.gate.pass_blob().await?;
        Ok(done)
    }

    async fn abort_multipart(&self, at: &Path, id: &MultipartId) -> object_store::Result<()> {
        self.gate.pass_blob().await?;
        self.open(id, at)?;
        self.store.abort_multipart(at, id).await?;
        self.uploads.lock().remove(id);
        self.gate.pass_blob().await
    }
}

impl GatedBlobs {
    fn open(&self, id: &MultipartId, at: &Path) -> object_store::Result<()> {
        if self.uploads.lock().contains_key(id) {
            return Ok(());
        }
        Err(object_store::Error::NotFound { path: at.to_string(), source: "no such upload".into() })
    }
}

#[derive(Debug)]
struct GatedUpload {
    upload: Box<dyn MultipartUpload>,
    gate: Arc<Gate>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

#[async_trait]
impl MultipartUpload for GatedUpload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let part = self.upload.put_part(payload);
        let gate = Arc::clone(&self.gate);
        Box::pin(async move {
            gate.pass_blob().await?;
            part.await
        })
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        self.gate.pass_blob().await?;
        let done = self.upload.complete().await;
        self.gate.pass_blob().await?;
        done
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.gate.pass().await;
        self.upload.abort().await
    }
}
