//! Promises about appends: dense offsets, all or nothing, attached state, times.

use bytes::Bytes;
use tidegate_core::port::{AppendOutcome, ChangeLog, Durability, LogReadItem, LogSpec, MetaStore, Swap};
use tidegate_core::position::{Offset, Partition};
use tidegate_core::time::{Clock, Timestamp};

use super::*;

/// Offsets have no holes, and the answer says which they are.
pub async fn offsets_are_dense_and_answered<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let mut next = 0;
    for (number, count) in [1_usize, 3, 1, 100, 7].into_iter().enumerate() {
        let range = append_to(&world, &id, records(&format!("{number}-"), count)).await;
        assert_eq!((range.partition, range.base), (P0, Offset(next)));
        next += count as u64;
        assert_eq!(range.next, Offset(next));
        assert_eq!(bounds(&*log, &id).await.next, Offset(next));
    }
    let texts = texts(&*log, &id, P0).await;
    assert_eq!(texts.len() as u64, next);
    assert_eq!(texts[..4], ["0-0", "1-0", "1-1", "1-2"]);
}

/// Bytes are opaque: every value, and none at all.
pub async fn a_record_comes_back_as_it_was<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let every: Vec<u8> = (0..=255).collect();
    let values = [Bytes::new(), Bytes::from(every), Bytes::from_static(b"\n\r\n\0"), Bytes::from_static(b"{}")];
    append_to(&world, &id, values.iter().cloned().map(record).collect()).await;
    let items = whole(&*log, &id, P0, Offset::ZERO).await;
    let expected: Vec<_> = (0..).zip(values).map(|(offset, bytes)| seen(offset, bytes)).collect();
    assert_eq!(brief(&items), expected);
    for item in &items {
        let LogReadItem::Record { append_time, .. } = item else { panic!("nothing is gone") };
        assert_eq!(*append_time, world.clock().timestamp());
    }
}

/// Several partitions share one commit; the ranges are answered in the batch's order.
pub async fn an_append_to_several_partitions_is_one_step<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(3)).await;
    append(&*log, batch(&world, &id, [(1, records("before", 1))])).await;
    let all = [(2, records("c", 2)), (0, records("a", 1)), (1, records("b", 3))];
    let ranges = append(&*log, batch(&world, &id, all)).await;
    let told: Vec<_> = ranges.iter().map(|range| (range.partition.0, range.base.0, range.next.0)).collect();
    assert_eq!(told, [(2, 0, 2), (0, 0, 1), (1, 1, 4)]);
    let mut commits = Vec::new();
    for range in &ranges {
        for item in whole(&*log, &id, range.partition, range.base).await {
            let LogReadItem::Record { commit, .. } = item else { panic!("nothing is gone") };
            commits.push(commit);
        }
    }
    assert_eq!(commits.len(), 6);
    assert!(commits.iter().all(|commit| *commit == commits[0]), "one append is one commit: {commits:?}");
    let LogReadItem::Record { commit: before, .. } = whole(&*log, &id, Partition(1), Offset::ZERO).await[0].clone()
    else {
        panic!("nothing is gone")
    };
    assert!(before < commits[0], "a later append has a higher commit");
}

/// A condition on an offset that does not hold stops partitions and state alike, and says what the offset is.
pub async fn an_offset_that_is_not_next_changes_nothing<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(2)).await;
    append_to(&world, &id, records("r", 3)).await;
    for expected in [0, 2, 4, u64::MAX] {
        let mut both = batch(&world, &id, [(1, records("x", 1)), (0, records("x", 1))]);
        both.streams[0].partitions[1].expected_next = Some(Offset(expected));
        both.state = vec![put("state", None, "x")];
        let outcome = try_append(&*log, both).await;
        assert_eq!(outcome, AppendOutcome::OffsetMismatch { stream: 0, partition: P0, next: Offset(3) });
    }
    let all: Vec<_> = all_bounds(&*log, &id).await.iter().map(|of| of.next.0).collect();
    assert_eq!(all, [3, 0]);
    assert_eq!(value(&*log, "state").await, None);
    let mut both = batch(&world, &id, [(1, records("x", 1)), (0, records("x", 1))]);
    both.streams[0].partitions[0].expected_next = Some(Offset(0));
    both.streams[0].partitions[1].expected_next = Some(Offset(3));
    append(&*log, both).await;
}

