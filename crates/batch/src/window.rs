//! The adaptive window: how many operations run at one time, found from how long they take. It reads no clock, counts
//! nothing that runs, and never leaves `[1, max]`.
//!
//! The algorithm is TCP Vegas (Brakmo and Peterson, "TCP Vegas: End to End Congestion Avoidance on a Global Internet", 1995),
//! as Netflix's `concurrency-limits` uses it for services. From the least latency ever seen (`base`) and the least of one
//! round (`rtt`) it tells how many operations stand in a queue of the store's rather than being worked on:
//! `queue = in flight * (1 - base / rtt)`. Below `alpha` the window grows, above `beta` it shrinks, between them it stays. Least
//! values, not means, so that operations of unlike cost do not look like a queue.
//!
//! Two things are added. Every [`PROBE_ROUNDS`] rounds one round runs with half the window and measures `base` anew (BBR's
//! ProbeRTT), so that a store that became slower for good is not taken for a queue for ever. And where more than half of what is
//! in flight queues, or the store says that it is overloaded, the window is halved, once a round trip: each window that is smaller than
//! the one before begins an [era](Vegas::era), and what was begun in an earlier one tells nothing any more.

use std::time::Duration;

/// A round has as many samples as the window has places, and at least so many.
pub const ROUND_MIN_SAMPLES: u32 = 8;
/// After so many rounds one measures the latency without a queue anew, with half the window.
pub const PROBE_ROUNDS: u32 = 32;
/// What an executor begins with that has seen nothing yet; it doubles every round until it meets a queue.
pub const FIRST_WINDOW: u32 = 4;
/// Latencies are told apart no finer than this.
const LATENCY_MIN: Duration = Duration::from_micros(1);

/// What one operation that ended tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// It was served.
    Served {
        /// How long it took.
        latency: Duration,
        /// How many were in flight when it began, itself among them.
        in_flight: u32,
        /// Which [era](Vegas::era) it was when it began.
        era: u64,
    },
    /// The store refused it because it has too much to do.
    Overloaded {
        /// Which [era](Vegas::era) it was when it began.
        era: u64,
    },
}

/// What a window does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Doubles every round, until the first queue.
    Start,
    /// Moves by small steps.
    Steady,
    /// Runs with half the window.
    Probe,
}

/// The machine. [`apply`](Self::apply) takes what ended and gives the window from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vegas {
    max: u32,
    limit: u32,
    phase: Phase,
    base: Option<Duration>,
    round: Round,
    rounds: u32,
    /// How often the window has become smaller.
    era: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Round {
    samples: u32,
    least: Option<Duration>,
    in_flight: u32,
}

impl Vegas {
    /// A window of at most `max` places (at least one) that has seen nothing.
    #[must_use]
    pub fn new(max: u32) -> Self {
        Self {
            max: max.max(1),
            limit: FIRST_WINDOW,
            phase: Phase::Start,
            base: None,
            round: Round::default(),
            rounds: 0,
            era: 0,
        }
    }

    /// What was learnt, under another bound: the next batch has another reservation.
    #[must_use]
    pub fn with_max(mut self, max: u32) -> Self {
        self.max = max.max(1);
        self
    }

    /// How many may be in flight now: from 1 to the bound.
    #[must_use]
    pub fn limit(&self) -> u32 {
        let limit = if self.phase == Phase::Probe { self.limit / 2 } else { self.limit };
        limit.clamp(1, self.max)
    }

    /// How often the window has become smaller. Whoever begins an operation under a window notes it with that window: what was begun before
    /// it became smaller is refused by the same queue, or waited in it, and says nothing of the window that there is since.
    #[must_use]
    pub fn era(&self) -> u64 {
        self.era
    }

    /// The least latency that counts as one without a queue; `None` before the first round.
    #[must_use]
    pub fn base(&self) -> Option<Duration> {
        self.base
    }

    /// Takes what one operation told and gives the window from now on. Constant time.
    pub fn apply(&mut self, sample: Sample) -> u32 {
        match sample {
            // Once a round trip, as TCP does: all of a window may be refused at the same time.
            Sample::Overloaded { era } | Sample::Served { era, .. } if era != self.era => {}
            Sample::Overloaded { .. } => {
                self.shrink(self.limit() / 2);
                self.round = Round::default();
            }
            Sample::Served { latency, in_flight, .. } => self.served(latency.max(LATENCY_MIN), in_flight),
        }
        self.limit()
    }

    fn shrink(&mut self, limit: u32) {
        self.limit = limit.max(1);
        self.phase = Phase::Steady;
        self.era += 1;
    }

    fn served(&mut self, latency: Duration, in_flight: u32) {
        self.round.samples += 1;
        self.round.in_flight = self.round.in_flight.max(in_flight);
        let least = self.round.least.map_or(latency, |least| least.min(latency));
        self.round.least = Some(least);
        if self.round.samples >= self.limit().max(ROUND_MIN_SAMPLES) {
            let round = std::mem::take(&mut self.round);
            self.end_round(least, round.in_flight);
        }
    }

    fn end_round(&mut self, rtt: Duration, in_flight: u32) {
        if self.phase == Phase::Probe {
            self.base = Some(rtt);
            self.phase = Phase::Steady;
            return;
        }
        let base = self.base.map_or(rtt, |base| base.min(rtt));
        self.base = Some(base);
        let served = base.as_secs_f64() / rtt.as_secs_f64();
        let queue = f64::from(in_flight) * (1.0 - served);
        let limit = self.limit();
        let (alpha, beta, step) = thresholds(limit);
        // Who used not even half of the window learns nothing about a larger one.
        let used = in_flight.saturating_mul(2) >= limit;
        if queue > f64::from(beta) && queue * 2.0 > f64::from(in_flight) {
            self.shrink(limit / 2);
        } else if queue > f64::from(beta) {
            self.shrink(limit.saturating_sub(step));
        } else if queue > f64::from(alpha) {
            self.phase = Phase::Steady;
        } else if used {
            let grown = if self.phase == Phase::Start { limit.saturating_mul(2) } else { limit.saturating_add(step) };
            // A window that was learnt under a larger reservation is kept for the next one.
            self.limit = self.limit.max(grown.min(self.max));
        }
        self.rounds += 1;
        if self.rounds >= PROBE_ROUNDS && self.phase == Phase::Steady {
            self.rounds = 0;
            self.phase = Phase::Probe;
            self.era += 1;
        }
    }
}

/// `alpha`, `beta` and the step for a window of this size: Linux's 2, 4 and 1 for small ones, Netflix's multiples of the
/// decimal logarithm above.
fn thresholds(limit: u32) -> (u32, u32, u32) {
    let log = limit.checked_ilog10().unwrap_or(0);
    (2.max(3 * log), 4.max(6 * log), 1.max(log))
}

#[cfg(test)]
mod tests;
