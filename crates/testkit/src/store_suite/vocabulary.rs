//! What the promises are spelled with: streams, batches, and reads that are checked as they go. It never appends by itself.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tidegate_core::id::Name;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, AppendRecord, AppendedRange, ChangeLog, Commit, CompareAndSwap, Created, Durability,
    LogError, LogReadItem, LogSpec, LogWatch, MetaStore, MetaWatch, PartitionAppend, PartitionBounds, ReadBounds,
    Retention, Revision, StreamId, Swap, SwapOutcome,
};
use tidegate_core::position::{Gap, GapReason, Offset, Partition};
use tidegate_core::time::{Clock, Timestamp};

use super::StoreWorld;
use crate::wait::within;

/// The partition that most promises use.
pub const P0: Partition = Partition(0);

/// A read without narrow bounds.
pub const WIDE: ReadBounds = ReadBounds { records: 100_000, bytes: 1 << 40 };

/// A stream's identity.
pub fn named(tenant: &str, stream: &str) -> StreamId {
    let name = |text: &str| Name::new(text).expect("the suite's names are names");
    StreamId { tenant: name(tenant), stream: name(stream) }
}

/// The stream of this name of the suite's own tenant.
pub fn stream(name: &str) -> StreamId {
    named("tenant", name)
}

/// A stream that keeps everything.
pub fn keep_all(partitions: u32) -> LogSpec {
    LogSpec { partitions, start: Offset::ZERO, retention: Retention::default(), compaction: None }
}

/// Records `<prefix>0`, `<prefix>1` and so on, without keys.
pub fn records(prefix: &str, count: usize) -> Vec<AppendRecord> {
    (0..count).map(|number| record(format!("{prefix}{number}"))).collect()
}

/// A record without a key.
pub fn record(bytes: impl Into<Bytes>) -> AppendRecord {
    AppendRecord { bytes: bytes.into(), key: None, tombstone: false }
}

/// A record with a key.
pub fn keyed(key: &str, bytes: &str) -> AppendRecord {
    let key = Some(Bytes::copy_from_slice(key.as_bytes()));
    AppendRecord { bytes: Bytes::copy_from_slice(bytes.as_bytes()), key, tombstone: false }
}

/// A record that says that its key is gone.
pub fn tombstone(key: &str) -> AppendRecord {
    AppendRecord { tombstone: true, ..keyed(key, &format!("{key} is gone")) }
}

/// A batch for these partitions, as of the world's clock.
pub fn batch<W: StoreWorld>(
    world: &W,
    stream: &StreamId,
    partitions: impl IntoIterator<Item = (u32, Vec<AppendRecord>)>,
) -> AppendBatch {
    batch_at(world.clock().timestamp(), stream, partitions)
}

/// A batch for these partitions, as of a time.
pub fn batch_at(
    append_time: Timestamp,
    stream: &StreamId,
    partitions: impl IntoIterator<Item = (u32, Vec<AppendRecord>)>,
) -> AppendBatch {
    let partitions = partitions.into_iter().map(|(partition, records)| PartitionAppend {
        partition: Partition(partition),
        expected_next: None,
        records,
        append_time,
    });
    AppendBatch::to_one(stream.clone(), partitions.collect(), Vec::new(), Durability::Fsync)
}

/// Creates a stream that was not there.
pub async fn create(log: &impl ChangeLog, stream: &StreamId, spec: &LogSpec) {
    let created = within("a creation", log.create(stream, spec)).await.expect("a stream can be created");
    assert_eq!(created, Created::New, "{stream:?}");
}

/// What came of an append that the store answers.
pub async fn try_append(log: &impl ChangeLog, batch: AppendBatch) -> AppendOutcome {
    within("an append", log.append(batch)).await.expect("an append is answered")
}

/// Appends what nothing speaks against.
pub async fn append(log: &impl ChangeLog, batch: AppendBatch) -> Vec<AppendedRange> {
    match try_append(log, batch).await {
        AppendOutcome::Appended(ranges) => ranges,
        other => panic!("nothing speaks against the append: {other:?}"),
    }
}

