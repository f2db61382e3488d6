//! The buckets against a model that has no levels: it keeps the times of all that was let in, and looks at every window of them.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tidegate_core::id::Name;
use tidegate_core::time::Moment;

use super::bucket::Buckets;
use super::*;

fn place(tenant: &str, usecase: &str, scopes: &str) -> Collection {
    let name = |text: &str| Name::new(text).unwrap();
    Collection { tenant: name(tenant), usecase: name(usecase), scopes: Scopes::parse(scopes).unwrap() }
}

fn selector(tenant: Option<&str>, usecase: Option<&str>, scopes: Option<&str>) -> Selector {
    Selector {
        tenant: tenant.map(|text| Name::new(text).unwrap()),
        usecase: usecase.map(|text| Name::new(text).unwrap()),
        scopes: scopes.map(|text| Scopes::parse(text).unwrap()),
    }
}

fn requests(per_second: u64, burst: u64) -> RateRule {
    RateRule { of: Selector::default(), requests: Some(Rate { per_second, burst }), bytes: None, each: None }
}

fn bytes(per_second: u64, burst: u64) -> RateRule {
    RateRule { of: Selector::default(), requests: None, bytes: Some(Rate { per_second, burst }), each: None }
}

fn rules(rate: Vec<RateRule>) -> Arc<Rules> {
    Arc::new(Rules::new(Vec::new(), rate).unwrap())
}

fn at(ns: u64) -> Moment {
    Moment::since_origin(Duration::from_nanos(ns))
}

const SECOND: u64 = 1_000_000_000;

/// A rule as a law: in every window no more than the burst and what comes in meanwhile.
struct Law {
    rate: Rate,
    of: Selector,
    each: Option<Each>,
    let_in: Vec<(u64, Collection)>,
}

impl Law {
    fn shares(&self, one: &Collection, other: &Collection) -> bool {
        match self.each {
            None => true,
            Some(Each::Tenant) => one.tenant == other.tenant,
            Some(Each::Usecase) => one.tenant == other.tenant && one.usecase == other.usecase,
            Some(Each::Scopes) => one == other,
        }
    }

    fn allows(&self, now: u64, collection: &Collection) -> bool {
        if !self.of.matches(collection) {
            return true;
        }
        let others: Vec<u64> =
            self.let_in.iter().filter(|(_, other)| self.shares(collection, other)).map(|(then, _)| *then).collect();
        let token = u128::from(SECOND);
        others.iter().enumerate().all(|(before, then)| {
            let count = (others.len() - before + 1) as u128;
            let passed = u128::from(now - then) * u128::from(self.rate.per_second);
            count * token <= u128::from(self.rate.burst) * token + passed
        })
    }
}

fn rule() -> impl Strategy<Value = RateRule> {
    let selectors = prop_oneof![
        Just(selector(None, None, None)),
        Just(selector(Some("a"), None, None)),
        Just(selector(None, Some("u"), None)),
        Just(selector(None, None, Some("o=1"))),
    ];
    let each = prop_oneof![Just(None), proptest::sample::select(&Each::ALL[..]).prop_map(Some)];
    (selectors, 1..5_u64, 1..6_u64, each).prop_map(|(of, per_second, burst, each)| RateRule {
        of,
        requests: Some(Rate { per_second, burst }),
        bytes: None,
        each,
    })
}

fn collection() -> impl Strategy<Value = Collection> {
    let scopes = proptest::sample::select(vec!["_", "o=1", "o=1;p=2", "o=12"]);
    (proptest::sample::select(vec!["a", "b"]), proptest::sample::select(vec!["u", "v"]), scopes)
        .prop_map(|(tenant, usecase, scopes)| place(tenant, usecase, scopes))
}

