//! The shared group as a pure machine: a delivered record is a lease on its offset, which an acknowledgement ends, an extension
//! renews, and whose expiry makes the record ready to be delivered again. It never reads a clock, draws a number or waits.
//!
//! Of each partition it keeps the first offset that was never delivered and the records before it that are not done. Whatever
//! else lies before is done, so an acknowledgement only forgets.

pub(crate) mod delivery;
#[cfg(test)]
mod model;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidegate_core::id::Epoch;
use tidegate_core::{Moment, Timestamp};
use tidegate_lease::machine::{self as lease, LeaseMachine};

use self::delivery::DeliveryId;
use super::cell::{BLOCK_OFFSETS, Cell, Stored, StoredEntry, StoredMain};
use super::command::{Claim, Command, Now, Outcome, Plan, Refusal, Snapshot, Touched};
use super::member::{Head, Members, holder, unbounded_leases};
use super::request::{Assignment, Joined, MemberStamp};
use super::spec::GroupMode;
use crate::record::DeliveryStamp;

/// A record that was delivered and is not done.
#[derive(Debug, Clone)]
struct Entry {
    count: u32,
    /// The group's generation at its last delivery.
    generation: u64,
    /// For people and for the time after a restart: until when it is held or not to be delivered.
    until: Timestamp,
    granted: Duration,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Somebody has it.
    Held(Epoch),
    /// It is not to be delivered before then.
    Delayed(Moment),
    /// It is to be delivered again; the number is its place in the queue.
    Ready(u64),
    /// It was delivered as often as it may: it goes to the dead letters.
    Dead,
}

/// A partition.
#[derive(Debug, Default)]
struct Lane {
    /// The first offset that was never delivered.
    next: u64,
    entries: BTreeMap<u64, Entry>,
}

type Place = (u32, u64);

/// A shared group.
#[derive(Debug)]
pub(crate) struct Shared {
    head: Head,
    lanes: Vec<Lane>,
    leases: LeaseMachine<Place>,
    delayed: BTreeSet<(Moment, Place)>,
    ready: BTreeMap<u64, Place>,
    dead: BTreeSet<Place>,
    outstanding: u64,
    ticket: u64,
    /// A poll found no room for more.
    full: bool,
    stopped: BTreeSet<u32>,
    turn: u64,
    wakes: u64,
}

impl Shared {
    /// The group as it is stored. What was held is held for what is left of its time.
    pub(crate) fn restore(
        main: &StoredMain,
        start: &[u64],
        lanes: &BTreeMap<u32, u64>,
        blocks: &BTreeMap<(u32, u64), Vec<StoredEntry>>,
        now: Now,
        before: Option<&Members>,
    ) -> Self {
        let next = |(partition, start): (u32, &u64)| lanes.get(&partition).copied().unwrap_or(*start);
        let lanes = (0_u32..).zip(start).map(|place| Lane { next: next(place), entries: BTreeMap::new() });
        let mut shared = Self {
            head: Head::restore(main, now, before),
            lanes: lanes.collect(),
            leases: unbounded_leases(),
            delayed: BTreeSet::new(),
            ready: BTreeMap::new(),
            dead: BTreeSet::new(),
            outstanding: 0,
            ticket: 0,
            full: false,
            stopped: BTreeSet::new(),
            turn: 0,
            wakes: 0,
        };
        for (&(partition, block), entries) in blocks {
            for one in entries {
                let offset = block.saturating_mul(BLOCK_OFFSETS).saturating_add(u64::from(one.at));
                shared.restore_entry(now, (partition, offset), one);
            }
        }
        shared
    }

    fn restore_entry(&mut self, now: Now, place: Place, stored: &StoredEntry) {
        let left = u64::try_from(stored.until_ms.saturating_sub(now.wall.unix_ms())).unwrap_or(0);
        let left = Duration::from_millis(left.min(stored.granted_ms));
        let entry = Entry {
            count: stored.count,
            generation: stored.generation,
            until: Timestamp::from_unix_ms(stored.until_ms),
            granted: Duration::from_millis(stored.granted_ms),
            state: State::Dead,
        };
        let Some(lane) = self.lanes.get_mut(place.0 as usize) else { return };
        lane.entries.insert(place.1, entry);
        self.outstanding += 1;
        if left.is_zero() {
            self.give_back(place);
        } else if stored.held {
            self.lease(now.moment, place, left);
        } else {
            self.delay(now.moment, place, left);
        }
    }

