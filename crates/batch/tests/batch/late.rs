//! What comes late: a swap that storage does not answer and makes afterwards, bytes and blob stores that do not come to an end, and what a
//! sweep or a new upload has to read meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use object_store::ObjectStore as _;
use object_store::memory::InMemory;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tidegate_batch::service::{Get, Put, SweepPlace};
use tidegate_batch::{Condition, GetError, Metadata, ObjectParts, ObjectService, ObjectSpec, PutError, UploadError};
use tidegate_core::port::{
    CompareAndSwap, Durability, MetaEntry, MetaError, MetaRange, MetaStore, MetaWatch, Swap, SwapOutcome,
};
use tidegate_testkit::wait::{until, within};
use tidegate_testkit::{BlobCall, Fault, FaultyBlobs, ManualClock, MemoryStore, SeededEntropy};

use crate::object::{HOT_MAX, LARGE, body, collection, content, key, world_of, world_over};

/// A store that counts what it reads, and answers the next swap of a head only after it has forgotten to make it; it makes it some calls
/// later.
struct LateMeta {
    store: Arc<MemoryStore>,
    late: Mutex<Option<Vec<CompareAndSwap>>>,
    /// Calls until it is made; below zero = nothing is late.
    calls: AtomicI64,
    armed: AtomicI64,
    scanned: AtomicUsize,
}

impl LateMeta {
    fn new(clock: ManualClock) -> Arc<Self> {
        Arc::new(Self {
            store: MemoryStore::new(Arc::new(clock)),
            late: Mutex::default(),
            calls: AtomicI64::new(-1),
            armed: AtomicI64::new(-1),
            scanned: AtomicUsize::new(0),
        })
    }

    async fn pass(&self) {
        if self.calls.fetch_sub(1, Ordering::Relaxed) == 0 {
            let late = self.late.lock().take();
            if let Some(swaps) = late {
                self.store.compare_and_swap(swaps, Durability::Fsync).await.unwrap();
            }
        }
    }
}

#[async_trait]
impl MetaStore for LateMeta {
    async fn get(&self, key: &[u8]) -> Result<Option<MetaEntry>, MetaError> {
        self.pass().await;
        self.store.get(key).await
    }

    async fn scan(&self, range: MetaRange) -> Result<Vec<MetaEntry>, MetaError> {
        self.pass().await;
        let found = self.store.scan(range).await?;
        self.scanned.fetch_add(found.len(), Ordering::Relaxed);
        Ok(found)
    }

    async fn compare_and_swap(
        &self,
        swaps: Vec<CompareAndSwap>,
        durability: Durability,
    ) -> Result<SwapOutcome, MetaError> {
        self.pass().await;
        let late = self.armed.load(Ordering::Relaxed);
        if late >= 0 && swaps.iter().any(|swap| swap.key.starts_with(b"oh\0")) {
            self.armed.store(-1, Ordering::Relaxed);
            self.calls.store(late, Ordering::Relaxed);
            *self.late.lock() = Some(swaps);
            return Err(MetaError::Indeterminate("not answered".into()));
        }
        self.store.compare_and_swap(swaps, durability).await
    }

    async fn watch(&self, prefix: Bytes) -> Result<MetaWatch, MetaError> {
        self.store.watch(prefix).await
    }
}

#[tokio::test]
async fn a_swap_that_was_told_as_not_made_and_is_made_later_leaves_no_head_without_its_bytes() {
    for length in [10, LARGE] {
        for existed in [false, true] {
            for late in 0..8 {
                let mut meta = None;
                let world = world_over(|clock| {
                    let store = LateMeta::new(clock);
                    meta = Some(Arc::clone(&store));
                    store
                });
                let meta = meta.unwrap();
                if existed {
                    world.put("a", &content(LARGE + 1)).await;
                }
                meta.armed.store(late, Ordering::Relaxed);
                let put = world.objects.put(&world.collection, &key("a"), Put::default(), body(&content(length))).await;
                // Of a small one that was not there before nobody can tell what became of it, unless it is made by then.
                if late < 3 && (length == LARGE || existed) {
                    assert_eq!(put.as_ref().ok().map(|put| put.created), Some(!existed), "{length} {late}: {put:?}");
                }
                for _ in 0..2 {
                    world.clock.advance(Duration::from_secs(60));
                    world.sweep().await;
                }
                let there = world.get("a", &Get::default()).await;
                assert_eq!(there.unwrap(), content(length), "{length} {existed} {late}: {put:?}");
            }
        }
    }
}

