//! What the store costs on this machine: appends that share an fsync, a read of everything, the start after a kill, a
//! hundred thousand streams. It prints and judges nothing. `cargo run --release --example measure -p tidegate-store-embedded`.
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use tidegate_core::id::Name;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, AppendRecord, ChangeLog as _, Durability, LogSpec, PartitionAppend, ReadBounds,
    Retention, StreamId,
};
use tidegate_core::position::{Offset, Partition};
use tidegate_core::time::Timestamp;
use tidegate_store_embedded::{EmbeddedConfig, EmbeddedStore};
use tidegate_testkit::ManualClock;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn stream(number: usize) -> Result<StreamId, Error> {
    Ok(StreamId { tenant: Name::new("t")?, stream: Name::new(number.to_string())? })
}

fn batch(stream: &StreamId, count: usize, len: usize) -> AppendBatch {
    let record = AppendRecord { bytes: Bytes::from(vec![7; len]), key: None, tombstone: false };
    let append_time = Timestamp::from_unix_ms(0);
    let records = vec![record; count];
    let partitions = vec![PartitionAppend { partition: Partition(0), expected_next: None, records, append_time }];
    AppendBatch::to_one(stream.clone(), partitions, Vec::new(), Durability::Fsync)
}

/// `callers` at a time append `appends` batches over `streams` streams.
async fn append(
    store: &EmbeddedStore,
    callers: usize,
    streams: usize,
    appends: usize,
    (count, len): (usize, usize),
) -> Result<(), Error> {
    let start = Instant::now();
    let tasks = (0..callers).map(|caller| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in (caller..appends).step_by(callers) {
                let outcome = store.append(batch(&stream(number % streams)?, count, len)).await?;
                assert!(matches!(outcome, AppendOutcome::Appended(_)));
            }
            Ok::<_, Error>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    let seconds = start.elapsed().as_secs_f64();
    let (appends, bytes) = (appends as f64, (appends * count * len) as f64);
    println!(
        "{callers} callers, {streams} streams, {count} x {len} B: {:.0} appends/s, {:.0} MB/s",
        appends / seconds,
        bytes / seconds / 1e6
    );
    Ok(())
}

async fn read(store: &EmbeddedStore, id: &StreamId, what: &str) -> Result<(), Error> {
    let (start, mut at, mut bytes) = (Instant::now(), Offset(0), 0);
    loop {
        let read = store.read(id, Partition(0), at, ReadBounds { records: 10_000, bytes: 1 << 20 }).await?;
        if read.items.is_empty() {
            break;
        }
        for item in &read.items {
            if let tidegate_core::port::LogReadItem::Record { bytes: record, .. } = item {
                bytes += record.len();
            }
        }
        at = read.next;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {bytes} B of {} records in {seconds:.3} s, {:.0} MB/s", at.0, bytes as f64 / seconds / 1e6);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let folder = match std::env::args_os().nth(1) {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let config = |name: &str| EmbeddedConfig::new(folder.path().join(name), Arc::new(ManualClock::new()));
    let spec = LogSpec { partitions: 1, start: Offset(0), retention: Retention::default(), compaction: None };
    {
        let store = EmbeddedStore::open(config("small"))?;
        for number in 0..100 {
            store.create(&stream(number)?, &spec).await?;
        }
        for callers in [1, 64, 1_024] {
            append(&store, callers, 100, 2_000 * callers.min(100), (1, 256)).await?;
        }
        read(&store, &stream(0)?, "one of them, small batches").await?;
    }
    {
        let store = EmbeddedStore::open(config("large"))?;
        store.create(&stream(0)?, &spec).await?;
        append(&store, 4, 1, 4_000, (1_000, 256)).await?;
        read(&store, &stream(0)?, "1 GB, large batches").await?;
    }
    {
        let store = EmbeddedStore::open(config("kill"))?;
        for number in 0..100 {
            store.create(&stream(number)?, &spec).await?;
        }
        append(&store, 64, 100, 200_000, (8, 256)).await?;
        // A copy of the open folder is what a kill leaves.
        let copied = std::process::Command::new("cp")
            .args(["-r", "--sparse=always"])
            .args([folder.path().join("kill"), folder.path().join("killed")])
            .status()?;
        assert!(copied.success());
        let start = Instant::now();
        let killed = EmbeddedStore::open(config("killed"))?;
        println!("after a kill with 400 MB: ready in {:?}", start.elapsed());
        read(&killed, &stream(0)?, "one of a hundred, after it").await?;
    }
    {
        let store = EmbeddedStore::open(config("many"))?;
        let start = Instant::now();
        let made = futures::stream::iter(0..100_000).map(|number| {
            let (store, spec) = (store.clone(), spec.clone());
            async move {
                let id = stream(number)?;
                store.create(&id, &spec).await?;
                store.append(batch(&id, 1, 100)).await?;
                Ok::<_, Error>(())
            }
        });
        let mut made = made.buffer_unordered(2_000);
        while let Some(done) = made.next().await {
            done?;
        }
        println!("100,000 streams made in {:?}", start.elapsed());
        drop(made);
        store.close();
        let start = Instant::now();
        let store = EmbeddedStore::open(config("many"))?;
        println!("100,000 streams: ready in {:?}", start.elapsed());
        read(&store, &stream(77_777)?, "one of them").await?;
    }
    Ok(())
}
