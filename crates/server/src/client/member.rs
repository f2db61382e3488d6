//! Members and readers of consumer groups. A member joins, stays alive by a heartbeat of its own task, follows the group's
//! generations and leaves. It commits nothing by itself: its caller says what was dealt with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::call::{Fault, Patience};
use super::change::{GapInfo, Positions};
use super::error::Interruption;
use super::{Client, ClientError};

/// Records that were delivered.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Batch {
    /// The records, as the JSON that the server sent.
    #[serde(default)]
    pub records: Vec<Box<RawValue>>,
    /// What is gone.
    #[serde(default)]
    pub gaps: Vec<GapInfo>,
    /// The next offset of every partition that was delivered from: what a commit takes.
    #[serde(default)]
    pub delivered: Positions,
}

impl Batch {
    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.gaps.is_empty()
    }
}

/// What a poll gave.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice {
    /// Records, or none in the time that was waited.
    Batch(Batch),
    /// The group's members changed, and with them the partitions of this one.
    Changed {
        /// The generation now.
        generation: u64,
        /// The partitions now.
        partitions: Vec<u32>,
    },
    /// The member joined anew. What it was delivered and did not commit is delivered again.
    Rejoined {
        /// What had happened.
        why: String,
        /// The generation now.
        generation: u64,
        /// The partitions now.
        partitions: Vec<u32>,
    },
}

/// What came of a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// What is committed.
    pub positions: Positions,
    /// What was not taken, because another member has those partitions now: it is delivered them again.
    pub refused: Positions,
}

/// The member as the group knows it.
#[derive(Debug, Clone, Deserialize)]
struct Standing {
    #[serde(default)]
    member: String,
    generation: u64,
    partitions: Vec<u32>,
    #[serde(default)]
    session_ms: u64,
}

/// What the member and its heart share.
#[derive(Debug)]
struct State {
    standing: Standing,
    /// What was last told to the caller.
    told: u64,
    /// The group does not know the member any more.
    gone: Option<String>,
}

/// A group of a stream.
#[derive(Debug, Clone)]
struct Group {
    client: Client,
    stream: String,
    group: String,
}

impl Group {
    async fn post(&self, more: &[&str], body: &impl Serialize, wait: Duration) -> Result<super::call::Answer, Fault> {
        self.client.group_post((&self.stream, &self.group), more, body, wait).await
    }

    async fn leave(&self, member: &str) -> Result<(), Fault> {
        let request = self.client.group_request(Method::DELETE, &self.stream, &self.group, &["members", member]);
        self.client.ask(request.timeout(LEAVE_TIMEOUT), Duration::ZERO).await.map(drop)
    }
}

/// A member of an ordered group.
pub struct Member {
    group: Group,
    name: String,
    state: Arc<Mutex<State>>,
    heart: tokio::task::JoinHandle<()>,
    patience: Patience,
}

const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest pause between heartbeats, whatever the session.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);

fn is_stale(fault: &Fault) -> bool {
    // 409 fenced, 404 unknown_member: the server did nothing, because the group went on.
    fault.problem().is_some_and(|problem| matches!(problem.code.as_str(), "fenced" | "unknown_member"))
}

impl Member {
    /// Joins a group under a name, until there is an answer.
    ///
    /// # Errors
    /// [`ClientError`]: there is no such group, or the server does not take members.
    pub async fn join(client: Client, stream: &str, group: &str, name: &str) -> Result<Self, ClientError> {
        let mut patience = Patience::new(&client);
        let group = Group { client, stream: stream.to_owned(), group: group.to_owned() };
        let standing = join(&group, name, &mut patience).await?;
        let told = standing.generation;
        let state = Arc::new(Mutex::new(State { standing, told, gone: None }));
        let heart = tokio::spawn(beat(group.clone(), Arc::clone(&state)));
        Ok(Self { group, name: name.to_owned(), state, heart, patience })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> String {
        self.state.lock().standing.member.clone()
    }

    /// The generation that it knows.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.state.lock().standing.generation
    }

    /// The partitions that it knows to be its own.
    #[must_use]
    pub fn partitions(&self) -> Vec<u32> {
        self.state.lock().standing.partitions.clone()
    }

    /// A wait for records that lets it hear of changes in time.
    #[must_use]
    pub fn wait(&self) -> Duration {
        (session(&self.state.lock().standing) / 3).clamp(Duration::from_millis(100), Duration::from_secs(5))
    }

