//! A poll: where to read is asked of the group, records are read in the caller's own task, and the group is told before they are
//! handed out. It never holds the group up while it reads, and dropping it takes back what did not arrive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tidegate_core::id::Name;
use tidegate_core::position::Gap;
use tidegate_core::principal::Principal;

use super::GroupService;
use super::command::{Claim, Command, Fresh, Move, Outcome, Plan};
use super::error::GroupError;
use super::gather::{Left, Part, gather, gather_again};
use super::registry::ActorHandle;
use super::request::{PollRequest, Polled, PolledRecord};
use super::spec::{GroupMode, OnGap};
use crate::error::StoreError;
use crate::handle::StreamHandle;
use crate::record::Record;

/// How often a poll reads again because another one took what it read.
const RACES_MAX: usize = 16;

impl GroupService {
    fn check_poll(&self, request: &PollRequest) -> Result<(), GroupError> {
        let settings = self.streams.core.settings.freeze();
        let bounds = [
            ("limit", u64::from(request.limit), 1, settings.limits_read_max_records()),
            ("max_bytes", request.max_bytes, 1, settings.limits_read_max_bytes()),
            ("wait_ms", request.wait_ms, 0, settings.limits_wait_max_ms()),
        ];
        for (field, given, min, max) in bounds {
            if given < min || given > max {
                return Err(GroupError::Invalid { field, given, limit: if given < min { min } else { max } });
            }
        }
        Ok(())
    }

    /// What comes next: records that are handed out and, where some are gone, the gaps, each once. Waits up to `wait_ms` where
    /// there is nothing; a member that waits counts as alive. Reading commits nothing. Dropping the future is safe: what it
    /// would have handed out is handed out again. An answer that is lost on its way to a consumer is not: of an ordered group
    /// the next poll goes on behind it, which the consumer sees by the offsets, and a seek or a new member goes back.
    pub async fn poll(
        &self,
        principal: &Principal,
        stream: &Name,
        group: &Name,
        request: PollRequest,
    ) -> Result<Polled, GroupError> {
        self.check_poll(&request)?;
        let handle = self.streams.handle(principal, stream).await?;
        let clock = Arc::clone(&self.streams.core.clock);
        let deadline = clock.now().after(Duration::from_millis(request.wait_ms));
        let waits = request.wait_ms > 0;
        counter!("tidegate_group_polls_total").increment(1);
        // Before the first look: what comes after it wakes the wait.
        let mut changed = waits.then(|| handle.subscribe());
        let mut slot = None;
        loop {
            if let Some(changed) = &mut changed {
                changed.mark_unchanged();
            }
            if handle.is_removed() {
                return Err(handle.not_found().into());
            }
            let actor = self.registry.actor(&handle, group).await?;
            let mut version = actor.link.version.subscribe();
            let (polled, session) = self.look(&handle, group, &actor, &request).await?;
            if !polled.records.is_empty() || !polled.gaps.is_empty() || clock.now() >= deadline {
                return Ok(polled);
            }
            let Some(changed) = &mut changed else { return Ok(polled) };
            if slot.is_none() {
                slot = Some(self.streams.core.tail_slot(&principal.owner)?);
            }
            // A member that waits is alive, and says so in time.
            let alive = request.member.as_ref().map_or(deadline, |_| clock.now().after(session / 3));
            tokio::select! {
                _ = changed.changed() => {}
                _ = version.changed() => {}
                () = clock.sleep_until(alive.min(deadline)) => {}
            }
        }
    }

    /// One look at what is there, with the group's session time.
    async fn look(
        &self,
        handle: &Arc<StreamHandle>,
        group: &Name,
        actor: &ActorHandle,
        request: &PollRequest,
    ) -> Result<(Polled, Duration), GroupError> {
        for _ in 0..RACES_MAX {
            // Who holds partitions reads what nobody else would. All others would read the same at the same time.
            let mut turn = None;
            if request.member.is_none() {
                turn = Some(actor.link.turnstile.lock().await);
            }
            let mut plan = self.plan(handle, group, request).await?;
            if plan.mode == GroupMode::Shared && turn.is_none() {
                turn = Some(actor.link.turnstile.lock().await);
                plan = self.plan(handle, group, request).await?;
            }
            let session = Duration::from_millis(plan.session_ms);
            let polled = match plan.mode {
                GroupMode::Ordered => self.take_ordered(handle, group, request, plan).await?,
                GroupMode::Shared => self.take_shared(handle, group, request, plan).await?,
            };
            drop(turn);
            if let Some(polled) = polled {
                return Ok((polled, session));
            }
        }
        Err(StoreError::Contended.into())
    }

    async fn plan(&self, handle: &Arc<StreamHandle>, group: &Name, request: &PollRequest) -> Result<Plan, GroupError> {
        let in_flight_max = self.in_flight_max();
        let command = Command::Plan { stamp: request.member.clone(), limit: request.limit, in_flight_max };
        match self.registry.call(handle, group, command).await? {
            Outcome::Planned(plan) => Ok(plan),
            _ => Err(unexpected()),
        }
    }

    fn in_flight_max(&self) -> u64 {
        self.streams.core.settings.freeze().limits_in_flight_max_per_group()
    }

