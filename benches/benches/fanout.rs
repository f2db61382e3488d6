//! Fan-out: 1,000 tails by server-sent events of one stream that gets 1,000 records a second, out of the real binary (`TIDEGATE_BIN`, else the
//! release build). Every tail must get every record; how far the last one is behind at the end, how late records are, and how much the server's
//! memory grows over idle are measured; with `TIDEGATE_BENCH_PEERS` beside the crate `durable-streams`. The reader of all tails is one thread.
//!
//! `TIDEGATE_BENCH_TAILS` (1,000), `TIDEGATE_BENCH_RATE` (1,000), `TIDEGATE_BENCH_SECONDS` (20) and
//! `TIDEGATE_BENCH_RECORD_BYTES` (256) change the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tidegate_benches::http::{Connection, Dechunker};
use tidegate_benches::load::{quantile, runtime};
use tidegate_benches::process::{Server, number, own_cpu_seconds, peers};
use tidegate_benches::report::Report;
use tidegate_benches::wire::{Times, Wire, create, record};
use tokio::task::{LocalSet, spawn_local};

/// One in so many tails looks at the times; the others only count.
const WATCHED_EACH: usize = 50;
/// Records go out so often, several at once where the rate asks for it: each is one append.
const TICK: Duration = Duration::from_millis(1);
const PUBLISHERS: u64 = 8;
const CATCH_UP_BOUND: Duration = Duration::from_secs(60);
const MARK: &[u8] = b"\"t\":\"";

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut report = Report::new("fanout");
    for (name, wire, ours) in
        [("ours_v1", Wire::Native, true), ("ours_ds", Wire::Durable, true), ("durable_streams", Wire::Durable, false)]
    {
        let only = std::env::var("TIDEGATE_BENCH_ONLY").unwrap_or_default();
        if (ours || peers().is_some()) && (only.is_empty() || only.split(',').any(|part| name.starts_with(part))) {
            let server = start(folder.path(), name, ours);
            runtime().block_on(LocalSet::new().run_until(run(&server, wire, name, &mut report)));
        }
    }
    report.finish();
}

fn start(folder: &Path, name: &str, ours: bool) -> Server {
    match peers().filter(|_| !ours) {
        Some(peers) => Server::durable_streams(&peers, &folder.join(name)),
        None => Server::tidegate(&folder.join(name)),
    }
}

/// What one tail has seen.
#[derive(Default)]
struct Seen {
    records: Cell<u64>,
    /// When it saw its newest record, since the beginning.
    newest: Cell<Duration>,
    ended: Cell<bool>,
}

