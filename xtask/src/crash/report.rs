//! What a run says in the end: figures, refusals, and each violation with the operations around it. It decides nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::check::Violation;
use super::history::{Entry, Event, History, Micros, Outcome, Process};
use super::workload::Refusals;

/// Of each rule this many are shown in full.
const SHOWN_OF_A_RULE: usize = 4;
const SHOWN_ENTRIES: usize = 8;
const AROUND: usize = 3;
const LINE: usize = 400;

/// The figures of a run.
pub(crate) fn figures(history: &History, refusals: &Refusals) -> String {
    let mut out = String::new();
    let count = |wanted: fn(&Process) -> bool| {
        let is = |entry: &&Entry| matches!(&entry.event, Event::Process(process) if wanted(process));
        history.entries.iter().filter(is).count()
    };
    let kills = count(|process| matches!(process, Process::Killed | Process::Terminated { code: None }));
    let drains = count(|process| matches!(process, Process::Terminated { code: Some(_) }));
    let (mut appends, mut unknown, mut records) = (0_u64, 0_u64, 0_u64);
    let (mut reads, mut seen, mut commits, mut acknowledged) = (0_u64, 0_u64, 0_u64, 0_u64);
    for entry in &history.entries {
        match &entry.event {
            Event::Append(append) => match append.outcome {
                Outcome::Ok(_) => (appends, records) = (appends + 1, records + append.records.len() as u64),
                Outcome::Unknown => unknown += 1,
                Outcome::Refused { .. } => {}
            },
            Event::Read(read) => (reads, seen) = (reads + 1, seen + read.seen.len() as u64),
            Event::Commit { outcome: Outcome::Ok(()), .. } => commits += 1,
            Event::Ack { outcome: Outcome::Ok(taken), .. } => acknowledged += taken.len() as u64,
            _ => {}
        }
    }
    let _ = writeln!(out, "process: {kills} SIGKILL, {drains} drained by SIGTERM");
    let _ = writeln!(out, "operations: {}", history.entries.len());
    let _ = writeln!(out, "appends: {appends} acknowledged ({records} records), {unknown} of unknown outcome");
    let _ =
        writeln!(out, "reads: {reads} ({seen} records); commits: {commits}; shared acknowledgements: {acknowledged}");
    let times = ready_after_kill(history);
    if let (Some(median), Some(longest)) = (times.get(times.len() / 2), times.last()) {
        let _ = writeln!(out, "ready after a kill: median {} ms, longest {} ms", median / 1000, longest / 1000);
    }
    for ((operation, status, code), count) in refusals {
        let _ = writeln!(out, "refused: {operation} {status} {code}: {count}");
    }
    out
}

/// From the start of the process to `/readyz`, sorted, for starts that followed a SIGKILL.
fn ready_after_kill(history: &History) -> Vec<Micros> {
    let mut killed = false;
    let mut times = Vec::new();
    for entry in &history.entries {
        match &entry.event {
            Event::Process(Process::Killed | Process::Terminated { code: None }) => killed = true,
            Event::Process(Process::Terminated { .. }) => killed = false,
            Event::Process(Process::Ready { after_us }) if killed => times.push(*after_us),
            _ => {}
        }
    }
    times.sort_unstable();
    times
}

/// The violations, each with its operations and those around the last of them.
pub(crate) fn violations(history: &History, violations: &[Violation]) -> String {
    let mut out = String::new();
    let mut rules: BTreeMap<&str, usize> = BTreeMap::new();
    for violation in violations {
        let count = rules.entry(violation.rule).or_default();
        *count += 1;
        if *count > SHOWN_OF_A_RULE {
            continue;
        }
        let _ = writeln!(out, "\nVIOLATION {}: {}", violation.rule, violation.what);
        let shown: Vec<usize> = violation.entries.iter().copied().take(SHOWN_ENTRIES).collect();
        for index in &shown {
            let _ = writeln!(out, "  > {}", line(*index, &history.entries[*index]));
        }
        if let Some(last) = shown.last() {
            let of = subject(&history.entries[*last].event);
            let near = |index: &usize| {
                let event = &history.entries[*index].event;
                matches!(event, Event::Process(_)) || subject(event) == of
            };
            let before: Vec<usize> = (0..*last).rev().filter(near).take(AROUND).collect();
            let after = (last + 1..history.entries.len()).filter(near).take(AROUND);
            for index in before.into_iter().rev().chain(after) {
                let _ = writeln!(out, "    {}", line(index, &history.entries[index]));
            }
        }
    }
    for (rule, count) in rules {
        let _ = writeln!(out, "violated: {rule}: {count}");
    }
    out
}

/// What an operation is about: (stream or none, group or none).
fn subject(event: &Event) -> (Option<u16>, Option<u16>) {
    match event {
        Event::Append(append) => (Some(append.stream), None),
        Event::Read(read) | Event::Final { read, .. } => (Some(read.place.stream), None),
        Event::OutOfRange { place, .. } => (Some(place.stream), None),
        Event::Held { group, .. }
        | Event::Polled { group, .. }
        | Event::Commit { group, .. }
        | Event::Positions { group, .. }
        | Event::Delivered { group, .. }
        | Event::Ack { group, .. }
        | Event::Nack { group, .. }
        | Event::DeadLetters { group, .. } => (None, Some(*group)),
        Event::Process(_) | Event::Unexpected { .. } => (None, None),
    }
}

/// An operation on one line.
pub(crate) fn line(index: usize, entry: &Entry) -> String {
    let text: String = format!("{:?}", entry.event).chars().take(LINE).collect();
    let ms = |time: Micros| format!("{}.{:03}", time / 1000, time % 1000);
    format!("#{index} client {} {}..{} ms {text}", entry.client, ms(entry.start), ms(entry.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_shown_with_what_happened_around_it() {
        let entry = |start, event| Entry { client: 1, start, end: start + 1, event };
        let positions = |at| Event::Positions { group: 0, committed: vec![(0, at)] };
        let mut history = History::default();
        history.entries.push(entry(5, Event::Process(Process::Ready { after_us: 7000 })));
        history.entries.push(entry(10, positions(7)));
        history.entries.push(entry(20, Event::Process(Process::Killed)));
        history.entries.push(entry(25, Event::Process(Process::Ready { after_us: 9000 })));
        history.entries.push(entry(30, positions(3)));
        let violation = Violation { rule: "commit_lost", what: "7, then 3".to_owned(), entries: vec![1, 4] };
        let text = violations(&history, &vec![violation; SHOWN_OF_A_RULE + 2]);
        assert_eq!(text.matches("VIOLATION commit_lost: 7, then 3").count(), SHOWN_OF_A_RULE);
        assert!(text.contains("> #1") && text.contains("> #4") && text.contains("    #2"), "{text}");
        assert!(text.ends_with(&format!("violated: commit_lost: {}\n", SHOWN_OF_A_RULE + 2)), "{text}");
        assert!(figures(&history, &Refusals::new()).contains("ready after a kill: median 9 ms, longest 9 ms"));
    }
}
