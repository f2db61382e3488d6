//! What a checkpoint holds, how it follows another, and what is shared.

use bytes::Bytes;
use futures::TryStreamExt as _;
use tidegate_checkpoint::{AppendError, InvalidDraft, Mode, Next, Spec, Written};
use tidegate_core::Timestamp;
use tidegate_core::position::{Offset, Partition, SourcePosition};
use tidegate_testkit::block_on;

use crate::world::{World, draft, name, noise, save, saved, whole};

#[test]
fn everything_that_was_saved_is_recovered_together() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let mut told = draft(17, 1_000);
        told.positions
            .entry(name("crm"))
            .or_default()
            .insert(Partition(3), Next::Source(SourcePosition("0/16B3748".into())));
        told.counts.insert(name("records"), 17);
        told.metadata.insert(name("version"), "7".into());
        told.pending.insert(name("sqlite"), vec![1, 2, 3]);
        let state = noise(1, 700_000);
        let mut making = writer.begin().await.unwrap();
        making.state(name("sums"), whole(state.clone())).await.unwrap();
        making.state(name("empty"), whole(Bytes::new())).await.unwrap();
        let Written::Done(id) = making.publish(told.clone()).await.unwrap() else { panic!() };
        assert_eq!(id.job, name("totals"));
        let _ = writer.release().await.unwrap();

        let (later, mut recovery) = world.claim(2, Mode::IfFree).await;
        let found = recovery.newest_whole().await.unwrap().unwrap();
        assert_eq!(found.checkpoint.id, id, "the identity and the time are in the bytes");
        assert!(later.epoch() > id.epoch);
        assert_eq!(found.positions(), &told.positions);
        assert_eq!(found.watermark(), told.watermark);
        assert_eq!(found.checkpoint.manifest.counts, told.counts);
        assert_eq!(found.checkpoint.manifest.metadata, told.metadata);
        assert_eq!(found.recommit, told.pending, "nobody said that it was committed");
        assert_eq!(found.state("sums").unwrap().read(1 << 20).await.unwrap(), state);
        assert_eq!(found.state("empty").unwrap().read(0).await.unwrap(), Bytes::new());
        assert!(found.state("sums").unwrap().read(1).await.is_err());
        assert!(recovery.rejected.is_empty());

        let Written::Done(()) = later.committed(id.generation).await.unwrap() else { panic!() };
        let Written::Done(()) = later.committed(id.generation).await.unwrap() else { panic!("twice is once") };
        let _ = later.release().await.unwrap();
        let (_, recovery) = world.claim(3, Mode::IfFree).await;
        assert!(recovery.newest().unwrap().recommit.is_empty());
    });
}

#[test]
fn the_same_content_is_the_same_bytes_whatever_the_order_it_was_given_in() {
    block_on(async {
        let mut slots = Vec::new();
        for order in [["a", "b", "c"], ["c", "a", "b"]] {
            let world = World::new();
            let (writer, _) = world.claim(1, Mode::IfFree).await;
            let mut told = draft(1, 1);
            let mut making = writer.begin().await.unwrap();
            for key in order {
                told.counts.insert(name(key), 1);
                told.metadata.insert(name(key), key.into());
            }
            making.state(name("sums"), whole(noise(1, 300_000))).await.unwrap();
            let _ = making.publish(told).await.unwrap();
            slots.push(world.bytes("root/totals/log/00000000000000000002").await);
        }
        assert_eq!(slots[0], slots[1]);
    });
}

#[test]
fn a_watermark_never_goes_back_and_a_refused_draft_changes_nothing() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        saved(&writer, noise(1, 10), draft(1, 1_000)).await;
        let before = world.objects().await;
        for bad in [draft(2, 999), tidegate_checkpoint::Draft { watermark: None, ..draft(2, 0) }] {
            let mut making = writer.begin().await.unwrap();
            making.state(name("sums"), whole(noise(2, 10))).await.unwrap();
            let refused = making.publish(bad).await;
            assert!(matches!(
                refused,
                Err(AppendError::Draft(InvalidDraft::WatermarkWentBack { from, .. })) if from == Timestamp::from_unix_ms(1_000)
            ));
        }
        assert_eq!(world.objects().await, before);
        saved(&writer, noise(2, 10), draft(2, 1_000)).await;
    });
}

