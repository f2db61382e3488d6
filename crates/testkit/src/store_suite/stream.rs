//! Promises about streams as a whole: creation, names, tenants, removal.

use futures::future::join_all;
use tidegate_core::port::{AppendOutcome, ChangeLog, Compaction, Created, LogError, LogSpec, Retention, Trim};
use tidegate_core::position::{Offset, Partition};

use super::*;
use crate::wait::within;

/// Creating is idempotent for the same spec.
pub async fn a_new_stream_is_new_and_an_equal_one_existed<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(3)).await;
    append_to(&world, &id, records("r", 2)).await;
    assert_eq!(log.create(&id, &keep_all(3)).await.unwrap_or_else(|e| panic!("{e}")), Created::Existed);
    let all = all_bounds(&*log, &id).await;
    assert_eq!(all.len(), 3);
    assert_eq!(all.iter().map(|of| of.next.0).collect::<Vec<_>>(), [2, 0, 0]);
}

/// Any difference counts, and the answer says what is there.
pub async fn a_different_stream_of_the_name_is_told_and_changes_nothing<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    let spec = LogSpec {
        partitions: 2,
        start: Offset(5),
        retention: Retention { records: Some(10), age_ms: Some(u64::MAX), bytes: None },
        compaction: Some(Compaction { tombstone_grace_ms: 7 }),
    };
    create(&*log, &id, &spec).await;
    append_to(&world, &id, records("r", 2)).await;
    let others = [
        LogSpec { partitions: 3, ..spec.clone() },
        LogSpec { start: Offset(0), ..spec.clone() },
        LogSpec { retention: Retention { records: Some(1), ..spec.retention }, ..spec.clone() },
        LogSpec { retention: Retention { age_ms: None, ..spec.retention }, ..spec.clone() },
        LogSpec { retention: Retention { bytes: Some(0), ..spec.retention }, ..spec.clone() },
        LogSpec { compaction: None, ..spec.clone() },
        LogSpec { compaction: Some(Compaction { tombstone_grace_ms: 8 }), ..spec.clone() },
    ];
    for other in others {
        let created = log.create(&id, &other).await.expect("a creation is answered");
        assert_eq!(created, Created::Differs(spec.clone()), "{other:?}");
    }
    assert_eq!(log.create(&id, &spec).await.expect("a creation is answered"), Created::Existed);
    assert_eq!(texts(&*log, &id, P0).await, ["r0", "r1"]);
}

/// The first record has the start as its offset; what is before it is one gap.
pub async fn a_stream_starts_where_its_spec_says<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &LogSpec { start: Offset(1_000), ..keep_all(2) }).await;
    for of in all_bounds(&*log, &id).await {
        assert_eq!((of.earliest, of.next), (Offset(1_000), Offset(1_000)));
    }
    let mut first = batch(&world, &id, [(1, records("r", 2))]);
    first.streams[0].partitions[0].expected_next = Some(Offset(1_000));
    let range = append(&*log, first).await[0];
    assert_eq!((range.base, range.next), (Offset(1_000), Offset(1_002)));
    let items = brief(&whole(&*log, &id, Partition(1), Offset(990)).await);
    assert!(matches!(items[0], Seen::Gap(990, 1_000, _)), "{items:?}");
    assert_eq!(items[1..], [seen(1_000, "r0"), seen(1_001, "r1")]);
}

/// A stream has at least one partition.
pub async fn a_stream_without_partitions_is_refused<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    assert!(is_refusal(&log.create(&id, &keep_all(0)).await.expect_err("no partition is no stream")));
    create(&*log, &id, &keep_all(1)).await;
}

/// Every call says that there is no such stream, in its own way.
pub async fn a_missing_stream_is_told<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("missing"));
    create(&*log, &stream("there"), &keep_all(1)).await;
    assert!(all_bounds(&*log, &id).await.is_empty());
    assert!(matches!(log.read(&id, P0, Offset::ZERO, WIDE).await, Err(LogError::NotFound)));
    assert!(matches!(ChangeLog::watch(&*log, &id).await.map(drop), Err(LogError::NotFound)));
    let trim = Trim::Before { partition: P0, before: Offset::ZERO };
    assert!(matches!(log.trim(&id, trim).await, Err(LogError::NotFound)));
    let outcome = try_append(&*log, batch(&world, &id, [(0, records("r", 1))])).await;
    assert_eq!(outcome, AppendOutcome::NoSuchPartition { stream: 0, partition: P0 });
    assert!(all_bounds(&*log, &id).await.is_empty(), "an append makes no stream");
}

/// One partition that is not there stops the whole batch.
pub async fn a_missing_partition_is_told_and_nothing_is_appended<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(2)).await;
    for missing in [2, u32::MAX] {
        let mut two = batch(&world, &id, [(0, records("r", 1)), (missing, records("r", 1))]);
        two.state = vec![put("state", None, "x")];
        assert_eq!(
            try_append(&*log, two).await,
            AppendOutcome::NoSuchPartition { stream: 0, partition: Partition(missing) }
        );
        let read = log.read(&id, Partition(missing), Offset::ZERO, WIDE).await;
        assert!(matches!(read, Err(LogError::NotFound)));
        let trim = Trim::Before { partition: Partition(missing), before: Offset::ZERO };
        assert!(matches!(log.trim(&id, trim).await, Err(LogError::NotFound)));
    }
    assert!(all_bounds(&*log, &id).await.iter().all(|of| of.next == Offset::ZERO));
    assert_eq!(value(&*log, "state").await, None);
}

