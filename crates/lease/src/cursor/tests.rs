//! The cursor table's promises: bounded, owner-bound, and the same answer for a stranger's cursor as for none.

use super::*;
use proptest::prelude::*;

fn owner(tenant: &str, subject: &str) -> Owner {
    Owner { tenant: tenant.into(), subject: subject.into() }
}

fn ann() -> Owner {
    owner("acme", "ann")
}

fn token(number: u64) -> CursorToken {
    CursorToken::parse(&format!("{number:048x}")).expect("48 hex digits")
}

fn at(ms: u64) -> Moment {
    Moment::since_origin(Duration::from_millis(ms))
}

fn table<T: Clone>(live_max: usize, tombstone_max: usize, keep_ms: u64) -> CursorTable<T> {
    CursorTable::new(CursorBounds { live_max, tombstone_max, keep: Duration::from_millis(keep_ms) })
}

#[test]
fn unknown_and_foreign_cursors_get_the_identical_answer() {
    let mut table = table(9, 9, 1_000);
    table.insert(&token(1), &ann(), "live").unwrap();
    table.insert(&token(2), &ann(), "ended").unwrap();
    table.end(&token(2), CursorEnd::Cancelled, at(0));
    assert_eq!(table.find(&token(1), &ann()), Found::Live("live"));
    assert_eq!(table.find(&token(2), &ann()), Found::Ended(CursorEnd::Cancelled));
    // The last two would be ann if the owner's parts were joined without their lengths.
    let strangers = [owner("acme", "bob"), owner("other", "ann"), owner("", "acmeann"), owner("acmea", "nn")];
    for stranger in strangers {
        for number in [1, 2, 3] {
            assert_eq!(table.find(&token(number), &stranger), Found::NotFound, "{stranger:?} {number}");
        }
    }
    assert_eq!(table.find(&token(3), &ann()), Found::NotFound);
}

#[test]
fn an_ended_cursor_tells_how_it_ended_and_the_first_end_stays() {
    let mut table = table(9, 9, 1_000);
    let ends = [CursorEnd::Cancelled, CursorEnd::Expired, CursorEnd::Released];
    for (number, end) in (0..).zip(ends) {
        table.insert(&token(number), &ann(), number).unwrap();
        assert_eq!(table.end(&token(number), end, at(0)), Some(number), "who ends it gets what it stood for");
        for later in ends {
            assert_eq!(table.end(&token(number), later, at(1)), None);
        }
        assert_eq!(table.find(&token(number), &ann()), Found::Ended(end));
    }
    assert_eq!(table.end(&token(77), CursorEnd::Cancelled, at(0)), None);
    assert_eq!((table.live(), table.tombstones()), (0, 3));
}

#[test]
fn a_cursor_can_be_ended_by_who_has_its_key_only() {
    let mut table = table(9, 9, 1_000);
    let key = table.insert(&token(1), &ann(), "value").unwrap();
    assert_eq!(key, CursorKey::of(&token(1)));
    assert_eq!(table.end_key(&key, CursorEnd::Expired, at(0)), Some("value"));
    assert_eq!(table.find(&token(1), &ann()), Found::Ended(CursorEnd::Expired));
}

#[test]
fn a_tombstone_is_forgotten_at_its_time() {
    let mut table = table(9, 9, 100);
    table.insert(&token(1), &ann(), ()).unwrap();
    table.end(&token(1), CursorEnd::Cancelled, at(50));
    assert_eq!(table.sweep(at(149)), 0);
    assert_eq!(table.find(&token(1), &ann()), Found::Ended(CursorEnd::Cancelled));
    assert_eq!(table.sweep(at(150)), 1);
    assert_eq!(table.find(&token(1), &ann()), Found::NotFound);
}

#[test]
fn a_sweep_is_bounded() {
    let max = CursorTable::<()>::SWEEP_MAX;
    let mut table = table(9, 4 * max, 100);
    for number in 0..2 * max as u64 + 1 {
        table.insert(&token(number), &ann(), ()).unwrap();
        table.end(&token(number), CursorEnd::Released, at(0));
    }
    let swept: Vec<_> = (0..4).map(|_| table.sweep(at(100))).collect();
    assert_eq!(swept, [max, max, 1, 0]);
}

#[test]
fn a_hundred_thousand_cursors_leave_no_more_tombstones_than_the_bound() {
    let mut table = table(4, 1_000, 1_000_000);
    for number in 0..100_000 {
        table.insert(&token(number), &ann(), number).unwrap();
        assert_eq!(table.end(&token(number), CursorEnd::Cancelled, at(number)), Some(number));
        assert!(table.tombstones() <= 1_000 && table.cursors.len() <= 1_000);
    }
    assert_eq!((table.live(), table.tombstones()), (0, 1_000));
    assert!(table.cursors.capacity() < 4_000 && table.tombstones.capacity() < 4_000, "no memory is left behind either");
    assert_eq!(table.find(&token(98_999), &ann()), Found::NotFound, "the oldest went first");
    assert_eq!(table.find(&token(99_000), &ann()), Found::Ended(CursorEnd::Cancelled));
}

