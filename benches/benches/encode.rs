//! Rows into lines: ours beside three plain loops over the same rows that give the same bytes. It checks that they do.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::time::Duration;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde::Serialize;
use tidegate_benches::{Order, encoder, lines, orders};

#[derive(Serialize)]
struct Line<'a> {
    row: &'a Order,
}

/// The goal: itoa and serde_json's own escape, by hand, straight into a buffer, for this one table.
fn by_hand(orders: &[Order], out: &mut Vec<u8>) {
    fn text(out: &mut Vec<u8>, text: &str) {
        serde_json::to_writer(out, text).expect("a Vec takes everything");
    }
    for order in orders {
        out.extend_from_slice(b"{\"row\":{\"id\":");
        out.extend_from_slice(itoa::Buffer::new().format(order.id).as_bytes());
        out.extend_from_slice(b",\"customer_id\":");
        out.extend_from_slice(itoa::Buffer::new().format(order.customer_id).as_bytes());
        out.extend_from_slice(b",\"customer\":");
        text(out, &order.customer);
        out.extend_from_slice(b",\"status\":");
        text(out, &order.status);
        out.extend_from_slice(b",\"total\":");
        serde_json::to_writer(&mut *out, &order.total).expect("a Vec takes everything");
        out.extend_from_slice(b",\"paid\":");
        out.extend_from_slice(if order.paid { b"true" } else { b"false" });
        out.extend_from_slice(b",\"coupon\":");
        match &order.coupon {
            Some(coupon) => text(out, coupon),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"note\":");
        text(out, &order.note);
        out.extend_from_slice(b"}}\n");
    }
}

fn by_derive(orders: &[Order], out: &mut Vec<u8>) {
    for row in orders {
        serde_json::to_writer(&mut *out, &Line { row }).expect("a Vec takes everything");
        out.push(b'\n');
    }
}

fn by_value(orders: &[Order], out: &mut Vec<u8>) {
    for row in orders {
        let value = serde_json::to_value(Line { row }).expect("an order is JSON");
        serde_json::to_writer(&mut *out, &value).expect("a Vec takes everything");
        out.push(b'\n');
    }
}

fn encode(c: &mut Criterion) {
    let orders = orders(1_000);
    let expected = lines(&orders);
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Bytes(expected.len() as u64));

    let encoder = encoder();
    group.bench_function("tidegate", |b| {
        let mut out = BytesMut::with_capacity(expected.len());
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
        assert_eq!(out, expected);
    });
    type Loop = fn(&[Order], &mut Vec<u8>);
    let loops: [(&str, Loop); 3] =
        [("bare_itoa_and_escape", by_hand), ("serde_json_derive", by_derive), ("serde_json_value", by_value)];
    for (name, encode) in loops {
        group.bench_function(name, |b| {
            let mut out = Vec::with_capacity(expected.len() * 2);
            b.iter(|| {
                out.clear();
                encode(&orders, &mut out);
                black_box(&out);
            });
            // A value tree sorts its fields: the same bytes in another order.
            assert_eq!(out.len(), expected.len());
            assert!(name == "serde_json_value" || out == expected);
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
    targets = encode
}
criterion_main!(benches);
