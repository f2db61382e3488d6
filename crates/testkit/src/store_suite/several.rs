//! Promises about appends to several streams at once: one step, one commit, all or nothing.

use bytes::Bytes;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, AppendRecord, ChangeLog, Durability, LogReadItem, MetaStore, StreamAppend, StreamId,
    Swap,
};
use tidegate_core::position::{Offset, Partition};

use super::*;
use crate::wait::within;

/// A stream, and what goes to its partitions.
type Part<'a> = (&'a StreamId, Vec<(u32, Vec<AppendRecord>)>);

/// A batch for these partitions of these streams, as of the world's clock.
fn several<W: StoreWorld>(world: &W, parts: Vec<Part<'_>>) -> AppendBatch {
    let streams = parts.into_iter().flat_map(|(stream, partitions)| batch(world, stream, partitions).streams);
    AppendBatch { streams: streams.collect(), state: Vec::new(), durability: Durability::Fsync }
}

async fn nothing_was_appended(log: &impl ChangeLog, streams: &[&StreamId]) {
    for stream in streams {
        assert!(all_bounds(log, stream).await.iter().all(|of| of.next == Offset::ZERO), "{stream:?}");
    }
}

/// All streams and partitions share one commit; the ranges are answered in the batch's order.
pub async fn an_append_to_several_streams_is_one_step<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, a, b, c) = (world.store(), stream("a"), stream("b"), stream("c"));
    for (id, partitions) in [(&a, 1), (&b, 2), (&c, 3)] {
        create(&*log, id, &keep_all(partitions)).await;
    }
    append_to(&world, &b, records("before", 1)).await;
    let parts = vec![
        (&c, vec![(2, records("c2-", 1)), (0, records("c0-", 2))]),
        (&a, vec![(0, records("a", 3))]),
        (&b, vec![(1, records("b1-", 1)), (0, records("b0-", 1))]),
    ];
    let mut one = several(&world, parts);
    one.state = vec![put("state", None, "1")];
    let ranges = append(&*log, one).await;
    let told: Vec<_> = ranges.iter().map(|range| (range.partition.0, range.base.0, range.next.0)).collect();
    assert_eq!(told, [(2, 0, 1), (0, 0, 2), (0, 0, 3), (1, 0, 1), (0, 1, 2)]);
    let mut commits = Vec::new();
    for (range, id) in ranges.iter().zip([&c, &c, &a, &b, &b]) {
        for item in whole(&*log, id, range.partition, range.base).await {
            let LogReadItem::Record { commit, .. } = item else { panic!("nothing is gone") };
            commits.push(commit);
        }
    }
    assert_eq!(commits.len(), 8);
    assert!(commits.iter().all(|commit| *commit == commits[0]), "one append is one commit: {commits:?}");
    append_to(&world, &a, records("after", 1)).await;
    let LogReadItem::Record { commit: after, .. } = whole(&*log, &a, P0, Offset(3)).await[0].clone() else {
        panic!("nothing is gone")
    };
    assert!(after > commits[0], "a later append has a higher commit");
    assert_eq!(value(&*log, "state").await.map(|(value, _)| value).as_deref(), Some("1"));
}

/// Whatever speaks against one stream's part stops the parts of the others, and the state; the answer names the stream by its
/// place.
pub async fn several_streams_are_appended_to_all_or_none<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, a, b) = (world.store(), stream("a"), stream("b"));
    create(&*log, &a, &keep_all(2)).await;
    create(&*log, &b, &keep_all(2)).await;
    let parts = |last: (StreamId, u32)| {
        let (stream, partition) = last;
        let one = |id: &StreamId, partition| batch(&world, id, [(partition, records("x", 1))]).streams;
        let streams: Vec<StreamAppend> = one(&a, 0).into_iter().chain(one(&stream, partition)).collect();
        AppendBatch { streams, state: vec![put("state", None, "x")], durability: Durability::Fsync }
    };
    let missing = |partition| AppendOutcome::NoSuchPartition { stream: 1, partition: Partition(partition) };
    assert_eq!(try_append(&*log, parts((stream("no such"), 1))).await, missing(1));
    assert_eq!(try_append(&*log, parts((b.clone(), 2))).await, missing(2));
    let mut absent = parts((stream("no such"), 1));
    absent.streams[1].partitions.clear();
    assert_eq!(try_append(&*log, absent).await, missing(0), "a stream without partitions has to be there too");
    let mut ahead = parts((b.clone(), 1));
    ahead.streams[1].partitions[0].expected_next = Some(Offset(1));
    let moved = AppendOutcome::OffsetMismatch { stream: 1, partition: Partition(1), next: Offset::ZERO };
    assert_eq!(try_append(&*log, ahead).await, moved);
    let mut swapped = parts((b.clone(), 1));
    swapped.state.push(put("other", Some(tidegate_core::port::Revision(u64::MAX)), "x"));
    assert_eq!(try_append(&*log, swapped).await, AppendOutcome::StateMismatch { index: 1, revision: None });
    let mut empty = parts((b.clone(), 1));
    empty.streams[1].partitions[0].records.clear();
    for malformed in [parts((a.clone(), 1)), empty] {
        match log.append(malformed).await {
            Err(error) => assert!(is_refusal(&error), "{error}"),
            Ok(outcome) => panic!("was not refused: {outcome:?}"),
        }
    }
    nothing_was_appended(&*log, &[&a, &b]).await;
    assert_eq!(value(&*log, "state").await, None);
    let mut right = parts((b.clone(), 1));
    right.streams[1].partitions[0].expected_next = Some(Offset::ZERO);
    append(&*log, right).await;
    assert_eq!(texts(&*log, &a, P0).await, ["x0"]);
    assert_eq!(texts(&*log, &b, Partition(1)).await, ["x0"]);
}

