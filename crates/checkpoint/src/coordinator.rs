//! When a checkpoint is made, and what has to happen in which order: barrier, snapshots and positions, manifest, commits. A pure machine: time is
//! an argument, every answer a value. It never has two checkpoints under way, and never lets a sink commit before the manifest is durable.
//! The README has its state table.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tidegate_core::Moment;
use tidegate_core::id::Name;

use crate::id::Generation;

#[cfg(test)]
mod tests;

/// Savepoints that wait for their turn; a further one is refused.
pub const SAVEPOINTS_WAITING_MAX: usize = 16;

/// When checkpoints are made. Each job has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// From the begin of one to the begin of the next.
    pub interval: Duration,
    /// From the begin of one until its manifest is durable; after it the attempt has failed.
    pub time_out: Duration,
    /// From the end of one, however it ended, to the begin of the next.
    pub min_pause: Duration,
    /// Attempts that may fail one after the other; one more, and the job is told to stop.
    pub tolerated_failures: u32,
}

impl Default for Schedule {
    /// Every 10 s, 10 min at most, 1 s between, 3 failures.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            time_out: Duration::from_secs(600),
            min_pause: Duration::from_secs(1),
            tolerated_failures: 3,
        }
    }
}

/// Who takes part in a checkpoint of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Participants {
    /// The operators that have a state.
    pub operators: BTreeSet<Name>,
    /// The sources that have positions.
    pub sources: BTreeSet<Name>,
    /// The sinks that commit in two phases.
    pub sinks: BTreeSet<Name>,
}

/// The number of an attempt, from 1; it never comes back within a coordinator's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u64);

/// What can be told to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Time has passed.
    Tick,
    /// A checkpoint is wanted as soon as nothing is under way, whatever the interval and the pause say.
    AtOnce,
    /// Somebody wants a savepoint: as soon as nothing is under way, whatever the interval and the pause say.
    Savepoint(Name),
    /// The barrier reached an operator, and its state was taken.
    Snapshotted(Attempt, Name),
    /// The barrier left a source, and its positions were taken.
    Positioned(Attempt, Name),
    /// The barrier reached a sink, and what came before it can be committed by the token that the sink gave.
    PreCommitted(Attempt, Name),
    /// The manifest is durable.
    Published(Attempt, Generation),
    /// Something failed before the manifest was durable, and it is known that it is not.
    Failed(Attempt),
    /// A sink has committed. Twice is once.
    Committed(Generation, Name),
    /// A sink could not commit: it is told again, after the pause.
    CommitFailed(Generation, Name),
    /// At the begin: a recovery found a checkpoint whose sinks must commit first.
    Recovered(Generation),
}

/// What became of a command, and what is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the outcome says what is to be done"]
pub enum Outcome {
    /// Nothing is to be done before this moment, unless something is told.
    Wait {
        /// When to tick again.
        until: Moment,
    },
    /// Send the barrier.
    Begin {
        /// The attempt.
        attempt: Attempt,
        /// The name, if it is a savepoint.
        savepoint: Option<Name>,
    },
    /// Everybody gave what they had to: publish the manifest.
    Publish {
        /// The attempt.
        attempt: Attempt,
    },
    /// The manifest is durable: tell these sinks to commit.
    Commit {
        /// The checkpoint.
        generation: Generation,
        /// The sinks that have not.
        sinks: BTreeSet<Name>,
    },
    /// All sinks have committed: the checkpoint is done, and is to be noted as committed.
    Done {
        /// The checkpoint.
        generation: Generation,
    },
    /// The attempt is over: drop its save and abort what its sinks pre-committed.
    Abort {
        /// The attempt.
        attempt: Attempt,
    },
    /// The attempt's time is over while its manifest is being written: find out whether it is durable, and tell it as `Published` or `Failed`.
    Settle {
        /// The attempt.
        attempt: Attempt,
    },
    /// Too many attempts have failed one after the other, this one the last: stop the job and recover.
    GiveUp {
        /// How many.
        failures: u32,
    },
    /// The savepoint is noted and will be made.
    Queued,
    /// As many savepoints wait as may, or one of this name does.
    Refused,
    /// It is about an attempt or a checkpoint that is over, or was told already, or about somebody who takes no part. Nothing changed.
    Stale,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Idle,
    Gathering { attempt: Attempt, missing: Participants, deadline: Moment, savepoint: Option<Name> },
    Publishing { attempt: Attempt, deadline: Moment, settling: bool },
    Committing { generation: Generation, missing: BTreeSet<Name>, again: Moment },
    GivenUp,
}