    /// What a cell holds now; `None` = nothing.
    pub(crate) fn stored(&self, cell: Cell) -> Option<Stored> {
        match cell {
            Cell::Main => Some(Stored::Main(self.head.stored(|_| Vec::new()))),
            Cell::Partition(partition) => self.lanes.get(partition as usize).map(|lane| Stored::Lane(lane.next)),
            Cell::Block(partition, block) => {
                let first = block.saturating_mul(BLOCK_OFFSETS);
                let last = first.saturating_add(BLOCK_OFFSETS - 1);
                let entries = self.lanes.get(partition as usize)?.entries.range(first..=last);
                let stored: Vec<StoredEntry> = entries.map(|(offset, entry)| entry.stored(offset - first)).collect();
                (!stored.is_empty()).then_some(Stored::Block(stored))
            }
            Cell::Start => None,
        }
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    pub(crate) fn into_members(self) -> Members {
        self.head.members
    }

    /// Grows when somebody who waits should look again.
    pub(crate) fn wakes(&self) -> u64 {
        self.wakes
    }

    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let delayed = self.delayed.first().map(|(moment, _)| *moment);
        [self.head.members.next_deadline(), self.leases.next_deadline(), delayed].into_iter().flatten().min()
    }

    /// What is to go to the dead letters, at most `limit`: partition, offset and how often it was delivered.
    pub(crate) fn dead(&self, limit: usize) -> Vec<(u32, u64, u32)> {
        let count = |place: &Place| self.entry(*place).map_or(0, |entry| entry.count);
        self.dead.iter().take(limit).map(|place| (place.0, place.1, count(place))).collect()
    }

    /// Applies one command. A refusal changes nothing but the time.
    pub(crate) fn apply(&mut self, now: Now, command: &Command, touched: &mut Touched) -> Outcome {
        self.pass_time(now, touched);
        self.decide(now, command, touched).unwrap_or_else(Outcome::Refused)
    }

    fn decide(&mut self, now: Now, command: &Command, touched: &mut Touched) -> Result<Outcome, Refusal> {
        match command {
            Command::Tick => Ok(Outcome::Done),
            Command::Join { member, client, member_max } => {
                self.head.join(now, member, client, *member_max)?;
                touched.durable(Cell::Main);
                let (generation, session_ms) = (self.head.generation, self.head.spec.session_ms);
                Ok(Outcome::Joined(Joined { member: member.clone(), generation, partitions: Vec::new(), session_ms }))
            }
            Command::Heartbeat { member, generation } => {
                self.head.heartbeat(now, member, *generation)?;
                Ok(Outcome::Assigned(Assignment { generation: self.head.generation, partitions: Vec::new() }))
            }
            Command::Leave { member } => {
                self.head.members.leave(now, member)?;
                touched.durable(Cell::Main);
                Ok(Outcome::Done)
            }
            Command::Plan { stamp, limit, in_flight_max } => self.plan(now, stamp.as_ref(), *limit, *in_flight_max),
            Command::Claim(claim) => self.claim(now, claim, touched),
            Command::Unclaim { ids } => {
                for id in ids {
                    self.unclaim(now, id, touched);
                }
                Ok(Outcome::Done)
            }
            Command::Settle(request) => {
                self.admit(now, request.member.as_ref())?;
                Ok(Outcome::Settled(self.settle(now, request, touched)))
            }
            Command::Bury { buried, gone } => Ok(self.bury(buried, gone, touched)),
            Command::Stopped { partition, at } => {
                if self.lanes.get(*partition as usize).is_some_and(|lane| lane.next == *at) {
                    self.stopped.insert(*partition);
                }
                Ok(Outcome::Done)
            }
            Command::Seek { positions } => self.seek(now, positions, touched),
            Command::Describe => Ok(Outcome::Described(Snapshot {
                generation: self.head.generation,
                members: self.head.infos(|_| Vec::new()),
                committed: self.lanes.iter().map(Lane::floor).collect(),
                delivered: self.lanes.iter().map(|lane| lane.next).collect(),
                outstanding: self.lanes.iter().map(|lane| lane.entries.len() as u64).collect(),
            })),
            Command::Deliver { .. } | Command::Rewind { .. } | Command::Commit { .. } => {
                Err(Refusal::WrongMode { mode: GroupMode::Shared })
            }
        }
    }

    /// Members are optional here: one that names itself must be known.
    fn admit(&mut self, now: Now, stamp: Option<&MemberStamp>) -> Result<(), Refusal> {
        stamp.map_or(Ok(()), |stamp| self.head.admit(now, stamp).map(drop))
    }

    fn plan(
        &mut self,
        now: Now,
        stamp: Option<&MemberStamp>,
        limit: u32,
        in_flight_max: u64,
    ) -> Result<Outcome, Refusal> {
        self.admit(now, stamp)?;
        self.turn = self.turn.wrapping_add(1);
        let room = in_flight_max.saturating_sub(self.outstanding);
        self.full = room == 0;
        Ok(Outcome::Planned(Plan {
            mode: self.head.spec.mode,
            on_gap: self.head.spec.on_gap,
            session_ms: self.head.spec.session_ms,
            generation: self.head.generation,
            turn: self.turn,
            places: (0_u32..).zip(&self.lanes).map(|(partition, lane)| (partition, lane.next)).collect(),
            stopped: self.stopped.clone(),
            ready: self.ready.values().take(limit as usize).copied().collect(),
            room,
        }))
    }

