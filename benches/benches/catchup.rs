//! Catching up: a stream of 1 GB read from its start over HTTP out of the real binary (`TIDEGATE_BIN`, else the release build), beside the
//! same number of bytes out of memory by a bare hyper server in answers and pieces of the same size, read by the same client in the same
//! run; with `TIDEGATE_BENCH_PEERS` beside the crate `durable-streams`. Rounds alternate, medians count.
//!
//! `TIDEGATE_BENCH_ROUNDS` (5), `TIDEGATE_BENCH_BYTES` (1,000,000,000 of values) and `TIDEGATE_BENCH_ONLY` (beginnings of names such as
//! `v1/256`, parted by commas) change the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::path::Path;
use std::time::Instant;

use tidegate_benches::http::{Connection, Head, request};
use tidegate_benches::load::runtime;
use tidegate_benches::memory;
use tidegate_benches::process::{Server, number, peers};
use tidegate_benches::report::{Report, median};
use tidegate_benches::wire::{Wire, create, record};

const RECORD_BYTES: [usize; 3] = [256, 4_096, 65_536];
const REQUEST_BYTES: usize = 512 * 1024;
/// What one request of the native wire asks for; the next request goes on where its last line says.
const READ_RECORDS: u64 = 10_000;
const READ_BYTES: u64 = 4 << 20;
/// What a piece of ours has, as far as the wire shows it.
const PIECE_BYTES: u64 = 64 * 1024;
const TAIL_BYTES: usize = 256;

/// One reading of a stream: how the answers were cut, and how long it took.
struct Reading {
    bytes: u64,
    answers: Vec<u64>,
    chunked: bool,
    seconds: f64,
}

fn main() {
    memory::serve_if_asked();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bytes = number("TIDEGATE_BENCH_BYTES", 1_000_000_000);
    let only = std::env::var("TIDEGATE_BENCH_ONLY").unwrap_or_default();
    let mut report = Report::new("catchup");
    for record_bytes in RECORD_BYTES {
        for wire in [Wire::Native, Wire::Durable, Wire::DurableBytes] {
            let name = format!("{}/{record_bytes}", name_of(wire));
            if only.is_empty() || only.split(',').any(|part| name.starts_with(part)) {
                runtime().block_on(measure(folder.path(), wire, record_bytes, bytes, &name, &mut report));
            }
        }
    }
    report.finish();
}

fn name_of(wire: Wire) -> &'static str {
    match wire {
        Wire::Native => "v1",
        Wire::Durable => "ds_json",
        Wire::DurableBytes => "ds_bytes",
    }
}

async fn measure(folder: &Path, wire: Wire, record_bytes: usize, bytes: u64, name: &str, report: &mut Report) {
    let data = |of: &str| folder.join(format!("{of}-{}", name.replace('/', "-")));
    let bare = Server::this_program(memory::ARGUMENT, folder);
    let ours = Server::tidegate(&data("tidegate"));
    fill(&ours, wire, record_bytes, bytes).await;
    let peer = peers().filter(|_| wire != Wire::Native).map(|peers| Server::durable_streams(&peers, &data("peer")));
    if let Some(peer) = &peer {
        fill(peer, wire, record_bytes, bytes).await;
    }
    let (mut own, mut memory, mut other, mut ratio) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut own_cpu, mut memory_cpu) = (Vec::new(), Vec::new());
    for round in 0..=number("TIDEGATE_BENCH_ROUNDS", 5) {
        let cpu = ours.cpu_seconds();
        let read = read(&ours, wire).await;
        let cpu = ours.cpu_seconds() - cpu;
        assert!(read.bytes >= bytes, "{name}: {} of {bytes} bytes came", read.bytes);
        let bare_cpu = bare.cpu_seconds();
        let beside = read_from_memory(&bare, &read).await;
        let bare_cpu = bare.cpu_seconds() - bare_cpu;
        let peers = match &peer {
            Some(peer) => Some(self::read(peer, wire).await),
            None => None,
        };
        if round > 0 {
            let rate = |reading: &Reading| reading.bytes as f64 / reading.seconds / 1e6;
            own.push(rate(&read));
            memory.push(rate(&beside));
            ratio.push(rate(&read) / rate(&beside));
            other.extend(peers.as_ref().map(rate));
            own_cpu.push(cpu / read.bytes as f64 * 1e12);
            memory_cpu.push(bare_cpu / read.bytes as f64 * 1e12);
        } else {
            let (count, longest) = (read.answers.len(), read.answers.iter().max().copied().unwrap_or(0));
            println!("{name}: {} bytes in {count} answers of at most {longest}", read.bytes);
        }
    }
    report.rounds(&format!("bare {name}"), &memory, "MB/s", true, None);
    report.rounds(&format!("ours {name}"), &own, "MB/s", true, Some(&format!("bare {name}")));
    if !other.is_empty() {
        report.rounds(&format!("durable_streams {name}"), &other, "MB/s", true, Some(&format!("bare {name}")));
    }
    report.value(&format!("{name} of memory"), median(&ratio), "times", true);
    report.rounds(&format!("{name} server CPU"), &own_cpu, "us/MB", false, None);
    report.rounds(&format!("{name} bare server CPU"), &memory_cpu, "us/MB", false, None);
}