/// Objects whose blobs lie in memory and go wrong as told. Uploads in parts have no names there.
struct Faulty {
    objects: ObjectService,
    clock: ManualClock,
    blobs: Arc<FaultyBlobs<InMemory>>,
}

fn faulty() -> Faulty {
    let clock = ManualClock::new();
    let blobs = FaultyBlobs::new(Arc::new(InMemory::new()));
    let mut spec = ObjectSpec::default();
    spec.hot_max_bytes = HOT_MAX as u64;
    let objects = ObjectService::new(ObjectParts {
        meta: MemoryStore::new(Arc::new(clock.clone())),
        cold: Arc::clone(&blobs).into(),
        clock: Arc::new(clock.clone()),
        entropy: Arc::new(SeededEntropy::new(1)),
        durability: Durability::Fsync,
        spec,
    });
    Faulty { objects: objects.unwrap(), clock, blobs }
}

impl Faulty {
    async fn blobs(&self) -> usize {
        self.blobs.inner().list(None).count().await
    }
}

#[tokio::test]
async fn parts_of_an_upload_without_a_name_are_given_up_where_the_bytes_are_not_those_announced() {
    let world = faulty();
    let (objects, collection) = (&world.objects, &collection("org=17"));
    let token = objects.begin_upload(collection, &key("a"), Metadata::default()).await.unwrap();
    let wrong: Option<[u8; 32]> = Some(Sha256::digest(b"others").into());
    // That it fails is how it is counted.
    world.blobs.plan().fail(BlobCall::Abort, Fault::Unavailable);
    let put = Put { sha256: wrong, ..Put::default() };
    let refused = objects.put(collection, &key("a"), put, body(&content(LARGE))).await;
    assert!(matches!(refused, Err(PutError::Checksum)));
    until("the object's upload is given up", async || world.blobs.plan().injected() == 1).await;
    let refused = objects.put_part(collection, &key("a"), token, 1, wrong, body(&content(LARGE))).await;
    assert!(matches!(refused, Err(UploadError::Put(PutError::Checksum))));
    until("the part's upload is given up", async || world.blobs.plan().injected() == 2).await;
    // Nor where the caller goes away.
    {
        let endless = body(&content(LARGE)).chain(stream::pending()).boxed();
        let name = key("a");
        let mut put = std::pin::pin!(objects.put(collection, &name, Put::default(), endless));
        tokio::select! {
            biased;
            done = &mut put => panic!("the bytes do not end: {done:?}"),
            () = until("it has begun", async || objects.write_buffer_held_bytes() > 0) => {}
        }
    }
    until("the lost one is given up", async || world.blobs.plan().injected() == 3).await;
    // What ends well is not.
    objects.put(collection, &key("a"), Put::default(), body(&content(LARGE))).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(world.blobs.plan().injected(), 3);
}

#[tokio::test]
async fn a_write_that_takes_too_long_is_given_up_whatever_it_waits_for_and_leaves_nothing() {
    for held in [None, Some(BlobCall::Part), Some(BlobCall::Complete)] {
        let world = faulty();
        let write_max = world.objects.spec().write_max;
        let bytes = body(&content(LARGE));
        // Where nothing is held the bytes are what does not come to an end.
        let bytes = match held {
            None => bytes.chain(stream::pending()).boxed(),
            Some(call) => {
                world.blobs.plan().hold(call);
                bytes
            }
        };
        let objects = world.objects.clone();
        let put =
            tokio::spawn(async move { objects.put(&collection("org=17"), &key("a"), Put::default(), bytes).await });
        match held {
            None => until("it has begun", async || world.objects.write_buffer_held_bytes() > 0).await,
            Some(_) => world.blobs.plan().wait_for_held(1).await,
        }
        world.clock.advance(write_max);
        let ended = within("it is given up", put).await.unwrap();
        assert!(matches!(ended, Err(PutError::TookTooLong { .. })), "{held:?}: {ended:?}");
        until("its room is free", async || world.objects.write_buffer_held_bytes() == 0).await;
        world.blobs.plan().resume();
        until("nothing is left", async || world.blobs().await == 0).await;
        let there = world.objects.get(&collection("org=17"), &key("a"), &Get::default()).await;
        assert!(matches!(there, Err(GetError::NotFound { .. })));
    }
}