/// Names are compared byte by byte and never joined into one text.
pub async fn streams_of_any_name_are_streams_of_their_own<W: StoreWorld>() {
    let world = W::fresh().await;
    let log = world.store();
    let (long, longer) = ("x".repeat(254), "x".repeat(255));
    let other = format!("{}y", "x".repeat(254));
    let emoji = "🦀".repeat(63);
    let mut ids: Vec<_> =
        ["a", "A", "a:b", "a/b", "a%2Fb", "a%3Ab", "%", "%00", ".", "..", "../a", " ", "a ", "\"", "'"]
            .into_iter()
            .chain(["é", "e\u{301}", "🦀", "a\\b", "*", "\u{feff}a", "\u{10ffff}", &long, &longer, &other, &emoji])
            .map(stream)
            .collect();
    ids.extend([named("a", "b:c"), named("a:b", "c"), named("a", "b/c"), named("a/b", "c"), named("ab", "c")]);
    ids.extend([named("a", "bc"), named(&longer, "c"), named("c", &longer), named(&longer, &longer)]);
    for (number, id) in ids.iter().enumerate() {
        create(&*log, id, &keep_all(1)).await;
        append_to(&world, id, records(&format!("{number}-"), 2)).await;
    }
    for (number, id) in ids.iter().enumerate() {
        let expected = [format!("{number}-0"), format!("{number}-1")];
        assert_eq!(texts(&*log, id, P0).await, expected, "{id:?}");
    }
    within("a removal", log.trim(&stream("a"), Trim::Stream)).await.expect("a stream can be removed");
    for id in ids.iter().filter(|id| **id != stream("a")) {
        assert_eq!(bounds(&*log, id).await.next, Offset(2), "{id:?}");
    }
}

/// The same name under two tenants is two streams, in everything.
pub async fn two_tenants_never_meet<W: StoreWorld>() {
    let world = W::fresh().await;
    let log = world.store();
    let (mine, yours) = (named("mine", "s"), named("yours", "s"));
    create(&*log, &mine, &keep_all(1)).await;
    create(&*log, &yours, &keep_all(2)).await;
    let mut watch = watch_log(&*log, &yours).await;
    append_to(&world, &mine, records("mine", 5)).await;
    assert_eq!(bounds(&*log, &yours).await.next, Offset::ZERO);
    append_to(&world, &yours, records("yours", 2)).await;
    let trim = Trim::Before { partition: P0, before: Offset(4) };
    log.trim(&mine, trim).await.expect("a trim is answered");
    assert_eq!(texts(&*log, &yours, P0).await, ["yours0", "yours1"]);
    log.trim(&mine, Trim::Stream).await.expect("a removal is answered");
    assert!(all_bounds(&*log, &mine).await.is_empty());
    assert_eq!(texts(&*log, &yours, P0).await, ["yours0", "yours1"]);
    append_to(&world, &yours, records("more", 1)).await;
    let woken = wait_for("the append of one's own", &mut watch, |of| of.next == Offset(3)).await;
    assert!(woken.is_some(), "another tenant's removal ends no watch");
}

/// A stream of that name that is made later begins anew; state outside the stream stays.
pub async fn a_removed_stream_leaves_nothing_behind<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(2)).await;
    let mut first = batch(&world, &id, [(0, records("old", 100)), (1, records("old", 1))]);
    first.state = vec![put("state", None, "kept")];
    append(&*log, first).await;
    let trim = Trim::Before { partition: P0, before: Offset(3) };
    log.trim(&id, trim).await.expect("a trim is answered");
    assert!(log.trim(&id, Trim::Stream).await.expect("a removal is answered").is_empty());
    assert!(all_bounds(&*log, &id).await.is_empty());
    assert!(matches!(log.read(&id, P0, Offset::ZERO, WIDE).await, Err(LogError::NotFound)));
    let outcome = try_append(&*log, batch(&world, &id, [(0, records("r", 1))])).await;
    assert_eq!(outcome, AppendOutcome::NoSuchPartition { stream: 0, partition: P0 });

    create(&*log, &id, &keep_all(1)).await;
    let of = bounds(&*log, &id).await;
    assert_eq!((of.earliest, of.next, of.bytes), (Offset::ZERO, Offset::ZERO, 0));
    append_to(&world, &id, records("new", 2)).await;
    assert_eq!(contents(&*log, &id).await, [seen(0, "new0"), seen(1, "new1")]);
    assert_eq!(value(&*log, "state").await.map(|(value, _)| value).as_deref(), Some("kept"));
}

/// Removal is idempotent.
pub async fn removing_what_is_not_there_is_not_an_error<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    assert!(log.trim(&id, Trim::Stream).await.expect("nothing is gone already").is_empty());
    create(&*log, &id, &keep_all(1)).await;
    for _ in 0..2 {
        assert!(log.trim(&id, Trim::Stream).await.expect("a removal is answered").is_empty());
    }
}

/// A race to create: one is the first, the others find it.
pub async fn one_of_many_who_create_a_stream_makes_it<W: StoreWorld>() {
    let world = W::fresh().await;
    let racers = (1..=16).map(|partitions| {
        let log = world.store();
        tokio::spawn(async move { log.create(&stream("s"), &keep_all(partitions)).await })
    });
    let outcomes = within("the race", join_all(racers)).await;
    let mut new = Vec::new();
    let mut found = Vec::new();
    for (partitions, outcome) in (1..).zip(outcomes) {
        match outcome.expect("no racer panics").expect("a creation is answered") {
            Created::New => new.push(partitions),
            Created::Differs(spec) => found.push(spec.partitions),
            Created::Existed => panic!("no two are equal"),
        }
    }
    assert_eq!(new.len(), 1);
    assert!(found.iter().all(|partitions| *partitions == new[0]), "the others find the first one's");
    assert_eq!(all_bounds(&*world.store(), &stream("s")).await.len(), new[0] as usize);
}