/// Publishes until the values have that many bytes.
async fn fill(server: &Server, wire: Wire, record_bytes: usize, bytes: u64) {
    create(server, wire, &["s".to_owned()]).await;
    let batch = (REQUEST_BYTES / record_bytes).max(1);
    let append = wire.append("s", &vec![record(record_bytes, 0); batch]);
    let requests = bytes.div_ceil((batch * record_bytes) as u64);
    let mut connection = Connection::open(server.address).await;
    for _ in 0..requests {
        connection.succeed(&append).await;
    }
}

/// Reads from the start to the tail over one connection, and counts.
async fn read(server: &Server, wire: Wire) -> Reading {
    let mut connection = Connection::open(server.address).await;
    let mut reading = Reading { bytes: 0, answers: Vec::new(), chunked: false, seconds: 0.0 };
    let begun = Instant::now();
    let mut from = if wire == Wire::Native { "0".to_owned() } else { "-1".to_owned() };
    loop {
        let path = wire.path("s");
        let path = match wire {
            Wire::Native => {
                format!("{path}/records?partition=0&from={from}&limit={READ_RECORDS}&max_bytes={READ_BYTES}")
            }
            Wire::Durable | Wire::DurableBytes => format!("{path}?offset={from}"),
        };
        let (mut bytes, mut tail) = (0_u64, Vec::new());
        let mut take = |piece: &[u8]| {
            bytes += piece.len() as u64;
            tail.extend_from_slice(&piece[piece.len().saturating_sub(TAIL_BYTES)..]);
            if tail.len() > 4 * TAIL_BYTES {
                tail.drain(..tail.len() - TAIL_BYTES);
            }
        };
        let head = connection.exchange(&request("GET", &path, None, b""), &mut take).await;
        assert_eq!(head.status, 200, "{path}: {}", String::from_utf8_lossy(&tail));
        reading.bytes += bytes;
        reading.answers.push(bytes);
        reading.chunked |= head.chunked;
        let next = next_of(wire, &head, &tail);
        if head.up_to_date || next.is_none() || next.as_ref() == Some(&from) {
            reading.seconds = begun.elapsed().as_secs_f64();
            return reading;
        }
        from = next.unwrap_or_default();
    }
}

/// Where the next request begins: the last line's offset, or a header's.
fn next_of(wire: Wire, head: &Head, tail: &[u8]) -> Option<String> {
    if wire != Wire::Native {
        return head.next_offset.clone();
    }
    let text = String::from_utf8_lossy(tail);
    let line = &text[text.rfind("{\"next\":").expect("an answer ends with where the next one begins")..];
    let line: serde_json::Value = serde_json::from_str(line.trim_end()).expect("JSON");
    Some(line["next"]["offset"].as_u64().expect("an offset").to_string())
}

/// The same answers out of memory; an answer that is too large for it comes in several.
async fn read_from_memory(server: &Server, like: &Reading) -> Reading {
    const ANSWER_MAX: u64 = 64 << 20;
    let mut connection = Connection::open(server.address).await;
    let piece = if like.chunked { PIECE_BYTES } else { 0 };
    let mut bytes = 0_u64;
    let begun = Instant::now();
    for answer in &like.answers {
        let mut left = *answer;
        while left > 0 {
            let part = left.min(ANSWER_MAX);
            let mut take = |piece: &[u8]| bytes += piece.len() as u64;
            connection.exchange(&request("GET", &memory::path(part, piece), None, b""), &mut take).await;
            left -= part;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(bytes, like.bytes);
    Reading { bytes, answers: Vec::new(), chunked: like.chunked, seconds }
}
