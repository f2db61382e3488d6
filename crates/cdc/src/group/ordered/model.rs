//! The ordered machine against a naive model, over random members, times, races, crashes and restarts out of the stored cells. It
//! never ships.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use tidegate_core::{Moment, Timestamp};

use super::*;
use crate::group::spec::GroupSpec;

const PARTITIONS: u32 = 5;
const SESSION_MS: u64 = 100;

/// Who asks: nobody, or the member that joined so many joins ago; with a generation that is so much off.
type Who = (Option<u8>, i8);

#[derive(Debug, Clone)]
enum Op {
    Join,
    Leave(u8),
    Heartbeat(u8, i8),
    /// Plans and delivers so much of each planned partition.
    Poll(Who, Vec<u8>),
    /// Delivers what an earlier poll planned, whatever happened since.
    LatePoll(u8),
    /// What the last poll handed out did not arrive.
    Rewind,
    Commit(Who, Vec<(u8, i8)>),
    Seek(Vec<(u8, u8)>),
    Advance(u8),
    Wall(i32),
    Restart,
    /// The process is killed before what the command changed is stored.
    Crash(Box<Op>),
}

fn who() -> impl Strategy<Value = Who> {
    (prop_oneof![1 => Just(None), 6 => (0_u8..4).prop_map(Some)], prop_oneof![9 => Just(0_i8), 1 => -2_i8..3])
}

fn op() -> impl Strategy<Value = Op> {
    let plain = prop_oneof![
        3 => Just(Op::Join),
        1 => (0_u8..4).prop_map(Op::Leave),
        4 => (0_u8..4, prop_oneof![4 => -2_i8..1, 1 => Just(1_i8)]).prop_map(|(member, off)| Op::Heartbeat(member, off)),
        6 => (who(), prop::collection::vec(0_u8..6, 0..6)).prop_map(|(who, take)| Op::Poll(who, take)),
        1 => (0_u8..4).prop_map(Op::LatePoll),
        1 => Just(Op::Rewind),
        6 => (who(), prop::collection::vec((0_u8..6, -3_i8..8), 0..4)).prop_map(|(who, to)| Op::Commit(who, to)),
        1 => prop::collection::vec((0_u8..6, 0_u8..30), 0..3).prop_map(Op::Seek),
        4 => (0_u8..60).prop_map(Op::Advance),
        1 => any::<i32>().prop_map(Op::Wall),
        1 => Just(Op::Restart),
    ];
    let crash = plain.clone().prop_map(|op| Op::Crash(Box::new(op)));
    prop_oneof![12 => plain, 1 => crash]
}

/// The model: what the group is by the rules, as plainly as it can be said.
#[derive(Debug, Clone, Default)]
struct Model {
    generation: u64,
    /// Until when each lives.
    members: BTreeMap<Box<str>, Moment>,
    holders: Vec<Option<Box<str>>>,
    committed: Vec<u64>,
    delivered: Vec<u64>,
    position: Vec<u64>,
}

struct Run {
    machine: Ordered,
    model: Model,
    cells: BTreeMap<Cell, Stored>,
    now: Moment,
    wall: i64,
    joined: Vec<Box<str>>,
    plans: Vec<(Option<MemberStamp>, Plan)>,
    last: Option<(u64, Vec<Move>)>,
    highest_generation: u64,
}

impl Run {
    fn new() -> Self {
        let main = StoredMain {
            life: [9; 16],
            spec: GroupSpec { session_ms: SESSION_MS, ..GroupSpec::default() },
            created_at_ms: 0,
            generation: 1,
            removing: false,
            members: Vec::new(),
        };
        let cells = BTreeMap::from([
            (Cell::Main, Stored::Main(main)),
            (Cell::Start, Stored::Start((0..PARTITIONS).map(u64::from).collect())),
        ]);
        let now = Moment::since_origin(Duration::from_secs(1));
        let start: Vec<u64> = (0..PARTITIONS).map(u64::from).collect();
        let model = Model {
            generation: 1,
            members: BTreeMap::new(),
            holders: vec![None; PARTITIONS as usize],
            committed: start.clone(),
            delivered: start.clone(),
            position: start,
        };
        let machine = restore(&cells, Now { moment: now, wall: Timestamp::from_unix_ms(0) });
        let (joined, plans) = (Vec::new(), Vec::new());
        Self { machine, model, cells, now, wall: 0, joined, plans, last: None, highest_generation: 1 }
    }

