//! Opening the stream: is this the server, the slot and the position that we left? It makes what is missing only where nothing was
//! stored yet, or where a person said how to go on after a loss; a slot that vanished is a loss.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres_protocol::escape::escape_identifier;
use tidegate_core::port::{ChangeSourceError, CopyStatus, Resume};

use super::Shared;
use super::copy::{Copier, Plan, plan};
use super::feed::Feed;
use super::lsn::Lsn;
use super::refusal::{driver, lost, setup, unavailable, unreadable, wire};
use super::server::{Facts, Server, Slot, files};
use super::state::{Copy, State};
use super::table::Table;
use super::wire::{Connection, WireError};
use crate::session::Link;

/// How long the server may take to see that our last connection is gone.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_STEP: Duration = Duration::from_millis(10);
/// The shortest time between two messages of ours.
const STATUS_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// An old and a new row in one message, and what stands around them.
const ROWS_A_MESSAGE: usize = 2;

/// A stream that is about to run.
pub(crate) struct Opened {
    pub(crate) feed: Feed,
    pub(crate) state: State,
    pub(crate) position: Lsn,
    /// Nothing of the state is stored: it is to be said before anything happens, so that a loss from now on is seen.
    pub(crate) unsaid: bool,
    /// The first copy, where it is not done.
    pub(crate) copier: Option<Copier>,
    /// Tables whose copied rows are void.
    pub(crate) restarted: Vec<Arc<Table>>,
    /// For questions about types and keys.
    pub(crate) link: Link,
}

/// Opens the stream after `from`.
pub(crate) async fn open(shared: &Shared, from: Option<Resume>) -> Result<Opened, ChangeSourceError> {
    let server = &shared.server;
    let from = from.map_or(Ok(Begin::Copy), |from| read(server, &from))?;
    let link = server.link().await?;
    let facts = server.facts(&link).await?;
    let before = server.publication(&link, &facts).await?;
    let mut slot = free_slot(shared, &link).await?;
    let mut connection = server.replication().await?;
    let (system, timeline) = server.in_time(identify(&mut connection)).await?;
    if !matches!(from, Begin::After(..)) {
        slot = without_dead(server, &mut connection, slot).await?;
    }

    let unsaid = matches!(from, Begin::From(_));
    let (mut state, position, exported) = match (from, slot) {
        (Begin::After(state, position), slot) => {
            same(&state, position, &system, timeline, slot.as_ref(), &facts)?;
            (state, position, None)
        }
        (Begin::From(position), slot) => {
            if facts.log_end < position {
                return Err(log_ends_before(position, &facts));
            }
            let begins = match slot {
                Some(slot) => slot.confirmed.unwrap_or_default(),
                None => create_slot(server, &mut connection).await?.0,
            };
            let state = State::new(system, timeline, server.change.slot.clone(), None);
            (state, position.max(begins), None)
        }
        (Begin::Copy, Some(slot)) => {
            let position = slot.confirmed.unwrap_or_default();
            (fresh(server, system, timeline, position), position, None)
        }
        (Begin::Copy, None) => {
            let (position, exported) = create_slot(server, &mut connection).await?;
            (fresh(server, system, timeline, position), position, Some(exported))
        }
    };

    let planned = plan_copy(server, &mut state, exported.as_deref()).await;
    let planned = match planned {
        // What was truncated between the first look and the slot is not known to be in the copy: all begins anew.
        Ok(Some(planned)) if exported.is_some() && files(&planned.published) != files(&before) => {
            drop(planned);
            Err(unavailable("a table was made, dropped, altered or truncated while the slot was made"))
        }
        planned => planned,
    };
    let planned = match planned {
        Ok(planned) => planned,
        Err(error) => {
            if exported.is_some() {
                // Nothing was stored of it yet. Where this fails, too, the slot is taken into use by the next attempt.
                let drop = format!("DROP_REPLICATION_SLOT {}", escape_identifier(&server.change.slot));
                let _ = server.in_time(async { connection.ask(&drop).await.map_err(wire) }).await;
            }
            return Err(error);
        }
    };
    let (copier, restarted) = match planned {
        Some(mut planned) => {
            let restarted = std::mem::take(&mut planned.restarted);
            (Some(planned.start(server).await?), restarted)
        }
        None => (None, Vec::new()),
    };
    *shared.copy.lock() = match &state.copy {
        Some(copy) if !copy.done => {
            CopyStatus::Running { tables_done: copy.tables_done() as u64, tables: copy.tables.len() as u64, rows: 0 }
        }
        _ => CopyStatus::Done,
    };

    let row_bytes = usize::try_from(server.postgres.max_row_bytes.get()).unwrap_or(usize::MAX);
    let message_bytes = row_bytes.saturating_mul(ROWS_A_MESSAGE).saturating_add(64 * 1024);
    let command = server.start_command(position);
    let begun = async { connection.stream(&command, message_bytes).await.map_err(|error| not_begun(position, error)) };
    server.in_time(begun).await?;
    *shared.last_pid.lock() = Some(connection.pid);
    // Not the highest that ever was: after a loss the position may lie before what an earlier life of the server was told, and
    // what was confirmed too far is lost.
    shared.confirmed.send_replace(position);
    let feed = Feed::start(connection, shared.confirmed.subscribe(), status_interval(server, &facts));
    Ok(Opened { feed, state, position, unsaid, copier, restarted, link })
}

