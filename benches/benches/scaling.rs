//! What a record costs as the batch grows, as streams grow in number, and as the log grows old: curves of one run of the real binary
//! (`TIDEGATE_BIN`, else the release build), 256 bytes a record, 64 connections, durable. The cost is the time that a record takes of a
//! server kept busy, and beside it the server's own processor time.
//!
//! `TIDEGATE_BENCH_ROUNDS` (3), `TIDEGATE_BENCH_SECONDS` (2, a round) and `TIDEGATE_BENCH_RECORDS` (5,000,000: how old the log
//! grows) change the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::time::{Duration, Instant};

use tidegate_benches::http::{Connection, request};
use tidegate_benches::load::{closed_loop, runtime};
use tidegate_benches::process::{Server, number};
use tidegate_benches::report::Report;
use tidegate_benches::wire::{Wire, create, http_lanes, names, record};

const RECORD_BYTES: usize = 256;
const CONNECTIONS: usize = 64;
const BATCHES: [usize; 7] = [1, 3, 10, 30, 100, 300, 1_000];
const STREAMS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const AGES: [u64; 6] = [10_000, 100_000, 500_000, 1_000_000, 2_000_000, 5_000_000];
const AGEING_BATCH: usize = 1_000;
const READS: usize = 300;

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut report = Report::new("scaling");
    let server = Server::tidegate(&folder.path().join("batches"));
    runtime().block_on(batches(&server, &mut report));
    drop(server);
    let server = Server::tidegate(&folder.path().join("streams"));
    runtime().block_on(streams(&server, &mut report));
    drop(server);
    let server = Server::tidegate(&folder.path().join("ages"));
    runtime().block_on(ages(&server, &mut report));
    report.finish();
}

/// One point: microseconds a record, by the clock and of the server's processor time.
async fn cost(server: &Server, streams: &[String], batch: usize) -> (Vec<f64>, Vec<f64>) {
    let length = Duration::from_secs(number("TIDEGATE_BENCH_SECONDS", 2));
    let mut lanes = http_lanes(server, Wire::Native, streams, batch, RECORD_BYTES, CONNECTIONS).await;
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for round in 0..=number("TIDEGATE_BENCH_ROUNDS", 3) {
        let before = server.cpu_seconds();
        let (outcome, again) = closed_loop(lanes, length).await;
        lanes = again;
        let records = outcome.steps as f64 * batch as f64;
        if round > 0 {
            wall.push(outcome.seconds / records * 1e6);
            cpu.push((server.cpu_seconds() - before) / records * 1e6);
        }
    }
    (wall, cpu)
}

async fn batches(server: &Server, report: &mut Report) {
    let streams = names("b", 100);
    create(server, Wire::Native, &streams).await;
    for batch in BATCHES {
        let (wall, cpu) = cost(server, &streams, batch).await;
        report.point("records a request", batch as f64, &wall, "us/record");
        report.point("records a request, server CPU", batch as f64, &cpu, "us/record");
    }
}

async fn streams(server: &Server, report: &mut Report) {
    let mut made = 0;
    let all = names("n", STREAMS[STREAMS.len() - 1]);
    for count in STREAMS {
        create(server, Wire::Native, &all[made..count]).await;
        made = count;
        let (wall, cpu) = cost(server, &all[..count], 1).await;
        report.point("streams", count as f64, &wall, "us/record");
        report.point("streams, server CPU", count as f64, &cpu, "us/record");
    }
}

/// One stream grows; at each age what an append costs, and how long a read of 100 records takes at its start, middle and end.
async fn ages(server: &Server, report: &mut Report) {
    let stream = vec!["old".to_owned()];
    create(server, Wire::Native, &stream).await;
    let append = Wire::Native.append(&stream[0], &vec![record(RECORD_BYTES, 0); AGEING_BATCH]);
    let mut connection = Connection::open(server.address).await;
    let oldest = number("TIDEGATE_BENCH_RECORDS", 5_000_000);
    for age in AGES.into_iter().filter(|age| *age <= oldest) {
        let mut next = next_offset(&mut connection, &stream[0]).await;
        while next < age {
            connection.succeed(&append).await;
            next += AGEING_BATCH as u64;
        }
        let (wall, cpu) = cost(server, &stream, 1).await;
        report.point("records in the log", age as f64, &wall, "us/record");
        report.point("records in the log, server CPU", age as f64, &cpu, "us/record");
        for (place, from) in [("start", 0), ("middle", next / 2), ("end", next - 100)] {
            let path = format!("{}/records?partition=0&from={from}&limit=100", Wire::Native.path(&stream[0]));
            let read = request("GET", &path, None, b"");
            let times: Vec<f64> = times(&mut connection, &read).await;
            report.point(&format!("records in the log, 100 read at its {place}"), age as f64, &times, "us/read");
        }
    }
}

async fn times(connection: &mut Connection, read: &[u8]) -> Vec<f64> {
    let mut times = Vec::new();
    for _ in 0..READS {
        let begun = Instant::now();
        connection.succeed(read).await;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    times
}

async fn next_offset(connection: &mut Connection, stream: &str) -> u64 {
    let mut body = Vec::new();
    let get = request("GET", &Wire::Native.path(stream), None, b"");
    let head = connection.exchange(&get, &mut |piece| body.extend_from_slice(piece)).await;
    assert_eq!(head.status, 200, "{}", String::from_utf8_lossy(&body));
    let answer: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    answer.pointer("/partitions/0/next").and_then(serde_json::Value::as_u64).expect("the partition's next offset")
}
