//! Any sequence of swaps against a small model of the entries.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tidegate_core::port::{CompareAndSwap, MetaEntry, MetaRange, MetaStore, Revision, Swap, SwapOutcome};

use super::model::cases;
use super::*;
use crate::wait::block_on;

#[derive(Debug, Clone)]
enum Command {
    Swap(Vec<(u8, Expected, Change)>),
    Scan { prefix: Vec<u8>, from: Vec<u8>, limit: usize },
    Reopen,
}

#[derive(Debug, Clone, Copy)]
enum Expected {
    Right,
    Absent,
    Before,
}

#[derive(Debug, Clone)]
enum Change {
    Put(Vec<u8>),
    Delete,
    Check,
}

/// Keys that begin with one another, and with the greatest byte.
fn key(number: u8) -> Bytes {
    let keys: [&[u8]; 8] = [b"a", b"a\0", b"a\0b", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"];
    Bytes::from_static(keys[usize::from(number)])
}

fn command() -> impl Strategy<Value = Command> {
    let expected = prop_oneof![12 => Just(Expected::Right), 1 => Just(Expected::Absent), 1 => Just(Expected::Before)];
    let change = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..4).prop_map(Change::Put),
        2 => Just(Change::Delete),
        1 => Just(Change::Check),
    ];
    let keys = proptest::sample::subsequence((0..8).collect::<Vec<u8>>(), 0..5).prop_shuffle();
    let swaps = keys.prop_flat_map(move |keys| {
        let each = proptest::collection::vec((expected.clone(), change.clone()), keys.len());
        each.prop_map(move |each| {
            keys.iter().zip(each).map(|(key, (expected, change))| (*key, expected, change)).collect()
        })
    });
    let bytes = || proptest::collection::vec(prop_oneof![Just(0), Just(b'a'), Just(b'b'), Just(0xff)], 0..3);
    prop_oneof![
        12 => swaps.prop_map(Command::Swap),
        6 => (bytes(), bytes(), 0..6_usize).prop_map(|(prefix, from, limit)| Command::Scan { prefix, from, limit }),
        1 => Just(Command::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<Bytes, (Bytes, Revision)>,
    /// The greatest revision that each key ever had.
    greatest: BTreeMap<Bytes, Revision>,
}

impl Model {
    fn entry(&self, key: &Bytes) -> Option<MetaEntry> {
        let (value, revision) = self.entries.get(key)?;
        Some(MetaEntry { key: key.clone(), value: Some(value.clone()), revision: *revision })
    }

    fn scan(&self, range: &MetaRange) -> Vec<MetaEntry> {
        let keys = self.entries.keys().filter(|key| key.starts_with(&range.prefix) && **key >= range.from);
        keys.take(range.limit).filter_map(|key| self.entry(key)).collect()
    }

    async fn swap(&mut self, meta: &impl MetaStore, swaps: Vec<(u8, Expected, Change)>) {
        let swaps: Vec<CompareAndSwap> = swaps
            .into_iter()
            .map(|(number, expected, change)| {
                let key = key(number);
                let current = self.entries.get(&key).map(|(_, revision)| *revision);
                let expected = match expected {
                    Expected::Right => current,
                    Expected::Absent => None,
                    Expected::Before => Some(Revision(current.map_or(1, |revision| revision.0 - 1))),
                };
                let swap = match change {
                    Change::Put(value) => Swap::Put(value.into()),
                    Change::Delete => Swap::Delete,
                    Change::Check => Swap::Check,
                };
                CompareAndSwap { key, expected, swap }
            })
            .collect();
        let holds = |swap: &CompareAndSwap| self.entries.get(&swap.key).map(|(_, revision)| *revision) == swap.expected;
        match try_swap(meta, swaps.clone()).await {
            SwapOutcome::Mismatch { index, current } => {
                assert!(!holds(&swaps[index]), "the condition of {index} holds: {swaps:?}");
                assert_eq!(current, self.entry(&swaps[index].key));
            }
            SwapOutcome::Swapped(revisions) => {
                assert!(swaps.iter().all(holds), "a condition does not hold: {swaps:?}");
                assert_eq!(revisions.len(), swaps.len());
                for (CompareAndSwap { key, swap, .. }, revision) in swaps.into_iter().zip(revisions) {
                    match swap {
                        Swap::Put(value) => {
                            self.entries.insert(key.clone(), (value, revision));
                        }
                        Swap::Delete => {
                            self.entries.remove(&key);
                        }
                        _ => continue,
                    }
                    let before = self.greatest.insert(key, revision);
                    assert!(before.is_none_or(|before| before < revision), "{revision:?} after {before:?}");
                }
            }
        }
    }
}

/// Puts, deletions and checks of several keys, scans and reopening in any order.
pub fn any_swaps_leave_what_the_model_of_the_entries_says<W: StoreWorld>() {
    let commands = proptest::collection::vec(command(), 1..50);
    let outcome = TestRunner::new(cases(W::CASES)).run(&commands, |commands| {
        block_on(async {
            let mut world = W::fresh().await;
            let mut model = Model::default();
            for command in commands.into_iter().chain([Command::Reopen]) {
                match command {
                    Command::Swap(swaps) => model.swap(&*world.store(), swaps).await,
                    Command::Scan { prefix, from, limit } => {
                        let range = MetaRange { prefix: prefix.into(), from: from.into(), limit };
                        let scanned = world.store().scan(range.clone()).await.expect("a scan is answered");
                        assert_eq!(scanned, model.scan(&range), "{range:?}");
                    }
                    Command::Reopen => {
                        world = world.reopen().await;
                        let all = MetaRange { prefix: Bytes::new(), from: Bytes::new(), limit: 100 };
                        let scanned = world.store().scan(all.clone()).await.expect("a scan is answered");
                        assert_eq!(scanned, model.scan(&all));
                    }
                }
            }
        });
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
