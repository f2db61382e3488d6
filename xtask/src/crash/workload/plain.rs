//! Plain producers: each record has an id of its own; an append whose answer is lost is given up, and may be there or not.

use std::fmt::Write as _;

use super::Actor;
use crate::crash::client::{Answer, Ask, Failed};
use crate::crash::history::{Append, Event, Outcome, Range, Sent};
use crate::crash::plan::Stream;
use crate::crash::{value, wire};

const KEYS: u32 = 40;
const USUAL_RECORDS: usize = 6;
const MANY_RECORDS: usize = 60;

pub(super) async fn run(mut actor: Actor) {
    while !actor.context.stopped() {
        let stream = choose(&mut actor);
        let records = records(&mut actor, &stream);
        let ask = ask(&mut actor, &stream, &records);
        let start = actor.now();
        let answer = actor.ask("append", &[], ask).await;
        let outcome = outcome(&actor, start, answer);
        actor.note(start, Event::Append(Append { stream: stream.index, sequence: None, records, outcome }));
        actor.think(12).await;
    }
}

/// One record to partition 0, for whoever wants to know if the server writes.
pub(crate) async fn append_one(actor: &mut Actor, stream: &Stream) -> Append {
    let records = vec![Sent { id: actor.record(), partition: Some(0), key: None }];
    let ask = ask(actor, stream, &records);
    let start = actor.now();
    let answer = actor.ask("append", &[], ask).await;
    let outcome = outcome(actor, start, answer);
    Append { stream: stream.index, sequence: None, records, outcome }
}

/// A stream of the native protocol.
pub(super) fn choose(actor: &mut Actor) -> Stream {
    let native: Vec<&Stream> = actor.context.plan.streams.iter().filter(|stream| stream.durable.is_none()).collect();
    native[fastrand::Rng::usize(&mut actor.random, 0..native.len())].clone()
}

/// New records: for one partition, spread over several, by key, or left to the server.
pub(super) fn records(actor: &mut Actor, stream: &Stream) -> Vec<Sent> {
    let most = if actor.chance(4) { MANY_RECORDS } else { USUAL_RECORDS };
    let count = actor.random.usize(1..=most);
    let way = actor.random.u32(0..4);
    let one = actor.random.u32(0..stream.partitions);
    (0..count)
        .map(|_| {
            let id = actor.record();
            let any = actor.random.u32(0..stream.partitions);
            let key = actor.random.u32(0..KEYS);
            match way {
                0 => Sent { id, partition: Some(one), key: None },
                1 => Sent { id, partition: Some(any), key: None },
                2 => Sent { id, partition: None, key: Some(key) },
                _ => Sent { id, partition: Some(one), key: Some(key) },
            }
        })
        .collect()
}

/// The request, as NDJSON or as an array.
pub(super) fn ask(actor: &mut Actor, stream: &Stream, records: &[Sent]) -> Ask {
    let lines: Vec<String> = records.iter().map(line).collect();
    let path = format!("{}/records", stream.path());
    if actor.random.bool() {
        Ask::post(path, lines.join("\n") + "\n").with("content-type", "application/x-ndjson")
    } else {
        Ask::post(path, format!("[{}]", lines.join(",")))
    }
}

fn line(record: &Sent) -> String {
    let mut out = format!("{{\"value\":{}", value::text(record.id));
    if let Some(partition) = record.partition {
        let _ = write!(out, ",\"partition\":{partition}");
    }
    if let Some(key) = record.key {
        let _ = write!(out, ",\"key\":{{\"k\":{key}}}");
    }
    out + "}"
}

/// What the producer knows now.
pub(super) fn outcome(actor: &Actor, start: u64, answer: Result<Answer, Failed>) -> Outcome<Vec<Range>> {
    match answer {
        Err(failed) => failed.outcome(),
        // A repeated append of an idempotent producer may be answered without a body.
        Ok(answer) if answer.status == 204 => Outcome::Ok(Vec::new()),
        Ok(answer) if answer.ok() => match wire::parse::<wire::Appended>(answer.text()) {
            Ok(appended) => {
                let ranges = appended.ranges();
                let total: u64 = ranges.iter().map(|range| range.next.saturating_sub(range.base)).sum();
                // A repeated append may say nothing of places.
                if total != appended.count && !ranges.is_empty() {
                    actor.misshapen("append", start, format!("count is not the sum: {}", answer.told()));
                }
                Outcome::Ok(ranges)
            }
            Err(what) => {
                actor.misshapen("append", start, what);
                Outcome::Unknown
            }
        },
        Ok(answer) => answer.refusal(),
    }
}
