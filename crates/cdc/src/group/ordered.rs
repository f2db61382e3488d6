//! The ordered group as a pure machine: members, the partitions that each holds, and a position a partition. A change of the
//! assignment raises the generation, which fences every older one. It never reads a clock, draws a number or waits.

mod assign;
#[cfg(test)]
mod model;

use std::collections::{BTreeMap, BTreeSet};

use tidegate_core::Moment;

use self::assign::assign;
use super::cell::{Cell, Stored, StoredMain, StoredPlace};
use super::command::{Command, Move, Now, Outcome, Plan, Refusal, Snapshot, Touched};
use super::member::{Head, MemberId, Members};
use super::request::{Assignment, Joined, MemberStamp};
use super::spec::GroupMode;

/// Where a group is in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Everything before it is done.
    committed: u64,
    /// Everything before it was handed out since the partition last changed hands: the bound of a commit.
    delivered: u64,
    /// What comes next: from `committed` to `delivered`. Not stored: after a restart it is `committed` again, because nobody
    /// knows whether the last answer arrived.
    position: u64,
}

/// An ordered group.
#[derive(Debug)]
pub(crate) struct Ordered {
    head: Head,
    /// A partition each.
    holders: Vec<Option<MemberId>>,
    places: Vec<Place>,
    /// Partitions whose position is at a gap where the group stops.
    stopped: BTreeSet<u32>,
    turn: u64,
    wakes: u64,
}

impl Ordered {
    /// The group as it is stored. A partition without a cell is where the group began.
    pub(crate) fn restore(
        main: &StoredMain,
        start: &[u64],
        cells: &BTreeMap<u32, StoredPlace>,
        now: Now,
        before: Option<&Members>,
    ) -> Self {
        let head = Head::restore(main, now, before);
        let places = (0_u32..).zip(start).map(|(partition, start)| {
            let stored = cells.get(&partition).copied();
            let StoredPlace { committed, delivered } =
                stored.unwrap_or(StoredPlace { committed: *start, delivered: *start });
            Place { committed, delivered, position: committed }
        });
        let mut holders = vec![None; start.len()];
        for member in &main.members {
            let Some(id) = head.members.ids().find(|id| ***id == *member.id) else { continue };
            for partition in &member.partitions {
                if let Some(holder) = holders.get_mut(*partition as usize) {
                    *holder = Some(MemberId::clone(id));
                }
            }
        }
        Self { head, holders, places: places.collect(), stopped: BTreeSet::new(), turn: 0, wakes: 0 }
    }

