//! What is asked of a group and what it answers. Plain values: nothing here decides anything.

use std::collections::BTreeMap;

use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::position::Gap;

use super::spec::GroupSpec;
use crate::record::{DeliveryStamp, Record};

/// Whether a group was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreatedGroup {
    /// It is new.
    New,
    /// The same one was there.
    Existed,
}

/// Who asks, and what it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStamp {
    /// The member, as [`Joined`] told.
    pub member: Box<str>,
    /// The group's generation as the member knows it.
    pub generation: u64,
}

/// What to poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollRequest {
    /// Who asks. An ordered group that has members answers nobody else; a shared one answers anybody.
    pub member: Option<MemberStamp>,
    /// Records at most, from 1 to `limits.read_max_records`.
    pub limit: u32,
    /// Bytes at most, from 1 to `limits.read_max_bytes`; a first record that is larger is given all the same.
    pub max_bytes: u64,
    /// How long to wait where nothing is there, up to `limits.wait_max_ms`.
    pub wait_ms: u64,
}

/// What a poll gave.
#[derive(Debug, Clone)]
pub struct Polled {
    /// The records, each partition's in order.
    pub records: Vec<PolledRecord>,
    /// Where records are gone.
    pub gaps: Vec<Gap>,
    /// Of each partition that moved, the offset after what was delivered or reported as a gap: what to commit.
    pub delivered: BTreeMap<u32, u64>,
    /// The group's generation.
    pub generation: u64,
}

/// A record that was delivered.
#[derive(Debug, Clone)]
pub struct PolledRecord {
    /// The record.
    pub record: Record,
    /// What to acknowledge, where the group is shared.
    pub delivery: Option<DeliveryStamp>,
}

/// What became of records of a shared group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settle {
    /// Who says so; may be left out.
    pub member: Option<MemberStamp>,
    /// Deliveries that are done.
    pub ack: Vec<Box<str>>,
    /// Deliveries that failed.
    pub nack: Vec<Nack>,
    /// Deliveries that need more time.
    pub extend: Vec<Extend>,
}

/// A delivery that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// Which.
    pub id: Box<str>,
    /// When to deliver it again, from now, up to [`SPAN_MS_MAX`](super::spec::SPAN_MS_MAX).
    pub delay_ms: u64,
}

/// A delivery that needs more time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extend {
    /// Which.
    pub id: Box<str>,
    /// How long, from now: 1 to [`SPAN_MS_MAX`](super::spec::SPAN_MS_MAX). It never shortens what is left.
    pub ms: u64,
}

/// What came of a [`Settle`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settled {
    /// Records that are done now.
    pub acked: u64,
    /// Records that will be delivered again, or went to the dead letters.
    pub nacked: u64,
    /// Records that have more time now.
    pub extended: u64,
    /// Deliveries that are no longer held: delivered again since, settled before, or never known. Nothing was done about them.
    pub unknown: Vec<Box<str>>,
}

/// Where to move a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeekTo {
    /// These partitions to these offsets, each from its earliest to its tail; the others stay.
    Positions(BTreeMap<u32, u64>),
    /// To the first record that is there.
    Earliest,
    /// To the tail.
    Latest,
    /// To the first record that was appended at this time or later.
    Time(Timestamp),
}

/// A member that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its name from now on: 32 hex digits.
    pub member: Box<str>,
    /// The group's generation.
    pub generation: u64,
    /// The partitions that it holds. Of a shared group none: its records go to whoever polls.
    pub partitions: Vec<u32>,
    /// It must give a sign of life (a heartbeat, a poll, a commit) more often than this.
    pub session_ms: u64,
}

/// What a member holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The group's generation.
    pub generation: u64,
    /// The partitions.
    pub partitions: Vec<u32>,
}

/// What a group is now.
#[derive(Debug, Clone)]
pub struct GroupDescription {
    /// Its name.
    pub name: Name,
    /// What it was created as.
    pub spec: GroupSpec,
    /// Its generation: grows with every change of the assignment and every seek.
    pub generation: u64,
    /// Its members.
    pub members: Vec<MemberInfo>,
    /// Where it is.
    pub positions: Vec<PositionInfo>,
    /// Of a shared group: records that were delivered and are not acknowledged.
    pub in_flight: Option<u64>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its name.
    pub member: Box<str>,
    /// What it called itself.
    pub client: Box<str>,
    /// The partitions that it holds.
    pub partitions: Vec<u32>,
    /// Its last sign of life.
    pub last_seen: Timestamp,
}

/// Where a group is in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionInfo {
    /// Which.
    pub partition: u32,
    /// Every record before it is done.
    pub committed: u64,
    /// The partition's tail.
    pub next: u64,
    /// The first record that is there.
    pub earliest: u64,
    /// Records that are there and not done.
    pub lag: u64,
}
