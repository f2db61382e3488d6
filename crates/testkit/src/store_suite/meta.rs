//! Promises about entries: conditions, one step, revisions, scans.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use tidegate_core::port::{CompareAndSwap, Durability, MetaEntry, MetaRange, MetaStore, Revision, Swap, SwapOutcome};

use super::*;
use crate::wait::within;

async fn mismatches(meta: &impl MetaStore, one: CompareAndSwap) -> Option<Revision> {
    match try_swap(meta, vec![one]).await {
        SwapOutcome::Mismatch { index: 0, current } => current.map(|entry| entry.revision),
        other => panic!("the condition does not hold: {other:?}"),
    }
}

fn range(prefix: &[u8], from: &[u8], limit: usize) -> MetaRange {
    MetaRange { prefix: Bytes::copy_from_slice(prefix), from: Bytes::copy_from_slice(from), limit }
}

async fn scan(meta: &impl MetaStore, range: MetaRange) -> Vec<MetaEntry> {
    within("a scan", meta.scan(range)).await.expect("a scan is answered")
}

async fn keys(meta: &impl MetaStore, prefix: &[u8], from: &[u8], limit: usize) -> Vec<Bytes> {
    scan(meta, range(prefix, from, limit)).await.into_iter().map(|entry| entry.key).collect()
}

fn raw(key: &[u8], value: &[u8]) -> CompareAndSwap {
    let swap = Swap::Put(Bytes::copy_from_slice(value));
    CompareAndSwap { key: Bytes::copy_from_slice(key), expected: None, swap }
}

/// Absent or this revision, nothing else.
pub async fn a_put_needs_the_revision_that_it_expects<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    assert_eq!(mismatches(&*meta, put("k", Some(Revision(1)), "x")).await, None);
    let first = swap(&*meta, vec![put("k", None, "1")]).await[0];
    assert_eq!(mismatches(&*meta, put("k", None, "x")).await, Some(first));
    let second = swap(&*meta, vec![put("k", Some(first), "2")]).await[0];
    assert!(second > first);
    assert_eq!(mismatches(&*meta, put("k", Some(first), "x")).await, Some(second));
    assert_eq!(mismatches(&*meta, put("k", Some(Revision(u64::MAX)), "x")).await, Some(second));
    assert_eq!(value(&*meta, "k").await, Some(("2".into(), second)));
    let same = swap(&*meta, vec![put("k", Some(second), "2")]).await[0];
    assert!(same > second, "the same value again is a change too");
}

/// And afterwards the entry is absent.
pub async fn a_delete_needs_the_revision_that_it_expects<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let first = swap(&*meta, vec![put("k", None, "1")]).await[0];
    assert_eq!(mismatches(&*meta, delete("k", None)).await, Some(first));
    assert_eq!(mismatches(&*meta, delete("k", Some(Revision(first.0 + 1)))).await, Some(first));
    let deleted = swap(&*meta, vec![delete("k", Some(first))]).await[0];
    assert!(deleted > first);
    assert_eq!(value(&*meta, "k").await, None);
    assert!(keys(&*meta, b"", b"", 10).await.is_empty());
    assert_eq!(mismatches(&*meta, delete("k", Some(first))).await, None);
    assert_eq!(mismatches(&*meta, put("k", Some(deleted), "x")).await, None, "a deleted entry is absent");
}

/// It holds or not, and the entry stays as it was.
pub async fn a_check_changes_nothing<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let first = swap(&*meta, vec![put("k", None, "1")]).await[0];
    let checked = swap(&*meta, vec![check("k", Some(first)), check("absent", None)]).await;
    assert_eq!(checked.len(), 2, "one revision a swap");
    assert_eq!(checked[0], first, "what was not changed keeps its revision");
    assert_eq!(value(&*meta, "k").await, Some(("1".into(), first)));
    assert_eq!(value(&*meta, "absent").await, None);
    assert_eq!(mismatches(&*meta, check("k", None)).await, Some(first));
    assert_eq!(mismatches(&*meta, check("absent", Some(first))).await, None);
}

