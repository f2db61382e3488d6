//! The one owner of a group: a task that takes what is asked in the order in which it comes, decides by the machine, stores
//! everything that a batch of commands changed in one step, and answers after that. It never reads records.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use metrics::counter;
use parking_lot::Mutex;
use tidegate_core::Moment;
use tidegate_core::id::Name;
use tidegate_core::port::{Durability, SwapOutcome};
use tokio::sync::{mpsc, oneshot, watch};

use super::command::{Command, Now, Outcome, Touched};
use super::dead_letter::Burial;
use super::error::GroupError;
use super::member::Members;
use super::registry::Registry;
use super::state::Loaded;
use crate::error::{StoreError, StreamError};
use crate::handle::StreamHandle;
use crate::service::ATTEMPTS_MAX;

/// Commands that wait for one group; beyond it the next one waits to be taken.
pub(crate) const QUEUE_MAX: usize = 1_024;
/// Commands that are stored in one step.
pub(crate) const BATCH_MAX: usize = 256;
/// A group that nobody asked for anything for so long, and that has nothing to do itself, is no longer kept in memory.
pub(crate) const IDLE: Duration = Duration::from_secs(60);
/// How long to wait before a group is read again that could not be read or written and that nobody asks for anything; after
/// each further failure twice as long.
const RELOAD_PAUSE: Duration = Duration::from_millis(500);
/// How often that is doubled at most.
const RELOAD_DOUBLINGS_MAX: u32 = 6;

/// A command with the way to its answer.
pub(crate) struct Envelope {
    pub(crate) command: Command,
    pub(crate) reply: oneshot::Sender<Result<Outcome, GroupError>>,
}

/// What a group's task shares with those who ask it.
pub(crate) struct Link {
    /// What has to be taken back because an answer did not reach its caller.
    pub(crate) undo: Mutex<Vec<Command>>,
    /// Changes when somebody who waits should look again.
    pub(crate) version: watch::Sender<u64>,
    /// Held by a poll while it reads what any other poll would read too.
    pub(crate) turnstile: tokio::sync::Mutex<()>,
    /// The group was changed behind its task's back.
    pub(crate) reload: std::sync::atomic::AtomicBool,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            undo: Mutex::new(Vec::new()),
            version: watch::Sender::new(0),
            turnstile: tokio::sync::Mutex::new(()),
            reload: std::sync::atomic::AtomicBool::new(false),
        }
    }

    pub(crate) fn wake(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// Why a whole batch was not done.
pub(crate) enum Failed {
    NoGroup,
    NoStream,
    Store(Arc<StoreError>),
}

/// A cause that several answers share.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct SharedCause(Arc<StoreError>);

impl Failed {
    fn to_error(&self, handle: &StreamHandle, group: &Name) -> GroupError {
        match self {
            Self::NoGroup => GroupError::NotFound { name: group.clone() },
            Self::NoStream => handle.not_found().into(),
            Self::Store(error) => {
                let cause = || Box::new(SharedCause(Arc::clone(error)));
                match &**error {
                    StoreError::Indeterminate(_) => StoreError::Indeterminate(cause()),
                    StoreError::Full => StoreError::Full,
                    StoreError::Corrupt { what } => StoreError::Corrupt { what: what.clone() },
                    StoreError::TooLarge { bytes, limit_bytes } => {
                        StoreError::TooLarge { bytes: *bytes, limit_bytes: *limit_bytes }
                    }
                    StoreError::Contended => StoreError::Contended,
                    StoreError::Unavailable(_) => StoreError::Unavailable(cause()),
                }
                .into()
            }
        }
    }
}

impl From<StreamError> for Failed {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Store(error) => Self::Store(Arc::new(error)),
            _ => Self::NoStream,
        }
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// A group's task.
pub(crate) struct Actor {
    pub(crate) handle: Arc<StreamHandle>,
    pub(crate) group: Name,
    pub(crate) commands: mpsc::Receiver<Envelope>,
    pub(crate) link: Arc<Link>,
    pub(crate) registry: Weak<Registry>,
    pub(crate) loaded: Option<Loaded>,
    /// Members whose sessions go on when the group is read again.
    pub(crate) before: Option<Members>,
    used: Moment,
    /// What is known was given up: when to read it again without being asked.
    retry_at: Option<Moment>,
    failures: u32,
    pub(crate) burial: Option<BoxFuture<'static, Burial>>,
    pub(crate) bury_at: Moment,
    pub(crate) bury_failures: u32,
}

/// Whether the task goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    End,
}

