//! Records that were delivered as often as they may go to the group's stream of dead letters, in the same atomic step in which
//! the group forgets them: none is lost, none is there twice. Where that fails they stay and are tried again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate_core::Timestamp;
use tidegate_core::failure::Failure as _;
use tidegate_core::id::Name;
use tidegate_core::port::{AppendBatch, AppendOutcome, PartitionAppend, ReadBounds, StreamId};
use tidegate_core::position::{Offset, Partition, SourcePosition};
use tidegate_core::record::{Operation, Origin};

use super::actor::Actor;
use super::cell::corrupt;
use super::command::{Command, Outcome, Touched};
use super::error::GroupError;
use crate::error::{StoreError, StreamError};
use crate::handle::StreamHandle;
use crate::partition::partition_of_key;
use crate::record::{Item, NewRecord, Record};
use crate::service::Core;
use crate::stored::Stored;

/// Records that go to the dead letters in one step.
pub(crate) const BURIAL_MAX: usize = 64;
/// Bytes of such records, beyond which the step takes no more than one.
const BURIAL_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// How long to wait after the first failure; after each further one twice as long.
const BURIAL_PAUSE: Duration = Duration::from_secs(1);
/// How long to wait at most.
const BURIAL_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Records that were read to be buried, or why they were not.
pub(crate) type Burial = Result<Letters, GroupError>;

/// Records on their way to the dead letters.
pub(crate) struct Letters {
    target: Arc<StreamHandle>,
    found: Vec<(Record, u32)>,
    gone: Vec<(u32, u64)>,
}

impl Actor {
    /// Begins to read what is to be buried, if there is anything and it is time.
    pub(crate) fn plan_burial(&mut self) {
        let Some(loaded) = &self.loaded else { return };
        if self.burial.is_some() || self.handle.core.clock.now() < self.bury_at {
            return;
        }
        let dead = loaded.machine.dead(BURIAL_MAX);
        let Some(name) = loaded.machine.head().spec.dead_letter.clone() else { return };
        if dead.is_empty() {
            return;
        }
        let handle = Arc::clone(&self.handle);
        self.burial = Some(Box::pin(async move { read(&handle, name, dead).await }));
    }

    /// Buries what was read.
    pub(crate) async fn bury(&mut self, burial: Burial) {
        let failure = match burial {
            Ok(letters) => self.bury_letters(letters).await.err(),
            Err(error) => Some(error),
        };
        match failure {
            None => self.bury_failures = 0,
            Some(error) => {
                counter!("tidegate_group_dead_letter_failures_total").increment(1);
                tracing::warn!(
                    %error, code = error.code(), stream = %self.handle.id.stream, group = %self.group,
                    "records could not go to the dead letters; they stay and are tried again",
                );
                let pause = BURIAL_PAUSE.saturating_mul(1 << self.bury_failures.min(6)).min(BURIAL_PAUSE_MAX);
                self.bury_failures = self.bury_failures.saturating_add(1);
                self.bury_at = self.handle.core.clock.now().after(pause);
            }
        }
    }

    async fn bury_letters(&mut self, letters: Letters) -> Result<(), GroupError> {
        let Letters { target, found, gone } = letters;
        if self.load().await.is_err() {
            // The next command finds out why.
            return Ok(());
        }
        let now = self.now();
        let Some(loaded) = &mut self.loaded else { return Ok(()) };
        let buried = found.iter().map(|(record, _)| (record.partition.0, record.offset.0)).collect();
        let mut touched = Touched::default();
        if loaded.machine.apply(now, &Command::Bury { buried, gone }, &mut touched) != Outcome::Done {
            // Somebody sought meanwhile: what is dead still is read again.
            return Ok(());
        }
        self.link.wake();
        if found.is_empty() {
            return Ok(());
        }
        let core = Arc::clone(&self.handle.core);
        let mut change = loaded.change(&self.handle, &self.group, &touched);
        let partitions = letters_by_partition(&target, &found, &self.handle, &self.group, now.wall);
        let partitions = partitions.inspect_err(|_| self.forget())?;
        let at_target = change.swaps.len();
        change.swaps.push(target.unchanged());
        let (stream, durability) = (target.log_id.clone(), core.durability);
        let batch = AppendBatch::to_one(stream, partitions, change.swaps.clone(), durability);
        change.swaps.truncate(at_target);
        match core.log.append(batch).await {
            Ok(AppendOutcome::Appended(_)) => {
                counter!("tidegate_group_dead_letters_total").increment(found.len() as u64);
                let Some(loaded) = &mut self.loaded else { return Ok(()) };
                if !matches!(loaded.look_up(&self.handle, &change).await, Ok(true)) {
                    self.forget();
                }
                Ok(())
            }
            Ok(outcome) => {
                self.forget();
                match outcome {
                    AppendOutcome::StateMismatch { index: 0, .. } => core.refresh(&self.handle).await?,
                    AppendOutcome::StateMismatch { index, .. } if index == at_target => core.refresh(&target).await?,
                    AppendOutcome::NoSuchPartition { .. } => core.refresh(&target).await?,
                    _ => {}
                }
                // Somebody else was there first: what is dead still is tried again.
                Err(StoreError::Contended.into())
            }
            Err(error) => {
                self.forget();
                Err(StoreError::from(error).into())
            }
        }
    }
}

