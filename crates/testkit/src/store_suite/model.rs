//! Any sequence of commands against a small model of the log: what must be there, what may be gone already, and why.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tidegate_core::port::{
    AppendOutcome, AppendRecord, ChangeLog, Commit, Compaction, Created, LogError, LogReadItem, LogSpec, ReadBounds,
    Retention, Revision, StreamId, Trim,
};
use tidegate_core::position::{GapReason, Offset, Partition};
use tidegate_core::time::{Clock, Timestamp};

use super::*;
use crate::wait::block_on;

/// A configuration of so many cases, or of `PROPTEST_CASES`. Nothing is written beside the sources.
pub(super) fn cases(cases: u32) -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    config
}

/// A condition of a command: none, one that holds, one that does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    None,
    Right,
    Wrong,
}

/// Records for a partition: each with its key, and whether it is a tombstone.
type Wanted = (u32, Vec<(Option<u8>, bool)>);

#[derive(Debug, Clone)]
enum Command {
    Create { stream: usize, spec: usize },
    Append { stream: usize, partitions: Vec<Wanted>, offset: Condition, state: Condition },
    Trim { stream: usize, partition: u32, part: u8 },
    Remove { stream: usize },
    Read { stream: usize, partition: u32, part: u8, records: u32, bytes: u64 },
    Later { tens_of_ms: u8 },
    Maintain,
    Reopen,
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![6 => Just(Condition::None), 4 => Just(Condition::Right), 1 => Just(Condition::Wrong)]
}

fn command() -> impl Strategy<Value = Command> {
    let stream = || 0..3_usize;
    let record = (proptest::option::weighted(0.7, 0..4_u8), proptest::bool::weighted(0.2));
    // Partitions at most once; 3 is none of any stream's.
    let partitions = proptest::sample::subsequence(vec![0, 1, 2, 3_u32], 1..=3)
        .prop_filter("a partition that is missing is the exception", |all| !all.contains(&3) || all.len() == 3);
    let partitions = partitions.prop_shuffle().prop_flat_map(move |all| {
        let records = proptest::collection::vec(record.clone(), 1..5);
        proptest::collection::vec(records, all.len())
            .prop_map(move |records| all.iter().copied().zip(records).collect())
    });
    prop_oneof![
        3 => (stream(), 0..5_usize).prop_map(|(stream, spec)| Command::Create { stream, spec }),
        12 => (stream(), partitions, condition(), condition()).prop_map(|(stream, partitions, offset, state)| {
            Command::Append { stream, partitions, offset, state }
        }),
        2 => (stream(), 0..4_u32, any::<u8>()).prop_map(|(stream, partition, part)| {
            Command::Trim { stream, partition, part }
        }),
        1 => stream().prop_map(|stream| Command::Remove { stream }),
        4 => (stream(), 0..4_u32, any::<u8>(), 0..6_u32, 0..40_u64).prop_map(|(stream, partition, part, records, bytes)| {
            Command::Read { stream, partition, part, records, bytes }
        }),
        3 => (1..8_u8).prop_map(|tens_of_ms| Command::Later { tens_of_ms }),
        3 => Just(Command::Maintain),
        1 => Just(Command::Reopen),
    ]
}

/// The kinds of stream. Ages and graces end in 5 and the clock goes by tens, so that nothing lies right on an edge. Retention
/// by number and compaction are not combined: which is first decides what is left.
fn spec(kind: usize) -> LogSpec {
    match kind {
        0 => keep_all(3),
        1 => LogSpec { retention: Retention { records: Some(5), ..Retention::default() }, ..keep_all(2) },
        2 => LogSpec { retention: Retention { age_ms: Some(95), ..Retention::default() }, ..keep_all(3) },
        3 => LogSpec { compaction: Some(Compaction { tombstone_grace_ms: 45 }), ..keep_all(2) },
        _ => LogSpec {
            start: Offset(1_000),
            retention: Retention { age_ms: Some(205), ..Retention::default() },
            compaction: Some(Compaction { tombstone_grace_ms: 45 }),
            ..keep_all(1)
        },
    }
}

const PRESENT: u8 = 1;
const RETAINED: u8 = 2;
const COMPACTED: u8 = 4;
const TRIMMED: u8 = 8;

/// The place of a record, and what a reader may find there.
struct Slot {
    bytes: Bytes,
    key: Option<Bytes>,
    tombstone: bool,
    time: Timestamp,
    append: u64,
    allowed: u8,
}

impl Slot {
    /// It may be gone for this reason already.
    fn may_go(&mut self, reason: u8) {
        if self.allowed & PRESENT != 0 {
            self.allowed |= reason;
        }
    }

