//! Writing, reading, listing, expiring and uploading objects, over a metadata store in memory and blobs in a real directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};
use tidegate_batch::blob::{self, Body};
use tidegate_batch::service::{ByteRange, Get, Got, ListRequest, Put, SweepPlace};
use tidegate_batch::{
    BLOCK_BYTES, Collection, Condition, Expiry, GetError, Metadata, ObjectKey, ObjectParts, ObjectService, ObjectSpec,
    PutError, Scopes, StoreError, Tier, Versions,
};
use tidegate_core::id::Name;
use tidegate_core::port::{Durability, MetaStore};
use tidegate_testkit::{Call, Fault, FaultyStore, ManualClock, MemoryStore, SeededEntropy};

pub(crate) const HOT_MAX: usize = 1_024;
/// Longer than a block, and not a whole number of them.
pub(crate) const LARGE: usize = 2 * BLOCK_BYTES + 12_345;

pub(crate) struct World {
    pub(crate) objects: ObjectService,
    pub(crate) clock: ManualClock,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) collection: Collection,
}

pub(crate) fn collection(scopes: &str) -> Collection {
    let name = |text| Name::new(text).unwrap();
    Collection { tenant: name("acme"), usecase: name("files"), scopes: Scopes::parse(scopes).unwrap() }
}

pub(crate) fn world() -> World {
    world_over(|clock| MemoryStore::new(Arc::new(clock)) as Arc<dyn MetaStore>)
}

pub(crate) fn world_over(meta: impl FnOnce(ManualClock) -> Arc<dyn MetaStore>) -> World {
    world_of(meta, |_| {})
}

pub(crate) fn world_with(change: impl FnOnce(&mut ObjectSpec)) -> World {
    world_of(|clock| MemoryStore::new(Arc::new(clock)) as Arc<dyn MetaStore>, change)
}

pub(crate) fn world_of(
    meta: impl FnOnce(ManualClock) -> Arc<dyn MetaStore>,
    change: impl FnOnce(&mut ObjectSpec),
) -> World {
    let clock = ManualClock::new();
    let folder = tempfile::tempdir().unwrap();
    let mut spec = ObjectSpec::default();
    spec.hot_max_bytes = HOT_MAX as u64;
    spec.object_max_bytes = 4 * BLOCK_BYTES as u64;
    change(&mut spec);
    let objects = ObjectService::new(ObjectParts {
        meta: meta(clock.clone()),
        cold: blob::local(folder.path()).unwrap(),
        clock: Arc::new(clock.clone()),
        entropy: Arc::new(SeededEntropy::new(1)),
        durability: Durability::Fsync,
        spec,
    });
    World { objects: objects.unwrap(), clock, folder, collection: collection("org=17") }
}

pub(crate) fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

pub(crate) fn content(length: usize) -> Bytes {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect::<Vec<_>>().into()
}

pub(crate) fn body(bytes: &Bytes) -> Body<'static> {
    let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    futures::stream::iter(pieces).boxed()
}

impl World {
    pub(crate) async fn put(&self, name: &str, bytes: &Bytes) -> tidegate_batch::service::Written {
        self.objects.put(&self.collection, &key(name), Put::default(), body(bytes)).await.unwrap()
    }

    pub(crate) async fn get(&self, name: &str, get: &Get) -> Result<Bytes, GetError> {
        match self.objects.get(&self.collection, &key(name), get).await? {
            Got::Object(object) => {
                let pieces: Vec<Bytes> = object.body.try_collect().await?;
                let bytes = Bytes::from(pieces.concat());
                assert_eq!(bytes.len() as u64, object.range.end - object.range.start);
                Ok(bytes)
            }
            Got::NotModified(_) => panic!("nothing was made a condition"),
        }
    }

    pub(crate) async fn sweep(&self) -> tidegate_batch::service::Swept {
        self.objects.sweep(&mut SweepPlace::default()).await.unwrap()
    }

