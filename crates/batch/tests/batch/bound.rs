//! What large objects may cost: what is known of one, and what those that are being written hold in memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tidegate_batch::service::{Get, Put};
use tidegate_batch::{BLOCK_BYTES, Collection, GetError, PutError, StoreError};
use tidegate_core::id::Name;
use tidegate_core::port::{MetaRange, MetaStore};
use tidegate_testkit::MemoryStore;
use tokio::sync::{oneshot, watch};

use crate::object::{body, content, key, world, world_of, world_with};

const PART_BYTES: u64 = 8 << 20;

#[tokio::test]
async fn what_is_known_of_an_object_does_not_grow_with_its_size() {
    let mut meta = None;
    let world = world_of(
        |clock| {
            let store = MemoryStore::new(Arc::new(clock));
            meta = Some(Arc::clone(&store));
            store
        },
        |spec| spec.object_max_bytes = 64 * BLOCK_BYTES as u64,
    );
    let meta = meta.unwrap();
    let mut lengths = Vec::new();
    for blocks in [1, 60] {
        world.put("a", &content(blocks * BLOCK_BYTES)).await;
        let all = MetaRange { prefix: Bytes::from_static(b"oh\0"), from: Bytes::new(), limit: 10 };
        let heads = meta.scan(all).await.unwrap();
        assert_eq!(heads.len(), 1);
        lengths.push(heads[0].value.as_ref().unwrap().len());
    }
    // The two lengths that stand in it, of the object and of its blob, are numbers of more digits.
    assert!(lengths[1] <= lengths[0] + 8, "{lengths:?}");
}

#[tokio::test]
async fn a_block_of_another_object_or_from_another_place_is_damage_though_it_is_whole() {
    let world = world();
    let bytes = content(3 * BLOCK_BYTES);
    world.put("a", &bytes).await;
    let [first] = &world.blobs()[..] else { panic!("one blob") };
    let good = std::fs::read(first).unwrap();
    let stride = BLOCK_BYTES + 4;
    assert_eq!(good.len(), 3 * stride, "a block and its checksum, three times");
    let is_damage = async || {
        let read = world.get("a", &Get::default()).await;
        assert!(matches!(read, Err(GetError::Store(StoreError::Corrupt { .. }))), "{read:?}");
    };
    let mut moved = good.clone();
    moved.copy_within(stride..2 * stride, 0);
    std::fs::write(first, &moved).unwrap();
    is_damage().await;
    world.put("b", &bytes).await;
    let other = world.blobs().into_iter().find(|path| path != first).unwrap();
    std::fs::copy(&other, first).unwrap();
    is_damage().await;
    std::fs::write(first, &good).unwrap();
    assert_eq!(world.get("a", &Get::default()).await.unwrap(), bytes);
}

#[tokio::test]
async fn writes_share_a_bound_of_bytes_and_one_that_waits_for_it_too_long_is_refused_and_stores_nothing() {
    let world = world_with(|spec| spec.write_buffer_bytes = PART_BYTES);
    let bytes = content(2 * BLOCK_BYTES);
    let (go, gone) = oneshot::channel::<()>();
    let (objects, collection) = (world.objects.clone(), world.collection.clone());
    let slow = body(&bytes).chain(stream::once(async {
        let _ = gone.await;
        Ok(Bytes::from_static(b"end"))
    }));
    let first = tokio::spawn(async move { objects.put(&collection, &key("slow"), Put::default(), slow.boxed()).await });
    tidegate_testkit::wait::until("the first write has its part", async || {
        world.objects.write_buffer_held_bytes() == PART_BYTES
    })
    .await;
    let (objects, collection, second) = (world.objects.clone(), world.collection.clone(), bytes.clone());
    let second =
        tokio::spawn(async move { objects.put(&collection, &key("late"), Put::default(), body(&second)).await });
    while !second.is_finished() {
        tokio::task::yield_now().await;
        world.clock.advance(Duration::from_secs(1));
    }
    let refused = second.await.unwrap();
    assert!(matches!(refused, Err(PutError::Busy { limit_bytes: PART_BYTES })), "{refused:?}");
    go.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap().info.length, bytes.len() as u64 + 3);
    assert_eq!(world.objects.write_buffer_held_bytes(), 0);
    tidegate_testkit::wait::until("nothing is left of the other", async || world.blobs().len() == 1).await;
}

#[tokio::test]
async fn uploads_of_one_tenant_that_trickle_keep_no_other_tenant_from_writing() {
    let world = world_with(|spec| spec.write_buffer_bytes = 4 * PART_BYTES);
    let bytes = content(2 * BLOCK_BYTES);
    // Each sends what is more than a small object, and then nothing for as long as it likes.
    let (go, gone) = watch::channel(false);
    let trickling: Vec<_> = (0..10)
        .map(|number| {
            let (objects, collection, mut gone) = (world.objects.clone(), world.collection.clone(), gone.clone());
            let slow = body(&bytes).chain(stream::once(async move {
                let _ = gone.wait_for(|gone| *gone).await;
                Ok(Bytes::from_static(b"end"))
            }));
            tokio::spawn(async move {
                objects.put(&collection, &key(&format!("slow/{number}")), Put::default(), slow.boxed()).await
            })
        })
        .collect();
    tidegate_testkit::wait::until("they have their share", async || {
        world.objects.write_buffer_held_bytes() == 2 * PART_BYTES
    })
    .await;
    let other = Collection { tenant: Name::new("other").unwrap(), ..world.collection.clone() };
    for number in 0..20 {
        let key = key(&number.to_string());
        let put = world.objects.put(&other, &key, Put::default(), body(&bytes));
        tidegate_testkit::wait::within("the other goes on", put).await.unwrap();
    }
    assert_eq!(world.objects.write_buffer_held_bytes(), 2 * PART_BYTES);
    while trickling.iter().filter(|task| task.is_finished()).count() < 8 {
        tokio::task::yield_now().await;
        world.clock.advance(Duration::from_secs(1));
    }
    go.send(true).unwrap();
    let ended = futures::future::join_all(trickling).await;
    let stored = ended.iter().filter(|ended| matches!(ended, Ok(Ok(_)))).count();
    let refused = ended.iter().filter(|ended| matches!(ended, Ok(Err(PutError::Busy { .. })))).count();
    assert_eq!((stored, refused), (2, 8));
    tidegate_testkit::wait::until("all is free", async || world.objects.write_buffer_held_bytes() == 0).await;
}

#[tokio::test]
async fn a_hundred_writers_that_share_one_part_all_come_to_their_end() {
    let world = world_with(|spec| {
        spec.write_buffer_bytes = PART_BYTES;
        spec.object_max_bytes = 2 * PART_BYTES;
    });
    // Every tenth needs more than one part.
    let (small, large) = (content(BLOCK_BYTES), content(PART_BYTES as usize + BLOCK_BYTES));
    let tasks: Vec<_> = (0..100)
        .map(|number| {
            let (objects, collection) = (world.objects.clone(), world.collection.clone());
            let bytes = if number % 10 == 0 { large.clone() } else { small.clone() };
            tokio::spawn(async move {
                objects.put(&collection, &key(&number.to_string()), Put::default(), body(&bytes)).await.is_ok()
            })
        })
        .collect();
    let ended = tidegate_testkit::wait::within("all have ended", futures::future::join_all(tasks)).await;
    assert!(ended.into_iter().all(|stored| stored.unwrap()));
    assert_eq!(world.objects.write_buffer_held_bytes(), 0);
}
