//! Readers without a group: paged reads and tails by server-sent events, each from where it stopped. What they saw is gone from
//! nowhere, so they never start again but by chance.

use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::Actor;
use crate::crash::client::{Answer, Ask};
use crate::crash::history::{Event, Gap, Place, Read};
use crate::crash::plan::{Plan, Stream};
use crate::crash::wire::{self, Events, ServerEvent};

/// How often a tail looks up to see whether the run is over.
const LOOK_UP: Duration = Duration::from_millis(300);
/// A tail starts anew from time to time although nothing broke, in percent of what it gets.
const BREAKS: u32 = 1;
const PAGE: u32 = 1000;

/// Pages of one partition after another.
pub(super) async fn pages(mut actor: Actor, stream: Stream) {
    let mut from = vec![0_u64; stream.partitions as usize];
    while !actor.context.stopped() {
        let partition = actor.random.u32(0..stream.partitions);
        let at = &mut from[partition as usize];
        // Now and then from somewhere before, so that old records are seen again after restarts.
        if actor.chance(10) {
            *at = actor.random.u64(0..=*at);
        }
        let limit = actor.random.u32(1..=PAGE);
        let wait_ms = if actor.random.bool() { actor.random.u32(0..400) } else { 0 };
        let start = actor.now();
        if let Some(read) = page(&mut actor, &stream, partition, *at, limit, wait_ms).await {
            *at = read.next.unwrap_or(*at);
            actor.note(start, Event::Read(read));
        }
        actor.think(50).await;
    }
}

/// Everything that a partition holds; `None` if it could not be read.
pub(crate) async fn read_all(actor: &mut Actor, stream: &Stream, partition: u32) -> Option<Read> {
    let place = Place { stream: stream.index, partition };
    let mut all = Read { place, from: 0, seen: Vec::new(), gaps: Vec::new(), next: Some(0) };
    loop {
        let read = page(actor, stream, partition, all.next.unwrap_or(0), PAGE, 0).await?;
        if read.next == all.next {
            return Some(all);
        }
        all.next = read.next;
        all.seen.extend(read.seen);
        all.gaps.extend(read.gaps);
    }
}

/// The ids of everything in the stream of dead letters.
pub(crate) async fn dead_letters(actor: &mut Actor) -> Option<Vec<Option<u64>>> {
    let mut ids = Vec::new();
    let mut from = 0;
    loop {
        let query = format!("partition=0&from={from}&limit={PAGE}");
        let ask = Ask::get(format!("{}/records?{query}", Plan::dead_path()));
        let start = actor.now();
        let answer = actor.ask("read", &[], ask).await.ok().filter(Answer::ok)?;
        match wire::page(answer.text(), 0) {
            Ok(page) if page.seen.is_empty() => return Some(ids),
            Ok(page) => {
                ids.extend(page.seen.iter().map(|seen| seen.id));
                from = page.next.unwrap_or(from);
            }
            Err(what) => {
                actor.misshapen("read", start, what);
                return None;
            }
        }
    }
}

async fn page(actor: &mut Actor, stream: &Stream, partition: u32, from: u64, limit: u32, wait_ms: u32) -> Option<Read> {
    let place = Place { stream: stream.index, partition };
    let path = stream.path();
    let query = format!("partition={partition}&from={from}&limit={limit}&wait_ms={wait_ms}");
    let start = actor.now();
    let answer = actor.ask("read", &[416], Ask::get(format!("{path}/records?{query}"))).await.ok()?;
    if answer.status == 416 {
        actor.note(start, Event::OutOfRange { place, from });
        return None;
    }
    if !answer.ok() {
        return None;
    }
    match wire::page(answer.text(), partition) {
        Ok(page) if page.next.is_some() => {
            Some(Read { place, from, seen: page.seen, gaps: page.gaps, next: page.next })
        }
        // The body was whole, by its own framing: so its last line must be there.
        Ok(_) => {
            actor.misshapen("read", start, "no last line `next`".to_owned());
            None
        }
        Err(what) => {
            actor.misshapen("read", start, what);
            None
        }
    }
}

/// A tail of one partition, resumed by Last-Event-ID.
pub(super) async fn tail(mut actor: Actor, stream: Stream) {
    let partition = actor.random.u32(0..stream.partitions);
    let place = Place { stream: stream.index, partition };
    let mut from = 0;
    while !actor.context.stopped() {
        let path = format!("{}/records?partition={partition}", stream.path());
        let ask = if from == 0 {
            Ask::get(format!("{path}&from=0"))
        } else {
            Ask::get(path).with("last-event-id", format!("{partition}:{}", from - 1))
        };
        let start = actor.now();
        let response = actor.client.send(ask.with("accept", "text/event-stream")).await;
        let Ok(response) = response else {
            actor.pause().await;
            continue;
        };
        if response.status().as_u16() == 416 {
            actor.note(start, Event::OutOfRange { place, from });
        }
        if !response.status().is_success() {
            if !matches!(response.status().as_u16(), 416 | 429 | 503) {
                actor.misshapen("tail", start, format!("status {}", response.status()));
            }
            actor.pause().await;
            continue;
        }
        let mut body = response.into_body();
        let mut events = Events::default();
        while !actor.context.stopped() && !actor.chance(BREAKS) {
            let start = actor.now();
            let Ok(frame) = timeout(LOOK_UP, body.frame()).await else { continue };
            let Some(Ok(frame)) = frame else { break };
            let events = frame.data_ref().map(|piece| events.push(piece)).unwrap_or_default();
            match read(place, from, &events) {
                Ok(read) if read.seen.is_empty() && read.gaps.is_empty() => {}
                Ok(read) => {
                    let next = read.seen.last().map(|seen| seen.offset + 1);
                    from = from.max(next.unwrap_or(0)).max(read.gaps.last().map_or(0, |gap| gap.to));
                    actor.note(start, Event::Read(read));
                }
                Err(what) => actor.misshapen("tail", start, what),
            }
        }
        actor.think(20).await;
    }
}

/// What a piece of a tail says.
fn read(place: Place, from: u64, events: &[ServerEvent]) -> Result<Read, String> {
    let mut read = Read { place, from, seen: Vec::new(), gaps: Vec::new(), next: None };
    for event in events {
        match event.event.as_str() {
            "record" => {
                let record: wire::Record = wire::parse(&event.data)?;
                let id = format!("{}:{}", record.partition, record.offset);
                if record.partition != place.partition || id != event.id {
                    return Err(format!("event id {} for record {id}", event.id));
                }
                read.seen.push(record.seen());
            }
            "gap" => {
                let gap: wire::GapLine = wire::parse(&event.data)?;
                read.gaps.push(Gap { from: gap.from, to: gap.to, reason: gap.reason });
            }
            // Whatever else there is says nothing about records.
            _ => {}
        }
    }
    Ok(read)
}