    pub(crate) fn blobs(&self) -> Vec<PathBuf> {
        fn walk(folder: &std::path::Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        found
    }
}

#[tokio::test]
async fn an_object_of_any_size_comes_back_as_it_was_written() {
    let world = world();
    for (length, tier) in [
        (0, Tier::Hot),
        (1, Tier::Hot),
        (HOT_MAX, Tier::Hot),
        (HOT_MAX + 1, Tier::Cold),
        (BLOCK_BYTES - 1, Tier::Cold),
        (BLOCK_BYTES, Tier::Cold),
        (BLOCK_BYTES + 1, Tier::Cold),
        (LARGE, Tier::Cold),
    ] {
        let bytes = content(length);
        let written = world.put("a", &bytes).await;
        assert_eq!((written.info.tier, written.info.length), (tier, length as u64));
        assert_eq!(written.created, length == 0, "replaced is told from created");
        assert_eq!(world.get("a", &Get::default()).await.unwrap(), bytes, "{length}");
    }
}

#[tokio::test]
async fn a_range_gives_exactly_its_bytes_across_blocks_and_one_beyond_the_end_is_refused_with_the_length() {
    let world = world();
    for length in [HOT_MAX, LARGE] {
        let bytes = content(length);
        world.put("a", &bytes).await;
        let end = length as u64;
        let block = BLOCK_BYTES as u64;
        for range in [
            ByteRange::From(0),
            ByteRange::From(end - 1),
            ByteRange::FromTo(3, 3),
            ByteRange::FromTo(0, u64::MAX),
            ByteRange::FromTo(block - 1, block),
            ByteRange::FromTo(block, 2 * block - 1),
            ByteRange::Last(1),
            ByteRange::Last(block + 1),
            ByteRange::Last(u64::MAX),
        ] {
            let Some(wanted) = range.within(end) else { continue };
            let expected = bytes.slice(wanted.start as usize..wanted.end as usize);
            let get = Get { range: Some(range), ..Get::default() };
            assert_eq!(world.get("a", &get).await.unwrap(), expected, "{range:?} of {length}");
        }
        for range in [ByteRange::From(end), ByteRange::FromTo(5, 4), ByteRange::Last(0)] {
            let get = Get { range: Some(range), ..Get::default() };
            assert!(matches!(world.get("a", &get).await, Err(GetError::Range { length }) if length == end));
        }
    }
}

#[tokio::test]
async fn collections_share_nothing_and_a_key_never_becomes_a_path() {
    let world = world();
    let other = collection("org=18");
    for name in ["..", "../../etc/passwd", "/etc/passwd", "a//b/", "%2e", "😀"] {
        world.put(name, &content(LARGE)).await;
        assert!(matches!(world.objects.get(&other, &key(name), &Get::default()).await, Err(GetError::NotFound { .. })));
        assert_eq!(world.get(name, &Get::default()).await.unwrap().len(), LARGE);
    }
    for path in world.blobs() {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }
}

#[tokio::test]
async fn conditions_are_judged_in_the_same_step_as_the_change() {
    let world = world();
    let first = world.put("a", &content(10)).await.info.version;
    let put = |condition: Condition| Put { condition, ..Put::default() };
    for bytes in [content(11), content(LARGE)] {
        let absent = world.objects.put(&world.collection, &key("a"), put(Condition::absent()), body(&bytes)).await;
        assert!(matches!(absent, Err(PutError::Precondition(failed)) if failed.current == Some(first)));
    }
    let second =
        world.objects.put(&world.collection, &key("a"), put(Condition::is(first)), body(&content(LARGE))).await;
    let second = second.unwrap().info.version;
    let stale = world.objects.delete(&world.collection, &key("a"), &Condition::is(first)).await;
    assert!(matches!(stale, Err(PutError::Precondition(_))));
    let unchanged = Get {
        condition: Condition { if_match: None, if_none_match: Some(Versions::OneOf(vec![first, second])) },
        ..Get::default()
    };
    assert!(matches!(
        world.objects.get(&world.collection, &key("a"), &unchanged).await,
        Ok(Got::NotModified(info)) if info.version == second
    ));
    assert!(world.objects.delete(&world.collection, &key("a"), &Condition::is(second)).await.unwrap());
    assert!(!world.objects.delete(&world.collection, &key("a"), &Condition::default()).await.unwrap());
}

#[tokio::test]
async fn of_two_hundred_writers_that_want_the_object_absent_one_wins() {
    let world = world();
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let (objects, collection) = (world.objects.clone(), world.collection.clone());
            tokio::spawn(async move {
                let put = Put { condition: Condition::absent(), ..Put::default() };
                let bytes = content(if number % 2 == 0 { 10 } else { HOT_MAX + 1 });
                objects.put(&collection, &key("a"), put, body(&bytes)).await.is_ok()
            })
        })
        .collect();
    let won = futures::future::join_all(tasks).await.into_iter().filter(|won| *won.as_ref().unwrap()).count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn bytes_that_break_off_are_too_many_or_are_not_those_announced_leave_nothing() {
    let world = world();
    let before = content(20);
    world.put("a", &before).await;
    for length in [10, LARGE] {
        let whole = content(length);
        let cut: Body<'static> = body(&whole).chain(futures::stream::once(async { Err("cut".into()) })).boxed();
        let broken = world.objects.put(&world.collection, &key("a"), Put::default(), cut).await;
        assert!(matches!(broken, Err(PutError::Body(_))));
        let sha256 = Some(Sha256::digest(content(length + 1)).into());
        let wrong = Put { sha256, ..Put::default() };
        let wrong = world.objects.put(&world.collection, &key("a"), wrong, body(&whole)).await;
        assert!(matches!(wrong, Err(PutError::Checksum)));
        let sha256 = Some(Sha256::digest(&whole).into());
        let right = Put { sha256, ..Put::default() };
        world.objects.put(&world.collection, &key("right"), right, body(&whole)).await.unwrap();
    }
    let much = content(4 * BLOCK_BYTES + 1);
    let large = world.objects.put(&world.collection, &key("a"), Put::default(), body(&much)).await;
    assert!(matches!(large, Err(PutError::TooLarge { .. })));
    assert_eq!(world.get("a", &Get::default()).await.unwrap(), before);
    // What was begun is cleared away beside the callers.
    tidegate_testkit::wait::until("the blobs of failed writes are gone", async || world.blobs().len() == 1).await;
}