    fn time(&self) -> Now {
        Now { moment: self.now, wall: Timestamp::from_unix_ms(self.wall) }
    }

    /// Stores what was touched, as bytes and back.
    fn store(&mut self, touched: &Touched) {
        for cell in &touched.cells {
            match self.machine.stored(*cell) {
                Some(stored) => drop(self.cells.insert(*cell, Stored::unseal(&stored.seal()).unwrap())),
                None => drop(self.cells.remove(cell)),
            }
        }
    }

    fn restart(&mut self) {
        self.machine = restore(&self.cells, self.time());
        self.model.position.clone_from(&self.model.committed);
        for until in self.model.members.values_mut() {
            *until = self.now.after(Duration::from_millis(SESSION_MS));
        }
        self.last = None;
    }

    fn apply(&mut self, command: &Command, touched: &mut Touched) -> Outcome {
        self.machine.apply(self.time(), command, touched)
    }

    /// The members changed: checks the assignment that the machine chose, and takes it over.
    fn reassigned(&mut self) {
        let holders: Vec<Option<Box<str>>> =
            self.machine.holders.iter().map(|one| one.as_ref().map(|id| (&**id).into())).collect();
        let mut counts: BTreeMap<&str, usize> = self.model.members.keys().map(|id| (&**id, 0)).collect();
        for holder in &holders {
            match holder {
                Some(holder) => *counts.get_mut(&**holder).expect("only members hold partitions") += 1,
                None => assert!(self.model.members.is_empty(), "a partition is nobody's although there are members"),
            }
        }
        if let (Some(most), Some(least)) = (counts.values().max(), counts.values().min()) {
            assert!(most - least <= 1, "{counts:?}");
        }
        let mut changed = false;
        for (partition, holder) in holders.iter().enumerate() {
            if *holder != self.model.holders[partition] {
                changed = true;
                self.model.delivered[partition] = self.model.committed[partition];
                self.model.position[partition] = self.model.committed[partition];
            }
        }
        self.model.generation += u64::from(changed);
        self.model.holders = holders;
    }

    /// Removes whose time is over; every command does that first.
    fn expire(&mut self) {
        let before = self.model.members.len();
        self.model.members.retain(|_, until| *until > self.now);
        if self.model.members.len() != before {
            self.reassigned();
        }
    }

    fn stamp(&self, who: Who) -> Option<MemberStamp> {
        let member = self.member(who.0?);
        Some(MemberStamp { member, generation: self.model.generation.saturating_add_signed(i64::from(who.1)) })
    }

    fn member(&self, back: u8) -> Box<str> {
        let place = self.joined.len().checked_sub(1 + back as usize);
        place.map_or_else(|| "nobody".into(), |place| self.joined[place].clone())
    }

    /// What the rules say about who asks: the holder that it is.
    fn admit(&mut self, stamp: Option<&MemberStamp>) -> Result<Option<Box<str>>, Refusal> {
        let generation = self.model.generation;
        match stamp {
            None if self.model.members.is_empty() => Ok(None),
            None => Err(Refusal::Fenced { generation }),
            Some(stamp) => {
                let Some(until) = self.model.members.get_mut(&stamp.member) else {
                    return Err(Refusal::UnknownMember { member: stamp.member.clone() });
                };
                *until = (*until).max(self.now.after(Duration::from_millis(SESSION_MS)));
                if stamp.generation == generation {
                    Ok(Some(stamp.member.clone()))
                } else {
                    Err(Refusal::Fenced { generation })
                }
            }
        }
    }

