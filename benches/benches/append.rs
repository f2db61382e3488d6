//! Durable appends over HTTP by the real binary (`TIDEGATE_BIN`, else the release build): 256 bytes a record, 100 streams, 64 connections, and
//! batches of 1 to 1,000 records a request; with `TIDEGATE_BENCH_PEERS` beside the crate `durable-streams` by the same load
//! generator, and beside NATS JetStream and Redis by their own clients, batch for batch. All servers run, one is under load at a time; rounds alternate,
//! medians count.
//!
//! `TIDEGATE_BENCH_ROUNDS` (5), `TIDEGATE_BENCH_SECONDS` (3, a round), `TIDEGATE_BENCH_STREAMS` (100),
//! `TIDEGATE_BENCH_CONNECTIONS` (64), `TIDEGATE_BENCH_BATCH` (0: all of them) and `TIDEGATE_BENCH_ONLY` (names that begin so, with
//! commas between) change the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::path::Path;
use std::time::Duration;

use tidegate_benches::load::{Lane, Outcome, closed_loop, runtime};
use tidegate_benches::process::{Server, number, peers};
use tidegate_benches::report::{Report, median};
use tidegate_benches::wire::{Wire, create, http_lanes, names};

const RECORD_BYTES: usize = 256;
const BATCHES: [usize; 4] = [1, 10, 100, 1_000];
#[cfg(feature = "peers")]
const PIPELINED_BATCH_MAX: usize = 100;

/// The servers that run; a peer is there if it was asked for.
struct Servers {
    tidegate: Server,
    durable_streams: Option<Server>,
    #[cfg_attr(not(feature = "peers"), expect(dead_code, reason = "its client is not built"))]
    nats: Option<Server>,
    #[cfg_attr(not(feature = "peers"), expect(dead_code, reason = "its client is not built"))]
    redis: Option<Server>,
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Ours(Wire),
    DurableStreams(Wire),
    #[cfg(feature = "peers")]
    Nats(tidegate_benches::peer::nats::Batch, usize),
    #[cfg(feature = "peers")]
    Redis,
}

/// What it did in every round.
struct Series {
    subject: Subject,
    name: String,
    rates: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
    server_cpu_us: Vec<f64>,
    client_cpu_share: Vec<f64>,
}

struct Work {
    streams: Vec<String>,
    connections: usize,
    length: Duration,
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let servers = start(folder.path());
    let count = |variable: &str, default: u64| usize::try_from(number(variable, default)).expect("a count");
    let work = Work {
        streams: names("s", count("TIDEGATE_BENCH_STREAMS", 100)),
        connections: count("TIDEGATE_BENCH_CONNECTIONS", 64),
        length: Duration::from_secs(number("TIDEGATE_BENCH_SECONDS", 3)),
    };
    let mut report = Report::new("append");
    runtime().block_on(async {
        prepare(&servers, &work).await;
        let only = count("TIDEGATE_BENCH_BATCH", 0);
        for batch in BATCHES.into_iter().filter(|batch| only == 0 || only == *batch) {
            measure(&servers, &work, batch, &mut report).await;
        }
    });
    report.finish();
}

fn start(folder: &Path) -> Servers {
    let peers = peers();
    let path = |name: &str| folder.join(name);
    Servers {
        tidegate: Server::tidegate(&path("tidegate")),
        durable_streams: peers.as_ref().map(|peers| Server::durable_streams(peers, &path("durable-streams"))),
        nats: peers.as_ref().filter(|_| cfg!(feature = "peers")).map(|peers| Server::nats(peers, &path("nats"))),
        redis: peers.as_ref().filter(|_| cfg!(feature = "peers")).map(|_| Server::redis(&path("redis"))),
    }
}

/// The streams of a wire: one protocol's names do not meet another's.
fn streams_of(work: &Work, wire: Wire) -> Vec<String> {
    work.streams.iter().map(|stream| format!("{}-{stream}", format!("{wire:?}").to_lowercase())).collect()
}

async fn prepare(servers: &Servers, work: &Work) {
    for wire in [Wire::Native, Wire::Durable, Wire::DurableBytes] {
        if wanted("ours") {
            create(&servers.tidegate, wire, &streams_of(work, wire)).await;
        }
        if let Some(peer) = servers.durable_streams.as_ref().filter(|_| wire != Wire::Native) {
            create(peer, wire, &streams_of(work, wire)).await;
        }
    }
    #[cfg(feature = "peers")]
    if let Some(nats) = &servers.nats {
        let context = tidegate_benches::peer::nats::connect(nats).await;
        tidegate_benches::peer::nats::create(&context, &work.streams).await;
    }
}

/// Whether the environment leaves it in, by its name or by the beginning of several.
fn wanted(name: &str) -> bool {
    let only = std::env::var("TIDEGATE_BENCH_ONLY").unwrap_or_default();
    only.is_empty() || only.split(',').any(|part| name.starts_with(part) || part.starts_with(name))
}

