//! What is kept, what is collected, and what is never deleted.

use std::time::Duration;

use tidegate_checkpoint::{Collected, Draft, Generation, Mode, Removed, Retention, Spec, Writer, Written};
use tidegate_testkit::block_on;

use crate::world::{World, draft, name, noise, saved};

async fn collect(writer: &Writer) -> Collected {
    match writer.collect().await.unwrap() {
        Written::Done(collected) => collected,
        other => panic!("{other:?}"),
    }
}

fn keeping(keep_last: usize) -> World {
    let mut world = World::new();
    world.spec = Spec { retention: Retention { keep_last, ..Retention::default() }, ..Spec::default() };
    world
}

async fn generations(world: &World) -> Vec<u64> {
    let page = world.job(99).list(None, 1_000).await.unwrap();
    assert!(page.rejected.is_empty(), "{:?}", page.rejected);
    page.checkpoints.iter().map(|listed| listed.checkpoint.id.generation.0).collect()
}

async fn packs(world: &World) -> usize {
    world.objects().await.iter().filter(|(path, _)| path.contains("/packs/")).count()
}

#[test]
fn the_newest_are_kept_and_the_last_complete_one_is_never_deleted() {
    block_on(async {
        for keep_last in [0, 1, 3] {
            let world = keeping(keep_last);
            let (writer, _) = world.claim(1, Mode::IfFree).await;
            for n in 0..10 {
                saved(&writer, noise(n, 1_000), draft(n, n as i64)).await;
                collect(&writer).await;
            }
            let kept = generations(&world).await;
            assert_eq!(kept.len(), keep_last.max(1));
            assert_eq!(kept[0], 11);
            assert_eq!(packs(&world).await, kept.len());
            for generation in kept {
                assert!(world.job(3).verify(Generation(generation)).await.unwrap().is_empty());
            }
            // The term's first, the checkpoints, nothing else.
            let slots = world.objects().await.iter().filter(|(path, _)| path.contains("/log/")).count();
            assert_eq!(slots, keep_last.max(1) + 1);
        }
    });
}

#[test]
fn a_chunk_that_a_kept_checkpoint_refers_to_stays_however_old_its_pack_is() {
    block_on(async {
        let world = keeping(1);
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let state = noise(1, 2_000_000);
        for n in 0..10_u8 {
            let mut state = state.to_vec();
            state[0] = n;
            saved(&writer, state.into(), draft(n.into(), 0)).await;
            collect(&writer).await;
        }
        let newest = writer.newest().unwrap().id.generation;
        assert!(world.job(3).verify(newest).await.unwrap().is_empty());
        assert_eq!(packs(&world).await, 2, "the first pack, and that of the last change");
    });
}

#[test]
fn a_savepoint_stays_until_it_is_removed_and_then_its_bytes_go() {
    block_on(async {
        let world = keeping(1);
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let named = Draft { savepoint: Some(name("before")), ..draft(0, 0) };
        let savepoint = saved(&writer, noise(100, 1_000), named).await;
        for n in 1..5 {
            saved(&writer, noise(n, 1_000), draft(n, 0)).await;
            collect(&writer).await;
        }
        assert_eq!(generations(&world).await, [6, 2]);
        assert!(world.job(3).verify(savepoint.generation).await.unwrap().is_empty());
        let job = world.job(3);
        assert_eq!(job.remove(Generation(6)).await.unwrap(), Removed::Kept, "it is the last complete one");
        assert_eq!(job.remove(savepoint.generation).await.unwrap(), Removed::Gone);
        assert_eq!(collect(&writer).await.packs, 1);
        saved(&writer, noise(5, 1_000), draft(5, 0)).await;
        assert_eq!(collect(&writer).await.packs, 1);
        assert_eq!(generations(&world).await, [7]);
    });
}

#[test]
fn what_is_being_read_in_this_process_is_not_collected() {
    block_on(async {
        let world = keeping(1);
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        saved(&writer, noise(1, 1_000), draft(1, 0)).await;
        let _ = writer.release().await.unwrap();
        let (writer, recovery) = world.claim(2, Mode::IfFree).await;
        let reading = recovery.newest().unwrap();
        for n in 2..5 {
            saved(&writer, noise(n, 1_000), draft(n, 0)).await;
            collect(&writer).await;
        }
        assert_eq!(reading.state("sums").unwrap().read(1_000).await.unwrap(), noise(1, 1_000));
        drop(reading);
        assert_eq!(collect(&writer).await.packs, 1);
    });
}