/// Where to begin.
enum Begin {
    /// With a copy: nothing was stored, or a person said so after a loss.
    Copy,
    /// After what was stored.
    After(State, Lsn),
    /// At this position or behind it, without a copy and without what lies before: a person said so after a loss.
    From(Lsn),
}

fn read(server: &Server, from: &Resume) -> Result<Begin, ChangeSourceError> {
    let broken = || unreadable("the stored position or state is none of this source's");
    let position = Lsn::of(&from.position).ok_or_else(broken)?;
    if from.state.is_empty() {
        return Ok(Begin::From(position));
    }
    let state = State::decode(&from.state).ok_or_else(broken)?;
    if state.slot != server.change.slot {
        let reason =
            format!("the position is that of the slot {}, and {} is configured", state.slot, server.change.slot);
        return Err(lost(position, reason));
    }
    Ok(Begin::After(state, position))
}

/// The slot, or none after one was dropped that can give nothing any more: nobody can read it, and nothing waits for what it had.
async fn without_dead(
    server: &Server,
    connection: &mut Connection,
    slot: Option<Slot>,
) -> Result<Option<Slot>, ChangeSourceError> {
    let Some(reason) = slot.as_ref().and_then(Slot::invalidated) else { return Ok(slot) };
    let name = &server.change.slot;
    if !server.change.create {
        let problem = format!("{reason}: drop it (SELECT pg_drop_replication_slot('{name}')) and make it again");
        return Err(setup("slot_invalidated", problem));
    }
    tracing::warn!(slot = &**name, reason, "the slot gives nothing any more: it is dropped and made again");
    let drop = format!("DROP_REPLICATION_SLOT {}", escape_identifier(name));
    server.in_time(async { connection.ask(&drop).await.map_err(wire) }).await?;
    Ok(None)
}

fn fresh(server: &Server, system: Box<str>, timeline: u32, start: Lsn) -> State {
    let copy = server.change.copy.then(|| Copy::new(start));
    State::new(system, timeline, server.change.slot.clone(), copy)
}

/// Refuses to go on where records are lost.
fn same(
    state: &State,
    position: Lsn,
    system: &str,
    timeline: u32,
    slot: Option<&Slot>,
    facts: &Facts,
) -> Result<(), ChangeSourceError> {
    if *state.system != *system {
        let reason = format!("the server is another one: its system identifier is {system} and was {}", state.system);
        return Err(lost(position, reason));
    }
    if state.timeline != timeline {
        let reason = format!(
            "the server was promoted or restored: its timeline is {timeline} and was {}, and what was committed around the \
             switch may be missing",
            state.timeline
        );
        return Err(lost(position, reason));
    }
    let Some(slot) = slot else {
        return Err(lost(position, format!("the slot {} is gone", state.slot)));
    };
    if let Some(reason) = slot.invalidated() {
        return Err(lost(position, reason));
    }
    if let Some(confirmed) = slot.confirmed.filter(|confirmed| *confirmed > position) {
        let reason = format!("the slot begins at {confirmed}: somebody else read it on, or made it anew");
        return Err(lost(position, reason));
    }
    if facts.log_end < position {
        return Err(log_ends_before(position, facts));
    }
    Ok(())
}

