//! A stream by the Durable Streams protocol, JSON mode: idempotent producers, and a reader that goes on by the offsets it is given.
//! Offsets are opaque there, so places are counted from the start.

use super::Actor;
use crate::crash::client::{Answer, Ask, segment};
use crate::crash::history::{Append, Event, Outcome, Place, Read, Seen, Sent, Sequence};
use crate::crash::plan::Stream;
use crate::crash::value;

const RESTARTS: u32 = 2;
const RECORDS: usize = 8;

fn stream(actor: &Actor) -> Option<Stream> {
    actor.context.plan.streams.iter().find(|stream| stream.durable.is_some()).cloned()
}

pub(super) async fn produce(mut actor: Actor) {
    let Some(stream) = stream(&actor) else { return };
    let path = stream.durable.clone().unwrap_or_default();
    let mut sequence = Sequence { producer: actor.id, epoch: 0, seq: 0, zombie: false };
    while !actor.context.stopped() {
        let count = actor.random.usize(1..=RECORDS);
        let records: Vec<Sent> =
            (0..count).map(|_| Sent { id: actor.record(), partition: Some(0), key: None }).collect();
        let values: Vec<String> = records.iter().map(|record| value::text(record.id)).collect();
        let ask = Ask::post(path.clone(), format!("[{}]", values.join(",")))
            .with("producer-id", format!("ds {}", actor.id))
            .with("producer-epoch", sequence.epoch)
            .with("producer-seq", sequence.seq);
        let mut known = false;
        while !actor.context.stopped() && !known {
            let start = actor.now();
            let outcome = match actor.ask("append, /ds", &[], ask.clone()).await {
                Err(failed) => failed.outcome(),
                Ok(answer) if answer.ok() => Outcome::Ok(Vec::new()),
                Ok(answer) => answer.refusal(),
            };
            known = matches!(outcome, Outcome::Ok(_));
            let append = Append { stream: stream.index, sequence: Some(sequence), records: records.clone(), outcome };
            actor.note(start, Event::Append(append));
            if !known && actor.chance(RESTARTS) {
                break;
            }
        }
        if known && !actor.chance(RESTARTS) {
            sequence.seq += 1;
        } else {
            (sequence.epoch, sequence.seq) = (sequence.epoch + 1, 0);
        }
        actor.think(15).await;
    }
}

/// Where a reader stands: the server's offset, and how many records lie before it.
struct Position {
    offset: String,
    count: u64,
}

pub(super) async fn read(mut actor: Actor) {
    let Some(stream) = stream(&actor) else { return };
    let mut position = Position { offset: "-1".to_owned(), count: 0 };
    while !actor.context.stopped() {
        let start = actor.now();
        if let Some((read, _)) = page(&mut actor, &stream, &mut position).await {
            actor.note(start, Event::Read(read));
        }
        actor.think(60).await;
    }
}

/// Everything that the stream holds; `None` if it could not be read.
pub(crate) async fn read_all(actor: &mut Actor, stream: &Stream) -> Option<Read> {
    let mut position = Position { offset: "-1".to_owned(), count: 0 };
    let place = Place { stream: stream.index, partition: 0 };
    let mut all = Read { place, from: 0, seen: Vec::new(), gaps: Vec::new(), next: None };
    loop {
        let (read, end) = page(actor, stream, &mut position).await?;
        all.seen.extend(read.seen);
        if end {
            return Some(all);
        }
    }
}

/// One answer, and whether the end was reached.
async fn page(actor: &mut Actor, stream: &Stream, position: &mut Position) -> Option<(Read, bool)> {
    let path = stream.durable.as_deref().unwrap_or_default();
    let start = actor.now();
    let ask = Ask::get(format!("{path}?offset={}", segment(&position.offset)));
    let answer: Answer = actor.ask("read, /ds", &[], ask).await.ok().filter(Answer::ok)?;
    let Some(next) = answer.header("stream-next-offset").map(str::to_owned) else {
        actor.misshapen("read, /ds", start, "no Stream-Next-Offset".to_owned());
        return None;
    };
    let values = serde_json::from_str::<Vec<Box<serde_json::value::RawValue>>>(answer.text());
    let values = match values {
        Ok(values) => values,
        Err(error) => {
            actor.misshapen("read, /ds", start, format!("{error}: {}", answer.told()));
            return None;
        }
    };
    let end = answer.header("stream-up-to-date") == Some("true");
    let from = position.count;
    let seen: Vec<Seen> =
        (from..).zip(&values).map(|(offset, value)| Seen { offset, id: value::id(value.get()) }).collect();
    if seen.is_empty() && !end {
        actor.misshapen("read, /ds", start, "an empty answer that is not up to date".to_owned());
        return None;
    }
    position.offset = next;
    position.count += seen.len() as u64;
    let place = Place { stream: stream.index, partition: 0 };
    Some((Read { place, from, seen, gaps: Vec::new(), next: Some(position.count) }, end))
}
