//! SIGTERM: new work is refused, what runs gets its end line, and the process ends with 0.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::database::{Database, Kind};
use crate::http::{Connection, ask};
use crate::process::{Server, signal, until, wait};
use crate::stream::{Held, Stream};

const SQL: &str = "select id, name, n from item order by id";

fn world(rows: u64, arguments: &[&str]) -> Server {
    Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, rows), arguments).unwrap().1
}

fn terminate(server: &Server) {
    signal(&server.child, "TERM");
    until("the server to drain", || server.get("/readyz").refusal() == (503, "draining".to_owned()));
}

#[test]
fn a_running_stream_comes_to_its_end_while_new_work_is_refused() {
    let mut server = world(150_000, &["--set", "limits.drain_ms=600000"]);
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 10), None);
    let other = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let cursor = other.cursor();
    other.connection.cut();
    terminate(&server);
    for answer in [
        Stream::query(server.address, &[], SQL).err().expect("the server is on its way out"),
        Stream::resume(server.address, &[], &cursor, &Held::default()).err().expect("the server is on its way out"),
        ask(server.address, "PATCH", "/v1/config", &[], "{}"),
    ] {
        assert_eq!(answer.refusal(), (503, "draining".to_owned()));
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(server.get("/healthz").status, 200, "the process is up");
    stream.complete(&mut held);
    assert_eq!(held.rows, 150_000);
    assert_eq!(wait(&mut server.child).code(), Some(0));
}

#[test]
fn a_stream_that_does_not_end_in_time_is_ended_with_an_error() {
    let mut server = world(150_000, &["--set", "limits.drain_ms=100"]);
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 10), None);
    signal(&server.child, "TERM");
    // Nothing is read until the time is over, as far as the server can tell.
    until("the stream to be given up", || server.audit().contains("\"reason\":\"draining\""));
    let ending = stream.rest(&mut held);
    assert_eq!((ending.code(), ending.status()), ("draining", "failed"), "{ending:?}");
    assert_eq!(ending.end.unwrap()["prefix_hash"], held.hash());
    assert!(held.rows < 150_000);
    assert_eq!(wait(&mut server.child).code(), Some(0));
}

#[test]
fn without_streams_the_process_ends_at_once_whoever_is_connected() {
    let mut server = world(10, &["--set", "limits.drain_ms=600000"]);
    let mut idle: Vec<Connection> = (0..20).map(|_| Connection::open(server.address)).collect();
    for connection in &mut idle {
        connection.request("GET", "/healthz", &[], "");
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    // A lease without a reader is nothing to wait for.
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    stream.complete(&mut Held::default());
    assert_eq!(server.leases()[0]["reading"], json!(false));
    let began = Instant::now();
    signal(&server.child, "TERM");
    assert_eq!(wait(&mut server.child).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(idle.iter_mut().all(Connection::closes));
}