    /// The next records of its partitions, or what became of the group. Goes on after what was delivered last.
    ///
    /// # Errors
    /// [`ClientError`]: the group is gone, it met a gap and stops, or the server stays away.
    pub async fn poll(&mut self, limit: u64, max_bytes: u64) -> Result<Notice, ClientError> {
        loop {
            if let Some(notice) = self.news().await? {
                return Ok(notice);
            }
            let standing = self.state.lock().standing.clone();
            let wait = self.wait();
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let body = serde_json::json!({
                "member": standing.member,
                "generation": standing.generation,
                "limit": limit,
                "max_bytes": max_bytes,
                "wait_ms": wait_ms,
            });
            match self.group.post(&["poll"], &body, wait).await {
                Ok(answer) => {
                    self.patience.renew();
                    return Ok(Notice::Batch(answer.json()?));
                }
                Err(fault) if is_stale(&fault) => self.refresh(fault).await?,
                Err(fault) if fault.is_refusal() => {
                    self.patience.wait(fault).await?;
                }
                // What the answer held is delivered and not here: only from the committed positions on is it given again.
                Err(fault) => {
                    let why = self.patience.wait(fault).await?;
                    self.state.lock().gone = Some(why.to_string());
                }
            }
        }
    }

    /// Commits positions (each that of the NEXT record) of the partitions that are still its own.
    ///
    /// # Errors
    /// [`ClientError`]: nothing is known to be committed.
    pub async fn commit(&mut self, positions: &Positions) -> Result<Committed, ClientError> {
        let mut refused = Positions::new();
        let mut wanted = positions.clone();
        loop {
            let standing = self.state.lock().standing.clone();
            wanted.retain(|partition, next| {
                let own = standing.partitions.contains(partition);
                if !own {
                    refused.insert(*partition, *next);
                }
                own
            });
            if wanted.is_empty() {
                return Ok(Committed { positions: wanted, refused });
            }
            let body = serde_json::json!({
                "member": standing.member,
                "generation": standing.generation,
                "positions": wanted,
            });
            match self.group.post(&["commit"], &body, Duration::ZERO).await {
                Ok(_) => {
                    self.patience.renew();
                    return Ok(Committed { positions: wanted, refused });
                }
                Err(fault) if is_stale(&fault) => {
                    self.refresh(fault).await?;
                    if self.state.lock().gone.is_some() {
                        refused.append(&mut wanted);
                    }
                }
                // A partition that went away and came back begins at its committed position: what another member did counts.
                Err(fault) if fault.problem().is_some_and(|problem| problem.status == 422) => {
                    refused.append(&mut wanted);
                }
                Err(fault) => {
                    self.patience.wait(fault).await?;
                }
            }
        }
    }

    /// Leaves the group, so that others have its partitions at once.
    ///
    /// # Errors
    /// [`ClientError`]: the group finds out by itself when the session is over.
    pub async fn leave(self) -> Result<(), ClientError> {
        self.heart.abort();
        let id = self.id();
        Ok(self.group.leave(&id).await?)
    }

    /// What the heart heard of and the caller does not know yet.
    async fn news(&mut self) -> Result<Option<Notice>, ClientError> {
        let gone = self.state.lock().gone.clone();
        if let Some(why) = gone {
            self.leave_behind().await?;
            let standing = join(&self.group, &self.name, &mut self.patience).await?;
            let (generation, partitions) = (standing.generation, standing.partitions.clone());
            *self.state.lock() = State { told: generation, standing, gone: None };
            return Ok(Some(Notice::Rejoined { why, generation, partitions }));
        }
        let mut state = self.state.lock();
        if state.told == state.standing.generation {
            return Ok(None);
        }
        state.told = state.standing.generation;
        Ok(Some(Notice::Changed {
            generation: state.standing.generation,
            partitions: state.standing.partitions.clone(),
        }))
    }

    /// Ends the membership that is given up, as soon as the server answers: its partitions are free at once, where they would
    /// otherwise stay with nobody until the session is over.
    async fn leave_behind(&mut self) -> Result<(), ClientError> {
        let id = self.id();
        loop {
            match self.group.leave(&id).await {
                Ok(_) => return Ok(()),
                // It is not a member any more.
                Err(Fault::Never(_)) => return Ok(()),
                Err(fault) => {
                    self.patience.wait(fault).await?;
                }
            }
        }
    }

