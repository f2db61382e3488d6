//! The shared machine against a naive model: one state a record, over random polls, acknowledgements, times, seeks, dead letters,
//! crashes and restarts out of the stored cells. It never ships.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::group::cell::{BLOCK_OFFSETS, StoredMain};
use crate::group::command::Fresh;
use crate::group::request::{Extend, Nack, Settle, Settled};
use crate::group::spec::GroupSpec;

const PARTITIONS: u32 = 3;
const ACK_MS: u64 = 50;
const DELIVERIES: u32 = 3;
const IN_FLIGHT: u64 = 12;
/// In place of the id of a delivery that nobody ever saw.
const NEVER_ARRIVED: &str = "never arrived";

#[derive(Debug, Clone)]
enum Op {
    /// Hands out so many again, and of each partition so many new ones; the mask says which of those are gone.
    Poll(u8, Vec<(u8, u8)>),
    /// Settles deliveries, counted back from the last one that was ever made.
    Settle(Vec<u8>, Vec<(u8, u8)>, Vec<(u8, u8)>),
    /// What the last poll handed out did not arrive.
    Unclaim,
    /// The first of what is to go to the dead letters goes there; of the others some turn out to be gone.
    Bury(u8, u8),
    Seek(Vec<(u8, u8)>),
    Advance(u8),
    Restart,
    /// The process is killed before what the command changed is stored.
    Crash(Box<Op>),
}

fn op() -> impl Strategy<Value = Op> {
    let back = || 0_u8..24;
    let plain = prop_oneof![
        6 => (0_u8..5, prop::collection::vec((0_u8..4, any::<u8>()), 0..=PARTITIONS as usize))
            .prop_map(|(again, fresh)| Op::Poll(again, fresh)),
        6 => (
            prop::collection::vec(back(), 0..4),
            prop::collection::vec((back(), prop_oneof![Just(0_u8), 1_u8..80]), 0..3),
            prop::collection::vec((back(), 1_u8..120), 0..3),
        ).prop_map(|(ack, nack, extend)| Op::Settle(ack, nack, extend)),
        1 => Just(Op::Unclaim),
        2 => (0_u8..4, 0_u8..2).prop_map(|(buried, gone)| Op::Bury(buried, gone)),
        1 => prop::collection::vec((0_u8..4, 0_u8..20), 0..3).prop_map(Op::Seek),
        5 => (0_u8..60).prop_map(Op::Advance),
        1 => Just(Op::Restart),
    ];
    let crash = plain.clone().prop_map(|op| Op::Crash(Box::new(op)));
    prop_oneof![12 => plain, 1 => crash]
}

/// A record that was delivered and is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Until then, under this delivery.
    Held(u64, u32, u64),
    Delayed(u64, u32),
    Ready(u32),
    Dead(u32),
}

#[derive(Debug, Clone)]
struct Model {
    generation: u64,
    next: Vec<u64>,
    records: BTreeMap<Place, Known>,
    /// Done since the partition was last sought: they never come again.
    done: BTreeSet<Place>,
}

struct Run {
    machine: Shared,
    model: Model,
    cells: BTreeMap<Cell, Stored>,
    /// In milliseconds; the wall goes along, or the remaining times after a restart were others.
    ms: u64,
    /// Every delivery that was ever made: id, place, count, generation.
    made: Vec<(String, Place, u32, u64)>,
    last: Vec<usize>,
}

fn restore(cells: &BTreeMap<Cell, Stored>, now: Now) -> Shared {
    let Some(Stored::Main(main)) = cells.get(&Cell::Main) else { panic!("no main cell") };
    let Some(Stored::Start(start)) = cells.get(&Cell::Start) else { panic!("no start cell") };
    let (mut lanes, mut blocks) = (BTreeMap::new(), BTreeMap::new());
    for (cell, stored) in cells {
        match (cell, stored) {
            (Cell::Partition(partition), Stored::Lane(next)) => drop(lanes.insert(*partition, *next)),
            (Cell::Block(partition, block), Stored::Block(entries)) => {
                assert!(!entries.is_empty());
                blocks.insert((*partition, *block), entries.clone());
            }
            _ => {}
        }
    }
    Shared::restore(main, start, &lanes, &blocks, now, None)
}

/// Partitions begin near the border of a block.
fn start() -> Vec<u64> {
    (0..u64::from(PARTITIONS)).map(|partition| BLOCK_OFFSETS - 3 + partition).collect()
}