/// State that is put with ranges names the ranges of all streams, in the batch's order; a batch without streams swaps its state
/// and says nothing of ranges.
pub async fn state_says_where_the_records_of_several_streams_lie<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, a, b) = (world.store(), stream("a"), stream("b"));
    create(&*log, &a, &keep_all(1)).await;
    create(&*log, &b, &keep_all(2)).await;
    let mut both = several(&world, vec![(&b, vec![(1, records("b", 2))]), (&a, vec![(0, records("a", 1))])]);
    both.state = vec![put("state", None, "")];
    both.state[0].swap = Swap::PutWithRanges(Bytes::from_static(b"head"));
    let mut expected = b"head".to_vec();
    for range in append(&*log, both).await {
        expected.extend(range.partition.0.to_be_bytes());
        expected.extend(range.base.0.to_be_bytes());
        expected.extend(range.next.0.to_be_bytes());
    }
    assert_eq!(expected.len(), 4 + 2 * 20);
    let entry = log.get(b"state").await.expect("a get is answered").expect("it was put");
    assert_eq!(entry.value.as_deref(), Some(&expected[..]));
    let mut alone = several(&world, Vec::new());
    alone.state = vec![put("state", Some(entry.revision), "")];
    alone.state[0].swap = Swap::PutWithRanges(Bytes::from_static(b"alone"));
    assert!(append(&*log, alone.clone()).await.is_empty());
    assert_eq!(value(&*log, "state").await.map(|(value, _)| value).as_deref(), Some("alone"));
    assert!(matches!(try_append(&*log, alone).await, AppendOutcome::StateMismatch { index: 0, .. }));
}

/// Who sees a record of one stream finds those of the same append in every other stream, in whatever order it looks.
pub async fn no_reader_sees_half_of_several_streams<W: StoreWorld>() {
    const ROUNDS: u64 = 60;
    let world = W::fresh().await;
    let (log, a, b) = (world.store(), stream("a"), stream("b"));
    create(&*log, &a, &keep_all(1)).await;
    create(&*log, &b, &keep_all(1)).await;
    let appends: Vec<AppendBatch> = (0..ROUNDS)
        .map(|_| several(&world, vec![(&a, vec![(0, records("a", 1))]), (&b, vec![(0, records("b", 1))])]))
        .collect();
    let appender = {
        let log = world.store();
        tokio::spawn(async move {
            for one in appends {
                append(&*log, one).await;
                tokio::task::yield_now().await;
            }
        })
    };
    let mut seen = 0;
    let mut turn = false;
    while seen < ROUNDS {
        let (first, second) = if turn { (&a, &b) } else { (&b, &a) };
        turn = !turn;
        seen = bounds(&*log, first).await.next.0;
        let after = bounds(&*log, second).await.next.0;
        assert!(after >= seen, "{seen} appends are seen in {first:?}, {after} in {second:?}");
        if seen > 0 {
            let read = log.read(second, P0, Offset(seen - 1), WIDE).await.expect("what is seen in one can be read");
            assert!(!read.items.is_empty());
        }
        tokio::task::yield_now().await;
    }
    within("the appender", appender).await.expect("the appender ends well");
}
