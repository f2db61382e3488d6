//! A resume that is wrong gives not one row, and does no harm to who reads or may still resume.

use serde_json::{Value, json};

use crate::database::{Database, Kind};
use crate::http::{Answer, ask};
use crate::process::{Server, until};
use crate::stream::{Held, Stream};

const SQL: &str = "select id, name, n from item order by id";

fn world(rows: u64) -> Server {
    Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, rows), &[]).unwrap().1
}

fn resume(server: &Server, body: &Value) -> Answer {
    server.post("/v1/query/resume", body)
}

#[test]
fn a_malformed_resume_is_refused_in_every_shape_and_never_begins_at_row_0() {
    let server = world(100);
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 10), None);
    let (cursor, hash) = (stream.cursor(), held.hash());
    stream.connection.cut();
    let good = json!({"cursor": cursor, "rows": 10, "prefix_hash": hash});
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body.to_string()
    };
    let without = |field: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        body.to_string()
    };
    let malformed = [
        "{}".to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        without("cursor"),
        without("rows"),
        without("prefix_hash"),
        with("cursor", json!("")),
        with("cursor", json!(cursor[1..])),
        with("cursor", json!(format!("{cursor}0"))),
        with("cursor", json!("g".repeat(48))),
        with("cursor", json!(null)),
        with("cursor", json!(7)),
        with("cursor", json!([cursor])),
        with("rows", json!(-1)),
        with("rows", json!(10.0)),
        with("rows", json!(10.5)),
        with("rows", json!("10")),
        with("rows", json!(null)),
        with("rows", json!(true)),
        with("rows", json!([10])),
        good.to_string().replace("\"rows\":10", "\"rows\":99999999999999999999"),
        good.to_string().replace("\"rows\":10", "\"rows\":1e1"),
        good.to_string().replace("\"rows\":10", "\"rows\":10,\"rows\":0"),
        with("prefix_hash", json!("")),
        with("prefix_hash", json!(hash[1..])),
        with("prefix_hash", json!(format!("{hash}00"))),
        with("prefix_hash", json!("g".repeat(64))),
        with("prefix_hash", json!(null)),
        with("prefix_hash", json!({})),
    ];
    for body in malformed {
        let answer = ask(server.address, "POST", "/v1/query/resume", &[], &body);
        assert_eq!(answer.refusal(), (400, "malformed_resume".to_owned()), "{body}");
    }
    for (body, code) in [(with("from_row", json!(10)), "unknown_field"), ("{\"cursor\"".to_owned(), "malformed_json")] {
        assert_eq!(
            ask(server.address, "POST", "/v1/query/resume", &[], &body).refusal(),
            (400, code.to_owned()),
            "{body}"
        );
    }
    Stream::resume(server.address, &[], &cursor, &held)
        .unwrap_or_else(|answer| panic!("{answer:?}"))
        .complete(&mut held);
    assert_eq!(held.rows, 100, "the cursor is as good as before");
}

#[test]
fn a_resume_with_a_wrong_hash_or_count_gives_no_row_and_leaves_the_reader_alone() {
    for keep_bytes in [8 << 20, 0] {
        // More than all buffers on the way hold: the reader stands in the middle all the time.
        let server = world(100_000);
        server.set(&json!({"stream.keep_bytes": keep_bytes}));
        let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
        let mut held = Held::default();
        assert_eq!(stream.take(&mut held, 10), None);
        let (cursor, hash) = (stream.cursor(), held.hash());
        let empty = Held::default().hash();
        for (rows, hash) in [
            (10, "0".repeat(64)),
            (10, empty.clone()),
            (9, hash.clone()),
            (11, hash.clone()),
            (0, hash.clone()),
            (100_001, hash.clone()),
            (u64::MAX, hash.clone()),
        ] {
            let answer = resume(&server, &json!({"cursor": cursor, "rows": rows, "prefix_hash": hash}));
            assert_eq!(answer.refusal(), (409, "prefix_hash_mismatch".to_owned()), "{rows} {hash}");
        }
        stream.complete(&mut held);
        assert_eq!(held.rows, 100_000, "the reader was not fenced");
        // From row 0, with the hash of nothing: a whole read of the same snapshot.
        let mut again = Held::default();
        let mut stream =
            Stream::resume(server.address, &[], &cursor, &again).unwrap_or_else(|answer| panic!("{answer:?}"));
        stream.complete(&mut again);
        assert!(again.bytes == held.bytes);
    }
}

