//! Time as a value: a monotonic [`Moment`] for deadlines, a UTC [`Timestamp`] for people. Nothing here reads a clock.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// A point on a clock that only goes forward, in nanoseconds since that clock's origin. Leases and time-outs are
/// measured on it, so that a step of the wall clock neither ends nor prolongs one. It holds 584 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Moment(u64);

impl Moment {
    /// The clock's origin.
    pub const ORIGIN: Self = Self(0);
    /// A moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment this long after the origin; [`Self::NEVER`] where it does not fit.
    #[must_use]
    pub fn since_origin(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    /// The moment `duration` later; [`Self::NEVER`] where it does not fit.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A UTC time in milliseconds since 1970, written as RFC 3339 (`2026-11-21T10:00:00.000Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

/// A text that is not an RFC 3339 time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time such as 2026-11-21T10:00:00.000Z")]
pub struct MalformedTimestamp;

impl Timestamp {
    /// The time this many milliseconds after 1970-01-01T00:00:00Z (before it, if negative).
    #[must_use]
    pub const fn from_unix_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn unix_ms(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339; below milliseconds it is cut.
    pub fn parse(text: &str) -> Result<Self, MalformedTimestamp> {
        let parsed: jiff::Timestamp = text.parse().map_err(|_| MalformedTimestamp)?;
        Ok(Self(parsed.as_millisecond()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            // Outside the years -9999 to 9999 RFC 3339 has no form: say the number rather than a wrong time.
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The port to time. A test's clock moves only when it is told to.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Now, for deadlines. Never goes back.
    fn now(&self) -> Moment;
    /// Now, for people. May step.
    fn timestamp(&self) -> Timestamp;
    /// Waits until `deadline` is reached; returns at once if it was. Dropping the future is free.
    async fn sleep_until(&self, deadline: Moment);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_rfc_3339_utc_with_milliseconds() {
        let time = Timestamp::from_unix_ms(1_795_255_200_007);
        assert_eq!(time.to_string(), "2026-11-21T10:00:00.007Z");
        assert_eq!(Timestamp::parse("2026-11-21T11:00:00.0079+01:00"), Ok(time));
        assert!(Timestamp::parse("yesterday").is_err());
        assert_eq!(Timestamp::from_unix_ms(i64::MAX).to_string(), "9223372036854775807ms");
    }

    #[test]
    fn a_moment_saturates_instead_of_wrapping() {
        assert_eq!(Moment::since_origin(Duration::MAX), Moment::NEVER);
        assert_eq!(Moment::NEVER.after(Duration::from_secs(1)), Moment::NEVER);
        assert_eq!(Moment::ORIGIN.saturating_since(Moment::NEVER), Duration::ZERO);
    }
}