#[tokio::test]
async fn deletions_that_hang_hold_up_no_sweep_and_are_never_more_than_a_few() {
    let world = faulty();
    let collection = collection("org=17");
    for number in 0..40 {
        let name = key(&number.to_string());
        world.objects.put(&collection, &name, Put::default(), body(&content(HOT_MAX + 1))).await.unwrap();
        world.objects.delete(&collection, &name, &Condition::default()).await.unwrap();
    }
    world.clock.advance(world.objects.spec().grace);
    world.blobs.plan().hold(BlobCall::Delete);
    for _ in 0..3 {
        let objects = world.objects.clone();
        let sweep = tokio::spawn(async move { objects.sweep(&mut SweepPlace::default()).await });
        let ended = async {
            while !sweep.is_finished() {
                tokio::task::yield_now().await;
                world.clock.advance(Duration::from_secs(1));
            }
        };
        within("the sweep ends", ended).await;
        let swept = sweep.await.unwrap().unwrap();
        assert_eq!((swept.blobs, swept.failed), (0, 16));
    }
    assert_eq!(world.blobs().await, 40);
    world.blobs.plan().resume();
    until("those that hung are done", async || world.blobs().await == 24).await;
    while world.objects.sweep(&mut SweepPlace::default()).await.unwrap().blobs > 0 {}
    assert_eq!(world.blobs().await, 0);
}

#[tokio::test]
async fn damaged_intents_are_not_taken_for_a_blob_store_that_is_away() {
    let mut meta = None;
    let world = world_over(|clock| {
        let store = MemoryStore::new(Arc::new(clock));
        meta = Some(Arc::clone(&store));
        store
    });
    let meta = meta.unwrap();
    for number in 0..16 {
        let mut key = b"oi\0".to_vec();
        key.extend([[0; 15].as_slice(), &[number]].concat());
        let swap = Swap::Put(Bytes::from_static(b"damaged"));
        let put = CompareAndSwap { key: key.into(), expected: None, swap };
        meta.compare_and_swap(vec![put], Durability::Fsync).await.unwrap();
    }
    for recovers in [false, true] {
        world.put("a", &content(LARGE)).await;
        world.objects.delete(&world.collection, &key("a"), &Condition::default()).await.unwrap();
        world.clock.advance(Duration::from_secs(60));
        let swept = if recovers { world.objects.recover().await.unwrap() } else { world.sweep().await };
        assert_eq!((swept.failed, swept.blobs), (16, 1), "recovers: {recovers}");
        assert!(world.blobs().is_empty());
    }
}

#[tokio::test]
async fn a_new_upload_reads_few_of_those_that_are_open_and_none_where_there_is_no_place() {
    let mut meta = None;
    let world = world_of(
        |clock| {
            let store = LateMeta::new(clock);
            meta = Some(Arc::clone(&store));
            store
        },
        |spec| spec.upload_max_open = 100,
    );
    let meta = meta.unwrap();
    let begin = async || world.objects.begin_upload(&world.collection, &key("a"), Metadata::default()).await;
    for _ in 0..50 {
        begin().await.unwrap();
    }
    assert!(meta.scanned.load(Ordering::Relaxed) < 50, "half of the places are free");
    let mut token = None;
    for _ in 50..100 {
        token = Some(begin().await.unwrap());
    }
    let before = meta.scanned.load(Ordering::Relaxed);
    for _ in 0..50 {
        assert!(matches!(begin().await, Err(UploadError::TooMany { limit: 100 })));
    }
    assert!(meta.scanned.load(Ordering::Relaxed) - before <= 100, "it is known for a while");
    // One that ends makes room at once; what ended elsewhere does after a second.
    world.objects.abort_upload(&world.collection, &key("a"), token.unwrap()).await.unwrap();
    begin().await.unwrap();
    assert!(begin().await.is_err());
    let open = MetaRange { prefix: Bytes::from_static(b"ou\0"), from: Bytes::new(), limit: 1 };
    let [MetaEntry { key, revision, .. }] = meta.store.scan(open).await.unwrap().try_into().unwrap();
    let elsewhere = CompareAndSwap { key, expected: Some(revision), swap: Swap::Delete };
    meta.store.compare_and_swap(vec![elsewhere], Durability::Fsync).await.unwrap();
    assert!(begin().await.is_err());
    world.clock.advance(Duration::from_secs(1));
    begin().await.unwrap();
}
