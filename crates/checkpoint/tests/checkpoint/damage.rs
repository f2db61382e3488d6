//! Bytes that are not those that were written: all of them are refused, and named.

use tidegate_checkpoint::{DamageKind, Generation, Mode};
use tidegate_core::Failure as _;
use tidegate_testkit::block_on;

use crate::world::{World, draft, name, noise, saved};

/// Two checkpoints; gives the path of the newest one's slot and that of its pack.
async fn two() -> (World, String, String) {
    let world = World::new();
    let (writer, _) = world.claim(1, Mode::IfFree).await;
    saved(&writer, noise(1, 300), draft(1, 1)).await;
    let newest = saved(&writer, noise(2, 300), draft(2, 2)).await;
    let _ = writer.release().await.unwrap();
    let pack = *writer.newest().unwrap().manifest.packs.keys().next().unwrap();
    (world, format!("root/totals/log/{:020}", newest.generation.0), format!("root/totals/packs/{pack}"))
}

/// Recovery gives the predecessor, and says what is wrong with which object.
async fn falls_back(world: &World, object: &str) {
    let (writer, mut recovery) = world.claim(9, Mode::IfFree).await;
    let found = recovery.newest_whole().await.unwrap().unwrap();
    assert_eq!(found.checkpoint.id.generation, Generation(2));
    assert_eq!(found.state("sums").unwrap().read(300).await.unwrap(), noise(1, 300));
    let rejected = &recovery.rejected;
    assert!(rejected.iter().any(|rejected| &*rejected.damage.object == object), "{rejected:?}");
    // As it was.
    let _ = writer.release().await.unwrap();
    for generation in [5, 6] {
        world.delete(&format!("root/totals/log/{generation:020}")).await;
    }
}

#[test]
fn every_flipped_bit_cut_and_added_byte_of_a_slot_is_refused_and_its_predecessor_used() {
    block_on(async {
        let (world, slot, _) = two().await;
        let bytes = world.bytes(&slot).await;
        for at in 0..bytes.len() {
            for bit in [0, 7] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                world.overwrite(&slot, flipped).await;
                falls_back(&world, &slot).await;
            }
            world.overwrite(&slot, bytes[..at].to_vec()).await;
            falls_back(&world, &slot).await;
        }
        world.overwrite(&slot, [&bytes[..], &[0]].concat()).await;
        falls_back(&world, &slot).await;
        let others = world.bytes("root/totals/log/00000000000000000002").await;
        world.overwrite(&slot, others).await;
        falls_back(&world, &slot).await;
    });
}

#[test]
fn every_flipped_bit_cut_and_added_byte_of_a_pack_is_refused_and_its_predecessor_used() {
    block_on(async {
        let (world, _, pack) = two().await;
        let bytes = world.bytes(&pack).await;
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                world.overwrite(&pack, flipped).await;
                falls_back(&world, &pack).await;
            }
            world.overwrite(&pack, bytes[..at].to_vec()).await;
            falls_back(&world, &pack).await;
        }
        world.overwrite(&pack, [&bytes[..], &[0]].concat()).await;
        falls_back(&world, &pack).await;
        world.delete(&pack).await;
        falls_back(&world, &pack).await;
    });
}

#[test]
fn verify_names_the_object_and_the_chunk() {
    block_on(async {
        let (world, slot, pack) = two().await;
        let job = world.job(7);
        assert!(job.verify(Generation(3)).await.unwrap().is_empty());
        let mut bytes = world.bytes(&pack).await;
        bytes[17] ^= 1;
        world.overwrite(&pack, bytes).await;
        let damages = job.verify(Generation(3)).await.unwrap();
        assert_eq!(damages.len(), 1);
        assert_eq!(&*damages[0].object, pack);
        assert!(matches!(damages[0].kind, DamageKind::Chunk { offset: 0, length: 300, .. }));
        assert_eq!(damages[0].code(), "checkpoint_chunk_mismatch");
        assert!(job.verify(Generation(2)).await.unwrap().is_empty(), "the other one is whole");
        world.overwrite(&slot, vec![1]).await;
        assert_eq!(&*job.verify(Generation(3)).await.unwrap()[0].object, slot);
        assert_eq!(job.verify(Generation(99)).await.unwrap_err().code(), "checkpoint_not_found");
    });
}

#[test]
fn a_checkpoint_is_no_other_job_s() {
    block_on(async {
        let (world, slot, _) = two().await;
        let bytes = world.bytes(&slot).await;
        world.overwrite("root/other/log/00000000000000000003", bytes).await;
        let page = world.job_of("other", 1).list(None, 10).await.unwrap();
        assert!(page.checkpoints.is_empty());
        assert!(
            matches!(page.rejected[0].damage.kind, DamageKind::Elsewhere { ref job, .. } if *job == name("totals"))
        );
    });
}

#[test]
fn reading_a_state_refuses_every_flipped_bit_too() {
    block_on(async {
        let (world, _, pack) = two().await;
        let bytes = world.bytes(&pack).await;
        let reading = world.job(7).open(None).await.unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                world.overwrite(&pack, flipped).await;
                let refused = reading.states()["sums"].read(300).await.unwrap_err();
                assert_eq!(refused.code(), "checkpoint_chunk_mismatch");
            }
        }
        world.overwrite(&pack, bytes[..17].to_vec()).await;
        assert_eq!(reading.states()["sums"].read(300).await.unwrap_err().code(), "checkpoint_length_mismatch");
        world.overwrite(&pack, bytes).await;
        assert_eq!(reading.states()["sums"].read(300).await.unwrap(), noise(2, 300));
    });
}