/// A condition on state that does not hold stops everything, and says which piece and what it has.
pub async fn state_that_moved_changes_nothing<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(2)).await;
    let old = swap(&*log, vec![put("a", None, "1"), put("b", None, "1")]).await;
    let new = swap(&*log, vec![put("b", Some(old[1]), "2")]).await;
    let cases = [
        (vec![put("a", Some(old[0]), "x"), put("b", Some(old[1]), "x")], 1, Some(new[0])),
        (vec![delete("b", Some(old[1])), put("a", Some(old[0]), "x")], 0, Some(new[0])),
        (vec![put("a", Some(old[0]), "x"), put("b", None, "x")], 1, Some(new[0])),
        (vec![put("a", Some(old[0]), "x"), check("c", Some(old[0]))], 1, None),
        (vec![check("b", None), put("a", Some(old[0]), "x")], 0, Some(new[0])),
    ];
    for (state, index, revision) in cases {
        let mut both = batch(&world, &id, [(0, records("x", 1)), (1, records("x", 2))]);
        both.state = state.clone();
        assert_eq!(try_append(&*log, both).await, AppendOutcome::StateMismatch { index, revision }, "{state:?}");
    }
    assert!(all_bounds(&*log, &id).await.iter().all(|of| of.next == Offset::ZERO));
    assert_eq!(value(&*log, "a").await, Some(("1".into(), old[0])));
    assert_eq!(value(&*log, "b").await, Some(("2".into(), new[0])));
}

/// What an append carries is there with its records, seen through the other port.
pub async fn state_is_swapped_with_the_records<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let old = swap(&*log, vec![put("a", None, "1"), put("b", None, "1"), put("c", None, "1")]).await;
    let mut one = batch(&world, &id, [(0, records("r", 1))]);
    one.state =
        vec![put("a", Some(old[0]), "2"), delete("b", Some(old[1])), check("c", Some(old[2])), put("d", None, "2")];
    append(&*log, one.clone()).await;
    let (a, revision) = value(&*log, "a").await.expect("it was put");
    assert_eq!(a, "2");
    assert!(revision > old[0]);
    assert_eq!(value(&*log, "b").await, None);
    assert_eq!(value(&*log, "c").await, Some(("1".into(), old[2])));
    let d = value(&*log, "d").await.expect("it was put");
    assert_eq!(d.0, "2");
    assert!(matches!(try_append(&*log, one).await, AppendOutcome::StateMismatch { index: 0, .. }));
    assert_eq!(texts(&*log, &id, P0).await, ["r0"], "a producer that repeats itself is found out");
    assert!(log.get(b"e").await.expect("a get is answered").is_none());
}

/// State that is put with ranges says where the records of its append lie.
pub async fn state_says_where_its_records_lie<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &LogSpec { start: Offset(u64::MAX - 9), ..keep_all(3) }).await;
    append(&*log, batch(&world, &id, [(2, records("before", 1))])).await;
    let mut both = batch(&world, &id, [(2, records("r", 2)), (1, records("r", 3))]);
    both.state = vec![put("state", None, "")];
    both.state[0].swap = Swap::PutWithRanges(Bytes::from_static(b"head"));
    let ranges = append(&*log, both).await;
    let mut expected = b"head".to_vec();
    for range in &ranges {
        expected.extend(range.partition.0.to_be_bytes());
        expected.extend(range.base.0.to_be_bytes());
        expected.extend(range.next.0.to_be_bytes());
    }
    let entry = log.get(b"state").await.expect("a get is answered").expect("it was put");
    assert_eq!(entry.value.as_deref(), Some(&expected[..]));
    let mut alone = put("alone", None, "");
    alone.swap = Swap::PutWithRanges(Bytes::from_static(b"head"));
    swap(&*log, vec![alone]).await;
    assert_eq!(value(&*log, "alone").await.map(|(value, _)| value).as_deref(), Some("head"));
}

