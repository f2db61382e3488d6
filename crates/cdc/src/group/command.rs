//! What the machines are told and what they answer. Plain values: the machines decide, the group's task does.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_core::Timestamp;
use tidegate_core::position::{Offset, Partition};

use super::cell::Cell;
use super::error::GroupError;
use super::request::{Assignment, Joined, MemberInfo, MemberStamp, Settle, Settled};
use super::spec::{GroupMode, OnGap};
use crate::error::StreamError;
use crate::record::DeliveryStamp;

/// A command to a group.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// Time has passed.
    Tick,
    Join {
        /// Drawn by the caller.
        member: Box<str>,
        client: Box<str>,
        member_max: u64,
    },
    Heartbeat {
        member: Box<str>,
        generation: u64,
    },
    Leave {
        member: Box<str>,
    },
    /// Where to read.
    Plan {
        stamp: Option<MemberStamp>,
        limit: u32,
        in_flight_max: u64,
    },
    /// Ordered: what was read is handed out.
    Deliver {
        stamp: Option<MemberStamp>,
        generation: u64,
        moves: Vec<Move>,
    },
    /// Ordered: what was handed out did not reach the caller.
    Rewind {
        generation: u64,
        moves: Vec<Move>,
    },
    /// A poll of a group that stops at gaps found one here.
    Stopped {
        partition: u32,
        at: u64,
    },
    Commit {
        stamp: Option<MemberStamp>,
        positions: BTreeMap<u32, u64>,
    },
    /// Shared: what was read is handed out.
    Claim(Claim),
    /// Shared: what was handed out did not reach the caller.
    Unclaim {
        ids: Vec<Box<str>>,
    },
    Settle(Settle),
    /// Shared: these went to the dead letters; those are gone from the log.
    Bury {
        buried: Vec<(u32, u64)>,
        gone: Vec<(u32, u64)>,
    },
    Seek {
        positions: BTreeMap<u32, u64>,
    },
    Describe,
}

/// A partition's position moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) partition: u32,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Records of a shared group to hand out.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) stamp: Option<MemberStamp>,
    pub(crate) generation: u64,
    /// Again.
    pub(crate) again: Vec<(u32, u64)>,
    /// They were to be delivered again and are gone.
    pub(crate) gone: Vec<(u32, u64)>,
    pub(crate) fresh: Vec<Fresh>,
    pub(crate) in_flight_max: u64,
}

/// Records that are handed out for the first time: those of `offsets`, all others from `from` up to `to` are gone.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    pub(crate) partition: u32,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) offsets: Vec<u64>,
}

/// Where to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) mode: GroupMode,
    pub(crate) on_gap: OnGap,
    pub(crate) session_ms: u64,
    pub(crate) generation: u64,
    /// Counts polls: who comes first.
    pub(crate) turn: u64,
    /// Partitions with their positions.
    pub(crate) places: Vec<(u32, u64)>,
    /// Those of them that stood at a gap where the group stops.
    pub(crate) stopped: BTreeSet<u32>,
    /// Shared: to be delivered again, the one that waits longest first.
    pub(crate) ready: Vec<(u32, u64)>,
    /// Shared: how many may be delivered for the first time.
    pub(crate) room: u64,
}

/// What a group is, as its machine knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) members: Vec<MemberInfo>,
    /// A partition each: everything before is done.
    pub(crate) committed: Vec<u64>,
    /// A partition each: up to where records were delivered.
    pub(crate) delivered: Vec<u64>,
    /// A partition each, of a shared group: delivered and not done.
    pub(crate) outstanding: Vec<u64>,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Joined(Joined),
    Assigned(Assignment),
    Planned(Plan),
    Delivered,
    /// Stamps in the order of `again`, then of each part of `fresh`.
    Claimed(Vec<DeliveryStamp>),
    /// What was planned is no longer so: plan again.
    LostRace,
    Positions(BTreeMap<u32, u64>),
    Settled(Settled),
    Described(Snapshot),
    Refused(Refusal),
}

/// Why a command was refused. It changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    Fenced { generation: u64 },
    UnknownMember { member: Box<str> },
    Regression { partition: u32, committed: u64, given: u64 },
    BeyondDelivered { partition: u32, delivered: u64, given: u64 },
    NoPartition { partition: u32, partitions: u32 },
    MemberQuota { limit: u64, current: u64 },
    WrongMode { mode: GroupMode },
}

impl Refusal {
    /// The error that the caller gets; `stream` is the name of the group's stream.
    pub(crate) fn into_error(self, stream: &tidegate_core::id::Name) -> GroupError {
        match self {
            Self::Fenced { generation } => GroupError::Fenced { generation },
            Self::UnknownMember { member } => GroupError::UnknownMember { member },
            Self::Regression { partition, committed, given } => GroupError::Regression {
                partition: Partition(partition),
                committed: Offset(committed),
                given: Offset(given),
            },
            Self::BeyondDelivered { partition, delivered, given } => GroupError::BeyondDelivered {
                partition: Partition(partition),
                delivered: Offset(delivered),
                given: Offset(given),
            },
            Self::NoPartition { partition, partitions } => {
                let partition = Partition(partition);
                StreamError::PartitionNotFound { name: stream.clone(), partition, partitions }.into()
            }
            Self::MemberQuota { limit, current } => GroupError::MemberQuota { limit, current },
            Self::WrongMode { mode } => GroupError::WrongMode { mode },
        }
    }
}

/// The cells that commands changed, and how durable that has to be.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) cells: BTreeSet<Cell>,
    /// Somebody is answered that it is durable; otherwise it has to survive the process.
    pub(crate) durable: bool,
}

impl Touched {
    /// A cell changed, and the answer promises that it stays so.
    pub(crate) fn durable(&mut self, cell: Cell) {
        self.cells.insert(cell);
        self.durable = true;
    }

    /// A cell changed, which must survive the process.
    pub(crate) fn handed_out(&mut self, cell: Cell) {
        self.cells.insert(cell);
    }
}

/// Time, as a command comes with it: one for deadlines, one for people.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) moment: tidegate_core::Moment,
    pub(crate) wall: Timestamp,
}