/// Not even after the entry was deleted and the store reopened.
pub async fn a_revision_never_comes_back<W: StoreWorld>() {
    let mut world = W::fresh().await;
    let mut last = Revision(0);
    for round in 0..4 {
        let meta = world.store();
        let put = swap(&*meta, vec![put("k", None, "v")]).await[0];
        assert!(put > last, "round {round}: {put:?} after {last:?}");
        let deleted = swap(&*meta, vec![delete("k", Some(put))]).await[0];
        assert!(deleted > put, "a deletion has a revision too");
        last = deleted;
        drop(meta);
        if round % 2 == 1 {
            world = world.reopen().await;
        }
    }
}

/// Which swap, and the entry as it is.
pub async fn a_mismatch_says_what_is_there_and_changes_nothing<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let revisions = swap(&*meta, vec![put("a", None, "1"), put("b", None, "2")]).await;
    let swaps = vec![put("a", Some(revisions[0]), "x"), delete("c", None), put("b", Some(revisions[0]), "x")];
    let SwapOutcome::Mismatch { index, current } = try_swap(&*meta, swaps).await else {
        panic!("the condition does not hold")
    };
    assert_eq!(index, 2);
    let there = MetaEntry { key: "b".into(), value: Some("2".into()), revision: revisions[1] };
    assert_eq!(current, Some(there));
    assert_eq!(value(&*meta, "a").await, Some(("1".into(), revisions[0])));
    assert_eq!(value(&*meta, "b").await, Some(("2".into(), revisions[1])));
}

/// All of them or none, whichever does not hold.
pub async fn swaps_of_several_keys_are_one_step<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let old = swap(&*meta, vec![put("a", None, "1"), put("b", None, "1")]).await;
    for bad in 0..3 {
        let mut swaps = vec![put("a", Some(old[0]), "x"), delete("b", Some(old[1])), put("c", None, "x")];
        swaps[bad].expected = Some(Revision(u64::MAX));
        assert!(matches!(try_swap(&*meta, swaps).await, SwapOutcome::Mismatch { index, .. } if index == bad));
        assert_eq!(value(&*meta, "a").await, Some(("1".into(), old[0])));
        assert_eq!(value(&*meta, "b").await, Some(("1".into(), old[1])));
        assert_eq!(value(&*meta, "c").await, None);
    }
    swap(&*meta, vec![put("a", Some(old[0]), "2"), delete("b", Some(old[1])), put("c", None, "2")]).await;
    assert_eq!(keys(&*meta, b"", b"", 10).await, ["a", "c"]);
    assert!(swap(&*meta, Vec::new()).await.is_empty(), "no swap is a step too");
}

/// The answer's revisions belong to the swaps one by one.
pub async fn revisions_come_in_the_order_of_the_swaps<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let swaps: Vec<_> = ["c", "a", "d", "b"].into_iter().map(|key| put(key, None, key)).collect();
    let revisions = swap(&*meta, swaps).await;
    for (key, revision) in ["c", "a", "d", "b"].into_iter().zip(revisions) {
        assert_eq!(value(&*meta, key).await, Some((key.into(), revision)));
    }
}

const BINARY: [&[u8]; 12] =
    [b"\0", b"\0\0", b"\0\xff", b"\x01", b"a", b"a\0", b"a\0b", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"];

/// Byte by byte, a key before what begins with it.
pub async fn a_scan_is_in_the_order_of_the_bytes<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let mut swaps: Vec<_> = BINARY.iter().map(|key| raw(key, key)).collect();
    swaps.reverse();
    let mut revisions = swap(&*meta, swaps).await;
    revisions.reverse();
    let entries = scan(&*meta, range(b"", b"", 100)).await;
    assert_eq!(entries.len(), BINARY.len());
    for ((entry, key), revision) in entries.iter().zip(BINARY).zip(revisions) {
        assert_eq!((&entry.key[..], entry.value.as_deref(), entry.revision), (key, Some(key), revision));
    }
}