    fn claim(&mut self, now: Now, claim: &Claim, touched: &mut Touched) -> Result<Outcome, Refusal> {
        self.admit(now, claim.stamp.as_ref())?;
        let is_ready = |place: &Place| matches!(self.entry(*place), Some(Entry { state: State::Ready(_), .. }));
        let stands = |fresh: &super::command::Fresh| {
            self.lanes.get(fresh.partition as usize).is_some_and(|lane| lane.next == fresh.from)
        };
        let more: u64 = claim.fresh.iter().map(|fresh| fresh.offsets.len() as u64).sum();
        if claim.generation != self.head.generation
            || !claim.again.iter().chain(&claim.gone).all(is_ready)
            || !claim.fresh.iter().all(stands)
            || (more > 0 && self.outstanding.saturating_add(more) > claim.in_flight_max)
        {
            return Ok(Outcome::LostRace);
        }
        for place in &claim.gone {
            self.forget(*place);
            touched.handed_out(Cell::block_of(place.0, place.1));
        }
        let mut stamps = Vec::with_capacity(claim.again.len());
        for place in &claim.again {
            stamps.extend(self.hand_out(now, *place, touched));
        }
        for fresh in &claim.fresh {
            for offset in &fresh.offsets {
                let place = (fresh.partition, *offset);
                let entry = Entry {
                    count: 0,
                    generation: self.head.generation,
                    until: now.wall,
                    granted: Duration::ZERO,
                    state: State::Dead,
                };
                self.lanes[fresh.partition as usize].entries.insert(*offset, entry);
                self.outstanding += 1;
                stamps.extend(self.hand_out(now, place, touched));
            }
            self.lanes[fresh.partition as usize].next = fresh.to;
            self.stopped.remove(&fresh.partition);
            touched.handed_out(Cell::Partition(fresh.partition));
        }
        Ok(Outcome::Claimed(stamps))
    }

    /// One more delivery of a record.
    fn hand_out(&mut self, now: Now, place: Place, touched: &mut Touched) -> Option<DeliveryStamp> {
        let ack_timeout = Duration::from_millis(self.head.spec.ack_timeout_ms);
        let generation = self.head.generation;
        self.unqueue(place);
        let entry = self.entry_mut(place)?;
        entry.count = entry.count.saturating_add(1);
        entry.generation = generation;
        entry.hold(now, ack_timeout);
        let (count, expires_at) = (entry.count, entry.until);
        self.lease(now.moment, place, ack_timeout);
        touched.handed_out(Cell::block_of(place.0, place.1));
        let nonce = delivery::nonce(&self.head.life);
        let id = DeliveryId { partition: place.0, offset: place.1, count, generation, nonce };
        Some(DeliveryStamp { id: id.to_string(), count, expires_at })
    }

    /// Moves partitions: what was out of them is forgotten with its deliveries, whose ids are unknown from now on.
    fn seek(&mut self, now: Now, positions: &BTreeMap<u32, u64>, touched: &mut Touched) -> Result<Outcome, Refusal> {
        let partitions = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
        for &partition in positions.keys() {
            if partition >= partitions {
                return Err(Refusal::NoPartition { partition, partitions });
            }
        }
        for (&partition, &to) in positions {
            let offsets: Vec<u64> = self.lanes[partition as usize].entries.keys().copied().collect();
            for offset in offsets {
                self.release(now.moment, (partition, offset));
                self.forget((partition, offset));
                touched.durable(Cell::block_of(partition, offset));
            }
            self.lanes[partition as usize].next = to;
            self.stopped.remove(&partition);
            touched.durable(Cell::Partition(partition));
        }
        if !positions.is_empty() {
            self.head.raise();
            self.wakes += 1;
            touched.durable(Cell::Main);
        }
        Ok(Outcome::Positions(positions.clone()))
    }
}

impl Lane {
    /// Everything before it is done.
    fn floor(&self) -> u64 {
        self.entries.first_key_value().map_or(self.next, |(offset, _)| *offset)
    }
}

impl Entry {
    fn hold(&mut self, now: Now, granted: Duration) {
        let ms = i64::try_from(granted.as_millis()).unwrap_or(i64::MAX);
        self.until = Timestamp::from_unix_ms(now.wall.unix_ms().saturating_add(ms));
        self.granted = granted;
    }

    fn stored(&self, at: u64) -> StoredEntry {
        let held = matches!(self.state, State::Held(_));
        // What is ready or dead is so at once, whatever the clock says after a restart.
        let waits = held || matches!(self.state, State::Delayed(_));
        StoredEntry {
            at: u8::try_from(at).expect("below BLOCK_OFFSETS"),
            count: self.count,
            generation: self.generation,
            held,
            until_ms: self.until.unix_ms(),
            granted_ms: if waits { u64::try_from(self.granted.as_millis()).unwrap_or(u64::MAX) } else { 0 },
        }
    }
}
