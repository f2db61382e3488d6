//! Readers without a group: paged reads and tails by server-sent events, each from where it stopped. What they saw is gone from
//! nowhere, so they never start again but by chance.

use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::Actor;
use crate::crash::client::{Answer, Ask};
use crate::crash::history::{Event, Place, Read};
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
        // An answer that had begun when storage failed ends with that: nothing of it is used.
        Err(what) if actor.context.faults && what.starts_with(wire::ERROR_LINE) => None,
        Err(what) => {
            actor.misshapen("read", start, what);
            None
        }
    }
}

/// Which partitions a tail follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    One,
    All,
}

/// Where a tail is: the last event's id, and the next offset of every partition.
struct Tail {
    stream: u16,
    last: Option<String>,
    next: Vec<u64>,
}

/// A tail, resumed by Last-Event-ID.
pub(super) async fn tail(mut actor: Actor, stream: Stream, follow: Follow) {
    let partition = actor.random.u32(0..stream.partitions);
    let mut path = format!("{}/records", stream.path());
    if follow == Follow::One {
        path = format!("{path}?partition={partition}");
    }
    let mut at = Tail { stream: stream.index, last: None, next: vec![0; stream.partitions as usize] };
    while !actor.context.stopped() {
        let mut ask = Ask::get(path.clone()).with("accept", "text/event-stream");
        if let Some(last) = &at.last {
            ask = ask.with("last-event-id", last);
        }
        let start = actor.now();
        let Ok(response) = actor.client.send(ask).await else {
            actor.pause().await;
            continue;
        };
        let status = response.status().as_u16();
        if status == 416 && follow == Follow::One {
            let place = Place { stream: stream.index, partition };
            actor.note(start, Event::OutOfRange { place, from: at.next[partition as usize] });
        }
        if status != 200 {
            let usual = matches!(status, 416 | 429 | 503) || (actor.context.faults && status >= 500);
            if !usual {
                actor.misshapen("tail", start, format!("status {status} after {:?}", at.last));
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
            match at.takes(&events) {
                Ok(reads) => reads.into_iter().for_each(|read| actor.note(start, Event::Read(read))),
                Err(what) => actor.misshapen("tail", start, what),
            }
        }
        actor.think(20).await;
    }
}

impl Tail {
    /// What a piece of a tail says, by partition; the tail stands behind it then.
    fn takes(&mut self, events: &[ServerEvent]) -> Result<Vec<Read>, String> {
        let mut reads: BTreeMap<u32, Read> = BTreeMap::new();
        for event in events {
            let (partition, next) = match event.event.as_str() {
                "record" => {
                    let record: wire::Record = wire::parse(&event.data)?;
                    let id = format!("{}:{}", record.partition, record.offset);
                    if id != event.id {
                        return Err(format!("event id {} for record {id}", event.id));
                    }
                    self.read(&mut reads, record.partition)?.seen.push(record.seen());
                    (record.partition, record.offset + 1)
                }
                "gap" => {
                    let gap: wire::GapLine = wire::parse(&event.data)?;
                    self.read(&mut reads, gap.partition)?.gaps.push(gap.gap());
                    (gap.partition, gap.to)
                }
                // A last word, not about records.
                _ => continue,
            };
            if !event.id.is_empty() {
                self.last = Some(event.id.clone());
            }
            self.next[partition as usize] = next;
        }
        Ok(reads.into_values().collect())
    }

    fn read<'a>(&self, reads: &'a mut BTreeMap<u32, Read>, partition: u32) -> Result<&'a mut Read, String> {
        let place = Place { stream: self.stream, partition };
        let from = *self.next.get(partition as usize).ok_or_else(|| format!("partition {partition}"))?;
        let new = || Read { place, from, seen: Vec::new(), gaps: Vec::new(), next: None };
        Ok(reads.entry(partition).or_insert_with(new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_of_all_partitions_stands_behind_its_last_event() {
        let record = |partition: u32, offset: u64| ServerEvent {
            event: "record".to_owned(),
            id: format!("{partition}:{offset}"),
            data: format!("{{\"partition\":{partition},\"offset\":{offset},\"value\":1}}"),
        };
        let mut tail = Tail { stream: 3, last: None, next: vec![0, 4] };
        let reads = tail.takes(&[record(0, 0), record(1, 4), record(0, 1)]).unwrap();
        assert_eq!((reads[0].from, reads[0].seen.len(), reads[1].from), (0, 2, 4));
        assert_eq!((tail.last.as_deref(), &tail.next[..]), (Some("0:1"), &[2, 5][..]));
        assert!(tail.takes(&[record(2, 0)]).is_err());
        assert!(tail.takes(&[ServerEvent { id: "0:9".to_owned(), ..record(0, 2) }]).is_err());
    }
}
