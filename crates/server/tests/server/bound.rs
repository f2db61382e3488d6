//! Whatever is too large is refused or ended with its bound, and never costs the server its memory.

use std::io::Write as _;

use serde_json::json;

use crate::database::{Database, Kind};
use crate::http::{Connection, ask};
use crate::process::{Server, until};
use crate::stream::{Held, Stream, rows};

const MIB: u64 = 1024 * 1024;

#[test]
fn a_body_that_says_it_is_huge_is_refused_before_it_is_sent() {
    let server = Server::start(1, &[]);
    let mut connection = Connection::open(server.address);
    connection.send("POST /v1/query HTTP/1.1\r\nhost: t\r\ncontent-length: 999999999999\r\n\r\n");
    let answer = connection.answer().expect("an answer, although no byte of the body came");
    assert_eq!(answer.refusal(), (413, "body_too_large".to_owned()));
    assert_eq!(answer.json()["max_bytes"], MIB);
}

#[test]
fn a_body_without_end_is_stopped_at_the_bound() {
    let server = Server::start(1, &[]);
    // What the first answer of a process brings into memory is not the body's.
    assert_eq!(server.post("/v1/query", &json!({})).refusal().0, 400);
    let mark = server.memory_mark();
    let mut connection = Connection::open(server.address);
    connection.send("POST /v1/query HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut socket = connection.socket();
    let sending = std::thread::spawn(move || {
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
        // For as long as anybody takes it.
        while socket.write_all(&chunk).is_ok() {}
    });
    let answer = connection.answer().expect("an answer, although the body goes on");
    assert_eq!(answer.refusal(), (413, "body_too_large".to_owned()));
    sending.join().unwrap();
    assert!(server.memory_peak() - mark < 16 * MIB, "{} KiB", (server.memory_peak() - mark) / 1024);
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_without_end() {
    let server = Server::start(1, &["--set", "limits.body_timeout_ms=50"]);
    let mut connection = Connection::open(server.address);
    connection.send("POST /v1/query HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\n{");
    let answer = connection.answer().expect("an answer");
    assert_eq!(answer.refusal(), (408, "body_timeout".to_owned()));
    assert_eq!(answer.json()["timeout_ms"], 50);
}

/// The rows before a row of 100 MB come, then an error with the bound; memory does not grow by the row.
fn too_large(server: &Server, sql: &str, rows_before: u64, bound: u64) {
    let mut held = Held::default();
    let (code, text) = match Stream::query(server.address, &[], sql) {
        Ok(mut stream) => {
            let ending = stream.rest(&mut held);
            assert_eq!(ending.status(), "failed", "{sql}: {ending:?}");
            assert_eq!(ending.end.as_ref().unwrap()["prefix_hash"], held.hash());
            (ending.code().to_owned(), ending.error.unwrap()["message"].as_str().unwrap().to_owned())
        }
        Err(answer) => {
            let (status, code) = answer.refusal();
            assert_eq!(status, 413, "{sql}: {}", answer.text());
            (code, answer.text())
        }
    };
    assert_eq!(code, "row_too_large", "{sql}: {text}");
    assert!(text.contains(&bound.to_string()), "{sql}: {text}");
    assert_eq!(held.rows, rows_before, "{sql}");
}

#[test]
fn a_row_of_100_mb_out_of_sqlite_ends_its_stream_with_the_bound() {
    let server = Server::start(1, &[]);
    let mark = server.memory_mark();
    for sql in [
        "select zeroblob(100000000) as x",
        "select randomblob(100000000) as x",
        "select printf('%0100000000d', 1) as x",
        "select hex(zeroblob(50000000)) as x",
        "select replace(hex(zeroblob(8000000)), '00', 'abcdefghijklm') as x",
    ] {
        too_large(&server, sql, 0, 16 * MIB);
    }
    let sql = "with recursive c(i) as (select 1 union all select i + 1 from c where i < 9)
               select i, zeroblob(i / 5 * 100000000) as x from c";
    too_large(&server, sql, 4, 16 * MIB);
    // Each cell is within the bound; the row is not.
    too_large(&server, "select zeroblob(6000000) as a, zeroblob(6000000) as b, zeroblob(6000000) as c", 0, 16 * MIB);
    server.at_rest();
    let grown = server.memory_peak() - mark;
    assert!(grown < 128 * MIB, "{} MiB", grown / MIB);
    server.set(&json!({"limits.row_max_bytes": 1024}));
    too_large(&server, "select printf('%01100d', 1) as x", 0, 1024);
    assert_eq!(rows(server.address, "select printf('%01000d', 1) as x").rows, 1);
}

#[test]
fn a_row_of_100_mb_out_of_postgres_ends_its_stream_with_the_bound() {
    let test = "a_row_of_100_mb_out_of_postgres_ends_its_stream_with_the_bound";
    let Some((_, server)) = Database::serve(Kind::Postgres, test, "select 1", &[]) else { return };
    let mark = server.memory_mark();
    too_large(&server, "select repeat('x', 100000000) as x", 0, 16 * MIB);
    too_large(&server, "select i, repeat('x', i / 5 * 100000000) as x from generate_series(1, 9) i", 4, 16 * MIB);
    too_large(
        &server,
        "select repeat('x', 6000000) as a, repeat('y', 6000000) as b, repeat('z', 6000000) as c",
        0,
        16 * MIB,
    );
    server.at_rest();
    let grown = server.memory_peak() - mark;
    assert!(grown < 128 * MIB, "{} MiB", grown / MIB);
}

/// Reads some megabytes of 100 million rows and goes; the run stops.
fn endless(server: &Server, sql: &str, cancelled: bool) {
    let mark = server.memory_mark();
    let mut stream = Stream::query(server.address, &[], sql).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 100_000), None);
    if cancelled {
        let path = format!("/v1/query/{}", stream.cursor());
        assert_eq!(ask(server.address, "DELETE", &path, &[], "").status, 204);
        let ending = stream.rest(&mut held);
        assert_eq!((ending.error.clone(), ending.status()), (None, "cancelled"));
    } else {
        assert_eq!(stream.open["resumable"], false, "{sql}");
        stream.connection.cut();
    }
    server.at_rest();
    let grown = server.memory_peak() - mark;
    assert!(grown < 32 * MIB, "{} MiB", grown / MIB);
}

