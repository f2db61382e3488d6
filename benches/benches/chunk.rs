//! What the chunk producer adds to copying lines into a plain buffer, and to encoding.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Duration;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate_benches::{encoder, lines, orders};
use tidegate_core::Moment;
use tidegate_core::limit::Settings;
use tidegate_frame::chunk::{ChunkBounds, ChunkProducer};

fn chunk(c: &mut Criterion) {
    let orders = orders(4_000);
    let all = lines(&orders);
    let each: Vec<&[u8]> = all.split_inclusive(|byte| *byte == b'\n').collect();
    let encoder = encoder();
    let bounds = ChunkBounds::from_settings(&Settings::default());
    let mut group = c.benchmark_group("chunk");
    group.throughput(Throughput::Bytes(all.len() as u64));
    group.bench_function("bare_buffer/copy", |b| {
        let mut out = BytesMut::with_capacity(all.len());
        b.iter(|| {
            out.clear();
            each.iter().for_each(|line| out.extend_from_slice(line));
            black_box(&out);
        });
    });
    group.bench_function("producer/copy", |b| {
        let mut producer = ChunkProducer::new(bounds, 0);
        b.iter(|| {
            for line in &each {
                let Ok(chunk) = producer.append(
                    || Moment::ORIGIN,
                    |buf| {
                        buf.extend_from_slice(line);
                        Ok::<_, Infallible>(())
                    },
                );
                black_box(chunk);
            }
        });
    });
    group.bench_function("bare_buffer/encode", |b| {
        let mut out = BytesMut::with_capacity(all.len());
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
            black_box(&out);
        });
    });
    group.bench_function("producer/encode", |b| {
        let mut producer = ChunkProducer::new(bounds, 0);
        b.iter(|| {
            for order in &orders {
                let chunk = producer.append(
                    || Moment::ORIGIN,
                    |buf| {
                        encoder.encode(buf, 16 << 20, &mut |row| {
                            order.write(row);
                            Ok(())
                        })
                    },
                );
                black_box(chunk.expect("it fits"));
            }
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_500));
    targets = chunk
}
criterion_main!(benches);
