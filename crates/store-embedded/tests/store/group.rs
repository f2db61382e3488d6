//! Callers that come together share one write.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use tidegate_core::port::{AppendOutcome, ChangeLog as _};
use tidegate_core::position::Offset;
use tidegate_store_embedded::{EmbeddedStore, WriteStep};
use tidegate_testkit::wait::until;
use tidegate_testkit::{ManualClock, block_on, within};

use super::world::{batch, config, read_all, record, spec, stream};

#[test]
fn callers_that_wait_for_a_write_share_the_next_one_and_a_mismatch_disturbs_none() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), &ManualClock::new());
        let gate = Arc::new((Mutex::new(true), Condvar::new()));
        let groups = Arc::new(Mutex::new(Vec::new()));
        let waiting = Arc::new(AtomicUsize::new(0));
        config.write_hook = Some(Arc::new({
            let (gate, groups, waiting) = (gate.clone(), groups.clone(), waiting.clone());
            move |step| {
                if let WriteStep::Before { commands, fsync } = step {
                    groups.lock().push((commands, fsync));
                    waiting.fetch_add(1, Ordering::SeqCst);
                    gate.1.wait_while(&mut gate.0.lock(), |open| !*open);
                }
                Ok(())
            }
        }));
        let store = EmbeddedStore::open(config).unwrap();
        let id = stream("s");
        store.create(&id, &spec()).await.unwrap();
        *gate.0.lock() = false;
        let mut calls = Vec::new();
        for number in 0..200_u64 {
            let (store, mut batch) = (store.clone(), batch(&id, vec![record(format!("{number}"))]));
            // Every tenth expects an offset that it cannot have.
            batch.streams[0].partitions[0].expected_next = (number % 10 == 9).then_some(Offset(1 << 40));
            calls.push(tokio::spawn(async move { store.append(batch).await.unwrap() }));
            if number == 0 {
                until("the first write", async || waiting.load(Ordering::SeqCst) == 2).await;
            }
        }
        tokio::task::yield_now().await;
        *gate.0.lock() = true;
        gate.1.notify_all();
        let mut bases = Vec::new();
        for (number, call) in calls.into_iter().enumerate() {
            match within("an append", call).await.unwrap() {
                AppendOutcome::Appended(ranges) => bases.push(ranges[0].base.0),
                AppendOutcome::OffsetMismatch { .. } => assert_eq!(number % 10, 9),
                other => panic!("{other:?}"),
            }
        }
        bases.sort_unstable();
        assert_eq!(bases, (0..180).collect::<Vec<_>>());
        assert_eq!(*groups.lock(), [(1, true), (1, true), (199, true)]);
        assert_eq!(read_all(&store, &id, 0).await.unwrap().0.len(), 180);
    });
}
