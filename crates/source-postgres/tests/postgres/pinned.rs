//! The snapshot stays, whatever is committed, dropped or run in between; memory does not grow with the result.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidegate_core::limit::Bound;
use tidegate_core::port::SourceError;
use tidegate_source_postgres::PostgresConfig;
use tidegate_testkit::query_source_suite::statement;
use tidegate_testkit::wait::within;
use tidegate_testkit::{OwnedCell, block_on, collect_sink};

use crate::world::{Database, cell, query};

#[test]
fn a_writer_that_commits_all_the_time_is_never_seen() {
    block_on(async {
        let Some(database) = Database::fresh("a_writer_that_commits_all_the_time_is_never_seen", |_| ()) else {
            return;
        };
        database.sql(
            "create table t (id int primary key, v int); insert into t select i, 0 from generate_series(1, 5000) i",
        );
        let stop = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let (server, url, stop) = (database.server, database.url.clone(), Arc::clone(&stop));
            move || {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    server.run_sql(&url, "update t set v = v + 1; delete from t where id = (select min(id) from t); insert into t select max(id) + 1, 0 from t");
                    rounds += 1;
                }
                rounds
            }
        });
        let snapshot = database.open().await;
        let sql = "select id, v from t order by id";
        let first = query(&*snapshot, sql).await.expect("rows");
        assert_eq!(first.len(), 5000);
        for round in 0..8 {
            // A run that is dropped in the middle, at another place each time.
            let (sink, reader) = collect_sink(1 + round * 311);
            let dropped = statement(sql);
            tokio::select! {
                outcome = snapshot.stream(&dropped, Box::new(sink)) => panic!("a full sink ended a run: {outcome:?}"),
                () = reader.wait_until_full() => {}
            }
            assert_eq!(reader.drain(), first[..1 + round * 311]);
            assert!(query(&*snapshot, "select 1 / (id - 2500) from t order by id").await.is_err());
            assert_eq!(query(&*snapshot, sql).await.expect("rows"), first, "round {round}");
        }
        let id = snapshot.id().as_str();
        assert_eq!(cell(&*snapshot, "select pg_current_snapshot()::text").await, OwnedCell::text(id));
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().expect("the writer") > 3, "the writer wrote all the time");
        assert_ne!(query(&*database.open().await, sql).await.expect("rows"), first);
    });
}

#[test]
fn a_table_cannot_be_truncated_under_a_snapshot_that_has_described_it() {
    block_on(async {
        let Some(database) = Database::fresh("a_table_cannot_be_truncated_under_a_snapshot", |_| ()) else { return };
        database.sql("create table t as select generate_series(1, 100) as x");
        let snapshot = database.open().await;
        let all = statement("select x from t");
        snapshot.describe(&all).await.expect("a query");
        assert!(query(&*snapshot, "select 1 / 0").await.is_err(), "what follows is after a rollback");
        let (server, url) = (database.server, database.url.clone());
        let truncating = tokio::task::spawn_blocking(move || server.run_sql(&url, "truncate t"));
        within("the truncation to wait for the lock", async {
            while database.sql("select count(*) from pg_locks where not granted") != "1\n" {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(query(&*snapshot, "select x from t").await.expect("rows").len(), 100);
        snapshot.close().await;
        within("the truncation", truncating).await.expect("it goes on once the snapshot is closed");
        assert_eq!(database.sql("select count(*) from t"), "0\n");
    });
}

#[test]
fn a_million_rows_pass_through_a_small_sink() {
    block_on(async {
        let Some(database) = Database::fresh("a_million_rows_pass_through_a_small_sink", |_| ()) else { return };
        let snapshot = database.open().await;
        let (sink, reader) = collect_sink(1_000);
        let run = tokio::spawn(async move {
            let many = statement("select i from generate_series(1, 1000000) i");
            snapshot.stream(&many, Box::new(sink)).await
        });
        let mut seen = 0;
        while let Some(rows) = reader.next_rows().await {
            for row in rows {
                seen += 1;
                assert_eq!(row, [OwnedCell::Integer(seen)]);
            }
        }
        within("the run", run).await.expect("no panic").expect("no error");
        assert_eq!((seen, reader.pushed()), (1_000_000, 1_000_000));
        assert_eq!((reader.overfull_pushes(), reader.most_held() <= 1_000), (0, true));
    });
}

#[test]
fn a_row_beyond_the_bound_is_never_taken_in_and_the_snapshot_goes_on() {
    block_on(async {
        let test = "a_row_beyond_the_bound_is_never_taken_in_and_the_snapshot_goes_on";
        let Some(database) = Database::fresh(test, |config| config.max_row_bytes = 100_000.into()) else { return };
        let snapshot = database.open().await;
        for round in 0..3 {
            let (sink, reader) = collect_sink(1_000);
            let wide =
                statement("select repeat('x', case i when 40 then 50000000 else 10 end) from generate_series(1, 60) i");
            let error =
                within("the run", snapshot.stream(&wide, Box::new(sink))).await.expect_err("row 39 is too large");
            assert!(
                matches!(
                    error,
                    SourceError::Sink(tidegate_core::port::SinkError::RowTooLarge { row: 39, limit_bytes: 100_000 })
                ),
                "{error:?}"
            );
            assert_eq!(reader.pushed(), 39, "round {round}");
            assert_eq!(query(&*snapshot, "select repeat('y', 90000)").await.expect("it fits").len(), 1);
        }
    });
}

#[test]
fn a_bound_that_is_changed_counts_for_the_next_snapshot() {
    block_on(async {
        let bound = Arc::new(AtomicU64::new(100_000));
        let read = Arc::clone(&bound);
        let test = "a_bound_that_is_changed_counts_for_the_next_snapshot";
        let configure = |config: &mut PostgresConfig| {
            config.max_row_bytes = Bound::live(move || read.load(Ordering::Relaxed));
        };
        let Some(database) = Database::fresh(test, configure) else { return };
        let wide = "select repeat('x', 200000)";
        // Both the connections that were made ready before the change and new ones.
        let before = database.open().await;
        bound.store(300_000, Ordering::Relaxed);
        for _ in 0..4 {
            assert_eq!(query(&*database.open().await, wide).await.expect("it fits now").len(), 1);
        }
        assert!(query(&*before, wide).await.is_err(), "a snapshot keeps what it was opened with");
    });
}

#[test]
fn the_first_row_of_a_slow_query_does_not_wait_for_the_others() {
    block_on(async {
        let Some(database) = Database::fresh("the_first_row_of_a_slow_query_does_not_wait", |_| ()) else { return };
        let snapshot = database.open().await;
        let (sink, reader) = collect_sink(100);
        let slow = statement("select i from generate_series(1, 3) i where i = 1 or pg_sleep(600) is not null");
        tokio::select! {
            outcome = snapshot.stream(&slow, Box::new(sink)) => panic!("it takes 10 minutes: {outcome:?}"),
            () = reader.wait_for_pushed(1) => {}
        }
        assert_eq!(reader.drain(), [[OwnedCell::Integer(1)]]);
    });
}
