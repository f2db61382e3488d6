//! Uploads in parts: in any order, in one step, bound to their object, and never left over.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_batch::service::{ByteRange, Get, NamedPart, UploadToken};
use tidegate_batch::{BLOCK_BYTES, Condition, GetError, Metadata, PutError, StoreError, UploadError};
use tidegate_core::port::MetaStore;
use tidegate_testkit::{Call, Fault, FaultyStore, MemoryStore};

use crate::object::{LARGE, World, body, collection, content, key, world, world_of, world_over};
use crate::world::{Gate, GatedMeta};

/// A world whose metadata store lets others go first now and then, by chance: what happens at once meets in it.
fn world_that_yields(seed: u64, upload_max_open: u64) -> World {
    let gated = |clock| {
        let store = MemoryStore::new(Arc::new(clock));
        Arc::new(GatedMeta { store, gate: Gate::new(seed, i64::MAX) }) as Arc<dyn MetaStore>
    };
    world_of(gated, |spec| spec.upload_max_open = upload_max_open)
}

#[tokio::test]
async fn an_upload_takes_its_parts_in_any_order_and_makes_the_object_in_one_step() {
    let world = world();
    let (collection, name) = (&world.collection, &key("a"));
    let metadata = Metadata { content_type: Some("text/plain".into()), ..Metadata::default() };
    let token = world.objects.begin_upload(collection, name, metadata.clone()).await.unwrap();
    let token = UploadToken::parse(&token.to_string()).unwrap();
    let parts = [content(LARGE), content(5), content(BLOCK_BYTES)];
    for number in [3, 1, 2] {
        let part = body(&parts[number as usize - 1]);
        world.objects.put_part(collection, name, token, number, None, part).await.unwrap();
    }
    assert!(matches!(world.get("a", &Get::default()).await, Err(GetError::NotFound { .. })));
    let written = world.objects.complete_upload(collection, name, token, None, &Condition::default()).await.unwrap();
    assert!(written.created && written.info.metadata == metadata);
    let whole = Bytes::from(parts.concat());
    assert_eq!(world.get("a", &Get::default()).await.unwrap(), whole);
    let get = Get { range: Some(ByteRange::FromTo(LARGE as u64 - 1, LARGE as u64 + 6)), ..Get::default() };
    assert_eq!(world.get("a", &get).await.unwrap(), whole.slice(LARGE - 1..LARGE + 7));
    // It has ended.
    let late = world.objects.put_part(collection, name, token, 4, None, body(&content(1))).await;
    assert!(matches!(late, Err(UploadError::Unknown)));
    world.objects.delete(collection, name, &Condition::default()).await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    world.sweep().await;
    assert!(world.blobs().is_empty());
}

#[tokio::test]
async fn parts_that_are_missing_out_of_order_or_another_are_refused_and_the_upload_goes_on() {
    let world = world();
    let (collection, name) = (&world.collection, &key("a"));
    let token = world.objects.begin_upload(collection, name, Metadata::default()).await.unwrap();
    let complete = async |named: Option<&[NamedPart]>| {
        world.objects.complete_upload(collection, name, token, named, &Condition::default()).await
    };
    assert!(matches!(complete(None).await, Err(UploadError::Missing { number: 1 })));
    let first = world.objects.put_part(collection, name, token, 1, None, body(&content(10))).await.unwrap();
    let third = world.objects.put_part(collection, name, token, 3, None, body(&content(30))).await.unwrap();
    assert!(matches!(complete(None).await, Err(UploadError::Missing { number: 2 })));
    let named = |number, version| NamedPart { number, version };
    for (parts, wrong) in [
        (vec![named(3, None), named(1, None)], UploadError::Order { number: 1 }),
        (vec![named(1, None), named(1, None)], UploadError::Order { number: 1 }),
        (vec![named(1, None), named(2, None)], UploadError::Missing { number: 2 }),
        (vec![named(1, Some(third.version))], UploadError::Replaced { number: 1 }),
        (vec![], UploadError::Missing { number: 1 }),
    ] {
        let refused = complete(Some(&parts)).await.unwrap_err();
        assert_eq!(refused.to_string(), wrong.to_string());
    }
    for number in [0, 1_001] {
        let refused = world.objects.put_part(collection, name, token, number, None, body(&content(1))).await;
        assert!(matches!(refused, Err(UploadError::Number { .. })));
    }
    let parts = [named(1, Some(first.version)), named(3, Some(third.version))];
    complete(Some(&parts)).await.unwrap();
    assert_eq!(world.get("a", &Get::default()).await.unwrap().len(), 40);
}

