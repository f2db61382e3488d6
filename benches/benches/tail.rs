//! From publishing to a live tail: 1,000 records a second of 256 bytes over 10 streams, each with one tail, out of the real binary
//! (`TIDEGATE_BIN`, else the release build); with `TIDEGATE_BENCH_PEERS` beside the crate `durable-streams` (SSE), NATS JetStream (ordered push consumers)
//! and Redis (`XREAD BLOCK`), all durable. The time is in the record: from when it was due to be sent to when a tail has read it. Rounds alternate.
//!
//! `TIDEGATE_BENCH_ROUNDS` (3), `TIDEGATE_BENCH_SECONDS` (10, a round), `TIDEGATE_BENCH_STREAMS` (10) and `TIDEGATE_BENCH_RATE` (1,000)
//! change the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tidegate_benches::http::{Connection, Dechunker};
use tidegate_benches::load::{quantile, runtime};
use tidegate_benches::process::{Server, number, peers};
use tidegate_benches::report::Report;
use tidegate_benches::wire::{Times, Wire, create, names, record};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

const RECORD_BYTES: usize = 256;
/// Longer than any tail may lag behind its publisher.
const LAG_BOUND: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Subject {
    Ours(Wire),
    DurableStreams,
    #[cfg(feature = "peers")]
    Nats,
    #[cfg(feature = "peers")]
    Redis,
}

#[derive(Clone)]
struct Work {
    streams: Vec<String>,
    /// Between two records of one stream.
    interval: Duration,
    records_a_stream: u64,
    begun: Instant,
}

/// The times that the tails saw, in milliseconds.
type Seen = Rc<RefCell<Vec<f64>>>;

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut subjects = vec![("ours_v1", Subject::Ours(Wire::Native)), ("ours_ds", Subject::Ours(Wire::Durable))];
    if peers().is_some() {
        subjects.push(("durable_streams", Subject::DurableStreams));
        #[cfg(feature = "peers")]
        subjects.extend([("nats", Subject::Nats), ("redis", Subject::Redis)]);
    }
    let only = std::env::var("TIDEGATE_BENCH_ONLY").unwrap_or_default();
    subjects.retain(|(name, _)| only.is_empty() || only.split(',').any(|part| name.starts_with(part)));
    let servers: Vec<Server> = subjects.iter().map(|(name, subject)| start(folder.path(), name, *subject)).collect();
    let mut all = vec![(Vec::new(), Vec::new(), Vec::new()); subjects.len()];
    for round in 0..number("TIDEGATE_BENCH_ROUNDS", 3) {
        for (((_, subject), server), (p50, p99, every)) in subjects.iter().zip(&servers).zip(&mut all) {
            let mut times = runtime().block_on(LocalSet::new().run_until(run(server, *subject, round)));
            times.sort_by(f64::total_cmp);
            p50.push(quantile(&times, 0.50));
            p99.push(quantile(&times, 0.99));
            every.append(&mut times);
        }
    }
    let mut report = Report::new("tail");
    for ((name, _), (p50, p99, mut every)) in subjects.iter().zip(all) {
        every.sort_by(f64::total_cmp);
        report.rounds(&format!("{name} p50"), &p50, "ms", false, None);
        report.rounds(&format!("{name} p99"), &p99, "ms", false, None);
        report.value(&format!("{name} p99.9 of all rounds"), quantile(&every, 0.999), "ms", false);
    }
    report.finish();
}

fn start(folder: &Path, name: &str, subject: Subject) -> Server {
    let data = folder.join(name);
    match subject {
        Subject::Ours(_) => Server::tidegate(&data),
        Subject::DurableStreams => Server::durable_streams(&peers().expect("asked for"), &data),
        #[cfg(feature = "peers")]
        Subject::Nats => Server::nats(&peers().expect("asked for"), &data),
        #[cfg(feature = "peers")]
        Subject::Redis => Server::redis(&data),
    }
}

