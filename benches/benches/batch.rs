//! The batch executor beside `futures::stream::buffer_unordered` with the same window on the bare store: over a store that takes
//! 5 ms, and over one in memory that takes no time, with a task an item and in place. Numbers are compared within one run only; rounds alternate, medians count. Both
//! sides use the allocator of the product's binary.
//!
//! `TIDEGATE_BENCH_ROUNDS` (11) and `TIDEGATE_BENCH_OPERATIONS` (20,000) change the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use tidegate_batch::{Executor, Limits, Operate, Unweighed};
use tidegate_benches::report::{Report, median};

/// As in the product's binary: a task is an allocation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WINDOW: u32 = 50;
const LATENCY: Duration = Duration::from_millis(5);
const OBJECT_BYTES: usize = 1_024;
const OBJECTS: usize = 1_000;

/// A store, with a latency in front of it.
struct Store {
    memory: InMemory,
    paths: Vec<Path>,
    latency: Duration,
}

impl Store {
    async fn new(latency: Duration) -> Arc<Self> {
        let memory = InMemory::new();
        let paths: Vec<_> = (0..OBJECTS).map(|n| Path::from(format!("folder/object-{n}"))).collect();
        for path in &paths {
            memory.put(path, vec![7; OBJECT_BYTES].into()).await.expect("memory takes it");
        }
        Arc::new(Self { memory, paths, latency })
    }

    async fn get(&self, index: usize) -> object_store::Result<Bytes> {
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        self.memory.get(&self.paths[index % OBJECTS]).await?.bytes().await
    }
}

/// The store, as the executor runs it. `at_hand`: what lies in memory is said to need no task.
struct Gets {
    store: Arc<Store>,
    at_hand: bool,
}

impl Operate<Unweighed<usize>> for Gets {
    type Output = Bytes;
    type Error = object_store::Error;

    async fn operate(&self, Unweighed(index): Unweighed<usize>) -> object_store::Result<Bytes> {
        self.store.get(index).await
    }

    fn is_at_hand(&self, _: &Unweighed<usize>) -> bool {
        self.at_hand
    }
}

fn main() {
    let rounds = number("TIDEGATE_BENCH_ROUNDS", 11);
    let operations = number("TIDEGATE_BENCH_OPERATIONS", 20_000);
    let mut report = Report::new("batch");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    // In a task, as a server's requests are.
    let measured = runtime.spawn(async move {
        compare("latency_5_ms", LATENCY, rounds, operations / 4, &mut report).await;
        compare("in_memory", Duration::ZERO, rounds, operations * 10, &mut report).await;
        report
    });
    runtime.block_on(measured).expect("no panic").finish();
}

/// Operations a second, both ways in turn.
async fn compare(name: &str, latency: Duration, rounds: usize, operations: usize, report: &mut Report) {
    let store = Store::new(latency).await;
    let limits = Limits { permits: WINDOW * 10, ..Limits::default() };
    let executor = Executor::new(limits).expect("the limits are in range");
    let (mut bare, mut batch, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    let (mut in_place, mut ratio_in_place) = (Vec::new(), Vec::new());
    let run = async |at_hand: bool| {
        let begun = Instant::now();
        let reservation = executor.reserve().expect("nobody else is there");
        assert_eq!(reservation.window(), WINDOW, "the same window");
        let input = stream::iter((0..operations).map(|index| (index, Ok::<_, object_store::Error>(Unweighed(index)))));
        check(reservation.run(input, Gets { store: Arc::clone(&store), at_hand }), operations).await;
        operations as f64 / begun.elapsed().as_secs_f64()
    };
    // The first round warms up.
    for round in 0..=rounds {
        let begun = Instant::now();
        let results = stream::iter(0..operations)
            .map(|index| {
                let store = Arc::clone(&store);
                async move { (index, store.get(index).await) }
            })
            .buffer_unordered(WINDOW as usize);
        check(results, operations).await;
        let bare_rate = operations as f64 / begun.elapsed().as_secs_f64();

        let batch_rate = run(false).await;
        let in_place_rate = run(true).await;
        if round > 0 {
            in_place.push(in_place_rate);
            ratio_in_place.push(in_place_rate / bare_rate);
            bare.push(bare_rate);
            batch.push(batch_rate);
            ratio.push(batch_rate / bare_rate);
        }
    }
    let baseline = format!("{name}_buffer_unordered");
    report.rounds(&baseline, &bare, "op/s", true, None);
    report.rounds(&format!("{name}_executor"), &batch, "op/s", true, Some(&baseline));
    report.value(&format!("{name}_executor_ratio"), median(&ratio), "of buffer_unordered", true);
    report.rounds(&format!("{name}_executor_at_hand"), &in_place, "op/s", true, Some(&baseline));
    report.value(&format!("{name}_executor_at_hand_ratio"), median(&ratio_in_place), "of buffer_unordered", true);
}

/// Reads every result.
async fn check<E: std::fmt::Debug>(results: impl futures::Stream<Item = (usize, Result<Bytes, E>)>, operations: usize) {
    let mut results = std::pin::pin!(results);
    let mut count = 0;
    while let Some((_, result)) = results.next().await {
        assert_eq!(result.expect("the object is there").len(), OBJECT_BYTES);
        count += 1;
    }
    assert_eq!(count, operations, "every result came");
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}