    /// Asks the group how the member stands, after it was told that it knows no better.
    async fn refresh(&mut self, fault: Fault) -> Result<(), ClientError> {
        let before = self.state.lock().standing.clone();
        match heartbeat(&self.group, &before).await {
            Ok(standing) if standing.generation != before.generation => {
                adopt(&self.state, &before, standing);
                Ok(())
            }
            // The same generation, and yet refused: the member waits before it asks again.
            Ok(_) => self.patience.wait(again(fault)).await.map(drop),
            Err(stale) if is_stale(&stale) => {
                let why = stale.problem().map_or_else(String::new, ToString::to_string);
                self.patience.wait(again(stale)).await?;
                self.state.lock().gone = Some(why);
                Ok(())
            }
            Err(fault) => self.patience.wait(fault).await.map(drop),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("group", &self.group.group).field("state", &self.state).finish_non_exhaustive()
    }
}

/// A refusal that is worth another try, with what was learnt in between.
fn again(fault: Fault) -> Fault {
    match fault {
        Fault::Never(ClientError::Refused(problem)) => Fault::Again(Interruption::Refused(problem)),
        fault => fault,
    }
}

fn session(standing: &Standing) -> Duration {
    Duration::from_millis(if standing.session_ms == 0 { 10_000 } else { standing.session_ms })
}

/// Takes over what a heartbeat said, unless the member joined anew in the meantime.
fn adopt(state: &Mutex<State>, before: &Standing, now: Standing) {
    let mut state = state.lock();
    if state.standing.member == before.member && now.generation >= state.standing.generation {
        state.standing.generation = now.generation;
        state.standing.partitions = now.partitions;
    }
}

async fn join(group: &Group, name: &str, patience: &mut Patience) -> Result<Standing, ClientError> {
    loop {
        let joined = group.post(&["members"], &serde_json::json!({ "client": name }), Duration::ZERO).await;
        match joined {
            Ok(answer) => {
                patience.renew();
                return answer.json();
            }
            Err(fault) => {
                patience.wait(fault).await?;
            }
        }
    }
}

async fn heartbeat(group: &Group, standing: &Standing) -> Result<Standing, Fault> {
    let body = serde_json::json!({ "generation": standing.generation });
    let answer = group.post(&["members", &standing.member, "heartbeat"], &body, Duration::ZERO).await?;
    Ok(answer.json()?)
}

/// Keeps a member alive: three heartbeats a session.
async fn beat(group: Group, state: Arc<Mutex<State>>) {
    loop {
        let (standing, gone) = {
            let state = state.lock();
            (state.standing.clone(), state.gone.is_some())
        };
        let pause = (session(&standing) / 3).max(HEARTBEAT_MIN);
        tokio::time::sleep(pause).await;
        if gone {
            continue;
        }
        let begun = Instant::now();
        // A heartbeat that takes longer than a session says nothing any more.
        match tokio::time::timeout(session(&standing), heartbeat(&group, &standing)).await {
            Ok(Ok(now)) => adopt(&state, &standing, now),
            Ok(Err(fault)) if is_stale(&fault) => {
                let mut state = state.lock();
                let unknown = fault.problem().is_some_and(|problem| problem.status == 404);
                if unknown && state.standing.member == standing.member {
                    state.gone = Some(fault.problem().map_or_else(String::new, ToString::to_string));
                }
            }
            Ok(Err(fault)) => tracing::debug!(?fault, took = ?begun.elapsed(), "a heartbeat was not answered"),
            Err(_) => tracing::debug!("a heartbeat was not answered within the session"),
        }
    }
}

/// A reader of a shared group: every record is acknowledged by itself, and what is not comes again.
#[derive(Debug)]
pub struct SharedReader {
    group: Group,
}

impl SharedReader {
    /// A reader; nothing is sent yet.
    #[must_use]
    pub fn new(client: Client, stream: &str, group: &str) -> Self {
        Self { group: Group { client, stream: stream.to_owned(), group: group.to_owned() } }
    }

    /// The next records, or none in the time that was waited. A lost answer's records come again when their time is over.
    ///
    /// # Errors
    /// [`ClientError`]: the group is gone, or the server stays away.
    pub async fn poll(&mut self, limit: u64, max_bytes: u64, wait: Duration) -> Result<Batch, ClientError> {
        let mut patience = Patience::new(&self.group.client);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let body = serde_json::json!({ "limit": limit, "max_bytes": max_bytes, "wait_ms": wait_ms });
        loop {
            match self.group.post(&["poll"], &body, wait).await {
                Ok(answer) => return answer.json(),
                Err(fault) => {
                    patience.wait(fault).await?;
                }
            }
        }
    }

    /// Acknowledges deliveries. One whose time was over already changes nothing: its record comes again.
    ///
    /// # Errors
    /// [`ClientError`]: what was not acknowledged comes again.
    pub async fn acknowledge(&mut self, ids: &[Box<RawValue>]) -> Result<(), ClientError> {
        let mut patience = Patience::new(&self.group.client);
        let body = BTreeMap::from([("ack", ids)]);
        loop {
            match self.group.post(&["ack"], &body, Duration::ZERO).await {
                Ok(_) => return Ok(()),
                Err(fault) => {
                    patience.wait(fault).await?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
