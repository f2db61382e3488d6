//! Appending records: checked whole, decided by the producer's and the late records' rules, then one atomic append that carries
//! what must not drift from it. A request is all or nothing.

mod extra;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, AppendRecord, AppendedRange, CompareAndSwap, Durability, MetaRange, PartitionAppend,
    Swap,
};
use tidegate_core::position::{Offset, Partition};
use tidegate_core::principal::Principal;
use tidegate_frame::envelope::Kind;

pub(crate) use extra::Extra;
use extra::Sizes;

use super::{ATTEMPTS_MAX, SCAN_PAGE, StreamService};
use crate::durable::{DurableMeta, MessageKind};
use crate::error::{PublishError, StoreError, StreamError};
use crate::handle::{Known, PRODUCERS_CACHED, StoredWatermark, StreamHandle, Watermarks, seal, unseal};
use crate::key;
use crate::late::{advance, is_late};
use crate::partition::partition_of_key;
use crate::producer::{self, Decision, PRODUCER_ID_MAX_BYTES, ProducerStamp, ProducerState, Remembered};
use crate::record::NewRecord;
use crate::spec::{LatePolicy, StreamMeta};

/// Records to append.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The records, at least one.
    pub records: Vec<NewRecord>,
    /// With it a repetition appends nothing.
    pub producer: Option<ProducerStamp>,
}

/// What came of an append.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// How many records were appended (of a repetition: the first time).
    pub count: u64,
    /// Where.
    pub appended: Vec<AppendedRange>,
    /// It was a repetition: nothing was appended now.
    pub duplicate: bool,
    /// The producer's highest sequence, of a repetition or an append with one.
    pub producer_seq: Option<u64>,
    /// The records that were dropped because they came too late.
    pub late: Vec<LateRecord>,
}

/// A record that was dropped because it came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateRecord {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Where it would have gone.
    pub partition: Partition,
    /// Its event time.
    pub event_time: Timestamp,
    /// The watermark that it missed.
    pub watermark: Timestamp,
}

/// So many new producers of a stream pass between two looks for those that can be forgotten.
const PRODUCERS_PER_SWEEP: u32 = 64;

/// Records of a request, each with its partition, ready to be appended.
struct Placed {
    index: usize,
    partition: Partition,
    event_time: Option<Timestamp>,
    record: AppendRecord,
}

impl StreamService {
    /// Appends records, durable when answered.
    pub async fn publish(
        &self,
        principal: &Principal,
        name: &Name,
        request: PublishRequest,
    ) -> Result<Published, PublishError> {
        let handle = self.handle(principal, name).await?;
        let placed = self.place(&handle, &request.records)?;
        let producer = request.producer;
        drop(request.records);
        let published = self.append(&handle, placed, producer, Extra::default()).await?;
        handle.touch();
        Ok(published)
    }

    /// Appends records of a stream with one partition as they are.
    pub(crate) async fn append_records(
        &self,
        handle: &Arc<StreamHandle>,
        records: Vec<AppendRecord>,
        producer: Option<ProducerStamp>,
        extra: Extra<'_>,
    ) -> Result<Published, PublishError> {
        let placed = records.into_iter().enumerate();
        let placed = placed.map(|(index, record)| Placed { index, partition: Partition(0), event_time: None, record });
        self.append(handle, placed.collect(), producer, extra).await
    }

    /// Whether records may be appended together.
    pub(crate) fn check_sizes(&self, records: &[AppendRecord]) -> Result<(), PublishError> {
        let settings = self.core.settings.freeze();
        let mut sizes = Sizes::new(&settings, records.len())?;
        records.iter().try_for_each(|record| sizes.add(record))?;
        sizes.check()
    }

    /// Checks the records, and says where each goes.
    fn place(&self, handle: &StreamHandle, records: &[NewRecord]) -> Result<Vec<Placed>, PublishError> {
        let settings = self.core.settings.freeze();
        if records.is_empty() {
            return Err(PublishError::Empty);
        }
        let mut sizes = Sizes::new(&settings, records.len())?;
        let meta = handle.meta();
        if let Some(durable) = meta.durable.as_ref().filter(|durable| durable.kind() != MessageKind::Json) {
            let expected = durable.content_type.clone();
            return Err(PublishError::ContentType { expected, given: crate::durable::JSON.into() });
        }
        let partitions = meta.partitions;
        // Records without a key stay together, so that their order holds; requests go round.
        let turn = Partition(handle.turn.fetch_add(1, Ordering::Relaxed) % partitions);
        let mut placed = Vec::with_capacity(records.len());
        for (index, record) in records.iter().enumerate() {
            let partition = match (record.partition, &record.key) {
                (Some(partition), _) => partition,
                (None, Some(key)) => partition_of_key(key, partitions),
                (None, None) => turn,
            };
            handle.check_partition(partition)?;
            let stored = record.to_append(meta.tombstone_grace_ms.is_some());
            sizes.add(&stored)?;
            placed.push(Placed { index, partition, event_time: record.event_time, record: stored });
        }
        sizes.check()?;
        Ok(placed)
    }