#[test]
fn a_cancelled_stream_ends_at_once_and_is_not_resumed() {
    let server = world(200_000);
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 10), None);
    let (path, before) = (format!("/v1/query/{}", stream.cursor()), held.clone());
    for _ in 0..3 {
        let answer = ask(server.address, "DELETE", &path, &[], "");
        assert_eq!((answer.status, answer.body.len()), (204, 0), "it is idempotent");
    }
    let ending = stream.rest(&mut held);
    assert_eq!((ending.error.clone(), ending.status()), (None, "cancelled"));
    assert_eq!(ending.end.unwrap()["prefix_hash"], held.hash());
    assert!(held.rows < 200_000);
    for held in [before, held] {
        let refused = Stream::resume(server.address, &[], &stream.cursor(), &held).err().expect("it was cancelled");
        assert_eq!(refused.refusal(), (409, "cursor_cancelled".to_owned()));
    }
    server.at_rest();
}

#[test]
fn an_unknown_cursor_is_not_found() {
    let server = world(1);
    let body = json!({"cursor": "ab".repeat(24), "rows": 0, "prefix_hash": Held::default().hash()});
    assert_eq!(resume(&server, &body).refusal(), (404, "cursor_not_found".to_owned()));
    let answer = ask(server.address, "DELETE", &format!("/v1/query/{}", "ab".repeat(24)), &[], "");
    assert_eq!(answer.refusal(), (404, "cursor_not_found".to_owned()));
}

#[test]
fn after_the_ttl_the_snapshot_is_let_go_and_a_resume_is_gone() {
    let (database, server) = Database::serve(
        Kind::Sqlite,
        "",
        &Database::items(Kind::Sqlite, 100_000),
        &["--set", "stream.snapshot.ttl_ms=100"],
    )
    .unwrap();
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    assert_eq!(stream.open["ttl_ms"], 100);
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 10), None);
    // While it is read the snapshot is pinned: the log of what was written since cannot be emptied.
    database.run("update item set n = 0 where id = 10");
    let Database::Sqlite(path) = &database else { unreachable!("it was made so") };
    let checkpoint = || {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.query_row("pragma wal_checkpoint(truncate)", (), |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(checkpoint(), 1, "busy");
    let cursor = stream.cursor();
    stream.connection.cut();
    until("the lease to expire", || server.leases().is_empty());
    let refused = Stream::resume(server.address, &[], &cursor, &held).err().expect("it has expired");
    assert_eq!(refused.refusal(), (410, "snapshot_expired".to_owned()));
    until("the snapshot to be let go", || checkpoint() == 0);
    // Empty, or gone with the last connection.
    assert_eq!(std::fs::metadata(path.with_extension("db-wal")).map_or(0, |log| log.len()), 0);
}

#[test]
fn after_the_ttl_no_transaction_is_left_in_postgres() {
    let test = "after_the_ttl_no_transaction_is_left_in_postgres";
    let sql = Database::items(Kind::Postgres, 100_000);
    let arguments = ["--set", "stream.snapshot.ttl_ms=100"];
    let Some((database, server)) = Database::serve(Kind::Postgres, test, &sql, &arguments) else { return };
    let transactions = || {
        let open = "select count(*) from pg_stat_activity
                    where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null
                    and backend_type = 'client backend'";
        database.texts(open)[0].parse::<u64>().unwrap()
    };
    // A connection that is kept ready is made in a transaction of its own, which ends.
    until("no transaction to be open", || transactions() == 0);
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 10), None);
    until("the snapshot alone to be open", || transactions() == 1);
    let cursor = stream.cursor();
    stream.connection.cut();
    until("the lease to expire", || server.leases().is_empty());
    let refused = Stream::resume(server.address, &[], &cursor, &held).err().expect("it has expired");
    assert_eq!(refused.refusal(), (410, "snapshot_expired".to_owned()));
    until("the transaction to end", || transactions() == 0);
}
