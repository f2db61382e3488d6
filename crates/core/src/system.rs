//! The operating system's clock and randomness behind the ports. The only place in floors 0 to 3 that reads either.
#![allow(clippy::disallowed_methods, reason = "this module is what the ban points to")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

use crate::port::{Entropy, EntropyUnavailable};
use crate::time::{Clock, Moment, Timestamp};

/// The system's monotonic and wall clock; it sleeps on tokio's timer, so `sleep_until` needs a tokio runtime.
#[derive(Debug, Clone)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose origin is now.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Moment {
        // One hour, not zero, so that "an hour ago" can be expressed right after the start.
        Moment::since_origin(Duration::from_secs(3600) + self.origin.elapsed())
    }

    fn timestamp(&self) -> Timestamp {
        let ms = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        };
        Timestamp::from_unix_ms(ms)
    }

    async fn sleep_until(&self, deadline: Moment) {
        let wait = deadline.saturating_since(self.now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// The operating system's cryptographic randomness. There is no fallback: if it fails, the caller gets an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyUnavailable> {
        getrandom::fill(bytes).map_err(EntropyUnavailable::new)
    }
}
