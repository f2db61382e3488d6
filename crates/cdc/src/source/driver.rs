//! The task of one source: it holds the term, opens the source where the entry says, and carries each batch into the log. Whatever
//! surprises it, it begins again at the entry that is stored; it never goes on from what it only believes.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tidegate_core::Moment;
use tidegate_core::port::{
    AppendOutcome, ChangeBatch, ChangeSource, ChangeSourceError, ChangeSourceStatus, ChangeStream, Durability,
    LogError, Resume, Revision,
};
use tidegate_core::position::SourcePosition;
use tokio::sync::{mpsc, oneshot};

use super::error::{Halt, SourceRequestError};
use super::machine::{Command, Outcome, SourceMachine};
use super::prepare::Prepared;
use super::route::{Plan, Tables};
use super::status::SourceState;
use super::stored::{StoredGap, StoredSource};
use super::{GapAction, Shared, SourceSpec};
use crate::error::StoreError;
use crate::service::{ATTEMPTS_MAX, Core, StreamService};

/// How long a position that moved on without changes may wait for changes to be stored with.
const POSITION_PAUSE: Duration = Duration::from_secs(1);
/// How often the source is asked how far behind it is.
const STATUS_PAUSE: Duration = Duration::from_secs(5);
/// How often a gap's entry is read again: a person may have told another process how to go on.
const GAP_PAUSE: Duration = Duration::from_secs(10);

/// What is asked of a driver.
pub(crate) enum Ask {
    Acknowledge(GapAction, oneshot::Sender<Result<(), SourceRequestError>>),
    /// Try again now.
    Retry,
}

/// The entry as this process wrote it last.
pub(crate) struct Held {
    pub(crate) stored: StoredSource,
    pub(crate) revision: Option<Revision>,
}

pub(crate) struct Driver {
    pub(crate) core: Arc<Core>,
    pub(crate) streams: StreamService,
    pub(crate) spec: SourceSpec,
    pub(crate) key: Bytes,
    pub(crate) source: Arc<dyn ChangeSource>,
    pub(crate) machine: SourceMachine,
    pub(crate) holder: super::stored::Holder,
    pub(crate) held: Option<Held>,
    pub(crate) tables: Tables,
    pub(crate) shared: Arc<Shared>,
    pub(crate) asks: mpsc::Receiver<Ask>,
    /// The process has just begun: nobody else of its kind may be waited for.
    pub(crate) fresh: bool,
    pub(crate) beat_at: Moment,
    /// Until when nothing is tried because there is no room for what streams refuse.
    pub(crate) blocked: Option<Moment>,
}

/// An append on its way.
struct Flight {
    prepared: Prepared,
    plan: Plan,
    attempts: usize,
    outcome: BoxFuture<'static, Result<AppendOutcome, LogError>>,
}

/// What woke the pump.
enum Woken {
    Asked(Option<Ask>),
    Landed(Result<AppendOutcome, LogError>),
    Came(Option<Result<ChangeBatch, ChangeSourceError>>),
    Confirmed(SourcePosition, Result<(), ChangeSourceError>),
    Told(Result<ChangeSourceStatus, ChangeSourceError>),
    Time,
}

type Confirming = BoxFuture<'static, (SourcePosition, Result<(), ChangeSourceError>)>;
type Asking = BoxFuture<'static, Result<ChangeSourceStatus, ChangeSourceError>>;

impl Driver {
    /// Runs until the service is gone.
    pub(crate) async fn run(mut self) {
        loop {
            let halt = match self.turn().await {
                Err(halt) => halt,
                Ok(never) => match never {},
            };
            if matches!(halt, Halt::Stopped) {
                return;
            }
            if self.wait_out(halt).await.is_err() {
                return;
            }
        }
    }

    /// One term, or a part of it: ends with what went wrong.
    async fn turn(&mut self) -> Result<std::convert::Infallible, Halt> {
        self.take().await?;
        while self.held.as_ref().is_some_and(|held| held.stored.gap.is_some()) {
            self.show_state(SourceState::Gap);
            self.pause(self.core.clock.now().after(GAP_PAUSE)).await?;
            self.take().await?;
        }
        let from = self.held.as_ref().and_then(|held| held.stored.resume());
        let stream = self.open(from).await?;
        self.pump(stream).await
    }

