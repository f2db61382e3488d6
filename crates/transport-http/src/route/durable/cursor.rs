//! Cursors: numbers that grow with time, which a client sends back so that its next question is another one to a cache. They say
//! nothing about a place in a stream.

use std::hash::{BuildHasher as _, RandomState};

use tidegate_core::Timestamp;

/// 2024-10-09T00:00:00Z, from which the protocol counts.
const EPOCH_S: i64 = 1_728_432_000;
/// How long a cursor is the same.
const INTERVAL_S: i64 = 20;
/// How far a client that is ahead is sent on at most: an hour.
const JITTER_MAX: u64 = 180;

/// The cursor after `given`, never at or below it.
pub(super) fn next(now: Timestamp, given: Option<u64>) -> u64 {
    let current = u64::try_from((now.unix_ms() / 1_000 - EPOCH_S) / INTERVAL_S).unwrap_or(0);
    match given {
        // Spread, so that clients that asked together do not ask together again.
        Some(given) if given >= current => given.saturating_add(1 + RandomState::new().hash_one(given) % JITTER_MAX),
        _ => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_never_goes_back() {
        let now = Timestamp::from_unix_ms((EPOCH_S + 100 * INTERVAL_S + 7) * 1_000);
        assert_eq!(next(now, None), 100);
        assert_eq!(next(now, Some(99)), 100);
        for given in [100, 101, 1_000_000] {
            let after = next(now, Some(given));
            assert!(after > given && after <= given + JITTER_MAX, "{given} {after}");
        }
        assert_eq!(next(Timestamp::from_unix_ms(0), None), 0);
    }
}
