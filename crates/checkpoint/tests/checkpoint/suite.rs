//! What a store must give so that checkpoints may lie in it, as one suite for every store: memory and a local directory here. It never needs
//! to know which one it runs on.

use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ObjectStore, PutMode, PutOptions};
use tidegate_checkpoint::{Generation, Mode, Retention, Spec, Written};
use tidegate_core::Failure as _;
use tidegate_testkit::block_on_threads;

use crate::world::{World, draft, noise, save, saved};

/// Runs a check on every store.
fn on_every_store(check: impl AsyncFn(World)) {
    block_on_threads(async {
        check(World::on(Arc::new(InMemory::new()))).await;
        let folder = tempfile::tempdir().unwrap();
        let local = LocalFileSystem::new_with_prefix(folder.path()).unwrap().with_fsync(true);
        check(World::on(Arc::new(local))).await;
    });
}

#[test]
fn of_many_that_create_one_object_exactly_one_does() {
    on_every_store(async |world| {
        for round in 0..20 {
            let path = object_store::path::Path::from(format!("race/{round}"));
            let attempts = (0..8_u8).map(|n| {
                let (store, path) = (Arc::clone(&world.store), path.clone());
                let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                tokio::spawn(async move { store.put_opts(&path, vec![n; 1_000].into(), create).await.is_ok() })
            });
            let made: Vec<bool> =
                futures::future::join_all(attempts).await.into_iter().map(|made| made.unwrap()).collect();
            assert_eq!(made.iter().filter(|made| **made).count(), 1);
            let bytes = world.bytes(path.as_ref()).await;
            assert_eq!(bytes, vec![bytes[0]; 1_000]);
            assert!(made[usize::from(bytes[0])]);
        }
    });
}

#[test]
fn what_was_created_is_listed_at_once_and_what_was_deleted_is_not() {
    on_every_store(async |world| {
        let job = world.job(1);
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        for n in 0..20 {
            let id = saved(&writer, noise(n, 100), draft(n, 0)).await;
            let page = job.list(None, 1).await.unwrap();
            assert_eq!(page.checkpoints[0].checkpoint.id, id);
            assert!(matches!(writer.collect().await.unwrap(), Written::Done(_)));
        }
        assert_eq!(job.list(None, 100).await.unwrap().checkpoints.len(), 3);
    });
}

#[test]
fn a_job_goes_on_through_many_terms() {
    on_every_store(async |mut world| {
        world.spec = Spec { retention: Retention { keep_last: 2, ..Retention::default() }, ..Spec::default() };
        for term in 0..5_u64 {
            let (writer, mut recovery) = world.claim(term, Mode::IfFree).await;
            let found = recovery.newest_whole().await.unwrap();
            assert_eq!(found.is_some(), term > 0);
            if let Some(found) = found {
                let state = found.state("sums").unwrap().read(1 << 20).await.unwrap();
                assert!(state == noise(term - 1, 400_000));
            }
            let id = saved(&writer, noise(term, 400_000), draft(term, 0)).await;
            assert!(world.job(9).verify(id.generation).await.unwrap().is_empty());
            assert!(matches!(writer.collect().await.unwrap(), Written::Done(_)));
            assert!(matches!(writer.release().await.unwrap(), Written::Done(())));
        }
    });
}

#[test]
fn two_writers_that_race_publish_one_history() {
    on_every_store(async |world| {
        let (first, _) = world.claim(1, Mode::IfFree).await;
        let racing = tokio::spawn({
            let first = first.clone();
            async move {
                for n in 0..200 {
                    if !matches!(save(&first, noise(n, 500), draft(n, 0)).await, Written::Done(_)) {
                        return;
                    }
                }
            }
        });
        while first.newest().is_none() {
            tokio::task::yield_now().await;
        }
        let (second, recovery) = world.claim(2, Mode::Force).await;
        let from = recovery.newest().unwrap().checkpoint.id.generation;
        racing.await.unwrap();
        let id = saved(&second, noise(7, 500), draft(7, 0)).await;
        let page = world.job(3).list(None, 10).await.unwrap();
        assert_eq!(page.checkpoints[0].checkpoint.id, id);
        assert_eq!(page.checkpoints[1].checkpoint.id.generation, from, "nothing was published in between");
        assert!(matches!(save(&first, noise(1, 1), draft(9, 0)).await, Written::Fenced { .. }));
    });
}