impl Run {
    fn new() -> Self {
        let main = StoredMain {
            life: [9; 16],
            spec: GroupSpec {
                mode: GroupMode::Shared,
                ack_timeout_ms: ACK_MS,
                max_deliveries: DELIVERIES,
                dead_letter: Some(tidegate_core::id::Name::new("dead").unwrap()),
                ..GroupSpec::default()
            },
            created_at_ms: 0,
            generation: 1,
            removing: false,
            members: Vec::new(),
        };
        let cells = BTreeMap::from([(Cell::Main, Stored::Main(main)), (Cell::Start, Stored::Start(start()))]);
        let model = Model { generation: 1, next: start(), records: BTreeMap::new(), done: BTreeSet::new() };
        let machine = restore(&cells, now(1_000));
        Self { machine, model, cells, ms: 1_000, made: Vec::new(), last: Vec::new() }
    }

    fn apply(&mut self, command: &Command, touched: &mut Touched) -> Outcome {
        self.machine.apply(now(self.ms), command, touched)
    }

    fn store(&mut self, touched: &Touched) {
        for cell in &touched.cells {
            match self.machine.stored(*cell) {
                Some(stored) => drop(self.cells.insert(*cell, Stored::unseal(&stored.seal()).unwrap())),
                None => drop(self.cells.remove(cell)),
            }
        }
    }

    fn give_back(&mut self, place: Place, count: u32) {
        let known = if count >= DELIVERIES { Known::Dead(count) } else { Known::Ready(count) };
        self.model.records.insert(place, known);
    }

    fn pass_time(&mut self) {
        let due = |known: &Known| match known {
            Known::Held(until, count, _) | Known::Delayed(until, count) if *until <= self.ms => Some(*count),
            _ => None,
        };
        let due: Vec<(Place, u32)> =
            self.model.records.iter().filter_map(|(place, known)| due(known).map(|count| (*place, count))).collect();
        for (place, count) in due {
            self.give_back(place, count);
        }
    }

    fn deliver(&mut self, place: Place, count: u32) -> usize {
        assert!(!self.model.done.contains(&place), "{place:?} was done and is delivered again");
        let until = self.ms + ACK_MS;
        self.model.records.insert(place, Known::Held(until, count, self.model.generation));
        self.made.push((String::new(), place, count, self.model.generation));
        self.made.len() - 1
    }

    /// The record of a delivery, counted back, if it is held still.
    fn held(&self, back: u8) -> (Box<str>, Option<(Place, u32)>) {
        let Some(at) = self.made.len().checked_sub(1 + back as usize) else { return ("none".into(), None) };
        let (id, place, count, generation) = &self.made[at];
        let known = self.model.records.get(place);
        let held = matches!(known, Some(Known::Held(_, now, at)) if now == count && at == generation);
        (id.as_str().into(), (held && id != NEVER_ARRIVED).then_some((*place, *count)))
    }

    fn poll(&mut self, again: u8, fresh: &[(u8, u8)], touched: &mut Touched) {
        let plan = Command::Plan { stamp: None, limit: 100, in_flight_max: IN_FLIGHT };
        let Outcome::Planned(plan) = self.apply(&plan, touched) else { panic!("a plan is refused") };
        let ready: BTreeSet<Place> = plan.ready.iter().copied().collect();
        let expected = self.model.records.iter().filter(|(_, known)| matches!(known, Known::Ready(_)));
        assert_eq!(ready, expected.map(|(place, _)| *place).collect());
        assert_eq!(plan.room, IN_FLIGHT.saturating_sub(self.model.records.len() as u64));
        let mut room = plan.room;
        let mut parts = Vec::new();
        for ((partition, from), (take, mask)) in plan.places.iter().zip(fresh) {
            let to = from + u64::from(*take);
            let there = (*from..to).filter(|offset| mask >> (offset - from) & 1 == 0);
            let offsets: Vec<u64> = there.collect();
            if to > *from && offsets.len() as u64 <= room {
                room -= offsets.len() as u64;
                parts.push(Fresh { partition: *partition, from: *from, to, offsets });
            }
        }
        let claim = Claim {
            stamp: None,
            generation: plan.generation,
            again: plan.ready.iter().take(again as usize).copied().collect(),
            gone: plan.ready.iter().skip(again as usize).take(1).copied().collect(),
            fresh: parts,
            in_flight_max: IN_FLIGHT,
        };
        let Outcome::Claimed(stamps) = self.apply(&Command::Claim(claim.clone()), touched) else {
            panic!("nobody else claims")
        };
        // The same once more is too late.
        if !claim.again.is_empty() || claim.fresh.iter().any(|fresh| fresh.to > fresh.from) {
            assert_eq!(self.apply(&Command::Claim(claim.clone()), touched), Outcome::LostRace);
        }
        for place in &claim.gone {
            self.model.records.remove(place);
            self.model.done.insert(*place);
        }
        let mut made = Vec::new();
        for place in &claim.again {
            let Some(Known::Ready(count)) = self.model.records.get(place).copied() else { panic!("not ready") };
            made.push(self.deliver(*place, count + 1));
        }
        for fresh in &claim.fresh {
            for offset in fresh.from..fresh.to {
                if fresh.offsets.contains(&offset) {
                    made.push(self.deliver((fresh.partition, offset), 1));
                } else {
                    self.model.done.insert((fresh.partition, offset));
                }
            }
            self.model.next[fresh.partition as usize] = fresh.to;
        }
        assert_eq!(stamps.len(), made.len());
        for (stamp, at) in stamps.iter().zip(&made) {
            assert_eq!(stamp.count, self.made[*at].2);
            assert_eq!(stamp.expires_at, now(self.ms + ACK_MS).wall);
            self.made[*at].0.clone_from(&stamp.id);
        }
        self.last = made;
    }

