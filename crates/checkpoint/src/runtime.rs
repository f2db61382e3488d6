//! A small runtime: partitions of a source, one keyed operator, one sink that commits in two phases, and checkpoints while records go on. It never
//! outputs a record twice or loses one over a crash, as long as the sink keeps its promise, and never stops the stream for more than a
//! snapshot.
//!
//! One task drives all of it, so a barrier is aligned by being between two records. What is not here: unaligned barriers, several operators,
//! several sources.

mod making;
mod port;
mod watermark;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt as _, StreamExt as _};
use tidegate_core::id::Name;
use tidegate_core::position::Partition;
use tidegate_core::time::Clock;
use tidegate_core::{Moment, Timestamp};

use self::making::{Done, Making, Work, pending, worked};
use crate::coordinator::{Attempt, Command, Coordinator, Outcome, Participants};
use crate::error::{AppendError, ReadError};
use crate::id::Generation;
use crate::job::{ClaimOutcome, Job};
use crate::keyed::KeyedState;
use crate::manifest::{Draft, Positions};
use crate::recover::Recovery;
use crate::writer::{Writer, Written};

pub use self::port::{Cause, Ended, Operator, ProcessorSpec, Records, RunError, Source, Sourced, TwoPhaseSink};
pub use self::watermark::{LatePolicy, WatermarkSpec, Watermarks};

/// Outputs that wait while the sink is busy with a checkpoint; with more, the stream waits for the sink.
pub const OUTPUTS_WAITING_MAX: usize = 65_536;
/// Outputs that are gathered before the sink is given them.
const OUTPUTS_AT_A_TIME: usize = 256;

/// The records of all partitions as they come; `None` = a partition has ended.
type Merged<R> = SelectAll<BoxStream<'static, (Partition, Option<Result<Sourced<R>, Cause>>)>>;

/// A processor at work.
struct Running<S: Source, P: Operator<S::Record>, K> {
    clock: Arc<dyn Clock>,
    writer: Writer,
    coordinator: Coordinator,
    spec: ProcessorSpec,
    source: Name,
    operator: P,
    state: KeyedState,
    positions: Positions,
    marks: Watermarks,
    records: u64,
    late: u64,
    out: Vec<P::Output>,
    sink_name: Name,
    /// None while a checkpoint has it.
    sink: Option<K>,
    work: Option<Work<K>>,
    /// What was not noted as committed yet.
    token: Option<(Generation, Vec<u8>)>,
    renewing: Option<BoxFuture<'static, Result<Written<()>, AppendError>>>,
    tending: Option<BoxFuture<'static, Result<bool, AppendError>>>,
    last_failure: Option<RunError>,
    /// When the coordinator wants to be asked.
    next_tick: Moment,
    finishing: bool,
}

/// Runs a job until its source ends, `stop` is ready, somebody takes it over or something fails.
pub async fn run<S, P, K>(
    job: &Job,
    spec: ProcessorSpec,
    mut source: S,
    operator: P,
    mut sink: K,
    stop: impl Future<Output = ()> + Send,
) -> Result<Ended, RunError>
where
    S: Source,
    P: Operator<S::Record>,
    K: TwoPhaseSink<P::Output>,
{
    let (writer, recovery) = match job.claim(&spec.holder, spec.ttl, spec.mode).await? {
        ClaimOutcome::Claimed { writer, recovery } => (writer, *recovery),
        ClaimOutcome::HeldBy { .. } => return Ok(Ended::HeldBy),
    };
    let clock = Arc::clone(&job.parts.clock);
    let from = load(recovery, &operator.name()).await?;
    let sink_name = sink.name();
    let recommit = from.as_ref().and_then(|from| from.recommit.clone());
    sink.abort_others(recommit.as_deref()).await.map_err(RunError::Sink)?;
    let participants = Participants {
        operators: BTreeSet::from([operator.name()]),
        sources: BTreeSet::from([source.name()]),
        sinks: BTreeSet::from([sink_name.clone()]),
    };
    let now = clock.now();
    let mut coordinator = Coordinator::new(spec.schedule, participants, now);
    let Resume { state, positions, watermark, generation, records, late, .. } = from.unwrap_or_default();
    if let Some((token, generation)) = recommit.zip(generation) {
        // Before anything else: what the checkpoint promised.
        let _commit = coordinator.apply(now, Command::Recovered(generation));
        sink.commit(&token).await.map_err(RunError::Sink)?;
        let _done = coordinator.apply(clock.now(), Command::Committed(generation, sink_name.clone()));
        if !matches!(writer.committed(generation).await?, Written::Done(())) {
            return Ok(Ended::Fenced);
        }
    }
    let partitions = source.partitions();
    let mut streams = SelectAll::new();
    for partition in &partitions {
        let next = positions.get(&source.name()).and_then(|next| next.get(partition)).cloned();
        let records = source.open(*partition, next).await.map_err(RunError::Source)?;
        let partition = *partition;
        let end = futures::stream::once(async move { (partition, None) });
        streams.push(records.map(move |record| (partition, Some(record))).chain(end).boxed());
    }
    let running = Running::<S, P, K> {
        marks: Watermarks::new(spec.watermark, partitions, watermark, now),
        clock,
        writer,
        coordinator,
        source: source.name(),
        spec,
        operator,
        state,
        positions,
        records,
        late,
        out: Vec::new(),
        sink_name,
        sink: Some(sink),
        work: None,
        token: None,
        renewing: None,
        tending: None,
        last_failure: None,
        next_tick: Moment::ORIGIN,
        finishing: false,
    };
    running.drive(streams, stop).await
}

