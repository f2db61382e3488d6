//! What became of the records: acknowledged ones are there once, at their offsets, with their bytes; unknown ones wholly or not at
//! all; refused ones not at all; offsets are dense. It looks at the final content only.

use std::collections::HashMap;

use super::{Facts, Logical, Violation};
use crate::crash::history::{Event, NATIVE, Outcome, Place};

pub(super) fn check(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    finals(facts, found);
    if facts.finals.is_empty() {
        // A run that broke off: that is told already, and nothing can be said of what was not read.
        return;
    }
    for logical in &facts.logical {
        append(facts, logical, found);
    }
    foreign(facts, found);
    same_by_every_protocol(facts, found);
}

fn finals(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    for (stream, fact) in facts.history.streams.iter().enumerate() {
        for partition in 0..fact.partitions {
            let place = Place { stream: u16::try_from(stream).unwrap_or(u16::MAX), partition };
            let Some((index, read)) = facts.finals.get(&place) else {
                let what = format!("{} could not be read in the end", facts.name(place));
                found.push(Violation { rule: "no_final_read", what, entries: Vec::new() });
                continue;
            };
            // A hole without a gap shows here; a gap is judged where every read's gaps are.
            let mut next = 0;
            let mut gaps = read.gaps.iter();
            for seen in &read.seen {
                if seen.offset != next {
                    match gaps.next() {
                        Some(gap) if gap.from == next && gap.to == seen.offset => {}
                        _ => {
                            let what = format!("{}: offset {next} is followed by {}", facts.name(place), seen.offset);
                            found.push(Violation { rule: "offsets_not_dense", what, entries: vec![*index] });
                        }
                    }
                }
                if seen.id.is_none() {
                    let what = format!("{} offset {} has bytes that nobody sent", facts.name(place), seen.offset);
                    found.push(Violation { rule: "bytes_changed", what, entries: vec![*index] });
                }
                next = seen.offset + 1;
            }
        }
    }
    for (id, places) in &facts.places {
        if let [(first, at), (second, again), ..] = places.as_slice() {
            let what = format!(
                "record {id:#x} is {} times in the log: {} offset {at}, {} offset {again}",
                places.len(),
                facts.name(*first),
                facts.name(*second)
            );
            let attempts = facts.append_of.get(id).map_or_else(Vec::new, |&of| facts.logical[of].attempts.clone());
            found.push(Violation { rule: "duplicate", what, entries: attempts });
        }
    }
}

fn append(facts: &Facts<'_>, logical: &Logical, found: &mut Vec<Violation>) {
    let sent = facts.sent(logical);
    let keep = facts.history.streams[usize::from(sent.stream)].keep_records.is_some();
    let present = sent.records.iter().filter(|record| facts.places.contains_key(&record.id)).count();
    let mut report = |rule, what| found.push(Violation { rule, what, entries: logical.attempts.clone() });
    let zombie = logical.sequence.is_some_and(|sequence| sequence.zombie);
    match (logical.confirmed, logical.unknown) {
        // What an old epoch was told is a matter of order; here only that it brought nothing in.
        _ if zombie => {
            if present > 0 {
                report("zombie_appended", format!("{present} records of a fenced epoch are in the log"));
            }
        }
        (Some(_), _) => {
            if present < sent.records.len() && !keep {
                let missing = sent.records.iter().find(|record| !facts.places.contains_key(&record.id));
                let missing = missing.map_or(0, |record| record.id);
                let what = format!(
                    "{} of {} acknowledged records are gone, the first is {missing:#x}",
                    sent.records.len() - present,
                    sent.records.len()
                );
                report("acknowledged_lost", what);
            }
        }
        (None, true) => {
            if present > 0 && present < sent.records.len() && !keep {
                let what =
                    format!("{present} of {} records of an append of unknown outcome are there", sent.records.len());
                report("not_atomic", what);
            }
        }
        (None, false) => {
            if present > 0 {
                report("refused_but_there", format!("{present} records of a refused append are in the log"));
            }
        }
    }
    for attempt in &logical.attempts {
        at_their_offsets(facts, *attempt, found);
    }
    together(facts, logical, found);
}