#[test]
fn a_full_table_and_a_token_drawn_twice_are_refused_and_change_nothing() {
    let mut table = table(2, 9, 1_000);
    table.insert(&token(1), &ann(), "first").unwrap();
    assert_eq!(table.insert(&token(1), &owner("acme", "bob"), "second"), Err(CursorRefused::Taken));
    assert_eq!(table.find(&token(1), &ann()), Found::Live("first"));
    table.insert(&token(2), &ann(), "other").unwrap();
    let full = table.insert(&token(3), &ann(), "third").unwrap_err();
    assert_eq!(full, CursorRefused::Full { limit: 2 });
    assert_eq!((full.code(), full.kind()), ("cursor_capacity_exhausted", ErrorKind::Exhausted));
    table.end(&token(1), CursorEnd::Cancelled, at(0));
    assert!(table.insert(&token(3), &ann(), "third").is_ok(), "a tombstone takes no living place");
    table.end(&token(2), CursorEnd::Cancelled, at(0));
    assert_eq!(
        table.insert(&token(1), &ann(), "again"),
        Err(CursorRefused::Taken),
        "an ended token is not given again"
    );
}

#[test]
fn no_token_is_kept_or_shown() {
    let mut table = table(9, 9, 1_000);
    let token = CursorToken::parse(&"ab".repeat(24)).unwrap();
    table.insert(&token, &ann(), ()).unwrap();
    let shown = format!("{table:?}");
    // 0xab is 171: a token that was kept would show as a list of those.
    assert!(!shown.contains("abab") && !shown.contains("171, 171"), "{shown}");
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u64, bool),
    End(u64, u8),
    Sweep,
}

/// Number, owner, and the end with the time from which it is forgotten.
type Row = (u64, usize, Option<(CursorEnd, i64)>);

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn the_table_does_what_a_plain_list_does(
        live_max in 0..5_usize,
        tombstone_max in 0..5_usize,
        keep_ms in 0..60_u64,
        steps in prop::collection::vec((-10..30_i64, prop_oneof![
            4 => (0..8_u64, any::<bool>()).prop_map(|(n, other)| Step::Insert(n, other)),
            4 => (0..8_u64, 0..3_u8).prop_map(|(n, end)| Step::End(n, end)),
            1 => Just(Step::Sweep),
        ]), 0..60)
    ) {
        let owners = [ann(), owner("acme", "bob")];
        let ends = [CursorEnd::Cancelled, CursorEnd::Expired, CursorEnd::Released];
        let mut table = table(live_max, tombstone_max, keep_ms);
        let mut list: Vec<Row> = Vec::new();
        let mut clock = 100_i64;
        for (moved, step) in steps {
            clock = (clock + moved).max(0);
            let now = at(clock.unsigned_abs());
            let live = list.iter().filter(|(_, _, end)| end.is_none()).count();
            match step {
                Step::Insert(number, other) => {
                    let got = table.insert(&token(number), &owners[usize::from(other)], number).map(drop);
                    let want = if live >= live_max {
                        Err(CursorRefused::Full { limit: live_max })
                    } else if list.iter().any(|(n, ..)| *n == number) {
                        Err(CursorRefused::Taken)
                    } else {
                        list.push((number, usize::from(other), None));
                        Ok(())
                    };
                    prop_assert_eq!(got, want);
                }
                Step::End(number, how) => {
                    let got = table.end(&token(number), ends[usize::from(how)], now);
                    let at = list.iter().position(|(n, _, end)| *n == number && end.is_none());
                    prop_assert_eq!(got, at.map(|_| number));
                    if let Some(at) = at {
                        let latest = list.iter().filter_map(|(_, _, end)| end.map(|(_, until)| until)).max();
                        let until = (clock + keep_ms as i64).max(latest.unwrap_or(0));
                        let (number, owner, _) = list.remove(at);
                        list.push((number, owner, Some((ends[usize::from(how)], until))));
                        for _ in 0..2 {
                            let ended = list.iter().filter(|(_, _, end)| end.is_some()).count();
                            let first = list.iter().position(|(_, _, end)| end.is_some());
                            if let Some(first) = first
                                && (ended > tombstone_max || list[first].2.is_some_and(|(_, until)| until <= clock))
                            {
                                list.remove(first);
                            }
                        }
                    }
                }
                Step::Sweep => {
                    table.sweep(now);
                    list.retain(|(_, _, end)| end.is_none_or(|(_, until)| until > clock));
                }
            }
            prop_assert!(table.live() <= live_max && table.tombstones() <= tombstone_max);
            for number in 0..8 {
                for (index, owner) in owners.iter().enumerate() {
                    let row = list.iter().find(|(n, whose, _)| *n == number && *whose == index);
                    let want = match row {
                        None => Found::NotFound,
                        Some((_, _, Some((end, _)))) => Found::Ended(*end),
                        Some(_) => Found::Live(number),
                    };
                    prop_assert_eq!(table.find(&token(number), owner), want);
                }
            }
        }
    }
}
