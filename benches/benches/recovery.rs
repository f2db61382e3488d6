//! After a crash: 400 MB of records, then SIGKILL, then how long until the server is ready and until it gives the first record; and
//! 100,000 streams: how fast they are made, how long starting takes after SIGKILL and after SIGTERM, memory and files. The real binary
//! (`TIDEGATE_BIN`, else the release build); with `TIDEGATE_BENCH_PEERS` beside the crate `durable-streams`. Answers are acknowledged before the kill, so
//! nothing is pending; what was acknowledged is counted after the restart.
//!
//! `TIDEGATE_BENCH_ROUNDS` (3), `TIDEGATE_BENCH_BYTES` (400,000,000) and `TIDEGATE_BENCH_STREAMS` (100,000) change the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tidegate_benches::http::{Connection, request};
use tidegate_benches::load::{Lane, runtime};
use tidegate_benches::process::{Server, files_and_bytes, number, peers};
use tidegate_benches::report::Report;
use tidegate_benches::wire::{Wire, create, http_lanes, names, record};
use tokio::task::LocalSet;

const RECORD_BYTES: usize = 256;
const BATCH: usize = 400;
const LANES: usize = 16;
const DATA_STREAMS: usize = 100;
const PEER_STREAMS_MAX: usize = 10_000;
const READY_BOUND: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    DurableStreams,
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut report = Report::new("recovery");
    for whose in [Whose::Ours, Whose::DurableStreams] {
        if whose == Whose::Ours || peers().is_some() {
            after_much_data(folder.path(), whose, &mut report);
            many_streams(folder.path(), whose, &mut report);
        }
    }
    report.finish();
}

fn name_of(whose: Whose) -> &'static str {
    match whose {
        Whose::Ours => "ours",
        Whose::DurableStreams => "durable_streams",
    }
}

fn start(whose: Whose, data: &Path) -> Server {
    match whose {
        Whose::Ours => Server::tidegate(data),
        Whose::DurableStreams => Server::durable_streams(&peers().expect("asked for"), data),
    }
}

/// Starts the server and waits until it is ready, and then until it gives something out of this stream: in milliseconds.
fn restart(whose: Whose, data: &Path, stream: &str) -> (Server, f64, f64) {
    let begun = Instant::now();
    let server = start(whose, data);
    let milliseconds = |begun: Instant| begun.elapsed().as_secs_f64() * 1_000.0;
    let (ready, first) = runtime().block_on(async {
        let path = if whose == Whose::Ours { "/readyz" } else { "/health" };
        until(&server, path, begun, 0).await;
        let ready = milliseconds(begun);
        until(&server, &read_path(whose, stream), begun, RECORD_BYTES as u64).await;
        (ready, milliseconds(begun))
    });
    (server, ready, first)
}

fn read_path(whose: Whose, stream: &str) -> String {
    match whose {
        Whose::Ours => format!("{}/records?partition=0&from=0&limit=1", Wire::Native.path(stream)),
        Whose::DurableStreams => format!("{}?offset=-1", Wire::DurableBytes.path(stream)),
    }
}