async fn run(server: &Server, subject: Subject, round: u64) -> Vec<f64> {
    let count = usize::try_from(number("TIDEGATE_BENCH_STREAMS", 10)).expect("a count");
    let a_second = number("TIDEGATE_BENCH_RATE", 1_000) as f64 / count as f64;
    let seconds = number("TIDEGATE_BENCH_SECONDS", 10) as f64;
    let work = Work {
        streams: names(&format!("tail-{round}-"), count),
        interval: Duration::from_secs_f64(1.0 / a_second),
        records_a_stream: (a_second * seconds) as u64,
        begun: Instant::now(),
    };
    let seen: Seen = Rc::default();
    let (tails, publishers) = match subject {
        Subject::Ours(wire) => over_http(server, wire, &work, &seen).await,
        Subject::DurableStreams => over_http(server, Wire::Durable, &work, &seen).await,
        #[cfg(feature = "peers")]
        Subject::Nats => peer::over_nats(server, &work, &seen).await,
        #[cfg(feature = "peers")]
        Subject::Redis => peer::over_redis(server, &work, &seen).await,
    };
    for publisher in publishers {
        publisher.await.expect("a publisher ends well");
    }
    let expected = work.records_a_stream as usize * count;
    let done = Instant::now();
    while seen.borrow().len() < expected {
        assert!(done.elapsed() < LAG_BOUND, "{subject:?}: {} of {expected} records came", seen.borrow().len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(seen.borrow().len(), expected, "{subject:?}: every record comes once");
    for tail in tails {
        tail.abort();
    }
    seen.take()
}

type Tasks = (Vec<JoinHandle<()>>, Vec<JoinHandle<()>>);

async fn over_http(server: &Server, wire: Wire, work: &Work, seen: &Seen) -> Tasks {
    create(server, wire, &work.streams).await;
    let (mut tails, mut publishers) = (Vec::new(), Vec::new());
    for (index, stream) in work.streams.iter().enumerate() {
        let mut connection = Connection::open(server.address).await;
        let _ = connection.tail(&wire.tail(stream, false)).await;
        let (seen, begun) = (Rc::clone(seen), work.begun);
        tails.push(spawn_local(async move {
            let (mut framing, mut times) = (Dechunker::default(), Times::default());
            let mut take = |piece: &[u8]| {
                let now = begun.elapsed();
                times.feed(piece, |time| note(&seen, now, time));
            };
            while connection.pieces(&mut framing, &mut take).await {}
        }));
        let mut connection = Connection::open(server.address).await;
        let (stream, work) = (stream.clone(), work.clone());
        publishers.push(spawn_local(async move {
            let mut pace = Pace::new(&work, index);
            while let Some(time) = pace.next().await {
                connection.succeed(&wire.append(&stream, &[record(RECORD_BYTES, time)])).await;
            }
        }));
    }
    (tails, publishers)
}

fn note(seen: &Seen, now: Duration, time: u64) {
    let sent = Duration::from_nanos(time);
    seen.borrow_mut().push(now.saturating_sub(sent).as_secs_f64() * 1_000.0);
}

/// When the records of one stream are due. Who is late is not given the time that it lost.
struct Pace {
    begun: Instant,
    due: Duration,
    interval: Duration,
    left: u64,
}

impl Pace {
    fn new(work: &Work, index: usize) -> Self {
        // Long enough for the tails to be there; streams take turns.
        let first = work.begun.elapsed() + Duration::from_millis(300);
        let due = first
            + work.interval * u32::try_from(index).expect("few") / u32::try_from(work.streams.len()).expect("few");
        Self { begun: work.begun, due, interval: work.interval, left: work.records_a_stream }
    }

    /// Waits until the next record is due; gives the time that stands in it.
    async fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let due = self.due;
        self.due += self.interval;
        let now = self.begun.elapsed();
        // The timer is no finer than a millisecond: what it oversleeps is not the server's.
        let sent = if now < due {
            tokio::time::sleep(due - now).await;
            self.begun.elapsed()
        } else {
            due
        };
        u64::try_from(sent.as_nanos()).ok()
    }
}

#[cfg(feature = "peers")]
mod peer {
    use super::*;
    use tidegate_benches::peer::{nats, redis};

    pub(super) async fn over_nats(server: &Server, work: &Work, seen: &Seen) -> Tasks {
        let context = nats::connect(server).await;
        nats::create(&context, &work.streams).await;
        let (mut tails, mut publishers) = (Vec::new(), Vec::new());
        for (index, stream) in work.streams.iter().enumerate() {
            let mut messages = nats::tail(&nats::connect(server).await, stream).await;
            let (seen, begun) = (Rc::clone(seen), work.begun);
            tails.push(spawn_local(async move {
                let mut times = Times::default();
                while let Some(payload) = nats::next(&mut messages).await {
                    let now = begun.elapsed();
                    times.feed(&payload, |time| note(&seen, now, time));
                }
            }));
            let (context, stream, work) = (nats::connect(server).await, stream.clone(), work.clone());
            publishers.push(spawn_local(async move {
                let mut pace = Pace::new(&work, index);
                while let Some(time) = pace.next().await {
                    let published = context.publish(stream.clone(), record(RECORD_BYTES, time).into()).await;
                    published.expect("published").await.expect("acknowledged");
                }
            }));
        }
        (tails, publishers)
    }

    pub(super) async fn over_redis(server: &Server, work: &Work, seen: &Seen) -> Tasks {
        let (mut tails, mut publishers) = (Vec::new(), Vec::new());
        for (index, stream) in work.streams.iter().enumerate() {
            let mut connection = redis::connect(server).await;
            let (seen, begun, name) = (Rc::clone(seen), work.begun, stream.clone());
            tails.push(spawn_local(async move {
                let (mut times, mut after) = (Times::default(), "$".to_owned());
                loop {
                    for payload in redis::next(&mut connection, &name, &mut after).await {
                        let now = begun.elapsed();
                        times.feed(&payload, |time| note(&seen, now, time));
                    }
                }
            }));
            let mut connection = redis::connect(server).await;
            let (stream, work) = (stream.clone(), work.clone());
            publishers.push(spawn_local(async move {
                let mut pace = Pace::new(&work, index);
                while let Some(time) = pace.next().await {
                    redis::append(&mut connection, &stream, &record(RECORD_BYTES, time)).await;
                }
            }));
        }
        (tails, publishers)
    }
}