/// Appends records to partition 0, as of the world's clock.
pub async fn append_to<W: StoreWorld>(world: &W, stream: &StreamId, records: Vec<AppendRecord>) -> AppendedRange {
    append(&*world.store(), batch(world, stream, [(0, records)])).await[0]
}

/// The bounds of partition 0.
pub async fn bounds(log: &impl ChangeLog, stream: &StreamId) -> PartitionBounds {
    all_bounds(log, stream).await[0]
}

/// The bounds of all partitions, checked to be in order.
pub async fn all_bounds(log: &impl ChangeLog, stream: &StreamId) -> Vec<PartitionBounds> {
    let bounds = within("bounds", log.bounds(stream)).await.expect("bounds are answered");
    for (number, of) in bounds.iter().enumerate() {
        assert_eq!(of.partition.0 as usize, number, "partitions are in order");
        assert!(of.earliest <= of.next, "{of:?}");
    }
    bounds
}

/// Reads from an offset to the tail with the widest bounds.
pub async fn whole(log: &impl ChangeLog, stream: &StreamId, partition: Partition, from: Offset) -> Vec<LogReadItem> {
    bounded(log, stream, partition, from, WIDE).await
}

/// Reads from an offset to the tail, a bounded read at a time, and checks what every read promises.
///
/// # Panics
/// Where items do not stand dense and in order, a bound is passed, nothing is given before the tail, or a time or a commit
/// goes back.
pub async fn bounded(
    log: &impl ChangeLog,
    stream: &StreamId,
    partition: Partition,
    from: Offset,
    wanted: ReadBounds,
) -> Vec<LogReadItem> {
    let tail = all_bounds(log, stream).await[partition.0 as usize].next;
    let mut at = from;
    let mut items: Vec<LogReadItem> = Vec::new();
    while at < tail {
        let read = within("a read", log.read(stream, partition, at, wanted)).await.expect("a read is answered");
        assert!(!read.items.is_empty(), "nothing came at {at:?}, which is before the tail {tail:?}");
        let (mut records, mut bytes) = (0_u32, 0_u64);
        for item in &read.items {
            let (begin, end) = extent(item);
            assert_eq!(begin, at, "items stand dense and in order: {:?}", read.items);
            assert!(end > begin, "{item:?}");
            if let LogReadItem::Record { bytes: record, .. } = item {
                records += 1;
                bytes += record.len() as u64;
            }
            if let LogReadItem::Gap(gap) = item {
                assert_eq!(gap.partition, partition);
            }
            at = end;
        }
        assert_eq!(read.next, at, "one reads on where the last item ended");
        assert!(records <= wanted.records.max(1), "{records} records are more than asked for: {wanted:?}");
        assert!(bytes <= wanted.bytes || records == 1, "{bytes} bytes are more than asked for: {wanted:?}");
        assert!(records > 0 || at >= tail, "there is a record, and none was given: {:?}", read.items);
        items.extend(read.items);
    }
    in_order(&items);
    items
}

fn in_order(items: &[LogReadItem]) {
    let mut last: Option<(Commit, Timestamp)> = None;
    for item in items {
        if let LogReadItem::Record { commit, append_time, .. } = item {
            if let Some((last_commit, last_time)) = last {
                assert!(*commit >= last_commit, "commits go up in a partition");
                assert!(*append_time >= last_time, "times never go back in a partition");
            }
            last = Some((*commit, *append_time));
        }
    }
    for pair in items.windows(2) {
        if let [LogReadItem::Gap(first), LogReadItem::Gap(second)] = pair {
            assert_ne!(first.reason, second.reason, "adjacent gaps of one reason are one: {first:?} {second:?}");
        }
    }
}

/// From where to where an item goes.
pub fn extent(item: &LogReadItem) -> (Offset, Offset) {
    match item {
        LogReadItem::Record { offset, .. } => {
            (*offset, offset.checked_add(1).expect("a record has an offset after it"))
        }
        LogReadItem::Gap(gap) => (gap.from, gap.to),
    }
}

/// An item in short: a record's offset and bytes, or a gap's bounds and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A record.
    Record(u64, Bytes),
    /// A gap.
    Gap(u64, u64, GapReason),
}

/// Records at these offsets.
pub fn seen(offset: u64, text: impl Into<Bytes>) -> Seen {
    Seen::Record(offset, text.into())
}

