//! Which checkpoints are kept, by count and age. Pure: no store, no clock. It never lets go of the newest one or of a savepoint.

use std::time::Duration;

use tidegate_core::Timestamp;

use crate::manifest::{KEPT_MAX, Parent};

/// How many checkpoints are kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many are kept whatever their age; at least 1. A recovery can fall back so far and no further: with 1 a damaged
    /// checkpoint is the end, so take 2 or more.
    pub keep_last: usize,
    /// Beyond these, what is younger than this is kept. A clock for people that goes back makes nothing older.
    pub keep_for: Duration,
    /// No more than so many are kept, savepoints not counted; at most half of [`KEPT_MAX`].
    pub keep_max: usize,
}

impl Default for Retention {
    /// The newest 3 and nothing beyond them.
    fn default() -> Self {
        Self { keep_last: 3, keep_for: Duration::ZERO, keep_max: 64 }
    }
}

impl Retention {
    /// Which of the older checkpoints (newest first) are kept beside a newest one that is made `now`.
    #[must_use]
    pub fn keep(&self, older: &[Parent], now: Timestamp) -> Vec<Parent> {
        let last = self.keep_last.clamp(1, KEPT_MAX / 2);
        let max = self.keep_max.clamp(last, KEPT_MAX / 2);
        // The newest one is one of them.
        let mut counted = 1;
        let young = |parent: &Parent| {
            let age_ms = now.unix_ms().saturating_sub(parent.created.unix_ms());
            u128::try_from(age_ms).map_or(true, |age_ms| age_ms < self.keep_for.as_millis())
        };
        let keeps = |parent: &&Parent| {
            if parent.savepoint.is_some() {
                return true;
            }
            let keep = counted < last || (counted < max && young(parent));
            counted += usize::from(keep);
            keep
        };
        older.iter().filter(keeps).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, Generation};
    use proptest::prelude::*;
    use tidegate_core::id::{Epoch, Name};

    fn parent(generation: u64, created_ms: i64, savepoint: bool) -> Parent {
        Parent {
            generation: Generation(generation),
            epoch: Epoch::FIRST,
            digest: Digest::of(&generation.to_le_bytes()),
            created: Timestamp::from_unix_ms(created_ms),
            savepoint: savepoint.then(|| Name::new(format!("s{generation}")).unwrap()),
        }
    }

    fn generations(kept: &[Parent]) -> Vec<u64> {
        kept.iter().map(|parent| parent.generation.0).collect()
    }

    #[test]
    fn the_newest_are_kept_by_count_the_others_by_age_and_savepoints_always() {
        let older = [
            parent(9, 900, false),
            parent(8, 800, false),
            parent(7, 700, true),
            parent(6, 600, false),
            parent(5, 0, false),
        ];
        let now = Timestamp::from_unix_ms(1_000);
        let keep = |keep_last, keep_for_ms, keep_max| {
            let retention = Retention { keep_last, keep_for: Duration::from_millis(keep_for_ms), keep_max };
            generations(&retention.keep(&older, now))
        };
        assert_eq!(keep(1, 0, 64), [7]);
        assert_eq!(keep(0, 0, 0), [7], "the newest is kept whatever is asked for");
        assert_eq!(keep(3, 0, 64), [9, 8, 7]);
        assert_eq!(keep(1, 401, 64), [9, 8, 7, 6]);
        assert_eq!(keep(1, 401, 3), [9, 8, 7]);
        assert_eq!(keep(usize::MAX, 0, 0), [9, 8, 7, 6, 5]);
    }

    #[test]
    fn a_clock_that_went_back_makes_nothing_older() {
        let older = [parent(2, 5_000, false), parent(1, i64::MAX, false)];
        let retention = Retention { keep_last: 1, keep_for: Duration::from_millis(1), keep_max: 64 };
        assert_eq!(generations(&retention.keep(&older, Timestamp::from_unix_ms(i64::MIN))), [2, 1]);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_bounded_and_in_order(
            older in proptest::collection::vec((0_i64..100, any::<bool>()), 0..50),
            keep_last in 0_usize..10, keep_for in 0_u64..100, keep_max in 0_usize..20,
        ) {
            let older: Vec<_> = older.iter().enumerate()
                .map(|(at, (created, savepoint))| parent(1_000 - at as u64, *created, *savepoint)).collect();
            let retention = Retention { keep_last, keep_for: Duration::from_millis(keep_for), keep_max };
            let kept = retention.keep(&older, Timestamp::from_unix_ms(100));
            prop_assert!(kept.iter().filter(|parent| parent.savepoint.is_none()).count() < keep_max.max(keep_last).max(1));
            prop_assert!(generations(&kept).is_sorted_by(|a, b| a > b));
            prop_assert!(older.iter().filter(|parent| parent.savepoint.is_some()).all(|parent| kept.contains(parent)));
        }
    }
}