    async fn append(
        &self,
        handle: &Arc<StreamHandle>,
        placed: Vec<Placed>,
        stamp: Option<ProducerStamp>,
        extra: Extra<'_>,
    ) -> Result<Published, PublishError> {
        if handle.meta().late == LatePolicy::Drop {
            let mut watermarks = handle.watermarks.lock().await;
            return self.append_as(handle, placed, stamp, Some(&mut watermarks), extra).await;
        }
        self.append_as(handle, placed, stamp, None, extra).await
    }

    async fn append_as(
        &self,
        handle: &Arc<StreamHandle>,
        placed: Vec<Placed>,
        stamp: Option<ProducerStamp>,
        watermarks: Option<&mut Watermarks>,
        extra: Extra<'_>,
    ) -> Result<Published, PublishError> {
        let Some(stamp) = stamp else {
            return self.attempts(handle, &placed, None, watermarks, extra).await;
        };
        if stamp.id.is_empty() || stamp.id.len() > PRODUCER_ID_MAX_BYTES {
            return Err(PublishError::ProducerId);
        }
        let slot = {
            let mut producers = handle.producers.lock();
            let slot = Arc::clone(producers.get_or_insert(stamp.id.clone(), Arc::default));
            while producers.len() > PRODUCERS_CACHED {
                producers.pop_lru();
            }
            slot
        };
        let mut state = slot.lock().await;
        self.attempts(handle, &placed, Some((&stamp, &mut state)), watermarks, extra).await
    }

    /// Decides and appends, again while others change what was decided on.
    async fn attempts(
        &self,
        handle: &StreamHandle,
        placed: &[Placed],
        mut producer: Option<(&ProducerStamp, &mut Option<Known<Option<ProducerState>>>)>,
        mut watermarks: Option<&mut Watermarks>,
        mut extra: Extra<'_>,
    ) -> Result<Published, PublishError> {
        for _ in 0..ATTEMPTS_MAX {
            let now = self.core.clock.timestamp();
            if let Some((stamp, known)) = &mut producer {
                let state = match known {
                    Some(known) => known,
                    None => known.insert(self.load_producer(handle, &stamp.id).await?),
                };
                if let Some(answer) = refusal(state.value.as_ref(), stamp)? {
                    return Ok(answer);
                }
            }
            if let Some(watermarks) = &mut watermarks {
                self.load_watermarks(handle, placed, watermarks).await?;
            }
            let (kept, late) = split_late(placed, watermarks.as_deref());
            let (meta, revision) = handle.known();
            if meta.durable.as_ref().is_some_and(|durable| durable.closed) {
                // To close what is closed is nothing new, unless a producer counts it.
                if extra.close && placed.is_empty() && producer.is_none() {
                    return Ok(Published::default());
                }
                return Err(PublishError::Closed { tail: handle.tail().await? });
            }
            let guard =
                if extra.close { handle.change_at(revision, &closed(&meta)) } else { handle.unchanged_at(revision) };
            let mut state = vec![guard];
            state.extend(extra.advance_writer(handle, self.core.meta.as_ref()).await?);
            if let Some((stamp, known)) = &producer {
                let before = known.as_ref().and_then(|known| known.value.as_ref());
                let made = Remembered { seq: stamp.seq, count: kept.len() as u64, places: Vec::new() };
                let after = producer::after(before, stamp, made, now);
                state.push(CompareAndSwap {
                    key: key::producer(handle.incarnation(), &stamp.id),
                    expected: known.as_ref().and_then(|known| known.revision),
                    swap: Swap::PutWithRanges(producer::seal(&after)),
                });
            }
            let advanced = advances(&kept, watermarks.as_deref());
            for (partition, time) in &advanced {
                let known = watermarks.as_ref().and_then(|all| all[partition.0 as usize].as_ref());
                state.push(CompareAndSwap {
                    key: key::watermark(handle.incarnation(), *partition),
                    expected: known.and_then(|known| known.revision),
                    swap: Swap::Put(seal(Kind::Watermark, 1, &StoredWatermark { ms: time.unix_ms() })),
                });
            }
            // A mark that was looked at and is not moved must be the present one still.
            for partition in consulted(placed, watermarks.as_deref()) {
                if advanced.iter().all(|(moved, _)| *moved != partition) {
                    let known = watermarks.as_ref().and_then(|all| all[partition.0 as usize].as_ref());
                    state.push(CompareAndSwap {
                        key: key::watermark(handle.incarnation(), partition),
                        expected: known.and_then(|known| known.revision),
                        swap: Swap::Check,
                    });
                }
            }
            let count = kept.len() as u64;
            let bytes = kept.iter().map(|one| one.record.bytes.len() as u64).sum();
            let partitions = by_partition(&kept, now);
            // Every record was late and nobody's sequence has to be kept: there is nothing to append.
            if partitions.is_empty() && producer.is_none() && !extra.changes() {
                return Ok(Published { late, ..Published::default() });
            }
            let batch = AppendBatch::to_one(handle.log_id.clone(), partitions, state, self.core.durability);
            let outcome = self.core.log.append(batch).await;
            if outcome.is_err() {
                // It may have happened: what is known is read again before the next decision.
                forget(&mut producer, &mut watermarks);
                extra.forget();
            }
            match outcome.map_err(StoreError::from)? {
                AppendOutcome::Appended(appended) => {
                    // The revision that the append gave the entry is not told: it is read when next needed.
                    if let Some((_, known)) = &mut producer {
                        **known = None;
                    }
                    extra.forget();
                    if extra.close {
                        // Seen before it is answered, by who reads and by who follows.
                        self.core.look_again(handle).await;
                    }
                    if let Some(watermarks) = &mut watermarks {
                        for (partition, _) in &advanced {
                            watermarks[partition.0 as usize] = None;
                        }
                    }
                    let producer_seq = producer.as_ref().map(|(stamp, _)| stamp.seq);
                    metrics::counter!("tidegate_stream_appended_records_total").increment(count);
                    metrics::counter!("tidegate_stream_appended_bytes_total").increment(bytes);
                    metrics::counter!("tidegate_stream_late_records_total").increment(late.len() as u64);
                    return Ok(Published { count, appended, duplicate: false, producer_seq, late });
                }
                AppendOutcome::StateMismatch { index: 0, .. } => self.core.refresh(handle).await?,
                AppendOutcome::StateMismatch { .. } | AppendOutcome::OffsetMismatch { .. } => {
                    forget(&mut producer, &mut watermarks);
                    extra.forget();
                }
                AppendOutcome::NoSuchPartition { partition, .. } => {
                    self.core.refresh(handle).await?;
                    handle.check_partition(partition)?;
                    return Err(StreamError::from(StoreError::Corrupt {
                        what: format!("stream {:?} is known and has no log", handle.id.stream.as_str()).into(),
                    })
                    .into());
                }
            }
        }
        Err(StoreError::Contended.into())
    }

