//! A full disk, and one that fails.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use tidegate_core::port::{
    ChangeLog as _, CompareAndSwap, Durability, LogError, MetaError, MetaStore as _, Swap, SwapOutcome, Trim,
};
use tidegate_core::position::{Offset, Partition};
use tidegate_store_embedded::{EmbeddedStore, Health, WriteStep};
use tidegate_testkit::wait::until;
use tidegate_testkit::{ManualClock, block_on, within};

use super::world::{append, batch, config, read_all, record, spec, stream};

#[test]
fn a_full_disk_refuses_what_adds_reads_go_on_and_writing_resumes_by_itself() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(u64::MAX));
        let mut config = config(folder.path(), &ManualClock::new());
        config.space_probe = Arc::new({
            let free = free.clone();
            move |_| Ok(free.load(Ordering::SeqCst))
        });
        let reserve = config.free_space_reserve_bytes;
        let store = EmbeddedStore::open(config).unwrap();
        let id = stream("s");
        store.create(&id, &spec()).await.unwrap();
        append(&store, &id, vec![record("a"), record("b")]).await;
        free.store(reserve - 1, Ordering::SeqCst);
        assert!(matches!(store.append(batch(&id, vec![record("c")])).await, Err(LogError::Full)));
        assert!(matches!(store.create(&stream("other"), &spec()).await, Err(LogError::Full)));
        let put = CompareAndSwap { key: Bytes::from_static(b"k"), expected: None, swap: Swap::Put(Bytes::new()) };
        assert!(matches!(store.compare_and_swap(vec![put.clone()], Durability::Os).await, Err(MetaError::Full)));
        assert_eq!(store.health(), Health::Full);
        assert_eq!(read_all(&store, &id, 0).await.unwrap().0.len(), 2);
        assert_eq!(store.get(b"k").await.unwrap(), None);
        // What frees space goes on.
        let bounds = store.trim(&id, Trim::Before { partition: Partition(0), before: Offset(1) }).await.unwrap();
        assert_eq!((bounds[0].earliest, bounds[0].next), (Offset(1), Offset(2)));
        free.store(u64::MAX, Ordering::SeqCst);
        assert_eq!(append(&store, &id, vec![record("c")]).await, 2);
        assert!(matches!(store.compare_and_swap(vec![put], Durability::Os).await.unwrap(), SwapOutcome::Swapped(_)));
        assert_eq!(store.health(), Health::Writing);
    });
}

/// A store whose hook fails the step that `fails` picks, once for each time that the counter is raised.
fn failing(folder: &std::path::Path, fails: fn(WriteStep) -> bool) -> (EmbeddedStore, Arc<AtomicUsize>) {
    let mut config = config(folder, &ManualClock::new());
    let left = Arc::new(AtomicUsize::new(0));
    config.write_hook = Some(Arc::new({
        let left = left.clone();
        move |step| {
            let fail = fails(step)
                && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            if fail { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
        }
    }));
    (EmbeddedStore::open(config).unwrap(), left)
}

#[test]
fn after_a_failed_sync_the_fate_is_unknown_and_the_store_opens_itself_again() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let (store, left) = failing(folder.path(), |step| step == WriteStep::After);
        let id = stream("s");
        store.create(&id, &spec()).await.unwrap();
        append(&store, &id, vec![record("a")]).await;
        let mut watch = tidegate_core::port::ChangeLog::watch(&store, &id).await.unwrap();
        let mut entries = tidegate_core::port::MetaStore::watch(&store, Bytes::new()).await.unwrap();
        for round in 1..4_u64 {
            left.store(1, Ordering::SeqCst);
            let mut unsure = batch(&id, vec![record("b")]);
            let swap = Swap::Put(Bytes::from(round.to_string()));
            unsure.state = vec![CompareAndSwap { key: Bytes::from(format!("k{round}")), expected: None, swap }];
            assert!(matches!(store.append(unsure).await, Err(LogError::Indeterminate(_))));
            until("the store", async || store.health() == Health::Writing).await;
            // Here it was written, and the watchers hear of it.
            let bounds = within("the watch", watch.next()).await.unwrap();
            assert_eq!(bounds.next, Offset(1 + 2 * (round - 1) + 1));
            let entry = within("the entries", async {
                loop {
                    let entry = entries.next().await.unwrap();
                    if entry.key == format!("k{round}") {
                        return entry;
                    }
                }
            });
            assert_eq!(entry.await.value, Some(Bytes::from(round.to_string())));
            assert_eq!(append(&store, &id, vec![record("c")]).await, 2 * round);
            within("the watch", watch.next()).await.unwrap();
        }
        assert_eq!(read_all(&store, &id, 0).await.unwrap().0.len(), 7);
    });
}

#[test]
fn a_store_that_is_found_broken_before_a_write_mends_itself_and_writes() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let (store, left) = failing(folder.path(), |step| matches!(step, WriteStep::Before { .. }));
        let id = stream("s");
        store.create(&id, &spec()).await.unwrap();
        left.store(1, Ordering::SeqCst);
        assert_eq!(append(&store, &id, vec![record("a")]).await, 0);
        left.store(2, Ordering::SeqCst);
        assert!(matches!(store.append(batch(&id, vec![record("b")])).await, Err(LogError::Unavailable(_))));
        assert_eq!(read_all(&store, &id, 0).await.unwrap().0.len(), 1);
        assert_eq!(append(&store, &id, vec![record("b")]).await, 1);
    });
}
