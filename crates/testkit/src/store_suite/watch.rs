//! Promises about watches of a stream: never missed, newest state only, ended by removal.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use tidegate_core::port::{ChangeLog, Compaction, LogReadItem, LogSpec, Retention, Trim};
use tidegate_core::position::{Offset, Partition};

use super::*;
use crate::wait::within;

/// Both who waits already and who looks later.
pub async fn a_watcher_wakes_after_an_append_and_a_trim<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let mut early = watch_log(&*log, &id).await;
    let mut late = watch_log(&*log, &id).await;
    let waiting = tokio::spawn(async move {
        let woken = wait_for("an append", &mut early, |of| of.next == Offset(3)).await;
        (woken, early)
    });
    tokio::task::yield_now().await;
    append_to(&world, &id, records("r", 3)).await;
    let (woken, mut early) = within("the waiting watcher", waiting).await.expect("the watcher does not panic");
    assert_eq!(woken, Some(bounds(&*log, &id).await));
    assert_eq!(wait_for("an append", &mut late, |of| of.next == Offset(3)).await, woken);
    let trim = Trim::Before { partition: P0, before: Offset(2) };
    log.trim(&id, trim).await.expect("a trim is answered");
    for watch in [&mut early, &mut late] {
        let woken = wait_for("a trim", watch, |of| of.earliest == Offset(2)).await;
        assert_eq!(woken, Some(bounds(&*log, &id).await));
    }
}

/// Records that went by age or by compaction wake who watches.
pub async fn a_watcher_wakes_after_maintenance<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    let spec = LogSpec {
        retention: Retention { age_ms: Some(5_000), ..Retention::default() },
        compaction: Some(Compaction { tombstone_grace_ms: 0 }),
        ..keep_all(1)
    };
    create(&*log, &id, &spec).await;
    append_to(&world, &id, vec![keyed("a", "a1"), record("r"), keyed("a", "a2")]).await;
    let before = bounds(&*log, &id).await;
    let mut watch = watch_log(&*log, &id).await;
    world.maintain().await;
    let woken = wait_for("compaction", &mut watch, |of| of.bytes < before.bytes).await;
    assert!(woken.is_some());
    later(&world, 5_001);
    world.maintain().await;
    assert!(wait_for("retention", &mut watch, |of| of.earliest == Offset(3)).await.is_some());
}

/// A follower that reads to the tail and then waits gets everything while others append as fast as they can.
pub async fn who_watches_and_then_reads_misses_nothing<W: StoreWorld>() {
    const APPENDS: u64 = 300;
    let world = Arc::new(W::fresh().await);
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let follower = tokio::spawn({
        let (log, id) = (Arc::clone(&log), id.clone());
        async move {
            let mut watch = watch_log(&*log, &id).await;
            let (mut at, mut records) = (Offset::ZERO, 0_u64);
            while records < APPENDS {
                let read = log.read(&id, P0, at, WIDE).await.expect("a read is answered");
                records += read.items.iter().filter(|item| matches!(item, LogReadItem::Record { .. })).count() as u64;
                if read.next == at {
                    let _ = watch.next().await.expect("the stream is not removed");
                }
                at = read.next;
            }
            records
        }
    });
    let appenders = (0..3_u64).map(|task| {
        let (world, id) = (Arc::clone(&world), id.clone());
        tokio::spawn(async move {
            for _ in 0..APPENDS / 3 {
                append_to(&*world, &id, records(&format!("{task}/"), 1)).await;
                tokio::task::yield_now().await;
            }
        })
    });
    for done in within("the appenders", join_all(appenders)).await {
        done.expect("no appender panics");
    }
    assert_eq!(within("the follower", follower).await.expect("the follower does not panic"), APPENDS);
}

/// After a thousand appends it takes a look or two, not a thousand.
pub async fn a_slow_watcher_gets_the_newest_state<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let mut watch = watch_log(&*log, &id).await;
    append_to(&world, &id, records("first", 1)).await;
    assert!(wait_for("the first append", &mut watch, |of| of.next == Offset(1)).await.is_some());
    for start in (0..1_000).step_by(50) {
        let appends = (start..start + 50).map(|_| append_to(&world, &id, records("r", 1)));
        join_all(appends).await;
    }
    let mut looks = 0;
    let woken = wait_for("the newest state", &mut watch, |of| {
        looks += 1;
        of.next == Offset(1_001)
    })
    .await;
    assert!(woken.is_some());
    assert!(looks <= 4, "{looks} looks for 1,000 appends");
}

/// Newest state only is a partition's, not the stream's: no partition hides another.
pub async fn a_slow_watcher_hears_of_every_partition<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(16)).await;
    let mut watch = watch_log(&*log, &id).await;
    for partition in (0..16).chain([3, 3, 3]) {
        append(&*log, batch(&world, &id, [(partition, records("r", 1))])).await;
    }
    let mut newest = [Offset::ZERO; 16];
    let woken = wait_for("every partition", &mut watch, |of| {
        let Partition(number) = of.partition;
        newest[number as usize] = of.next;
        newest.iter().enumerate().all(|(number, next)| next.0 == if number == 3 { 4 } else { 1 })
    })
    .await;
    assert!(woken.is_some(), "{newest:?}");
}

/// Whether somebody waits on it or not; a stream of that name that is made later wakes nobody.
pub async fn a_watch_ends_when_the_stream_is_removed<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let mut waited_on = watch_log(&*log, &id).await;
    let mut left_alone = watch_log(&*log, &id).await;
    let waiting = tokio::spawn(async move { while waited_on.next().await.is_some() {} });
    append_to(&world, &id, records("r", 3)).await;
    log.trim(&id, Trim::Stream).await.expect("a removal is answered");
    within("the end of the watch that is waited on", waiting).await.expect("the watcher does not panic");
    create(&*log, &id, &keep_all(1)).await;
    append_to(&world, &id, records("new", 5)).await;
    let of_the_new_one =
        wait_for("the end of the watch that was left alone", &mut left_alone, |of| of.next == Offset(5)).await;
    assert_eq!(of_the_new_one, None);
}

/// All of them, by one append.
pub async fn one_append_wakes_a_thousand_watchers<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let mut watchers = Vec::new();
    for _ in 0..1_000 {
        let mut watch = watch_log(&*log, &id).await;
        watchers.push(tokio::spawn(async move {
            wait_for("the one append", &mut watch, |of| of.next == Offset(1)).await.is_some()
        }));
    }
    // Some of them wait by now; how many does not matter.
    let _ = tokio::time::timeout(Duration::from_millis(1), futures::future::pending::<()>()).await;
    append_to(&world, &id, records("r", 1)).await;
    for woken in within("the watchers", join_all(watchers)).await {
        assert!(woken.expect("no watcher panics"));
    }
}