async fn read(handle: &Arc<StreamHandle>, name: Name, dead: Vec<(u32, u64, u32)>) -> Burial {
    let id = StreamId { tenant: handle.id.tenant.clone(), stream: name.clone() };
    let target = match Core::find(&handle.core, &id).await {
        Ok(target) => target,
        Err(StreamError::NotFound { name }) => return Err(GroupError::DeadLetterNotFound { name }),
        Err(error) => return Err(error.into()),
    };
    if target.meta().durable.is_some() {
        return Err(GroupError::DeadLetterKind { name });
    }
    let (mut found, mut gone, mut bytes) = (Vec::new(), Vec::new(), 0_u64);
    for (partition, offset, count) in dead {
        let one = ReadBounds { records: 1, bytes: 1 };
        let (items, _) = handle.read(Partition(partition), Offset(offset), one).await?;
        match items.into_iter().next() {
            Some(Item::Record(record)) => {
                bytes = bytes.saturating_add(record.bytes());
                if !found.is_empty() && bytes > BURIAL_MAX_BYTES {
                    break;
                }
                found.push((record, count));
            }
            Some(Item::Gap(_)) => gone.push((partition, offset)),
            None => return Err(corrupt("a delivered record is beyond the tail").into()),
        }
    }
    Ok(Letters { target, found, gone })
}

fn letters_by_partition(
    target: &StreamHandle,
    found: &[(Record, u32)],
    source: &StreamHandle,
    group: &Name,
    append_time: Timestamp,
) -> Result<Vec<PartitionAppend>, StoreError> {
    let partitions = target.partitions();
    let turn = Partition(target.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % partitions.max(1));
    let mut by_partition: BTreeMap<Partition, PartitionAppend> = BTreeMap::new();
    for (record, count) in found {
        let letter = letter(record, *count, &source.id.stream, group)?;
        let partition = letter.key.as_ref().map_or(turn, |key| partition_of_key(key, partitions));
        let append = by_partition.entry(partition).or_insert_with(|| PartitionAppend {
            partition,
            expected_next: None,
            records: Vec::new(),
            append_time,
        });
        // Without a key for compaction: one dead letter never takes the place of another.
        append.records.push(letter.to_append(false));
    }
    Ok(by_partition.into_values().collect())
}

/// The JSON texts of a stored change.
#[derive(Deserialize)]
struct ChangeText<'a> {
    op: Operation,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(borrow)]
    before: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: BTreeMap<String, &'a RawValue>,
    event_time: Option<Timestamp>,
}

#[derive(Deserialize)]
struct OriginText {
    position: SourcePosition,
    tx: Box<str>,
    index: u64,
}

/// The record as a dead letter: what it was, and in its headers where it comes from.
fn letter(record: &Record, count: u32, stream: &Name, group: &Name) -> Result<NewRecord, StoreError> {
    let unreadable = |_| corrupt("a record is no JSON");
    let copy = |raw: &RawValue| Bytes::copy_from_slice(raw.get().as_bytes());
    let text = match &record.stored {
        Stored::Change(change) => [b"{", change.text(), b"}"].concat(),
        Stored::Raw(_) => b"{\"op\":\"message\",\"value\":null,\"headers\":{}}".to_vec(),
    };
    let change: ChangeText<'_> = serde_json::from_slice(&text).map_err(unreadable)?;
    let origin = [
        ("tidegate-origin-stream", serde_json::value::to_raw_value(stream.as_str())),
        ("tidegate-origin-partition", serde_json::value::to_raw_value(&record.partition.0)),
        ("tidegate-origin-offset", serde_json::value::to_raw_value(&record.offset.0)),
        ("tidegate-origin-group", serde_json::value::to_raw_value(group.as_str())),
        ("tidegate-origin-deliveries", serde_json::value::to_raw_value(&count)),
    ];
    let mut added = Vec::with_capacity(origin.len());
    for (name, value) in origin {
        added.push((name.to_owned(), value.map_err(unreadable)?));
    }
    let mut headers = change.headers;
    headers.extend(added.iter().map(|(name, value)| (name.clone(), &**value)));
    let source = match &record.stored {
        Stored::Change(change) => serde_json::from_slice::<Option<OriginText>>(change.source()).map_err(unreadable)?,
        Stored::Raw(_) => None,
    };
    Ok(NewRecord {
        operation: change.op,
        key: change.key.map(copy),
        // Of a message of a byte stream its JSON form.
        value: match &record.stored {
            Stored::Change(_) => copy(change.value),
            Stored::Raw(_) => record.value(),
        },
        before: change.before.map(copy),
        headers: Some(serde_json::to_vec(&headers).map_err(unreadable)?.into()),
        event_time: change.event_time,
        partition: None,
        collection: None,
        source: source.map(|origin| Origin { position: origin.position, transaction: origin.tx, index: origin.index }),
    })
}