#[tokio::test]
async fn an_upload_id_is_bound_to_its_object_and_nobody_can_make_one() {
    let world = world();
    let token = world.objects.begin_upload(&world.collection, &key("a"), Metadata::default()).await.unwrap();
    let mut forged = hex::decode(token.to_string()).unwrap();
    forged[31] ^= 1;
    let forged = UploadToken::parse(&hex::encode(forged)).unwrap();
    let other = collection("org=18");
    for (collection, name, token) in
        [(&world.collection, "a", forged), (&world.collection, "b", token), (&other, "a", token)]
    {
        let refused = world.objects.put_part(collection, &key(name), token, 1, None, body(&content(1))).await;
        assert!(matches!(refused, Err(UploadError::Unknown)), "{name}");
        let refused = world.objects.abort_upload(collection, &key(name), token).await;
        assert!(matches!(refused, Err(UploadError::Unknown)), "{name}");
    }
    for text in ["", "00", "zz", &"0".repeat(63), &"g".repeat(64)] {
        assert!(UploadToken::parse(text).is_none());
    }
}

#[tokio::test]
async fn a_part_that_comes_while_the_upload_is_completed_or_aborted_is_in_it_or_refused_and_never_left_over() {
    for seed in 0..80 {
        let world = world();
        let (objects, collection) = (&world.objects, &world.collection);
        let name = &key("a");
        let token = objects.begin_upload(collection, name, Metadata::default()).await.unwrap();
        objects.put_part(collection, name, token, 1, None, body(&content(10))).await.unwrap();
        let part = async {
            for _ in 0..seed % 8 {
                tokio::task::yield_now().await;
            }
            objects.put_part(collection, name, token, 2, None, body(&content(20))).await
        };
        let end = async {
            for _ in 0..seed / 8 {
                tokio::task::yield_now().await;
            }
            if seed % 2 == 0 {
                objects.complete_upload(collection, name, token, None, &Condition::default()).await.map(drop)
            } else {
                objects.abort_upload(collection, name, token).await
            }
        };
        let (part, end) = tokio::join!(part, end);
        match end {
            Ok(()) if seed % 2 == 0 => {
                let length = if part.is_ok() { 30 } else { 10 };
                assert_eq!(world.get("a", &Get::default()).await.unwrap().len(), length, "seed {seed}");
                objects.delete(collection, name, &Condition::default()).await.unwrap();
            }
            Ok(()) => {}
            Err(error) => {
                assert!(matches!(error, UploadError::Put(PutError::Store(StoreError::Contended))), "{error}");
                objects.abort_upload(collection, name, token).await.unwrap();
            }
        }
        world.clock.advance(Duration::from_secs(60));
        world.sweep().await;
        // A part that was refused is cleared away beside its caller.
        tidegate_testkit::wait::until("no blob is left", async || world.blobs().is_empty()).await;
        assert_eq!(world.sweep().await.failed, 0, "seed {seed}");
    }
}

#[tokio::test]
async fn an_upload_that_takes_too_long_is_given_up_with_its_parts() {
    let world = world();
    let token = world.objects.begin_upload(&world.collection, &key("a"), Metadata::default()).await.unwrap();
    world.objects.put_part(&world.collection, &key("a"), token, 1, None, body(&content(LARGE))).await.unwrap();
    world.clock.advance(Duration::from_secs(7 * 24 * 3_600));
    assert_eq!(world.sweep().await.uploads, 1);
    world.sweep().await;
    assert!(world.blobs().is_empty());
    let late = world.objects.parts(&world.collection, &key("a"), token).await;
    assert!(matches!(late, Err(UploadError::Unknown)));
}

#[tokio::test]
async fn a_completion_that_storage_did_not_make_is_not_answered_as_made_whatever_others_do_to_the_upload() {
    let mut faulty = None;
    let world = world_over(|clock| {
        let store = FaultyStore::new(MemoryStore::new(Arc::new(clock)), 7);
        faulty = Some(Arc::clone(&store));
        store
    });
    let faulty = faulty.unwrap();
    let (objects, collection) = (&world.objects, &world.collection);
    let name = &key("a");
    for aborts in [false, true] {
        let token = objects.begin_upload(collection, name, Metadata::default()).await.unwrap();
        objects.put_part(collection, name, token, 1, None, body(&content(10))).await.unwrap();
        faulty.plan().fail_next_of(Call::Swap, 1, Fault::Indeterminate { applied: false });
        faulty.plan().hold_answers(Call::Swap);
        let condition = Condition::default();
        let complete = objects.complete_upload(collection, name, token, None, &condition);
        let others = async {
            faulty.plan().wait_for_held(1).await;
            faulty.plan().resume();
            if aborts {
                let _ = objects.abort_upload(collection, name, token).await;
            } else {
                let _ = objects.put_part(collection, name, token, 1, None, body(&content(20))).await;
            }
        };
        let (completed, ()) = tokio::join!(complete, others);
        let there = world.get("a", &Get::default()).await;
        assert_eq!(completed.is_ok(), there.is_ok(), "{completed:?}");
        let _ = objects.delete(collection, name, &condition).await;
        let _ = objects.abort_upload(collection, name, token).await;
    }
}

