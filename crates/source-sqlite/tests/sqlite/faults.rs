//! Files that are missing, wrong, deleted, cut off or overwritten: a clear error or the right rows, never others.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;
use tidegate_core::Failure;
use tidegate_core::port::{CatalogueQuery, QuerySource, RelationName, SourceError};
use tidegate_source_sqlite::{JournalMode, SqliteConfig, SqliteSource};
use tidegate_testkit::query_source_suite::{ALL, items, rows, statement};
use tidegate_testkit::{QuerySourceWorld, block_on, collect_sink, within};

use crate::world::SqliteWorld;

fn refusal(path: impl AsRef<Path>) -> SourceError {
    SqliteSource::open(SqliteConfig::new(path.as_ref())).unwrap_err()
}

#[test]
fn a_missing_file_is_unavailable_and_is_not_created() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["missing.db", "no/such/folder.db", ":memory:", "file:x?mode=memory"] {
        let path = folder.path().join(name);
        let error = refusal(&path);
        assert_eq!(error.code(), "source_unavailable", "{error}");
        assert!(!path.exists());
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was created");
    assert_eq!(refusal(folder.path()).code(), "source_unavailable", "a folder");
    assert_eq!(refusal(":memory:").code(), "source_unavailable");
}

#[test]
fn what_is_no_database_is_corrupt_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.db");
    let text = "this is a letter and no database. ".repeat(100);
    fs::write(&path, &text).unwrap();
    let error = refusal(&path);
    assert_eq!(error.code(), "source_corrupt", "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_deleted_file_serves_its_open_snapshots_and_no_new_ones() {
    block_on(async {
        let world = SqliteWorld::fresh(500).await.unwrap();
        let snapshot = world.snapshot().await;
        for entry in fs::read_dir(world.folder.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        assert_eq!(rows(&*snapshot, &statement(ALL)).await.unwrap(), items(500));
        let Err(error) = world.source.open().await else { panic!("a deleted file was opened") };
        assert_eq!(error.code(), "source_unavailable", "{error}");
        assert!(world.source.ping().await.is_err());
        assert!(!world.path.exists());
    });
}

/// A database of which every page is read from the file, with a stream that stands at its tenth row while `damage` is
/// done. Gives the error with which the stream went on, and checks the rows before it.
async fn damaged(mode: JournalMode, damage: impl FnOnce(&Path)) -> Option<SourceError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.db");
    let fill = "create table item (id integer primary key, name text not null, n integer);
                with recursive c(id) as (select 1 union all select id + 1 from c where id < 60000)
                insert into item select id, 'item ' || id, iif(id % 7 = 0, null, id * 10) from c";
    rusqlite::Connection::open(&path).unwrap().execute_batch(fill).unwrap();
    let mut config = SqliteConfig::new(&path);
    config.journal_mode = mode;
    let source = SqliteSource::open(config).unwrap();
    let snapshot = source.open().await.unwrap();
    let (sink, reader) = collect_sink(10);
    let run = tokio::spawn({
        let snapshot = snapshot.clone();
        async move { snapshot.stream(&statement(ALL), Box::new(sink)).await }
    });
    reader.wait_until_full().await;
    damage(&path);
    let mut seen = Vec::new();
    while let Some(more) = reader.next_rows().await {
        seen.extend(more);
    }
    let outcome = within("the run", run).await.unwrap();
    assert!(seen.len() >= 10);
    assert_eq!(seen, items(60_000)[..seen.len()], "wrong rows");
    match outcome {
        Ok(()) => {
            assert_eq!(seen.len(), 60_000, "rows are missing without an error");
            None
        }
        Err(error) => {
            assert!(seen.len() < 60_000);
            // Whatever happened, the snapshot answers again with the truth or an error, and closes.
            if let Ok(again) = rows(&*snapshot, &statement("select id, name, n from item order by id limit 5")).await {
                assert_eq!(again, items(5));
            }
            within("close", snapshot.close()).await;
            Some(error)
        }
    }
}