async fn run(server: &Server, wire: Wire, name: &str, report: &mut Report) {
    let tails = usize::try_from(number("TIDEGATE_BENCH_TAILS", 1_000)).expect("a count");
    let (rate, seconds) = (number("TIDEGATE_BENCH_RATE", 1_000), number("TIDEGATE_BENCH_SECONDS", 20));
    let bytes = usize::try_from(number("TIDEGATE_BENCH_RECORD_BYTES", 256)).expect("a count");
    let stream = "fan".to_owned();
    create(server, wire, std::slice::from_ref(&stream)).await;
    // A server that has worked a little is what idle means: its buffers and pages are there.
    let mut first = Connection::open(server.address).await;
    for _ in 0..1_000 {
        first.succeed(&wire.append(&stream, &[record(bytes, 0)])).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let idle = server.resident_mib();
    let begun = Instant::now();
    let (mut all, mut late) = (Vec::new(), Vec::new());
    for index in 0..tails {
        let mut connection = Connection::open(server.address).await;
        let _ = connection.tail(&wire.tail(&stream, false)).await;
        let seen = Rc::new(Seen::default());
        let lateness = (index % WATCHED_EACH == 0).then(Rc::<std::cell::RefCell<Vec<f64>>>::default);
        late.extend(lateness.clone());
        all.push(Rc::clone(&seen));
        spawn_local(tail(connection, seen, lateness, begun));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let connected = server.resident_mib();
    let (cpu, own_cpu, since) = (server.cpu_seconds(), own_cpu_seconds(), Instant::now());
    let total = publish(server, wire, &stream, rate, seconds, bytes, begun).await;
    let published = begun.elapsed();
    let peak_at_load = server.resident_mib();
    let behind = all.iter().map(|seen| total.saturating_sub(seen.records.get())).max().unwrap_or(0);
    let waited = Instant::now();
    while all.iter().any(|seen| seen.records.get() < total && !seen.ended.get()) && waited.elapsed() < CATCH_UP_BOUND {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let elapsed = since.elapsed().as_secs_f64();
    let complete = all.iter().filter(|seen| seen.records.get() == total).count();
    let last = all.iter().map(|seen| seen.newest.get()).max().unwrap_or_default();
    let mut times: Vec<f64> = late.iter().flat_map(|times| times.take()).collect();
    times.sort_by(f64::total_cmp);

    let mut value = |what: &str, value: f64, unit: &str, more: bool| {
        report.value(&format!("{name} {what}"), value, unit, more);
    };
    value("tails that got every record", complete as f64, "tail", true);
    value("records published", total as f64, "record", true);
    value("most behind when the last was published", behind as f64, "record", false);
    value(
        "last tail done after the last was published",
        last.saturating_sub(published).as_secs_f64() * 1e3,
        "ms",
        false,
    );
    value("p50", quantile(&times, 0.50), "ms", false);
    value("p99", quantile(&times, 0.99), "ms", false);
    value("events", complete as f64 * total as f64 / elapsed, "event/s", true);
    value("idle", idle, "MiB", false);
    value("over idle, tails connected", connected - idle, "MiB", false);
    value("over idle, under load", peak_at_load.max(server.resident_mib()) - idle, "MiB", false);
    value("over idle, peak", server.resident_peak_mib() - idle, "MiB", false);
    value("server CPU", (server.cpu_seconds() - cpu) / elapsed, "core", false);
    value("client CPU", (own_cpu_seconds() - own_cpu) / elapsed, "core", false);
}

async fn tail(
    mut connection: Connection,
    seen: Rc<Seen>,
    lateness: Option<Rc<std::cell::RefCell<Vec<f64>>>>,
    begun: Instant,
) {
    let (mut framing, mut times) = (Dechunker::default(), Times::default());
    let mut mark = Marks::default();
    loop {
        let mut take = |piece: &[u8]| {
            let now = begun.elapsed();
            seen.newest.set(now);
            match &lateness {
                Some(lateness) => times.feed(piece, |time| {
                    seen.records.set(seen.records.get() + 1);
                    let sent = Duration::from_nanos(time);
                    lateness.borrow_mut().push(now.saturating_sub(sent).as_secs_f64() * 1_000.0);
                }),
                None => seen.records.set(seen.records.get() + mark.count(piece)),
            }
        };
        if !connection.pieces(&mut framing, &mut take).await {
            seen.ended.set(true);
            return;
        }
    }
}

/// Counts records by the field that begins each, in bytes that are cut anywhere.
#[derive(Default)]
struct Marks {
    edge: Vec<u8>,
}

impl Marks {
    fn count(&mut self, piece: &[u8]) -> u64 {
        let before = self.edge.len();
        self.edge.extend_from_slice(&piece[..piece.len().min(MARK.len() - 1)]);
        let over_the_edge = if before == 0 { 0 } else { memchr::memmem::find_iter(&self.edge, MARK).count() };
        self.edge.clear();
        self.edge.extend_from_slice(&piece[piece.len().saturating_sub(MARK.len() - 1)..]);
        (over_the_edge + memchr::memmem::find_iter(piece, MARK).count()) as u64
    }
}

/// Publishes at this rate for this long, each record a durable append of its own; gives how many there were.
async fn publish(
    server: &Server,
    wire: Wire,
    stream: &str,
    rate: u64,
    seconds: u64,
    bytes: usize,
    begun: Instant,
) -> u64 {
    let start = begun.elapsed();
    let total = rate * seconds;
    let next = Rc::new(Cell::new(0_u64));
    let mut publishers = Vec::new();
    for _ in 0..PUBLISHERS {
        let mut connection = Connection::open(server.address).await;
        let (next, stream) = (Rc::clone(&next), stream.to_owned());
        publishers.push(spawn_local(async move {
            loop {
                let mine = next.get();
                if mine >= total {
                    return;
                }
                let due = start + Duration::from_nanos(mine * 1_000_000_000 / rate);
                let now = begun.elapsed();
                if now < due {
                    tokio::time::sleep(TICK.min(due - now)).await;
                    continue;
                }
                next.set(mine + 1);
                let time = u64::try_from(due.as_nanos()).expect("a short while");
                connection.succeed(&wire.append(&stream, &[record(bytes, time)])).await;
            }
        }));
    }
    for publisher in publishers {
        publisher.await.expect("a publisher ends well");
    }
    total
}
