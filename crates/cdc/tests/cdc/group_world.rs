//! What the tests of consumer groups stand on: a world of streams with groups over it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_cdc::group::{
    GroupError, GroupMode, GroupService, GroupSpec, Joined, MemberStamp, PollRequest, Polled, Settle, Settled,
};
use tidegate_cdc::{StreamParts, StreamService, StreamSpec};
use tidegate_core::Clock;
use tidegate_core::port::{ChangeLog, Durability, MetaStore};
use tidegate_core::position::{Offset, Partition};
use tidegate_lease::frozen::SettingsCell;
use tidegate_testkit::{ManualClock, SeededEntropy};

use crate::world::{World, name, placed, spec};

pub(crate) struct Groups {
    pub(crate) world: World,
    pub(crate) service: GroupService,
}

impl Groups {
    /// A stream `s` with so many partitions and the group `g` on it.
    pub(crate) async fn new(partitions: u32, group: GroupSpec) -> Self {
        let groups = Self::over(spec(partitions)).await;
        groups.service.create(&groups.world.ann, &name("s"), &name("g"), &group).await.unwrap();
        groups
    }

    /// A stream `s` without groups.
    pub(crate) async fn over(stream: StreamSpec) -> Self {
        let world = World::new();
        world.create("s", stream).await;
        let service = GroupService::new(world.streams.clone());
        Self { world, service }
    }

    /// The same after the process was started again.
    pub(crate) fn restart(&mut self) {
        self.world.streams = streams_over(&self.world.clock, &self.world.store, 99);
        self.service = GroupService::new(self.world.streams.clone());
    }

    /// Another process over the same store.
    pub(crate) fn beside(&self, seed: u64) -> GroupService {
        GroupService::new(streams_over(&self.world.clock, &self.world.store, seed))
    }

    /// Publishes so many records to a partition, with their offsets as values.
    pub(crate) async fn fill(&self, partition: u32, count: u64) {
        let described = self.world.streams.describe(&self.world.ann, &name("s")).await.unwrap();
        let next = described.partitions[partition as usize].next.0;
        let records = (next..next + count).map(|value| placed(partition, value)).collect();
        self.world.publish("s", records).await;
    }

    /// Forgets the records of a partition before an offset.
    pub(crate) async fn trim(&self, partition: u32, before: u64) {
        let (ann, stream) = (&self.world.ann, name("s"));
        self.world.streams.trim(ann, &stream, Partition(partition), Offset(before)).await.unwrap();
    }

    pub(crate) async fn join(&self) -> Joined {
        self.service.join(&self.world.ann, &name("s"), &name("g"), "test").await.unwrap()
    }

    pub(crate) async fn poll(&self, member: Option<&Joined>, limit: u32) -> Result<Polled, GroupError> {
        self.poll_as(member.map(stamp), limit, 0).await
    }

    pub(crate) async fn poll_as(
        &self,
        member: Option<MemberStamp>,
        limit: u32,
        wait_ms: u64,
    ) -> Result<Polled, GroupError> {
        let request = PollRequest { member, limit, max_bytes: 1024 * 1024, wait_ms };
        self.service.poll(&self.world.ann, &name("s"), &name("g"), request).await
    }

    pub(crate) async fn commit(&self, member: Option<&Joined>, positions: &[(u32, u64)]) -> Result<(), GroupError> {
        let positions: BTreeMap<u32, u64> = positions.iter().copied().collect();
        let (stream, group, member) = (name("s"), name("g"), member.map(stamp));
        let committed = self.service.commit(&self.world.ann, &stream, &group, member, positions.clone()).await?;
        assert_eq!(committed, positions);
        Ok(())
    }

    pub(crate) async fn heartbeat(&self, member: &mut Joined) -> Result<(), GroupError> {
        let (ann, group) = (&self.world.ann, name("g"));
        let beat = self.service.heartbeat(ann, &name("s"), &group, &member.member, member.generation).await?;
        (member.generation, member.partitions) = (beat.generation, beat.partitions);
        Ok(())
    }

    pub(crate) async fn ack(&self, ids: &[&str]) -> Settled {
        self.settle(Settle { ack: ids.iter().map(|id| (*id).into()).collect(), ..Settle::default() }).await
    }

    pub(crate) async fn settle(&self, request: Settle) -> Settled {
        self.service.settle(&self.world.ann, &name("s"), &name("g"), request).await.unwrap()
    }

    /// Committed position of each partition.
    pub(crate) async fn committed(&self) -> Vec<u64> {
        let described = self.service.describe(&self.world.ann, &name("s"), &name("g")).await.unwrap();
        described.positions.iter().map(|position| position.committed).collect()
    }

    pub(crate) fn advance(&self, ms: u64) {
        self.world.clock.advance(Duration::from_millis(ms));
    }
}

pub(crate) fn stamp(member: &Joined) -> MemberStamp {
    MemberStamp { member: member.member.clone(), generation: member.generation }
}

pub(crate) fn shared() -> GroupSpec {
    GroupSpec { mode: GroupMode::Shared, ..GroupSpec::default() }
}

/// Partition and offset of each record.
pub(crate) fn places(polled: &Polled) -> Vec<(u32, u64)> {
    polled.records.iter().map(|one| (one.record.partition.0, one.record.offset.0)).collect()
}

/// The offsets of the records, where only one partition has any.
pub(crate) fn offsets(polled: &Polled) -> Vec<u64> {
    polled.records.iter().map(|one| one.record.offset.0).collect()
}

/// The ids of the deliveries.
pub(crate) fn ids(polled: &Polled) -> Vec<&str> {
    polled.records.iter().map(|one| one.delivery.as_ref().unwrap().id.as_str()).collect()
}

pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, GroupError>) -> &'static str {
    tidegate_core::failure::Failure::code(&answer.unwrap_err())
}

/// Streams over a store, with randomness of their own.
pub(crate) fn streams_over<S: ChangeLog + MetaStore>(
    clock: &Arc<ManualClock>,
    store: &Arc<S>,
    seed: u64,
) -> StreamService {
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    StreamService::new(StreamParts {
        log: Arc::clone(store) as Arc<dyn ChangeLog>,
        meta: Arc::clone(store) as Arc<dyn MetaStore>,
        settings: Arc::new(SettingsCell::new(tidegate_core::limit::Settings::default())),
        clock: Arc::clone(&clock),
        entropy: Arc::new(SeededEntropy::new(seed)),
        durability: Durability::Fsync,
    })
}