#[test]
fn jobs_of_any_name_are_listed_and_do_not_meet() {
    on_every_store(async |world| {
        let names = ["totals", "a/b:c", "..", "TOTALS", "é", &"x".repeat(255)].map(str::to_owned);
        for (seed, job) in names.iter().enumerate() {
            let job = world.job_of(job, seed as u64);
            let claimed = job.claim(&crate::world::name("me"), crate::world::TTL, Mode::IfFree).await.unwrap();
            assert!(matches!(claimed, tidegate_checkpoint::ClaimOutcome::Claimed { .. }));
        }
        let parts = tidegate_checkpoint::CheckpointParts {
            store: Arc::clone(&world.store),
            root: "root".into(),
            clock: world.clock.clone(),
            entropy: Arc::new(tidegate_testkit::NoEntropy),
            spec: Spec::default(),
        };
        let listed = tidegate_checkpoint::Checkpoints::new(parts).jobs().await.unwrap();
        let mut listed: Vec<_> = listed.iter().map(|name| name.as_str().to_owned()).collect();
        let mut names = names.to_vec();
        listed.sort();
        names.sort();
        assert_eq!(listed, names);
    });
}

#[test]
fn without_randomness_no_term_begins() {
    on_every_store(async |world| {
        let parts = tidegate_checkpoint::CheckpointParts {
            store: Arc::clone(&world.store),
            root: "root".into(),
            clock: world.clock.clone(),
            entropy: Arc::new(tidegate_testkit::NoEntropy),
            spec: Spec::default(),
        };
        let job = tidegate_checkpoint::Checkpoints::new(parts).job(&crate::world::name("x"));
        let refused = job.claim(&crate::world::name("me"), crate::world::TTL, Mode::Force).await.unwrap_err();
        assert_eq!(refused.code(), "entropy_unavailable");
        assert!(world.objects().await.is_empty());
    });
}

#[test]
fn a_folder_that_is_deleted_under_a_writer_loses_nothing_silently() {
    block_on_threads(async {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("checkpoints");
        std::fs::create_dir(&root).unwrap();
        let local = LocalFileSystem::new_with_prefix(&root).unwrap();
        let world = World::on(Arc::new(local));
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        saved(&writer, noise(1, 100_000), draft(1, 0)).await;
        std::fs::remove_dir_all(&root).unwrap();
        let mut making = writer.begin().await.unwrap();
        making.state(crate::world::name("sums"), crate::world::whole(noise(1, 100_000))).await.unwrap();
        let refused = making.publish(draft(2, 0)).await.unwrap_err();
        assert_eq!(refused.code(), "checkpoint_object_missing", "the chunks that it shares are gone: {refused}");
        assert_eq!(writer.renew().await.unwrap_err().code(), "checkpoint_log_vanished");
    });
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_of_its_own() {
    block_on_threads(async {
        let folder = tempfile::tempdir().unwrap();
        let local = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        std::fs::write(folder.path().join("root"), "a file where a folder should be").unwrap();
        let world = World::on(Arc::new(local));
        let refused = world.job(1).claim(&crate::world::name("me"), crate::world::TTL, Mode::Force).await.unwrap_err();
        assert!(refused.code().starts_with("checkpoint_store_"), "{refused}");
    });
}

#[test]
fn an_entry_edited_by_hand_with_a_right_checksum_is_refused() {
    on_every_store(async |world| {
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let first = saved(&writer, noise(1, 100), draft(1, 0)).await;
        saved(&writer, noise(2, 100), draft(2, 0)).await;
        // The predecessor's positions are changed and its checksum is made right.
        let path = format!("root/totals/log/{:020}", first.generation.0);
        let mut bytes = world.bytes(&path).await;
        let end = bytes.len() - 4;
        let at = bytes.windows(6).position(|window| window == b"orders").unwrap();
        bytes[at] = b'0';
        let sum = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&sum);
        world.overwrite(&path, bytes).await;
        let page = world.job(2).list(None, 10).await.unwrap();
        assert_eq!(page.checkpoints.len(), 1);
        assert_eq!(page.rejected[0].generation, Generation(2));
        assert_eq!(page.rejected[0].damage.code(), "checkpoint_parent_mismatch");
    });
}
