//! The coordinator's promises, one a test, and random commands against them all.

use super::*;
use proptest::prelude::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn at(ms: u64) -> Moment {
    Moment::since_origin(Duration::from_millis(ms))
}

fn schedule() -> Schedule {
    let ms = Duration::from_millis;
    Schedule { interval: ms(100), time_out: ms(50), min_pause: ms(20), tolerated_failures: 2 }
}

fn everybody() -> Participants {
    let one = |text| BTreeSet::from([name(text)]);
    Participants { operators: one("sum"), sources: one("orders"), sinks: one("sqlite") }
}

fn coordinator() -> Coordinator {
    Coordinator::new(schedule(), everybody(), at(0))
}

/// Brings an attempt to its `Publish`.
fn gather(machine: &mut Coordinator, ms: u64, attempt: Attempt) {
    let _ = machine.apply(at(ms), Command::Positioned(attempt, name("orders")));
    let _ = machine.apply(at(ms), Command::Snapshotted(attempt, name("sum")));
    let publish = machine.apply(at(ms), Command::PreCommitted(attempt, name("sqlite")));
    assert_eq!(publish, Outcome::Publish { attempt });
}

fn begin(machine: &mut Coordinator, ms: u64) -> Attempt {
    match machine.apply(at(ms), Command::Tick) {
        Outcome::Begin { attempt, .. } => attempt,
        other => panic!("{other:?} at {ms}"),
    }
}

#[test]
fn a_checkpoint_begins_at_its_interval_and_not_before() {
    let mut machine = coordinator();
    assert_eq!(machine.apply(at(99), Command::Tick), Outcome::Wait { until: at(100) });
    assert_eq!(begin(&mut machine, 100), Attempt(1));
}

#[test]
fn two_jobs_keep_two_schedules() {
    let (mut a, mut b) = (coordinator(), Coordinator::new(schedule(), everybody(), at(50)));
    begin(&mut a, 1_000);
    begin(&mut b, 1_000);
}

#[test]
fn the_sinks_commit_only_after_the_manifest_is_durable_and_all_of_them() {
    let mut machine = coordinator();
    let attempt = begin(&mut machine, 100);
    let early = machine.apply(at(101), Command::Published(attempt, Generation(7)));
    assert_eq!(early, Outcome::Stale, "not everybody gave what they had to");
    gather(&mut machine, 110, attempt);
    let sinks = everybody().sinks;
    let commit = machine.apply(at(120), Command::Published(attempt, Generation(7)));
    assert_eq!(commit, Outcome::Commit { generation: Generation(7), sinks: sinks.clone() });
    assert_eq!(machine.apply(at(121), Command::Tick), Outcome::Wait { until: at(140) }, "one at a time");
    let _ = machine.apply(at(122), Command::CommitFailed(Generation(7), name("sqlite")));
    assert_eq!(machine.apply(at(300), Command::Tick), Outcome::Commit { generation: Generation(7), sinks });
    let done = machine.apply(at(301), Command::Committed(Generation(7), name("sqlite")));
    assert_eq!(done, Outcome::Done { generation: Generation(7) });
    let twice = machine.apply(at(302), Command::Committed(Generation(7), name("sqlite")));
    assert_eq!(twice, Outcome::Stale);
    assert_eq!(machine.apply(at(303), Command::Tick), Outcome::Wait { until: at(321) }, "the pause");
    begin(&mut machine, 321);
}

#[test]
fn an_attempt_that_takes_too_long_is_aborted_and_what_comes_later_is_stale() {
    let mut machine = coordinator();
    let attempt = begin(&mut machine, 100);
    assert_eq!(machine.apply(at(149), Command::Tick), Outcome::Wait { until: at(150) });
    assert_eq!(machine.apply(at(150), Command::Tick), Outcome::Abort { attempt });
    assert_eq!(machine.apply(at(151), Command::Snapshotted(attempt, name("sum"))), Outcome::Stale);
    assert_eq!(machine.apply(at(152), Command::Tick), Outcome::Wait { until: at(200) });
}

#[test]
fn a_manifest_that_is_being_written_is_never_aborted_blindly() {
    let mut machine = coordinator();
    let attempt = begin(&mut machine, 100);
    gather(&mut machine, 110, attempt);
    assert_eq!(machine.apply(at(150), Command::Tick), Outcome::Settle { attempt });
    assert!(matches!(machine.apply(at(151), Command::Tick), Outcome::Wait { .. }));
    assert!(matches!(machine.apply(at(160), Command::Published(attempt, Generation(3))), Outcome::Commit { .. }));
}