    /// It is gone, for this reason unless it was before. A store may count what was compacted away below a trim or a
    /// retention to that.
    fn must_go(&mut self, reason: u8) {
        if self.allowed & (PRESENT | COMPACTED) != 0 {
            self.allowed |= reason;
        }
        self.allowed &= !PRESENT;
    }
}

struct ModelStream {
    spec: LogSpec,
    partitions: Vec<Vec<Slot>>,
}

impl ModelStream {
    fn next(&self, partition: usize) -> u64 {
        self.spec.start.0 + self.partitions[partition].len() as u64
    }

    fn too_old(slot: &Slot, limit_ms: Option<u64>, now: Timestamp) -> bool {
        limit_ms.is_some_and(|limit| now.unix_ms() - slot.time.unix_ms() > limit as i64)
    }

    /// What may have happened by now without anybody asking for it (`must` = what a maintenance makes certain).
    fn age(&mut self, now: Timestamp, must: bool) {
        let go = |slot: &mut Slot, reason| if must { slot.must_go(reason) } else { slot.may_go(reason) };
        for slots in &mut self.partitions {
            for slot in slots.iter_mut().filter(|slot| Self::too_old(slot, self.spec.retention.age_ms, now)) {
                go(slot, RETAINED);
            }
            let Some(compaction) = self.spec.compaction else { continue };
            let newest: BTreeMap<Bytes, usize> =
                slots.iter().enumerate().filter_map(|(at, slot)| Some((slot.key.clone()?, at))).collect();
            for (at, slot) in slots.iter_mut().enumerate() {
                let Some(key) = &slot.key else { continue };
                let replaced = newest[key] != at;
                if replaced || (slot.tombstone && Self::too_old(slot, Some(compaction.tombstone_grace_ms), now)) {
                    // What is gone for another reason is not compacted away: `must_go` counts the other way round only.
                    let before = slot.allowed;
                    go(slot, COMPACTED);
                    if before & PRESENT == 0 {
                        slot.allowed = before;
                    }
                }
            }
        }
    }

    /// What an append to a partition makes certain.
    fn retain(&mut self, partition: usize, now: Timestamp) {
        let slots = &mut self.partitions[partition];
        let over = self.spec.retention.records.map_or(0, |most| slots.len().saturating_sub(most as usize));
        for (at, slot) in slots.iter_mut().enumerate() {
            if at < over || Self::too_old(slot, self.spec.retention.age_ms, now) {
                slot.must_go(RETAINED);
            }
        }
    }
}

/// A world, and what it should hold.
struct Play<W> {
    world: W,
    streams: BTreeMap<usize, ModelStream>,
    revisions: BTreeMap<usize, Revision>,
    commits: BTreeMap<u64, Commit>,
    appends: u64,
}

fn id(stream: usize) -> StreamId {
    named("tenant", &format!("s{stream}"))
}

fn part_of(part: u8, start: u64, next: u64) -> u64 {
    // Now and then beyond the tail.
    start.saturating_sub(1) + (next + 2 - start.saturating_sub(1)) * u64::from(part) / 256
}

impl<W: StoreWorld> Play<W> {
    fn now(&self) -> Timestamp {
        self.world.clock().timestamp()
    }

    async fn run(mut self, command: Command) -> Self {
        let log = self.world.store();
        match command {
            Command::Create { stream, spec: kind } => {
                let created = log.create(&id(stream), &spec(kind)).await.expect("a creation is answered");
                match self.streams.get(&stream) {
                    None => {
                        assert_eq!(created, Created::New);
                        let partitions = (0..spec(kind).partitions).map(|_| Vec::new()).collect();
                        self.streams.insert(stream, ModelStream { spec: spec(kind), partitions });
                    }
                    Some(there) if there.spec == spec(kind) => assert_eq!(created, Created::Existed),
                    Some(there) => assert_eq!(created, Created::Differs(there.spec.clone())),
                }
            }
            Command::Append { stream, partitions, offset, state } => {
                self.append(stream, partitions, offset, state).await;
            }
            Command::Trim { stream, partition, part } => self.trim(stream, partition, part).await,
            Command::Remove { stream } => {
                let left = log.trim(&id(stream), Trim::Stream).await.expect("a removal is answered");
                assert!(left.is_empty());
                self.streams.remove(&stream);
            }
            Command::Read { stream, partition, part, records, bytes } => {
                self.read(stream, partition, part, ReadBounds { records, bytes }).await;
            }
            Command::Later { tens_of_ms } => {
                later(&self.world, u64::from(tens_of_ms) * 10);
                let now = self.now();
                self.streams.values_mut().for_each(|stream| stream.age(now, false));
            }
            Command::Maintain => {
                self.world.maintain().await;
                let now = self.now();
                self.streams.values_mut().for_each(|stream| stream.age(now, true));
                drop(log);
                self.check_all().await;
            }
            Command::Reopen => {
                drop(log);
                self.world = self.world.reopen().await;
                self.check_all().await;
            }
        }
        self
    }

