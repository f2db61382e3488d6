//! What the memory store promises beyond the port; the port's own promises are the suites'.

use super::*;
use crate::clock::ManualClock;
use crate::wait::block_on;
use tidegate_core::id::Name;
use tidegate_core::port::{AppendRecord, AppendedRange, PartitionAppend, Retention, Swap};

fn stream() -> StreamId {
    StreamId { tenant: Name::new("t").unwrap(), stream: Name::new("s").unwrap() }
}

fn batch(partitions: Vec<(u32, usize)>) -> AppendBatch {
    let record = AppendRecord { bytes: Bytes::from_static(b"x"), key: None, tombstone: false };
    let partitions = partitions.into_iter().map(|(partition, records)| PartitionAppend {
        partition: Partition(partition),
        expected_next: None,
        records: vec![record.clone(); records],
        append_time: Timestamp::from_unix_ms(0),
    });
    AppendBatch::to_one(stream(), partitions.collect(), Vec::new(), Durability::Fsync)
}

fn cause(error: LogError) -> MalformedBatch {
    let LogError::Unavailable(cause) = error else { panic!("another error: {error}") };
    *cause.downcast_ref().expect("the cause says what is malformed")
}

#[test]
fn a_malformed_batch_says_what_is_wrong_and_changes_nothing() {
    block_on(async {
        let store = MemoryStore::new(Arc::new(ManualClock::new()));
        let mut spec =
            LogSpec { partitions: 0, start: Offset(u64::MAX - 1), retention: Retention::default(), compaction: None };
        assert_eq!(cause(store.create(&stream(), &spec).await.unwrap_err()), MalformedBatch::NoPartition);
        spec.partitions = 2;
        store.create(&stream(), &spec).await.unwrap();
        for (partitions, what) in [
            (vec![(0, 1), (0, 1)], MalformedBatch::PartitionTwice),
            (vec![(0, 1), (1, 0)], MalformedBatch::NoRecord),
            (vec![(0, 1), (1, 2)], MalformedBatch::NoOffsetLeft),
        ] {
            assert_eq!(cause(store.append(batch(partitions)).await.unwrap_err()), what);
            assert!(store.bounds(&stream()).await.unwrap().iter().all(|bounds| bounds.next == spec.start));
        }
        let mut twice = batch(vec![(0, 1)]);
        twice.streams.extend(batch(vec![(1, 1)]).streams);
        assert_eq!(cause(store.append(twice).await.unwrap_err()), MalformedBatch::StreamTwice);
        let appended = store.append(batch(vec![(1, 1)])).await.unwrap();
        let range = AppendedRange { partition: Partition(1), base: Offset(u64::MAX - 1), next: Offset(u64::MAX) };
        assert_eq!(appended, AppendOutcome::Appended(vec![range]));
    });
}

#[test]
fn deletions_are_kept_for_watchers_alone() {
    block_on(async {
        let store = MemoryStore::new(Arc::new(ManualClock::new()));
        for number in 0..100_u64 {
            let key = Bytes::copy_from_slice(&number.to_be_bytes());
            let put = CompareAndSwap { key: key.clone(), expected: None, swap: Swap::Put(Bytes::new()) };
            let SwapOutcome::Swapped(revisions) = store.compare_and_swap(vec![put], Durability::Os).await.unwrap()
            else {
                panic!("an absent key can be put")
            };
            let delete = CompareAndSwap { key, expected: Some(revisions[0]), swap: Swap::Delete };
            store.compare_and_swap(vec![delete], Durability::Os).await.unwrap();
        }
        assert!(store.shared.state.lock().entries.kept_changes() <= 2);
    });
}
