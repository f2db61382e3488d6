//! Members of ordered groups: join, heartbeat, poll, commit what was processed without a hole. Some leave, some fall silent and come
//! back as a zombie. After a lost answer of a poll a member starts anew: the server has moved on, it has not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Actor;
use crate::crash::client::{Answer, Ask, Failed, segment};
use crate::crash::history::{Event, Outcome, Seen};
use crate::crash::plan::{Group, SESSION_MS};
use crate::crash::wire;

const HEARTBEAT: Duration = Duration::from_millis(SESSION_MS / 4);
/// What a member does now and then, in per mille of its polls.
const LEAVES: u32 = 5;
const VANISHES: u32 = 5;
const FALLS_SILENT: u32 = 3;
const COMMITS_PERCENT: u32 = 60;
const WATCH_MS: u64 = 150;

/// What a member knows about itself.
struct Member {
    id: String,
    generation: u64,
    held: Vec<u32>,
    /// The offset after what was processed, by partition.
    next: BTreeMap<u32, u64>,
    committed: BTreeMap<u32, u64>,
    beat: Instant,
    path: String,
    group: u16,
}

/// Why a membership ended.
enum Left {
    Stopped,
    Gone,
}

pub(super) async fn run(mut actor: Actor, group: Group) {
    while !actor.context.stopped() {
        let Some(mut member) = join(&mut actor, &group).await else {
            actor.pause().await;
            continue;
        };
        if let Left::Stopped = live(&mut actor, &mut member, false).await {
            // Leaves in order, so that the end need not wait for the session.
            leave(&mut actor, &member).await;
        }
    }
}

async fn join(actor: &mut Actor, group: &Group) -> Option<Member> {
    let path = actor.context.plan.group_path(group);
    let start = actor.now();
    let body = json!({"client": format!("client {}", actor.id)}).to_string();
    let answer = actor.ask("join", &[], Ask::post(format!("{path}/members"), body)).await.ok()?;
    if !answer.ok() {
        return None;
    }
    let membership = match wire::parse::<wire::Membership>(answer.text()) {
        Ok(membership) => membership,
        Err(what) => {
            actor.misshapen("join", start, what);
            return None;
        }
    };
    let mut member = Member {
        id: membership.member.clone().unwrap_or_default(),
        generation: membership.generation,
        held: Vec::new(),
        next: BTreeMap::new(),
        committed: BTreeMap::new(),
        beat: Instant::now(),
        path,
        group: group.index,
    };
    member.holds(actor, start, &membership);
    Some(member)
}

impl Member {
    /// The server told what it holds now.
    fn holds(&mut self, actor: &Actor, start: u64, membership: &wire::Membership) {
        let kept = |partition: &u32| self.held.contains(partition);
        let lost: Vec<u32> = self.next.keys().copied().filter(|one| !membership.partitions.contains(one)).collect();
        let gained: Vec<u32> = membership.partitions.iter().copied().filter(|one| !kept(one)).collect();
        for partition in lost.iter().chain(&gained) {
            self.next.remove(partition);
            self.committed.remove(partition);
        }
        self.generation = membership.generation;
        self.held.clone_from(&membership.partitions);
        let (group, member, generation) = (self.group, self.id.clone(), self.generation);
        actor.note(start, Event::Held { group, member, generation, partitions: self.held.clone() });
    }

    /// Takes records in; `false` = some are missing in between.
    fn takes(&mut self, seen: &[(u32, Seen)]) -> bool {
        for (partition, seen) in seen {
            let next = self.next.entry(*partition).or_insert(seen.offset);
            if seen.offset > *next {
                return false;
            }
            // An earlier one comes again after a restart: from there on it is processed again.
            *next = seen.offset + 1;
        }
        true
    }
}

async fn heartbeat(actor: &mut Actor, member: &mut Member) -> Result<(), Left> {
    let start = actor.now();
    let path = format!("{}/members/{}/heartbeat", member.path, segment(&member.id));
    let body = json!({"generation": member.generation}).to_string();
    member.beat = Instant::now();
    match actor.ask("heartbeat", &[404, 409], Ask::post(path, body)).await {
        Ok(answer) if answer.ok() => match wire::parse::<wire::Membership>(answer.text()) {
            Ok(membership) => member.holds(actor, start, &membership),
            Err(what) => actor.misshapen("heartbeat", start, what),
        },
        Ok(answer) if matches!(answer.status, 404 | 409) => return Err(Left::Gone),
        _ => {}
    }
    Ok(())
}

/// Polls and commits until something ends the membership; while `draining`, until a poll gives nothing.
async fn live(actor: &mut Actor, member: &mut Member, draining: bool) -> Left {
    loop {
        if actor.context.stopped() && !draining {
            return Left::Stopped;
        }
        if member.beat.elapsed() > HEARTBEAT
            && let Err(left) = heartbeat(actor, member).await
        {
            return left;
        }
        match poll(actor, member).await {
            Ok(Some(0)) if draining => return Left::Stopped,
            Ok(Some(_)) => {}
            Ok(None) => {
                leave(actor, member).await;
                return Left::Gone;
            }
            Err(left) => return left,
        }
        let whim = if draining { u32::MAX } else { actor.random.u32(0..1000) };
        if whim < LEAVES {
            leave(actor, member).await;
            return Left::Gone;
        } else if whim < LEAVES + VANISHES {
            return Left::Gone;
        } else if whim < LEAVES + VANISHES + FALLS_SILENT {
            tokio::time::sleep(Duration::from_millis(SESSION_MS + SESSION_MS / 2)).await;
            // Without a heartbeat: the zombie's commit must not count, if another one took over.
            commit(actor, member).await;
        } else if draining || actor.chance(COMMITS_PERCENT) {
            commit(actor, member).await;
        }
        actor.think(if draining { 1 } else { 20 }).await;
    }
}