/// Items in short.
pub fn brief(items: &[LogReadItem]) -> Vec<Seen> {
    items
        .iter()
        .map(|item| match item {
            LogReadItem::Record { offset, bytes, .. } => Seen::Record(offset.0, bytes.clone()),
            LogReadItem::Gap(Gap { from, to, reason, .. }) => Seen::Gap(from.0, to.0, *reason),
        })
        .collect()
}

/// What partition 0 of a stream has, in short.
pub async fn contents(log: &impl ChangeLog, stream: &StreamId) -> Vec<Seen> {
    brief(&whole(log, stream, P0, Offset::ZERO).await)
}

/// The texts of all records of a partition.
pub async fn texts(log: &impl ChangeLog, stream: &StreamId, partition: Partition) -> Vec<String> {
    let items = whole(log, stream, partition, Offset::ZERO).await;
    let texts = items.iter().filter_map(|item| match item {
        LogReadItem::Record { bytes, .. } => Some(String::from_utf8_lossy(bytes).into_owned()),
        LogReadItem::Gap(_) => None,
    });
    texts.collect()
}

/// An answer that says that nothing happened, and is not a value.
pub fn is_refusal(error: &LogError) -> bool {
    !matches!(error, LogError::Indeterminate(_) | LogError::Corrupt { .. })
}

/// A swap that puts.
pub fn put(key: &str, expected: Option<Revision>, value: &str) -> CompareAndSwap {
    let value = Swap::Put(Bytes::copy_from_slice(value.as_bytes()));
    CompareAndSwap { key: Bytes::copy_from_slice(key.as_bytes()), expected, swap: value }
}

/// A swap that deletes.
pub fn delete(key: &str, expected: Option<Revision>) -> CompareAndSwap {
    CompareAndSwap { key: Bytes::copy_from_slice(key.as_bytes()), expected, swap: Swap::Delete }
}

/// A swap that only looks.
pub fn check(key: &str, expected: Option<Revision>) -> CompareAndSwap {
    CompareAndSwap { key: Bytes::copy_from_slice(key.as_bytes()), expected, swap: Swap::Check }
}

/// What came of swaps that the store answers.
pub async fn try_swap(meta: &impl MetaStore, swaps: Vec<CompareAndSwap>) -> SwapOutcome {
    within("a swap", meta.compare_and_swap(swaps, Durability::Fsync)).await.expect("a swap is answered")
}

/// Swaps what nothing speaks against.
pub async fn swap(meta: &impl MetaStore, swaps: Vec<CompareAndSwap>) -> Vec<Revision> {
    match try_swap(meta, swaps).await {
        SwapOutcome::Swapped(revisions) => revisions,
        other => panic!("nothing speaks against the swap: {other:?}"),
    }
}

/// The value and the revision under a key.
pub async fn value(meta: &impl MetaStore, key: &str) -> Option<(String, Revision)> {
    let entry = within("a get", meta.get(key.as_bytes())).await.expect("a get is answered")?;
    assert_eq!(entry.key, key.as_bytes());
    let value = entry.value.expect("an entry that is got has a value");
    Some((String::from_utf8_lossy(&value).into_owned(), entry.revision))
}

/// Watches a stream that is there.
pub async fn watch_log(log: &impl ChangeLog, stream: &StreamId) -> LogWatch {
    within("a watch", log.watch(stream)).await.expect("a stream can be watched")
}

/// Watches the entries whose keys begin so.
pub async fn watch_entries(meta: &impl MetaStore, prefix: &'static str) -> MetaWatch {
    within("a watch", meta.watch(Bytes::from_static(prefix.as_bytes()))).await.expect("entries can be watched")
}

/// Waits until a watch gives what fits; `None` if it ends before.
pub async fn wait_for<T>(what: &str, watch: &mut BoxStream<'static, T>, mut fits: impl FnMut(&T) -> bool) -> Option<T> {
    within(what, async {
        loop {
            let item = watch.next().await?;
            if fits(&item) {
                return Some(item);
            }
        }
    })
    .await
}

/// Moves the world's clock.
pub fn later<W: StoreWorld>(world: &W, ms: u64) {
    world.clock().advance(Duration::from_millis(ms));
}