#[tokio::test]
async fn an_expired_object_is_absent_for_all_at_once_and_its_bytes_go_with_the_sweep() {
    let world = world();
    let minute = Duration::from_secs(60);
    for (name, length) in [("small", 10), ("large", LARGE)] {
        let metadata = Metadata { expiry: Expiry::TimeToLive(minute), ..Metadata::default() };
        let put = Put { metadata, ..Put::default() };
        world.objects.put(&world.collection, &key(name), put, body(&content(length))).await.unwrap();
    }
    world.clock.advance(minute - Duration::from_millis(1));
    assert!(world.get("small", &Get::default()).await.is_ok());
    world.clock.advance(Duration::from_millis(1));
    for name in ["small", "large"] {
        assert!(matches!(world.get(name, &Get::default()).await, Err(GetError::NotFound { .. })));
    }
    let listed = world.objects.list(&world.collection, &ListRequest { limit: 10, ..ListRequest::default() }).await;
    assert!(listed.unwrap().objects.is_empty());
    assert!(world.put("small", &content(5)).await.created, "a new one is created");
    assert_eq!(world.sweep().await.expired, 1);
    world.clock.advance(minute);
    assert_eq!(world.sweep().await.blobs, 1);
    assert!(world.blobs().is_empty());
    assert_eq!(world.get("small", &Get::default()).await.unwrap(), content(5));
}

#[tokio::test]
async fn an_idle_object_goes_and_one_that_is_read_stays_with_one_note_a_quarter_of_the_time() {
    let world = world();
    let hour = Duration::from_secs(3_600);
    let metadata = Metadata { expiry: Expiry::TimeToIdle(hour), ..Metadata::default() };
    for name in ["read", "idle"] {
        let put = Put { metadata: metadata.clone(), ..Put::default() };
        world.objects.put(&world.collection, &key(name), put, body(&content(10))).await.unwrap();
    }
    for _ in 0..8 {
        world.clock.advance(hour / 3);
        assert!(world.get("read", &Get::default()).await.is_ok());
    }
    assert!(matches!(world.get("idle", &Get::default()).await, Err(GetError::NotFound { .. })));
    // A use that comes early is not noted: the time still runs from the noted one.
    world.clock.advance(hour / 8);
    assert!(world.get("read", &Get::default()).await.is_ok());
    world.clock.advance(hour * 7 / 8);
    assert!(matches!(world.get("read", &Get::default()).await, Err(GetError::NotFound { .. })));
}

#[tokio::test]
async fn a_use_that_is_noted_is_told_with_the_time_that_it_gives() {
    let world = world();
    let hour = Duration::from_secs(3_600);
    let metadata = Metadata { expiry: Expiry::TimeToIdle(hour), ..Metadata::default() };
    let put = Put { metadata, ..Put::default() };
    let written = world.objects.put(&world.collection, &key("a"), put, body(&content(10))).await.unwrap();
    world.clock.advance(hour / 2);
    let Ok(Got::Object(object)) = world.objects.head(&world.collection, &key("a"), &Condition::default()).await else {
        panic!("it is there")
    };
    let later = |info: &tidegate_batch::ObjectInfo| info.expires.unwrap().unix_ms();
    assert_eq!(later(&object.info) - later(&written.info), 1_800_000);
}

