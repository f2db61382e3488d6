//! What a source does next: whose term it is, how long to wait after a failure, whether what a stream refused may be kept. It never
//! reads a clock, draws a number, stores or calls anything: time and chance are arguments, and every answer is a value.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_core::Moment;
use tidegate_core::id::Epoch;
use tidegate_core::port::Revision;
use tidegate_core::principal::Owner;
use tidegate_lease::machine::{self as lease, LeaseMachine, MachineBounds};

use super::stored::Holder;

#[cfg(test)]
mod tests;

/// The bounds that a source keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpillBounds {
    /// Records of all the source's streams that may wait for streams that refuse them.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Default for SpillBounds {
    /// A million records, 256 MiB.
    fn default() -> Self {
        Self { records: 1_000_000, bytes: 256 * 1024 * 1024 }
    }
}

/// How a failure is waited out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It may be over soon: the source or storage does not answer.
    Passing,
    /// Somebody must do something: looked at again from time to time.
    Standing,
}

/// What is told to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// The source's entry was read: whose term it is. `at_once`: take it over without waiting for its end, as a process does that
    /// has just begun.
    Observe { found: Option<(Epoch, Holder, Revision)>, at_once: bool },
    /// The term is this process's.
    Took { epoch: Epoch },
    /// The entry was written: a sign of life.
    Beat,
    /// A later epoch was seen.
    Fenced { current: Epoch },
    /// Records became durable: failures of before are over.
    Progress,
    /// It did not go on.
    Failed { failure: Failure, chance: u64 },
    /// Streams refuse so much of the next append.
    Spill { records: u64, bytes: u64 },
    /// The records that a stream refused, as they lie in the log.
    Spilled { table: Box<str>, records: u64, bytes: u64 },
    /// A stream refused what was kept for it, again.
    Refused { table: Box<str>, chance: u64 },
    /// A stream took the oldest records that were kept for it.
    Drained { table: Box<str>, records: u64, bytes: u64 },
}

/// What it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Outcome {
    /// Take the term with this epoch.
    Take(Epoch),
    /// The term is one's own still: go on.
    Hold,
    /// Somebody else has the term, until then unless they give a sign of life.
    StandBy(Moment),
    /// Try again then.
    RetryAt(Moment),
    /// Keep the records for the stream.
    Keep,
    /// There is no room: the source waits.
    Full,
    /// Noted.
    Done,
}

/// What waits for one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lag {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// When to try the stream again.
    pub(crate) retry_at: Moment,
    attempts: u32,
}

/// Back-off: at first, at most.
const PASSING: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
const STANDING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
const REFUSED: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The machine of one source.
#[derive(Debug, Clone)]
pub(crate) struct SourceMachine {
    bounds: SpillBounds,
    /// How long a holder may be silent.
    term: Duration,
    holder: Holder,
    /// Who has the term, as this process sees it: another's lease is renewed by each change of the entry.
    leases: LeaseMachine<()>,
    seen: Option<(Epoch, Revision)>,
    own: Option<Epoch>,
    attempts: u32,
    lags: BTreeMap<Box<str>, Lag>,
    spilled: Lag,
}

impl SourceMachine {
    pub(crate) fn new(holder: Holder, term: Duration, bounds: SpillBounds) -> Self {
        Self {
            bounds,
            term,
            holder,
            leases: LeaseMachine::new(MachineBounds::default()),
            seen: None,
            own: None,
            attempts: 0,
            lags: BTreeMap::new(),
            spilled: Lag::default(),
        }
    }

    /// The streams that refuse, with what waits for them.
    pub(crate) fn lags(&self) -> &BTreeMap<Box<str>, Lag> {
        &self.lags
    }

    /// What waits for one stream.
    pub(crate) fn lag(&self, table: &str) -> Option<&Lag> {
        self.lags.get(table)
    }

    /// The stream that is due to be tried again first, and when.
    pub(crate) fn next_retry(&self) -> Option<(Moment, &str)> {
        self.lags.iter().map(|(table, lag)| (lag.retry_at, &**table)).min()
    }

    /// When to give a sign of life at the latest.
    pub(crate) fn beat_interval(&self) -> Duration {
        self.term / 3
    }

