//! Making a stream: the log first, then the entry that makes it known. Of creations at the same moment one wins, and the others
//! take back only what is their own.

use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, AppendRecord, CompareAndSwap, Entropy, PartitionAppend, StreamId, Swap, SwapOutcome,
    Trim,
};
use tidegate_core::position::Partition;
use tidegate_core::principal::Principal;
use tidegate_frame::envelope::Kind;

use super::{ATTEMPTS_MAX, StreamService};
use crate::error::{CreateError, StoreError, StreamError};
use crate::handle::{log_id, seal};
use crate::key::{self, Incarnation};
use crate::spec::{DESCRIPTION_MAX_BYTES, StreamMeta, StreamSpec};

/// Whether a stream was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreatedStream {
    /// It is new.
    New,
    /// The same one was there.
    Existed,
}

impl StreamService {
    /// Creates a stream, durable when answered. The same one again is [`CreatedStream::Existed`].
    pub async fn create(
        &self,
        principal: &Principal,
        name: &Name,
        spec: &StreamSpec,
    ) -> Result<CreatedStream, CreateError> {
        let settings = self.core.settings.freeze();
        check(spec, settings.limits_partition_max())?;
        let id = Self::id(&principal.owner, name)?;
        for _ in 0..ATTEMPTS_MAX {
            match self.core.load(&id).await.map_err(StreamError::from)? {
                Some((meta, revision)) if meta.removing => {
                    // What a crash left of a removal.
                    self.clear_away(&id, &meta, Some(revision)).await.map_err(StreamError::from)?;
                }
                Some((meta, _)) => {
                    return match difference(&meta, spec) {
                        None => Ok(CreatedStream::Existed),
                        Some(difference) => {
                            Err(CreateError::Exists { name: name.clone(), difference: difference.into() })
                        }
                    };
                }
                None => {
                    let incarnation = draw(self.core.entropy.as_ref())?;
                    let now = self.core.clock.timestamp();
                    let meta = StreamMeta::new(spec, incarnation, now, settings.limits_tombstone_grace_ms());
                    if self.establish(&id, &meta, Vec::new(), Vec::new()).await? {
                        return Ok(CreatedStream::New);
                    }
                }
            }
        }
        Err(StreamError::from(StoreError::Contended).into())
    }

    /// Makes the log of a stream with its first records, and its entry. `false`: somebody else was quicker, or one of
    /// `conditions` does not hold.
    pub(crate) async fn establish(
        &self,
        id: &StreamId,
        meta: &StreamMeta,
        conditions: Vec<CompareAndSwap>,
        records: Vec<AppendRecord>,
    ) -> Result<bool, CreateError> {
        self.core.counts.check(&self.core, &id.tenant).await?;
        let log_id = log_id(id, meta.incarnation);
        // The name in the log is new with each attempt, so it cannot be there. A crash before the entry is written leaves a
        // log without records that nobody knows: some hundred bytes.
        self.core.log.create(&log_id, &meta.log_spec()).await.map_err(StreamError::store)?;
        let value = seal(Kind::Stream, StreamMeta::SCHEMA_VERSION, meta);
        let mut state = vec![CompareAndSwap { key: key::stream(id), expected: None, swap: Swap::Put(value) }];
        state.extend(conditions);
        let made = if records.is_empty() {
            let outcome = self.core.meta.compare_and_swap(state, self.core.durability).await;
            matches!(outcome.map_err(StreamError::store)?, SwapOutcome::Swapped(_))
        } else {
            let append_time = Timestamp::from_unix_ms(meta.created_at_ms);
            let append = PartitionAppend { partition: Partition(0), expected_next: None, records, append_time };
            let durability = self.core.durability;
            let batch = AppendBatch::to_one(log_id.clone(), vec![append], state, durability);
            let outcome = self.core.log.append(batch).await;
            matches!(outcome.map_err(StreamError::store)?, AppendOutcome::Appended(_))
        };
        if made {
            self.core.counts.add(&id.tenant);
        } else {
            self.core.log.trim(&log_id, Trim::Stream).await.map_err(StreamError::store)?;
        }
        Ok(made)
    }
}

/// A new life for a stream.
pub(crate) fn draw(entropy: &dyn Entropy) -> Result<Incarnation, CreateError> {
    let mut bits = [0; 16];
    entropy.fill(&mut bits)?;
    Ok(Incarnation(bits))
}

fn check(spec: &StreamSpec, partition_max: u64) -> Result<(), CreateError> {
    if spec.partitions == 0 || u64::from(spec.partitions) > partition_max {
        return Err(CreateError::Partitions { given: spec.partitions, limit: partition_max });
    }
    let retention =
        [("records", spec.retention.records), ("age_ms", spec.retention.age_ms), ("bytes", spec.retention.bytes)];
    if let Some((field, _)) = retention.into_iter().find(|(_, bound)| *bound == Some(0)) {
        return Err(CreateError::Retention { field });
    }
    let bytes = spec.description.as_ref().map_or(0, |text| text.len());
    if bytes > DESCRIPTION_MAX_BYTES {
        return Err(CreateError::Description { bytes, limit_bytes: DESCRIPTION_MAX_BYTES });
    }
    Ok(())
}

/// What parts a stream that is there from the one that is asked for, in the words of the request.
fn difference(meta: &StreamMeta, asked: &StreamSpec) -> Option<String> {
    let there = meta.spec();
    if meta.durable.as_ref().is_some_and(|durable| durable.soft_deleted) {
        return Some("it was removed, and other streams that were forked from it keep its name".to_owned());
    }
    if there == *asked {
        return None;
    }
    let mut parts = Vec::new();
    if there.partitions != asked.partitions {
        parts.push(format!("partitions is {}, not {}", there.partitions, asked.partitions));
    }
    if there.retention != asked.retention {
        parts.push("retention is another".to_owned());
    }
    if there.compact_by_key != asked.compact_by_key {
        parts.push("compaction is another".to_owned());
    }
    if there.late != asked.late {
        parts.push("late is another".to_owned());
    }
    if there.description != asked.description {
        parts.push("description is another".to_owned());
    }
    Some(parts.join(", "))
}