    /// Opens the source, and hears meanwhile whether it is to end.
    async fn open(&mut self, from: Option<Resume>) -> Result<ChangeStream, Halt> {
        let source = Arc::clone(&self.source);
        let mut opening = Box::pin(async move { source.changes(from).await });
        loop {
            let ask = tokio::select! {
                biased;
                ask = self.asks.recv() => ask.ok_or(Halt::Stopped)?,
                opened = &mut opening => return Ok(opened?),
            };
            if let Ask::Acknowledge(_, answer) = ask {
                let _ = answer.send(Err(SourceRequestError::NoGap { name: self.spec.name.clone() }));
            }
        }
    }

    /// Carries batches into the log until something ends it.
    async fn pump(&mut self, mut stream: ChangeStream) -> Result<std::convert::Infallible, Halt> {
        let mut prepared = Prepared::default();
        let mut flight: Option<Flight> = None;
        let mut confirming: Option<Confirming> = None;
        let mut asking: Option<Asking> = None;
        let mut confirmed: Option<SourcePosition> = None;
        let mut to_confirm = self.held.as_ref().and_then(|held| held.stored.position.clone()).map(SourcePosition);
        let (mut ask_at, mut since) = (self.core.clock.now(), None::<Moment>);
        self.blocked = None;
        self.show_streaming();
        loop {
            let now = self.core.clock.now();
            if flight.is_none() {
                if self.drain_due().await? {
                    self.blocked = None;
                    self.show_streaming();
                    continue;
                }
                let waited = since.is_some_and(|since| since.after(POSITION_PAUSE) <= now);
                let due = prepared.records > 0 || (!prepared.is_empty() && waited);
                if due && self.blocked.is_none_or(|until| until <= now) {
                    match self.launch(std::mem::take(&mut prepared), 0).await {
                        Ok(launched) => {
                            (flight, since) = (Some(launched), None);
                            self.blocked = None;
                            continue;
                        }
                        Err((halt @ Halt::SpillFull { .. }, back)) => {
                            // Whatever comes next waits behind it, and the source with it.
                            prepared = back;
                            self.show_halt(&halt);
                            self.show_state(SourceState::Waiting);
                            self.blocked = Some(self.retry_at(&halt)?);
                        }
                        Err((halt, _)) => return Err(halt),
                    }
                }
                if self.beat_at <= now {
                    self.write(|_| {}, Durability::Os).await?;
                }
            }
            if confirming.is_none()
                && let Some(position) = to_confirm.take()
                && self.is_later(confirmed.as_ref(), &position)?
            {
                let source = Arc::clone(&self.source);
                confirming = Some(Box::pin(async move {
                    let outcome = source.confirm(&position).await;
                    (position, outcome)
                }));
            }
            if asking.is_none() && ask_at <= now {
                let source = Arc::clone(&self.source);
                asking = Some(Box::pin(async move { source.status().await }));
                ask_at = now.after(STATUS_PAUSE);
            }
            let room = prepared.has_room() && self.blocked.is_none();
            let mut wake = self.beat_at.min(ask_at).min(self.blocked.unwrap_or(Moment::NEVER));
            if self.blocked.is_none() {
                wake = wake.min(since.map_or(Moment::NEVER, |since| since.after(POSITION_PAUSE)));
            }
            if flight.is_none() {
                wake = wake.min(self.machine.next_retry().map_or(Moment::NEVER, |(at, _)| at));
            } else {
                // Nothing of this can be done before it lands.
                wake = Moment::NEVER;
            }
            let clock = Arc::clone(&self.core.clock);
            let woken = tokio::select! {
                biased;
                ask = self.asks.recv() => Woken::Asked(ask),
                outcome = maybe(flight.as_mut().map(|flight| &mut flight.outcome)) => Woken::Landed(outcome),
                (position, outcome) = maybe(confirming.as_mut()) => Woken::Confirmed(position, outcome),
                told = maybe(asking.as_mut()) => Woken::Told(told),
                item = stream.next(), if room => Woken::Came(item),
                () = clock.sleep_until(wake) => Woken::Time,
            };
            match woken {
                Woken::Asked(None) => return Err(Halt::Stopped),
                Woken::Asked(Some(Ask::Retry)) => self.blocked = None,
                Woken::Asked(Some(Ask::Acknowledge(_, answer))) => {
                    let _ = answer.send(Err(SourceRequestError::NoGap { name: self.spec.name.clone() }));
                }
                Woken::Landed(outcome) => {
                    let Some(landed) = flight.take() else { continue };
                    flight = self.land(landed, outcome).await?;
                    if flight.is_none() {
                        to_confirm =
                            self.held.as_ref().and_then(|held| held.stored.position.clone()).map(SourcePosition);
                    }
                }
                Woken::Confirmed(position, outcome) => {
                    confirming = None;
                    outcome?;
                    self.shared.live.lock().confirmed = Some(position.0.clone());
                    confirmed = Some(position);
                }
                Woken::Told(told) => {
                    asking = None;
                    match told {
                        Ok(status) => self.show_told(status),
                        Err(error) => {
                            tracing::debug!(%error, source = %self.spec.name, "the source's state is not known")
                        }
                    }
                }
                Woken::Came(Some(Ok(batch))) => {
                    let last =
                        prepared.resume.as_ref().or(flight.as_ref().and_then(|one| one.prepared.resume.as_ref()));
                    let stored = self.held.as_ref().and_then(|held| held.stored.resume());
                    if self.is_new(last.or(stored.as_ref()), &batch)? {
                        since = since.or(Some(self.core.clock.now()));
                        prepared.add(batch);
                        self.shared.live.lock().behind = prepared.records > 0;
                    }
                }
                // What is prepared comes again. What is on its way is waited for, so that the entry says where.
                Woken::Came(None) => {
                    self.finish(flight).await?;
                    return Err(Halt::Ended);
                }
                Woken::Came(Some(Err(error))) => {
                    self.finish(flight).await?;
                    return Err(error.into());
                }
                Woken::Time => {}
            }
        }
    }

