//! Many connections: the server answers among them, in bounded memory, and is at rest when they are gone.

use std::io::Write as _;
use std::net::TcpStream;

use crate::database::{Database, Kind};
use crate::http::Connection;
use crate::process::until;
use crate::stream::rows;

/// What this process needs for everything else.
const DESCRIPTORS_ASIDE: u64 = 1_000;

#[test]
fn ten_thousand_connections_are_held_while_queries_are_answered() {
    let (_, server) = Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, 1_000), &[]).unwrap();
    let allowed = rlimit::increase_nofile_limit(20_000).unwrap();
    let count = 10_000.min(allowed.saturating_sub(DESCRIPTORS_ASIDE));
    assert!(count >= 5_000, "the system allows this test {allowed} open files only");
    let sql = "select id, name from item order by id";
    let all = rows(server.address, sql);
    let mark = server.memory_mark();
    let mut idle = Vec::new();
    for number in 0..count {
        match TcpStream::connect(server.address) {
            Ok(socket) => idle.push(socket),
            Err(error) => panic!("connection {number}: {error}"),
        }
    }
    until("all of them to be accepted", || server.metric("tidegate_http_connections", "") >= count as f64);
    assert!(rows(server.address, sql).bytes == all.bytes, "a query is answered among them");
    let grown = (server.memory_peak() - mark) / count;
    assert!(grown < 32 * 1024, "{grown} bytes a connection");
    // Half of them begin a request and never end it; a quarter ask and read; all of them go.
    for (at, socket) in idle.iter().enumerate() {
        let mut socket = socket;
        let sent = match at % 4 {
            0 | 1 => socket.write_all(b"POST /v1/query HTTP/1.1\r\nhost: t\r\ncontent-le"),
            2 => socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n"),
            _ => Ok(()),
        };
        sent.unwrap();
    }
    assert!(rows(server.address, sql).bytes == all.bytes);
    drop(idle);
    until("the server to be at rest", || server.metric("tidegate_http_connections", "") <= 1.0);
    assert!(rows(server.address, sql).bytes == all.bytes);
}

#[test]
fn connections_beyond_the_bound_wait_and_are_served_when_others_go() {
    let arguments = ["--set", "limits.connection_max=2"];
    let (_, server) = Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, 10), &arguments).unwrap();
    let mut first: Vec<Connection> = (0..2).map(|_| Connection::open(server.address)).collect();
    for connection in &mut first {
        connection.request("GET", "/healthz", &[], "");
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    let mut third = Connection::open(server.address);
    third.request("GET", "/healthz", &[], "");
    drop(first);
    assert_eq!(third.answer().expect("served when there is room").status, 200);
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let (_, server) = Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, 10), &[]).unwrap();
    let mut connection = Connection::open(server.address);
    let query = r#"{"source":"main","sql":"select id from item order by id"}"#;
    connection.request("GET", "/v1/version", &[], "");
    connection.request("POST", "/v1/query", &[], query);
    connection.request("GET", "/healthz", &[], "");
    assert_eq!(connection.answer().unwrap().json()["name"], "tidegate");
    let stream = connection.answer().unwrap();
    assert!(stream.whole && stream.text().lines().count() == 12, "{}", stream.text());
    assert_eq!(connection.answer().unwrap().json()["status"], "ok");
}