    fn held(&self, member: &str) -> Vec<u32> {
        (0..PARTITIONS).filter(|partition| self.model.holders[*partition as usize].as_deref() == Some(member)).collect()
    }

    fn deliver(&mut self, stamp: Option<MemberStamp>, plan: &Plan, moves: Vec<Move>, touched: &mut Touched) {
        let generation = plan.generation;
        let command = Command::Deliver { stamp: stamp.clone(), generation, moves: moves.clone() };
        let outcome = self.apply(&command, touched);
        self.expire();
        let expected = match self.admit(stamp.as_ref()) {
            Err(refusal) => Outcome::Refused(refusal),
            Ok(holder) => {
                let stands = |one: &Move| {
                    self.model.holders[one.partition as usize] == holder
                        && self.model.position[one.partition as usize] == one.from
                };
                if generation == self.model.generation && moves.iter().all(stands) {
                    for one in &moves {
                        let partition = one.partition as usize;
                        self.model.position[partition] = one.to;
                        self.model.delivered[partition] = self.model.delivered[partition].max(one.to);
                    }
                    self.last = Some((generation, moves));
                    Outcome::Delivered
                } else {
                    Outcome::LostRace
                }
            }
        };
        assert_eq!(outcome, expected);
    }

    fn step(&mut self, op: &Op) -> Touched {
        let mut touched = Touched::default();
        match op {
            Op::Join => {
                let id: Box<str> = format!("m{}", self.joined.len()).into();
                let command = Command::Join { member: id.clone(), client: "c".into(), member_max: 4 };
                let outcome = self.apply(&command, &mut touched);
                self.joined.push(id.clone());
                // The machine expired first: its assignment is looked at once both happened.
                self.model.members.retain(|_, until| *until > self.now);
                let expired_first = self.model.members.len();
                if expired_first >= 4 {
                    assert_eq!(outcome, Outcome::Refused(Refusal::MemberQuota { limit: 4, current: 4 }));
                    self.reassigned_by_two(None);
                } else {
                    self.reassigned_by_two(Some(id.clone()));
                    let Outcome::Joined(joined) = outcome else { panic!("{outcome:?}") };
                    assert_eq!((joined.generation, joined.partitions), (self.model.generation, self.held(&id)));
                }
            }
            Op::Leave(back) => {
                self.tick(&mut touched);
                let member = self.member(*back);
                let outcome = self.apply(&Command::Leave { member: member.clone() }, &mut touched);
                if self.model.members.remove(&member).is_some() {
                    assert_eq!(outcome, Outcome::Done);
                    self.reassigned();
                } else {
                    assert_eq!(outcome, Outcome::Refused(Refusal::UnknownMember { member }));
                }
            }
            Op::Heartbeat(back, off) => {
                self.tick(&mut touched);
                let member = self.member(*back);
                let generation = self.model.generation.saturating_add_signed(i64::from(*off));
                let outcome = self.apply(&Command::Heartbeat { member: member.clone(), generation }, &mut touched);
                let stamp = MemberStamp { member: member.clone(), generation: self.model.generation };
                let expected = match self.admit(Some(&stamp)) {
                    Err(refusal) => Outcome::Refused(refusal),
                    Ok(_) if *off > 0 => Outcome::Refused(Refusal::Fenced { generation: self.model.generation }),
                    Ok(_) => Outcome::Assigned(Assignment {
                        generation: self.model.generation,
                        partitions: self.held(&member),
                    }),
                };
                assert_eq!(outcome, expected);
            }
            Op::Poll(who, take) => {
                self.tick(&mut touched);
                let stamp = self.stamp(*who);
                let command = Command::Plan { stamp: stamp.clone(), limit: 10, in_flight_max: 10 };
                let outcome = self.apply(&command, &mut touched);
                match (self.admit(stamp.as_ref()), outcome) {
                    (Err(refusal), outcome) => assert_eq!(outcome, Outcome::Refused(refusal)),
                    (Ok(holder), Outcome::Planned(plan)) => {
                        let partitions = (0..PARTITIONS).filter(|one| self.model.holders[*one as usize] == holder);
                        let places = partitions.map(|one| (one, self.model.position[one as usize]));
                        assert_eq!(plan.places, places.collect::<Vec<_>>());
                        self.plans.push((stamp.clone(), plan.clone()));
                        let moves = plan.places.iter().zip(take);
                        let moves = moves.map(|((partition, from), take)| Move {
                            partition: *partition,
                            from: *from,
                            to: *from + u64::from(*take),
                        });
                        let moves = moves.collect();
                        self.deliver(stamp, &plan, moves, &mut touched);
                    }
                    (Ok(_), other) => panic!("{other:?}"),
                }
            }
            Op::LatePoll(back) => {
                self.tick(&mut touched);
                let Some(place) = self.plans.len().checked_sub(1 + *back as usize) else { return touched };
                let (stamp, plan) = self.plans[place].clone();
                let moves = plan.places.iter().take(2);
                let moves = moves.map(|(partition, from)| Move { partition: *partition, from: *from, to: from + 1 });
                self.deliver(stamp, &plan, moves.collect(), &mut touched);
            }
            Op::Rewind => {
                self.tick(&mut touched);
                let Some((generation, moves)) = self.last.take() else { return touched };
                self.apply(&Command::Rewind { generation, moves: moves.clone() }, &mut touched);
                for one in moves.iter().filter(|_| generation == self.model.generation) {
                    let partition = one.partition as usize;
                    let back = one.from.max(self.model.committed[partition]);
                    self.model.position[partition] = self.model.position[partition].min(back);
                }
            }
            Op::Commit(who, to) => {
                self.tick(&mut touched);
                let stamp = self.stamp(*who);
                let target = |(partition, off): &(u8, i8)| {
                    let committed = self.model.committed.get(*partition as usize).copied().unwrap_or(0);
                    (u32::from(*partition), committed.saturating_add_signed(i64::from(*off)))
                };
                let positions: BTreeMap<u32, u64> = to.iter().map(target).collect();
                let outcome =
                    self.apply(&Command::Commit { stamp: stamp.clone(), positions: positions.clone() }, &mut touched);
                let expected = self.commit(stamp.as_ref(), &positions);
                assert_eq!(outcome, expected.map_or_else(Outcome::Refused, |()| Outcome::Positions(positions)));
            }
            Op::Seek(to) => {
                self.tick(&mut touched);
                let positions: BTreeMap<u32, u64> =
                    to.iter().map(|(partition, to)| (u32::from(*partition), u64::from(*to))).collect();
                let outcome = self.apply(&Command::Seek { positions: positions.clone() }, &mut touched);
                if let Some(&partition) = positions.keys().find(|partition| **partition >= PARTITIONS) {
                    let refusal = Refusal::NoPartition { partition, partitions: PARTITIONS };
                    assert_eq!(outcome, Outcome::Refused(refusal));
                } else {
                    for (&partition, &to) in &positions {
                        let partition = partition as usize;
                        self.model.committed[partition] = to;
                        self.model.delivered[partition] = to;
                        self.model.position[partition] = to;
                    }
                    self.model.generation += u64::from(!positions.is_empty());
                    assert_eq!(outcome, Outcome::Positions(positions));
                }
            }
            Op::Advance(ms) => {
                self.now = self.now.after(Duration::from_millis(u64::from(*ms)));
                self.wall += i64::from(*ms);
            }
            Op::Wall(ms) => self.wall = i64::from(*ms),
            Op::Restart => {
                self.tick(&mut touched);
                self.store(&touched);
                self.restart();
                touched = Touched::default();
            }
            // A restart stores first: nothing is left to lose.
            Op::Crash(op) if matches!(**op, Op::Restart) => return self.step(op),
            Op::Crash(op) => {
                let (before, joined) = (self.model.clone(), self.joined.len());
                self.step(op);
                self.model = before;
                self.joined.truncate(joined);
                self.restart();
                touched = Touched::default();
            }
        }
        touched
    }