#[test]
fn generations_strictly_rise_and_no_older_save_is_accepted() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let stale = writer.begin().await.unwrap();
        let first = saved(&writer, noise(1, 10), draft(1, 1)).await;
        let second = saved(&writer, noise(2, 10), draft(2, 2)).await;
        assert!(second.generation > first.generation);
        match stale.publish(draft(0, 0)).await {
            Err(AppendError::Overtaken { published }) => assert_eq!(published, second),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn what_did_not_change_is_not_written_again() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let state = noise(1, 8_000_000);
        saved(&writer, state.clone(), draft(1, 1)).await;
        let mut changed = state.to_vec();
        changed.splice(4_000_000..4_000_000, *b"inserted");
        let mut making = writer.begin().await.unwrap();
        making.state(name("sums"), whole(changed.clone().into())).await.unwrap();
        let stats = making.stats();
        assert!(stats.written_bytes <= 2 * 256 * 1_024, "{stats:?}");
        assert_eq!(stats.state_bytes, 8_000_008);
        let _ = making.publish(draft(2, 2)).await.unwrap();
        let _ = writer.release().await.unwrap();
        let (_, mut recovery) = world.claim(2, Mode::IfFree).await;
        let newest = recovery.newest_whole().await.unwrap().unwrap();
        let read: Vec<Bytes> = newest.state("sums").unwrap().stream().try_collect().await.unwrap();
        assert!(read.concat() == changed);
    });
}

#[test]
fn a_large_state_lies_in_few_objects() {
    block_on(async {
        let mut world = World::new();
        world.spec = Spec { pack_bytes: 1 << 20, ..Spec::default() };
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        saved(&writer, noise(1, 10 << 20), draft(1, 1)).await;
        let packs: Vec<_> = world.objects().await.into_iter().filter(|(path, _)| path.contains("/packs/")).collect();
        assert!((10..=14).contains(&packs.len()), "{packs:?}");
        assert!(packs.iter().all(|(_, bytes)| *bytes <= 1 << 20));
    });
}

#[test]
fn a_savepoint_has_its_name_once() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let named = || tidegate_checkpoint::Draft { savepoint: Some(name("before-upgrade")), ..draft(1, 1) };
        saved(&writer, noise(1, 10), named()).await;
        let mut making = writer.begin().await.unwrap();
        making.state(name("sums"), whole(noise(1, 10))).await.unwrap();
        assert!(matches!(making.publish(named()).await, Err(AppendError::Draft(InvalidDraft::SavepointExists { .. }))));
    });
}

#[test]
fn a_state_that_is_not_given_whole_is_not_saved() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let mut making = writer.begin().await.unwrap();
        let broken = futures::stream::iter([Ok(noise(1, 10)), Err(std::io::Error::other("the operator failed"))]);
        assert!(matches!(making.state(name("sums"), broken).await, Err(AppendError::State { .. })));
    });
}

#[test]
fn positions_say_the_next_to_read() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let _ = save(&writer, noise(1, 10), draft(0, 0)).await;
        let newest = writer.newest().unwrap();
        assert_eq!(newest.manifest.positions[&name("orders")][&Partition(0)], Next::Offset(Offset::ZERO));
    });
}

#[test]
fn a_state_of_too_many_chunks_for_a_manifest_has_its_lists_in_packs_and_is_checked_like_any_other() {
    block_on(async {
        let mut world = World::new();
        world.spec = Spec { inline_chunks: 4, ..Spec::default() };
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let mut state = noise(1, 3_000_000).to_vec();
        saved(&writer, state.clone().into(), draft(1, 1)).await;
        assert!(writer.newest().unwrap().manifest_bytes < 500);
        for n in 2..7_u8 {
            state[1_500_000] = n;
            let mut making = writer.begin().await.unwrap();
            making.state(name("sums"), whole(state.clone().into())).await.unwrap();
            assert!(making.stats().written_bytes < 300_000, "its chunk, and the list");
            assert!(matches!(making.publish(draft(n.into(), 1)).await.unwrap(), Written::Done(_)));
            assert!(matches!(writer.collect().await.unwrap(), Written::Done(_)));
        }
        let newest = writer.newest().unwrap();
        assert!(world.job(2).verify(newest.id.generation).await.unwrap().is_empty());
        let _ = writer.release().await.unwrap();
        let (_, mut recovery) = world.claim(2, Mode::IfFree).await;
        let found = recovery.newest_whole().await.unwrap().unwrap();
        assert!(found.state("sums").unwrap().read(1 << 22).await.unwrap() == state);
        // The list itself is damaged: named, and the predecessor is used.
        let (last, bytes) = newest.manifest.packs.last_key_value().unwrap();
        let path = format!("root/totals/packs/{last}");
        let mut damaged = world.bytes(&path).await;
        damaged[usize::try_from(*bytes).unwrap() - 1] ^= 1;
        world.overwrite(&path, damaged).await;
        let damages = world.job(2).verify(newest.id.generation).await.unwrap();
        assert_eq!(&*damages[0].object, path);
    });
}
