//! Consumer groups: readers of a stream that share the work, and where they are. It never loses a position that it answered,
//! and never lets two members hold one partition.

use std::collections::BTreeMap;

use tidegate_core::id::Name;
use tidegate_core::principal::Principal;

use crate::service::StreamService;

mod error;
mod request;
mod spec;

pub use error::GroupError;
pub use request::{
    Assignment, CreatedGroup, Extend, GroupDescription, Joined, MemberInfo, MemberStamp, Nack, PollRequest, Polled,
    PolledRecord, PositionInfo, SeekTo, Settle, Settled,
};
pub use spec::{
    ACK_TIMEOUT_MS_MIN, DELIVERIES_MAX, GroupMode, GroupSpec, GroupStart, OnGap, SESSION_MS_MIN, SPAN_MS_MAX,
};

/// The consumer groups of all streams. Cheap to clone.
#[derive(Clone)]
pub struct GroupService {
    streams: StreamService,
}

impl GroupService {
    /// Groups over these streams. Reads nothing: a group is read when it is first asked for.
    #[must_use]
    pub fn new(streams: StreamService) -> Self {
        Self { streams }
    }

    /// Creates a group, durable when answered. The same one again is [`CreatedGroup::Existed`].
    pub async fn create(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        spec: &GroupSpec,
    ) -> Result<CreatedGroup, GroupError> {
        spec.check(stream)?;
        self.absent(principal, stream, group).await
    }

    /// What a group is now.
    pub async fn describe(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
    ) -> Result<GroupDescription, GroupError> {
        self.absent(principal, stream, group).await
    }

    /// The stream's groups in the order of their names, after `after`, at most `limit`.
    pub async fn list(
        &self,
        principal: &Principal,
        stream: &Name,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<GroupDescription>, GroupError> {
        let _ = (after, limit);
        self.streams.handle(principal, stream).await?;
        Ok(Vec::new())
    }

    /// Removes a group with its positions.
    pub async fn delete(&self, principal: &Principal, stream: &Name, group: &Name) -> Result<(), GroupError> {
        self.absent(principal, stream, group).await
    }

    /// A new member. `client` is a text for people.
    pub async fn join(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        client: &str,
    ) -> Result<Joined, GroupError> {
        let _ = client;
        self.absent(principal, stream, group).await
    }

    /// A sign of life; the answer is what the member holds now.
    pub async fn heartbeat(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        member: &str,
        generation: u64,
    ) -> Result<Assignment, GroupError> {
        let _ = (member, generation);
        self.absent(principal, stream, group).await
    }

    /// A member goes; its partitions go to others at once.
    pub async fn leave(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        member: &str,
    ) -> Result<(), GroupError> {
        let _ = member;
        self.absent(principal, stream, group).await
    }

    /// What comes next. Waits up to `wait_ms` where nothing is there; dropping the future is safe.
    pub async fn poll(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        request: PollRequest,
    ) -> Result<Polled, GroupError> {
        let _ = request;
        self.absent(principal, stream, group).await
    }

    /// Commits the next offsets of partitions of an ordered group, all or none, durable when answered.
    pub async fn commit(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        member: Option<MemberStamp>,
        positions: BTreeMap<u32, u64>,
    ) -> Result<BTreeMap<u32, u64>, GroupError> {
        let _ = (member, positions);
        self.absent(principal, stream, group).await
    }

    /// Acknowledges, gives back or prolongs deliveries of a shared group, durable when answered.
    pub async fn settle(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        request: Settle,
    ) -> Result<Settled, GroupError> {
        let _ = request;
        self.absent(principal, stream, group).await
    }

    /// Moves a group; the answer is the new committed positions.
    pub async fn seek(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        to: SeekTo,
    ) -> Result<BTreeMap<u32, u64>, GroupError> {
        let _ = to;
        self.absent(principal, stream, group).await
    }

    async fn absent<T>(&self, principal: &Principal, stream: &Name, group: &Name) -> Result<T, GroupError> {
        self.streams.handle(principal, stream).await?;
        Err(GroupError::NotFound { name: group.clone() })
    }
}