#[test]
fn failures_are_tolerated_as_many_as_were_said_and_counted_anew_after_a_success() {
    let mut machine = coordinator();
    let mut ms = 100;
    for round in 0..3 {
        for _ in 0..2 {
            let attempt = begin(&mut machine, ms);
            assert_eq!(machine.apply(at(ms + 1), Command::Failed(attempt)), Outcome::Abort { attempt });
            ms += 100;
        }
        let attempt = begin(&mut machine, ms);
        if round == 2 {
            assert_eq!(machine.apply(at(ms), Command::Failed(attempt)), Outcome::GiveUp { failures: 3 });
            assert_eq!(machine.apply(at(ms + 999), Command::Tick), Outcome::GiveUp { failures: 3 });
            return;
        }
        gather(&mut machine, ms, attempt);
        let _ = machine.apply(at(ms), Command::Published(attempt, Generation(ms)));
        let _ = machine.apply(at(ms), Command::Committed(Generation(ms), name("sqlite")));
        ms += 100;
    }
}

#[test]
fn a_savepoint_is_made_at_once_by_its_name_and_again_if_it_failed() {
    let mut machine = coordinator();
    assert_eq!(machine.apply(at(1), Command::Savepoint(name("s"))), Outcome::Queued);
    assert_eq!(machine.apply(at(1), Command::Savepoint(name("s"))), Outcome::Refused);
    let begun = machine.apply(at(1), Command::Tick);
    assert_eq!(begun, Outcome::Begin { attempt: Attempt(1), savepoint: Some(name("s")) });
    assert_eq!(machine.apply(at(2), Command::Savepoint(name("s"))), Outcome::Refused);
    let _ = machine.apply(at(2), Command::Failed(Attempt(1)));
    let again = machine.apply(at(3), Command::Tick);
    assert_eq!(again, Outcome::Begin { attempt: Attempt(2), savepoint: Some(name("s")) });
    for n in 0..SAVEPOINTS_WAITING_MAX {
        assert_eq!(machine.apply(at(3), Command::Savepoint(name(&n.to_string()))), Outcome::Queued);
    }
    assert_eq!(machine.apply(at(3), Command::Savepoint(name("more"))), Outcome::Refused);
}

#[test]
fn what_a_recovery_found_is_committed_first() {
    let mut machine = coordinator();
    let recommit = machine.apply(at(0), Command::Recovered(Generation(9)));
    assert!(matches!(recommit, Outcome::Commit { generation: Generation(9), .. }));
    assert!(!matches!(machine.apply(at(1_000), Command::Tick), Outcome::Begin { .. }));
    let _ = machine.apply(at(1_000), Command::Committed(Generation(9), name("sqlite")));
    begin(&mut machine, 1_020);
}

#[test]
fn a_clock_that_goes_back_is_one_on_which_no_time_passes() {
    let mut machine = coordinator();
    let attempt = begin(&mut machine, 1_000);
    assert_eq!(machine.apply(at(0), Command::Tick), Outcome::Wait { until: at(1_050) });
    gather(&mut machine, 0, attempt);
}

fn commands() -> impl Strategy<Value = (u64, u8, u64)> {
    (0_u64..40, 0_u8..9, 0_u64..6)
}

proptest! {
    #[test]
    fn one_at_a_time_in_order_within_its_times(script in proptest::collection::vec(commands(), 0..300)) {
        let mut machine = coordinator();
        let (mut ms, mut under_way, mut committing) = (0_u64, None, None);
        let (mut began, mut ended, mut generation) = (0_u64, None::<u64>, 0_u64);
        let mut failures = 0;
        for (by, which, of) in script {
            ms += by;
            let attempt = Attempt(of);
            let savepoint_waits = !machine.waiting.is_empty();
            let command = match which {
                0..=2 => Command::Tick,
                3 => Command::Savepoint(name(&of.to_string())),
                4 => Command::Positioned(machine.attempt().unwrap_or(attempt), name("orders")),
                5 => Command::Snapshotted(machine.attempt().unwrap_or(attempt), name("sum")),
                6 => Command::PreCommitted(machine.attempt().unwrap_or(attempt), name("sqlite")),
                7 => { generation += 1; Command::Published(machine.attempt().unwrap_or(attempt), Generation(generation)) }
                _ => match committing { Some(g) => Command::Committed(g, name("sqlite")), None => Command::Failed(attempt) },
            };
            match machine.apply(at(ms), command) {
                Outcome::Begin { attempt, savepoint } => {
                    prop_assert!(under_way.is_none() && committing.is_none());
                    if savepoint.is_none() {
                        prop_assert!(!savepoint_waits && ms >= began + 100 && ended.is_none_or(|ended| ms >= ended + 20));
                    }
                    under_way = Some(attempt);
                    began = ms;
                }
                Outcome::Commit { generation, .. } => {
                    if under_way.take().is_some() { failures = 0; }
                    committing = Some(generation);
                }
                Outcome::Done { generation } => {
                    prop_assert_eq!(committing.take(), Some(generation));
                    ended = Some(ms);
                }
                Outcome::Abort { attempt } => {
                    prop_assert_eq!(under_way.take(), Some(attempt));
                    failures += 1;
                    prop_assert!(failures <= 2);
                    ended = Some(ms);
                }
                Outcome::GiveUp { failures } => { prop_assert_eq!(failures, 3); break; }
                Outcome::Publish { attempt } | Outcome::Settle { attempt } => prop_assert_eq!(under_way, Some(attempt)),
                _ => {}
            }
        }
    }
}
