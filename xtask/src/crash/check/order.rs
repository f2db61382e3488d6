//! The order of records: by real time, by producer, by epoch and sequence number, by key. It looks at the final content and at what
//! producers were told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Facts, Violation};
use crate::crash::history::{Event, Micros, Outcome, Place};

pub(super) fn check(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    real_time(facts, found);
    sequences(facts, found);
    zombies(facts, found);
    keys(facts, found);
}

/// An append that began after another one was acknowledged lies behind it.
fn real_time(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    for (place, (_, read)) in &facts.finals {
        // The append that began last, of those that lie before.
        let mut latest: Option<usize> = None;
        for seen in &read.seen {
            let Some(&which) = seen.id.as_ref().and_then(|id| facts.append_of.get(id)) else { continue };
            let one = &facts.logical[which];
            if let (Some(before), Some(end)) = (latest, one.confirmed)
                && end < facts.logical[before].start
            {
                let what = format!(
                    "{} offset {}: acknowledged before the append in front of it was sent",
                    facts.name(*place),
                    seen.offset
                );
                let entries = [&one.attempts[..], &facts.logical[before].attempts].concat();
                found.push(Violation { rule: "order_of_time", what, entries });
                break;
            }
            if latest.is_none_or(|before| facts.logical[before].start < one.start) {
                latest = Some(which);
            }
        }
    }
}

/// Idempotent producers: (epoch, sequence) never goes back along a partition, and no sequence number is missing.
fn sequences(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    for (place, (_, read)) in &facts.finals {
        let mut last: HashMap<u32, (u64, u64, usize)> = HashMap::new();
        for seen in &read.seen {
            let Some(&which) = seen.id.as_ref().and_then(|id| facts.append_of.get(id)) else { continue };
            let one = &facts.logical[which];
            let Some(sequence) = one.sequence else { continue };
            let here = (sequence.epoch, sequence.seq, which);
            if let Some(before) = last.insert(sequence.producer, here)
                && (before.0, before.1) > (here.0, here.1)
            {
                let what = format!(
                    "{} offset {}: producer {} goes from epoch {} sequence {} back to {} {}",
                    facts.name(*place),
                    seen.offset,
                    sequence.producer,
                    before.0,
                    before.1,
                    here.0,
                    here.1
                );
                let entries = [&facts.logical[before.2].attempts[..], &one.attempts].concat();
                found.push(Violation { rule: "order_of_producer", what, entries });
            }
        }
    }
    let mut there: BTreeMap<(u16, u32, u64), BTreeSet<u64>> = BTreeMap::new();
    for one in &facts.logical {
        let Some(sequence) = one.sequence.filter(|sequence| !sequence.zombie) else { continue };
        let sent = facts.sent(one);
        if facts.history.streams[usize::from(sent.stream)].keep_records.is_none()
            && sent.records.iter().any(|record| facts.places.contains_key(&record.id))
        {
            there.entry((sent.stream, sequence.producer, sequence.epoch)).or_default().insert(sequence.seq);
        }
    }
    for ((stream, producer, epoch), numbers) in there {
        if let Some((missing, _)) = (0..).zip(&numbers).find(|(expected, number)| expected != *number) {
            let name = &facts.history.streams[usize::from(stream)].name;
            let what = format!("`{name}`: producer {producer} epoch {epoch} has no sequence {missing}, but later ones");
            found.push(Violation { rule: "hole_in_sequence", what, entries: Vec::new() });
        }
    }
}

/// The first success of an epoch.
struct Accepted {
    epoch: u64,
    end: Micros,
    entry: usize,
}

/// Nothing of an old epoch is accepted after a newer one was.
fn zombies(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    // By stream and producer: each epoch with the end of its first success.
    let mut newest: HashMap<(u16, u32), Vec<Accepted>> = HashMap::new();
    for (index, entry) in facts.history.entries.iter().enumerate() {
        let Event::Append(append) = &entry.event else { continue };
        let (Some(sequence), Outcome::Ok(_)) = (append.sequence, &append.outcome) else { continue };
        let known = newest.entry((append.stream, sequence.producer)).or_default();
        // Entries come in the order of their ends.
        if let Some(newer) = known.iter().find(|one| one.epoch > sequence.epoch && one.end < entry.start) {
            let what = format!("epoch {} was accepted after epoch {}", sequence.epoch, newer.epoch);
            found.push(Violation { rule: "old_epoch_accepted", what, entries: vec![newer.entry, index] });
        }
        // Only the first answer of each epoch can matter.
        if known.iter().all(|one| one.epoch != sequence.epoch) {
            known.push(Accepted { epoch: sequence.epoch, end: entry.end, entry: index });
        }
    }
}

/// Records of one key lie in one partition.
fn keys(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    let mut of: HashMap<(u16, u32), Place> = HashMap::new();
    for one in &facts.logical {
        let sent = facts.sent(one);
        for record in sent.records.iter().filter(|record| record.partition.is_none()) {
            let Some(key) = record.key else { continue };
            let Some([(place, _), ..]) = facts.places.get(&record.id).map(Vec::as_slice) else { continue };
            let first = *of.entry((sent.stream, key)).or_insert(*place);
            if first != *place {
                let what = format!("key {key} lies in {} and in {}", facts.name(first), facts.name(*place));
                found.push(Violation { rule: "key_in_two_partitions", what, entries: one.attempts.clone() });
                return;
            }
        }
    }
}
