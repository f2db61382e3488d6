//! Committed positions: never lost, never back, never invented. It looks at commits and at what a group says of itself.

use std::collections::{BTreeMap, BTreeSet};

use super::{Highest, Violation};
use crate::crash::history::{Event, History, Micros, Outcome};

#[derive(Default)]
struct Partition {
    /// What is known to be committed, and since when.
    known: Highest,
    /// What somebody tried to commit, with the earliest begin.
    tried: BTreeMap<u64, Micros>,
}

pub(super) fn check(history: &History, found: &mut Vec<Violation>) {
    let mut partitions: BTreeMap<(u16, u32), Partition> = BTreeMap::new();
    for (index, entry) in history.entries.iter().enumerate() {
        match &entry.event {
            Event::Commit { group, positions, outcome, .. } => {
                for (partition, position) in positions {
                    let one = partitions.entry((*group, *partition)).or_default();
                    let first = one.tried.entry(*position).or_insert(entry.start);
                    *first = entry.start.min(*first);
                    if matches!(outcome, Outcome::Ok(())) {
                        one.known.push(entry.end, *position, index);
                    }
                }
            }
            Event::Positions { group, committed } => {
                for (partition, position) in committed {
                    partitions.entry((*group, *partition)).or_default().known.push(entry.end, *position, index);
                }
            }
            _ => {}
        }
    }
    for one in partitions.values_mut() {
        one.known.settle();
    }
    // One report a partition and rule: what follows from a lost commit would only repeat it.
    let mut told: BTreeSet<(&str, u16, u32)> = BTreeSet::new();
    for (index, entry) in history.entries.iter().enumerate() {
        let (group, positions, asked) = match &entry.event {
            Event::Commit { group, positions, outcome: Outcome::Ok(()), .. } => (*group, positions, false),
            Event::Positions { group, committed } => (*group, committed, true),
            _ => continue,
        };
        let name = &history.groups[usize::from(group)].name;
        for (partition, position) in positions {
            let Some(one) = partitions.get(&(group, *partition)) else { continue };
            if let Some((known, by)) = one.known.before(entry.start).filter(|(known, _)| known > position) {
                let rule = if asked { "commit_lost" } else { "commit_went_back" };
                if told.insert((rule, group, *partition)) {
                    let what = format!("group `{name}` partition {partition}: {known} was committed, later {position}");
                    found.push(Violation { rule, what, entries: vec![by, index] });
                }
            }
            let tried = one.tried.get(position).is_some_and(|start| *start < entry.end);
            if asked && *position > 0 && !tried && told.insert(("commit_invented", group, *partition)) {
                let what = format!("group `{name}` partition {partition}: nobody committed {position}");
                found.push(Violation { rule: "commit_invented", what, entries: vec![index] });
            }
        }
    }
}