/// The machine. Every command costs O(log n) in the participants.
#[derive(Debug, Clone)]
pub struct Coordinator {
    schedule: Schedule,
    participants: Participants,
    state: State,
    now: Moment,
    attempts: u64,
    failures: u32,
    /// When the last attempt began, and when the last one ended.
    began: Option<Moment>,
    ended: Option<Moment>,
    waiting: VecDeque<Name>,
    at_once: bool,
}

impl Coordinator {
    /// A coordinator with nothing under way; the first checkpoint is due an interval after `now`.
    #[must_use]
    pub fn new(schedule: Schedule, participants: Participants, now: Moment) -> Self {
        Self {
            schedule,
            participants,
            state: State::Idle,
            now,
            attempts: 0,
            failures: 0,
            began: Some(now),
            ended: None,
            waiting: VecDeque::new(),
            at_once: false,
        }
    }

    /// Applies one command at this time. A time before that of an earlier command counts as that of the earlier one.
    pub fn apply(&mut self, now: Moment, command: Command) -> Outcome {
        self.now = self.now.max(now);
        match command {
            Command::Tick => self.tick(),
            Command::AtOnce => {
                self.at_once = true;
                Outcome::Queued
            }
            Command::Savepoint(name) => self.savepoint(name),
            Command::Snapshotted(attempt, name) => self.gathered(attempt, |missing| missing.operators.remove(&name)),
            Command::Positioned(attempt, name) => self.gathered(attempt, |missing| missing.sources.remove(&name)),
            Command::PreCommitted(attempt, name) => self.gathered(attempt, |missing| missing.sinks.remove(&name)),
            Command::Published(attempt, generation) => self.published(attempt, generation),
            Command::Failed(attempt) => self.failed(attempt),
            Command::Committed(generation, sink) => self.committed(generation, &sink),
            Command::CommitFailed(generation, sink) => self.commit_failed(generation, &sink),
            Command::Recovered(generation) => match self.state {
                State::Idle if self.attempts == 0 => self.commit(generation),
                _ => Outcome::Stale,
            },
        }
    }

    /// The attempt that is under way, until its manifest is durable.
    #[must_use]
    pub fn attempt(&self) -> Option<Attempt> {
        match self.state {
            State::Gathering { attempt, .. } | State::Publishing { attempt, .. } => Some(attempt),
            _ => None,
        }
    }

    /// Attempts that failed since the last one that did not.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// When the next one may begin, if nothing is under way and no savepoint waits.
    fn due(&self) -> Moment {
        let by_interval = self.began.map_or(Moment::ORIGIN, |began| began.after(self.schedule.interval));
        let by_pause = self.ended.map_or(Moment::ORIGIN, |ended| ended.after(self.schedule.min_pause));
        by_interval.max(by_pause)
    }

    fn tick(&mut self) -> Outcome {
        match &mut self.state {
            State::Idle => {
                let due = self.due();
                if self.waiting.is_empty() && !self.at_once && self.now < due {
                    return Outcome::Wait { until: due };
                }
                self.begin()
            }
            State::Gathering { attempt, deadline, savepoint, .. } => {
                if self.now < *deadline {
                    return Outcome::Wait { until: *deadline };
                }
                let (attempt, savepoint) = (*attempt, savepoint.take());
                // A savepoint that failed is tried again: somebody waits for it.
                self.waiting.extend(savepoint);
                self.end(attempt)
            }
            State::Publishing { attempt, deadline, settling } => {
                if self.now < *deadline || *settling {
                    return Outcome::Wait { until: (*deadline).max(self.now.after(self.schedule.min_pause)) };
                }
                *settling = true;
                Outcome::Settle { attempt: *attempt }
            }
            State::Committing { generation, missing, again } => {
                if self.now < *again {
                    return Outcome::Wait { until: *again };
                }
                *again = self.now.after(self.schedule.min_pause.max(Duration::from_millis(1)));
                Outcome::Commit { generation: *generation, sinks: missing.clone() }
            }
            State::GivenUp => Outcome::GiveUp { failures: self.failures },
        }
    }

