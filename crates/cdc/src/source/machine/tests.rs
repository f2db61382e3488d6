//! The machine's rules, each by its name.

use super::*;

const TERM: Duration = Duration::from_secs(15);
const A: Holder = Holder([1; 16]);
const B: Holder = Holder([2; 16]);

fn at(seconds: u64) -> Moment {
    Moment::since_origin(Duration::from_secs(1_000 + seconds))
}

fn machine() -> SourceMachine {
    SourceMachine::new(A, TERM, SpillBounds { records: 10, bytes: 1_000 })
}

fn observe(epoch: u64, holder: Holder, revision: u64, at_once: bool) -> Command {
    Command::Observe { found: Some((Epoch::new(epoch), holder, Revision(revision))), at_once }
}

#[test]
fn whoever_begins_takes_the_term_and_whoever_was_fenced_waits_for_its_end() {
    let mut machine = machine();
    let nothing = Command::Observe { found: None, at_once: true };
    assert_eq!(machine.apply(at(0), nothing), Outcome::Take(Epoch::FIRST));
    let _ = machine.apply(at(0), Command::Took { epoch: Epoch::FIRST });
    assert_eq!(machine.apply(at(1), observe(1, A, 1, false)), Outcome::Hold);
    // Another process began.
    let _ = machine.apply(at(2), Command::Fenced { current: Epoch::new(2) });
    assert_eq!(machine.apply(at(2), observe(2, B, 2, false)), Outcome::StandBy(at(17)));
    // Silence is counted from when the last sign of life was seen here.
    assert_eq!(machine.apply(at(10), observe(2, B, 2, false)), Outcome::StandBy(at(17)));
    assert_eq!(machine.apply(at(16), observe(2, B, 3, false)), Outcome::StandBy(at(31)));
    assert_eq!(machine.apply(at(31), observe(2, B, 3, false)), Outcome::Take(Epoch::new(3)));
    // A process that has just begun waits for nobody.
    assert_eq!(machine.apply(at(31), observe(9, B, 9, true)), Outcome::Take(Epoch::new(10)));
    assert_eq!(machine.apply(at(31), observe(u64::MAX, B, 9, true)), Outcome::StandBy(Moment::NEVER));
}

#[test]
fn a_back_off_grows_to_its_bound_and_begins_anew_after_progress() {
    let mut machine = machine();
    let wait = |machine: &mut SourceMachine, chance| match machine
        .apply(at(0), Command::Failed { failure: Failure::Passing, chance })
    {
        Outcome::RetryAt(until) => until.saturating_since(at(0)),
        other => panic!("{other:?}"),
    };
    assert_eq!(wait(&mut machine, 0), Duration::from_millis(100));
    assert!((100..200).contains(&wait(&mut machine, 0).as_millis().div_euclid(2)));
    for chance in 0..100 {
        let wait = wait(&mut machine, chance * 0x1234_5678_9abc);
        assert!(wait < Duration::from_secs(15));
    }
    assert!(wait(&mut machine, u64::MAX) >= Duration::from_millis(7_500));
    let _ = machine.apply(at(0), Command::Progress);
    assert!(wait(&mut machine, u64::MAX) < Duration::from_millis(200));
}

#[test]
fn what_streams_refuse_is_kept_up_to_the_bound_of_all_of_them() {
    let mut machine = machine();
    let spilled = |table: &str, records| Command::Spilled { table: table.into(), records, bytes: records * 10 };
    let spill = |records, bytes| Command::Spill { records, bytes };
    assert_eq!(machine.apply(at(0), spill(10, 1_000)), Outcome::Keep);
    assert_eq!(machine.apply(at(0), spill(11, 1)), Outcome::Full);
    assert_eq!(machine.apply(at(0), spill(1, 1_001)), Outcome::Full);
    let _ = machine.apply(at(0), spilled("a", 4));
    let _ = machine.apply(at(0), spilled("b", 6));
    assert_eq!(machine.apply(at(0), spill(1, 1)), Outcome::Full);
    let drained = |table: &str, records| Command::Drained { table: table.into(), records, bytes: records * 10 };
    let _ = machine.apply(at(0), drained("a", 3));
    assert_eq!(machine.lag("a").map(|lag| lag.records), Some(1));
    assert_eq!(machine.apply(at(0), spill(3, 1)), Outcome::Keep);
    assert_eq!(machine.apply(at(0), spill(4, 1)), Outcome::Full);
    let _ = machine.apply(at(0), drained("a", 1));
    assert!(machine.lag("a").is_none(), "a stream that has everything is forgotten");
    assert_eq!(machine.lags().len(), 1);
}

#[test]
fn a_stream_that_refuses_again_is_tried_later_each_time() {
    let mut machine = machine();
    let _ = machine.apply(at(0), Command::Spilled { table: "a".into(), records: 1, bytes: 1 });
    let mut last = Duration::ZERO;
    for _ in 0..4 {
        let refused = Command::Refused { table: "a".into(), chance: 0 };
        let Outcome::RetryAt(until) = machine.apply(at(0), refused) else { panic!("it is tried again") };
        let wait = until.saturating_since(at(0));
        assert!(wait > last);
        last = wait;
    }
    assert_eq!(machine.next_retry().map(|(_, table)| table), Some("a"));
}
