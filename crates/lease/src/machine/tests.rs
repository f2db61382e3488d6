//! The lease machine's promises, one by one; `model` proves them together.

use super::*;

type Machine = LeaseMachine<&'static str>;

fn owner(subject: &str) -> Owner {
    Owner { tenant: "acme".into(), subject: subject.into() }
}

fn at(ms: u64) -> Moment {
    Moment::since_origin(Duration::from_millis(ms))
}

fn ttl(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn acquire(resource: &'static str, holder: &str, ms: u64) -> Command<&'static str> {
    Command::Acquire { resource, holder: owner(holder), ttl: ttl(ms) }
}

fn fence(resource: &'static str, holder: &str, ms: u64) -> Command<&'static str> {
    Command::Fence { resource, holder: owner(holder), ttl: ttl(ms) }
}

fn acquired(number: u64, expires_ms: u64) -> Outcome<&'static str> {
    Outcome::Acquired { epoch: Epoch::new(number), expires_at: at(expires_ms), displaced: None }
}

fn check(resource: &'static str, number: u64) -> Command<&'static str> {
    Command::Check { resource, epoch: Epoch::new(number) }
}

fn renew(resource: &'static str, number: u64, ms: u64) -> Command<&'static str> {
    Command::Renew { resource, epoch: Epoch::new(number), ttl: ttl(ms) }
}

fn release(resource: &'static str, number: u64) -> Command<&'static str> {
    Command::Release { resource, epoch: Epoch::new(number) }
}

#[test]
fn a_resource_has_one_holder_and_not_even_that_one_acquires_it_twice() {
    let mut machine = Machine::new(MachineBounds::default());
    assert_eq!(machine.apply(at(0), acquire("r", "ann", 100)), acquired(1, 100));
    for who in ["bob", "ann"] {
        let held = Outcome::HeldBy { epoch: Epoch::FIRST, expires_at: at(100) };
        assert_eq!(machine.apply(at(50), acquire("r", who, 100)), held);
    }
    assert_eq!(machine.find(at(50), &"r").map(|lease| lease.holder.clone()), Some(owner("ann")));
    assert_eq!(machine.held(), 1);
}

#[test]
fn a_lease_is_expired_at_its_deadline_and_is_never_renewed_again() {
    let mut machine = Machine::new(MachineBounds::default());
    let _ = machine.apply(at(0), acquire("r", "ann", 100));
    assert_eq!(machine.apply(at(99), check("r", 1)), Outcome::Held { expires_at: at(100) });
    assert_eq!(machine.apply(at(100), check("r", 1)), Outcome::Expired);
    assert_eq!(machine.apply(at(100), renew("r", 1, 100)), Outcome::Expired);
    assert_eq!(machine.apply(at(100), release("r", 1)), Outcome::Expired);
    assert_eq!(machine.find(at(100), &"r"), None);
    let swept = machine.apply(at(100), Command::Expire);
    let lease = ExpiredLease { resource: "r", epoch: Epoch::FIRST, holder: owner("ann"), expired_at: at(100) };
    assert_eq!(swept, Outcome::Swept { expired: vec![lease], more: false });
    assert_eq!(machine.apply(at(100), renew("r", 1, 100)), Outcome::Expired);
    assert_eq!(machine.apply(at(100), Command::Expire), Outcome::Swept { expired: vec![], more: false });
}

#[test]
fn a_clock_that_goes_back_neither_revives_nor_prolongs_a_lease() {
    let mut machine = Machine::new(MachineBounds::default());
    let _ = machine.apply(at(0), acquire("r", "ann", 100));
    assert_eq!(machine.apply(at(100), check("r", 1)), Outcome::Expired);
    assert_eq!(machine.apply(at(10), check("r", 1)), Outcome::Expired);
    assert_eq!(machine.find(at(10), &"r"), None);
    assert_eq!(machine.apply(at(10), acquire("s", "ann", 100)), acquired(1, 200));
}

#[test]
fn a_renewal_moves_the_deadline_on_and_never_forward() {
    let mut machine = Machine::new(MachineBounds::default());
    let _ = machine.apply(at(0), acquire("r", "ann", 100));
    assert_eq!(machine.apply(at(50), renew("r", 1, 100)), Outcome::Renewed { expires_at: at(150) });
    assert_eq!(machine.apply(at(60), renew("r", 1, 10)), Outcome::Renewed { expires_at: at(150) });
    assert_eq!(machine.next_deadline(), Some(at(150)));
    assert_eq!(machine.apply(at(149), check("r", 1)), Outcome::Held { expires_at: at(150) });
}

#[test]
fn a_later_holder_fences_the_earlier_in_whatever_it_asks() {
    let mut machine = Machine::new(MachineBounds::default());
    let _ = machine.apply(at(0), acquire("r", "ann", 100));
    let took_over = Outcome::Acquired { epoch: Epoch::new(2), expires_at: at(110), displaced: Some(Epoch::FIRST) };
    assert_eq!(machine.apply(at(10), fence("r", "bob", 100)), took_over);
    let fenced = Outcome::Fenced { current: Epoch::new(2) };
    for command in [check("r", 1), renew("r", 1, 999), release("r", 1)] {
        assert_eq!(machine.apply(at(20), command), fenced);
    }
    assert_eq!(machine.apply(at(20), check("r", 2)), Outcome::Held { expires_at: at(110) });
    assert_eq!(machine.held(), 1);
    // Fenced stays fenced after the later one has ended too.
    assert_eq!(machine.apply(at(30), release("r", 2)), Outcome::Released);
    assert_eq!(machine.apply(at(30), check("r", 1)), fenced);
}

#[test]
fn a_fence_on_what_nobody_holds_is_an_acquisition() {
    let mut machine = Machine::new(MachineBounds::default());
    assert_eq!(machine.apply(at(0), fence("r", "ann", 100)), acquired(1, 100));
}

#[test]
fn an_epoch_that_was_never_granted_is_unknown() {
    let mut machine = Machine::new(MachineBounds::default());
    assert_eq!(machine.apply(at(0), check("r", 1)), Outcome::Unknown);
    let _ = machine.apply(at(0), acquire("r", "ann", 100));
    for command in [check("r", 2), renew("r", 2, 1), release("r", 2)] {
        assert_eq!(machine.apply(at(0), command), Outcome::Unknown);
    }
    assert_eq!(machine.held(), 1);
}

#[test]
fn a_release_is_idempotent_and_frees_the_resource_for_a_higher_epoch() {
    let mut machine = Machine::new(MachineBounds::default());
    let _ = machine.apply(at(0), acquire("r", "ann", 100));
    for command in [release("r", 1), release("r", 1), renew("r", 1, 5), check("r", 1)] {
        assert_eq!(machine.apply(at(1), command), Outcome::Released);
    }
    assert_eq!(machine.next_deadline(), None);
    assert_eq!(machine.apply(at(2), acquire("r", "bob", 100)), acquired(2, 102));
}

#[test]
fn an_expiry_that_no_sweep_told_is_told_by_the_next_acquisition() {
    let mut machine = Machine::new(MachineBounds::default());
    let _ = machine.apply(at(0), acquire("r", "ann", 100));
    let next = Outcome::Acquired { epoch: Epoch::new(2), expires_at: at(300), displaced: Some(Epoch::FIRST) };
    assert_eq!(machine.apply(at(200), acquire("r", "bob", 100)), next);
    assert_eq!(machine.apply(at(200), Command::Expire), Outcome::Swept { expired: vec![], more: false });
}

#[test]
fn a_forgotten_resource_comes_back_with_a_higher_epoch_than_it_ever_had() {
    let bounds = MachineBounds { remembered_max: 1, ..MachineBounds::default() };
    let mut machine = Machine::new(bounds);
    for number in 1..=5 {
        let _ = machine.apply(at(0), fence("r", "ann", 100));
        assert_eq!(machine.find(at(0), &"r").map(|lease| lease.epoch), Some(Epoch::new(number)));
    }
    let _ = machine.apply(at(0), release("r", 5));
    let _ = machine.apply(at(0), acquire("s", "ann", 100));
    let _ = machine.apply(at(0), release("s", 1));
    assert_eq!(machine.remembered(), 1, "r was forgotten");
    assert_eq!(machine.apply(at(0), check("r", 5)), Outcome::Unknown);
    assert_eq!(machine.apply(at(0), acquire("r", "bob", 100)), acquired(6, 100));
    assert_eq!(machine.apply(at(0), check("r", 5)), Outcome::Fenced { current: Epoch::new(6) });
    assert_eq!(machine.highest_epoch(), Some(Epoch::new(6)));
}

#[test]
fn no_epoch_is_given_after_the_last() {
    let mut machine = Machine::above(MachineBounds::default(), Epoch::new(u64::MAX - 1));
    assert_eq!(machine.apply(at(0), acquire("r", "ann", 100)), acquired(u64::MAX, 100));
    assert_eq!(machine.apply(at(1), fence("r", "bob", 100)), Outcome::EpochExhausted);
    assert_eq!(machine.apply(at(1), check("r", u64::MAX)), Outcome::Held { expires_at: at(100) }, "nothing changed");
    assert_eq!(machine.apply(at(1), release("r", u64::MAX)), Outcome::Released);
    assert_eq!(machine.apply(at(1), acquire("r", "bob", 100)), Outcome::EpochExhausted);
}

#[test]
fn a_full_machine_refuses_and_changes_nothing() {
    let mut machine = Machine::new(MachineBounds { held_max: 1, ..MachineBounds::default() });
    let _ = machine.apply(at(0), acquire("r", "ann", 100));
    assert_eq!(machine.apply(at(0), acquire("s", "ann", 100)), Outcome::Full { limit: 1 });
    assert_eq!(machine.apply(at(0), fence("s", "ann", 100)), Outcome::Full { limit: 1 });
    assert_eq!(machine.apply(at(0), check("s", 1)), Outcome::Unknown);
    // Taking over what is held needs no further place.
    assert!(matches!(machine.apply(at(0), fence("r", "bob", 100)), Outcome::Acquired { .. }));
}

#[test]
fn a_sweep_is_bounded_and_goes_by_deadline() {
    let mut machine = LeaseMachine::<u64>::new(MachineBounds { sweep_max: 4, ..MachineBounds::default() });
    for n in 0..10 {
        let command = Command::Acquire { resource: n, holder: owner("ann"), ttl: ttl(100 - n) };
        let _ = machine.apply(at(0), command);
    }
    assert_eq!(machine.next_deadline(), Some(at(91)));
    let mut order = Vec::new();
    loop {
        let Outcome::Swept { expired, more } = machine.apply(at(99), Command::Expire) else {
            panic!("a sweep gives what it swept")
        };
        assert!(expired.len() <= 4);
        order.extend(expired.into_iter().map(|lease| lease.resource));
        if !more {
            break;
        }
    }
    assert_eq!(order, [9, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(machine.next_deadline(), Some(at(100)));
}

#[test]
fn a_lease_without_time_is_expired_from_its_start_and_one_without_end_never_is() {
    let mut machine = Machine::new(MachineBounds::default());
    assert_eq!(machine.apply(at(5), acquire("r", "ann", 0)), acquired(1, 5));
    assert_eq!(machine.apply(at(5), check("r", 1)), Outcome::Expired);
    let for_ever = Command::Acquire { resource: "s", holder: owner("ann"), ttl: Duration::MAX };
    let _ = machine.apply(at(5), for_ever);
    assert_eq!(machine.apply(at(u64::MAX / 2_000_000), check("s", 1)), Outcome::Held { expires_at: Moment::NEVER });
}

#[test]
fn the_leases_of_an_owner_are_its_own_and_are_held() {
    let mut machine = Machine::new(MachineBounds::default());
    let _ = machine.apply(at(0), acquire("r", "ann", 100));
    let _ = machine.apply(at(0), acquire("s", "bob", 100));
    let _ = machine.apply(at(0), acquire("t", "ann", 10));
    let ann = owner("ann");
    let own: Vec<_> = machine.leases_of(at(50), &ann).map(|lease| *lease.resource).collect();
    assert_eq!(own, ["r"]);
}