    fn settle(&mut self, ack: &[u8], nack: &[(u8, u8)], extend: &[(u8, u8)], touched: &mut Touched) {
        let id = |back: u8| self.held(back).0;
        let request = Settle {
            member: None,
            ack: ack.iter().map(|back| id(*back)).collect(),
            nack: nack.iter().map(|(back, ms)| Nack { id: id(*back), delay_ms: u64::from(*ms) }).collect(),
            extend: extend.iter().map(|(back, ms)| Extend { id: id(*back), ms: u64::from(*ms) }).collect(),
        };
        let outcome = self.apply(&Command::Settle(request), touched);
        let mut expected = Settled::default();
        for back in ack {
            match self.held(*back) {
                (_, Some((place, _))) => {
                    self.model.records.remove(&place);
                    self.model.done.insert(place);
                    expected.acked += 1;
                }
                (id, None) => expected.unknown.push(id),
            }
        }
        for (back, ms) in nack {
            match self.held(*back) {
                (_, Some((place, count))) if *ms == 0 => {
                    self.give_back(place, count);
                    expected.nacked += 1;
                }
                (_, Some((place, count))) => {
                    self.model.records.insert(place, Known::Delayed(self.ms + u64::from(*ms), count));
                    expected.nacked += 1;
                }
                (id, None) => expected.unknown.push(id),
            }
        }
        for (back, ms) in extend {
            match self.held(*back) {
                (_, Some((place, _))) => {
                    if let Some(Known::Held(until, ..)) = self.model.records.get_mut(&place) {
                        *until = (*until).max(self.ms + u64::from(*ms));
                    }
                    expected.extended += 1;
                }
                (id, None) => expected.unknown.push(id),
            }
        }
        assert_eq!(outcome, Outcome::Settled(expected));
    }

