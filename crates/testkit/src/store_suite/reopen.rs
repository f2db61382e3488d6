//! Promises about what a store finds when it is opened again. On a store that keeps nothing they hold by themselves.

use tidegate_core::port::{AppendOutcome, ChangeLog, Compaction, Created, LogReadItem, LogSpec, Retention, Trim};
use tidegate_core::position::{Offset, Partition};
use tidegate_core::time::{Clock, Timestamp};

use super::*;

fn spec() -> LogSpec {
    LogSpec {
        partitions: 3,
        start: Offset(7),
        retention: Retention { records: Some(50), age_ms: Some(5_000), bytes: Some(1 << 30) },
        compaction: Some(Compaction { tombstone_grace_ms: 1_000 }),
    }
}

/// Specs, records, commits, times, bounds, gaps and state are the same.
pub async fn a_reopened_log_has_everything<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &spec()).await;
    append_to(&world, &id, records("old", 3)).await;
    later(&world, 5_001);
    world.maintain().await;
    append_to(&world, &id, vec![record("r"), keyed("a", "a1"), keyed("a", "a2"), record("r"), tombstone("b")]).await;
    world.maintain().await;
    let trim = Trim::Before { partition: P0, before: Offset(11) };
    log.trim(&id, trim).await.expect("a trim is answered");
    let mut last = batch(&world, &id, [(0, records("x", 2)), (2, records("y", 60))]);
    last.state = vec![put("state", None, "value")];
    append(&*log, last).await;
    let mut items = Vec::new();
    for partition in 0..3 {
        items.push(whole(&*log, &id, Partition(partition), Offset::ZERO).await);
    }
    let (bounds, state) = (all_bounds(&*log, &id).await, value(&*log, "state").await);
    assert!(state.is_some());
    drop(log);
    let mut world = world;
    for _ in 0..2 {
        world = world.reopen().await;
        let log = world.store();
        for (partition, items) in (0..).zip(&items) {
            assert_eq!(whole(&*log, &id, Partition(partition), Offset::ZERO).await, *items);
        }
        assert_eq!(all_bounds(&*log, &id).await, bounds);
        assert_eq!(value(&*log, "state").await, state);
        assert_eq!(log.create(&id, &spec()).await.expect("a creation is answered"), Created::Existed);
        let differs = log.create(&id, &keep_all(1)).await.expect("a creation is answered");
        assert_eq!(differs, Created::Differs(spec()));
    }
}

/// Offsets, commits, times, revisions and watches go on; conditions hold as before.
pub async fn a_reopened_log_goes_on_where_it_was<W: StoreWorld>() {
    let world = W::fresh().await;
    let id = stream("s");
    create(&*world.store(), &id, &keep_all(1)).await;
    create(&*world.store(), &stream("other"), &keep_all(1)).await;
    let time = world.clock().timestamp();
    let mut one = batch(&world, &id, [(0, records("r", 2))]);
    one.state = vec![put("state", None, "1")];
    append(&*world.store(), one.clone()).await;
    // The log's last append of all is in another stream, and trimmed away: what comes after is still later.
    append_to(&world, &stream("other"), records("o", 1)).await;
    let LogReadItem::Record { commit: last, .. } =
        whole(&*world.store(), &stream("other"), P0, Offset::ZERO).await[0].clone()
    else {
        panic!("nothing is gone")
    };
    let trim = Trim::Before { partition: P0, before: Offset(1) };
    world.store().trim(&stream("other"), trim).await.expect("a trim is answered");

    let world = world.reopen().await;
    let log = world.store();
    let outcome = try_append(&*log, one).await;
    assert!(matches!(outcome, AppendOutcome::StateMismatch { index: 0, revision: Some(_) }), "{outcome:?}");
    let mut watch = watch_log(&*log, &id).await;
    let mut next = batch_at(Timestamp::from_unix_ms(time.unix_ms() - 60_000), &id, [(0, records("r", 1))]);
    next.streams[0].partitions[0].expected_next = Some(Offset(2));
    append(&*log, next).await;
    assert!(wait_for("an append", &mut watch, |of| of.next == Offset(3)).await.is_some());
    let items = whole(&*log, &id, P0, Offset(2)).await;
    let LogReadItem::Record { commit, append_time, .. } = &items[0] else { panic!("nothing is gone") };
    assert!(*commit > last, "a later append has a higher commit: {commit:?}, before it {last:?}");
    assert_eq!(*append_time, time, "the time does not go back");
}

/// Neither a removed stream nor a record of it comes back, nor what its successor never had.
pub async fn a_reopened_log_has_nothing_of_what_was_removed<W: StoreWorld>() {
    let world = W::fresh().await;
    for name in ["removed", "made again"] {
        create(&*world.store(), &stream(name), &keep_all(2)).await;
        append_to(&world, &stream(name), records("old", 100)).await;
        world.store().trim(&stream(name), Trim::Stream).await.expect("a removal is answered");
    }
    create(&*world.store(), &stream("made again"), &keep_all(1)).await;
    append_to(&world, &stream("made again"), records("new", 1)).await;
    let world = world.reopen().await;
    let log = world.store();
    assert!(all_bounds(&*log, &stream("removed")).await.is_empty());
    assert_eq!(contents(&*log, &stream("made again")).await, [seen(0, "new0")]);
    assert_eq!(all_bounds(&*log, &stream("made again")).await.len(), 1);
    create(&*log, &stream("removed"), &keep_all(1)).await;
    assert!(contents(&*log, &stream("removed")).await.is_empty());
}