#[tokio::test]
async fn a_listing_is_in_order_in_pages_and_by_prefix() {
    let world = world();
    let mut names: Vec<String> = (0..25).map(|number| format!("a/{number:02}")).collect();
    names.extend(["b".into(), "a".into(), "a0".into()]);
    for name in &names {
        world.put(name, &content(3)).await;
    }
    names.sort();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let request = ListRequest { prefix: String::new(), after, limit: 10 };
        let page = world.objects.list(&world.collection, &request).await.unwrap();
        assert!(page.objects.len() <= 10);
        found.extend(page.objects.iter().map(|object| object.key.as_str().to_owned()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, names);
    let request = ListRequest { prefix: "a/".into(), after: Some(key("a/22")), limit: 100 };
    let page = world.objects.list(&world.collection, &request).await.unwrap();
    assert_eq!(page.objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["a/23", "a/24"]);
}

#[tokio::test]
async fn a_blob_that_was_changed_cut_or_deleted_behind_our_back_is_told_and_never_given() {
    let world = world();
    world.put("a", &content(LARGE)).await;
    let [path] = &world.blobs()[..] else { panic!("one blob") };
    let good = std::fs::read(path).unwrap();
    let damaged = |bytes: &[u8]| std::fs::write(path, bytes).unwrap();
    let mut flipped = good.clone();
    flipped[BLOCK_BYTES + 5] ^= 1;
    damaged(&flipped);
    let Got::Object(object) = world.objects.get(&world.collection, &key("a"), &Get::default()).await.unwrap() else {
        panic!("it is there")
    };
    let mut given = 0;
    let mut bytes = object.body;
    let error = loop {
        match bytes.next().await.unwrap() {
            Ok(piece) => given += piece.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, GetError::Store(StoreError::Corrupt { .. })));
    assert_eq!(given, BLOCK_BYTES, "the whole block before it, and no byte of it");
    // A part that lies in another block is not affected.
    let get = Get { range: Some(ByteRange::FromTo(0, 9)), ..Get::default() };
    assert_eq!(world.get("a", &get).await.unwrap(), content(LARGE).slice(..10));
    damaged(&good[..BLOCK_BYTES + 100]);
    assert!(matches!(world.get("a", &Get::default()).await, Err(GetError::Store(_))));
    std::fs::remove_file(path).unwrap();
    let gone = world.get("a", &Get::default()).await;
    assert!(matches!(gone, Err(GetError::Store(StoreError::Corrupt { .. }))), "{gone:?}");
}

#[tokio::test]
async fn what_a_reader_is_reading_stays_for_the_grace_and_goes_then() {
    let world = world();
    world.put("a", &content(LARGE)).await;
    let Got::Object(object) = world.objects.get(&world.collection, &key("a"), &Get::default()).await.unwrap() else {
        panic!("it is there")
    };
    world.put("a", &content(3)).await;
    assert_eq!(world.sweep().await.blobs, 0);
    let pieces: Vec<Bytes> = object.body.try_collect().await.unwrap();
    assert_eq!(pieces.concat(), content(LARGE));
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(world.sweep().await.blobs, 1);
    assert!(world.blobs().is_empty());
}

#[tokio::test]
async fn a_write_that_is_dropped_in_the_middle_leaves_nothing() {
    let world = world();
    {
        let endless: Body<'static> = body(&content(LARGE)).chain(futures::stream::pending()).boxed();
        let collection = world.collection.clone();
        let name = key("a");
        let mut put = std::pin::pin!(world.objects.put(&collection, &name, Put::default(), endless));
        tokio::select! {
            biased;
            done = &mut put => panic!("the bytes do not end: {done:?}"),
            () = tidegate_testkit::wait::until("the write has begun", async || !world.blobs().is_empty()) => {}
        }
    }
    tidegate_testkit::wait::until("what was begun is gone", async || world.blobs().is_empty()).await;
    assert!(matches!(world.get("a", &Get::default()).await, Err(GetError::NotFound { .. })));
}

#[tokio::test]
async fn a_change_that_storage_does_not_answer_is_found_out_and_answered() {
    for (applied, length) in [(true, 10), (false, 10), (true, LARGE), (false, LARGE)] {
        let mut faulty = None;
        let world = world_over(|clock| {
            let store = FaultyStore::new(MemoryStore::new(Arc::new(clock)), 7);
            faulty = Some(Arc::clone(&store));
            store
        });
        let faulty = faulty.unwrap();
        let fail_next = || faulty.plan().fail_next_of(Call::Swap, 1, Fault::Indeterminate { applied });
        world.put("a", &content(3)).await;
        // Of a large write the first swap is its intent.
        if length == 10 {
            fail_next();
            world.put("a", &content(length)).await;
        } else {
            world.put("a", &content(length)).await;
            fail_next();
            assert!(world.objects.delete(&world.collection, &key("a"), &Condition::default()).await.unwrap());
            world.put("a", &content(length)).await;
        }
        assert_eq!(world.get("a", &Get::default()).await.unwrap(), content(length), "{applied} {length}");
    }
}

#[test]
fn a_local_directory_is_cleared_of_what_an_earlier_process_left_aside_and_of_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("blobs/ab");
    std::fs::create_dir_all(&deep).unwrap();
    let blob = "ab".repeat(16);
    let kept = [deep.join(&blob), deep.join("notes#1"), folder.path().join("notes#1")];
    let staged = deep.join(format!("{blob}#12"));
    for path in kept.iter().chain([&staged]) {
        std::fs::write(path, "bytes").unwrap();
    }
    blob::local(folder.path()).unwrap();
    assert!(!staged.exists() && kept.iter().all(|path| path.exists()));
}
