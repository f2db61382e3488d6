//! Promises about snapshots: what they see, how many there are, how they end. Nothing about statements.

use tidegate_core::port::{SinkError, SourceError};

use super::{ALL, QuerySourceWorld, all, fresh, items, open, refusal, statement};
use crate::sink::collect_sink;
use crate::wait::{until, within};

const CHANGES: [&str; 3] = [
    "update item set n = 5, name = 'changed' where id >= 3",
    "delete from item where id = 2",
    "insert into item (id, name, n) values (0, 'new', 1)",
];

/// What commits after `open` is in no run on the snapshot: neither before its first run, nor during one, nor in a re-run.
pub async fn what_commits_after_open_is_never_seen<W: QuerySourceWorld>() {
    let world = fresh!(W, 300);
    let snapshot = open(&*world.source()).await;
    world.write(CHANGES[0]).await;
    assert_eq!(all(&*snapshot).await, items(300), "a commit between open and the first run is seen");

    let (sink, reader) = collect_sink(10);
    let run = tokio::spawn({
        let snapshot = snapshot.clone();
        async move { snapshot.stream(&statement(ALL), Box::new(sink)).await }
    });
    reader.wait_until_full().await;
    world.write(CHANGES[1]).await;
    world.write(CHANGES[2]).await;
    let mut seen = Vec::new();
    while let Some(rows) = reader.next_rows().await {
        seen.extend(rows);
    }
    within("the run", run).await.expect("no panic").expect("no error");
    assert_eq!(seen, items(300), "a commit during a run is seen");

    assert_eq!(all(&*snapshot).await, items(300), "a re-run sees later commits");
    let now = all(&*open(&*world.source()).await).await;
    assert_eq!(now.len(), 300, "one row was deleted and one was added");
    assert_ne!(now, items(300), "a new snapshot sees what was committed before it");
}

/// Two snapshots see each its own moment and can run at the same time.
pub async fn two_snapshots_are_independent<W: QuerySourceWorld>() {
    let world = fresh!(W, 50);
    let old = open(&*world.source()).await;
    world.write("delete from item where id > 40").await;
    let new = open(&*world.source()).await;
    assert_ne!(old.id(), new.id());

    let (sink, reader) = collect_sink(5);
    let run = tokio::spawn({
        let old = old.clone();
        async move { old.stream(&statement(ALL), Box::new(sink)).await }
    });
    reader.wait_until_full().await;
    assert_eq!(all(&*new).await, items(40), "a run on one snapshot holds up a run on another");
    new.close().await;
    let mut seen = Vec::new();
    while let Some(rows) = reader.next_rows().await {
        seen.extend(rows);
    }
    within("the run", run).await.expect("no panic").expect("no error");
    assert_eq!(seen, items(50));
}

/// Rows that are deleted later, all of them, are still in the snapshot.
pub async fn a_snapshot_outlives_a_change_of_the_table<W: QuerySourceWorld>() {
    let world = fresh!(W, 1_000);
    let snapshot = open(&*world.source()).await;
    world.write("delete from item").await;
    for _ in 0..3 {
        assert_eq!(all(&*snapshot).await, items(1_000));
    }
}

/// `close` may be called again; after it the snapshot answers `SnapshotLost`.
pub async fn close_is_idempotent_and_ends_the_snapshot<W: QuerySourceWorld>() {
    let world = fresh!(W, 5);
    let snapshot = open(&*world.source()).await;
    assert_eq!(all(&*snapshot).await, items(5));
    within("close", snapshot.close()).await;
    within("close again", snapshot.close()).await;
    let error = refusal(&*snapshot, &statement(ALL)).await;
    assert!(matches!(error, SourceError::SnapshotLost(_)), "{error}");
}

/// `close` ends a run that goes on; it does not wait for its reader.
pub async fn close_ends_a_run_that_goes_on<W: QuerySourceWorld>() {
    let world = fresh!(W, 500);
    let snapshot = open(&*world.source()).await;
    let (sink, reader) = collect_sink(10);
    let run = tokio::spawn({
        let snapshot = snapshot.clone();
        async move { snapshot.stream(&statement(ALL), Box::new(sink)).await }
    });
    reader.wait_until_full().await;
    within("close", snapshot.close()).await;
    let error = within("the run", run).await.expect("no panic").expect_err("490 rows are missing");
    assert!(
        matches!(error, SourceError::SnapshotLost(_) | SourceError::Sink(SinkError::Closed)),
        "a closed snapshot's run ended with: {error}"
    );
    assert!(reader.pushed() < 500);
}

/// Beyond its bound a source refuses at once, with the bound; a closed snapshot makes room.
pub async fn connections_are_bounded_and_given_back<W: QuerySourceWorld>() {
    let world = fresh!(W, 5);
    let source = world.source();
    let mut open_ones = Vec::new();
    for _ in 0..W::MAX_SNAPSHOTS {
        open_ones.push(open(&*source).await);
    }
    let Err(error) = within("a refusal", source.open()).await else { panic!("the bound is not kept") };
    assert!(matches!(error, SourceError::ConnectionsExhausted { limit } if limit == W::MAX_SNAPSHOTS), "{error}");
    let closed = open_ones.pop().expect("at least 2");
    closed.close().await;
    // Closed, though still referenced: the place is free at once.
    let again = open(&*source).await;
    assert_eq!(all(&*again).await, items(5));
}

/// A snapshot that is dropped without `close` gives its connection back soon.
pub async fn a_dropped_snapshot_gives_its_connection_back<W: QuerySourceWorld>() {
    let world = fresh!(W, 5);
    let source = world.source();
    for _ in 0..W::MAX_SNAPSHOTS + 2 {
        let mut snapshot = None;
        until("a place for a snapshot", async || {
            snapshot = source.open().await.ok();
            snapshot.is_some()
        })
        .await;
        // Dropped in the middle of a run, too: the run's future goes first, then the last reference.
        let snapshot = snapshot.expect("waited for it");
        let (sink, reader) = collect_sink(1);
        let statement = statement(ALL);
        let run = snapshot.stream(&statement, Box::new(sink));
        tokio::select! {
            outcome = run => panic!("a full sink ended a run: {outcome:?}"),
            () = reader.wait_until_full() => {}
        }
    }
    let mut all_of_them = Vec::new();
    for _ in 0..W::MAX_SNAPSHOTS {
        until("a place for a snapshot", async || match source.open().await {
            Ok(snapshot) => {
                all_of_them.push(snapshot);
                true
            }
            Err(_) => false,
        })
        .await;
    }
}

/// A source that works says so, also while snapshots are open.
pub async fn a_source_answers_a_ping<W: QuerySourceWorld>() {
    let world = fresh!(W, 5);
    let source = world.source();
    within("a ping", source.ping()).await.expect("the database answers");
    let _snapshot = open(&*source).await;
    within("a ping", source.ping()).await.expect("the database answers");
}