    async fn load_producer(
        &self,
        handle: &StreamHandle,
        producer: &str,
    ) -> Result<Known<Option<ProducerState>>, StoreError> {
        let entry = self.core.meta.get(&key::producer(handle.incarnation(), producer)).await?;
        let Some(entry) = entry else {
            // A producer that is new may be the one too many: the ones that ended long ago make room.
            if handle.new_producers.fetch_add(1, Ordering::Relaxed) % PRODUCERS_PER_SWEEP == PRODUCERS_PER_SWEEP - 1 {
                self.forget_idle_producers(handle).await?;
            }
            return Ok(Known { value: None, revision: None });
        };
        let value = entry.value.map(producer::open).transpose()?.filter(|state| !self.is_idle(state));
        Ok(Known { value, revision: Some(entry.revision) })
    }

    /// Whether a producer appended nothing for so long that it is forgotten. A wall clock that stepped back forgets nobody.
    fn is_idle(&self, state: &ProducerState) -> bool {
        let idle_ms = self.core.clock.timestamp().unix_ms().saturating_sub(state.last_ms);
        u64::try_from(idle_ms).is_ok_and(|idle_ms| idle_ms > self.core.settings.freeze().limits_producer_idle_ms())
    }

    /// Removes the entries of producers that are forgotten: one page, beginning where the last sweep ended.
    async fn forget_idle_producers(&self, handle: &StreamHandle) -> Result<(), StoreError> {
        let prefix = key::producers(handle.incarnation());
        let from = handle.swept_to.lock().take().unwrap_or_else(|| prefix.clone());
        let entries = self.core.meta.scan(MetaRange { prefix, from, limit: SCAN_PAGE }).await?;
        if entries.len() == SCAN_PAGE {
            *handle.swept_to.lock() = entries.last().map(|entry| entry.key.clone());
        }
        for entry in entries {
            let Some(value) = entry.value else { continue };
            if self.is_idle(&producer::open(value)?) {
                let swap = CompareAndSwap { key: entry.key, expected: Some(entry.revision), swap: Swap::Delete };
                // One at a time: a mismatch means that this one appends again, and stays.
                self.core.meta.compare_and_swap(vec![swap], Durability::Os).await?;
            }
        }
        Ok(())
    }