fn subjects(servers: &Servers, work: &Work, batch: usize) -> Vec<(Subject, String)> {
    let mut all = vec![
        (Subject::Ours(Wire::Native), "ours_v1"),
        (Subject::Ours(Wire::Durable), "ours_ds_json"),
        (Subject::Ours(Wire::DurableBytes), "ours_ds_bytes"),
    ];
    if servers.durable_streams.is_some() {
        all.push((Subject::DurableStreams(Wire::Durable), "durable_streams_json"));
        all.push((Subject::DurableStreams(Wire::DurableBytes), "durable_streams_bytes"));
    }
    #[cfg(feature = "peers")]
    {
        use tidegate_benches::peer::nats::Batch;
        if servers.nats.is_some() {
            // Message by message it is synced for each, so that a larger batch only takes longer.
            if batch <= PIPELINED_BATCH_MAX {
                all.push((Subject::Nats(Batch::Pipelined, 1), "nats_1_connection"));
                all.push((Subject::Nats(Batch::Pipelined, work.connections), "nats"));
            }
            if batch > 1 {
                all.push((Subject::Nats(Batch::Atomic, work.connections), "nats_atomic"));
            }
        }
        if servers.redis.is_some() {
            all.push((Subject::Redis, "redis"));
        }
    }
    let _ = work;
    all.retain(|(_, name)| wanted(name));
    all.into_iter().map(|(subject, name)| (subject, format!("{name}/{batch}"))).collect()
}

async fn measure(servers: &Servers, work: &Work, batch: usize, report: &mut Report) {
    let mut all: Vec<Series> = subjects(servers, work, batch)
        .into_iter()
        .map(|(subject, name)| Series {
            subject,
            name,
            rates: Vec::new(),
            p50_ms: Vec::new(),
            p99_ms: Vec::new(),
            server_cpu_us: Vec::new(),
            client_cpu_share: Vec::new(),
        })
        .collect();
    for round in 0..=number("TIDEGATE_BENCH_ROUNDS", 5) {
        for series in &mut all {
            let (outcome, server_cpu) = run(servers, work, series.subject, batch).await;
            // The first round warms everything up.
            if round > 0 {
                let records = outcome.steps as f64 * batch as f64;
                series.rates.push(records / outcome.seconds);
                series.p50_ms.push(outcome.quantile_ms(0.50));
                series.p99_ms.push(outcome.quantile_ms(0.99));
                series.server_cpu_us.push(server_cpu / records * 1e6);
                series.client_cpu_share.push(outcome.client_cpu_seconds / outcome.seconds);
            }
        }
    }
    for series in &all {
        let Series { name, rates, p50_ms, p99_ms, server_cpu_us, client_cpu_share, .. } = series;
        report.rounds(name, rates, "record/s", true, None);
        println!("{:>46} the client used {:.2} of a core", "", median(client_cpu_share));
        report.rounds(&format!("{name} p50"), p50_ms, "ms", false, None);
        report.rounds(&format!("{name} p99"), p99_ms, "ms", false, None);
        report.rounds(&format!("{name} server CPU"), server_cpu_us, "us/record", false, None);
    }
    ratios(&all, report, batch);
}

/// The ratios that the goals name: round by round, then the median.
fn ratios(all: &[Series], report: &mut Report, batch: usize) {
    let of = |name: &str| all.iter().find(|series| series.name == format!("{name}/{batch}"));
    for (ours, peer) in [
        ("ours_ds_bytes", "durable_streams_bytes"),
        ("ours_ds_json", "durable_streams_json"),
        ("ours_v1", "durable_streams_json"),
        ("ours_v1", "nats_1_connection"),
        ("ours_v1", "nats"),
        ("ours_v1", "nats_atomic"),
        ("ours_v1", "redis"),
    ] {
        let (Some(left), Some(right)) = (of(ours), of(peer)) else { continue };
        let rounds: Vec<f64> = left.rates.iter().zip(&right.rates).map(|(ours, peer)| ours / peer).collect();
        report.rounds(&format!("{ours} to {peer}/{batch}"), &rounds, "times", true, None);
    }
}

async fn run(servers: &Servers, work: &Work, subject: Subject, batch: usize) -> (Outcome, f64) {
    let (bytes, connections) = (RECORD_BYTES, work.connections);
    match subject {
        Subject::Ours(wire) => {
            let streams = streams_of(work, wire);
            let lanes = http_lanes(&servers.tidegate, wire, &streams, batch, bytes, connections).await;
            drive(&servers.tidegate, lanes, work).await
        }
        Subject::DurableStreams(wire) => {
            let server = servers.durable_streams.as_ref().expect("a subject has its server");
            let lanes = http_lanes(server, wire, &streams_of(work, wire), batch, bytes, connections).await;
            drive(server, lanes, work).await
        }
        #[cfg(feature = "peers")]
        Subject::Nats(how, over) => {
            let server = servers.nats.as_ref().expect("a subject has its server");
            let shape = (connections, over);
            let lanes = tidegate_benches::peer::nats::lanes(server, &work.streams, batch, bytes, shape, how).await;
            drive(server, lanes, work).await
        }
        #[cfg(feature = "peers")]
        Subject::Redis => {
            let server = servers.redis.as_ref().expect("a subject has its server");
            let lanes = tidegate_benches::peer::redis::lanes(server, &work.streams, batch, bytes, connections).await;
            drive(server, lanes, work).await
        }
    }
}

async fn drive<L: Lane + 'static>(server: &Server, lanes: Vec<L>, work: &Work) -> (Outcome, f64) {
    let before = server.cpu_seconds();
    let (outcome, _lanes) = closed_loop(lanes, work.length).await;
    (outcome, server.cpu_seconds() - before)
}
