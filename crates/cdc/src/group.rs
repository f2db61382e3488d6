//! Consumer groups: readers of a stream that share the work, and where they are. It never loses a position that it answered,
//! and never lets two members hold one partition.

use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::counter;
use tidegate_core::id::{LeaseId, Name};
use tidegate_core::limit::Limit;
use tidegate_core::principal::Principal;

use self::command::{Command, Outcome};
use self::poll::unexpected;
use self::registry::Registry;
use crate::service::StreamService;

mod actor;
mod cell;
mod command;
mod dead_letter;
mod error;
mod gather;
mod life;
mod machine;
mod member;
mod ordered;
mod poll;
mod registry;
mod request;
mod seek;
mod shared;
mod spec;
mod state;

pub use error::GroupError;
pub use request::{
    Assignment, CreatedGroup, Extend, GroupDescription, Joined, MemberInfo, MemberStamp, Nack, PollRequest, Polled,
    PolledRecord, PositionInfo, SeekTo, Settle, Settled,
};
pub use spec::{
    ACK_TIMEOUT_MS_MIN, DELIVERIES_MAX, GroupMode, GroupSpec, GroupStart, OnGap, SESSION_MS_MIN, SPAN_MS_MAX,
};

/// The most bytes of what a member calls itself.
pub const CLIENT_MAX_BYTES: usize = 255;

/// The bounds of groups that cannot be changed.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "group.open_max",
        value: registry::ACTORS_MAX as u64,
        meaning: "Consumer groups kept in memory; beyond it the one used least lately is read again when it is needed, and its members' sessions begin anew.",
    },
    Limit {
        name: "group.queue_max",
        value: actor::QUEUE_MAX as u64,
        meaning: "Requests that wait for one consumer group; beyond it the next one waits to be taken.",
    },
    Limit {
        name: "group.batch_max",
        value: actor::BATCH_MAX as u64,
        meaning: "Requests to one consumer group that are stored in one step.",
    },
    Limit {
        name: "group.client_max_bytes",
        value: CLIENT_MAX_BYTES as u64,
        meaning: "What a member of a consumer group calls itself; beyond it 400 invalid_field.",
    },
    Limit {
        name: "group.span_max_ms",
        value: SPAN_MS_MAX,
        meaning: "session_ms, ack_timeout_ms, a nack's delay_ms and an extension's ms; beyond it 400.",
    },
    Limit {
        name: "group.deliveries_max",
        value: DELIVERIES_MAX as u64,
        meaning: "max_deliveries of a shared group; beyond it 400 invalid_group.",
    },
    Limit {
        name: "group.dead_letters_max",
        value: dead_letter::BURIAL_MAX as u64,
        meaning: "Records that go to a stream of dead letters in one step.",
    },
];

/// The consumer groups of all streams. Cheap to clone; when the last clone is dropped, the groups' tasks end.
#[derive(Clone)]
pub struct GroupService {
    streams: StreamService,
    registry: Arc<Registry>,
}

impl GroupService {
    /// Groups over these streams. Reads nothing: a group is read when it is first asked for. A group's requests should all
    /// come to one service at a time: another process over the same store is safe, but does not see who gives signs of life here.
    #[must_use]
    pub fn new(streams: StreamService) -> Self {
        Self { streams, registry: Registry::new() }
    }

    /// A new member. `client` is a text for people, at most [`CLIENT_MAX_BYTES`]. In an ordered group the partitions are given
    /// out anew, which fences the older generations.
    pub async fn join(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        client: &str,
    ) -> Result<Joined, GroupError> {
        if client.len() > CLIENT_MAX_BYTES {
            let (given, limit) = (client.len() as u64, CLIENT_MAX_BYTES as u64);
            return Err(GroupError::Invalid { field: "client", given, limit });
        }
        let handle = self.streams.handle(principal, stream).await?;
        let core = &self.streams.core;
        let member = LeaseId::draw(core.entropy.as_ref())?.to_string().into();
        let member_max = core.settings.freeze().limits_member_max_per_group();
        let command = Command::Join { member, client: client.into(), member_max };
        match self.registry.call(&handle, group, command).await? {
            Outcome::Joined(joined) => Ok(joined),
            _ => Err(unexpected()),
        }
    }

    /// A sign of life; the answer is what the member holds now. A member learns a new generation here: `generation` may be any
    /// that was, and one that never was is fenced.
    pub async fn heartbeat(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        member: &str,
        generation: u64,
    ) -> Result<Assignment, GroupError> {
        let handle = self.streams.handle(principal, stream).await?;
        match self.registry.call(&handle, group, Command::Heartbeat { member: member.into(), generation }).await? {
            Outcome::Assigned(assignment) => Ok(assignment),
            _ => Err(unexpected()),
        }
    }

    /// A member goes; its partitions go to others at once.
    pub async fn leave(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        member: &str,
    ) -> Result<(), GroupError> {
        let handle = self.streams.handle(principal, stream).await?;
        match self.registry.call(&handle, group, Command::Leave { member: member.into() }).await? {
            Outcome::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Commits the next offsets of partitions of an ordered group: all or none, each from what is committed up to what was
    /// delivered, durable when answered. The same again is granted again.
    pub async fn commit(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        member: Option<MemberStamp>,
        positions: BTreeMap<u32, u64>,
    ) -> Result<BTreeMap<u32, u64>, GroupError> {
        let handle = self.streams.handle(principal, stream).await?;
        match self.registry.call(&handle, group, Command::Commit { stamp: member, positions }).await? {
            Outcome::Positions(positions) => {
                counter!("tidegate_group_commits_total").increment(1);
                Ok(positions)
            }
            _ => Err(unexpected()),
        }
    }

    /// Acknowledges, gives back or prolongs deliveries of a shared group, durable when answered. A delivery that is no longer
    /// held is reported, and nothing is done about it. At most `limits.read_max_records` deliveries at a time.
    pub async fn settle(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        request: Settle,
    ) -> Result<Settled, GroupError> {
        let limit = self.streams.core.settings.freeze().limits_read_max_records();
        let counts = [("ack", request.ack.len()), ("nack", request.nack.len()), ("extend", request.extend.len())];
        for (field, count) in counts {
            if count as u64 > limit {
                return Err(GroupError::Invalid { field, given: count as u64, limit });
            }
        }
        for nack in &request.nack {
            if nack.delay_ms > SPAN_MS_MAX {
                return Err(GroupError::Invalid { field: "delay_ms", given: nack.delay_ms, limit: SPAN_MS_MAX });
            }
        }
        for extend in &request.extend {
            if !(1..=SPAN_MS_MAX).contains(&extend.ms) {
                let limit = if extend.ms == 0 { 1 } else { SPAN_MS_MAX };
                return Err(GroupError::Invalid { field: "ms", given: extend.ms, limit });
            }
        }
        let handle = self.streams.handle(principal, stream).await?;
        match self.registry.call(&handle, group, Command::Settle(request)).await? {
            Outcome::Settled(settled) => {
                counter!("tidegate_group_acks_total").increment(settled.acked);
                counter!("tidegate_group_nacks_total").increment(settled.nacked);
                Ok(settled)
            }
            _ => Err(unexpected()),
        }
    }
}

impl std::fmt::Debug for GroupService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupService").finish_non_exhaustive()
    }
}
