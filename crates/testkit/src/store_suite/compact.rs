//! Promises about key compaction: the newest of each key stays, tombstones for their grace, and gaps tell what went.

use tidegate_core::port::{AppendRecord, ChangeLog, Compaction, LogReadItem, LogSpec, Retention, StreamId, Trim};
use tidegate_core::position::GapReason::{Compaction as Compacted, Retention as Retained, Trim as Trimmed};
use tidegate_core::position::{Offset, Partition};

use super::*;

const GRACE_MS: u64 = 1_000;

fn compacted(partitions: u32) -> LogSpec {
    LogSpec { compaction: Some(Compaction { tombstone_grace_ms: GRACE_MS }), ..keep_all(partitions) }
}

async fn with<W: StoreWorld>(spec: &LogSpec, records: Vec<AppendRecord>) -> (W, StreamId) {
    let world = W::fresh().await;
    let id = stream("s");
    create(&*world.store(), &id, spec).await;
    append_to(&world, &id, records).await;
    (world, id)
}

/// Offsets, commits and times stay; what has no key stays.
pub async fn compaction_keeps_the_newest_record_of_each_key<W: StoreWorld>() {
    let first = vec![keyed("a", "a1"), keyed("b", "b1"), record("plain"), keyed("a", "a2"), keyed("a", "a3")];
    let (world, id) = with::<W>(&compacted(1), first).await;
    let log = world.store();
    later(&world, 5);
    append_to(&world, &id, vec![keyed("c", "c1"), keyed("b", "b2"), record("plain")]).await;
    let before = whole(&*log, &id, P0, Offset(2)).await;
    world.maintain().await;
    let items = whole(&*log, &id, P0, Offset::ZERO).await;
    let expected = [
        Seen::Gap(0, 2, Compacted),
        seen(2, "plain"),
        Seen::Gap(3, 4, Compacted),
        seen(4, "a3"),
        seen(5, "c1"),
        seen(6, "b2"),
        seen(7, "plain"),
    ];
    assert_eq!(brief(&items), expected);
    for item in items.iter().filter(|item| matches!(item, LogReadItem::Record { .. })) {
        assert!(before.contains(item), "what stays is as it was: {item:?}");
    }
    assert_eq!(append_to(&world, &id, vec![keyed("a", "a4")]).await.base, Offset(8));
    world.maintain().await;
    let again = contents(&*log, &id).await;
    assert_eq!(again[2], Seen::Gap(3, 5, Compacted), "the gap grew by the record that was replaced");
    assert_eq!(again.last(), Some(&seen(8, "a4")));
}

/// Equal bytes are the same key, in one partition; the empty key is one.
pub async fn compaction_goes_by_the_bytes_of_the_key_in_one_partition<W: StoreWorld>() {
    let all = vec![keyed("", "0"), keyed("1", "1"), keyed("\"1\"", "2"), keyed("1 ", "3"), keyed("", "4"), record("5")];
    let (world, id) = with::<W>(&compacted(2), all).await;
    let log = world.store();
    append(&*log, batch(&world, &id, [(1, vec![keyed("1", "other")])])).await;
    world.maintain().await;
    let expected = [Seen::Gap(0, 1, Compacted), seen(1, "1"), seen(2, "2"), seen(3, "3"), seen(4, "4"), seen(5, "5")];
    assert_eq!(contents(&*log, &id).await, expected);
    assert_eq!(texts(&*log, &id, Partition(1)).await, ["other"]);
}