    /// Whether a batch says something that is not stored yet. A source may repeat what was not confirmed.
    fn is_new(&self, last: Option<&Resume>, batch: &ChangeBatch) -> Result<bool, Halt> {
        let Some(last) = last else { return Ok(true) };
        match self.source.compare(&last.position, &batch.position) {
            None => Err(Halt::Position),
            Some(Ordering::Less) => Ok(true),
            Some(Ordering::Greater) => Ok(false),
            Some(Ordering::Equal) => Ok(last.state != batch.state),
        }
    }

    fn is_later(&self, confirmed: Option<&SourcePosition>, position: &SourcePosition) -> Result<bool, Halt> {
        match confirmed.map(|confirmed| self.source.compare(confirmed, position)) {
            None | Some(Some(Ordering::Less)) => Ok(true),
            Some(Some(_)) => Ok(false),
            Some(None) => Err(Halt::Position),
        }
    }

    /// Sends what was gathered on its way; gives it back where it cannot go.
    async fn launch(&mut self, prepared: Prepared, attempts: usize) -> Result<Flight, (Halt, Prepared)> {
        let mut plan = match self.plan(&prepared).await {
            Ok(plan) => plan,
            Err(halt) => return Err((halt, prepared)),
        };
        let log = Arc::clone(&self.core.log);
        let (streams, state) = (std::mem::take(&mut plan.batch.streams), std::mem::take(&mut plan.batch.state));
        let batch = tidegate_core::port::AppendBatch { streams, state, durability: plan.batch.durability };
        let outcome = Box::pin(async move { log.append(batch).await });
        Ok(Flight { prepared, plan, attempts, outcome })
    }

    /// What became of an append; gives the one that is on its way in its place.
    async fn land(&mut self, flight: Flight, outcome: Result<AppendOutcome, LogError>) -> Result<Option<Flight>, Halt> {
        let Flight { prepared, plan, attempts, .. } = flight;
        let table = match outcome.map_err(StoreError::from)? {
            AppendOutcome::Appended(_) => {
                self.landed(prepared, plan).await?;
                return Ok(None);
            }
            AppendOutcome::StateMismatch { index: 0, .. } => return Err(self.overtaken().await?),
            AppendOutcome::StateMismatch { index, .. } => plan.guards.get(index - 1).cloned(),
            AppendOutcome::OffsetMismatch { stream, .. } | AppendOutcome::NoSuchPartition { stream, .. } => {
                plan.streams.get(stream).cloned()
            }
        };
        // A stream was removed, closed or changed: it is decided anew, of all of it.
        if let Some(table) = table {
            self.look_again(&table).await?;
        }
        if attempts >= ATTEMPTS_MAX {
            return Err(StoreError::Contended.into());
        }
        match self.launch(prepared, attempts + 1).await {
            Ok(flight) => Ok(Some(flight)),
            Err((halt, _)) => Err(halt),
        }
    }