    async fn append(&mut self, stream: usize, partitions: Vec<Wanted>, offset: Condition, state: Condition) {
        self.appends += 1;
        let append_number = self.appends;
        let partitions: Vec<(u32, Vec<AppendRecord>)> = partitions
            .into_iter()
            .map(|(partition, records)| {
                let records = records.into_iter().enumerate().map(|(at, (key, tombstone))| AppendRecord {
                    bytes: format!("{append_number}/{partition}/{at}").into(),
                    key: key.map(|key| Bytes::from(vec![key])),
                    tombstone,
                });
                (partition, records.collect())
            })
            .collect();
        let mut one = batch(&self.world, &id(stream), partitions.clone());
        let model = self.streams.get(&stream);
        let mut refusals = Vec::new();
        for append in &mut one.streams[0].partitions {
            let number = append.partition.0 as usize;
            let Some(model) = model.filter(|model| number < model.partitions.len()) else {
                refusals.push(AppendOutcome::NoSuchPartition { stream: 0, partition: append.partition });
                continue;
            };
            let next = Offset(model.next(number));
            match offset {
                Condition::None => {}
                Condition::Right => append.expected_next = Some(next),
                Condition::Wrong => {
                    append.expected_next = Some(Offset(next.0 + 1));
                    refusals.push(AppendOutcome::OffsetMismatch { stream: 0, partition: append.partition, next });
                }
            }
        }
        let revision = self.revisions.get(&stream).copied();
        let key = format!("state {stream}");
        match state {
            Condition::None => {}
            Condition::Right => one.state.push(put(&key, revision, "x")),
            Condition::Wrong => {
                one.state.push(put(&key, Some(Revision(u64::MAX)), "x"));
                refusals.push(AppendOutcome::StateMismatch { index: 0, revision });
            }
        }
        let outcome = try_append(&*self.world.store(), one).await;
        let AppendOutcome::Appended(ranges) = outcome else {
            assert!(refusals.contains(&outcome), "{outcome:?}, and not one of {refusals:?}");
            return;
        };
        assert!(refusals.is_empty(), "was appended, in spite of {refusals:?}");
        let now = self.now();
        let model = self.streams.get_mut(&stream).expect("it was appended to");
        assert_eq!(ranges.len(), partitions.len());
        for (range, (number, records)) in ranges.iter().zip(partitions) {
            let partition = number as usize;
            assert_eq!((range.partition.0, range.base.0), (number, model.next(partition)));
            for AppendRecord { bytes, key, tombstone } in records {
                let slot = Slot { bytes, key, tombstone, time: now, append: append_number, allowed: PRESENT };
                model.partitions[partition].push(slot);
            }
            assert_eq!(range.next.0, model.next(partition));
            model.retain(partition, now);
        }
        model.age(now, false);
        if state == Condition::Right {
            let (_, now) = value(&*self.world.store(), &key).await.expect("it was put");
            assert!(revision.is_none_or(|before| now > before), "revisions grow");
            self.revisions.insert(stream, now);
        }
        self.check(stream, WIDE).await;
    }

    async fn trim(&mut self, stream: usize, partition: u32, part: u8) {
        let log = self.world.store();
        let Some(model) = self.streams.get_mut(&stream).filter(|model| (partition as usize) < model.partitions.len())
        else {
            let trim = Trim::Before { partition: Partition(partition), before: Offset(u64::from(part)) };
            assert!(matches!(log.trim(&id(stream), trim).await, Err(LogError::NotFound)));
            return;
        };
        let next = model.next(partition as usize);
        let before = part_of(part, model.spec.start.0, next);
        let trim = Trim::Before { partition: Partition(partition), before: Offset(before) };
        let outcome = log.trim(&id(stream), trim).await;
        if before > next {
            assert!(matches!(outcome, Err(LogError::OutOfRange { .. })), "{outcome:?}");
        } else {
            outcome.expect("a trim is answered");
            let gone = before.saturating_sub(model.spec.start.0) as usize;
            model.partitions[partition as usize][..gone].iter_mut().for_each(|slot| slot.must_go(TRIMMED));
        }
        drop(log);
        self.check(stream, WIDE).await;
    }

