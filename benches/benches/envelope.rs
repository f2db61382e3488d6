//! Sealing and opening, beside the same structure as bare JSON: a small one and one of about 64 KiB.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate_frame::envelope::{Kind, open, seal};

type Thing = Vec<(u64, String)>;

fn envelope(c: &mut Criterion) {
    let mut group = c.benchmark_group("envelope");
    for (name, entries) in [("small", 2_u64), ("64_kib", 2_500)] {
        let thing: Thing = (0..entries).map(|i| (i * 7_919, format!("a name of some length {i}"))).collect();
        let json = serde_json::to_vec(&thing).expect("a list is JSON");
        let sealed = seal(Kind::Probe, 1, &thing).expect("it is small enough");
        group.throughput(Throughput::Bytes(sealed.len() as u64));
        group.bench_function(format!("seal/write_{name}"), |b| b.iter(|| seal(Kind::Probe, 1, black_box(&thing))));
        group.bench_function(format!("bare_json/write_{name}"), |b| b.iter(|| serde_json::to_vec(black_box(&thing))));
        group.bench_function(format!("open/read_{name}"), |b| {
            b.iter(|| open::<Thing>(Kind::Probe, &[1], black_box(&sealed)));
        });
        group.bench_function(format!("bare_json/read_{name}"), |b| {
            b.iter(|| serde_json::from_slice::<Thing>(black_box(&json)));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_000));
    targets = envelope
}
criterion_main!(benches);