/// A reader in time learns that the key is gone; then the tombstone goes too.
pub async fn a_tombstone_stays_for_its_grace<W: StoreWorld>() {
    let (world, id) = with::<W>(&compacted(1), vec![keyed("a", "a1"), record("plain"), tombstone("a")]).await;
    let log = world.store();
    let stays = [Seen::Gap(0, 1, Compacted), seen(1, "plain"), seen(2, "a is gone")];
    for wait in [0, GRACE_MS - 1] {
        later(&world, wait);
        world.maintain().await;
        assert_eq!(contents(&*log, &id).await, stays);
    }
    later(&world, 2);
    world.maintain().await;
    let gone = [Seen::Gap(0, 1, Compacted), seen(1, "plain"), Seen::Gap(2, 3, Compacted)];
    assert_eq!(contents(&*log, &id).await, gone);
    assert_eq!(bounds(&*log, &id).await.next, Offset(3));
    assert_eq!(append_to(&world, &id, vec![keyed("a", "a2")]).await.base, Offset(3));
}

/// A key that came back is not lost with its tombstone.
pub async fn a_record_after_a_tombstone_stays<W: StoreWorld>() {
    let all = vec![keyed("a", "a1"), tombstone("a"), keyed("a", "a2"), tombstone("b")];
    let (world, id) = with::<W>(&compacted(1), all).await;
    let log = world.store();
    later(&world, GRACE_MS * 10);
    world.maintain().await;
    let expected = [Seen::Gap(0, 2, Compacted), seen(2, "a2"), Seen::Gap(3, 4, Compacted)];
    assert_eq!(contents(&*log, &id).await, expected);
    let mut keyless = tombstone("x");
    keyless.key = None;
    append_to(&world, &id, vec![keyless]).await;
    later(&world, GRACE_MS * 10);
    world.maintain().await;
    assert_eq!(contents(&*log, &id).await.last(), Some(&seen(4, "x is gone")), "what has no key stays");
}

/// A stream that does not compact keeps every record of a key.
pub async fn without_compaction_keys_mean_nothing<W: StoreWorld>() {
    let all = vec![keyed("a", "a1"), keyed("a", "a2"), tombstone("a")];
    let (world, id) = with::<W>(&keep_all(1), all).await;
    later(&world, GRACE_MS * 10);
    world.maintain().await;
    assert_eq!(texts(&*world.store(), &id, P0).await, ["a1", "a2", "a is gone"]);
}

/// Trim, retention and compaction in one partition: each offset has its reason.
pub async fn gaps_of_every_kind_stand_in_their_places<W: StoreWorld>() {
    let retention = Retention { age_ms: Some(5_000), ..Retention::default() };
    let (world, id) = with::<W>(&LogSpec { retention, ..compacted(1) }, records("r", 4)).await;
    let log = world.store();
    let trim = Trim::Before { partition: P0, before: Offset(2) };
    log.trim(&id, trim).await.expect("a trim is answered");
    later(&world, 5_001);
    world.maintain().await;
    // Now 0 and 1 are trimmed, 2 and 3 were too old.
    let all = vec![record("r4"), keyed("a", "a5"), keyed("a", "a6"), keyed("b", "b7"), keyed("a", "a8"), record("r9")];
    append_to(&world, &id, all).await;
    world.maintain().await;
    let expected = [
        Seen::Gap(0, 2, Trimmed),
        Seen::Gap(2, 4, Retained),
        seen(4, "r4"),
        Seen::Gap(5, 7, Compacted),
        seen(7, "b7"),
        seen(8, "a8"),
        seen(9, "r9"),
    ];
    assert_eq!(contents(&*log, &id).await, expected);
    for from in 0..10 {
        let items = brief(&whole(&*log, &id, P0, Offset(from)).await);
        let rest: Vec<_> = expected
            .iter()
            .filter_map(|item| match item {
                Seen::Gap(_, to, reason) if *to > from => Some((*to, Some(*reason))),
                Seen::Record(at, _) if *at >= from => Some((*at, None)),
                _ => None,
            })
            .collect();
        let found: Vec<_> = items
            .iter()
            .map(|item| match item {
                Seen::Gap(_, to, reason) => (*to, Some(*reason)),
                Seen::Record(at, _) => (*at, None),
            })
            .collect();
        assert_eq!(found, rest, "from {from}");
    }
}