/// And nothing else, where the prefix ends in 0xff too.
pub async fn a_scan_gives_what_has_the_prefix<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    swap(&*meta, BINARY.iter().map(|key| raw(key, b"v")).collect()).await;
    for prefix in BINARY.iter().copied().chain([&b"c"[..], b"a\xff\xff\xff", b"\xff\xff\xff"]) {
        let expected: Vec<_> = BINARY.iter().filter(|key| key.starts_with(prefix)).collect();
        assert_eq!(keys(&*meta, prefix, b"", 100).await, expected, "{prefix:?}");
        for from in BINARY {
            let expected: Vec<_> = expected.iter().copied().filter(|key| **key >= from).collect();
            assert_eq!(keys(&*meta, prefix, from, 100).await, expected, "{prefix:?} from {from:?}");
        }
    }
}

/// A page at a time gives the same as all at once.
pub async fn a_scan_is_bounded_and_goes_on<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    swap(&*meta, (0..100).map(|number| put(&format!("k{number:03}"), None, "v")).collect()).await;
    swap(&*meta, vec![put("j", None, "v"), put("l", None, "v")]).await;
    assert!(keys(&*meta, b"k", b"", 0).await.is_empty());
    assert_eq!(keys(&*meta, b"k", b"", usize::MAX).await.len(), 100);
    let (mut from, mut all) = (Vec::new(), Vec::new());
    loop {
        let page = keys(&*meta, b"k", &from, 7).await;
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        from = [last, &b"\0"[..]].concat();
        all.extend(page);
    }
    let expected: Vec<_> = (0..100).map(|number| format!("k{number:03}")).collect();
    assert_eq!(all, expected);
    assert!(keys(&*meta, b"k", b"l", 7).await.is_empty(), "beyond the prefix there is nothing");
    assert_eq!(keys(&*meta, b"k", b"k098", 7).await, ["k098", "k099"]);
}

/// And there is nothing in a new store.
pub async fn an_empty_prefix_is_everything<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    assert!(keys(&*meta, b"", b"", 10).await.is_empty());
    create(&*meta, &stream("s"), &keep_all(1)).await;
    assert!(keys(&*meta, b"", b"", 10).await.is_empty(), "a stream is no entry");
    swap(&*meta, vec![put("a", None, "v"), put("z", None, "v")]).await;
    assert_eq!(keys(&*meta, b"", b"", 10).await, ["a", "z"]);
    assert_eq!(keys(&*meta, b"", b"b", 10).await, ["z"]);
}

/// Every byte, and a value of none.
pub async fn keys_and_values_are_any_bytes<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let every: Vec<u8> = (0..=255).collect();
    swap(&*meta, vec![raw(&every, &every), raw(b"empty", b""), raw(&every[1..], b"other")]).await;
    let entry = meta.get(&every).await.expect("a get is answered").expect("it was put");
    assert_eq!((&entry.key[..], entry.value.as_deref()), (&every[..], Some(&every[..])));
    let entry = meta.get(b"empty").await.expect("a get is answered").expect("an empty value is a value");
    assert_eq!(entry.value.as_deref(), Some(&b""[..]));
    assert_eq!(meta.get(&every[..255]).await.expect("a get is answered"), None);
}

/// Whole.
pub async fn a_value_of_1_mib_comes_back<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let large: Vec<u8> = (0..1 << 20).map(|at: u32| (at * 31 + at / 4_099) as u8).collect();
    let outcome = meta.compare_and_swap(vec![raw(b"large", &large)], Durability::Os).await;
    assert!(matches!(outcome, Ok(SwapOutcome::Swapped(_))));
    let entry = meta.get(b"large").await.expect("a get is answered").expect("it was put");
    assert!(entry.value.as_deref() == Some(&large[..]), "not what was put");
}