/// Where a job goes on.
#[derive(Default)]
struct Resume {
    state: KeyedState,
    positions: Positions,
    watermark: Option<Timestamp>,
    recommit: Option<Vec<u8>>,
    generation: Option<Generation>,
    records: u64,
    late: u64,
}

async fn load(mut recovery: Recovery, operator: &Name) -> Result<Option<Resume>, RunError> {
    loop {
        let Some(found) = recovery.newest() else {
            return match recovery.rejected.len() {
                0 => Ok(None),
                rejected => Err(RunError::NothingWhole { rejected }),
            };
        };
        let generation = found.checkpoint.id.generation;
        let state = match found.state(operator.as_str()) {
            Some(state) => KeyedState::load(&state, generation).await,
            None => Ok(KeyedState::new()),
        };
        match state {
            Ok(state) => {
                let counts = &found.checkpoint.manifest.counts;
                let count = |name: &str| counts.get(name).copied().unwrap_or(0);
                return Ok(Some(Resume {
                    state,
                    positions: found.positions().clone(),
                    watermark: found.watermark(),
                    recommit: found.recommit.values().next().cloned(),
                    generation: Some(generation),
                    records: count("records"),
                    late: count("late"),
                }));
            }
            Err(ReadError::Damage(damage)) => recovery.reject(generation, damage),
            Err(error) => return Err(error.into()),
        }
    }
}