    fn begin(&mut self) -> Outcome {
        self.attempts += 1;
        self.at_once = false;
        let attempt = Attempt(self.attempts);
        let savepoint = self.waiting.pop_front();
        self.began = Some(self.now);
        let deadline = self.now.after(self.schedule.time_out);
        let missing = self.participants.clone();
        self.state = State::Gathering { attempt, missing, deadline, savepoint: savepoint.clone() };
        Outcome::Begin { attempt, savepoint }
    }

    fn savepoint(&mut self, name: Name) -> Outcome {
        let under_way = matches!(&self.state, State::Gathering { savepoint: Some(made), .. } if *made == name);
        if self.waiting.len() >= SAVEPOINTS_WAITING_MAX || self.waiting.contains(&name) || under_way {
            return Outcome::Refused;
        }
        self.waiting.push_back(name);
        Outcome::Queued
    }

    fn gathered(&mut self, of: Attempt, remove: impl FnOnce(&mut Participants) -> bool) -> Outcome {
        let State::Gathering { attempt, missing, deadline, .. } = &mut self.state else { return Outcome::Stale };
        let (attempt, deadline) = (*attempt, *deadline);
        if attempt != of || !remove(missing) {
            return Outcome::Stale;
        }
        if *missing != Participants::default() {
            return Outcome::Wait { until: deadline };
        }
        self.state = State::Publishing { attempt, deadline, settling: false };
        Outcome::Publish { attempt }
    }

    fn published(&mut self, of: Attempt, generation: Generation) -> Outcome {
        match self.state {
            State::Publishing { attempt, .. } if attempt == of => {
                self.failures = 0;
                self.commit(generation)
            }
            _ => Outcome::Stale,
        }
    }

    fn commit(&mut self, generation: Generation) -> Outcome {
        let missing = self.participants.sinks.clone();
        if missing.is_empty() {
            return self.done(generation);
        }
        let again = self.now.after(self.schedule.min_pause.max(Duration::from_millis(1)));
        self.state = State::Committing { generation, missing: missing.clone(), again };
        Outcome::Commit { generation, sinks: missing }
    }

    fn committed(&mut self, of: Generation, sink: &Name) -> Outcome {
        let State::Committing { generation, missing, again } = &mut self.state else { return Outcome::Stale };
        if *generation != of || !missing.remove(sink) {
            return Outcome::Stale;
        }
        if missing.is_empty() { self.done(of) } else { Outcome::Wait { until: *again } }
    }

    fn commit_failed(&mut self, of: Generation, sink: &Name) -> Outcome {
        match &self.state {
            State::Committing { generation, missing, again } if *generation == of && missing.contains(sink) => {
                Outcome::Wait { until: *again }
            }
            _ => Outcome::Stale,
        }
    }

    fn done(&mut self, generation: Generation) -> Outcome {
        self.state = State::Idle;
        self.ended = Some(self.now);
        Outcome::Done { generation }
    }

    fn failed(&mut self, of: Attempt) -> Outcome {
        match &mut self.state {
            State::Gathering { attempt, savepoint, .. } if *attempt == of => {
                let savepoint = savepoint.take();
                self.waiting.extend(savepoint);
                self.end(of)
            }
            State::Publishing { attempt, .. } if *attempt == of => self.end(of),
            _ => Outcome::Stale,
        }
    }

    fn end(&mut self, attempt: Attempt) -> Outcome {
        self.failures = self.failures.saturating_add(1);
        self.ended = Some(self.now);
        if self.failures > self.schedule.tolerated_failures {
            self.state = State::GivenUp;
            return Outcome::GiveUp { failures: self.failures };
        }
        self.state = State::Idle;
        Outcome::Abort { attempt }
    }
}
