//! Sources that fail, refuse, or give other rows the second time: told by a code, and never a wrong row.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_core::Failure;
use tidegate_core::port::{ColumnType, SinkError, SourceError};
use tidegate_testkit::scripted::column;
use tidegate_testkit::wait::block_on;
use tidegate_testkit::{OwnedCell, Script};

use super::world::{World, hash_of, read_rows, read_to_end, row_count};

#[test]
fn a_source_that_fails_in_the_middle_is_an_error_line_and_an_end_line_that_says_failed() {
    block_on(async {
        let lost = || SourceError::SnapshotLost(None);
        let world = World::new(Script::numbers(5_000).fail_at(1_234, lost));
        let read = read_to_end(&mut world.open(&world.me).await.unwrap()).await;
        assert_eq!((read.code(), read.status()), ("snapshot_lost", "failed"));
        let end = read.end.clone().unwrap();
        assert_eq!((end.rows, row_count(&read.rows)), (1_234, 1_234), "the rows before it are not lost");
        assert_eq!(end.prefix_hash, hash_of(&read.rows));
        // A resume meets the same end, with the rows that are still kept.
        let again = read_to_end(&mut world.resume(&world.me, &read.cursor(), b"").await.unwrap()).await;
        assert_eq!((again.code(), &again.rows), ("snapshot_lost", &read.rows));
    });
}

#[test]
fn a_refused_statement_is_an_error_before_the_first_line_and_holds_nothing() {
    block_on(async {
        let world = World::new(Script::numbers(10));
        world.source.on("select 1; select 2", Script::numbers(1).refuse(|| SourceError::MultipleStatements));
        let refused = world.open_sql(&world.me, "select 1; select 2").await.unwrap_err();
        assert_eq!(refused.code(), "multiple_statements");
        world.until_at_rest().await;
        let unknown = world.service.open(
            &world.me,
            tidegate_query::OpenRequest {
                source: "nowhere".into(),
                sql: "select 1".into(),
                parameters: vec![],
                shape: tidegate_frame::ndjson::RowShape::Object,
            },
        );
        assert_eq!(unknown.await.unwrap_err().code(), "source_not_found");
    });
}

#[test]
fn a_row_beyond_the_bound_ends_the_stream_with_its_code() {
    block_on(async {
        let columns = vec![column("body", ColumnType::Text)];
        let script =
            Script::new(columns, 3, |_, row| vec![OwnedCell::text(&"x".repeat(if row == 2 { 5_000 } else { 5 }))]);
        let world = World::new(script);
        world.set("limits.row_max_bytes", 1_024);
        let read = read_to_end(&mut world.open(&world.me).await.unwrap()).await;
        assert_eq!((read.code(), read.status(), row_count(&read.rows)), ("row_too_large", "failed", 2));
        let told = SinkError::RowTooLarge { row: 2, limit_bytes: 1_024 }.to_string();
        assert!(read.error.unwrap().message.contains(&told));
    });
}

/// A database that breaks its word: the second run gives other rows. The hash finds it out; no such row is sent.
#[test]
fn rows_that_differ_when_the_query_is_run_again_are_never_sent() {
    block_on(async {
        let runs = Arc::new(AtomicU64::new(0));
        let columns = vec![column("id", ColumnType::Integer), column("name", ColumnType::Text)];
        let script = Script::new(columns, 10_000, move |_, row| {
            let run = if row == 0 { runs.fetch_add(1, Ordering::SeqCst) + 1 } else { runs.load(Ordering::SeqCst) };
            vec![OwnedCell::Integer(row.cast_signed()), OwnedCell::text(&format!("run {run}"))]
        });
        let world = World::new(script);
        world.set("stream.keep_bytes", 0);
        let mut stream = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut stream, 1_500).await;
        drop(stream);
        let refused = world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap_err();
        assert_eq!(refused.code(), "prefix_hash_mismatch");
    });
}

#[test]
fn a_column_name_given_twice_is_refused_for_objects_and_taken_for_arrays() {
    block_on(async {
        let columns = vec![column("id", ColumnType::Integer), column("id", ColumnType::Integer)];
        let world = World::new(Script::new(columns, 2, |_, _| vec![OwnedCell::Integer(1), OwnedCell::Integer(2)]));
        assert_eq!(world.open(&world.me).await.unwrap_err().code(), "duplicate_column");
        let request = tidegate_query::OpenRequest {
            source: "main".into(),
            sql: super::world::SQL.into(),
            parameters: vec![],
            shape: tidegate_frame::ndjson::RowShape::Array,
        };
        let read = read_to_end(&mut world.service.open(&world.me, request).await.unwrap()).await;
        assert_eq!(read.rows, b"{\"row\":[1,2]}\n{\"row\":[1,2]}\n");
    });
}