enum Event {
    Command(Option<Envelope>),
    Buried(Burial),
    Time,
}

impl Actor {
    pub(crate) fn new(
        handle: Arc<StreamHandle>,
        group: Name,
        commands: mpsc::Receiver<Envelope>,
        link: Arc<Link>,
        registry: Weak<Registry>,
    ) -> Self {
        let used = handle.core.clock.now();
        Self {
            handle,
            group,
            commands,
            link,
            registry,
            loaded: None,
            before: None,
            used,
            retry_at: None,
            failures: 0,
            burial: None,
            bury_at: used,
            bury_failures: 0,
        }
    }

    pub(crate) fn now(&self) -> Now {
        let clock = &self.handle.core.clock;
        Now { moment: clock.now(), wall: clock.timestamp() }
    }

    pub(crate) async fn run(mut self) {
        let clock = Arc::clone(&self.handle.core.clock);
        loop {
            let wake_at = self.wake_at();
            let burial = async {
                match &mut self.burial {
                    Some(burial) => burial.await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                envelope = self.commands.recv() => Event::Command(envelope),
                burial = burial => Event::Buried(burial),
                () = clock.sleep_until(wake_at) => Event::Time,
            };
            let flow = match event {
                Event::Command(None) => return,
                Event::Command(Some(first)) => {
                    self.used = clock.now();
                    let mut batch = VecDeque::from([first]);
                    while batch.len() < BATCH_MAX
                        && let Ok(envelope) = self.commands.try_recv()
                    {
                        batch.push_back(envelope);
                    }
                    self.step(batch).await
                }
                Event::Buried(burial) => {
                    self.burial = None;
                    self.bury(burial).await;
                    Flow::On
                }
                Event::Time if self.is_idle(clock.now()) => Flow::End,
                Event::Time => self.step(VecDeque::new()).await,
            };
            if flow == Flow::End {
                break;
            }
            // Where storage failed just now it waits for the next try, which takes back first.
            let takes_back = self.retry_at.is_none() && !self.link.undo.lock().is_empty();
            if takes_back && self.step(VecDeque::new()).await == Flow::End {
                break;
            }
            self.plan_burial();
        }
        self.end();
    }

    /// Who still waits for an answer asks again, of a new task.
    fn end(mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.remove(&self.handle, &self.group, &self.link);
        }
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        self.link.wake();
    }

    fn wake_at(&self) -> Moment {
        let idle = self.used.after(IDLE);
        let (deadline, dead) = match &self.loaded {
            Some(loaded) => (loaded.machine.next_deadline(), !loaded.machine.dead(1).is_empty()),
            None => (None, false),
        };
        let bury = (dead && self.burial.is_none()).then_some(self.bury_at);
        [deadline, bury, self.retry_at].into_iter().flatten().min().unwrap_or(idle)
    }

    fn is_idle(&self, now: Moment) -> bool {
        let resting = match &self.loaded {
            Some(loaded) => loaded.machine.next_deadline().is_none() && loaded.machine.dead(1).is_empty(),
            None => true,
        };
        let nothing_waits = self.burial.is_none() && self.link.undo.lock().is_empty();
        resting && nothing_waits && now >= self.used.after(IDLE)
    }

    /// Does what a batch of commands asks, stores it, and answers.
    async fn step(&mut self, mut batch: VecDeque<Envelope>) -> Flow {
        // Nobody waits for the answer: the command changes nothing.
        batch.retain(|envelope| !envelope.reply.is_closed());
        if self.link.reload.swap(false, std::sync::atomic::Ordering::AcqRel) {
            self.forget();
        }
        match self.attempts(&batch).await {
            Ok(outcomes) => {
                self.failures = 0;
                for (envelope, outcome) in batch.into_iter().zip(outcomes) {
                    let undo = undo_of(&envelope.command, &outcome);
                    if envelope.reply.send(Ok(outcome)).is_err() {
                        self.link.undo.lock().extend(undo);
                    }
                }
                Flow::On
            }
            Err(failed) => {
                self.failures = self.failures.saturating_add(1);
                self.forget();
                for envelope in batch {
                    drop(envelope.reply.send(Err(failed.to_error(&self.handle, &self.group))));
                }
                match failed {
                    Failed::NoGroup | Failed::NoStream => Flow::End,
                    Failed::Store(error) => {
                        counter!("tidegate_group_store_failures_total").increment(1);
                        tracing::warn!(%error, "a consumer group could not be stored");
                        Flow::On
                    }
                }
            }
        }
    }

