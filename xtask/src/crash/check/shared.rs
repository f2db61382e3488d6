//! Shared groups: a record is delivered until it is acknowledged, never after, never to two at once, and none is lost on the way to
//! the dead letters.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Facts, Violation};
use crate::crash::history::{Event, Micros, Outcome, Place};

/// One record handed out.
#[derive(Clone, Copy)]
struct Handed {
    start: Micros,
    end: Micros,
    entry: usize,
    /// When it was given back, if it was.
    back: Option<Micros>,
}

#[derive(Default)]
struct Group<'a> {
    /// Which record a delivery is of.
    of: HashMap<&'a str, (u32, u64)>,
    handed: BTreeMap<(u32, u64), Vec<(&'a str, Handed)>>,
    /// Confirmed acknowledgements: by when, and which entry says so.
    acknowledged: BTreeMap<(u32, u64), (Micros, usize)>,
    /// Acknowledged for certain or perhaps.
    perhaps: HashSet<(u32, u64)>,
    dead: Vec<Option<u64>>,
}

pub(super) fn check(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    let ends = facts.history.ends();
    for (index, fact) in facts.history.groups.iter().enumerate().filter(|(_, fact)| fact.shared) {
        let group = read(facts, u16::try_from(index).unwrap_or(u16::MAX));
        after_acknowledgement(&fact.name, &group, found);
        leased_twice(&fact.name, &group, fact.ack_timeout_us, &ends, found);
        lost(facts, &fact.name, fact.stream, &group, found);
    }
}

fn read<'a>(facts: &Facts<'a>, which: u16) -> Group<'a> {
    let mut group = Group::default();
    for (index, entry) in facts.history.entries.iter().enumerate() {
        match &entry.event {
            Event::Delivered { group: of, deliveries } if *of == which => {
                for one in deliveries {
                    let record = (one.partition, one.seen.offset);
                    group.of.insert(&one.delivery, record);
                    let handed = Handed { start: entry.start, end: entry.end, entry: index, back: None };
                    group.handed.entry(record).or_default().push((&one.delivery, handed));
                }
            }
            Event::Ack { group: of, deliveries, outcome } if *of == which => {
                if let Outcome::Ok(taken) = outcome {
                    for record in taken.iter().filter_map(|id| group.of.get(id.as_str())) {
                        group.perhaps.insert(*record);
                        let known = group.acknowledged.entry(*record).or_insert((entry.end, index));
                        if entry.end < known.0 {
                            *known = (entry.end, index);
                        }
                    }
                } else if matches!(outcome, Outcome::Unknown) {
                    group.perhaps.extend(deliveries.iter().filter_map(|id| group.of.get(id.as_str())));
                }
            }
            Event::Nack { group: of, deliveries } if *of == which => {
                for id in deliveries {
                    let record = group.of.get(id.as_str()).copied();
                    let handed = record.and_then(|record| group.handed.get_mut(&record)).into_iter().flatten();
                    for (_, one) in handed.filter(|(delivery, _)| delivery == id) {
                        one.back = Some(one.back.map_or(entry.start, |back| back.min(entry.start)));
                    }
                }
            }
            Event::DeadLetters { group: of, ids } if *of == which => group.dead.clone_from(ids),
            _ => {}
        }
    }
    group
}

fn after_acknowledgement(name: &str, group: &Group<'_>, found: &mut Vec<Violation>) {
    for (record, (end, by)) in &group.acknowledged {
        let handed = group.handed.get(record).into_iter().flatten();
        if let Some((_, again)) = handed.into_iter().find(|(_, one)| one.start > *end) {
            let what = format!(
                "group `{name}`: partition {} offset {} came again after its acknowledgement was confirmed",
                record.0, record.1
            );
            found.push(Violation { rule: "delivered_after_ack", what, entries: vec![*by, again.entry] });
        }
    }
}

/// Within one life of the server a record is not handed out again before its time is over or it was given back.
fn leased_twice(name: &str, group: &Group<'_>, timeout: Micros, ends: &[(Micros, Micros)], found: &mut Vec<Violation>) {
    for (record, handed) in &group.handed {
        let mut handed: Vec<&Handed> = handed.iter().map(|(_, one)| one).collect();
        handed.sort_by_key(|one| one.start);
        for pair in handed.windows(2) {
            let [first, second] = pair else { continue };
            let one_life = !ends.iter().any(|(from, to)| *from <= second.end && first.start <= *to);
            // Requests that ran at the same time may have been served in either order: it may be the second that was given
            // back and the first that got it again. Both leases last beyond `early`, whichever was first.
            let before = |back: &Handed, again: &Handed| back.back.is_some_and(|back| back <= again.end);
            let back = before(first, second) || before(second, first);
            let early = second.end < first.start + timeout;
            if one_life && !back && early {
                let what = format!(
                    "group `{name}`: partition {} offset {} was handed out twice within {} ms",
                    record.0,
                    record.1,
                    timeout / 1000
                );
                found.push(Violation { rule: "leased_twice", what, entries: vec![first.entry, second.entry] });
                return;
            }
        }
    }
}

/// After the last consumer found nothing more, every record was acknowledged or is a dead letter.
fn lost(facts: &Facts<'_>, name: &str, stream: u16, group: &Group<'_>, found: &mut Vec<Violation>) {
    let mut dead: HashMap<u64, u32> = HashMap::new();
    for id in &group.dead {
        match id {
            Some(id) => *dead.entry(*id).or_default() += 1,
            None => {
                let what = format!("group `{name}`: a dead letter has bytes that nobody sent");
                found.push(Violation { rule: "dead_letter_changed", what, entries: Vec::new() });
            }
        }
    }
    let mut twice: Vec<_> = dead.iter().filter(|(_, count)| **count > 1).collect();
    twice.sort_unstable();
    if let Some((id, count)) = twice.first() {
        let what =
            format!("group `{name}`: {} dead letters are there again, record {id:#x} {count} times", twice.len());
        found.push(Violation { rule: "dead_letter_twice", what, entries: Vec::new() });
    }
    for partition in 0..facts.history.streams[usize::from(stream)].partitions {
        let Some((_, read)) = facts.finals.get(&Place { stream, partition }) else { continue };
        let mut missing = Vec::new();
        for seen in &read.seen {
            let record = (partition, seen.offset);
            let is_dead = seen.id.is_some_and(|id| dead.contains_key(&id));
            if is_dead && let Some((_, by)) = group.acknowledged.get(&record) {
                let what = format!(
                    "group `{name}`: partition {partition} offset {} was acknowledged and is a dead letter",
                    seen.offset
                );
                found.push(Violation { rule: "acknowledged_and_dead", what, entries: vec![*by] });
            }
            if !is_dead && !group.perhaps.contains(&record) {
                missing.push(seen.offset);
            }
        }
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            let never = missing.iter().filter(|offset| !group.handed.contains_key(&(partition, **offset))).count();
            let what = format!(
                "group `{name}` partition {partition}: {} records between {first} and {last} were never acknowledged \
                 and are no dead letters; {never} of them were never handed out",
                missing.len()
            );
            found.push(Violation { rule: "shared_lost", what, entries: Vec::new() });
        }
    }
}