/// Asks until the answer is a success with at least so many bytes.
async fn until(server: &Server, path: &str, begun: Instant, bytes: u64) {
    let request = request("GET", path, None, b"");
    loop {
        if let Some(mut connection) = Connection::try_open(server.address).await {
            let mut got = 0;
            let head = connection.try_exchange(&request, &mut |piece| got += piece.len() as u64).await;
            if head.is_some_and(|head| head.status == 200) && got >= bytes {
                return;
            }
        }
        assert!(begun.elapsed() < READY_BOUND, "{path} gives nothing");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// One wire of each: bytes as they are at the peer, lines at ours.
fn wire_of(whose: Whose) -> Wire {
    if whose == Whose::Ours { Wire::Native } else { Wire::DurableBytes }
}

fn after_much_data(folder: &Path, whose: Whose, report: &mut Report) {
    let name = name_of(whose);
    let bytes = number("TIDEGATE_BENCH_BYTES", 400_000_000);
    let streams = names("r", DATA_STREAMS);
    let (mut ready, mut first, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..number("TIDEGATE_BENCH_ROUNDS", 3) {
        let data = folder.join(format!("{name}-data-{round}"));
        let server = start(whose, &data);
        let requests = usize::try_from(bytes).expect("fits") / (BATCH * RECORD_BYTES);
        runtime().block_on(LocalSet::new().run_until(async {
            create(&server, wire_of(whose), &streams).await;
            let lanes = http_lanes(&server, wire_of(whose), &streams, BATCH, RECORD_BYTES, LANES).await;
            let tasks: Vec<_> = lanes
                .into_iter()
                .map(|mut lane| {
                    tokio::task::spawn_local(async move {
                        for turn in 0..requests / LANES {
                            lane.step(turn).await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("a lane does not fail");
            }
        }));
        server.kill();
        let (server, until_ready, until_first) = restart(whose, &data, &streams[0]);
        ready.push(until_ready);
        first.push(until_first);
        resident.push(server.resident_mib());
        if whose == Whose::Ours {
            let wanted = (requests / LANES * LANES * BATCH) as u64;
            assert_eq!(runtime().block_on(count(&server, &streams)), wanted, "what was acknowledged is there");
        }
        server.kill();
        std::fs::remove_dir_all(&data).expect("the folder is ours");
    }
    report.rounds(&format!("{name}: ready after SIGKILL"), &ready, "ms", false, None);
    report.rounds(&format!("{name}: first record after SIGKILL"), &first, "ms", false, None);
    report.rounds(&format!("{name}: memory then"), &resident, "MiB", false, None);
}

/// The records of the streams, by their bounds.
async fn count(server: &Server, streams: &[String]) -> u64 {
    let mut connection = Connection::open(server.address).await;
    let mut total = 0;
    for stream in streams {
        let mut body = Vec::new();
        let get = request("GET", &Wire::Native.path(stream), None, b"");
        let head = connection.exchange(&get, &mut |piece| body.extend_from_slice(piece)).await;
        assert_eq!(head.status, 200, "{}", String::from_utf8_lossy(&body));
        let answer: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        total += next_offsets(&answer);
    }
    total
}

/// The sum of every `next` in the answer: there is one a partition.
fn next_offsets(answer: &serde_json::Value) -> u64 {
    match answer {
        serde_json::Value::Object(fields) => {
            let of = |(name, value): (&String, &serde_json::Value)| match value.as_u64() {
                Some(next) if name == "next" => next,
                _ => next_offsets(value),
            };
            fields.iter().map(of).sum()
        }
        serde_json::Value::Array(items) => items.iter().map(next_offsets).sum(),
        _ => 0,
    }
}

/// Creates its share of the streams, each with one record.
async fn create_share(mut connection: Connection, wire: Wire, streams: Rc<Vec<String>>, lane: usize) {
    let records = [record(RECORD_BYTES, 0)];
    for stream in streams.iter().skip(lane).step_by(LANES) {
        connection.succeed(&wire.create(stream)).await;
        connection.succeed(&wire.append(stream, &records)).await;
    }
}

fn many_streams(folder: &Path, whose: Whose, report: &mut Report) {
    let name = name_of(whose);
    let count = usize::try_from(number("TIDEGATE_BENCH_STREAMS", 100_000)).expect("a count");
    // It keeps a file open for each stream, and this many are allowed almost everywhere.
    let count = if whose == Whose::Ours { count } else { count.min(PEER_STREAMS_MAX) };
    let streams = Rc::new(names("m", count));
    let data = folder.join(format!("{name}-streams"));
    let server = start(whose, &data);
    let begun = Instant::now();
    runtime().block_on(LocalSet::new().run_until(async {
        let mut tasks = Vec::new();
        for lane in 0..LANES {
            let connection = Connection::open(server.address).await;
            let share = create_share(connection, wire_of(whose), Rc::clone(&streams), lane);
            tasks.push(tokio::task::spawn_local(share));
        }
        for task in tasks {
            task.await.expect("a lane does not fail");
        }
    }));
    let created = begun.elapsed().as_secs_f64();
    let resident = server.resident_mib();
    let (files, bytes) = files_and_bytes(&data);
    server.kill();
    let last = &streams[count - 1];
    let (server, ready_killed, first_killed) = restart(whose, &data, last);
    let resident_restarted = server.resident_mib();
    let stopping = server.terminate();
    let (server, ready_stopped, first_stopped) = restart(whose, &data, last);
    server.kill();
    std::fs::remove_dir_all(&data).expect("the folder is ours");

    let mut value = |what: &str, value: f64, unit: &str, more: bool| {
        report.value(&format!("{name}, {count} streams: {what}"), value, unit, more);
    };
    value("created with a record each", count as f64 / created, "stream/s", true);
    value("ready after SIGKILL", ready_killed, "ms", false);
    value("first record after SIGKILL", first_killed, "ms", false);
    value("ready after SIGTERM", ready_stopped, "ms", false);
    value("first record after SIGTERM", first_stopped, "ms", false);
    value("stopping takes", stopping.as_secs_f64() * 1_000.0, "ms", false);
    value("memory", resident, "MiB", false);
    value("memory after a restart", resident_restarted, "MiB", false);
    value("files", files as f64, "file", false);
    value("bytes", bytes as f64 / 1e6, "MB", false);
}
