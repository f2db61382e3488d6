//! Objects over the real binary: memory that does not grow with them, and nothing left of what a kill cut off.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use crate::http::ask;
use crate::process::{PATIENCE, Server, signal, until, wait};

pub(crate) const MIB: usize = 1024 * 1024;

/// A piece of an object that is told from the pieces before and after it.
pub(crate) fn piece(number: usize) -> Vec<u8> {
    let seed = number * 7 + 1;
    (0..MIB).map(|at| u8::try_from((at * seed + at / 251) % 256).unwrap()).collect()
}

/// Sends the head of a `PUT` of so many pieces.
pub(crate) fn begin(server: &Server, key: &str, pieces: usize) -> TcpStream {
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "PUT /v1/objects/files/_/{key} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        pieces * MIB
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket
}

pub(crate) fn put(server: &Server, key: &str, pieces: usize) {
    let mut socket = begin(server, key, pieces);
    (0..pieces).for_each(|number| socket.write_all(&piece(number)).unwrap());
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}

/// Reads an object piece by piece, each compared, none kept.
pub(crate) fn is_whole(server: &Server, key: &str, pieces: usize) {
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET /v1/objects/files/_/{key} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
    socket.write_all(head.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    let mut found = vec![0; MIB];
    for number in 0..pieces {
        socket.read_exact(&mut found).unwrap();
        assert!(found == piece(number), "piece {number} differs");
    }
    assert_eq!(socket.read(&mut found).unwrap(), 0, "nothing follows");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries {
        // What is there for a moment only may be gone.
        let Ok(entry) = entry else { continue };
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn bytes(files: &[PathBuf]) -> u64 {
    files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|file| file.len()).sum()
}

#[test]
fn a_kill_in_the_middle_of_a_write_leaves_no_file_and_what_was_there_is_whole() {
    let mut server = Server::start(1, &[]);
    let objects = server.path("data/objects");
    put(&server, "first", 64);
    let before = files(&objects);
    // A checksum of four bytes follows each 256 KiB.
    let kept = bytes(&before);
    assert_eq!((before.len(), kept), (1, (64 << 20) + 256 * 4));

    let mut socket = begin(&server, "second", 64);
    (0..32).for_each(|number| socket.write_all(&piece(number)).unwrap());
    until("a part of the second object lies on the disk", || bytes(&files(&objects)) > kept);
    server.kill_and_restart();
    until("the server is ready", || server.get("/readyz").status == 200);

    assert_eq!(files(&objects), before, "nothing but the first object's bytes");
    is_whole(&server, "first", 64);
    assert_eq!(server.get("/v1/objects/files/_/second").status, 404);
    let listed = server.get("/v1/objects/files/_").json();
    assert_eq!(listed["objects"].as_array().unwrap().len(), 1, "{listed}");
    put(&server, "second", 2);
    is_whole(&server, "second", 2);
}

#[test]
fn a_write_that_runs_ends_well_while_the_server_drains() {
    let mut server = Server::start(1, &["--set", "limits.drain_ms=600000"]);
    let objects = server.path("data/objects");
    let mut socket = begin(&server, "late", 16);
    (0..12).for_each(|number| socket.write_all(&piece(number)).unwrap());
    until("a part of it lies on the disk", || bytes(&files(&objects)) > 0);
    signal(&server.child, "TERM");
    until("the server to drain", || server.get("/readyz").refusal() == (503, "draining".to_owned()));
    for method in ["PUT", "GET", "DELETE"] {
        let answer = ask(server.address, method, "/v1/objects/files/_/new", &[], "");
        assert_eq!(answer.refusal(), (503, "draining".to_owned()), "{method}");
    }
    (12..16).for_each(|number| socket.write_all(&piece(number)).unwrap());
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(wait(&mut server.child).code(), Some(0));
    server.kill_and_restart();
    is_whole(&server, "late", 16);
}

#[test]
fn memory_does_not_grow_with_an_object() {
    let server = Server::start(1, &[]);
    put(&server, "warm", 8);
    let before = server.memory_mark();
    put(&server, "large", 200);
    is_whole(&server, "large", 200);
    let grown = server.memory_peak().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB were needed for 200", grown >> 20);
    // A reader that takes nothing costs as little.
    let mut idle: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    for socket in &mut idle {
        socket.write_all(b"GET /v1/objects/files/_/large HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
    }
    let answer = ask(server.address, "GET", "/v1/objects/files/_/warm", &[("range", "bytes=0-9")], "");
    assert_eq!((answer.status, answer.body), (206, piece(0)[..10].to_vec()));
    let grown = server.memory_peak().saturating_sub(before);
    assert!(grown < 128 << 20, "{} MiB were needed for 9 readers", grown >> 20);
}