    /// What is known of the group is not what is stored, or may not be: it is read again when it is next needed, or after a
    /// while, because its members' sessions and its deliveries end by themselves.
    pub(crate) fn forget(&mut self) {
        let pause = RELOAD_PAUSE * (1 << self.failures.min(RELOAD_DOUBLINGS_MAX));
        self.retry_at = Some(self.handle.core.clock.now().after(pause));
        if let Some(loaded) = self.loaded.take() {
            self.before = Some(loaded.machine.into_members());
        }
    }

    pub(crate) async fn load(&mut self) -> Result<(), Failed> {
        if self.loaded.is_some() {
            return Ok(());
        }
        let loaded = Loaded::load(&self.handle, &self.group, self.now(), self.before.as_ref()).await?;
        self.loaded = Some(loaded.ok_or(Failed::NoGroup)?);
        self.before = None;
        self.retry_at = None;
        self.link.wake();
        Ok(())
    }

    /// Decides and stores, again while others change what was decided on.
    async fn attempts(&mut self, batch: &VecDeque<Envelope>) -> Result<Vec<Outcome>, Failed> {
        for _ in 0..ATTEMPTS_MAX {
            self.load().await?;
            let now = self.now();
            let Some(loaded) = &mut self.loaded else { continue };
            let machine = &mut loaded.machine;
            let wakes = machine.wakes();
            let mut touched = Touched::default();
            // Kept until it is stored that it was taken back: a failure must not make it stand. Others only add at the end.
            let undo = self.link.undo.lock().clone();
            for command in &undo {
                machine.apply(now, command, &mut touched);
            }
            machine.apply(now, &Command::Tick, &mut touched);
            let outcomes = batch.iter().map(|envelope| machine.apply(now, &envelope.command, &mut touched)).collect();
            let woken = machine.wakes() != wakes;
            if self.store(&touched).await? {
                self.link.undo.lock().drain(..undo.len());
                if woken {
                    self.link.wake();
                }
                return Ok(outcomes);
            }
            self.forget();
        }
        Err(StoreError::Contended.into())
    }

    /// Stores what was touched. `false`: somebody else changed the group.
    async fn store(&mut self, touched: &Touched) -> Result<bool, Failed> {
        if touched.cells.is_empty() {
            return Ok(true);
        }
        let core = &self.handle.core;
        let durability = if touched.durable { core.durability } else { Durability::Os };
        for _ in 0..ATTEMPTS_MAX {
            let Some(loaded) = &mut self.loaded else { return Ok(false) };
            let change = loaded.change(&self.handle, &self.group, touched);
            counter!("tidegate_group_writes_total").increment(1);
            match core.meta.compare_and_swap(change.swaps.clone(), durability).await.map_err(StoreError::from)? {
                SwapOutcome::Swapped(revisions) => {
                    loaded.changed(&change, &revisions);
                    return Ok(true);
                }
                // The stream changed: still there, it is another condition for the same cells.
                SwapOutcome::Mismatch { index: 0, .. } => core.refresh(&self.handle).await?,
                SwapOutcome::Mismatch { .. } => return Ok(false),
            }
        }
        Err(StoreError::Contended.into())
    }
}

/// What takes a command back whose answer did not reach the caller; nothing where a repetition or time mends it.
pub(crate) fn undo_of(command: &Command, outcome: &Outcome) -> Option<Command> {
    match (command, outcome) {
        (Command::Deliver { generation, moves, .. }, Outcome::Delivered) => {
            Some(Command::Rewind { generation: *generation, moves: moves.clone() })
        }
        (Command::Claim(_), Outcome::Claimed(stamps)) => {
            Some(Command::Unclaim { ids: stamps.iter().map(|stamp| stamp.id.as_str().into()).collect() })
        }
        (Command::Join { member, .. }, Outcome::Joined(_)) => Some(Command::Leave { member: member.clone() }),
        _ => None,
    }
}