impl<S, P, K> Running<S, P, K>
where
    S: Source,
    P: Operator<S::Record>,
    K: TwoPhaseSink<P::Output>,
{
    async fn drive(
        mut self,
        mut streams: Merged<S::Record>,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Ended, RunError> {
        let mut stop = std::pin::pin!(stop.fuse());
        let (mut stopped, mut drained) = (false, false);
        loop {
            if let Some(ended) = self.tick()? {
                return Ok(ended);
            }
            if (stopped || drained) && self.work.is_none() {
                if self.finishing && self.token.is_none() {
                    if let Some(tending) = self.tending.take() {
                        tending.await?;
                    }
                    let _released = self.writer.release().await?;
                    return Ok(if drained { Ended::Finished } else { Ended::Stopped });
                }
                if !self.finishing && self.token.is_none() {
                    // The last checkpoint, at once.
                    let _queued = self.coordinator.apply(self.clock.now(), Command::AtOnce);
                    if let Some(ended) = self.tick()? {
                        return Ok(ended);
                    }
                    self.finishing = self.work.is_some();
                }
            }
            let room = self.out.len() < OUTPUTS_WAITING_MAX;
            let wake = self.wake_at();
            let clock = Arc::clone(&self.clock);
            tokio::select! {
                biased;
                done = worked(&mut self.work) => self.worked(done)?,
                renewed = pending(&mut self.renewing) => {
                    self.renewing = None;
                    match renewed {
                        Ok(Written::Done(())) => {}
                        Ok(_) => return Ok(Ended::Fenced),
                        // The next one settles it, and the term ends by itself if none gets through.
                        Err(error) => tracing::warn!(%error, "the term was not renewed"),
                    }
                }
                tended = pending(&mut self.tending) => {
                    self.tending = None;
                    match tended {
                        Ok(true) => {}
                        Ok(false) => return Ok(Ended::Fenced),
                        Err(error) => tracing::warn!(%error, "what is not needed was not collected"),
                    }
                }
                () = &mut stop, if !stopped && !drained => stopped = true,
                () = clock.sleep_until(wake) => {}
                record = streams.next(), if room && !stopped && !drained => match record {
                    None => {
                        drained = true;
                        // Nothing comes any more: what waits for its time is due. The checkpoint's own watermark stays where it is.
                        let end = Timestamp::from_unix_ms(i64::MAX);
                        self.operator.watermark(&mut self.state, end, &mut self.out).map_err(RunError::Operator)?;
                    }
                    Some((partition, None)) => {
                        self.marks.ended(partition);
                        self.advance()?;
                    }
                    Some((partition, Some(record))) => self.record(partition, record.map_err(RunError::Source)?)?,
                },
            }
            self.flush().await?;
        }
    }

    fn record(&mut self, partition: Partition, record: Sourced<S::Record>) -> Result<(), RunError> {
        let late = self.marks.record(self.clock.now(), partition, record.time);
        self.records += 1;
        self.late += u64::from(late);
        match self.spec.watermark.late {
            LatePolicy::Fail if late => return Err(RunError::Late { time: record.time }),
            LatePolicy::Drop if late => {}
            _ => self.operator.record(&mut self.state, &record, &mut self.out).map_err(RunError::Operator)?,
        }
        self.positions.entry(self.source.clone()).or_default().insert(partition, record.next);
        self.advance()
    }

    fn advance(&mut self) -> Result<(), RunError> {
        match self.marks.advance(self.clock.now()) {
            Some(to) => self.operator.watermark(&mut self.state, to, &mut self.out).map_err(RunError::Operator),
            None => Ok(()),
        }
    }

    /// Gives the sink what was gathered, unless a checkpoint has it.
    async fn flush(&mut self) -> Result<(), RunError> {
        match &mut self.sink {
            Some(sink) if self.out.len() >= OUTPUTS_AT_A_TIME => {
                sink.write(std::mem::take(&mut self.out)).await.map_err(RunError::Sink)
            }
            _ => Ok(()),
        }
    }

    fn wake_at(&self) -> Moment {
        let now = self.clock.now();
        let third = self.spec.ttl / 3;
        let renew = if self.renewing.is_some() { Moment::NEVER } else { self.writer.deadline().unwrap_or(now) };
        let renew = Moment::since_origin(renew.saturating_since(Moment::ORIGIN).saturating_sub(third * 2));
        let soon = now.after(Duration::from_millis(1));
        let checkpoint = if self.work.is_some() { Moment::NEVER } else { self.next_tick };
        renew.min(self.marks.next_idle(now).unwrap_or(Moment::NEVER)).min(checkpoint).max(soon)
    }

    /// What time asks for.
    fn tick(&mut self) -> Result<Option<Ended>, RunError> {
        self.advance()?;
        let now = self.clock.now();
        let Some(deadline) = self.writer.deadline() else { return Ok(Some(Ended::Fenced)) };
        if self.renewing.is_none() && deadline.saturating_since(now) <= self.spec.ttl / 3 * 2 {
            let writer = self.writer.clone();
            self.renewing = Some(async move { writer.renew().await }.boxed());
        }
        if self.work.is_some() || self.sink.is_none() {
            return Ok(None);
        }
        match self.coordinator.apply(now, Command::Tick) {
            Outcome::Begin { attempt, savepoint } => self.begin(attempt, savepoint),
            Outcome::Commit { generation, .. } => self.commit(generation),
            Outcome::Wait { until } => self.next_tick = until,
            Outcome::GiveUp { failures } => {
                return Err(RunError::GaveUp { failures, last: self.last_failure.take().map(Box::new) });
            }
            _ => {}
        }
        Ok(None)
    }

    /// The barrier: between two records. What follows is done while records go on.
    fn begin(&mut self, attempt: Attempt, savepoint: Option<Name>) {
        let Some(sink) = self.sink.take() else { return };
        let now = self.clock.now();
        let snapshot = self.state.snapshot();
        let draft = Draft {
            positions: self.positions.clone(),
            watermark: self.marks.current(),
            counts: [("records", self.records), ("late", self.late)]
                .into_iter()
                .map(|(name, count)| (Name::new(name).expect("it is a name"), count))
                .collect(),
            savepoint,
            ..Draft::default()
        };
        let (operator, source) = (self.operator.name(), self.source.clone());
        let _more = self.coordinator.apply(now, Command::Snapshotted(attempt, operator.clone()));
        let _more = self.coordinator.apply(now, Command::Positioned(attempt, source));
        let _publish = self.coordinator.apply(now, Command::PreCommitted(attempt, self.sink_name.clone()));
        let outputs = std::mem::take(&mut self.out);
        let (writer, clock) = (self.writer.clone(), Arc::clone(&self.clock));
        let deadline = now.after(self.spec.schedule.time_out);
        let making = Making { writer, clock, deadline, sink, sink_name: self.sink_name.clone(), outputs, operator };
        self.work = Some(Work::Saving(attempt, making.run(draft, snapshot).boxed()));
    }

    fn commit(&mut self, generation: Generation) {
        let (Some((of, token)), Some(mut sink)) = (self.token.take(), self.sink.take()) else { return };
        debug_assert_eq!(of, generation);
        let sent = token.clone();
        let commit = async move {
            let done = sink.commit(&sent).await.map_err(RunError::Sink);
            (sink, done)
        };
        self.work = Some(Work::Committing(generation, token, commit.boxed()));
    }

    fn worked(&mut self, done: Done<K>) -> Result<(), RunError> {
        let now = self.clock.now();
        match done {
            Done::Saved(attempt, attempted) => {
                self.sink = Some(attempted.sink);
                match attempted.result {
                    Ok(Written::Done((id, token))) => {
                        self.state.confirm(id.generation);
                        self.last_failure = None;
                        // Without a token there is nothing to commit: the sink has done it already.
                        self.token = Some((id.generation, token.clone().unwrap_or_default()));
                        let _commit = self.coordinator.apply(now, Command::Published(attempt, id.generation));
                        match token {
                            Some(_) => self.commit(id.generation),
                            None => self.committed(id.generation),
                        }
                    }
                    // The next look at the term ends the run.
                    Ok(Written::Fenced { .. } | Written::Expired) => {}
                    Err(error @ (RunError::Sink(_) | RunError::Append(AppendError::Vanished { .. }))) => {
                        return Err(error);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a checkpoint was not made");
                        let told = self.coordinator.apply(now, Command::Failed(attempt));
                        if let Outcome::GiveUp { failures } = told {
                            return Err(RunError::GaveUp { failures, last: Some(Box::new(error)) });
                        }
                        self.finishing = false;
                        self.last_failure = Some(error);
                    }
                }
            }
            Done::Committed(generation, token, (sink, done)) => {
                self.sink = Some(sink);
                match done {
                    Ok(()) => self.committed(generation),
                    Err(error) => {
                        tracing::warn!(%error, "a sink did not commit");
                        self.token = Some((generation, token));
                        let sink = self.sink_name.clone();
                        if let Outcome::Wait { until } =
                            self.coordinator.apply(now, Command::CommitFailed(generation, sink))
                        {
                            self.next_tick = until;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn committed(&mut self, generation: Generation) {
        self.token = None;
        let _done = self.coordinator.apply(self.clock.now(), Command::Committed(generation, self.sink_name.clone()));
        self.next_tick = self.clock.now();
        let (writer, before) = (self.writer.clone(), self.tending.take());
        let tend = async move {
            if let Some(before) = before {
                // What it failed at is done again below, or at the next recovery.
                let _before = before.await;
            }
            let noted = writer.committed(generation).await?;
            let collected = writer.collect().await?;
            Ok(matches!((noted, collected), (Written::Done(()), Written::Done(_))))
        };
        self.tending = Some(tend.boxed());
    }
}