#[test]
fn what_another_process_reads_is_not_collected_for_a_bounded_time() {
    block_on(async {
        let world = keeping(1);
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        saved(&writer, noise(1, 1_000), draft(1, 0)).await;
        let job = world.job(7);
        let mut reading = job.open(None).await.unwrap();
        let abandoned = job.open(Some(Generation(2))).await.unwrap();
        assert!(job.open(Some(Generation(9))).await.is_err());
        saved(&writer, noise(2, 1_000), draft(2, 0)).await;
        collect(&writer).await;
        let read = || async { reading.states()["sums"].read(1_000).await };
        assert_eq!(read().await.unwrap(), noise(1, 1_000));
        let half = world.spec.reader_ttl / 2;
        for _ in 0..3 {
            for _ in 0..half.as_secs() / 20 {
                world.clock.advance(Duration::from_secs(20));
                let _ = writer.renew().await.unwrap();
            }
            reading.renew(&job).await.unwrap();
            collect(&writer).await;
            assert_eq!(reading.states()["sums"].read(1_000).await.unwrap(), noise(1, 1_000));
        }
        let notes = world.objects().await.iter().filter(|(path, _)| path.contains("/readers/")).count();
        assert_eq!(notes, 1, "the time of the abandoned one is over");
        drop(abandoned);
        reading.release().await.unwrap();
        assert_eq!(collect(&writer).await.packs, 1);
    });
}

#[test]
fn packs_of_saves_that_were_given_up_go_and_those_in_progress_stay() {
    block_on(async {
        let mut world = keeping(1);
        world.spec.pack_bytes = 1_000;
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let mut given_up = writer.begin().await.unwrap();
        for n in 0..5 {
            given_up.state(name(&n.to_string()), crate::world::whole(noise(n, 600))).await.unwrap();
        }
        drop(given_up);
        let mut making = writer.begin().await.unwrap();
        for n in 0..5 {
            making.state(name(&n.to_string()), crate::world::whole(noise(10 + n, 600))).await.unwrap();
        }
        assert!(packs(&world).await >= 4);
        collect(&writer).await;
        let Written::Done(id) = making.publish(draft(1, 1)).await.unwrap() else { panic!() };
        collect(&writer).await;
        assert_eq!(packs(&world).await, 5);
        assert!(world.job(3).verify(id.generation).await.unwrap().is_empty());
    });
}

#[test]
fn a_pack_of_which_little_is_needed_is_copied_and_goes() {
    block_on(async {
        let mut world = keeping(1);
        world.spec.repack_share = 1;
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let state = noise(1, 4_000_000);
        saved(&writer, state.clone(), draft(1, 1)).await;
        let mut changed = noise(2, 4_000_000).to_vec();
        changed[3_500_000..].copy_from_slice(&state[3_500_000..]);
        saved(&writer, changed.clone().into(), draft(2, 2)).await;
        collect(&writer).await;
        assert_eq!(packs(&world).await, 1);
        let newest = writer.newest().unwrap().id.generation;
        assert!(world.job(3).verify(newest).await.unwrap().is_empty());
    });
}

#[test]
fn a_kept_checkpoint_that_cannot_be_read_holds_all_packs_back_and_says_so() {
    block_on(async {
        let world = keeping(2);
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        saved(&writer, noise(1, 1_000), draft(1, 1)).await;
        let _ = writer.release().await.unwrap();
        world.overwrite("root/totals/readers/x", vec![1, 2, 3]).await;
        let (writer, _) = world.claim(2, Mode::IfFree).await;
        for n in 2..6 {
            saved(&writer, noise(n, 1_000), draft(n, 2)).await;
        }
        let collected = collect(&writer).await;
        assert_eq!((collected.packs, collected.held_back.len()), (0, 1));
        world.delete("root/totals/readers/x").await;
        assert_eq!(collect(&writer).await.packs, 3);
    });
}

#[test]
fn a_page_is_bounded_and_the_next_one_goes_on() {
    block_on(async {
        let mut world = keeping(100);
        world.spec.retention.keep_max = 100;
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        for n in 0..7 {
            saved(&writer, noise(n, 10), draft(n, 0)).await;
        }
        let (mut before, mut seen) = (None, Vec::new());
        loop {
            let page = world.job(3).list(before, 3).await.unwrap();
            assert!(page.checkpoints.len() <= 3);
            seen.extend(page.checkpoints.iter().map(|listed| listed.checkpoint.id.generation.0));
            before = page.before;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen, [8, 7, 6, 5, 4, 3, 2]);
    });
}