    /// Time passes for the machine and for the model, so that what follows is decided by itself.
    fn tick(&mut self, touched: &mut Touched) {
        self.apply(&Command::Tick, touched);
        self.expire();
    }

    /// A join after an expiry: two changes of the assignment that only the generation tells apart.
    fn reassigned_by_two(&mut self, joined: Option<Box<str>>) {
        if let Some(id) = joined {
            self.model.members.insert(id, self.now.after(Duration::from_millis(SESSION_MS)));
        }
        let before = self.model.generation;
        self.reassigned();
        let told = self.machine.head.generation;
        assert!(told >= self.model.generation && told <= before + 2);
        self.model.generation = told;
        // What changed hands twice and came back to its holder starts at its committed position too.
        for partition in 0..PARTITIONS as usize {
            let place = self.machine.places[partition];
            if place.delivered == self.model.committed[partition] {
                self.model.delivered[partition] = place.delivered;
                self.model.position[partition] = place.position;
            }
        }
    }

    fn commit(&mut self, stamp: Option<&MemberStamp>, positions: &BTreeMap<u32, u64>) -> Result<(), Refusal> {
        if let Some(&partition) = positions.keys().find(|partition| **partition >= PARTITIONS) {
            return Err(Refusal::NoPartition { partition, partitions: PARTITIONS });
        }
        let holder = self.admit(stamp)?;
        for (&partition, &given) in positions {
            let (committed, delivered) =
                (self.model.committed[partition as usize], self.model.delivered[partition as usize]);
            if self.model.holders[partition as usize] != holder {
                return Err(Refusal::Fenced { generation: self.model.generation });
            }
            if given < committed {
                return Err(Refusal::Regression { partition, committed, given });
            }
            if given > delivered {
                return Err(Refusal::BeyondDelivered { partition, delivered, given });
            }
        }
        for (&partition, &given) in positions {
            self.model.committed[partition as usize] = given;
            let position = &mut self.model.position[partition as usize];
            *position = (*position).max(given);
        }
        Ok(())
    }

