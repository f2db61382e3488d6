//! Watermarks of many partitions as one: the least of those that are not idle, which never goes back. Pure; time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_core::position::Partition;
use tidegate_core::{Moment, Timestamp};

/// What to do with a record whose event time is before the watermark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LatePolicy {
    /// It is left out, and counted in the checkpoint's counts as `late`.
    #[default]
    Drop,
    /// It is given to the operator like any other, and counted as `late`.
    Take,
    /// The job stops.
    Fail,
}

/// How watermarks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatermarkSpec {
    /// How much later than a record an earlier one of the same partition may come.
    pub disorder: Duration,
    /// A partition that gave nothing for so long holds nobody up.
    pub idle_after: Duration,
    /// What becomes of late records.
    pub late: LatePolicy,
}

impl Default for WatermarkSpec {
    /// In order within 1 s, idle after 30 s, late records are left out.
    fn default() -> Self {
        Self { disorder: Duration::from_secs(1), idle_after: Duration::from_secs(30), late: LatePolicy::Drop }
    }
}

/// The watermark of a set of partitions.
#[derive(Debug, Clone)]
pub struct Watermarks {
    spec: WatermarkSpec,
    partitions: BTreeMap<Partition, Progress>,
    combined: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    reached: Option<Timestamp>,
    heard_at: Moment,
    ended: bool,
}

impl Watermarks {
    /// Of these partitions, from `combined` on, which a checkpoint kept.
    #[must_use]
    pub fn new(
        spec: WatermarkSpec,
        partitions: impl IntoIterator<Item = Partition>,
        combined: Option<Timestamp>,
        now: Moment,
    ) -> Self {
        let fresh = Progress { reached: None, heard_at: now, ended: false };
        Self { spec, partitions: partitions.into_iter().map(|partition| (partition, fresh)).collect(), combined }
    }

    /// A record of a partition came. True = it is late.
    pub fn record(&mut self, now: Moment, partition: Partition, time: Timestamp) -> bool {
        let disorder_ms = i64::try_from(self.spec.disorder.as_millis()).unwrap_or(i64::MAX);
        let reached = Timestamp::from_unix_ms(time.unix_ms().saturating_sub(disorder_ms));
        if let Some(progress) = self.partitions.get_mut(&partition) {
            progress.reached = progress.reached.max(Some(reached));
            progress.heard_at = progress.heard_at.max(now);
        }
        self.combined.is_some_and(|watermark| time < watermark)
    }

    /// A partition has ended: it holds nobody up any more.
    pub fn ended(&mut self, partition: Partition) {
        if let Some(progress) = self.partitions.get_mut(&partition) {
            progress.ended = true;
        }
    }

    /// The watermark, if it has moved on. When all partitions are idle or at their end it stands still: what would move it is not known.
    pub fn advance(&mut self, now: Moment) -> Option<Timestamp> {
        let idle = |progress: &Progress| now.saturating_since(progress.heard_at) >= self.spec.idle_after;
        let active = self.partitions.values().filter(|progress| !progress.ended && !idle(progress));
        let least = active.map(|progress| progress.reached).min()??;
        if self.combined.is_some_and(|combined| least <= combined) {
            return None;
        }
        self.combined = Some(least);
        self.combined
    }

    /// Where it is.
    #[must_use]
    pub fn current(&self) -> Option<Timestamp> {
        self.combined
    }

    /// When the next partition becomes idle, if nothing comes.
    #[must_use]
    pub fn next_idle(&self, now: Moment) -> Option<Moment> {
        let active = self.partitions.values().filter(|progress| !progress.ended);
        active.map(|progress| progress.heard_at.after(self.spec.idle_after)).filter(|idle| *idle > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Moment {
        Moment::since_origin(Duration::from_millis(ms))
    }

    fn time(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    fn two() -> Watermarks {
        let spec = WatermarkSpec {
            disorder: Duration::from_millis(10),
            idle_after: Duration::from_millis(100),
            ..WatermarkSpec::default()
        };
        Watermarks::new(spec, [Partition(0), Partition(1)], None, at(0))
    }

    #[test]
    fn the_slowest_partition_holds_the_watermark_until_it_is_idle() {
        let mut marks = two();
        assert!(!marks.record(at(0), Partition(0), time(1_000)));
        assert_eq!(marks.advance(at(0)), None, "the other one has said nothing");
        marks.record(at(50), Partition(1), time(500));
        assert_eq!(marks.advance(at(50)), Some(time(490)));
        marks.record(at(60), Partition(0), time(2_000));
        assert_eq!(marks.advance(at(149)), None);
        assert_eq!(marks.advance(at(150)), Some(time(1_990)), "the other one is idle");
        assert!(marks.record(at(151), Partition(1), time(1_989)), "late now");
        assert!(!marks.record(at(151), Partition(1), time(1_990)));
        assert_eq!(marks.advance(at(152)), None);
        assert_eq!(marks.current(), Some(time(1_990)), "it never goes back");
        assert_eq!(marks.advance(at(10_000)), None, "all are idle");
    }

    proptest! {
        #[test]
        fn a_watermark_never_goes_back(records in proptest::collection::vec((0_u64..50, 0_u32..2, 0_i64..1_000), 0..200)) {
            let (mut marks, mut now, mut last) = (two(), 0, None);
            for (by, partition, event) in records {
                now += by;
                let late = marks.record(at(now), Partition(partition), time(event));
                prop_assert_eq!(late, last.is_some_and(|last| time(event) < last));
                if let Some(moved) = marks.advance(at(now)) {
                    prop_assert!(last.is_none_or(|last| moved > last));
                    last = Some(moved);
                }
            }
        }
    }
}
