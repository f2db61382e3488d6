//! A store in a folder of its own, and the words that tests use.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_core::id::Name;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, AppendRecord, ChangeLog as _, Durability, LogError, LogReadItem, LogSpec,
    PartitionAppend, ReadBounds, Retention, StreamId,
};
use tidegate_core::position::{Gap, Offset, Partition};
use tidegate_core::time::{Clock as _, Timestamp};
use tidegate_store_embedded::{EmbeddedConfig, EmbeddedStore};
use tidegate_testkit::{ManualClock, StoreWorld};

/// A configuration whose maintenance runs only by hand.
pub(crate) fn config(path: &Path, clock: &ManualClock) -> EmbeddedConfig {
    let mut config = EmbeddedConfig::new(path, Arc::new(clock.clone()));
    config.maintenance_interval = Duration::ZERO;
    config
}

pub(crate) fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(config(path, &ManualClock::new())).unwrap()
}

/// Everything that is due, to the end.
pub(crate) async fn maintain(store: &EmbeddedStore, clock: &ManualClock) {
    let (store, now) = (store.clone(), clock.timestamp());
    let done = tokio::task::spawn_blocking(move || while store.maintain(now).unwrap().more {});
    done.await.unwrap();
}

pub(crate) fn stream(name: &str) -> StreamId {
    StreamId { tenant: Name::new("t").unwrap(), stream: Name::new(name).unwrap() }
}

pub(crate) fn spec() -> LogSpec {
    LogSpec { partitions: 1, start: Offset(0), retention: Retention::default(), compaction: None }
}

pub(crate) fn record(bytes: impl Into<Bytes>) -> AppendRecord {
    AppendRecord { bytes: bytes.into(), key: None, tombstone: false }
}

pub(crate) fn batch(stream: &StreamId, records: Vec<AppendRecord>) -> AppendBatch {
    let append_time = Timestamp::from_unix_ms(1_767_225_600_000);
    let partitions = vec![PartitionAppend { partition: Partition(0), expected_next: None, records, append_time }];
    AppendBatch::to_one(stream.clone(), partitions, Vec::new(), Durability::Fsync)
}

/// Appends to partition 0; gives the first offset.
pub(crate) async fn append(store: &EmbeddedStore, stream: &StreamId, records: Vec<AppendRecord>) -> u64 {
    match store.append(batch(stream, records)).await.unwrap() {
        AppendOutcome::Appended(ranges) => ranges[0].base.0,
        other => panic!("{other:?}"),
    }
}

/// Everything from an offset of partition 0 to the tail: records by offset, and gaps.
pub(crate) async fn read_all(
    store: &EmbeddedStore,
    stream: &StreamId,
    from: u64,
) -> Result<(Vec<(u64, Bytes)>, Vec<Gap>), LogError> {
    let (mut records, mut gaps, mut at) = (Vec::new(), Vec::new(), Offset(from));
    loop {
        let bounds = ReadBounds { records: 1_000, bytes: 4 * 1024 * 1024 };
        let read = store.read(stream, Partition(0), at, bounds).await?;
        for item in read.items {
            match item {
                LogReadItem::Record { offset, bytes, .. } => {
                    assert_eq!(offset, at, "nothing is skipped");
                    at = Offset(offset.0 + 1);
                    records.push((offset.0, bytes));
                }
                LogReadItem::Gap(gap) => {
                    assert_eq!(gap.from, at, "nothing is skipped");
                    at = gap.to;
                    gaps.push(gap);
                }
            }
        }
        assert_eq!(read.next, at);
        if store.bounds(stream).await?[0].next == at {
            return Ok((records, gaps));
        }
    }
}

/// Copies a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// All files under a folder, in a fixed order.
pub(crate) fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

pub(crate) struct Embedded {
    store: Arc<EmbeddedStore>,
    clock: ManualClock,
    folder: tempfile::TempDir,
}

#[async_trait]
impl StoreWorld for Embedded {
    type Store = EmbeddedStore;

    async fn fresh() -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let store = Arc::new(EmbeddedStore::open(config(folder.path(), &clock)).unwrap());
        Self { store, clock, folder }
    }

    fn store(&self) -> Arc<EmbeddedStore> {
        Arc::clone(&self.store)
    }

    fn clock(&self) -> ManualClock {
        self.clock.clone()
    }

    async fn maintain(&self) {
        maintain(&self.store, &self.clock).await;
    }

    async fn reopen(self) -> Self {
        let Self { store, clock, folder } = self;
        store.close();
        drop(store);
        let store = Arc::new(EmbeddedStore::open(config(folder.path(), &clock)).unwrap());
        Self { store, clock, folder }
    }
}
