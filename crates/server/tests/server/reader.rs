//! Readers that stop reading, vanish, or are slow: they cost their own slot at most, and can go on.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::database::{Database, Kind};
use crate::process::{Server, until};
use crate::stream::{Held, Stream};

const SQL: &str = "select id, name, n from item order by id";
const MIB: u64 = 1024 * 1024;

/// A table that is larger than all buffers between the server and a client that does not read.
fn world(arguments: &[&str]) -> Server {
    let sql = Database::items(Kind::Sqlite, 150_000);
    Database::serve(Kind::Sqlite, "", &sql, arguments).unwrap().1
}

/// Waits until a stream can be opened, and reads it.
fn slot_is_free(server: &Server) {
    until("a slot", || match Stream::query(server.address, &[], "select 1 as one") {
        Ok(mut stream) => {
            stream.complete(&mut Held::default());
            true
        }
        Err(answer) => {
            assert_eq!(answer.refusal(), (429, "stream_capacity_exhausted".to_owned()));
            false
        }
    });
}

#[test]
fn a_client_that_stops_reading_loses_its_slot_and_not_its_stream() {
    let server = world(&["--set", "stream.idle_timeout_ms=1000", "--set", "stream.max_global=1"]);
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 1_000), None);
    let refused = Stream::query(server.address, &[], "select 1").err().expect("the only slot is taken");
    assert_eq!(refused.refusal(), (429, "stream_capacity_exhausted".to_owned()));
    slot_is_free(&server);
    until("the audit trail to say so", || server.audit().contains("\"reason\":\"reader_stalled\""));
    // What waits in the buffers can still be taken; then the stream says why it ended, or was cut.
    let cursor = stream.cursor();
    let ending = stream.rest(&mut held);
    assert!(ending.end.is_none() || (ending.code(), ending.status()) == ("reader_stalled", "failed"), "{ending:?}");
    assert!(held.rows < 150_000);
    let mut stream = Stream::resume(server.address, &[], &cursor, &held).unwrap_or_else(|answer| panic!("{answer:?}"));
    stream.complete(&mut held);
    assert_eq!(held.rows, 150_000);
}

#[test]
fn a_client_that_vanishes_frees_its_slot_at_once() {
    // With the default of 30 s for a client that does not read, only the cut can be what frees the slot.
    let server = world(&["--set", "stream.max_global=1", "--set", "stream.idle_timeout_ms=86400000"]);
    let mut held = Held::default();
    let mut cursor: Option<String> = None;
    for round in 0..10 {
        let mut stream = match &cursor {
            None => Stream::query(server.address, &[], SQL),
            Some(cursor) => Stream::resume(server.address, &[], cursor, &held),
        }
        .unwrap_or_else(|answer| panic!("round {round}: {answer:?}"));
        cursor = Some(stream.cursor());
        assert_eq!(stream.take(&mut held, 100), None);
        // Closed with bytes unread: the kernel sends a reset.
        drop(stream);
        slot_is_free(&server);
    }
    assert_eq!(held.rows, 1_000);
    until("the audit trail to say so", || server.audit().contains("\"reason\":\"reader_gone\""));
}

/// The time-out is for a client that takes nothing. One that takes a little all the time goes on, although the socket's buffers,
/// megabytes of them, hide its reading from the server for longer than the time-out.
#[test]
fn a_client_that_reads_slowly_and_steadily_is_not_stalled() {
    let server = Server::start(1, &["--set", "stream.idle_timeout_ms=2000"]);
    let stream = Stream::query(server.address, &[], WIDE).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut socket = stream.connection.socket();
    let (began, mut taken) = (Instant::now(), 0_u32);
    let mut piece = vec![0; 20_000];
    // 400 KB a second for five time-outs: the pace is what is tested, not a condition that is waited for.
    while began.elapsed() < Duration::from_secs(10) {
        socket.read_exact(&mut piece).unwrap();
        taken += 1;
        std::thread::sleep((Duration::from_millis(50) * taken).saturating_sub(began.elapsed()));
    }
    assert!(server.leases()[0]["reading"].as_bool().unwrap(), "{:?}", server.leases());
    assert!(!server.audit().contains("reader_stalled"));
}

/// 200 MB and more of rows, of which each is about 1 KiB.
const WIDE: &str = "with recursive c(i) as (select 1 union all select i + 1 from c where i < 200000)
                    select i, printf('%01000d', i) as wide from c";

/// Opens the wide stream and gives what it grew the server by while `read` took it.
fn growth(read: impl FnOnce(&mut dyn Read)) -> u64 {
    let server = Server::start(1, &[]);
    // What the first stream of a process sets up once is not the stream's.
    Stream::query(server.address, &[], "select 1")
        .unwrap_or_else(|answer| panic!("{answer:?}"))
        .complete(&mut Held::default());
    let mark = server.memory_mark();
    let stream = Stream::query(server.address, &[], WIDE).unwrap_or_else(|answer| panic!("{answer:?}"));
    read(&mut stream.connection.socket());
    server.memory_peak().saturating_sub(mark)
}

#[test]
fn a_fast_reader_of_200_mb_costs_less_than_32_mib() {
    let grown = growth(|socket| {
        let mut piece = vec![0; 256 * 1024];
        let mut taken = 0;
        while taken < 200_000_000 {
            let length = socket.read(&mut piece).unwrap();
            assert_ne!(length, 0, "after {taken} bytes");
            taken += length;
        }
    });
    assert!(grown < 32 * MIB, "{} KiB", grown / 1024);
}

#[test]
fn a_slow_reader_costs_less_than_32_mib() {
    let grown = growth(|socket| {
        let began = Instant::now();
        let mut piece = vec![0; 64 * 1024];
        // 1 MB a second for 3 seconds: the pace is what is tested, not a condition that is waited for.
        for round in 1..=48 {
            socket.read_exact(&mut piece).unwrap();
            let due = Duration::from_micros(62_500) * round;
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    });
    assert!(grown < 32 * MIB, "{} KiB", grown / 1024);
}

#[test]
fn a_slow_reader_holds_no_other_up() {
    let server = world(&[]);
    let mut slow: Vec<Stream> =
        (0..8).map(|_| Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"))).collect();
    let mut held = Held::default();
    Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}")).complete(&mut held);
    assert_eq!(held.rows, 150_000);
    let reading = server.leases().iter().filter(|lease| lease["reading"] == json!(true)).count();
    assert_eq!(reading, 8, "the slow ones still stand where they stood");
    let mut late = Held::default();
    slow[0].complete(&mut late);
    assert!(late.bytes == held.bytes);
}