async fn refused<W: StoreWorld>(partitions: Vec<(u32, usize)>) {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(2)).await;
    let partitions = partitions.into_iter().map(|(partition, count)| (partition, records("x", count)));
    let mut bad = batch(&world, &id, partitions);
    bad.state = vec![put("state", None, "x")];
    match log.append(bad).await {
        Err(error) => assert!(is_refusal(&error), "{error}"),
        Ok(outcome) => panic!("was not refused: {outcome:?}"),
    }
    assert!(all_bounds(&*log, &id).await.iter().all(|of| of.next == Offset::ZERO));
    assert_eq!(value(&*log, "state").await, None);
}

/// A batch has a partition at most once.
pub async fn a_partition_twice_in_a_batch_is_refused<W: StoreWorld>() {
    refused::<W>(vec![(0, 1), (1, 1), (0, 1)]).await;
}

/// A partition of a batch has at least one record.
pub async fn a_partition_without_records_is_refused<W: StoreWorld>() {
    refused::<W>(vec![(0, 1), (1, 0)]).await;
}

/// Where the clock stepped back, the last time is stored again, a partition for itself.
pub async fn append_time_never_goes_back<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(2)).await;
    let base = world.clock().timestamp().unix_ms();
    for by in [5, -10_000, 3, 6, -1] {
        let time = Timestamp::from_unix_ms(base + by);
        append(&*log, batch_at(time, &id, [(0, records("r", 1))])).await;
    }
    let early = Timestamp::from_unix_ms(base - 20_000);
    append(&*log, batch_at(early, &id, [(0, records("r", 1)), (1, records("r", 1))])).await;
    let times = async |partition| {
        let items = whole(&*log, &id, Partition(partition), Offset::ZERO).await;
        let times = items.iter().map(|item| match item {
            LogReadItem::Record { append_time, .. } => append_time.unix_ms() - base,
            LogReadItem::Gap(gap) => panic!("nothing is gone: {gap:?}"),
        });
        times.collect::<Vec<_>>()
    };
    assert_eq!(times(0).await, [5, 5, 5, 6, 6, 6]);
    assert_eq!(times(1).await, [-20_000]);
}

/// An append that need not be on stable storage can be read at once, keeps its place among those that must, and is there
/// after an orderly end.
pub async fn an_append_may_be_left_to_the_operating_system<W: StoreWorld>() {
    let world = W::fresh().await;
    let id = stream("s");
    create(&*world.store(), &id, &keep_all(1)).await;
    for (number, durability) in
        [Durability::Os, Durability::Fsync, Durability::Os, Durability::Os].into_iter().enumerate()
    {
        let mut one = batch(&world, &id, [(0, vec![record(number.to_string())])]);
        one.durability = durability;
        append(&*world.store(), one).await;
        assert_eq!(texts(&*world.store(), &id, P0).await.last(), Some(&number.to_string()));
    }
    let world = world.reopen().await;
    assert_eq!(texts(&*world.store(), &id, P0).await, ["0", "1", "2", "3"]);
}

/// There is no offset after 2^64 - 1: what would need one is refused whole.
pub async fn offsets_end_at_the_greatest_number<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &LogSpec { start: Offset(u64::MAX - 2), ..keep_all(1) }).await;
    let three = log.append(batch(&world, &id, [(0, records("x", 3))])).await;
    assert!(is_refusal(&three.expect_err("there is no offset for all of them")));
    assert_eq!(bounds(&*log, &id).await.next, Offset(u64::MAX - 2));
    let range = append_to(&world, &id, records("r", 2)).await;
    assert_eq!(range.next, Offset(u64::MAX));
    let one = log.append(batch(&world, &id, [(0, records("x", 1))])).await;
    assert!(is_refusal(&one.expect_err("there is no offset left")));
    let items = brief(&whole(&*log, &id, P0, Offset(u64::MAX - 2)).await);
    assert_eq!(items, [seen(u64::MAX - 2, "r0"), seen(u64::MAX - 1, "r1")]);
    let read = log.read(&id, P0, Offset(u64::MAX), WIDE).await.expect("the tail can be read");
    assert!(read.items.is_empty());
}
