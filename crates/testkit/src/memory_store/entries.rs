//! The metadata entries of a store in memory, with one counter of revisions for all. It never gives a revision twice.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};
use tidegate_core::port::{AppendedRange, CompareAndSwap, MetaEntry, MetaRange, Revision, Swap, SwapOutcome};

/// Entries in key order, and the newest change of each key by revision, so that a watcher that slept finds what it missed
/// and nothing older.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: BTreeMap<Bytes, (Bytes, Revision)>,
    changes: BTreeMap<Revision, Bytes>,
    /// Deleted keys that a watcher may not have been told of.
    deleted: BTreeMap<Bytes, Revision>,
    revision: u64,
}

impl Entries {
    /// The newest revision.
    pub(super) fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<MetaEntry> {
        self.entries.get_key_value(key).map(|(key, (value, revision))| MetaEntry {
            key: key.clone(),
            value: Some(value.clone()),
            revision: *revision,
        })
    }

    pub(super) fn scan(&self, range: &MetaRange) -> Vec<MetaEntry> {
        let from = range.from.as_ref().max(range.prefix.as_ref());
        self.entries
            .range::<[u8], _>((Bound::Included(from), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&range.prefix))
            .take(range.limit)
            .map(|(key, (value, revision))| MetaEntry {
                key: key.clone(),
                value: Some(value.clone()),
                revision: *revision,
            })
            .collect()
    }

    /// The first swap whose condition does not hold, with what is there. A key that stands in the list twice does not hold
    /// the second time: what it should find there could not be told beforehand.
    pub(super) fn mismatch(&self, swaps: &[CompareAndSwap]) -> Option<(usize, Option<MetaEntry>)> {
        let mut seen = BTreeSet::new();
        swaps.iter().enumerate().find_map(|(index, swap)| {
            let current = self.get(&swap.key);
            let holds = current.as_ref().map(|entry| entry.revision) == swap.expected;
            (!seen.insert(&swap.key) || !holds).then_some((index, current))
        })
    }

    /// Makes the swaps, whose conditions were found to hold. `ranges` = where the records of the same append lie, `watched` =
    /// whether anybody must be told of deletions.
    pub(super) fn apply(
        &mut self,
        swaps: Vec<CompareAndSwap>,
        ranges: &[AppendedRange],
        watched: bool,
    ) -> Vec<Revision> {
        if !watched {
            for (_, revision) in std::mem::take(&mut self.deleted) {
                self.changes.remove(&revision);
            }
        }
        swaps
            .into_iter()
            .map(|CompareAndSwap { key, expected, swap }| match swap {
                Swap::Check => expected.unwrap_or(Revision(0)),
                Swap::Put(value) => self.put(key, value),
                Swap::PutWithRanges(value) => {
                    let mut value = BytesMut::from(value);
                    for range in ranges {
                        value.put_u32(range.partition.0);
                        value.put_u64(range.base.0);
                        value.put_u64(range.next.0);
                    }
                    self.put(key, value.freeze())
                }
                Swap::Delete => {
                    let revision = self.change(&key);
                    self.entries.remove(&key);
                    self.deleted.insert(key, revision);
                    revision
                }
            })
            .collect()
    }

    pub(super) fn compare_and_swap(&mut self, swaps: Vec<CompareAndSwap>, watched: bool) -> SwapOutcome {
        match self.mismatch(&swaps) {
            Some((index, current)) => SwapOutcome::Mismatch { index, current },
            None => SwapOutcome::Swapped(self.apply(swaps, &[], watched)),
        }
    }

    /// The oldest change after `seen` of a key with this prefix, in its newest state.
    pub(super) fn change_after(&self, seen: Revision, prefix: &[u8]) -> Option<MetaEntry> {
        let (revision, key) =
            self.changes.range((Bound::Excluded(seen), Bound::Unbounded)).find(|(_, key)| key.starts_with(prefix))?;
        let value = self.entries.get(key).map(|(value, _)| value.clone());
        Some(MetaEntry { key: key.clone(), value, revision: *revision })
    }

    /// How many changes are kept.
    #[cfg(test)]
    pub(super) fn kept_changes(&self) -> usize {
        self.changes.len()
    }

    fn put(&mut self, key: Bytes, value: Bytes) -> Revision {
        let revision = self.change(&key);
        self.entries.insert(key, (value, revision));
        revision
    }

    /// Draws a revision for a change of `key` and forgets the key's change before.
    fn change(&mut self, key: &Bytes) -> Revision {
        let before = self.entries.get(key).map(|(_, revision)| *revision).or_else(|| self.deleted.remove(key));
        if let Some(before) = before {
            self.changes.remove(&before);
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        self.changes.insert(revision, key.clone());
        revision
    }
}
