//! The one thread that changes the store. It takes everything that waits, decides it in order, writes it as one batch with
//! one fsync, shows it, and answers; what comes meanwhile is the next group. It never delays a group to make it larger, and
//! never answers before what it answers is durable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_core::port::Cause;
use tokio::sync::mpsc;

use crate::command::{Answer, Job, Message};
use crate::config::{GROUP_MAX_BYTES, GROUP_MAX_COMMANDS, WriteStep};
use crate::directory::Directory;
use crate::engine::{Engine, MetaValue};
use crate::error::{Absent, OpenError, ReadError, WriteError};
use crate::group::Group;
use crate::metric;
use crate::shared::{Health, Shared, Shown};
use crate::state::Counters;

/// How long a reopening waits for the readers of the database to be done, and for tables to be written.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait between attempts to reopen, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

pub(crate) struct Writer {
    shared: Arc<Shared>,
    directory: Directory,
    /// `None` while the database is closed between attempts to reopen it.
    engine: Option<Arc<Engine>>,
    counters: Counters,
    queue: mpsc::Receiver<Message>,
    /// Set by a failure: the database must be opened again before the next write; with whether a group's fate is unknown.
    broken: Option<Broken>,
}

struct Broken {
    unknown: bool,
    attempts: u32,
    not_before: Instant,
    why: String,
}