/// Changes the file from another process: in this one, closing any descriptor of the file would drop SQLite's locks.
fn outside(program: &str, arguments: &[&str], path: &Path) {
    let status = Command::new(program).args(arguments).arg(path).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_file_that_is_cut_off_under_a_stream_ends_it_with_an_error() {
    for mode in [JournalMode::Keep, JournalMode::Wal] {
        block_on(async {
            let cut = damaged(mode, |path| outside("truncate", &["-s", "16384"], path)).await;
            let error = cut.expect("the rows are gone");
            assert!(matches!(error.code(), "source_corrupt" | "snapshot_lost"), "{error}");
        });
    }
}

#[test]
fn pages_that_are_overwritten_under_a_stream_end_it_as_corrupt() {
    for byte in [0x00, 0xff, 0x2a] {
        block_on(async {
            let error = damaged(JournalMode::Keep, |path| {
                let length = fs::metadata(path).unwrap().len();
                let mut file = OpenOptions::new().write(true).open(path).unwrap();
                file.seek(SeekFrom::Start(length / 2 / 4096 * 4096)).unwrap();
                file.write_all(&vec![byte; 8 * 4096]).unwrap();
                // Not closed: that would drop the locks of this process on the file.
                std::mem::forget(file);
            })
            .await
            .expect("the rows are gone");
            assert_eq!(error.code(), "source_corrupt", "{error}");
        });
    }
}

#[test]
fn a_file_that_is_replaced_under_a_stream_is_not_seen_by_it() {
    block_on(async {
        let error = damaged(JournalMode::Keep, |path| {
            fs::rename(path, path.with_extension("old")).unwrap();
            fs::write(path, "something else").unwrap();
        })
        .await;
        assert!(error.is_none(), "{error:?}");
    });
}

/// The same bytes for every case: made once.
static SMALL_DATABASE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.db");
    let fill = "pragma page_size = 512;
                create table item (id integer primary key, name text not null unique, n integer);
                create view v as select id, upper(name) as big from item where n > 10;
                with recursive c(id) as (select 1 union all select id + 1 from c where id < 60)
                insert into item select id, 'item ' || id, iif(id % 7 = 0, null, id * 10) from c";
    rusqlite::Connection::open(&path).unwrap().execute_batch(fill).unwrap();
    fs::read(path).unwrap()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_answered_and_never_crashes_or_hangs(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..6),
        length in prop::option::weighted(0.2, any::<prop::sample::Index>())
    ) {
        let mut bytes = SMALL_DATABASE.clone();
        for (at, mask) in &flips {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        if let Some(length) = length {
            bytes.truncate(length.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.db");
        fs::write(&path, bytes).unwrap();
        block_on(async {
            let Ok(source) = SqliteSource::open(SqliteConfig::new(&path)) else { return };
            let Ok(snapshot) = source.open().await else { return };
            let names = ["item", "v"].map(|name| RelationName { schema: None, name: name.into() });
            let query = CatalogueQuery { relations: names.into(), functions: Vec::new() };
            let _ = within("the catalogue", snapshot.catalogue(&query)).await;
            for sql in [ALL, "select * from v", "select name from item order by name", "select * from sqlite_schema"] {
                let _ = within("a description", snapshot.describe(&statement(sql))).await;
                let _ = rows(&*snapshot, &statement(sql)).await;
            }
            within("close", snapshot.close()).await;
        });
    }
}

#[test]
fn a_flood_of_pings_leaves_the_threads_to_others() {
    let world = SqliteWorld::configured("create table t (x)", |config| {
        config.journal_mode = JournalMode::Keep;
        config.busy_timeout = Duration::from_secs(2);
    });
    let holder = world.writer();
    holder.execute_batch("begin exclusive").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build().unwrap();
    runtime.block_on(async {
        let flood = || {
            let mut pings = tokio::task::JoinSet::new();
            for _ in 0..32 {
                let source = Arc::clone(&world.source);
                pings.spawn(async move { source.ping().await });
            }
            pings
        };
        // Callers that went away count too: what they began goes on.
        let mut gone = flood();
        tokio::task::yield_now().await;
        gone.shutdown().await;
        let mut pings = flood();
        tokio::task::yield_now().await;
        tokio::select! {
            biased;
            _ = pings.join_next() => panic!("the other work waited for a ping"),
            done = tokio::task::spawn_blocking(|| ()) => done.unwrap(),
        }
        holder.execute_batch("rollback").unwrap();
        // The first may have given up; those after it find the file free.
        assert!(pings.join_all().await.iter().skip(1).all(Result::is_ok));
    });
}
