//! What readers saw: an offset's record never changes, nothing that was seen is gone later, every answer is dense, gaps are exact, and
//! no answer is older than what was acknowledged before it was asked for.

use std::collections::HashMap;

use super::{Facts, Highest, Violation};
use crate::crash::history::{Event, Outcome, Place, Read, Seen};

pub(super) fn check(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    let tails = tails(facts);
    let mut known: HashMap<(Place, u64), (Option<u64>, usize)> = HashMap::new();
    for (place, (index, read)) in &facts.finals {
        known.extend(read.seen.iter().map(|seen| ((*place, seen.offset), (seen.id, *index))));
    }
    for (index, entry) in facts.history.entries.iter().enumerate() {
        let group = |group: u16| facts.history.groups[usize::from(group)].stream;
        match &entry.event {
            Event::Read(read) | Event::Final { read, .. } => {
                dense(facts, index, read, found);
                for seen in &read.seen {
                    stable(facts, &mut known, index, read.place, *seen, found);
                }
                let tail = tails.get(&read.place).and_then(|tails| tails.before(entry.start));
                if let Some((tail, by)) = tail
                    && read.seen.is_empty()
                    && read.gaps.is_empty()
                    && read.next.is_some()
                    && read.from < tail
                {
                    let what = format!(
                        "{} had records up to {tail}, but reading from {} gave nothing",
                        facts.name(read.place),
                        read.from
                    );
                    found.push(Violation { rule: "stale_read", what, entries: vec![by, index] });
                }
            }
            Event::OutOfRange { place, from } => {
                let tail = tails.get(place).and_then(|tails| tails.before(entry.start));
                if let Some((tail, by)) = tail.filter(|(tail, _)| from <= tail) {
                    let what =
                        format!("{} had records up to {tail}, now {from} is beyond its tail", facts.name(*place));
                    found.push(Violation { rule: "tail_went_back", what, entries: vec![by, index] });
                }
            }
            Event::Polled { group: of, seen, .. } => {
                for (partition, seen) in seen {
                    let place = Place { stream: group(*of), partition: *partition };
                    stable(facts, &mut known, index, place, *seen, found);
                }
            }
            Event::Delivered { group: of, deliveries } => {
                for delivery in deliveries {
                    let place = Place { stream: group(*of), partition: delivery.partition };
                    stable(facts, &mut known, index, place, delivery.seen, found);
                }
            }
            _ => {}
        }
    }
}

/// How far each partition is known to reach, and since when.
fn tails(facts: &Facts<'_>) -> HashMap<Place, Highest> {
    let mut tails: HashMap<Place, Highest> = HashMap::new();
    for (index, entry) in facts.history.entries.iter().enumerate() {
        match &entry.event {
            Event::Append(append) => {
                if let Outcome::Ok(ranges) = &append.outcome {
                    for range in ranges {
                        let place = Place { stream: append.stream, partition: range.partition };
                        tails.entry(place).or_default().push(entry.end, range.next, index);
                    }
                }
            }
            Event::Read(read) => {
                if let Some(last) = read.seen.last() {
                    tails.entry(read.place).or_default().push(entry.end, last.offset + 1, index);
                }
            }
            _ => {}
        }
    }
    for tail in tails.values_mut() {
        tail.settle();
    }
    tails
}

fn stable(
    facts: &Facts<'_>,
    known: &mut HashMap<(Place, u64), (Option<u64>, usize)>,
    index: usize,
    place: Place,
    seen: Seen,
    found: &mut Vec<Violation>,
) {
    let mut report = |rule, what, entries| found.push(Violation { rule, what, entries });
    let at = format_args!("{} offset {}", facts.name(place), seen.offset).to_string();
    if seen.id.is_none() {
        report("bytes_changed", format!("{at} was read with bytes that nobody sent"), vec![index]);
    }
    if let Some((id, first)) = known.get(&(place, seen.offset)) {
        if *id != seen.id {
            report("record_changed", format!("{at} is {id:x?}, but was seen as {:x?}", seen.id), vec![*first, index]);
        }
        return;
    }
    known.insert((place, seen.offset), (seen.id, index));
    let Some((last, read)) = facts.finals.get(&place) else { return };
    let earliest = match (read.gaps.first(), read.seen.first()) {
        (Some(gap), _) if gap.from == 0 => gap.to,
        (_, Some(first)) => first.offset,
        _ => 0,
    };
    if seen.offset >= earliest || facts.keep(place).is_none() {
        report("phantom", format!("{at} was seen, but is not there in the end"), vec![index, *last]);
    }
}

/// The records and gaps of one answer follow one another without a hole.
fn dense(facts: &Facts<'_>, index: usize, read: &Read, found: &mut Vec<Violation>) {
    let mut report = |rule, what| found.push(Violation { rule, what, entries: vec![index] });
    let mut next = read.from;
    let mut gaps = read.gaps.iter().peekable();
    let mut seen = read.seen.iter().peekable();
    loop {
        if let Some(gap) = gaps.next_if(|gap| gap.from == next && gap.to > next) {
            next = gap.to;
        } else if let Some(one) = seen.next_if(|seen| seen.offset == next) {
            next = one.offset + 1;
        } else {
            break;
        }
    }
    let name = facts.name(read.place);
    if let Some(left) = gaps.next() {
        report("gap_not_exact", format!("{name}: a gap {}..{} stands at {next}", left.from, left.to));
    } else if let Some(left) = seen.next() {
        report("hole_in_read", format!("{name}: {next} should follow, {} did", left.offset));
    } else if read.next.is_some_and(|answered| answered != next) {
        report("hole_in_read", format!("{name}: the answer ends at {next}, and says {:?}", read.next));
    }
    for gap in &read.gaps {
        let tail = facts.finals.get(&read.place).and_then(|(_, read)| read.next);
        match facts.keep(read.place) {
            None => report("gap_without_cause", format!("{name}: {}..{} is reported as gone", gap.from, gap.to)),
            Some(_) if gap.reason != "retention" => {
                report("gap_without_cause", format!("{name}: a gap by {}, not by retention", gap.reason));
            }
            Some(keep) if tail.is_some_and(|tail| gap.to + keep > tail) => {
                let what = format!("{name}: {}..{} is gone, but {keep} up to {tail:?} should stay", gap.from, gap.to);
                report("gap_too_large", what);
            }
            Some(_) => {}
        }
    }
}
