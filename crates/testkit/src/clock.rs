//! A clock that moves only when a test moves it. It never reads the system's.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::time::{Clock, Moment, Timestamp};
use tokio::sync::watch;

use crate::wait::within;

/// A [`Clock`] for tests. Clones share one time. It starts one hour after its origin, as the system's clock does, and at
/// 2026-01-01T00:00:00Z for people.
#[derive(Debug, Clone)]
pub struct ManualClock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    time: watch::Sender<Time>,
    sleepers: watch::Sender<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Time {
    now: Moment,
    timestamp: Timestamp,
}

impl ManualClock {
    /// A clock that stands still.
    #[must_use]
    pub fn new() -> Self {
        let time = Time {
            now: Moment::since_origin(Duration::from_secs(3600)),
            timestamp: Timestamp::from_unix_ms(1_767_225_600_000),
        };
        Self { shared: Arc::new(Shared { time: watch::Sender::new(time), sleepers: watch::Sender::new(0) }) }
    }

    /// Moves both times forward and wakes every sleeper whose deadline is reached.
    pub fn advance(&self, by: Duration) {
        self.shared.time.send_modify(|time| {
            time.now = time.now.after(by);
            let by_ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            time.timestamp = Timestamp::from_unix_ms(time.timestamp.unix_ms().saturating_add(by_ms));
        });
    }

    /// Steps the time for people alone, as an operator or NTP does. Deadlines must not care.
    pub fn step_wall_clock(&self, to: Timestamp) {
        self.shared.time.send_modify(|time| time.timestamp = to);
    }

    /// How many sleep on this clock now.
    #[must_use]
    pub fn waiters(&self) -> usize {
        *self.shared.sleepers.borrow()
    }

    /// Waits until at least `count` sleep on this clock, so that a following [`advance`](Self::advance) reaches them.
    ///
    /// # Panics
    /// When it does not happen within the patience of a test.
    pub async fn wait_for_waiters(&self, count: usize) {
        let mut sleepers = self.shared.sleepers.subscribe();
        let enough = sleepers.wait_for(|sleepers| *sleepers >= count);
        within("sleepers on the manual clock", enough).await.expect("the clock holds the sender");
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts a sleeper for as long as its future lives.
struct Sleeper<'a>(&'a Shared);

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.0.sleepers.send_modify(|count| *count -= 1);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Moment {
        self.shared.time.borrow().now
    }

    fn timestamp(&self) -> Timestamp {
        self.shared.time.borrow().timestamp
    }

    async fn sleep_until(&self, deadline: Moment) {
        // Subscribed before it counts as a sleeper: an advance right after `wait_for_waiters` cannot be missed.
        let mut time = self.shared.time.subscribe();
        if time.borrow_and_update().now >= deadline {
            return;
        }
        self.shared.sleepers.send_modify(|count| *count += 1);
        let _sleeper = Sleeper(&self.shared);
        time.wait_for(|time| time.now >= deadline).await.expect("the clock holds the sender");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::block_on;

    #[test]
    fn a_sleeper_wakes_at_its_deadline_and_not_before() {
        block_on(async {
            let clock = ManualClock::new();
            let deadline = clock.now().after(Duration::from_millis(50));
            let sleeper = tokio::spawn({
                let clock = clock.clone();
                async move { clock.sleep_until(deadline).await }
            });
            clock.wait_for_waiters(1).await;
            clock.advance(Duration::from_millis(49));
            tokio::task::yield_now().await;
            assert!(!sleeper.is_finished());
            clock.advance(Duration::from_millis(1));
            within("the sleeper", sleeper).await.unwrap();
            assert_eq!(clock.waiters(), 0);
        });
    }

    #[test]
    fn a_dropped_sleeper_is_no_longer_counted() {
        block_on(async {
            let clock = ManualClock::new();
            let sleep = clock.sleep_until(Moment::NEVER);
            let mut sleep = Box::pin(sleep);
            assert!(futures::poll!(&mut sleep).is_pending());
            assert_eq!(clock.waiters(), 1);
            drop(sleep);
            assert_eq!(clock.waiters(), 0);
        });
    }

    #[test]
    fn a_step_of_the_wall_clock_moves_no_deadline() {
        let clock = ManualClock::new();
        let now = clock.now();
        clock.step_wall_clock(Timestamp::from_unix_ms(0));
        assert_eq!(clock.now(), now);
        assert_eq!(clock.timestamp(), Timestamp::from_unix_ms(0));
    }
}