    fn check(&mut self, op: &Op, committed_before: &[u64]) {
        let machine = &self.machine;
        assert_eq!(machine.head.generation, self.model.generation);
        let places: Vec<Place> = (0..PARTITIONS as usize)
            .map(|partition| Place {
                committed: self.model.committed[partition],
                delivered: self.model.delivered[partition],
                position: self.model.position[partition],
            })
            .collect();
        assert_eq!(machine.places, places);
        let members: BTreeSet<&str> = machine.head.members.ids().map(|id| &**id).collect();
        assert_eq!(members, self.model.members.keys().map(|id| &**id).collect());
        for (partition, place) in places.iter().enumerate() {
            assert!(place.committed <= place.position && place.position <= place.delivered);
            let sought = matches!(op, Op::Seek(_)) || matches!(op, Op::Crash(_));
            assert!(sought || place.committed >= committed_before[partition], "a commit went back");
        }
        if !matches!(op, Op::Crash(_)) {
            assert!(self.model.generation >= self.highest_generation, "a generation came back");
            self.highest_generation = self.model.generation;
        }
    }
}

fn restore(cells: &BTreeMap<Cell, Stored>, now: Now) -> Ordered {
    let Some(Stored::Main(main)) = cells.get(&Cell::Main) else { panic!("no main cell") };
    let Some(Stored::Start(start)) = cells.get(&Cell::Start) else { panic!("no start cell") };
    let places = cells.iter().filter_map(|(cell, stored)| match (cell, stored) {
        (Cell::Partition(partition), Stored::Place(place)) => Some((*partition, *place)),
        _ => None,
    });
    Ordered::restore(main, start, &places.collect(), now, None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn an_ordered_group_does_what_the_model_does(ops in prop::collection::vec(op(), 1..45)) {
        let mut run = Run::new();
        for op in &ops {
            let committed = run.model.committed.clone();
            let touched = run.step(op);
            run.store(&touched);
            let advances = matches!(op, Op::Advance(_) | Op::Wall(_));
            if !advances {
                run.check(op, &committed);
            }
        }
    }
}
