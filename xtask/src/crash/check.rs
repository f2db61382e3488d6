//! The judge of a history: pure functions from what the clients saw to the promises that were broken. It reads no clock, no file
//! and no socket, and each of its rules has a test with a history that breaks it.

mod holding;
mod order;
mod position;
mod reader;
mod record;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use super::history::{Event, History, Micros, Outcome, Place, Read, Sequence};

/// A promise that was broken.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    /// The rule's name, stable.
    pub rule: &'static str,
    pub what: String,
    /// The operations that show it, by their index in the history.
    pub entries: Vec<usize>,
}

/// Every violation that the history shows.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let facts = Facts::new(history);
    for (index, entry) in history.entries.iter().enumerate() {
        if let Event::Unexpected { operation, what } = &entry.event {
            found.push(Violation {
                rule: "unexpected_answer",
                what: format!("{operation}: {what}"),
                entries: vec![index],
            });
        }
    }
    record::check(&facts, &mut found);
    order::check(&facts, &mut found);
    reader::check(&facts, &mut found);
    position::check(history, &mut found);
    holding::check(&facts, &mut found);
    shared::check(&facts, &mut found);
    found
}

/// An append as its producer means it: all attempts with one sequence number are one.
#[derive(Debug)]
struct Logical {
    /// The attempts, by their index in the history.
    attempts: Vec<usize>,
    sequence: Option<Sequence>,
    /// It cannot have happened before.
    start: Micros,
    /// It has happened by then; `None` = never confirmed.
    confirmed: Option<Micros>,
    /// An attempt's outcome is unknown.
    unknown: bool,
}

/// What most rules look things up in.
struct Facts<'a> {
    history: &'a History,
    finals: std::collections::BTreeMap<Place, (usize, &'a Read)>,
    /// Where each id lies in the end.
    places: HashMap<u64, Vec<(Place, u64)>>,
    logical: Vec<Logical>,
    /// Which append an id was sent with.
    append_of: HashMap<u64, usize>,
}

impl<'a> Facts<'a> {
    fn new(history: &'a History) -> Self {
        let finals = history.finals();
        let mut places: HashMap<u64, Vec<(Place, u64)>> = HashMap::new();
        for (place, (_, read)) in &finals {
            for seen in &read.seen {
                if let Some(id) = seen.id {
                    places.entry(id).or_default().push((*place, seen.offset));
                }
            }
        }
        let mut logical: Vec<Logical> = Vec::new();
        let mut append_of = HashMap::new();
        let mut sequences: HashMap<(u16, u32, u64, u64, bool), usize> = HashMap::new();
        for (index, entry) in history.entries.iter().enumerate() {
            let Event::Append(append) = &entry.event else { continue };
            let new = logical.len();
            let which = append.sequence.map_or(new, |sequence| {
                let key = (append.stream, sequence.producer, sequence.epoch, sequence.seq, sequence.zombie);
                *sequences.entry(key).or_insert(new)
            });
            if which == new {
                logical.push(Logical {
                    attempts: Vec::new(),
                    sequence: append.sequence,
                    start: entry.start,
                    confirmed: None,
                    unknown: false,
                });
                append_of.extend(append.records.iter().map(|sent| (sent.id, which)));
            }
            let one = &mut logical[which];
            one.attempts.push(index);
            one.start = one.start.min(entry.start);
            match append.outcome {
                Outcome::Ok(_) => one.confirmed = Some(one.confirmed.map_or(entry.end, |end| end.min(entry.end))),
                Outcome::Unknown => one.unknown = true,
                Outcome::Refused { .. } => {}
            }
        }
        Self { history, finals, places, logical, append_of }
    }

    /// The records and the stream of an append.
    fn sent(&self, logical: &Logical) -> &'a super::history::Append {
        match &self.history.entries[logical.attempts[0]].event {
            Event::Append(append) => append,
            _ => unreachable!("attempts are appends"),
        }
    }

    fn keep(&self, place: Place) -> Option<u64> {
        self.history.streams[usize::from(place.stream)].keep_records
    }

    /// A place for people.
    fn name(&self, place: Place) -> String {
        format!("`{}` partition {}", self.history.streams[usize::from(place.stream)].name, place.partition)
    }
}

/// Values with the time by which they were known, and the highest known before a moment.
#[derive(Debug, Default)]
struct Highest {
    /// (end, value, entry), later with the highest value so far.
    known: Vec<(Micros, u64, usize)>,
}

impl Highest {
    fn push(&mut self, end: Micros, value: u64, entry: usize) {
        self.known.push((end, value, entry));
    }

    /// To be called once, between the last `push` and the first `before`.
    fn settle(&mut self) {
        self.known.sort_unstable();
        for index in 1..self.known.len() {
            let (_, value, entry) = self.known[index - 1];
            if value >= self.known[index].1 {
                (self.known[index].1, self.known[index].2) = (value, entry);
            }
        }
    }

    /// The highest value that was known before `moment`, and the entry that says so.
    fn before(&self, moment: Micros) -> Option<(u64, usize)> {
        let count = self.known.partition_point(|(end, ..)| *end < moment);
        count.checked_sub(1).map(|last| (self.known[last].1, self.known[last].2))
    }
}
