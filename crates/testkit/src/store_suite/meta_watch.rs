//! Promises about watches of entries: never missed, newest state only.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tidegate_core::port::MetaEntry;

use super::*;
use crate::wait::within;

/// A deletion is an entry without a value, with the revision of its deletion.
pub async fn a_watch_tells_puts_and_deletes<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let mut early = watch_entries(&*meta, "k").await;
    let waiting = tokio::spawn(async move {
        let put = wait_for("a put", &mut early, |entry| entry.value.as_deref() == Some(b"1")).await;
        (put, early)
    });
    tokio::task::yield_now().await;
    let first = swap(&*meta, vec![put("k", None, "1")]).await[0];
    let (told, mut early) = within("the watcher", waiting).await.expect("the watcher does not panic");
    assert_eq!(told, Some(MetaEntry { key: "k".into(), value: Some("1".into()), revision: first }));
    let deleted = swap(&*meta, vec![delete("k", Some(first))]).await[0];
    let told = wait_for("a deletion", &mut early, |entry| entry.value.is_none()).await;
    assert_eq!(told, Some(MetaEntry { key: "k".into(), value: None, revision: deleted }));
    let again = swap(&*meta, vec![put("k", None, "2")]).await[0];
    let told = wait_for("a put", &mut early, |entry| entry.value.is_some()).await;
    assert_eq!(told, Some(MetaEntry { key: "k".into(), value: Some("2".into()), revision: again }));
}

/// And nothing of other entries; the empty prefix is everything.
pub async fn a_watch_tells_what_has_the_prefix<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let (mut some, mut all) = (watch_entries(&*meta, "a/").await, watch_entries(&*meta, "").await);
    swap(&*meta, vec![put("a", None, "x"), put("b/", None, "x"), put("a0", None, "x")]).await;
    swap(&*meta, vec![put("a/1", None, "x")]).await;
    swap(&*meta, vec![put("a/2", None, "x"), put("c", None, "x")]).await;
    let mut told = Vec::new();
    let last = wait_for("the last of the prefix", &mut some, |entry| {
        told.push(entry.key.clone());
        entry.key == "a/2"
    })
    .await;
    assert!(last.is_some());
    assert!(told.iter().all(|key| key.starts_with(b"a/")), "{told:?}");
    assert!(told.contains(&Bytes::from_static(b"a/1")), "{told:?}");
    let mut missing = vec!["a", "a/1", "a/2", "a0", "b/", "c"];
    let done = wait_for("all entries", &mut all, |entry| {
        missing.retain(|key| entry.key != key.as_bytes());
        missing.is_empty()
    })
    .await;
    assert!(done.is_some(), "{missing:?}");
}

/// A follower that looks and then waits ends at the newest value.
pub async fn who_watches_and_then_gets_misses_nothing<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let follower = tokio::spawn({
        let meta = Arc::clone(&meta);
        async move {
            let mut watch = watch_entries(&*meta, "k").await;
            while value(&*meta, "k").await.is_none_or(|(value, _)| value != "200") {
                watch.next().await.expect("a watch of entries goes on");
            }
        }
    });
    let mut last = None;
    for number in 1..=200 {
        last = Some(swap(&*meta, vec![put("k", last, &number.to_string())]).await[0]);
        tokio::task::yield_now().await;
    }
    within("the follower", follower).await.expect("the follower does not panic");
}

/// Each entry that changed, newest state, in a few looks.
pub async fn a_slow_watcher_of_entries_gets_the_newest_state<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    let mut slow = watch_entries(&*meta, "k").await;
    let mut last = [None; 4];
    for number in 0..100 {
        for (key, last) in last.iter_mut().enumerate() {
            *last = Some(swap(&*meta, vec![put(&format!("k{key}"), *last, &number.to_string())]).await[0]);
        }
    }
    let mut looks = 0;
    let mut missing: Vec<_> = (0..4).map(|key| (Bytes::from(format!("k{key}")), last[key])).collect();
    let done = wait_for("the newest state of every entry", &mut slow, |entry| {
        looks += 1;
        missing.retain(|newest| *newest != (entry.key.clone(), Some(entry.revision)));
        missing.is_empty()
    })
    .await;
    assert!(done.is_some(), "{missing:?}");
    assert!(looks <= 16, "{looks} looks for 4 entries");
}

/// State that an append carries is watched like any other.
pub async fn an_append_wakes_who_watches_its_state<W: StoreWorld>() {
    let world = W::fresh().await;
    let meta = world.store();
    create(&*meta, &stream("s"), &keep_all(1)).await;
    let mut watch = watch_entries(&*meta, "state").await;
    // It waits when the append comes: what it would find by looking later proves no wake.
    let waiting =
        tokio::spawn(
            async move { wait_for("the state", &mut watch, |entry| entry.value.as_deref() == Some(b"1")).await },
        );
    tokio::task::yield_now().await;
    let mut one = batch(&world, &stream("s"), [(0, records("r", 1))]);
    one.state = vec![put("state", None, "1")];
    append(&*meta, one).await;
    let told = within("the watcher", waiting).await.expect("the watcher does not panic");
    assert_eq!(told.map(|entry| entry.revision), value(&*meta, "state").await.map(|(_, revision)| revision));
}
