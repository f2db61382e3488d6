//! The prefix hash of a chunk, beside SHA-256 over the same bytes in one piece, and as a share of encoding.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::time::Duration;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sha2::{Digest as _, Sha256};
use tidegate_benches::{encoder, lines, orders};
use tidegate_frame::prefix::PrefixHasher;

fn prefix(c: &mut Criterion) {
    let orders = orders(400);
    let chunk = lines(&orders);
    let encoder = encoder();
    let mut group = c.benchmark_group("prefix");
    group.throughput(Throughput::Bytes(chunk.len() as u64));
    group.bench_function("lines_of_a_chunk/hash", |b| {
        let mut hasher = PrefixHasher::new();
        b.iter(|| hasher.lines(black_box(&chunk)));
        black_box(hasher.digest());
    });
    group.bench_function("line_by_line/hash", |b| {
        let mut hasher = PrefixHasher::new();
        b.iter(|| chunk[..].split(|byte| *byte == b'\n').for_each(|line| hasher.line(black_box(line))));
        black_box(hasher.digest());
    });
    group.bench_function("bare_sha256/hash", |b| {
        let mut hash = Sha256::new();
        b.iter(|| hash.update(black_box(&chunk)));
        black_box(hash.finalize());
    });
    for (name, hashed) in [("bare_encode/encode", false), ("encode_and_hash/encode", true)] {
        group.bench_function(name, |b| {
            let mut out = BytesMut::with_capacity(chunk.len());
            let mut hasher = PrefixHasher::new();
            b.iter(|| {
                out.clear();
                for order in &orders {
                    encoder
                        .encode(&mut out, 16 << 20, &mut |row| {
                            order.write(row);
                            Ok(())
                        })
                        .expect("it fits");
                }
                if hashed {
                    hasher.lines(&out);
                }
                black_box(&out);
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_500));
    targets = prefix
}
criterion_main!(benches);