    /// What a cell holds now.
    pub(crate) fn stored(&self, cell: Cell) -> Option<Stored> {
        match cell {
            Cell::Main => Some(Stored::Main(self.head.stored(|id| self.held(id)))),
            Cell::Partition(partition) => {
                let place = self.places.get(partition as usize)?;
                Some(Stored::Place(StoredPlace { committed: place.committed, delivered: place.delivered }))
            }
            Cell::Start | Cell::Block(..) => None,
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
        self.head.members.next_deadline()
    }

    /// Applies one command. A refusal changes nothing but the time.
    pub(crate) fn apply(&mut self, now: Now, command: &Command, touched: &mut Touched) -> Outcome {
        if self.head.members.expire(now.moment) > 0 {
            self.reassign(touched);
        }
        self.decide(now, command, touched).unwrap_or_else(Outcome::Refused)
    }

    fn decide(&mut self, now: Now, command: &Command, touched: &mut Touched) -> Result<Outcome, Refusal> {
        match command {
            Command::Tick => Ok(Outcome::Done),
            Command::Join { member, client, member_max } => {
                let id = self.head.join(now, member, client, *member_max)?;
                self.reassign(touched);
                Ok(Outcome::Joined(Joined {
                    member: member.clone(),
                    generation: self.head.generation,
                    partitions: self.held(&id),
                    session_ms: self.head.spec.session_ms,
                }))
            }
            Command::Heartbeat { member, generation } => {
                let id = self.head.heartbeat(now, member, *generation)?;
                let generation = self.head.generation;
                Ok(Outcome::Assigned(Assignment { generation, partitions: self.held(&id) }))
            }
            Command::Leave { member } => {
                self.head.members.leave(now, member)?;
                self.reassign(touched);
                Ok(Outcome::Done)
            }
            Command::Plan { stamp, .. } => {
                let holder = self.admit(now, stamp.as_ref())?;
                self.turn = self.turn.wrapping_add(1);
                let held =
                    (0_u32..).zip(&self.holders).filter(|(_, one)| **one == holder).map(|(partition, _)| partition);
                let places = held.map(|partition| (partition, self.places[partition as usize].position));
                Ok(Outcome::Planned(Plan {
                    mode: self.head.spec.mode,
                    on_gap: self.head.spec.on_gap,
                    session_ms: self.head.spec.session_ms,
                    generation: self.head.generation,
                    turn: self.turn,
                    places: places.collect(),
                    stopped: self.stopped.clone(),
                    ready: Vec::new(),
                    room: u64::MAX,
                }))
            }
            Command::Deliver { stamp, generation, moves } => {
                let holder = self.admit(now, stamp.as_ref())?;
                let stands = |one: &Move| {
                    let place = self.places.get(one.partition as usize);
                    self.holders.get(one.partition as usize) == Some(&holder)
                        && place.is_some_and(|place| place.position == one.from && one.to >= one.from)
                };
                if *generation != self.head.generation || !moves.iter().all(stands) {
                    return Ok(Outcome::LostRace);
                }
                for one in moves {
                    let place = &mut self.places[one.partition as usize];
                    place.position = one.to;
                    if one.to > place.delivered {
                        place.delivered = one.to;
                        touched.handed_out(Cell::Partition(one.partition));
                    }
                    self.stopped.remove(&one.partition);
                }
                Ok(Outcome::Delivered)
            }
            Command::Rewind { generation, moves } => {
                if *generation == self.head.generation {
                    for one in moves {
                        if let Some(place) = self.places.get_mut(one.partition as usize) {
                            place.position = place.position.min(one.from.max(place.committed));
                        }
                    }
                    self.wakes += 1;
                }
                Ok(Outcome::Done)
            }
            Command::Stopped { partition, at } => {
                if self.places.get(*partition as usize).is_some_and(|place| place.position == *at) {
                    self.stopped.insert(*partition);
                }
                Ok(Outcome::Done)
            }
            Command::Commit { stamp, positions } => self.commit(now, stamp.as_ref(), positions, touched),
            Command::Seek { positions } => self.seek(positions, touched),
            Command::Describe => Ok(Outcome::Described(Snapshot {
                generation: self.head.generation,
                members: self.head.infos(|id| self.held(id)),
                committed: self.places.iter().map(|place| place.committed).collect(),
                delivered: self.places.iter().map(|place| place.delivered).collect(),
                outstanding: vec![0; self.places.len()],
            })),
            Command::Claim(_) | Command::Unclaim { .. } | Command::Settle(_) | Command::Bury { .. } => {
                Err(Refusal::WrongMode { mode: GroupMode::Ordered })
            }
        }
    }

    /// Who asks: a member that knows the present generation, or nobody where the group has no members.
    fn admit(&mut self, now: Now, stamp: Option<&MemberStamp>) -> Result<Option<MemberId>, Refusal> {
        match stamp {
            Some(stamp) => self.head.admit(now, stamp).map(Some),
            None if self.head.members.is_empty() => Ok(None),
            None => Err(Refusal::Fenced { generation: self.head.generation }),
        }
    }

    fn held(&self, id: &MemberId) -> Vec<u32> {
        (0_u32..)
            .zip(&self.holders)
            .filter(|(_, one)| one.as_ref() == Some(id))
            .map(|(partition, _)| partition)
            .collect()
    }

    /// After the members changed: gives the partitions out anew. One that changes hands starts at its committed position.
    fn reassign(&mut self, touched: &mut Touched) {
        touched.durable(Cell::Main);
        let members: Vec<&MemberId> = self.head.members.ids().collect();
        let holders = assign(&self.holders, &members);
        if holders == self.holders {
            return;
        }
        for (partition, (before, after)) in (0_u32..).zip(self.holders.iter().zip(&holders)) {
            if before == after {
                continue;
            }
            let place = &mut self.places[partition as usize];
            place.position = place.committed;
            if place.delivered != place.committed {
                place.delivered = place.committed;
                touched.durable(Cell::Partition(partition));
            }
        }
        self.holders = holders;
        self.head.raise();
        self.wakes += 1;
    }

    fn check_partition(&self, partition: u32) -> Result<(), Refusal> {
        let partitions = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        if partition < partitions { Ok(()) } else { Err(Refusal::NoPartition { partition, partitions }) }
    }

    fn commit(
        &mut self,
        now: Now,
        stamp: Option<&MemberStamp>,
        positions: &BTreeMap<u32, u64>,
        touched: &mut Touched,
    ) -> Result<Outcome, Refusal> {
        for partition in positions.keys() {
            self.check_partition(*partition)?;
        }
        let holder = self.admit(now, stamp)?;
        for (&partition, &given) in positions {
            if self.holders[partition as usize] != holder {
                return Err(Refusal::Fenced { generation: self.head.generation });
            }
            let Place { committed, delivered, .. } = self.places[partition as usize];
            if given < committed {
                return Err(Refusal::Regression { partition, committed, given });
            }
            if given > delivered {
                return Err(Refusal::BeyondDelivered { partition, delivered, given });
            }
        }
        for (&partition, &given) in positions {
            let place = &mut self.places[partition as usize];
            place.position = place.position.max(given);
            if place.committed != given {
                place.committed = given;
                touched.durable(Cell::Partition(partition));
            }
        }
        Ok(Outcome::Positions(positions.clone()))
    }

    fn seek(&mut self, positions: &BTreeMap<u32, u64>, touched: &mut Touched) -> Result<Outcome, Refusal> {
        for partition in positions.keys() {
            self.check_partition(*partition)?;
        }
        for (&partition, &to) in positions {
            self.places[partition as usize] = Place { committed: to, delivered: to, position: to };
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
