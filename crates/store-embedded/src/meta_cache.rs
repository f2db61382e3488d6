//! Metadata in memory: the entries used lately, and who watches which prefix. It never holds more than its bounds, whatever
//! a watcher leaves lying.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tidegate_core::port::{MetaEntry, Revision};
use tokio::sync::Notify;

use crate::config::{META_CACHE_BYTES, META_CACHE_ENTRIES, WATCH_MAX_BYTES, WATCH_MAX_ENTRIES};
use crate::engine::MetaValue;

/// Entries that were read or written lately. Whoever inserts sees to it that nothing newer is there: the writer inserts
/// what it shows, a reader only what it read of the view that is shown.
#[derive(Debug)]
pub(crate) struct MetaCache {
    entries: LruCache<Bytes, MetaValue>,
    bytes: usize,
}

impl MetaCache {
    pub(crate) fn new() -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0 }
    }

    pub(crate) fn get(&mut self, key: &[u8]) -> Option<MetaValue> {
        self.entries.get(key).cloned()
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        if let Some(old) = self.entries.pop(key) {
            self.bytes -= key.len() + old.value.len();
        }
    }

    pub(crate) fn insert(&mut self, key: Bytes, value: MetaValue) {
        self.remove(&key);
        self.bytes += key.len() + value.value.len();
        self.entries.put(key, value);
        while self.bytes > META_CACHE_BYTES || self.entries.len() > META_CACHE_ENTRIES {
            let Some((key, value)) = self.entries.pop_lru() else { break };
            self.bytes -= key.len() + value.value.len();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

/// Who watches which prefix.
#[derive(Debug, Default)]
pub(crate) struct MetaWatchers {
    by_prefix: Mutex<Watchers>,
}

#[derive(Debug, Default)]
struct Watchers {
    by_prefix: HashMap<Bytes, Vec<Weak<Waiting>>>,
    /// The lengths of the prefixes, so that a key finds its watchers without asking each.
    lengths: BTreeSet<usize>,
    inserted: usize,
    ended: bool,
}

/// What waits for one watcher.
#[derive(Debug)]
pub(crate) struct Waiting {
    prefix: Bytes,
    state: Mutex<WaitingState>,
    woken: Notify,
}

#[derive(Debug, Default)]
struct WaitingState {
    order: VecDeque<Bytes>,
    entries: HashMap<Bytes, (Revision, Option<Bytes>)>,
    bytes: usize,
    /// More changed than is kept: the prefix must be read anew.
    overflowed: bool,
    ended: bool,
}

/// What a watcher gets next.
#[derive(Debug)]
pub(crate) enum Next {
    Entry(MetaEntry),
    /// Read the whole prefix.
    Overflow,
    /// The store is closed.
    End,
}

impl MetaWatchers {
    pub(crate) fn watch(&self, prefix: Bytes) -> Arc<Waiting> {
        let waiting = Arc::new(Waiting { prefix: prefix.clone(), state: Mutex::default(), woken: Notify::new() });
        let mut watchers = self.by_prefix.lock();
        waiting.state.lock().ended = watchers.ended;
        watchers.inserted += 1;
        if watchers.inserted.is_multiple_of(256) {
            watchers.forget_ended();
        }
        watchers.lengths.insert(prefix.len());
        watchers.by_prefix.entry(prefix).or_default().push(Arc::downgrade(&waiting));
        waiting
    }

    /// Hands a change to whoever watches it.
    pub(crate) fn changed(&self, key: &Bytes, revision: Revision, value: Option<&Bytes>) {
        let watchers = self.by_prefix.lock();
        for length in watchers.lengths.range(..=key.len()) {
            let Some(waiting) = watchers.by_prefix.get(&key[..*length]) else { continue };
            for waiting in waiting.iter().filter_map(Weak::upgrade) {
                waiting.push(key, revision, value);
            }
        }
    }

    /// Makes every watcher read its prefix anew: after the database was opened again.
    pub(crate) fn overflow_all(&self) {
        for waiting in self.all() {
            waiting.state.lock().overflow();
            waiting.woken.notify_one();
        }
    }

    /// Ends every watch, and those that come.
    pub(crate) fn end(&self) {
        self.by_prefix.lock().ended = true;
        for waiting in self.all() {
            waiting.state.lock().ended = true;
            waiting.woken.notify_one();
        }
    }

    fn all(&self) -> Vec<Arc<Waiting>> {
        self.by_prefix.lock().by_prefix.values().flatten().filter_map(Weak::upgrade).collect()
    }
}

impl Watchers {
    fn forget_ended(&mut self) {
        self.by_prefix.retain(|_, waiting| {
            waiting.retain(|waiting| waiting.strong_count() > 0);
            !waiting.is_empty()
        });
        self.lengths = self.by_prefix.keys().map(Bytes::len).collect();
    }
}

impl WaitingState {
    /// Puts are found again by reading; what was deleted is not, so deletions are kept.
    fn overflow(&mut self) {
        self.overflowed = true;
        self.entries.retain(|_, (_, value)| value.is_none());
        self.order.retain(|key| self.entries.contains_key(key));
        self.bytes = self.order.iter().map(Bytes::len).sum();
    }
}

impl Waiting {
    pub(crate) fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    fn push(&self, key: &Bytes, revision: Revision, value: Option<&Bytes>) {
        let mut state = self.state.lock();
        if let Some((_, old)) = state.entries.remove(key) {
            state.bytes -= key.len() + old.map_or(0, |old| old.len());
        } else {
            state.order.push_back(key.clone());
        }
        if state.overflowed && value.is_some() {
            // It will be read with its whole prefix.
            state.order.retain(|queued| queued != key);
        } else {
            state.bytes += key.len() + value.map_or(0, Bytes::len);
            state.entries.insert(key.clone(), (revision, value.cloned()));
        }
        let full = |state: &WaitingState| state.entries.len() > WATCH_MAX_ENTRIES || state.bytes > WATCH_MAX_BYTES;
        if full(&state) {
            state.overflow();
            if full(&state) {
                // So many deletions that they cannot be told one by one: whoever watches begins anew.
                *state = WaitingState { ended: true, ..WaitingState::default() };
            }
        }
        drop(state);
        self.woken.notify_one();
    }

    /// Waits for what is next.
    pub(crate) async fn next(&self) -> Next {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(key) = state.order.pop_front() {
                    let Some((revision, value)) = state.entries.remove(&key) else { continue };
                    state.bytes -= key.len() + value.as_ref().map_or(0, Bytes::len);
                    return Next::Entry(MetaEntry { key, value, revision });
                }
                if state.overflowed {
                    state.overflowed = false;
                    return Next::Overflow;
                }
                if state.ended {
                    return Next::End;
                }
            }
            self.woken.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_testkit::block_on;

    #[test]
    fn a_watcher_that_sleeps_costs_no_more_than_its_bound_and_hears_of_everything() {
        block_on(async {
            let watchers = MetaWatchers::default();
            let waiting = watchers.watch(Bytes::from_static(b"a/"));
            let key = |number: usize| Bytes::from(format!("a/{number}"));
            watchers.changed(&key(0), Revision(1), None);
            for number in 0..10 * WATCH_MAX_ENTRIES {
                watchers.changed(&key(number % 5_000 + 1), Revision(2), Some(&Bytes::from_static(b"v")));
                assert!(waiting.state.lock().order.len() <= WATCH_MAX_ENTRIES + 1);
            }
            watchers.changed(&Bytes::from_static(b"b"), Revision(3), None);
            let Next::Entry(deleted) = waiting.next().await else { panic!("a deletion is not found by reading") };
            assert_eq!((deleted.key, deleted.value), (key(0), None));
            assert!(matches!(waiting.next().await, Next::Overflow));
            watchers.changed(&key(7), Revision(4), None);
            assert!(matches!(waiting.next().await, Next::Entry(entry) if entry.revision == Revision(4)));
            for number in 0..=WATCH_MAX_ENTRIES {
                watchers.changed(&key(number), Revision(5), None);
            }
            assert!(matches!(waiting.next().await, Next::End), "deletions beyond the bound end the watch");
        });
    }

    #[test]
    fn the_cache_keeps_its_bytes() {
        let mut cache = MetaCache::new();
        let value = |len| MetaValue { revision: Revision(1), value: Bytes::from(vec![0; len]) };
        for number in 0..10_u8 {
            cache.insert(Bytes::from(vec![number]), value(META_CACHE_BYTES / 4));
        }
        assert!(cache.bytes <= META_CACHE_BYTES && cache.entries.len() == 3);
        cache.remove(&[9]);
        cache.insert(Bytes::from_static(b"k"), value(1));
        cache.insert(Bytes::from_static(b"k"), value(3));
        assert_eq!(
            cache.bytes,
            4 + cache
                .entries
                .iter()
                .filter(|(k, _)| k.len() == 1 && k[0] != b'k')
                .map(|(_, v)| 1 + v.value.len())
                .sum::<usize>()
        );
        cache.clear();
        assert_eq!(cache.bytes, 0);
    }
}
