//! Change streams as a client sees them: what they are, what is in them, and the records of a read. It takes what a later
//! server adds without complaint, and keeps every number and every value as it came.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What a stream is to be. What is not said is the server's default.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StreamSpec {
    /// How many partitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// How much it keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionSpec>,
    /// `none` or `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compaction: Option<&'static str>,
    /// `allow` or `drop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<&'static str>,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// How much a stream keeps; what is not said is not bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionSpec {
    /// Records a partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
    /// Their age, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Bytes a partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A stream as the server describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct StreamInfo {
    /// Its name.
    pub name: String,
    /// Its partitions with their bounds, in order.
    pub partitions: Vec<PartitionInfo>,
    /// How much it keeps.
    #[serde(default)]
    pub retention: Option<RetentionSpec>,
    /// `none` or `key`.
    #[serde(default)]
    pub compaction: Option<String>,
    /// `allow` or `drop`.
    #[serde(default)]
    pub late: Option<String>,
    /// In words.
    #[serde(default)]
    pub description: Option<String>,
}

impl StreamInfo {
    /// The sum over its partitions.
    #[must_use]
    pub fn sum(&self, of: fn(&PartitionInfo) -> u64) -> u64 {
        self.partitions.iter().fold(0, |sum, partition| sum.saturating_add(of(partition)))
    }
}

/// A partition's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct PartitionInfo {
    /// Which.
    pub partition: u32,
    /// The first offset that is still there.
    pub earliest: u64,
    /// The offset that the next record gets.
    pub next: u64,
    /// Bytes kept.
    #[serde(default)]
    pub bytes: u64,
}

/// `GET /v1/streams`.
#[derive(Debug, Clone, Deserialize)]
pub struct StreamList {
    /// The streams.
    pub streams: Vec<StreamInfo>,
    /// Where the next page begins, if there is one.
    #[serde(default)]
    pub next: Option<String>,
}

/// What an append did.
#[derive(Debug, Deserialize)]
pub struct Appended {
    /// How many records.
    #[serde(default)]
    pub count: u64,
    /// Where they lie.
    #[serde(default)]
    pub appended: Vec<AppendedRange>,
    /// Records that came too late and were left out, as the stream says.
    #[serde(default)]
    pub late: Vec<serde::de::IgnoredAny>,
}

/// Where records came to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendedRange {
    /// Which partition.
    pub partition: u32,
    /// The first record's offset.
    pub base: u64,
    /// The offset after the last.
    pub next: u64,
}

/// Records that a reader will never get: `from` up to, and not including, `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapInfo {
    /// Whose.
    pub partition: u32,
    /// The first missing offset.
    pub from: u64,
    /// The first offset that is there again.
    pub to: u64,
    /// `retention`, `compaction` or `trim`.
    pub reason: String,
}

/// A record of a read. Keys and values are the JSON texts that came.
#[derive(Debug, Clone, Deserialize)]
pub struct Record<'a> {
    /// Whose.
    pub partition: u32,
    /// Its place.
    pub offset: u64,
    /// `insert`, `update`, `delete`, `truncate` or `message`.
    pub op: &'a str,
    /// The key; absent = none.
    #[serde(default, borrow)]
    pub key: Option<&'a RawValue>,
    /// The value.
    #[serde(borrow)]
    pub value: &'a RawValue,
    /// Headers, a JSON object.
    #[serde(default, borrow)]
    pub headers: Option<&'a RawValue>,
    /// When it was appended.
    #[serde(default)]
    pub append_time: Option<&'a str>,
    /// In a shared group: what is acknowledged.
    #[serde(default, borrow)]
    pub delivery: Option<Delivery<'a>>,
}

/// A delivery of a record to a shared group.
#[derive(Debug, Clone, Deserialize)]
pub struct Delivery<'a> {
    /// What an acknowledgement names; its form is the server's.
    #[serde(borrow)]
    pub id: &'a RawValue,
    /// How often it was delivered, this time included.
    #[serde(default)]
    pub count: u64,
}

/// The record in a JSON text.
///
/// # Errors
/// The text is no record.
pub fn record_of(json: &str) -> Result<Record<'_>, serde_json::Error> {
    serde_json::from_str(json)
}

/// What a consumer group is to be. What is not said is the server's default.
#[derive(Debug, Clone, Default, Serialize)]
pub struct GroupSpec {
    /// `ordered` or `shared`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    /// `earliest` or `latest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<&'static str>,
    /// A member that is silent for so long is gone, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_ms: Option<u64>,
    /// What is not acknowledged in this time is delivered again, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack_timeout_ms: Option<u64>,
    /// How often a record is delivered before it goes to the dead letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_deliveries: Option<u64>,
    /// The stream of the dead letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<String>,
    /// `report` or `stop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_gap: Option<&'static str>,
}

/// A group as the server describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct GroupInfo {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// `ordered` or `shared`.
    #[serde(default)]
    pub mode: String,
    /// Its generation.
    #[serde(default)]
    pub generation: u64,
    /// Who is in it.
    #[serde(default)]
    pub members: Vec<MemberInfo>,
    /// Where it stands.
    #[serde(default)]
    pub positions: Vec<PositionInfo>,
}

impl GroupInfo {
    /// Records that it has not committed, in all partitions.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.positions.iter().fold(0, |lag, position| lag.saturating_add(position.lag.unwrap_or(0)))
    }

    /// Whether each record is acknowledged by itself.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.mode == "shared"
    }
}

/// A member of a group.
#[derive(Debug, Clone, Deserialize)]
pub struct MemberInfo {
    /// Its id.
    pub member: String,
    /// What it calls itself.
    #[serde(default)]
    pub client: String,
    /// The partitions that are its own.
    #[serde(default)]
    pub partitions: Vec<u32>,
    /// When it was last heard of.
    #[serde(default)]
    pub last_seen: Option<String>,
}

/// Where a group stands in a partition.
#[derive(Debug, Clone, Deserialize)]
pub struct PositionInfo {
    /// Which.
    pub partition: u32,
    /// The offset after the last committed record.
    #[serde(default)]
    pub committed: Option<u64>,
    /// The offset that the next record gets.
    #[serde(default)]
    pub next: Option<u64>,
    /// The first offset that is still there.
    #[serde(default)]
    pub earliest: Option<u64>,
    /// How many records are not committed.
    #[serde(default)]
    pub lag: Option<u64>,
}

/// `GET /v1/streams/{s}/groups`.
#[derive(Debug, Clone, Deserialize)]
pub struct GroupList {
    /// The groups.
    pub groups: Vec<GroupInfo>,
    /// Where the next page begins, if there is one.
    #[serde(default)]
    pub next: Option<String>,
}

/// Offsets by partition; each is that of the NEXT record.
pub type Positions = BTreeMap<u32, u64>;