    async fn load_watermarks(
        &self,
        handle: &StreamHandle,
        placed: &[Placed],
        watermarks: &mut Watermarks,
    ) -> Result<(), StoreError> {
        watermarks.resize_with(handle.partitions() as usize, || None);
        for one in placed {
            let slot = &mut watermarks[one.partition.0 as usize];
            if slot.is_some() {
                continue;
            }
            let entry = self.core.meta.get(&key::watermark(handle.incarnation(), one.partition)).await?;
            let revision = entry.as_ref().map(|entry| entry.revision);
            let stored: Option<StoredWatermark> = entry
                .and_then(|entry| entry.value)
                .map(|value| unseal(Kind::Watermark, 1, "a watermark", &value))
                .transpose()?;
            *slot = Some(Known { value: stored.map(|stored| Timestamp::from_unix_ms(stored.ms)), revision });
        }
        Ok(())
    }
}

/// What is stored of a stream that takes nothing more.
fn closed(meta: &StreamMeta) -> StreamMeta {
    let mut meta = meta.clone();
    meta.durable.get_or_insert_with(|| DurableMeta::new(crate::durable::JSON)).closed = true;
    meta
}

/// What a producer's rules answer in place of an append.
fn refusal(state: Option<&ProducerState>, stamp: &ProducerStamp) -> Result<Option<Published>, PublishError> {
    match producer::decide(state, stamp) {
        Decision::Append => Ok(None),
        Decision::Duplicate { last_seq, remembered } => {
            let appended = remembered.iter().flat_map(|made| &made.places).map(|(partition, base, next)| {
                AppendedRange { partition: Partition(*partition), base: Offset(*base), next: Offset(*next) }
            });
            Ok(Some(Published {
                count: remembered.as_ref().map_or(0, |made| made.count),
                appended: appended.collect(),
                duplicate: true,
                producer_seq: Some(last_seq),
                late: Vec::new(),
            }))
        }
        Decision::Fenced { current } => Err(PublishError::ProducerFenced { epoch: stamp.epoch, current }),
        Decision::Gap { expected } => Err(PublishError::ProducerGap { expected, received: stamp.seq }),
        Decision::EpochStart => Err(PublishError::ProducerEpochStart { epoch: stamp.epoch, seq: stamp.seq }),
    }
}

fn forget(
    producer: &mut Option<(&ProducerStamp, &mut Option<Known<Option<ProducerState>>>)>,
    watermarks: &mut Option<&mut Watermarks>,
) {
    if let Some((_, known)) = producer {
        **known = None;
    }
    if let Some(watermarks) = watermarks {
        watermarks.clear();
    }
}

fn split_late<'a>(placed: &'a [Placed], watermarks: Option<&Watermarks>) -> (Vec<&'a Placed>, Vec<LateRecord>) {
    let Some(watermarks) = watermarks else { return (placed.iter().collect(), Vec::new()) };
    let (mut kept, mut late) = (Vec::with_capacity(placed.len()), Vec::new());
    for one in placed {
        let watermark = watermarks[one.partition.0 as usize].as_ref().and_then(|known| known.value);
        match (one.event_time, watermark) {
            (Some(event_time), Some(watermark)) if is_late(event_time, Some(watermark)) => {
                late.push(LateRecord { index: one.index, partition: one.partition, event_time, watermark });
            }
            _ => kept.push(one),
        }
    }
    (kept, late)
}

/// The partitions whose watermarks say of a record whether it is late.
fn consulted(placed: &[Placed], watermarks: Option<&Watermarks>) -> BTreeSet<Partition> {
    let timed = placed.iter().filter(|one| watermarks.is_some() && one.event_time.is_some());
    timed.map(|one| one.partition).collect()
}

/// The watermarks that these records move.
fn advances(kept: &[&Placed], watermarks: Option<&Watermarks>) -> Vec<(Partition, Timestamp)> {
    let Some(watermarks) = watermarks else { return Vec::new() };
    let mut newest: BTreeMap<Partition, Timestamp> = BTreeMap::new();
    for one in kept {
        if let Some(time) = one.event_time {
            let before = newest.get(&one.partition).copied();
            newest.extend(advance(before, std::iter::once(time)).map(|time| (one.partition, time)));
        }
    }
    let known = |partition: Partition| watermarks[partition.0 as usize].as_ref().and_then(|known| known.value);
    newest.into_iter().filter(|(partition, time)| known(*partition).is_none_or(|known| *time > known)).collect()
}

fn by_partition(kept: &[&Placed], append_time: Timestamp) -> Vec<PartitionAppend> {
    let mut by_partition: BTreeMap<Partition, Vec<AppendRecord>> = BTreeMap::new();
    for one in kept {
        by_partition.entry(one.partition).or_default().push(one.record.clone());
    }
    by_partition
        .into_iter()
        .map(|(partition, records)| PartitionAppend { partition, expected_next: None, records, append_time })
        .collect()
}
