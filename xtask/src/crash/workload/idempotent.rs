//! Idempotent producers: a request is sent again under its number until its outcome is known. Now and then one starts anew under the
//! next epoch, and its former self tries to go on, which must be refused.

use super::{Actor, plain};
use crate::crash::history::{Append, Event, Outcome, Sequence};

/// In percent of the requests.
const RESTARTS: u32 = 2;
const ZOMBIES: u32 = 40;
const REPEATS: u32 = 3;

pub(super) async fn run(mut actor: Actor) {
    let stream = plain::choose(&mut actor);
    let mut sequence = Sequence { producer: actor.id, epoch: 0, seq: 0, zombie: false };
    // Whether anything of this epoch was accepted: only then is an older one fenced.
    let mut settled = false;
    while !actor.context.stopped() {
        let records = plain::records(&mut actor, &stream);
        let ask = plain::ask(&mut actor, &stream, &records)
            .with("producer-id", format!("producer {}", actor.id))
            .with("producer-epoch", sequence.epoch)
            .with("producer-seq", sequence.seq);
        let mut left = 1 + u32::from(actor.chance(REPEATS));
        while !actor.context.stopped() && left > 0 {
            let start = actor.now();
            let answer = actor.ask("append, idempotent", &[], ask.clone()).await;
            let outcome = plain::outcome(&actor, start, answer);
            let known = matches!(outcome, Outcome::Ok(_));
            let event = Append { stream: stream.index, sequence: Some(sequence), records: records.clone(), outcome };
            actor.note(start, Event::Append(event));
            if known {
                left -= 1;
                settled = true;
            } else if actor.chance(RESTARTS) {
                break;
            }
        }
        if left == 0 && !actor.chance(RESTARTS) {
            sequence.seq += 1;
        } else {
            let old = Sequence { seq: sequence.seq + u64::from(left == 0), zombie: true, ..sequence };
            (sequence.epoch, sequence.seq) = (sequence.epoch + 1, 0);
            let fenced = open(&mut actor, &stream, &mut sequence).await;
            if fenced && settled && actor.chance(ZOMBIES) {
                zombie(&mut actor, &stream, old).await;
            }
        }
        actor.think(12).await;
    }
}

/// The first request of an epoch; whether it was confirmed.
async fn open(actor: &mut Actor, stream: &crate::crash::plan::Stream, sequence: &mut Sequence) -> bool {
    let records = plain::records(actor, stream);
    let ask = plain::ask(actor, stream, &records)
        .with("producer-id", format!("producer {}", actor.id))
        .with("producer-epoch", sequence.epoch)
        .with("producer-seq", sequence.seq);
    while !actor.context.stopped() {
        let start = actor.now();
        let answer = actor.ask("append, idempotent", &[], ask.clone()).await;
        let outcome = plain::outcome(actor, start, answer);
        let known = matches!(outcome, Outcome::Ok(_));
        let event = Append { stream: stream.index, sequence: Some(*sequence), records: records.clone(), outcome };
        actor.note(start, Event::Append(event));
        if known {
            sequence.seq += 1;
            return true;
        }
    }
    false
}

/// The former self of a producer sends once more.
async fn zombie(actor: &mut Actor, stream: &crate::crash::plan::Stream, old: Sequence) {
    let records = plain::records(actor, stream);
    let ask = plain::ask(actor, stream, &records)
        .with("producer-id", format!("producer {}", actor.id))
        .with("producer-epoch", old.epoch)
        .with("producer-seq", old.seq);
    let start = actor.now();
    let answer = actor.ask("append, fenced epoch", &[403], ask).await;
    let outcome = plain::outcome(actor, start, answer);
    let event = Append { stream: stream.index, sequence: Some(old), records, outcome };
    actor.note(start, Event::Append(event));
}