/// What a commit came to.
enum Committed {
    Yes,
    /// Certainly not.
    No(Cause),
    /// Nobody knows.
    Unknown(Cause),
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        directory: Directory,
        engine: Arc<Engine>,
        counters: Counters,
        queue: mpsc::Receiver<Message>,
    ) -> Self {
        Self { shared, directory, engine: Some(engine), counters, queue, broken: None }
    }

    /// Runs until it is told to close.
    pub(crate) fn run(mut self) {
        // Goes before the queue does, so that whoever waits in it finds the reason.
        let _end = End(Arc::clone(&self.shared));
        while let Some(first) = self.queue.blocking_recv() {
            let (jobs, close) = self.gather(first);
            self.process(jobs);
            if close {
                break;
            }
        }
        self.close();
    }

    /// Everything that waits, up to a group's bounds, and whether to close afterwards.
    fn gather(&mut self, first: Message) -> (Vec<Job>, bool) {
        let mut jobs = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Close => return (jobs, true),
                Message::Nudge => {}
                Message::Job(job) => {
                    bytes += job.bytes;
                    jobs.push(job);
                }
            }
            if jobs.len() >= GROUP_MAX_COMMANDS || bytes >= GROUP_MAX_BYTES {
                break;
            }
            next = self.queue.try_recv().ok();
        }
        (jobs, false)
    }

    fn process(&mut self, jobs: Vec<Job>) {
        let (jobs, has_space) = self.refuse_without_space(jobs);
        if self.broken.is_some() && !has_space {
            // Opening needs space too, and until then the old database serves the readers.
            return refuse(jobs, &WriteError::Full);
        }
        if jobs.is_empty() {
            let _ = self.mend();
            return;
        }
        for attempt in 0.. {
            if let Err(error) = self.mend() {
                return refuse(jobs, &WriteError::NotMade(error));
            }
            match self.write(&jobs) {
                Ok(answers) => {
                    for (job, answer) in jobs.into_iter().zip(answers) {
                        // Nobody may wait any more; what was decided stands.
                        drop(job.permit);
                        let _ = job.answer.send(answer);
                    }
                    return;
                }
                Err(WriteError::NotMade(cause)) if attempt == 0 => {
                    // Found broken before anything was written: mend it and try once more.
                    self.give_up(false, &cause);
                }
                Err(error) => {
                    refuse(jobs, &error);
                    let _ = self.mend();
                    return;
                }
            }
        }
    }

    /// Answers what needs space when there is none; gives back the rest, and whether there is enough for all.
    fn refuse_without_space(&mut self, jobs: Vec<Job>) -> (Vec<Job>, bool) {
        let config = &self.shared.config;
        let free = match (config.space_probe)(&config.path) {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!(%error, "the free space cannot be learned");
                u64::MAX
            }
        };
        // A chunk lies in the journal and then in a table.
        let wanted: u64 = jobs.iter().map(|job| job.bytes.saturating_mul(2)).sum();
        let reserve = config.free_space_reserve_bytes;
        if free >= reserve.saturating_add(wanted) {
            self.report(Health::Full, Health::Writing);
            return (jobs, true);
        }
        self.report(Health::Writing, Health::Full);
        metric::full();
        // What frees space may use half of the reserve.
        let may_free = free >= reserve / 2;
        let (stay, refused) = jobs.into_iter().partition(|job| may_free && !job.command.needs_space());
        refuse(refused, &WriteError::Full);
        (stay, false)
    }

    fn report(&self, from: Health, to: Health) {
        self.shared.health.send_if_modified(|health| {
            let changes = *health == from && from != to;
            if changes {
                *health = to;
            }
            changes
        });
    }

    /// Decides, writes and shows a group. `Err` = of all of it.
    fn write(&mut self, jobs: &[Job]) -> Result<Vec<Result<Answer, WriteError>>, WriteError> {
        // Goes before the group's commands do, so that whoever waits for their answers finds the reason.
        let _end = End(Arc::clone(&self.shared));
        let absent = || WriteError::NotMade(Box::new(Absent::Reopening));
        let engine = Arc::clone(self.engine.as_ref().ok_or_else(absent)?);
        self.wait_for_background(&engine)?;
        let shared = Arc::clone(&self.shared);
        let view = shared.view().map_err(|absent| WriteError::NotMade(Box::new(absent)))?;
        let now_ms = shared.config.clock.timestamp().unix_ms();
        let mut group = Group::new(&shared, view, self.counters, now_ms);
        let answers: Vec<_> = jobs.iter().map(|job| group.decide(&job.command)).collect();
        if group.is_empty() {
            return Ok(answers);
        }
        let fsync = group.fsync;
        let start = Instant::now();
        match self.commit(&engine, &mut group, jobs.len()) {
            Committed::Yes => {}
            Committed::No(cause) => return Err(WriteError::NotMade(cause)),
            Committed::Unknown(cause) => {
                self.give_up(true, &cause);
                return Err(WriteError::Unknown(cause));
            }
        }
        metric::group(jobs.len(), group.records, group.bytes, fsync, start.elapsed());
        self.counters = group.counters;
        if fsync {
            self.directory.acknowledge(self.counters.group);
        }
        show(&shared, &engine, group);
        Ok(answers)
    }

    fn commit(&self, engine: &Engine, group: &mut Group<'_>, commands: usize) -> Committed {
        let hook = self.shared.config.write_hook.as_ref();
        let fsync = group.fsync;
        if let Some(Err(error)) = hook.map(|hook| hook(WriteStep::Before { commands, fsync })) {
            return Committed::No(Box::new(error));
        }
        match engine.commit(group.take_writes(), fsync) {
            Ok(()) => {}
            // Said before anything is written.
            Err(fjall::Error::Poisoned) => return Committed::No(Box::new(fjall::Error::Poisoned)),
            Err(error) => return Committed::Unknown(Box::new(error)),
        }
        match hook.map(|hook| hook(WriteStep::After)) {
            Some(Err(error)) => Committed::Unknown(Box::new(error)),
            _ => Committed::Yes,
        }
    }

    /// Waits while the background jobs are behind: the database would wait too, but for ever if they failed.
    fn wait_for_background(&self, engine: &Engine) -> Result<(), WriteError> {
        loop {
            if engine.is_poisoned() {
                return Err(WriteError::NotMade(Box::new(fjall::Error::Poisoned)));
            }
            if !engine.is_behind() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Notes that the database must be opened again. Readers go on until then.
    fn give_up(&mut self, unknown: bool, cause: &Cause) {
        tracing::error!(error = %cause, unknown, "the database failed; it will be opened again");
        metric::failed();
        let _ = self.shared.health.send_replace(Health::Failed);
        let unknown = unknown || self.broken.as_ref().is_some_and(|broken| broken.unknown);
        self.broken = Some(Broken { unknown, attempts: 0, not_before: Instant::now(), why: cause.to_string() });
    }

    /// Opens the database again if it broke. An attempt that comes too soon after one that failed is not made.
    fn mend(&mut self) -> Result<(), Cause> {
        let Some(broken) = &self.broken else { return Ok(()) };
        if Instant::now() < broken.not_before {
            return Err(broken.why.clone().into());
        }
        match self.reopen(broken.unknown) {
            Ok(()) => {
                tracing::info!("the database is open again");
                self.broken = None;
                let _ = self.shared.health.send_replace(Health::Writing);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the database was not opened again");
                if let Some(broken) = &mut self.broken {
                    let wait = BACKOFF.0.saturating_mul(1 << broken.attempts.min(10)).min(BACKOFF.1);
                    broken.attempts += 1;
                    broken.not_before = Instant::now() + wait;
                    broken.why = error.to_string();
                }
                Err(error)
            }
        }
    }

    fn reopen(&mut self, unknown: bool) -> Result<(), Cause> {
        let shared = Arc::clone(&self.shared);
        if let Some(engine) = self.engine.take() {
            shared.show(Shown::Nothing(Absent::Reopening), || {});
            // Readers hold the database for as long as one read takes.
            let deadline = Instant::now() + PATIENCE;
            while Arc::strong_count(&engine) > 1 {
                if Instant::now() > deadline {
                    self.engine = Some(engine);
                    return Err("readers hold the database".into());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(engine);
        }
        let opened = self.directory.open_engine(shared.config.cache_bytes);
        let engine = Arc::new(opened.map_err(|error: OpenError| -> Cause { Box::new(error) })?);
        if unknown {
            engine.settle(PATIENCE).map_err(ReadError::into_cause)?;
        }
        let view = engine.view();
        self.counters = view.counters().map_err(ReadError::into_cause)?;
        // The last group may be there or not: forget what memory says of every stream, and see which are still there.
        let streams = shared.catalog.all();
        let mut removed = Vec::new();
        for stream in &streams {
            let entry = view.stream(&crate::key::stream(&stream.id)).map_err(ReadError::into_cause)?;
            if entry.is_none_or(|entry| entry.log != stream.log) {
                removed.push(Arc::clone(stream));
            }
        }
        shared.show(Shown::View(Arc::new(view)), || {
            shared.cache.lock().clear();
            for stream in &streams {
                stream.forget();
            }
            for stream in &removed {
                shared.catalog.remove(&stream.id);
            }
        });
        self.engine = Some(engine);
        for stream in &streams {
            stream.wake();
        }
        shared.watchers.overflow_all();
        Ok(())
    }

    fn close(mut self) {
        self.queue.close();
        while let Ok(message) = self.queue.try_recv() {
            if let Message::Job(job) = message {
                refuse(vec![job], &WriteError::NotMade(Box::new(Absent::Closed)));
            }
        }
        let _ = self.shared.health.send_replace(Health::Closed);
        self.shared.show(Shown::Nothing(Absent::Closed), || self.shared.cache.lock().clear());
        for stream in self.shared.catalog.all() {
            stream.remove();
            stream.wake();
        }
        self.shared.watchers.end();
        let deadline = Instant::now() + PATIENCE;
        if let Some(engine) = self.engine.take() {
            while Arc::strong_count(&engine) > 1 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Says so when the thread comes to a bad end. Whoever waits for an answer learns that there is none by the queue's end.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the writer panicked; the store takes no more changes until it is opened again");
            if self.0.health.send_replace(Health::Failed) != Health::Failed {
                metric::failed();
            }
        }
    }
}

/// Shows a group that is durable, in one step, and wakes who waits for it.
fn show(shared: &Shared, engine: &Arc<Engine>, group: Group<'_>) {
    let Group { meta, streams, removed, partitions, .. } = group;
    shared.show(Shown::View(Arc::new(engine.view())), || {
        for (id, stream) in &streams {
            // Also where one of that name is new: the one before it is gone.
            shared.catalog.remove(id);
            if let Some(stream) = stream {
                shared.catalog.insert(Arc::clone(stream));
            }
        }
        for stream in &removed {
            stream.remove();
        }
        for (place, state) in partitions.values() {
            place.stream.show(place.partition, state.clone());
        }
        let mut cache = shared.cache.lock();
        for (key, changed) in &meta {
            match &changed.value {
                Some(value) => {
                    let value = MetaValue { revision: changed.revision, value: value.clone() };
                    cache.insert(key.clone(), value);
                }
                None => cache.remove(key),
            }
        }
    });
    for stream in &removed {
        stream.wake();
    }
    for (place, _) in partitions.values() {
        place.stream.wake();
    }
    let mut changes: Vec<_> = meta.into_iter().collect();
    changes.sort_unstable_by_key(|(_, changed)| changed.revision);
    for (key, changed) in &changes {
        shared.watchers.changed(key, changed.revision, changed.value.as_ref());
    }
}

fn refuse(jobs: Vec<Job>, error: &WriteError) {
    for job in jobs {
        drop(job.permit);
        let _ = job.answer.send(Err(error.again()));
    }
}
