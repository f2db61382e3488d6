//! Ordered groups: a partition has one holder at a time, a fenced member commits nothing, generations grow, and every record reaches
//! a member. A holding interval is what the server itself confirmed: from one answer to a later request under one generation.

use std::collections::{BTreeMap, BTreeSet};

use super::{Facts, Highest, Violation};
use crate::crash::history::{Event, Micros, Outcome, Place};

/// The server confirmed that a member holds a partition.
#[derive(Clone, Copy)]
struct Confirmation<'a> {
    member: &'a str,
    generation: u64,
    start: Micros,
    end: Micros,
    entry: usize,
    commit: bool,
}

pub(super) fn check(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    let mut all: BTreeMap<(u16, u32), Vec<Confirmation<'_>>> = BTreeMap::new();
    for (index, entry) in facts.history.entries.iter().enumerate() {
        let mut confirm = |group: u16, partition: u32, member, generation, commit| {
            let (start, end) = (entry.start, entry.end);
            let one = Confirmation { member, generation, start, end, entry: index, commit };
            all.entry((group, partition)).or_default().push(one);
        };
        match &entry.event {
            Event::Held { group, member, generation, partitions } => {
                partitions.iter().for_each(|partition| confirm(*group, *partition, member, *generation, false));
            }
            Event::Polled { group, member, generation, seen } => {
                let partitions: BTreeSet<u32> = seen.iter().map(|(partition, _)| *partition).collect();
                partitions.iter().for_each(|partition| confirm(*group, *partition, member, *generation, false));
            }
            Event::Commit { group, member, generation, positions, outcome: Outcome::Ok(()) } => {
                positions.iter().for_each(|(partition, _)| confirm(*group, *partition, member, *generation, true));
            }
            _ => {}
        }
    }
    for ((group, partition), confirmations) in &all {
        let name = format!("group `{}` partition {partition}", facts.history.groups[usize::from(*group)].name);
        one_holder(&name, confirmations, found);
        fenced(&name, confirmations, found);
    }
    generations(facts, found);
    delivered(facts, found);
}

/// Two members' intervals do not overlap.
fn one_holder(name: &str, confirmations: &[Confirmation<'_>], found: &mut Vec<Violation>) {
    let mut intervals: BTreeMap<(&str, u64), (Confirmation<'_>, Confirmation<'_>)> = BTreeMap::new();
    for one in confirmations {
        let (first, last) = intervals.entry((one.member, one.generation)).or_insert((*one, *one));
        if one.end < first.end {
            *first = *one;
        }
        if one.start > last.start {
            *last = *one;
        }
    }
    let mut held: Vec<_> = intervals.into_values().filter(|(first, last)| first.end < last.start).collect();
    held.sort_by_key(|(first, _)| first.end);
    let mut longest: Option<(Confirmation<'_>, Confirmation<'_>)> = None;
    for (first, last) in held {
        if let Some((before, until)) = longest
            && until.member != first.member
            && first.end < until.start
        {
            let what = format!(
                "{name}: `{}` (generation {}) and `{}` (generation {}) both held it",
                until.member, until.generation, first.member, first.generation
            );
            let entries = vec![before.entry, until.entry, first.entry, last.entry];
            found.push(Violation { rule: "two_holders", what, entries });
            return;
        }
        if longest.is_none_or(|(_, until)| until.start < last.start) {
            longest = Some((first, last));
        }
    }
}

/// No commit under an older generation is accepted once another member acted under a newer one.
fn fenced(name: &str, confirmations: &[Confirmation<'_>], found: &mut Vec<Violation>) {
    let mut by_end: Vec<_> = confirmations.iter().collect();
    by_end.sort_by_key(|one| one.end);
    let mut commits: Vec<_> = confirmations.iter().filter(|one| one.commit).collect();
    commits.sort_by_key(|one| one.start);
    // The newest generation, and the newest of another member than that one's.
    let mut newest: [Option<&Confirmation<'_>>; 2] = [None, None];
    let mut ended = by_end.into_iter().peekable();
    for commit in commits {
        while let Some(one) = ended.next_if(|one| one.end < commit.start) {
            match newest[0] {
                Some(top) if top.member == one.member => {
                    if top.generation < one.generation {
                        newest[0] = Some(one);
                    }
                }
                Some(top) if one.generation > top.generation => newest = [Some(one), Some(top)],
                Some(_) => {
                    if newest[1].is_none_or(|second| second.generation < one.generation) {
                        newest[1] = Some(one);
                    }
                }
                None => newest[0] = Some(one),
            }
        }
        let newer = newest.into_iter().flatten();
        let newer = newer
            .filter(|one| one.member != commit.member && one.generation > commit.generation)
            .max_by_key(|one| one.generation);
        if let Some(newer) = newer {
            let what = format!(
                "{name}: a commit of `{}` (generation {}) was accepted after `{}` acted under generation {}",
                commit.member, commit.generation, newer.member, newer.generation
            );
            found.push(Violation { rule: "fenced_commit_accepted", what, entries: vec![newer.entry, commit.entry] });
            return;
        }
    }
}

fn generations(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    let mut known: BTreeMap<u16, Highest> = BTreeMap::new();
    for (index, entry) in facts.history.entries.iter().enumerate() {
        if let Event::Held { group, generation, .. } = &entry.event {
            known.entry(*group).or_default().push(entry.end, *generation, index);
        }
    }
    known.values_mut().for_each(Highest::settle);
    let mut told = BTreeSet::new();
    for (index, entry) in facts.history.entries.iter().enumerate() {
        let Event::Held { group, generation, .. } = &entry.event else { continue };
        let before = known.get(group).and_then(|known| known.before(entry.start));
        if let Some((newer, by)) = before.filter(|(newer, _)| newer > generation)
            && told.insert(*group)
        {
            let name = &facts.history.groups[usize::from(*group)].name;
            let what = format!("group `{name}`: generation {newer} was followed by {generation}");
            found.push(Violation { rule: "generation_went_back", what, entries: vec![by, index] });
        }
    }
}

/// Every record of the stream was given to some member.
fn delivered(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    let mut given: BTreeMap<(u16, u32), BTreeSet<u64>> = BTreeMap::new();
    for entry in &facts.history.entries {
        if let Event::Polled { group, seen, .. } = &entry.event {
            for (partition, seen) in seen {
                given.entry((*group, *partition)).or_default().insert(seen.offset);
            }
        }
    }
    for (group, fact) in facts.history.groups.iter().enumerate().filter(|(_, fact)| !fact.shared) {
        for partition in 0..facts.history.streams[usize::from(fact.stream)].partitions {
            let Some((_, read)) = facts.finals.get(&Place { stream: fact.stream, partition }) else { continue };
            let given = given.get(&(u16::try_from(group).unwrap_or(u16::MAX), partition));
            let missing = |offset: &u64| given.is_none_or(|given| !given.contains(offset));
            let missing: Vec<u64> = read.seen.iter().map(|seen| seen.offset).filter(missing).collect();
            if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
                let what = format!(
                    "group `{}` partition {partition}: {} records between {first} and {last} reached no member",
                    fact.name,
                    missing.len()
                );
                found.push(Violation { rule: "not_delivered", what, entries: Vec::new() });
            }
        }
    }
}
