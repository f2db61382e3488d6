//! The machine alone: cut at every batch it goes on exactly; what makes no sense is refused.

use proptest::prelude::*;

use super::super::coverage::{Coverage, Interval};
use super::super::state::{Snapshot, TableCopy};
use super::super::table::tests::table;
use super::*;

/// A transaction: its messages, one letter each.
type Script = Vec<Vec<char>>;

fn fresh(copy: Option<Copy>) -> State {
    State::new("1".into(), 1, "s".into(), copy)
}

/// What a server sends from `position` on: it describes a table before its first change on each connection.
fn run(script: &Script, state: State, position: Lsn, bytes_max: usize) -> Vec<ChangeBatch> {
    let mut machine = Assembler::new(state, position, bytes_max);
    let mut described = None;
    let mut batches = Vec::new();
    for (number, messages) in script.iter().enumerate() {
        let commit = Lsn(100 + 10 * number as u64);
        if commit < position {
            continue;
        }
        machine.take(Message::Begin { commit, time_us: 0, xid: number as u32 + 50 }).unwrap();
        for message in messages {
            // The table has another key column from the first `a` of a transaction with one on.
            let altered = script[..number].iter().any(|earlier| earlier.contains(&'a'))
                || messages.iter().take_while(|one| !std::ptr::eq(*one, message)).any(|one| *one == 'a')
                || *message == 'a';
            if described != Some(altered) {
                machine.describe(Arc::new(table(!altered)));
                described = Some(altered);
            }
            let row = |id| vec![Value::Text(id), Value::Text("x"), Value::Null];
            let change = match message {
                'i' | 'a' => Message::Insert { relation: 7, new: row("1") },
                'u' => Message::Update { relation: 7, old: None, new: row("1") },
                'm' => Message::Update { relation: 7, old: Some(Old::Key(row("2"))), new: row("1") },
                'd' => Message::Delete { relation: 7, old: Old::Key(row("1")) },
                _ => Message::Truncate { relations: vec![7, 7], cascade: false, restart_identity: false },
            };
            batches.extend(machine.take(change).unwrap());
        }
        batches.extend(machine.take(Message::Commit { commit, end: Lsn(commit.0 + 5) }).unwrap());
    }
    batches
}

fn changes(batches: &[ChangeBatch]) -> Vec<(Box<str>, Change)> {
    batches.iter().flat_map(|batch| batch.changes.clone()).collect()
}

proptest! {
    #[test]
    fn cut_at_any_batch_it_goes_on_with_the_next_change(
        script in proptest::collection::vec(proptest::collection::vec("[iumdta]".prop_map(|s| s.chars().next().unwrap()), 0..9), 1..6),
        bytes_max in 1usize..2500,
        other_max in 1usize..2500,
    ) {
        let whole = run(&script, fresh(None), Lsn(0), bytes_max);
        let expected = changes(&whole);
        for (at, batch) in whole.iter().enumerate() {
            let state = State::decode(&batch.state).unwrap();
            let position = Lsn::of(&batch.position).unwrap();
            let mut got = changes(&whole[..=at]);
            got.extend(changes(&run(&script, state, position, other_max)));
            prop_assert_eq!(&got, &expected, "cut after batch {}", at);
        }
        let places: Vec<_> = expected.iter().map(|(_, change)| change.source.clone().unwrap()).collect();
        for pair in places.windows(2) {
            let next = if pair[0].position == pair[1].position { pair[0].index + 1 } else { 0 };
            prop_assert_eq!(pair[1].index, next);
        }
    }
}

fn copied(intervals: Vec<Interval>) -> Copy {
    let mut copy = Copy::new(Lsn(1));
    copy.done = true;
    // The first saw nothing of ours, the second all below 1000.
    copy.snapshots =
        vec![Snapshot::parse("10:10:", Lsn(500)).unwrap(), Snapshot::parse("1000:1000:", Lsn(600)).unwrap()];
    let covered = Coverage(intervals);
    copy.tables.insert(7, TableCopy { files: "1".into(), key: vec!["id".into()], begun: true, covered });
    copy
}

#[test]
fn a_change_that_the_copy_saw_is_dropped_by_the_snapshot_of_its_keys_range() {
    let middle = Some(vec!["10".into()]);
    let copy = copied(vec![
        Interval { after: None, to: middle.clone(), snapshot: 0 },
        Interval { after: middle, to: None, snapshot: 1 },
    ]);
    let mut machine = Assembler::new(fresh(Some(copy)), Lsn(1), 1 << 20);
    let row = |id| vec![Value::Text(id), Value::Text("x"), Value::Null];
    let mut keys_of = |commit: u64| {
        machine.take(Message::Begin { commit: Lsn(commit), time_us: 0, xid: 77 }).unwrap();
        machine.describe(Arc::new(table(true)));
        for id in ["9", "10", "11", "100"] {
            machine.take(Message::Insert { relation: 7, new: row(id) }).unwrap();
        }
        let moved = Message::Update { relation: 7, old: Some(Old::Key(row("9"))), new: row("11") };
        machine.take(moved).unwrap();
        let batch = machine.take(Message::Commit { commit: Lsn(commit), end: Lsn(commit + 1) }).unwrap().unwrap();
        let shown = batch.changes.iter().filter(|(_, change)| change.operation != Operation::Message);
        let shown = shown.map(|(_, change)| format!("{:?} {}", change.operation, change.key.as_deref().unwrap()));
        (shown.collect::<Vec<_>>(), batch.state.len())
    };
    let (early, long) = keys_of(400);
    assert_eq!(early, [r#"Insert {"id":9}"#, r#"Insert {"id":10}"#, r#"Delete {"id":9}"#]);
    // Behind both snapshots nothing was seen, and the copy is forgotten.
    let (late, short) = keys_of(600);
    assert_eq!(late.len(), 6);
    assert!(short < long / 2, "{short} {long}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let row = || vec![Value::Text("1"), Value::Null, Value::Null];
    let begin = |commit| Message::Begin { commit: Lsn(commit), time_us: 0, xid: 1 };
    let end = |commit| Message::Commit { commit: Lsn(commit), end: Lsn(commit + 1) };
    let machine = || Assembler::new(fresh(None), Lsn(0), 1);
    assert!(machine().take(end(1)).is_err());
    assert!(machine().take(Message::Insert { relation: 7, new: row() }).is_err());
    let mut twice = machine();
    twice.take(begin(1)).unwrap();
    assert!(twice.take(begin(2)).is_err());
    let mut other = machine();
    other.take(begin(1)).unwrap();
    assert!(matches!(other.take(Message::Insert { relation: 7, new: row() }), Err(Nonsense::UnknownTable(7))));
    let mut wrong_end = machine();
    wrong_end.take(begin(1)).unwrap();
    assert!(wrong_end.take(end(2)).is_err());
    let mut state = fresh(None);
    state.part = Some(Part { commit: Lsn(5), messages: 3, index: 3 });
    let mut skipped = Assembler::new(state.clone(), Lsn(0), 1);
    assert!(skipped.take(begin(6)).is_err(), "the transaction that was read in part is not there");
    let mut shorter = Assembler::new(state, Lsn(0), 1);
    shorter.take(begin(5)).unwrap();
    assert!(shorter.take(end(5)).is_err(), "it has less than was read of it");
}