#[test]
fn a_query_of_100_million_rows_is_streamed_and_stopped_on_sqlite() {
    let (_, server) = Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, 10_000), &[]).unwrap();
    let counter = "with recursive c(i) as (select 1 union all select i + 1 from c where i < 100000000) select i from c";
    endless(&server, counter, false);
    endless(&server, "select a.id, b.id as other from item a, item b order by a.id, b.id", true);
}

#[test]
fn a_query_of_100_million_rows_is_streamed_and_stopped_on_postgres() {
    let test = "a_query_of_100_million_rows_is_streamed_and_stopped_on_postgres";
    let Some((database, server)) = Database::serve(Kind::Postgres, test, "select 1", &[]) else { return };
    // In the select list a series is made row by row; in FROM PostgreSQL would put it into a file first.
    endless(&server, "select generate_series(1, 100000000) as i", false);
    let running = "select count(*) from pg_stat_activity where datname = current_database() and state = 'active'
                   and pid <> pg_backend_pid()";
    until("the statement to stop", || database.texts(running) == ["0"]);
}

#[test]
fn an_idle_source_holds_nothing_back() {
    // The first row is there at once and the second after half the table was looked at in vain: the first does not wait.
    let server = Server::start(1, &[]);
    let sql = "with recursive c(i) as (select 1 union all select i + 1 from c where i < 1000000000)
               select i from c where i = 1 or i > 999999999";
    let mut stream = Stream::query(server.address, &[], sql).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 1), None);
    assert_eq!(held.json(), [json!({"i": 1})]);
    stream.connection.cut();
    server.at_rest();
}