    async fn read(&mut self, stream: usize, partition: u32, part: u8, bounds: ReadBounds) {
        let log = self.world.store();
        let Some(model) = self.streams.get(&stream).filter(|model| (partition as usize) < model.partitions.len())
        else {
            let read = log.read(&id(stream), Partition(partition), Offset(u64::from(part)), bounds).await;
            assert!(matches!(read, Err(LogError::NotFound)));
            return;
        };
        let next = model.next(partition as usize);
        let from = part_of(part, model.spec.start.0, next);
        if from > next {
            let read = log.read(&id(stream), Partition(partition), Offset(from), bounds).await;
            assert!(matches!(read, Err(LogError::OutOfRange { .. })), "{read:?}");
        } else {
            let items = bounded(&*log, &id(stream), Partition(partition), Offset(from), bounds).await;
            Self::compare(model, &mut self.commits, partition as usize, from, &items);
        }
    }

    async fn check_all(&mut self) {
        for stream in 0..3 {
            if self.streams.contains_key(&stream) {
                self.check(stream, ReadBounds { records: 3, ..WIDE }).await;
            } else {
                assert!(all_bounds(&*self.world.store(), &id(stream)).await.is_empty());
            }
            let revision = value(&*self.world.store(), &format!("state {stream}")).await.map(|(_, revision)| revision);
            assert_eq!(revision, self.revisions.get(&stream).copied());
        }
    }

    async fn check(&mut self, stream: usize, bounds: ReadBounds) {
        let log = self.world.store();
        let Some(model) = self.streams.get(&stream) else { return };
        let told = all_bounds(&*log, &id(stream)).await;
        assert_eq!(told.len(), model.partitions.len());
        for (partition, of) in told.into_iter().enumerate() {
            assert_eq!(of.next.0, model.next(partition));
            let items = bounded(&*log, &id(stream), of.partition, Offset::ZERO, bounds).await;
            Self::compare(model, &mut self.commits, partition, 0, &items);
            let record = items.iter().find(|item| matches!(item, LogReadItem::Record { .. }));
            let first = record.map_or(of.next, |item| extent(item).0);
            assert!(of.earliest <= first, "{of:?}, and the first record is at {first:?}");
            if model.spec.compaction.is_none() {
                assert_eq!(of.earliest, first);
            }
        }
    }

    fn compare(
        model: &ModelStream,
        commits: &mut BTreeMap<u64, Commit>,
        partition: usize,
        from: u64,
        items: &[LogReadItem],
    ) {
        let start = model.spec.start.0;
        let slot = |offset: u64| Some(&model.partitions[partition][usize::try_from(offset.checked_sub(start)?).ok()?]);
        let mut at = from;
        for item in items {
            match item {
                LogReadItem::Record { offset, commit, append_time, bytes } => {
                    let slot = slot(offset.0).expect("before the start there is no record");
                    assert!(slot.allowed & PRESENT != 0, "{offset:?} should be gone: {item:?}");
                    assert_eq!((bytes, append_time), (&slot.bytes, &slot.time));
                    let told = *commits.entry(slot.append).or_insert(*commit);
                    assert_eq!(told, *commit, "one append is one commit");
                }
                LogReadItem::Gap(gap) => {
                    let reason = match gap.reason {
                        GapReason::Retention => RETAINED,
                        GapReason::Compaction => COMPACTED,
                        GapReason::Trim => TRIMMED,
                    };
                    for slot in (gap.from.0..gap.to.0).filter_map(slot) {
                        assert!(slot.allowed & reason != 0, "{:?} is not gone so: {gap:?}", slot.bytes);
                    }
                }
            }
            assert_eq!(extent(item).0.0, at);
            at = extent(item).1.0;
        }
        assert_eq!(at, model.next(partition));
        assert!(commits.values().is_sorted_by(|first, second| first < second), "later appends have higher commits");
    }
}

/// Creates, appends, trims, removals, the passing of time, maintenance and reopening in any order.
pub fn any_commands_leave_what_the_model_of_the_log_says<W: StoreWorld>() {
    let commands = proptest::collection::vec(command(), 1..50);
    let outcome = TestRunner::new(cases(W::CASES)).run(&commands, |commands| {
        block_on(async {
            let world = W::fresh().await;
            let mut play = Play {
                world,
                streams: BTreeMap::new(),
                revisions: BTreeMap::new(),
                commits: BTreeMap::new(),
                appends: 0,
            };
            // Most commands need a stream: one of every kind of retention is there at first.
            for (stream, spec) in [(0, 0), (1, 2), (2, 3)] {
                play = play.run(Command::Create { stream, spec }).await;
            }
            for command in commands {
                play = play.run(command).await;
            }
            play.run(Command::Maintain).await.run(Command::Reopen).await;
        });
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
