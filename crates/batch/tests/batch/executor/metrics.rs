//! What the executor counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt as _, stream};
use metrics::{Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;
use tidegate_batch::Work;
use tidegate_testkit::block_on;

use super::{Refused, executor};

/// Keeps every counter and gauge by its name and labels.
#[derive(Debug, Default)]
struct Kept(Mutex<BTreeMap<String, Arc<Cell>>>);

#[derive(Debug, Default)]
struct Cell(Mutex<f64>, AtomicU64);

impl GaugeFn for Cell {
    fn increment(&self, by: f64) {
        let mut now = self.0.lock();
        *now += by;
        // The most that it was.
        self.1.fetch_max(*now as u64, Ordering::SeqCst);
    }

    fn decrement(&self, by: f64) {
        self.increment(-by);
    }

    fn set(&self, _: f64) {
        unreachable!("several executors share a gauge");
    }
}

impl metrics::CounterFn for Cell {
    fn increment(&self, by: u64) {
        GaugeFn::increment(self, by as f64);
    }

    fn absolute(&self, _: u64) {
        unreachable!("a counter of this crate only grows");
    }
}

impl Kept {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = key.name().trim_start_matches("tidegate_batch_");
        Arc::clone(self.0.lock().entry(format!("{name} {}", labels.join(","))).or_default())
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

struct Named(&'static str, u64);

impl Work for Named {
    fn kind(&self) -> &'static str {
        self.0
    }

    fn weight_bytes(&self) -> u64 {
        self.1
    }
}

#[test]
fn permits_bytes_refusals_panics_and_kinds_are_counted() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        block_on(async {
            let executor = executor(3, 100, 100);
            let works = [Named("get", 0), Named("put", 100), Named("get", 0), Named("put", 101), Named("odd", 7)];
            let input = stream::iter(works.map(|work| ((), Ok::<_, Refused>(work))));
            let operate = |work: Named| async move {
                assert_ne!(work.0, "odd", "at odds");
                Ok::<_, Refused>(())
            };
            let batch = executor.reserve().unwrap();
            assert!(executor.reserve().is_err());
            assert_eq!(batch.run(input, operate).count().await, 5);
        });
    });
    std::panic::set_hook(print);
    let kept: BTreeMap<_, _> = kept
        .0
        .into_inner()
        .into_iter()
        .map(|(name, cell)| (name, (*cell.0.lock(), cell.1.load(Ordering::SeqCst))))
        .collect();
    let expected = [
        ("bytes_in_flight ", (0.0, 100)),
        ("operations_total kind=get", (2.0, 2)),
        ("operations_total kind=odd", (1.0, 1)),
        ("operations_total kind=put", (1.0, 1)),
        ("panics_total kind=odd", (1.0, 1)),
        ("permits_in_use ", (0.0, 3)),
        ("refused_total reason=bytes", (1.0, 1)),
        ("refused_total reason=permits", (1.0, 1)),
    ];
    assert_eq!(kept, BTreeMap::from(expected.map(|(name, value)| (name.to_owned(), value))));
}