#[tokio::test]
async fn a_later_blob_of_an_object_that_is_lost_or_cut_is_damage_and_not_a_replacement() {
    let world = world();
    let (objects, collection) = (&world.objects, &world.collection);
    let name = &key("a");
    let token = objects.begin_upload(collection, name, Metadata::default()).await.unwrap();
    objects.put_part(collection, name, token, 1, None, body(&content(10))).await.unwrap();
    let [first] = &world.blobs()[..] else { panic!("one blob") };
    objects.put_part(collection, name, token, 2, None, body(&content(LARGE))).await.unwrap();
    objects.complete_upload(collection, name, token, None, &Condition::default()).await.unwrap();
    let second = world.blobs().into_iter().find(|path| path != first).unwrap();
    let good = std::fs::read(&second).unwrap();
    let is_damage = async || {
        let read = world.get("a", &Get::default()).await;
        assert!(matches!(read, Err(GetError::Store(StoreError::Corrupt { .. }))), "{read:?}");
        let get = Get { range: Some(ByteRange::From(10 + BLOCK_BYTES as u64)), ..Get::default() };
        let read = world.get("a", &get).await;
        assert!(matches!(read, Err(GetError::Store(StoreError::Corrupt { .. }))), "{read:?}");
    };
    for length in [0, 10, BLOCK_BYTES, good.len() - 1] {
        std::fs::write(&second, &good[..length]).unwrap();
        is_damage().await;
    }
    std::fs::remove_file(&second).unwrap();
    is_damage().await;
}

#[tokio::test]
async fn however_many_begin_at_once_a_tenant_has_no_more_uploads_open_than_it_may() {
    let world = world_that_yields(3, 10);
    let begin = |number: usize| {
        let (objects, collection) = (world.objects.clone(), world.collection.clone());
        async move { objects.begin_upload(&collection, &key(&number.to_string()), Metadata::default()).await }
    };
    let tasks: Vec<_> = (0..200).map(|number| tokio::spawn(begin(number))).collect();
    let begun: Vec<_> = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).enumerate().collect();
    let mut open = Vec::new();
    for (number, begun) in begun {
        match begun {
            Ok(token) => open.push((key(&number.to_string()), token)),
            Err(UploadError::TooMany { limit: 10 }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(open.len(), 10);
    // A place that is free again is used again, and the id that had it before stays unknown.
    let (name, token) = open.pop().unwrap();
    world.objects.abort_upload(&world.collection, &name, token).await.unwrap();
    world.objects.begin_upload(&world.collection, &name, Metadata::default()).await.unwrap();
    let late = world.objects.put_part(&world.collection, &name, token, 1, None, body(&content(1))).await;
    assert!(matches!(late, Err(UploadError::Unknown)));
    assert!(matches!(begin(7).await, Err(UploadError::TooMany { .. })));
}

#[tokio::test]
async fn completions_at_the_same_time_are_all_answered_the_same() {
    for seed in 0..100 {
        let world = world_that_yields(seed, 10);
        let (objects, collection) = (&world.objects, &world.collection);
        let name = &key("a");
        let token = objects.begin_upload(collection, name, Metadata::default()).await.unwrap();
        let part = objects.put_part(collection, name, token, 1, None, body(&content(10))).await.unwrap();
        let named = [NamedPart { number: 1, version: Some(part.version) }];
        let named = (seed % 2 == 0).then_some(named.as_slice());
        let condition = Condition::absent();
        let complete = || objects.complete_upload(collection, name, token, named, &condition);
        let (first, second, third) = tokio::join!(complete(), complete(), complete());
        let first = first.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(first.created);
        for other in [second, third] {
            assert_eq!(other.unwrap_or_else(|error| panic!("seed {seed}: {error}")), first, "seed {seed}");
        }
    }
}

#[tokio::test]
async fn a_completion_whose_answer_was_lost_is_answered_the_same_again_for_a_while_and_done_once() {
    let world = world();
    let (objects, collection) = (&world.objects, &world.collection);
    let name = &key("a");
    let condition = Condition::absent();
    let token = objects.begin_upload(collection, name, Metadata::default()).await.unwrap();
    objects.put_part(collection, name, token, 1, None, body(&content(LARGE))).await.unwrap();
    let complete = || objects.complete_upload(collection, name, token, None, &condition);
    let first = complete().await.unwrap();
    assert!(first.created);
    assert_eq!(complete().await.unwrap(), first);
    // Also when the object is another by now, which stays as it is.
    world.put("a", &content(5)).await;
    assert_eq!(complete().await.unwrap(), first);
    assert_eq!(world.get("a", &Get::default()).await.unwrap().len(), 5);
    assert!(objects.abort_upload(collection, name, token).await.is_err(), "it has ended");
    world.clock.advance(objects.spec().completed_keep);
    assert!(matches!(complete().await, Err(UploadError::Unknown)));
    world.sweep().await;
}