    /// `None`: a race was lost.
    async fn take_ordered(
        &self,
        handle: &Arc<StreamHandle>,
        group: &Name,
        request: &PollRequest,
        plan: Plan,
    ) -> Result<Option<Polled>, GroupError> {
        let mut left = Left { records: request.limit, bytes: request.max_bytes, untouched: true };
        let parts = match gather(handle, &plan, &mut left, plan.on_gap).await? {
            Ok(parts) => parts,
            Err(gap) => return Err(self.stopped(handle, group, gap).await),
        };
        if parts.is_empty() {
            return Ok(Some(nothing(plan.generation)));
        }
        let moves = parts.iter().map(|part| Move { partition: part.partition, from: part.from, to: part.to });
        let (stamp, generation) = (request.member.clone(), plan.generation);
        let deliver = Command::Deliver { stamp, generation, moves: moves.collect() };
        match self.registry.call(handle, group, deliver).await? {
            Outcome::Delivered => Ok(Some(polled(generation, Vec::new(), Vec::new(), parts))),
            Outcome::LostRace => Ok(None),
            _ => Err(unexpected()),
        }
    }

    async fn take_shared(
        &self,
        handle: &Arc<StreamHandle>,
        group: &Name,
        request: &PollRequest,
        plan: Plan,
    ) -> Result<Option<Polled>, GroupError> {
        // Half for what comes again, half for what is new, so that neither keeps the other away; of an odd one in turn.
        let half = if plan.turn.is_multiple_of(2) { request.limit.div_ceil(2) } else { request.limit / 2 };
        let waiting = u32::try_from(plan.ready.len()).unwrap_or(u32::MAX).min(half);
        let new = (request.limit - waiting).min(u32::try_from(plan.room).unwrap_or(u32::MAX));
        let kept = if waiting > 0 { request.max_bytes / 2 } else { 0 };
        let mut left = Left { records: new, bytes: request.max_bytes - kept, untouched: true };
        let parts = if new == 0 {
            Vec::new()
        } else {
            match gather(handle, &plan, &mut left, plan.on_gap).await? {
                Ok(parts) => parts,
                Err(gap) => return Err(self.stopped(handle, group, gap).await),
            }
        };
        let taken: usize = parts.iter().map(|part| part.records.len()).sum();
        left.records = request.limit - u32::try_from(taken).unwrap_or(request.limit).min(request.limit);
        left.bytes += kept;
        let again = gather_again(handle, &plan.ready, &mut left).await?;
        if plan.on_gap == OnGap::Stop
            && let Some(gap) = again.gaps.first()
        {
            return Err(GroupError::Gap { gap: *gap });
        }
        if parts.is_empty() && again.records.is_empty() && again.gone.is_empty() {
            return Ok(Some(nothing(plan.generation)));
        }
        let fresh = parts.iter().map(|part| Fresh {
            partition: part.partition,
            from: part.from,
            to: part.to,
            offsets: part.records.iter().map(|record| record.offset.0).collect(),
        });
        let claim = Command::Claim(Claim {
            stamp: request.member.clone(),
            generation: plan.generation,
            again: again.records.iter().map(|record| (record.partition.0, record.offset.0)).collect(),
            gone: again.gone,
            fresh: fresh.collect(),
            in_flight_max: self.in_flight_max(),
        });
        match self.registry.call(handle, group, claim).await? {
            Outcome::Claimed(stamps) => {
                counter!("tidegate_group_redelivered_total").increment(again.records.len() as u64);
                let mut polled = polled(plan.generation, again.records, again.gaps, parts);
                // As many stamps as records, in the same order.
                for (record, stamp) in polled.records.iter_mut().zip(stamps) {
                    record.delivery = Some(stamp);
                }
                Ok(Some(polled))
            }
            Outcome::LostRace => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// The group stops at this gap, and the next poll looks there first.
    async fn stopped(&self, handle: &Arc<StreamHandle>, group: &Name, gap: Gap) -> GroupError {
        let stopped = Command::Stopped { partition: gap.partition.0, at: gap.from.0 };
        match self.registry.call(handle, group, stopped).await {
            Ok(_) => GroupError::Gap { gap },
            Err(error) => error,
        }
    }
}

/// What no machine answers to such a command.
pub(crate) fn unexpected() -> GroupError {
    super::cell::corrupt("a consumer group gave another answer than was asked for").into()
}

fn nothing(generation: u64) -> Polled {
    Polled { records: Vec::new(), gaps: Vec::new(), delivered: BTreeMap::new(), generation }
}

fn polled(generation: u64, again: Vec<Record>, gaps: Vec<Gap>, parts: Vec<Part>) -> Polled {
    let mut polled = nothing(generation);
    polled.gaps = gaps;
    let stampless = |record| PolledRecord { record, delivery: None };
    polled.records.extend(again.into_iter().map(stampless));
    for part in parts {
        polled.delivered.insert(part.partition, part.to);
        polled.gaps.extend(part.gaps);
        polled.records.extend(part.records.into_iter().map(stampless));
    }
    counter!("tidegate_group_records_total").increment(polled.records.len() as u64);
    counter!("tidegate_group_gaps_total").increment(polled.gaps.len() as u64);
    polled
}