/// The answered ranges hold exactly the records, in the order in which they were sent.
fn at_their_offsets(facts: &Facts<'_>, attempt: usize, found: &mut Vec<Violation>) {
    let Event::Append(append) = &facts.history.entries[attempt].event else { return };
    let Outcome::Ok(ranges) = &append.outcome else { return };
    if ranges.is_empty() {
        return;
    }
    let total: u64 = ranges.iter().map(|range| range.next.saturating_sub(range.base)).sum();
    let mut report = |rule, what| found.push(Violation { rule, what, entries: vec![attempt] });
    if total != append.records.len() as u64 {
        report("wrong_count", format!("{} records were sent, {total} offsets answered", append.records.len()));
        return;
    }
    let mut next: HashMap<u32, u64> = ranges.iter().map(|range| (range.partition, range.base)).collect();
    for record in &append.records {
        // A lost one is told elsewhere; a trimmed one is not wrong.
        let Some([(place, offset), ..]) = facts.places.get(&record.id).map(Vec::as_slice) else { continue };
        if record.partition.is_some_and(|partition| partition != place.partition) {
            report("wrong_partition", format!("record {:#x} lies in {}", record.id, facts.name(*place)));
        }
        let range = ranges.iter().find(|range| range.partition == place.partition);
        if !range.is_some_and(|range| (range.base..range.next).contains(offset)) {
            let what =
                format!("record {:#x} lies at {} offset {offset}: not as answered", record.id, facts.name(*place));
            report("wrong_offset", what);
        } else if facts.keep(*place).is_none() {
            let expected = next.entry(place.partition).or_default();
            if *offset != *expected {
                report("wrong_order_in_append", format!("record {:#x} lies at {offset}, not {expected}", record.id));
            }
            *expected = *offset + 1;
        }
    }
}

/// The records of one append to one partition lie side by side, in order.
fn together(facts: &Facts<'_>, logical: &Logical, found: &mut Vec<Violation>) {
    let mut last: HashMap<Place, u64> = HashMap::new();
    for record in &facts.sent(logical).records {
        let Some([(place, offset)]) = facts.places.get(&record.id).map(Vec::as_slice) else { continue };
        if let Some(before) = last.insert(*place, *offset)
            && before + 1 != *offset
        {
            let what = format!("an append is torn in {}: {before} is followed by {offset}", facts.name(*place));
            found.push(Violation { rule: "append_torn", what, entries: logical.attempts.clone() });
            return;
        }
    }
}

fn foreign(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    for (id, places) in &facts.places {
        let stream = facts.append_of.get(id).map(|&of| facts.sent(&facts.logical[of]).stream);
        if let Some((place, offset)) = places.iter().find(|(place, _)| Some(place.stream) != stream) {
            let what =
                format!("{} offset {offset} holds record {id:#x} of another stream, or of none", facts.name(*place));
            found.push(Violation { rule: "foreign_record", what, entries: Vec::new() });
        }
    }
}

/// A stream that is read by two protocols has the same records by both.
fn same_by_every_protocol(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    for (index, entry) in facts.history.entries.iter().enumerate() {
        let Event::Final { read, via } = &entry.event else { continue };
        if *via == NATIVE {
            continue;
        }
        let Some((native, other)) = facts.finals.get(&read.place) else { continue };
        let ids = |read: &crate::crash::history::Read| read.seen.iter().map(|seen| seen.id).collect::<Vec<_>>();
        if ids(read) != ids(other) {
            let what = format!("{} reads otherwise by {via} than by {NATIVE}", facts.name(read.place));
            found.push(Violation { rule: "protocols_disagree", what, entries: vec![index, *native] });
        }
    }
}