    pub(crate) fn apply(&mut self, now: Moment, command: Command) -> Outcome {
        match command {
            Command::Observe { found, at_once } => self.observe(now, found, at_once),
            Command::Took { epoch } => {
                self.own = Some(epoch);
                self.lease_to(now, epoch, self.holder);
                Outcome::Hold
            }
            Command::Beat => match self.own {
                Some(epoch) => {
                    let renew = lease::Command::Renew { resource: (), epoch, ttl: self.term };
                    let _ = self.leases.apply(now, renew);
                    Outcome::Hold
                }
                None => Outcome::Done,
            },
            Command::Fenced { current } => {
                if self.own.is_some_and(|own| own < current) {
                    self.own = None;
                }
                Outcome::Done
            }
            Command::Progress => {
                self.attempts = 0;
                Outcome::Done
            }
            Command::Failed { failure, chance } => {
                let bounds = match failure {
                    Failure::Passing => PASSING,
                    Failure::Standing => STANDING,
                };
                let wait = back_off(bounds, self.attempts, chance);
                self.attempts = self.attempts.saturating_add(1);
                Outcome::RetryAt(now.after(wait))
            }
            Command::Spill { records, bytes } => {
                let fits = self.spilled.records.saturating_add(records) <= self.bounds.records
                    && self.spilled.bytes.saturating_add(bytes) <= self.bounds.bytes;
                // Counted once they are durable; until then the room is theirs alone, because one append is made at a time.
                if fits { Outcome::Keep } else { Outcome::Full }
            }
            Command::Spilled { table, records, bytes } => {
                let lag = self.lags.entry(table).or_insert_with(|| Lag { retry_at: now, ..Lag::default() });
                if lag.records == 0 {
                    lag.retry_at = now.after(REFUSED.0);
                }
                lag.records += records;
                lag.bytes += bytes;
                self.spilled.records += records;
                self.spilled.bytes += bytes;
                Outcome::Done
            }
            Command::Refused { table, chance } => {
                let Some(lag) = self.lags.get_mut(&table) else { return Outcome::Done };
                lag.retry_at = now.after(back_off(REFUSED, lag.attempts, chance));
                lag.attempts = lag.attempts.saturating_add(1);
                Outcome::RetryAt(lag.retry_at)
            }
            Command::Drained { table, records, bytes } => {
                let Some(lag) = self.lags.get_mut(&table) else { return Outcome::Done };
                let (records, bytes) = (records.min(lag.records), bytes.min(lag.bytes));
                lag.records -= records;
                lag.bytes -= bytes;
                (lag.attempts, lag.retry_at) = (0, now);
                self.spilled.records -= records;
                self.spilled.bytes -= bytes;
                if lag.records == 0 {
                    self.spilled.bytes -= lag.bytes;
                    self.lags.remove(&table);
                }
                Outcome::Done
            }
        }
    }

    /// Forgets what waits for streams: it is read anew.
    pub(crate) fn forget_lags(&mut self) {
        self.lags.clear();
        self.spilled = Lag::default();
    }

    fn observe(&mut self, now: Moment, found: Option<(Epoch, Holder, Revision)>, at_once: bool) -> Outcome {
        let Some((epoch, holder, revision)) = found else { return Outcome::Take(Epoch::FIRST) };
        let take = epoch.next().map_or(Outcome::StandBy(Moment::NEVER), Outcome::Take);
        if holder == self.holder && self.own == Some(epoch) {
            return Outcome::Hold;
        }
        if at_once || holder == self.holder {
            return take;
        }
        if self.seen != Some((epoch, revision)) {
            self.seen = Some((epoch, revision));
            self.own = None;
            self.lease_to(now, epoch, holder);
        }
        match self.leases.find(now, &()) {
            Some(held) => Outcome::StandBy(held.expires_at),
            None => take,
        }
    }

    /// Notes who has the term, from now on for as long as one may be silent.
    fn lease_to(&mut self, now: Moment, epoch: Epoch, holder: Holder) {
        let floor = Epoch::new(epoch.get().saturating_sub(1));
        self.leases = LeaseMachine::above(MachineBounds::default(), floor);
        let holder = Owner { tenant: "".into(), subject: hex::encode(holder.0).into() };
        let _ = self.leases.apply(now, lease::Command::Acquire { resource: (), holder, ttl: self.term });
    }
}

/// Twice as long each time, up to a bound, of which a random part between the half and the whole (so that many that fail at one moment do
/// not come back at one moment).
fn back_off((first, most): (Duration, Duration), attempts: u32, chance: u64) -> Duration {
    let whole = first.saturating_mul(1 << attempts.min(16)).min(most);
    let half = whole / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_nanos(chance % nanos)
}
