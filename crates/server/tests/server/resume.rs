//! The main job: a stream that is cut at any row goes on at the exact row, from the same snapshot, whoever writes meanwhile.

use serde_json::json;
use tidegate_testkit::SeededEntropy;

use crate::database::{Database, Kind};
use crate::stream::{Held, Stream, rows};

const SQL: &str = "select id, name, n from item order by id";

/// Cuts one stream 100 times at random rows, each time with a commit in between.
fn chain(kind: Kind, test: &str, seed: u64, table_rows: u64, arguments: &[&str]) {
    let Some((database, server)) = Database::serve(kind, test, &Database::items(kind, table_rows), arguments) else {
        return;
    };
    let entropy = SeededEntropy::new(seed);
    let undisturbed = rows(server.address, SQL);
    assert_eq!(undisturbed.rows, table_rows);
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let open = stream.open.clone();
    assert_eq!((&open["resumable"], &open["not_resumable_because"]), (&json!(true), &json!(null)));
    let cursor = stream.cursor();
    let mut held = Held::default();
    database.while_written(|commits| {
        for cut in 0..100 {
            let before = commits.count();
            // Twice the mean, so that most of the table is read by the cuts; now and then not one row between two cuts.
            assert_eq!(stream.take(&mut held, entropy.below(table_rows / 60)), None, "the end came before cut {cut}");
            stream.connection.cut();
            commits.after(before);
            stream = Stream::resume(server.address, &[], &cursor, &held)
                .unwrap_or_else(|answer| panic!("cut {cut}: {answer:?}"));
            for same in ["lease", "cursor", "snapshot", "columns", "schema"] {
                assert_eq!(stream.open[same], open[same], "{same}");
            }
        }
        stream.complete(&mut held);
    });
    let from = if arguments.is_empty() { "resume_from_memory" } else { "resume_from_snapshot" };
    // Where nothing is kept, only what waited to be sent is in memory.
    assert!(server.metric("tidegate_stream_opened_total", from) >= 90.0, "{}", server.get("/metrics").text());
    assert!(held.bytes == undisturbed.bytes, "the bytes are those of the undisturbed read");
    assert!(rows(server.address, SQL).bytes != undisturbed.bytes, "the writer changed the table");
}

#[test]
fn a_hundred_cuts_on_sqlite_change_no_byte() {
    chain(Kind::Sqlite, "a_hundred_cuts_on_sqlite_change_no_byte", 1, 12_000, &[]);
}

#[test]
fn a_hundred_cuts_on_sqlite_change_no_byte_where_nothing_is_kept_in_memory() {
    let test = "a_hundred_cuts_on_sqlite_change_no_byte_where_nothing_is_kept_in_memory";
    chain(Kind::Sqlite, test, 2, 6_000, &["--set", "stream.keep_bytes=0"]);
}

#[test]
fn a_hundred_cuts_on_postgres_change_no_byte() {
    chain(Kind::Postgres, "a_hundred_cuts_on_postgres_change_no_byte", 3, 12_000, &[]);
}

#[test]
fn a_hundred_cuts_on_postgres_change_no_byte_where_nothing_is_kept_in_memory() {
    let test = "a_hundred_cuts_on_postgres_change_no_byte_where_nothing_is_kept_in_memory";
    chain(Kind::Postgres, test, 4, 4_000, &["--set", "stream.keep_bytes=0"]);
}

#[test]
fn the_last_bytes_can_be_lost_and_asked_for_again() {
    let (_, server) = Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, 100), &[]).unwrap();
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    stream.complete(&mut held);
    // All rows are held and the end line was lost: the resume gives that line alone.
    let mut again =
        Stream::resume(server.address, &[], &stream.cursor(), &held).unwrap_or_else(|answer| panic!("{answer:?}"));
    again.complete(&mut held);
    assert_eq!(held.rows, 100);
}

#[test]
fn a_second_reader_fences_the_first() {
    // More than all buffers on the way hold, so that the first stands in the middle.
    let (_, server) = Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, 200_000), &[]).unwrap();
    let mut first = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(first.take(&mut held, 1_000), None);
    let mut all = held.clone();
    let mut second =
        Stream::resume(server.address, &[], &first.cursor(), &held).unwrap_or_else(|answer| panic!("{answer:?}"));
    let ending = first.rest(&mut held);
    assert_eq!((ending.code(), ending.status()), ("cursor_taken_over", "failed"));
    second.complete(&mut all);
    assert_eq!(all.rows, 200_000);
    assert!(all.bytes.starts_with(&held.bytes), "what the first was sent is right");
}

#[test]
fn a_statement_without_a_total_order_is_streamed_and_says_why_it_cannot_be_resumed() {
    let (_, server) = Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, 100), &[]).unwrap();
    for sql in [
        "select name from item",
        "select id from item order by n",
        "select n, count(*) from item group by n order by 2",
    ] {
        let mut stream = Stream::query(server.address, &[], sql).unwrap_or_else(|answer| panic!("{answer:?}"));
        assert_eq!((&stream.open["resumable"], &stream.open["cursor"]), (&json!(false), &json!(null)), "{sql}");
        assert!(stream.open["not_resumable_because"].is_string(), "{sql}");
        stream.complete(&mut Held::default());
    }
    server.at_rest();
}