/// How many records came; `None` = the member no longer knows where it stands.
async fn poll(actor: &mut Actor, member: &mut Member) -> Result<Option<usize>, Left> {
    let start = actor.now();
    let limit = actor.random.u32(1..400);
    let wait_ms = actor.random.u32(0..200);
    let body = json!({"member": member.id, "generation": member.generation, "limit": limit, "wait_ms": wait_ms});
    let answer = actor.ask("poll", &[404, 409], Ask::post(format!("{}/poll", member.path), body.to_string())).await;
    match answer {
        Err(Failed::NotSent) => Ok(Some(0)),
        Err(Failed::Lost) => Ok(None),
        Ok(answer) if answer.ok() => match wire::parse::<wire::Polled>(answer.text()) {
            Ok(polled) => {
                let seen: Vec<(u32, Seen)> =
                    polled.records.iter().map(|record| (record.partition, record.seen())).collect();
                if let Some(gap) = polled.gaps.first() {
                    actor.misshapen("poll", start, format!("a gap in a stream without retention: {gap:?}"));
                }
                let whole = member.takes(&seen).then_some(seen.len());
                let (group, id, generation) = (member.group, member.id.clone(), member.generation);
                actor.note(start, Event::Polled { group, member: id, generation, seen });
                Ok(whole)
            }
            Err(what) => {
                actor.misshapen("poll", start, what);
                Ok(None)
            }
        },
        // A newer generation: the heartbeat tells it, and what is still held.
        Ok(answer) if answer.status == 409 => heartbeat(actor, member).await.map(|()| Some(0)),
        Ok(answer) if answer.status == 404 => Err(Left::Gone),
        Ok(answer) => Ok((!answer.undecided()).then_some(0)),
    }
}

async fn commit(actor: &mut Actor, member: &mut Member) {
    let new = member.next.iter().filter(|(partition, next)| member.committed.get(partition) != Some(next));
    let positions: BTreeMap<u32, u64> = new.map(|(partition, next)| (*partition, *next)).collect();
    if positions.is_empty() {
        return;
    }
    let start = actor.now();
    let body = json!({"member": member.id, "generation": member.generation, "positions": positions}).to_string();
    let answer = actor.ask("commit", &[404, 409, 422], Ask::post(format!("{}/commit", member.path), body)).await;
    let outcome = match answer {
        Err(failed) => failed.outcome(),
        Ok(answer) if answer.ok() => confirmed(actor, start, &answer, &positions),
        Ok(answer) => answer.refusal(),
    };
    if outcome == Outcome::Ok(()) {
        member.committed.extend(&positions);
    }
    let (group, id, generation) = (member.group, member.id.clone(), member.generation);
    let positions = positions.into_iter().collect();
    actor.note(start, Event::Commit { group, member: id, generation, positions, outcome });
}

fn confirmed(actor: &Actor, start: u64, answer: &Answer, positions: &BTreeMap<u32, u64>) -> Outcome<()> {
    match wire::parse::<wire::Committed>(answer.text()) {
        Ok(wire::Committed { committed }) => {
            if positions.iter().any(|(partition, position)| committed.get(partition) != Some(position)) {
                let what = format!("committing {positions:?} was answered {committed:?}");
                actor.misshapen("commit", start, what);
            }
            Outcome::Ok(())
        }
        Err(what) => {
            actor.misshapen("commit", start, what);
            Outcome::Unknown
        }
    }
}

async fn leave(actor: &mut Actor, member: &Member) {
    let path = format!("{}/members/{}", member.path, segment(&member.id));
    let _ = actor.ask("leave", &[404], Ask::delete(path)).await;
}

/// Asks the ordered groups for their positions, again and again.
pub(super) async fn watch(mut actor: Actor) {
    while !actor.context.stopped() {
        let groups: Vec<Group> = actor.context.plan.groups.iter().filter(|group| !group.shared).cloned().collect();
        for group in groups {
            positions(&mut actor, &group).await;
        }
        actor.think(WATCH_MS).await;
    }
}

/// Whether everything is committed; `None` if the group did not answer.
pub(crate) async fn positions(actor: &mut Actor, group: &Group) -> Option<bool> {
    let path = actor.context.plan.group_path(group);
    let start = actor.now();
    let answer = actor.ask("group", &[], Ask::get(path)).await.ok().filter(Answer::ok)?;
    match wire::parse::<wire::Group>(answer.text()) {
        Ok(wire::Group { positions }) => {
            let committed = positions.iter().map(|one| (one.partition, one.committed.unwrap_or(0))).collect();
            actor.note(start, Event::Positions { group: group.index, committed });
            Some(positions.iter().all(|one| one.committed.unwrap_or(0) == one.next))
        }
        Err(what) => {
            actor.misshapen("group", start, what);
            None
        }
    }
}

/// Reads and commits all that is left, when nobody writes any more; whether it was done within `bound`.
pub(crate) async fn drain(actor: &mut Actor, group: &Group, bound: Duration) -> bool {
    let done = async {
        while positions(actor, group).await != Some(true) {
            if let Some(mut member) = join(actor, group).await {
                live(actor, &mut member, true).await;
                leave(actor, &member).await;
            }
        }
    };
    tokio::time::timeout(bound, done).await.is_ok()
}
