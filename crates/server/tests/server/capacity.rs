//! Capacity and settings: refused with the bound and when to come back; changed at run time for new streams only.

use serde_json::{Value, json};

use crate::database::{Database, Kind};
use crate::http::{Answer, ask};
use crate::process::{Server, until};
use crate::stream::{Held, Stream};

const SQL: &str = "select id, name, n from item order by id";

fn world(rows: u64, arguments: &[&str]) -> Server {
    Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, rows), arguments).unwrap().1
}

fn open(server: &Server) -> Result<Stream, Answer> {
    Stream::query(server.address, &[], SQL)
}

fn refused(server: &Server, code: &str, limit: u64, current: u64) {
    let answer = open(server).err().expect("there is no room");
    assert_eq!(answer.refusal(), (429, code.to_owned()));
    let document = answer.json();
    assert_eq!((&document["limit"], &document["current"]), (&json!(limit), &json!(current)), "{document}");
    assert_eq!(document["retry"], "after");
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
}

#[test]
fn streams_beyond_the_capacity_are_refused_with_the_bound_and_leave_nothing() {
    let server = world(150_000, &["--set", "stream.max_per_principal=3"]);
    let mut streams: Vec<Stream> =
        (0..3).map(|_| open(&server).unwrap_or_else(|answer| panic!("{answer:?}"))).collect();
    for _ in 0..5 {
        refused(&server, "principal_stream_quota_exhausted", 3, 3);
    }
    server.set(&json!({"stream.max_global": 2, "stream.max_per_principal": 256}));
    refused(&server, "stream_capacity_exhausted", 2, 3);
    server.set(&json!({"stream.max_global": 256, "stream.max_per_principal": 4}));
    streams.push(open(&server).unwrap_or_else(|answer| panic!("{answer:?}")));
    refused(&server, "principal_stream_quota_exhausted", 4, 4);
    assert_eq!(server.leases().len(), 4);
    assert!(server.metric("tidegate_stream_refused_total", "") >= 7.0);
    // A stream that ended makes room; so does one whose client went away, though its cursor lives on.
    streams.pop().unwrap().complete(&mut Held::default());
    streams.push(open(&server).unwrap_or_else(|answer| panic!("{answer:?}")));
    streams.pop().unwrap().connection.cut();
    until("the slot of the one that went away", || open(&server).is_ok());
}

#[test]
fn pinned_snapshots_beyond_the_capacity_are_refused_or_given_up_oldest_first() {
    let server = world(150_000, &["--set", "limits.lease_max_per_principal=2"]);
    let (first, second) = (open(&server).ok().unwrap(), open(&server).ok().unwrap());
    let answer = open(&server).err().expect("both are being read");
    assert_eq!(answer.refusal(), (429, "lease_capacity_exhausted".to_owned()));
    assert_eq!((&answer.json()["limit"], &answer.json()["current"]), (&json!(2), &json!(2)));
    let cursor = first.cursor();
    first.connection.cut();
    until("the first to be given up", || open(&server).is_ok());
    let refused = Stream::resume(server.address, &[], &cursor, &Held::default()).err().expect("it was given up");
    assert_eq!(refused.refusal(), (410, "snapshot_expired".to_owned()));
    drop(second);
}

#[test]
fn a_stream_keeps_the_settings_that_it_opened_with() {
    let server = world(150_000, &[]);
    let mut old = open(&server).ok().unwrap();
    assert_eq!(old.open["ttl_ms"], 60_000);
    let mut held = Held::default();
    assert_eq!(old.take(&mut held, 10), None);
    server.set(&json!({"stream.snapshot.ttl_ms": 50, "stream.idle_timeout_ms": 50}));
    let new = open(&server).ok().unwrap();
    assert_eq!(new.open["ttl_ms"], 50);
    let cursors = [old.cursor(), new.cursor()];
    old.connection.cut();
    new.connection.cut();
    until("the new one to expire", || server.leases().len() == 1);
    let expired = Stream::resume(server.address, &[], &cursors[1], &Held::default()).err().expect("its time is over");
    assert_eq!(expired.refusal(), (410, "snapshot_expired".to_owned()));
    let mut old = Stream::resume(server.address, &[], &cursors[0], &held).unwrap_or_else(|answer| panic!("{answer:?}"));
    assert_eq!(old.open["ttl_ms"], 60_000);
    old.complete(&mut held);
    assert_eq!(held.rows, 150_000);
}

#[test]
fn a_setting_that_cannot_be_is_refused_and_none_of_the_request_is_taken() {
    let server = world(1, &[]);
    let before = server.get("/v1/config").json();
    let patch = |body: String| ask(server.address, "PATCH", "/v1/config", &[], body);
    for (setting, code) in [
        (r#""stream.nonsense":1"#, "unknown_field"),
        (r#""nonsense":1"#, "unknown_field"),
        (r#""stream.chunk.pages":0"#, "out_of_range"),
        (r#""stream.chunk.pages":65"#, "out_of_range"),
        (r#""stream.chunk.pages":-1"#, "out_of_range"),
        (r#""stream.snapshot.ttl_ms":0"#, "out_of_range"),
        (r#""stream.max_global":18446744073709551616"#, "out_of_range"),
        (r#""stream.chunk.pages":"4""#, "invalid_field"),
        (r#""stream.chunk.pages":4.5"#, "invalid_field"),
        (r#""stream.chunk.pages":null"#, "invalid_field"),
        (r#""stream":{"chunk":{"pages":4}}"#, "unknown_field"),
        (r#""data_dir":"elsewhere""#, "not_changeable_at_run_time"),
        (r#""listen.http":"127.0.0.1:1""#, "not_changeable_at_run_time"),
    ] {
        let answer = patch(format!("{{\"stream.chunk.max_rows\":7,{setting}}}"));
        assert_eq!(answer.refusal(), (400, code.to_owned()), "{setting}");
        assert_eq!(server.get("/v1/config").json(), before, "{setting}");
    }
    assert_eq!(patch("[]".to_owned()).refusal().0, 400);
    assert_eq!(patch("{".to_owned()).refusal(), (400, "malformed_json".to_owned()));
    let after = patch(r#"{"stream.chunk.max_rows":7}"#.to_owned()).json();
    assert_eq!((&after["stream.chunk.max_rows"], &server.get("/v1/config").json()), (&json!(7), &after));
    let limits = server.get("/v1/limits").json();
    let row = limits["settings"].as_array().unwrap().iter().find(|row| row["key"] == "stream.chunk.max_rows").unwrap();
    let expected: [(&str, Value); 3] = [("value", json!(7)), ("default", json!(1_000)), ("min", json!(1))];
    for (field, value) in expected {
        assert_eq!(row[field], value, "{row}");
    }
    until("the change to be audited", || server.audit().contains("config.changed"));
}