    fn step(&mut self, op: &Op) -> Touched {
        let mut touched = Touched::default();
        if !matches!(op, Op::Crash(_)) {
            self.pass_time();
        }
        match op {
            Op::Poll(again, fresh) => self.poll(*again, fresh, &mut touched),
            Op::Settle(ack, nack, extend) => self.settle(ack, nack, extend, &mut touched),
            Op::Unclaim => {
                let last = std::mem::take(&mut self.last);
                let ids = last.iter().map(|at| self.made[*at].0.as_str().into()).collect();
                self.apply(&Command::Unclaim { ids }, &mut touched);
                for at in last {
                    let (_, place, count, generation) = self.made[at].clone();
                    if matches!(self.model.records.get(&place), Some(Known::Held(_, now, was)) if *now == count && *was == generation)
                    {
                        self.model.records.insert(place, Known::Ready(count - 1));
                        // Nobody ever saw it.
                        self.made[at].0 = NEVER_ARRIVED.to_owned();
                    }
                }
            }
            Op::Bury(buried, gone) => {
                self.apply(&Command::Tick, &mut touched);
                let dead = self.machine.dead(100);
                let expected = self.model.records.iter().filter_map(|(place, known)| match known {
                    Known::Dead(count) => Some((place.0, place.1, *count)),
                    _ => None,
                });
                assert_eq!(dead, expected.collect::<Vec<_>>());
                let place = |(partition, offset, _): &(u32, u64, u32)| (*partition, *offset);
                let to_bury: Vec<Place> = dead.iter().take(*buried as usize).map(place).collect();
                let lost: Vec<Place> = dead.iter().skip(*buried as usize).take(*gone as usize).map(place).collect();
                let command = Command::Bury { buried: to_bury.clone(), gone: lost.clone() };
                assert_eq!(self.apply(&command, &mut touched), Outcome::Done);
                if !to_bury.is_empty() {
                    assert_eq!(self.apply(&command, &mut touched), Outcome::LostRace);
                }
                for place in to_bury {
                    self.model.records.remove(&place);
                    self.model.done.insert(place);
                }
                for place in lost {
                    if let Some(Known::Dead(count)) = self.model.records.get(&place).copied() {
                        self.model.records.insert(place, Known::Ready(count));
                    }
                }
            }
            Op::Seek(to) => {
                let positions: BTreeMap<u32, u64> = to
                    .iter()
                    .map(|(partition, to)| (u32::from(*partition), BLOCK_OFFSETS - 10 + u64::from(*to)))
                    .collect();
                let outcome = self.apply(&Command::Seek { positions: positions.clone() }, &mut touched);
                if positions.keys().any(|partition| *partition >= PARTITIONS) {
                    assert!(matches!(outcome, Outcome::Refused(Refusal::NoPartition { .. })));
                } else {
                    for (&partition, &to) in &positions {
                        self.model.records.retain(|place, _| place.0 != partition);
                        self.model.done.retain(|place| place.0 != partition);
                        self.model.next[partition as usize] = to;
                    }
                    self.model.generation += u64::from(!positions.is_empty());
                    assert_eq!(outcome, Outcome::Positions(positions));
                }
            }
            Op::Advance(ms) => {
                self.ms += u64::from(*ms);
                self.pass_time();
                self.apply(&Command::Tick, &mut touched);
            }
            Op::Restart => {
                self.apply(&Command::Tick, &mut touched);
                self.store(&touched);
                self.restart();
                touched = Touched::default();
            }
            // A restart stores first: nothing is left to lose.
            Op::Crash(op) if matches!(**op, Op::Restart) => return self.step(op),
            Op::Crash(op) => {
                let (model, made) = (self.model.clone(), self.made.clone());
                self.step(op);
                (self.model, self.made) = (model, made);
                self.restart();
                touched = Touched::default();
            }
        }
        touched
    }

    fn restart(&mut self) {
        self.machine = restore(&self.cells, now(self.ms));
        self.last.clear();
        self.pass_time();
        // What turned out to be gone from the log is looked for again.
        let ready: Vec<(Place, u32)> = self
            .model
            .records
            .iter()
            .filter_map(|(place, known)| match known {
                Known::Ready(count) => Some((*place, *count)),
                _ => None,
            })
            .collect();
        for (place, count) in ready {
            self.give_back(place, count);
        }
    }

    fn check(&mut self) {
        let mut touched = Touched::default();
        let Outcome::Described(snapshot) = self.apply(&Command::Describe, &mut touched) else { panic!("described") };
        self.pass_time();
        assert_eq!(snapshot.generation, self.model.generation);
        assert_eq!(snapshot.delivered, self.model.next);
        for partition in 0..PARTITIONS {
            let first = self.model.records.range((partition, 0)..=(partition, u64::MAX)).next();
            let floor = first.map_or(self.model.next[partition as usize], |(place, _)| place.1);
            assert_eq!(snapshot.committed[partition as usize], floor);
            let count = self.model.records.keys().filter(|place| place.0 == partition).count() as u64;
            assert_eq!(snapshot.outstanding[partition as usize], count);
            // Nothing is lost: whatever lies before `next` is out or done.
            for offset in floor..self.model.next[partition as usize] {
                let place = (partition, offset);
                assert!(self.model.records.contains_key(&place) != self.model.done.contains(&place), "{place:?}");
            }
        }
        let held = self.model.records.values().filter(|known| matches!(known, Known::Held(..))).count();
        assert_eq!(self.machine.leases.held(), held);
        assert_eq!(self.machine.outstanding, self.model.records.len() as u64);
    }
}

fn now(ms: u64) -> Now {
    Now {
        moment: Moment::since_origin(Duration::from_millis(ms)),
        wall: Timestamp::from_unix_ms(i64::try_from(ms).unwrap()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn a_shared_group_does_what_the_model_does(ops in prop::collection::vec(op(), 1..45)) {
        let mut run = Run::new();
        for op in &ops {
            let touched = run.step(op);
            run.store(&touched);
            run.check();
        }
    }
}
