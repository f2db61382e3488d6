//! What a stream is: the specification that its creator gave, and what is stored of it. It never holds records.

use serde::{Deserialize, Serialize};
use tidegate_core::Timestamp;
use tidegate_core::port::{Compaction, LogSpec, Retention};
use tidegate_core::position::Offset;

use crate::durable::DurableMeta;
use crate::key::Incarnation;

/// What becomes of a record whose event time is before its partition's watermark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatePolicy {
    /// It is appended like any other.
    #[default]
    Allow,
    /// It is not appended, and the answer to its append says so, with the watermark that it missed. At the watermark is in time.
    Drop,
}

/// What a stream is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    /// How many partitions, from 1 to `limits.partition_max`.
    pub partitions: u32,
    /// How much each partition keeps.
    pub retention: Retention,
    /// Whether a later record of a key takes the place of an earlier one.
    pub compact_by_key: bool,
    /// What becomes of late records.
    pub late: LatePolicy,
    /// A text for people, at most 4,096 bytes.
    pub description: Option<Box<str>>,
}

/// The most bytes of a description.
pub(crate) const DESCRIPTION_MAX_BYTES: usize = 4_096;

impl Default for StreamSpec {
    fn default() -> Self {
        Self {
            partitions: 1,
            retention: Retention::default(),
            compact_by_key: false,
            late: LatePolicy::default(),
            description: None,
        }
    }
}

/// What is stored of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamMeta {
    pub(crate) incarnation: Incarnation,
    pub(crate) created_at_ms: i64,
    pub(crate) partitions: u32,
    pub(crate) retention_records: Option<u64>,
    pub(crate) retention_age_ms: Option<u64>,
    pub(crate) retention_bytes: Option<u64>,
    /// The grace of tombstones, where the stream is compacted.
    pub(crate) tombstone_grace_ms: Option<u64>,
    pub(crate) late: LatePolicy,
    pub(crate) description: Option<Box<str>>,
    /// The first offset of each partition.
    pub(crate) start: u64,
    /// The stream is being removed: what is left of it is to be cleared away.
    pub(crate) removing: bool,
    /// What it is in the Durable Streams protocol, if it was made there.
    pub(crate) durable: Option<DurableMeta>,
}

impl StreamMeta {
    pub(crate) const SCHEMA_VERSION: u16 = 1;

    pub(crate) fn new(spec: &StreamSpec, incarnation: Incarnation, now: Timestamp, tombstone_grace_ms: u64) -> Self {
        Self {
            incarnation,
            created_at_ms: now.unix_ms(),
            partitions: spec.partitions,
            retention_records: spec.retention.records,
            retention_age_ms: spec.retention.age_ms,
            retention_bytes: spec.retention.bytes,
            tombstone_grace_ms: spec.compact_by_key.then_some(tombstone_grace_ms),
            late: spec.late,
            description: spec.description.clone(),
            start: 0,
            removing: false,
            durable: None,
        }
    }

    pub(crate) fn spec(&self) -> StreamSpec {
        StreamSpec {
            partitions: self.partitions,
            retention: Retention {
                records: self.retention_records,
                age_ms: self.retention_age_ms,
                bytes: self.retention_bytes,
            },
            compact_by_key: self.tombstone_grace_ms.is_some(),
            late: self.late,
            description: self.description.clone(),
        }
    }

    pub(crate) fn log_spec(&self) -> LogSpec {
        LogSpec {
            partitions: self.partitions,
            start: Offset(self.start),
            retention: self.spec().retention,
            compaction: self.tombstone_grace_ms.map(|tombstone_grace_ms| Compaction { tombstone_grace_ms }),
        }
    }
}
