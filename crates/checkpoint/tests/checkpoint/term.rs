//! Who may write, and since when.

use std::time::Duration;

use tidegate_checkpoint::{ClaimOutcome, Generation, Mode, Settled, Written};
use tidegate_core::time::Clock as _;
use tidegate_testkit::{block_on, within};

use crate::world::{TTL, World, draft, name, noise, save, saved};

#[test]
fn a_held_job_is_not_claimed_and_says_who_holds_it() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let outcome = world.job(2).claim(&name("other"), TTL, Mode::IfFree).await.unwrap();
        let ClaimOutcome::HeldBy { epoch, holder, ttl } = outcome else { panic!() };
        assert_eq!((epoch, holder, ttl), (writer.epoch(), Some(name("me")), TTL));
    });
}

#[test]
fn a_claimant_waits_until_the_holder_was_silent_for_its_term() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let job = world.job(2);
        let mode = Mode::Wait { at_most: Duration::from_secs(3_600) };
        let claim = tokio::spawn(async move { job.claim(&name("other"), TTL, mode).await.unwrap() });
        for _ in 0..20 {
            world.clock.wait_for_waiters(1).await;
            world.clock.advance(TTL / 8);
            assert!(matches!(writer.renew().await.unwrap(), Written::Done(())));
            assert!(!claim.is_finished(), "the holder renews");
        }
        let silent_since = world.clock.now();
        while !claim.is_finished() {
            if world.clock.waiters() > 0 {
                world.clock.advance(TTL / 16);
            }
            tokio::task::yield_now().await;
        }
        assert!(world.clock.now().saturating_since(silent_since) >= TTL);
        let ClaimOutcome::Claimed { writer: later, .. } = within("the claim", claim).await.unwrap() else { panic!() };
        assert!(later.epoch() > writer.epoch());
        assert_eq!(save(&writer, noise(1, 9), draft(1, 1)).await, Written::Expired);
    });
}

#[test]
fn a_writer_that_did_not_renew_stops_by_itself() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        world.clock.advance(TTL - Duration::from_nanos(1));
        assert!(writer.holds());
        world.clock.advance(Duration::from_nanos(1));
        let before = world.objects().await;
        assert!(!writer.holds());
        assert_eq!(writer.renew().await.unwrap(), Written::Expired);
        assert_eq!(writer.release().await.unwrap(), Written::Expired);
        assert_eq!(world.objects().await, before);
    });
}

#[test]
fn who_is_taken_over_by_force_publishes_nothing_more() {
    block_on(async {
        let world = World::new();
        let (first, _) = world.claim(1, Mode::IfFree).await;
        let id = saved(&first, noise(1, 10), draft(1, 1)).await;
        let (second, recovery) = world.claim(2, Mode::Force).await;
        assert_eq!(recovery.newest().unwrap().checkpoint.id, id);
        assert_eq!(save(&first, noise(2, 10), draft(2, 2)).await, Written::Fenced { by: Some(second.epoch()) });
        assert_eq!(first.committed(id.generation).await.unwrap(), Written::Fenced { by: Some(second.epoch()) });
        saved(&second, noise(2, 10), draft(2, 2)).await;
    });
}

#[test]
fn a_zombie_whose_slot_was_deleted_since_is_fenced_and_its_stray_is_collected() {
    block_on(async {
        let world = World::new();
        let (zombie, _) = world.claim(1, Mode::IfFree).await;
        saved(&zombie, noise(1, 10), draft(1, 1)).await;
        // Its next slot is 3. The later term takes it, and retention deletes it after a still later one began.
        let (second, _) = world.claim(2, Mode::Force).await;
        saved(&second, noise(2, 10), draft(2, 2)).await;
        let _ = second.release().await.unwrap();
        let (third, _) = world.claim(3, Mode::IfFree).await;
        world.delete("root/totals/log/00000000000000000003").await;
        let before = world.objects().await;
        assert_eq!(save(&zombie, noise(9, 10), draft(9, 9)).await, Written::Fenced { by: Some(third.epoch()) });
        let page = world.job(4).list(None, 10).await.unwrap();
        assert!(page.checkpoints.iter().all(|listed| listed.checkpoint.id.generation != Generation(3)));
        assert!(matches!(third.collect().await.unwrap(), Written::Done(_)));
        assert!(world.objects().await.len() <= before.len());
        assert!(world.objects().await.iter().all(|(path, _)| !path.ends_with("/log/00000000000000000003")));
    });
}

#[test]
fn a_stray_of_a_killed_zombie_is_no_checkpoint() {
    block_on(async {
        let world = World::new();
        let (zombie, _) = world.claim(1, Mode::IfFree).await;
        saved(&zombie, noise(1, 10), draft(1, 1)).await;
        saved(&zombie, noise(2, 10), draft(2, 2)).await;
        let stray = world.bytes("root/totals/log/00000000000000000003").await;
        world.delete("root/totals/log/00000000000000000003").await;
        let (second, _) = world.claim(2, Mode::Force).await;
        let kept = saved(&second, noise(3, 10), draft(3, 3)).await;
        let _ = second.release().await.unwrap();
        let (third, _) = world.claim(3, Mode::IfFree).await;
        // Slot 3 was the second term's; retention deleted it, and the zombie's manifest arrived then, after it was killed.
        world.overwrite("root/totals/log/00000000000000000003", stray).await;
        let page = world.job(4).list(None, 10).await.unwrap();
        let generations: Vec<_> = page.checkpoints.iter().map(|listed| listed.checkpoint.id.generation).collect();
        assert_eq!(generations, [kept.generation, Generation(2)]);
        let _ = third.release().await.unwrap();
        let (_, recovery) = world.claim(5, Mode::IfFree).await;
        assert_eq!(recovery.newest().unwrap().checkpoint.id, kept);
    });
}

#[test]
fn two_claims_at_once_give_one_term() {
    block_on(async {
        for seed in 0..20 {
            let world = World::new();
            let claims = (0..4).map(|n| {
                let job = world.job(seed * 10 + n);
                tokio::spawn(async move { job.claim(&name("same"), TTL, Mode::IfFree).await.unwrap() })
            });
            let outcomes = futures::future::join_all(claims).await;
            let claimed = outcomes.iter().filter(|outcome| matches!(outcome, Ok(ClaimOutcome::Claimed { .. }))).count();
            assert_eq!(claimed, 1);
        }
    });
}

#[test]
fn nothing_in_doubt_is_settled_as_not_written() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        assert_eq!(writer.settle().await.unwrap(), Written::Done(Settled::NotWritten));
    });
}

#[test]
fn a_log_that_was_deleted_under_its_writer_is_noticed() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        saved(&writer, noise(1, 10), draft(1, 1)).await;
        for (path, _) in world.objects().await {
            world.delete(&path).await;
        }
        let vanished = writer.renew().await.unwrap_err();
        assert_eq!(tidegate_core::Failure::code(&vanished), "checkpoint_log_vanished");
        assert!(world.objects().await.is_empty());
        let (_, recovery) = world.claim(2, Mode::IfFree).await;
        assert!(recovery.newest().is_none());
    });
}

#[test]
fn no_number_wraps() {
    block_on(async {
        let world = World::new();
        world.overwrite(&format!("root/totals/log/{}", u64::MAX), vec![0]).await;
        let exhausted = world.job(1).claim(&name("me"), TTL, Mode::Force).await.unwrap_err();
        assert_eq!(tidegate_core::Failure::code(&exhausted), "checkpoint_numbers_exhausted");
        assert_eq!(Generation(u64::MAX).next(), None);
    });
}