    async fn landed(&mut self, prepared: Prepared, plan: Plan) -> Result<(), Halt> {
        self.settle(plan.next).await?;
        for (table, stored) in plan.changed {
            let known = self.table(&table)?;
            (known.stored, known.stale) = (stored, true);
        }
        let now = self.core.clock.now();
        let _ = self.machine.apply(now, Command::Progress);
        let after = |driver: &Self, table: &str| {
            driver.tables.get(table).and_then(|known| known.stored.spill.as_ref()?.after.clone())
        };
        for (table, records, bytes, code) in plan.spilled {
            let first = self.machine.lag(&table).is_none();
            let _ = self.machine.apply(now, Command::Spilled { table: table.clone(), records, bytes });
            if first {
                tracing::warn!(
                    source = %self.spec.name, table = &*table, code, "a stream refuses its records; they are kept for it"
                );
            }
            self.show_lag(&table, after(self, &table), Some(code));
        }
        let labels = [("source", self.spec.name.to_string())];
        metrics::counter!("tidegate_source_records_total", &labels).increment(prepared.records);
        {
            let mut live = self.shared.live.lock();
            live.event_time = live.event_time.max(prepared.event_time);
            live.behind = false;
        }
        self.show_streaming();
        Ok(())
    }

    /// Waits for what is on its way.
    async fn finish(&mut self, mut flight: Option<Flight>) -> Result<(), Halt> {
        while let Some(mut one) = flight.take() {
            let outcome = (&mut one.outcome).await;
            flight = self.land(one, outcome).await?;
        }
        Ok(())
    }

    /// Notes why it ended, and waits until it is to be tried again.
    async fn wait_out(&mut self, halt: Halt) -> Result<(), Halt> {
        if let Halt::Source(ChangeSourceError::Lost { from, reason }) = &halt {
            let since_ms = self.core.clock.timestamp().unix_ms();
            let gap = StoredGap { from: from.0.clone(), reason: reason.clone(), since_ms };
            self.show_halt(&halt);
            tracing::error!(
                source = %self.spec.name, from = &*from.0, %reason, "changes are lost; a person must say how to go on"
            );
            match self.write(|next| next.gap = Some(gap), Durability::Fsync).await {
                // Its state is shown with what is lost, once that is stored.
                Ok(()) => return Ok(()),
                Err(halt) => tracing::warn!(error = %halt, source = %self.spec.name, "the gap was not stored yet"),
            }
        }
        if matches!(halt, Halt::Fenced) {
            tracing::warn!(source = %self.spec.name, "another process reads the source now");
            return Ok(());
        }
        self.show_halt(&halt);
        self.show_state(if halt.is_broken() { SourceState::Failed } else { SourceState::Waiting });
        let until = match self.retry_at(&halt) {
            Ok(until) => until,
            // Without randomness there is nothing but the bound.
            Err(_) => self.core.clock.now().after(GAP_PAUSE),
        };
        self.pause(until).await
    }

    fn retry_at(&mut self, halt: &Halt) -> Result<Moment, Halt> {
        let (now, chance) = (self.core.clock.now(), self.chance()?);
        match self.machine.apply(now, Command::Failed { failure: halt.failure(), chance }) {
            Outcome::RetryAt(until) => Ok(until),
            _ => Ok(now.after(GAP_PAUSE)),
        }
    }

    /// Waits, and hears what is asked meanwhile.
    pub(crate) async fn pause(&mut self, until: Moment) -> Result<(), Halt> {
        let clock = Arc::clone(&self.core.clock);
        loop {
            let ask = tokio::select! {
                biased;
                ask = self.asks.recv() => ask,
                () = clock.sleep_until(until) => return Ok(()),
            };
            match ask {
                None => return Err(Halt::Stopped),
                Some(Ask::Retry) => return Ok(()),
                Some(Ask::Acknowledge(action, answer)) => {
                    let outcome = self.acknowledge(action).await;
                    let again = outcome.is_ok();
                    let _ = answer.send(outcome);
                    if again {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// The future's output, or never.
async fn maybe<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