proptest! {
    #[test]
    fn what_is_let_in_is_what_every_window_of_every_rule_has_room_for(
        rate in proptest::collection::vec(rule(), 1..4),
        asked in proptest::collection::vec((0..2 * SECOND, collection()), 1..60),
        replaced_at in 0..60_usize,
    ) {
        let mut laws: Vec<Law> = rate
            .iter()
            .map(|rule| Law { rate: rule.requests.unwrap(), of: rule.of.clone(), each: rule.each, let_in: Vec::new() })
            .collect();
        let reversed: Vec<RateRule> = rate.iter().rev().cloned().collect();
        let mut buckets = Buckets::new(rules(rate), Moment::ORIGIN);
        let mut now = 0;
        for (step, (wait, collection)) in asked.into_iter().enumerate() {
            if step == replaced_at {
                // The same rules in another order: nothing is forgotten.
                buckets.replace(rules(reversed.clone()), at(now));
            }
            now += wait / 7;
            let allowed = laws.iter().all(|law| law.allows(now, &collection));
            match buckets.admit(at(now), &collection, false) {
                Ok(()) => {
                    prop_assert!(allowed);
                    laws.iter_mut().filter(|law| law.of.matches(&collection)).for_each(|law| {
                        law.let_in.push((now, collection.clone()));
                    });
                }
                Err(Refused::Requests { wait, .. }) => {
                    prop_assert!(!allowed);
                    let ms = u64::try_from(wait.as_millis()).unwrap();
                    prop_assert!(ms > 0);
                    let then = now + ms * 1_000_000;
                    prop_assert!(laws.iter().all(|law| law.allows(then, &collection)), "it is long enough");
                    let before = now + (ms - 1) * 1_000_000;
                    prop_assert!(!laws.iter().all(|law| law.allows(before, &collection)), "it is not too long");
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn bytes_pass_at_their_rate_and_no_faster(
        per_second in BYTES_MIN..BYTES_MIN * 100,
        burst in 1..BYTES_MIN * 10,
        pieces in proptest::collection::vec((1..20_000_u64, 0..SECOND), 1..50),
    ) {
        let mut buckets = Buckets::new(rules(vec![bytes(per_second, burst)]), Moment::ORIGIN);
        let collection = place("a", "u", "_");
        let (mut now, mut passed): (u64, Vec<(u64, u64)>) = (0, Vec::new());
        for (size, pause) in pieces {
            now += pause;
            let wait = buckets.charge(at(now), &collection, size).wait;
            now += u64::try_from(wait.as_nanos()).unwrap();
            passed.push((now, size));
            // In every window that ends here: what a bucket of this size and rate lets through, and the piece that opened it.
            for first in 0..passed.len() {
                let sum: u64 = passed[first + 1..].iter().map(|(_, size)| size).sum();
                let since = u128::from(now - passed[first].0);
                let room = u128::from(burst) * u128::from(SECOND) + since * u128::from(per_second);
                prop_assert!(u128::from(sum) * u128::from(SECOND) <= room, "{sum} bytes in {since} ns");
            }
        }
    }
}

#[test]
fn a_rule_is_for_scopes_and_what_lies_below_them() {
    let org = selector(None, None, Some("org=17"));
    for (scopes, matches) in [("org=17", true), ("org=17;project=42", true), ("org=170", false), ("_", false)] {
        assert_eq!(org.matches(&place("a", "u", scopes)), matches, "{scopes}");
    }
    let project = selector(None, None, Some("org=17;project=42"));
    assert!(!project.matches(&place("a", "u", "org=17")));
    let none = selector(None, None, Some("_"));
    assert!(none.matches(&place("a", "u", "_")) && !none.matches(&place("a", "u", "org=17")));
}

#[test]
fn what_is_switched_off_names_what_was_asked_for_and_no_rule() {
    let kill = vec![KillRule { of: selector(Some("acme"), Some("files"), None), operations: vec![Access::Delete] }];
    let cell = PolicyCell::new(Rules::new(kill, Vec::new()).unwrap(), Moment::ORIGIN);
    let refused = cell.admit(Moment::ORIGIN, &place("acme", "files", "_"), Access::Delete).unwrap_err();
    assert_eq!((refused.code(), refused.retry()), ("operation_disabled", Retry::Never));
    assert_eq!(refused.to_string(), "to delete objects of usecase \"files\" is switched off");
    for (tenant, usecase, access) in
        [("acme", "files", Access::Read), ("other", "files", Access::Delete), ("acme", "mail", Access::Delete)]
    {
        assert_eq!(cell.admit(Moment::ORIGIN, &place(tenant, usecase, "_"), access), Ok(()), "{tenant} {usecase}");
    }
}

#[test]
fn a_refusal_takes_nothing_from_the_other_buckets() {
    let narrow = RateRule { of: selector(None, Some("v"), None), ..requests(1, 1) };
    let mut buckets = Buckets::new(rules(vec![requests(1, 3), narrow]), Moment::ORIGIN);
    let (u, v) = (place("a", "u", "_"), place("a", "v", "_"));
    assert!(buckets.admit(at(0), &v, false).is_ok());
    for _ in 0..10 {
        assert!(matches!(buckets.admit(at(0), &v, false), Err(Refused::Requests { rule: 1, .. })));
    }
    assert!(buckets.admit(at(0), &u, false).is_ok() && buckets.admit(at(0), &u, false).is_ok());
    assert!(matches!(buckets.admit(at(0), &u, false), Err(Refused::Requests { rule: 0, .. })));
}

#[test]
fn rules_that_change_begin_full_and_the_others_keep_what_they_have() {
    let cell = PolicyCell::new(Rules::new(Vec::new(), vec![requests(1, 1)]).unwrap(), at(0));
    let here = place("a", "u", "_");
    let ask = || cell.admit(at(0), &here, Access::Read).is_ok();
    assert!(ask() && !ask());
    let other = RateRule { of: selector(Some("nobody"), None, None), ..requests(1, 1) };
    cell.replace(Rules::new(Vec::new(), vec![other, requests(1, 1)]).unwrap(), at(0));
    assert!(!ask(), "it stands elsewhere and is the same");
    cell.replace(Rules::new(Vec::new(), vec![requests(1, 2)]).unwrap(), at(0));
    assert!(ask() && ask() && !ask(), "another rule");
    cell.replace(Rules::default(), at(0));
    assert!(ask());
}

#[test]
fn the_buckets_of_each_are_bounded() {
    let rule = RateRule { each: Some(Each::Scopes), ..requests(1, 1) };
    let mut buckets = Buckets::new(rules(vec![rule]), at(0));
    let ask = |buckets: &mut Buckets, number: usize| {
        buckets.admit(at(0), &place("a", "u", &format!("org={number}")), false).is_ok()
    };
    for number in 0..BUCKET_MAX_COUNT {
        assert!(ask(&mut buckets, number));
    }
    assert!(!ask(&mut buckets, 0), "used again, it is not the next to go");
    assert!(ask(&mut buckets, BUCKET_MAX_COUNT));
    assert_eq!(buckets.kept(), BUCKET_MAX_COUNT);
    assert!(!ask(&mut buckets, 0));
    assert!(ask(&mut buckets, 1), "it was forgotten");
}

#[test]
fn what_a_rule_is_owed_is_forgotten_for_no_other_rule_and_for_no_bucket_that_is_full() {
    let owed = RateRule { each: Some(Each::Tenant), ..bytes(BYTES_MIN, BYTES_MIN) };
    let asked = RateRule { each: Some(Each::Scopes), ..requests(1_000, 1) };
    let mut buckets = Buckets::new(rules(vec![owed.clone(), asked]), at(0));
    let owes = |buckets: &mut Buckets| buckets.begin(at(SECOND), &place("a", "u", "_"), 1).is_err();
    let _ = buckets.charge(at(0), &place("a", "u", "_"), 100 * BYTES_MIN);
    for number in 0..BUCKET_MAX_COUNT {
        assert!(buckets.admit(at(0), &place("a", "u", &format!("org={number}")), false).is_ok());
    }
    assert_eq!(buckets.kept(), BUCKET_MAX_COUNT / 2 + 1, "each rule has its own part");
    assert!(owes(&mut buckets));
    // And of its own buckets a rule forgets those that nobody would miss.
    let mut buckets = Buckets::new(rules(vec![owed]), at(0));
    let _ = buckets.charge(at(0), &place("a", "u", "_"), 100 * BYTES_MIN);
    for number in 0..BUCKET_MAX_COUNT {
        assert!(buckets.begin(at(SECOND), &place(&format!("t{number}"), "u", "_"), 0).is_ok());
    }
    assert_eq!(buckets.kept(), BUCKET_MAX_COUNT);
    assert!(owes(&mut buckets));
}

#[test]
fn a_body_begins_unless_too_much_is_owed_and_what_did_not_come_is_given_back() {
    let cell = PolicyCell::new(Rules::new(Vec::new(), vec![bytes(BYTES_MIN, BYTES_MIN)]).unwrap(), at(0));
    let here = place("a", "u", "_");
    let begin = |bytes: u64| cell.begin(at(0), &here, bytes).map(|charged| charged.wait);
    assert_eq!(begin(BYTES_MIN), Ok(Duration::ZERO), "the burst");
    assert_eq!(begin(4 * BYTES_MIN), Ok(Duration::from_secs(4)));
    let charged = cell.begin(at(0), &here, 2 * BYTES_MIN).unwrap();
    assert_eq!(charged.wait, Duration::from_secs(6));
    let refused = begin(1).unwrap_err();
    assert_eq!((refused.code(), refused.retry()), ("rate_limited", Retry::After(Duration::from_secs(1))));
    cell.give_back(at(0), &here, 2 * BYTES_MIN, charged);
    assert_eq!(begin(BYTES_MIN), Ok(Duration::from_secs(5)));
    assert_eq!(cell.charge(at(0), &here, 100 * BYTES_MIN).wait, Duration::from_secs(105), "it waits for its turn");
    cell.give_back(at(0), &here, u64::MAX, charged);
    assert_eq!(begin(BYTES_MIN + 1).unwrap(), Duration::from_nanos(61_036), "never more than the burst");
}

#[test]
fn many_bodies_at_once_pass_no_more_than_the_rate_and_leave_no_debt_when_they_go() {
    const PIECE: u64 = 72 * 1_024;
    const RATE: u64 = 1_024 * 1_024;
    let cell = PolicyCell::new(Rules::new(Vec::new(), vec![bytes(RATE, RATE)]).unwrap(), at(0));
    let here = place("a", "u", "_");
    // 1,000 bodies, each of which charges a piece when its last has passed: together they owe 68 seconds.
    let mut pending: std::collections::BTreeMap<(Duration, usize), Charged> = (0..1_000)
        .map(|body| {
            let charged = cell.charge(at(0), &here, PIECE);
            ((charged.wait, body), charged)
        })
        .collect();
    let mut passed = 0;
    let end = Duration::from_secs(300);
    while let Some(((now, body), _)) = pending.pop_first() {
        if now > end {
            pending.insert((now, body), cell.charge(Moment::since_origin(end), &here, 0));
            break;
        }
        passed += PIECE;
        assert!(passed <= RATE + RATE * (now.as_millis() as u64 + 1) / 1_000, "{passed} bytes in {now:?}");
        let charged = cell.charge(Moment::since_origin(now), &here, PIECE);
        assert!(charged.wait <= Duration::from_nanos(1_000 * PIECE * SECOND / RATE + 1), "a piece for each body");
        pending.insert((now + charged.wait, body), charged);
    }
    assert!(passed >= RATE * 300, "and no less");
    let end = Moment::since_origin(end);
    assert!(cell.begin(end, &here, 1).is_err());
    for charged in pending.into_values() {
        cell.give_back(end, &here, PIECE, charged);
    }
    let waits = cell.begin(end, &here, 1).map(|charged| charged.wait);
    assert_eq!(waits, Ok(Duration::ZERO), "nobody waits for those who went");
}

#[test]
fn a_body_is_refused_for_what_is_owed_before_it_takes_a_request_and_a_head_is_not() {
    let rate = vec![bytes(BYTES_MIN, 1), requests(1, 2)];
    let cell = PolicyCell::new(Rules::new(Vec::new(), rate).unwrap(), at(0));
    let here = place("a", "u", "_");
    let _ = cell.charge(at(0), &here, 8 * BYTES_MIN);
    for _ in 0..5 {
        let refused = cell.admit_body(at(0), &here, Access::Read).unwrap_err();
        assert!(matches!(refused, Refused::Bytes { rule: 0, shared: true, .. }), "{refused:?}");
    }
    assert_eq!((0..3).filter(|_| cell.admit(at(0), &here, Access::Read).is_ok()).count(), 2, "nothing was taken");
    let refused = cell.admit_body(at(0), &here, Access::Read).unwrap_err();
    assert_eq!(refused.retry(), Retry::After(Duration::from_secs(3)), "of both the longer wait");
}

#[test]
fn what_was_charged_under_other_rules_is_given_back_to_nobody() {
    let cell = PolicyCell::new(Rules::new(Vec::new(), vec![bytes(BYTES_MIN, BYTES_MIN)]).unwrap(), at(0));
    let here = place("a", "u", "_");
    let before = cell.charge(at(0), &here, 6 * BYTES_MIN);
    cell.replace(Rules::new(Vec::new(), vec![bytes(2 * BYTES_MIN, BYTES_MIN)]).unwrap(), at(0));
    let after = cell.charge(at(0), &here, 3 * BYTES_MIN);
    assert_eq!(after.wait, Duration::from_secs(1), "another rule begins full");
    assert!(!before.is_with(after));
    cell.give_back(at(0), &here, 6 * BYTES_MIN, before);
    assert_eq!(cell.charge(at(0), &here, 0).wait, Duration::from_secs(1), "it was never charged for that");
    cell.give_back(at(0), &here, 2 * BYTES_MIN, after);
    assert_eq!(cell.charge(at(0), &here, 0).wait, Duration::ZERO);
}

#[test]
fn whose_wait_tells_of_others_is_said() {
    let of_one = RateRule { of: selector(Some("a"), None, None), ..requests(1, 1) };
    for (rule, expected) in
        [(requests(1, 1), true), (RateRule { each: Some(Each::Tenant), ..requests(1, 1) }, false), (of_one, false)]
    {
        let mut buckets = Buckets::new(rules(vec![rule]), at(0));
        assert!(buckets.admit(at(0), &place("a", "u", "_"), false).is_ok());
        let refused = buckets.admit(at(0), &place("a", "u", "_"), false).unwrap_err();
        assert!(matches!(refused, Refused::Requests { shared, .. } if shared == expected), "{refused:?}");
    }
}

#[test]
fn a_step_back_of_the_time_gives_nothing() {
    let mut buckets = Buckets::new(rules(vec![requests(1, 1)]), at(SECOND));
    let here = place("a", "u", "_");
    assert!(buckets.admit(at(SECOND), &here, false).is_ok());
    assert!(buckets.admit(at(0), &here, false).is_err());
    assert!(buckets.admit(at(2 * SECOND - 1), &here, false).is_err());
    assert!(buckets.admit(at(2 * SECOND), &here, false).is_ok());
}

#[test]
fn rules_outside_their_ranges_are_refused() {
    let refused = |rate: Vec<RateRule>| Rules::new(Vec::new(), rate).unwrap_err();
    assert_eq!(refused(vec![requests(1, 1); RULE_MAX_COUNT + 1]), RulesError::TooMany { count: RULE_MAX_COUNT + 1 });
    for rule in [requests(0, 1), requests(1, 0), requests(REQUESTS_MAX + 1, 1), bytes(BYTES_MIN - 1, 1)] {
        assert_eq!(refused(vec![requests(1, 1), rule]), RulesError::OutOfRange { rule: 1 });
    }
    let nothing = RateRule { requests: None, ..requests(1, 1) };
    assert_eq!(refused(vec![nothing]), RulesError::Nothing { rule: 0 });
}
