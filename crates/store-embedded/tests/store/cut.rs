//! What bounds and reads promise to who merges partitions, and what is left after the writer's end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tidegate_core::port::{
    AppendBatch, AppendRecord, ChangeLog as _, Compaction, Durability, LogError, LogReadItem, LogSpec, PartitionAppend,
    ReadBounds,
};
use tidegate_core::position::{Offset, Partition};
use tidegate_core::time::Clock as _;
use tidegate_store_embedded::{EmbeddedStore, Health};
use tidegate_testkit::{ManualClock, block_on, block_on_threads};

use super::world::{append, batch, config, maintain, open, record, spec, stream};

const PARTITIONS: u32 = 4;

fn spread(partitions: impl Iterator<Item = u32>, clock: &ManualClock) -> AppendBatch {
    let append_time = clock.timestamp();
    let append = |partition| PartitionAppend {
        partition: Partition(partition),
        expected_next: None,
        records: vec![record("x")],
        append_time,
    };
    AppendBatch::to_one(stream("s"), partitions.map(append).collect(), Vec::new(), Durability::Os)
}

#[test]
fn bounds_show_an_append_wholly_or_not_at_all_and_every_one_before_it() {
    block_on_threads(async {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let id = stream("s");
        let store = EmbeddedStore::open(config(folder.path(), &clock)).unwrap();
        store.create(&id, &LogSpec { partitions: PARTITIONS, ..spec() }).await.unwrap();
        store.append(spread(0..PARTITIONS, &clock)).await.unwrap();
        store.close();
        // Opened again, nothing is in memory, so that the first bounds are read from the disk.
        let store = EmbeddedStore::open(config(folder.path(), &clock)).unwrap();
        let mut cuts = Vec::new();
        let appends = (0..4_u32).map(|worker| {
            let (store, clock) = (store.clone(), clock.clone());
            tokio::spawn(async move {
                for number in 0..60_u32 {
                    let first = (number + worker) % PARTITIONS;
                    let width = if number % 2 == 0 { PARTITIONS } else { 1 };
                    let partitions = (0..width).map(|partition| (first + partition) % PARTITIONS);
                    store.append(spread(partitions, &clock)).await.unwrap();
                }
            })
        });
        let appends: Vec<_> = appends.collect();
        while !appends.iter().all(tokio::task::JoinHandle::is_finished) {
            cuts.push(store.bounds(&id).await.unwrap());
            tokio::task::yield_now().await;
        }
        for append in appends {
            append.await.unwrap();
        }
        let mut commits = Vec::new();
        for partition in (0..PARTITIONS).map(Partition) {
            let bounds = ReadBounds { records: 100_000, bytes: u64::MAX };
            let read = store.read(&id, partition, Offset(0), bounds).await.unwrap();
            let commit = |item| match item {
                LogReadItem::Record { commit, .. } => commit.0,
                other => panic!("{other:?}"),
            };
            commits.push(read.items.into_iter().map(commit).collect::<Vec<_>>());
        }
        for cut in cuts {
            let split = |at: &tidegate_core::port::PartitionBounds| {
                commits[at.partition.0 as usize].split_at(usize::try_from(at.next.0).unwrap())
            };
            let below = cut.iter().flat_map(|at| split(at).0).max();
            let beyond = cut.iter().flat_map(|at| split(at).1).min();
            assert!(beyond.is_none_or(|beyond| below < Some(beyond)), "{cut:?}: {below:?} and {beyond:?}");
        }
    });
}

#[test]
fn after_the_writer_s_panic_the_store_says_so_and_answers() {
    block_on(async {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let dies = Arc::new(AtomicBool::new(false));
        let mut config = config(folder.path(), &clock);
        let dying = Arc::clone(&dies);
        config.write_hook = Some(Arc::new(move |_| {
            assert!(!dying.load(Ordering::SeqCst), "the writer is to die");
            Ok(())
        }));
        let store = EmbeddedStore::open(config).unwrap();
        let id = stream("s");
        store.create(&id, &spec()).await.unwrap();
        append(&store, &id, vec![record("stays")]).await;
        assert_eq!(store.health(), Health::Writing);
        dies.store(true, Ordering::SeqCst);
        let told = store.append(batch(&id, vec![record("x")])).await;
        assert!(matches!(told, Err(LogError::Indeterminate(_))), "{told:?}");
        assert_eq!(store.health(), Health::Failed);
        let told = store.append(batch(&id, vec![record("y")])).await;
        assert!(matches!(told, Err(LogError::Unavailable(_) | LogError::Indeterminate(_))), "{told:?}");
        assert_eq!(store.bounds(&id).await.unwrap()[0].next, Offset(1), "reads go on");
        store.close();
    });
}

#[test]
fn a_bounded_read_splits_no_gap_and_always_has_a_record() {
    block_on(async {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let store = EmbeddedStore::open(config(folder.path(), &clock)).unwrap();
        let id = stream("s");
        let compacted = LogSpec { compaction: Some(Compaction { tombstone_grace_ms: 0 }), ..spec() };
        store.create(&id, &compacted).await.unwrap();
        let keyed = |key: u8, len| AppendRecord {
            bytes: Bytes::from(vec![key; len]),
            key: Some(Bytes::from(vec![key])),
            tombstone: false,
        };
        // Each chunk is too large to be joined with the next one, and at its end, or all over it, records are replaced.
        for round in 0..4_u8 {
            append(&store, &id, vec![keyed(10 + round, 200_000), keyed(1, 10), keyed(2, 10)]).await;
            append(&store, &id, vec![keyed(2, 10), keyed(3, 200_000)]).await;
        }
        append(&store, &id, vec![keyed(1, 1), keyed(2, 1), keyed(3, 1)]).await;
        maintain(&store, &clock).await;
        for bounds in [
            ReadBounds { records: 1, bytes: u64::MAX },
            ReadBounds { records: 2, bytes: u64::MAX },
            ReadBounds { records: 100, bytes: 1 },
            ReadBounds { records: 100, bytes: 200_000 },
        ] {
            let (mut at, mut records, mut gap_to) = (Offset(0), 0, None);
            let next = store.bounds(&id).await.unwrap()[0].next;
            while at < next {
                let read = store.read(&id, Partition(0), at, bounds).await.unwrap();
                let mut found = 0;
                for item in &read.items {
                    match item {
                        LogReadItem::Record { .. } => found += 1,
                        LogReadItem::Gap(gap) => {
                            assert_ne!(gap_to, Some(gap.from), "a gap is told whole");
                            gap_to = Some(gap.to);
                        }
                    }
                }
                assert!(found > 0 || read.next == next, "{read:?}");
                records += found;
                at = read.next;
            }
            assert_eq!(records, 7, "{bounds:?}");
        }
    });
}

#[test]
fn an_append_counts_the_ranges_that_its_state_is_given() {
    block_on(async {
        use tidegate_core::port::{CompareAndSwap, Swap};
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let id = stream("s");
        store.create(&id, &LogSpec { partitions: 2, ..spec() }).await.unwrap();
        let with = |len: usize| {
            let mut batch = spread(0..2, &ManualClock::new());
            let swap = Swap::PutWithRanges(Bytes::from(vec![0; len]));
            batch.state = vec![CompareAndSwap { key: Bytes::from_static(b"k"), expected: None, swap }];
            batch
        };
        let most = 16 * 1024 * 1024 - 40;
        assert!(store.append(with(most + 1)).await.is_err());
        store.append(with(most)).await.unwrap();
    });
}
