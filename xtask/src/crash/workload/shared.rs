//! Consumers of shared groups: they acknowledge most of what they get, give some back, and forget some, as if they had died.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Actor;
use crate::crash::client::{Answer, Ask};
use crate::crash::history::{Delivery, Event, Micros, Outcome};
use crate::crash::plan::{ACK_TIMEOUT_MS, Group};
use crate::crash::wire;

/// In percent of the deliveries.
const GIVEN_BACK: u32 = 5;
const FORGOTTEN: u32 = 4;
/// In percent of the polls: all that it gave is forgotten.
const DEATHS: u32 = 2;
const MOST: u32 = 60;

pub(super) async fn run(mut actor: Actor, group: Group) {
    while !actor.context.stopped() {
        let Some(deliveries) = poll(&mut actor, &group, 150).await else { continue };
        if deliveries.is_empty() || actor.chance(DEATHS) {
            continue;
        }
        let (mut taken, mut back) = (Vec::new(), Vec::new());
        for one in deliveries {
            let whim = actor.random.u32(0..100);
            if whim < GIVEN_BACK {
                back.push(one);
            } else if whim >= GIVEN_BACK + FORGOTTEN {
                taken.push(one);
            }
        }
        actor.think(30).await;
        settle(&mut actor, &group, taken, back).await;
        actor.think(30).await;
    }
}

async fn poll(actor: &mut Actor, group: &Group, wait_ms: u32) -> Option<Vec<String>> {
    let path = actor.context.plan.group_path(group);
    let start = actor.now();
    let limit = actor.random.u32(1..=MOST);
    let body = json!({"limit": limit, "wait_ms": actor.random.u32(0..=wait_ms)}).to_string();
    let answer = actor.ask("poll, shared", &[], Ask::post(format!("{path}/poll"), body)).await.ok();
    let answer = answer.filter(Answer::ok)?;
    let records = match wire::parse::<wire::Polled>(answer.text()) {
        Ok(polled) => polled.records,
        Err(what) => {
            actor.misshapen("poll, shared", start, what);
            return None;
        }
    };
    let mut deliveries = Vec::with_capacity(records.len());
    for record in &records {
        let Some(delivery) = &record.delivery else {
            actor.misshapen("poll, shared", start, "a record without `delivery`".to_owned());
            return None;
        };
        let delivery = Delivery { delivery: delivery.id.clone(), partition: record.partition, seen: record.seen() };
        deliveries.push(delivery);
    }
    let ids = deliveries.iter().map(|one| one.delivery.clone()).collect();
    actor.note(start, Event::Delivered { group: group.index, deliveries });
    Some(ids)
}

/// Acknowledges and gives back.
async fn settle(actor: &mut Actor, group: &Group, taken: Vec<String>, back: Vec<String>) {
    if taken.is_empty() && back.is_empty() {
        return;
    }
    let path = actor.context.plan.group_path(group);
    let start = actor.now();
    let nack: Vec<_> = back.iter().map(|id| json!({"id": id, "delay_ms": actor.random.u32(0..300)})).collect();
    let body = json!({"ack": taken, "nack": nack}).to_string();
    // Noted before it is sent: the record may come again before the answer does.
    if !back.is_empty() {
        actor.note(start, Event::Nack { group: group.index, deliveries: back });
    }
    let outcome = match actor.ask("ack", &[], Ask::post(format!("{path}/ack"), body)).await {
        Err(failed) => failed.outcome(),
        Ok(answer) if answer.ok() => acknowledged(actor, start, &answer, &taken),
        Ok(answer) => answer.refusal(),
    };
    if !taken.is_empty() {
        actor.note(start, Event::Ack { group: group.index, deliveries: taken, outcome });
    }
}

/// Those that the server took; the others come again.
fn acknowledged(actor: &Actor, start: Micros, answer: &Answer, taken: &[String]) -> Outcome<Vec<String>> {
    match wire::parse::<wire::Settled>(answer.text()) {
        Ok(wire::Settled { unknown }) => {
            Outcome::Ok(taken.iter().filter(|id| !unknown.contains(id)).cloned().collect())
        }
        Err(what) => {
            actor.misshapen("ack", start, what);
            Outcome::Unknown
        }
    }
}

/// Takes and acknowledges until nothing came for longer than any delivery lasts; whether that was within `bound`.
pub(crate) async fn drain(actor: &mut Actor, group: &Group, bound: Duration) -> bool {
    let begin = Instant::now();
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(ACK_TIMEOUT_MS * 2) {
        if begin.elapsed() > bound {
            return false;
        }
        match poll(actor, group, 100).await {
            Some(taken) if taken.is_empty() => {}
            Some(taken) => {
                settle(actor, group, taken, Vec::new()).await;
                quiet = Instant::now();
            }
            None => {}
        }
    }
    true
}
