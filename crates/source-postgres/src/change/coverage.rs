//! Which keys of a table were copied in which snapshot. Keys are the texts that PostgreSQL prints, ordered as the copy's ORDER BY
//! orders them: integers by number, all else byte by byte. It never guesses a collation.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// The texts of a row's key columns.
pub(crate) type Key = Vec<Box<str>>;

/// How a key column is ordered, here and in the copy's ORDER BY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// By number: `smallint`, `integer`, `bigint`, `oid`.
    Integer,
    /// By the bytes of the text.
    Bytes,
}

/// Compares two keys.
pub(crate) fn compare<A: AsRef<str>, B: AsRef<str>>(order: &[Order], left: &[A], right: &[B]) -> Ordering {
    for ((order, left), right) in order.iter().zip(left).zip(right) {
        let (left, right) = (left.as_ref(), right.as_ref());
        let by_bytes = || left.as_bytes().cmp(right.as_bytes());
        let ordering = match order {
            Order::Integer => match (left.parse::<i64>(), right.parse::<i64>()) {
                (Ok(left), Ok(right)) => left.cmp(&right),
                _ => by_bytes(),
            },
            Order::Bytes => by_bytes(),
        };
        if ordering.is_ne() {
            return ordering;
        }
    }
    Ordering::Equal
}

/// The keys after `after` up to and including `to`, copied in one snapshot. `None` = without an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Interval {
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<Key>,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<Key>,
    /// An index into the snapshots of the copy.
    #[serde(rename = "s")]
    pub(crate) snapshot: usize,
}

/// What was copied of a table: disjoint intervals in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Coverage(pub(crate) Vec<Interval>);

impl Coverage {
    /// The snapshot in which the row of this key was copied; `None` = not yet.
    pub(crate) fn snapshot_of(&self, order: &[Order], key: &[&str]) -> Option<usize> {
        let at = self.0.partition_point(|interval| {
            interval.to.as_ref().is_some_and(|to| compare(order, to.as_slice(), key).is_lt())
        });
        let interval = self.0.get(at)?;
        let inside = interval.after.as_ref().is_none_or(|after| compare(order, after.as_slice(), key).is_lt());
        inside.then_some(interval.snapshot)
    }

    /// Notes that the keys after `after` up to `to` were copied. They were not before.
    pub(crate) fn add(&mut self, order: &[Order], added: Interval) {
        let at = self.0.partition_point(|interval| match (&interval.after, &added.after) {
            (None, _) => added.after.is_some(),
            (Some(_), None) => false,
            (Some(one), Some(other)) => compare(order, one.as_slice(), other.as_slice()).is_lt(),
        });
        self.0.insert(at, added);
        self.join(at + 1);
        self.join(at);
    }

    /// Makes one of the interval at `at` and the one before it, where nothing lies between.
    fn join(&mut self, at: usize) {
        if at == 0 || at >= self.0.len() {
            return;
        }
        let (before, after) = (&self.0[at - 1], &self.0[at]);
        if before.snapshot == after.snapshot && before.to.is_some() && before.to == after.after {
            let removed = self.0.remove(at);
            self.0[at - 1].to = removed.to;
        }
    }

    /// What was not copied yet, each as (after, to).
    pub(crate) fn gaps(&self) -> Vec<(Option<Key>, Option<Key>)> {
        let mut gaps = Vec::new();
        let mut from = None;
        for interval in &self.0 {
            if interval.after != from {
                gaps.push((from, interval.after.clone()));
            }
            match &interval.to {
                Some(to) => from = Some(to.clone()),
                None => return gaps,
            }
        }
        gaps.push((from, None));
        gaps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: i64) -> Key {
        vec![number.to_string().into()]
    }

    proptest! {
        #[test]
        fn every_key_is_in_the_snapshot_that_copied_it_and_gaps_are_what_is_left(
            steps in proptest::collection::vec((0usize..4, 1i64..30, 0usize..3), 0..30)
        ) {
            const ORDER: &[Order] = &[Order::Integer];
            let (mut coverage, mut model) = (Coverage::default(), std::collections::HashMap::new());
            for (gap, length, snapshot) in steps {
                let gaps = coverage.gaps();
                let Some((after, to)) = gaps.get(gap).cloned() else { continue };
                let first = after.as_ref().map_or(-50, |key| key[0].parse::<i64>().unwrap());
                let last = to.as_ref().map_or(100, |key| key[0].parse::<i64>().unwrap());
                let end = first + length;
                let upto = if end >= last { to } else { Some(key(end)) };
                for value in first + 1..=end.min(last) {
                    model.insert(value, snapshot);
                }
                if upto.is_none() {
                    model.extend((first + 1..=150).map(|value| (value, snapshot)));
                }
                if after.is_none() {
                    model.extend((-60..=first).map(|value| (value, snapshot)));
                }
                coverage.add(ORDER, Interval { after, to: upto, snapshot });
            }
            for value in -60i64..150 {
                let text = value.to_string();
                let expected = model.get(&value).copied();
                prop_assert_eq!(coverage.snapshot_of(ORDER, &[&text]), expected, "{} {:?}", value, &coverage);
                let in_gap = coverage.gaps().iter().any(|(after, to)| {
                    after.as_ref().is_none_or(|after| compare(ORDER, after.as_slice(), &[&text]).is_lt())
                        && to.as_ref().is_none_or(|to| compare(ORDER, to.as_slice(), &[&text]).is_ge())
                });
                prop_assert_eq!(in_gap, expected.is_none());
            }
            for pair in coverage.0.windows(2) {
                prop_assert!(pair[0].snapshot != pair[1].snapshot || pair[0].to != pair[1].after, "not joined");
            }
        }
    }

    #[test]
    fn numbers_are_ordered_by_value_and_texts_by_bytes() {
        assert!(compare(&[Order::Integer], &["9"], &["10"]).is_lt());
        assert!(compare(&[Order::Bytes], &["9"], &["10"]).is_gt());
        assert!(compare(&[Order::Bytes], &["Z"], &["a"]).is_lt());
        assert!(compare(&[Order::Integer, Order::Bytes], &["-1", "ü"], &["-1", "z"]).is_gt());
    }

    #[test]
    fn a_table_without_a_key_is_one_interval() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.gaps(), [(None, None)]);
        coverage.add(&[], Interval { after: None, to: None, snapshot: 3 });
        assert_eq!(coverage.snapshot_of(&[], &[]), Some(3));
        assert_eq!(coverage.gaps(), []);
    }
}