/// Of 64 who expect the same, one; the others are told what it put.
pub async fn one_of_many_who_swap_wins<W: StoreWorld>() {
    let world = W::fresh().await;
    let mut expected = None;
    for round in 0..4 {
        let racers = (0..64).map(|task| {
            let meta = world.store();
            tokio::spawn(async move { try_swap(&*meta, vec![put("k", expected, &format!("{round}/{task}"))]).await })
        });
        let outcomes = within("the race", join_all(racers)).await;
        let (mut won, mut told) = (Vec::new(), BTreeSet::new());
        for (task, outcome) in outcomes.into_iter().enumerate() {
            match outcome.expect("no racer panics") {
                SwapOutcome::Swapped(revisions) => won.push((format!("{round}/{task}"), revisions[0])),
                SwapOutcome::Mismatch { current, .. } => {
                    told.insert(current.expect("there is an entry").revision);
                }
            }
        }
        assert_eq!(won.len(), 1, "one wins: {won:?}");
        assert_eq!(told.into_iter().collect::<Vec<_>>(), [won[0].1]);
        assert_eq!(value(&*world.store(), "k").await, Some(won[0].clone()));
        expected = Some(won[0].1);
    }
}

/// A counter that many raise by reading and swapping loses no raise.
pub async fn increments_of_many_are_all_counted<W: StoreWorld>() {
    let world = W::fresh().await;
    swap(&*world.store(), vec![put("counter", None, "0")]).await;
    let tasks = (0..16).map(|_| {
        let meta = world.store();
        tokio::spawn(async move {
            for _ in 0..8 {
                loop {
                    let (count, revision) = value(&*meta, "counter").await.expect("it is there");
                    let count: u64 = count.parse().expect("it is a number");
                    let raise = put("counter", Some(revision), &(count + 1).to_string());
                    if let SwapOutcome::Swapped(_) = try_swap(&*meta, vec![raise]).await {
                        break;
                    }
                }
            }
        })
    });
    for done in within("the counters", join_all(tasks)).await {
        done.expect("no counter panics");
    }
    assert_eq!(value(&*world.store(), "counter").await.map(|(count, _)| count).as_deref(), Some("128"));
}

/// Entries that are always swapped together are always scanned together.
pub async fn a_scan_never_sees_half_a_step<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let mut last = swap(&*meta, (0..8).map(|key| put(&format!("k{key}"), None, "0")).collect()).await;
    let scanner = tokio::spawn({
        let meta = Arc::clone(&meta);
        async move {
            loop {
                let entries = scan(&*meta, range(b"k", b"", 100)).await;
                let values: BTreeSet<_> = entries.iter().map(|entry| entry.value.clone()).collect();
                assert_eq!((entries.len(), values.len()), (8, 1), "half a step was seen: {values:?}");
                if values.contains(&Some("200".into())) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }
    });
    for step in 1..=200 {
        let swaps = (0..8).map(|key| put(&format!("k{key}"), Some(last[key]), &step.to_string()));
        last = swap(&*meta, swaps.collect()).await;
        tokio::task::yield_now().await;
    }
    within("the scanner", scanner).await.expect("no half step was seen");
}

/// Values and revisions are the same, and what was deleted stays so.
pub async fn reopened_entries_are_as_they_were<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let old = swap(&*meta, BINARY.iter().map(|key| raw(key, key)).collect()).await;
    let gone = CompareAndSwap { key: Bytes::from_static(b"b"), expected: Some(old[9]), swap: Swap::Delete };
    swap(&*meta, vec![gone, put("a", Some(old[4]), "new")]).await;
    let before = scan(&*meta, range(b"", b"", 100)).await;
    assert_eq!(before.len(), BINARY.len() - 1);
    drop(meta);
    let world = world.reopen().await;
    assert_eq!(scan(&*world.store(), range(b"", b"", 100)).await, before);
}
