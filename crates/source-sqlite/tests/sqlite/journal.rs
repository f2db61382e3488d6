//! Journal modes, and a writer that never stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rusqlite::Connection;
use tidegate_core::port::QuerySource;
use tidegate_source_sqlite::{JournalMode, SqliteConfig, SqliteSource};
use tidegate_testkit::query_source_suite::{ALL, items, rows, statement};
use tidegate_testkit::wait::until;
use tidegate_testkit::{QuerySourceWorld, block_on, collect_sink};

use crate::world::SqliteWorld;

fn mode(connection: &Connection) -> String {
    connection.query_row("pragma journal_mode", [], |row| row.get(0)).unwrap()
}

#[test]
fn a_source_switches_the_file_to_wal_unless_it_is_told_to_keep_it() {
    let world = SqliteWorld::with("create table t (x)");
    assert_eq!(mode(&world.writer()), "wal");
    let world = SqliteWorld::configured("create table t (x)", |config| config.journal_mode = JournalMode::Keep);
    assert_eq!(mode(&world.writer()), "delete");
}

#[test]
fn a_file_that_cannot_be_switched_now_is_served_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("busy.db");
    let holder = Connection::open(&path).unwrap();
    holder.execute_batch("create table t (x); insert into t values (1); begin; select * from t").unwrap();
    let mut config = SqliteConfig::new(&path);
    config.busy_timeout = std::time::Duration::from_millis(10);
    let source = SqliteSource::open(config).unwrap();
    assert_eq!(mode(&holder), "delete");
    block_on(async {
        let snapshot = source.open().await.unwrap();
        assert_eq!(rows(&*snapshot, &statement("select x from t")).await.unwrap().len(), 1);
    });
}

#[test]
fn outside_of_wal_a_snapshot_is_right_and_the_writer_waits() {
    block_on(async {
        let world = SqliteWorld::configured("create table t (x); insert into t values (1)", |config| {
            config.journal_mode = JournalMode::Keep;
        });
        let snapshot = world.snapshot().await;
        let writer = world.writer();
        writer.busy_timeout(std::time::Duration::ZERO).unwrap();
        assert!(writer.execute_batch("insert into t values (2)").is_err(), "the snapshot holds the file");
        assert_eq!(rows(&*snapshot, &statement("select x from t")).await.unwrap().len(), 1);
        snapshot.close().await;
        writer.execute_batch("insert into t values (2)").unwrap();
        assert_eq!(world.query("select x from t").await.unwrap().len(), 2);
    });
}

#[test]
fn a_writer_that_never_stops_is_not_seen_and_not_held_up() {
    block_on(async {
        let world = SqliteWorld::fresh(3_000).await.unwrap();
        let snapshot = world.snapshot().await;
        let (going, commits) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let writer = {
            let (connection, going, commits) = (world.writer(), Arc::clone(&going), Arc::clone(&commits));
            std::thread::spawn(move || {
                while going.load(Ordering::SeqCst) {
                    let change = "update item set n = coalesce(n, 0) + 1, name = name || '.' where id % 100 = 1;
                                  delete from item where id = (select max(id) from item);
                                  insert into item (name, n) values ('new', 1)";
                    connection.execute_batch(change).unwrap();
                    commits.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        for capacity in [1_000_000, 50, 700] {
            let before = commits.load(Ordering::SeqCst);
            let (sink, reader) = collect_sink(capacity);
            let run = tokio::spawn({
                let snapshot = snapshot.clone();
                async move { snapshot.stream(&statement(ALL), Box::new(sink)).await }
            });
            reader.wait_for_pushed(1).await;
            // The stream stands, or has just begun, while the writer commits at least five times more.
            until("commits during a run", async || commits.load(Ordering::SeqCst) >= before + 5).await;
            let mut seen = Vec::new();
            while let Some(more) = reader.next_rows().await {
                seen.extend(more);
            }
            run.await.unwrap().unwrap();
            assert_eq!(seen, items(3_000));
        }
        going.store(false, Ordering::SeqCst);
        writer.join().unwrap();
        assert_ne!(rows(&*world.snapshot().await, &statement(ALL)).await.unwrap(), items(3_000));
    });
}

#[test]
fn snapshot_ids_are_unique_and_tell_the_kind() {
    block_on(async {
        let world = SqliteWorld::with("");
        let (one, two) = (world.snapshot().await, world.snapshot().await);
        let again = SqliteSource::open(SqliteConfig::new(&world.path)).unwrap();
        let other = again.open().await.unwrap();
        assert!(one.id().as_str().starts_with("sqlite:"));
        assert_ne!(one.id(), two.id());
        assert_ne!(one.id(), other.id());
    });
}

#[test]
fn neither_a_checkpoint_nor_a_vacuum_reaches_a_snapshot() {
    block_on(async {
        let world = SqliteWorld::fresh(2_000).await.unwrap();
        let snapshot = world.snapshot().await;
        let writer = world.writer();
        writer.busy_timeout(std::time::Duration::ZERO).unwrap();
        writer.execute_batch("delete from item where id % 2 = 0; update item set name = 'x'; vacuum").unwrap();
        for checkpoint in ["passive", "full", "restart", "truncate"] {
            // Those that would overwrite what the snapshot still needs give up by themselves.
            let _ = writer.query_row(&format!("pragma wal_checkpoint({checkpoint})"), [], |_| Ok(()));
            assert_eq!(rows(&*snapshot, &statement(ALL)).await.unwrap(), items(2_000), "{checkpoint}");
        }
        snapshot.close().await;
        let busy: i64 = writer.query_row("pragma wal_checkpoint(truncate)", [], |row| row.get(0)).unwrap();
        assert_eq!(busy, 0, "a closed snapshot still holds the log back");
    });
}