fn log_ends_before(position: Lsn, facts: &Facts) -> ChangeSourceError {
    let reason =
        format!("the server's log ends at {}, before it: the server was restored from a backup", facts.log_end);
    lost(position, reason)
}

/// The slot, once nobody reads it. Our own last connection may take a moment to end.
async fn free_slot(shared: &Shared, link: &Link) -> Result<Option<Slot>, ChangeSourceError> {
    let server = &shared.server;
    let last = *shared.last_pid.lock();
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let slot = server.slot(link).await?;
        let Some(pid) = slot.as_ref().and_then(|slot| slot.active_pid) else {
            return Ok(slot);
        };
        if last != Some(pid) || Instant::now() >= deadline {
            let holder = format!("process {pid} of the server reads the slot {}", server.change.slot);
            return Err(ChangeSourceError::InUse { holder: holder.into() });
        }
        tokio::time::sleep(RELEASE_STEP).await;
    }
}

async fn identify(connection: &mut Connection) -> Result<(Box<str>, u32), ChangeSourceError> {
    let rows = connection.ask("IDENTIFY_SYSTEM").await.map_err(wire)?;
    let cell = |index: usize| rows.first()?.get(index)?.clone();
    let timeline = cell(1).and_then(|timeline| timeline.parse().ok());
    cell(0).zip(timeline).ok_or_else(|| unreadable("the server's identity cannot be read"))
}

/// Makes the slot; gives where it begins and the snapshot of that place, which lives until the next command.
async fn create_slot(server: &Server, connection: &mut Connection) -> Result<(Lsn, String), ChangeSourceError> {
    let name = &server.change.slot;
    if !server.change.create {
        let problem =
            format!("slot {name} is missing: SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
        return Err(setup("slot_missing", problem));
    }
    // It waits for every transaction that writes now, however long that takes: not bounded by the time of a connection.
    let command = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput", escape_identifier(name));
    let rows = connection.ask(&command).await.map_err(wire)?;
    let cell = |index: usize| rows.first()?.get(index)?.clone();
    let start = cell(1).and_then(|text| Lsn::parse(&text));
    let made = start.zip(cell(2)).ok_or_else(|| unreadable("the answer to CREATE_REPLICATION_SLOT cannot be read"))?;
    Ok((made.0, made.1.into()))
}

async fn plan_copy(
    server: &Server,
    state: &mut State,
    exported: Option<&str>,
) -> Result<Option<Plan>, ChangeSourceError> {
    match &mut state.copy {
        Some(copy) if !copy.done => plan(server, exported, copy, &mut state.schemas).await.map(Some),
        _ => Ok(None),
    }
}

/// The slot may have changed since we looked.
fn not_begun(position: Lsn, error: WireError) -> ChangeSourceError {
    if let WireError::Server(refusal) = &error {
        match &*refusal.code {
            "42704" => return lost(position, "the slot is gone"),
            // It was invalidated, or a file of the log is not there any more.
            "55000" | "58P01" => return lost(position, refusal.message.clone()),
            _ => {}
        }
    }
    wire(error)
}

/// Often enough that the server never thinks us gone.
fn status_interval(server: &Server, facts: &Facts) -> Duration {
    let configured = server.change.status_interval;
    let interval = match u64::try_from(facts.sender_timeout_ms) {
        Ok(timeout_ms) if timeout_ms > 0 => configured.min(Duration::from_millis(timeout_ms / 4)),
        _ => configured,
    };
    interval.max(STATUS_INTERVAL_MIN)
}

/// A question on a connection that may have died in the meantime.
pub(crate) async fn alive(server: &Server, link: &mut Link) -> Result<(), ChangeSourceError> {
    if link.client.is_closed() || link.client.simple_query("").await.map_err(driver).is_err() {
        *link = server.link().await?;
    }
    Ok(())
}
