//! Retention and compaction over restarts and in small steps.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tidegate_core::port::{AppendRecord, ChangeLog as _, Compaction, LogSpec, Retention, StreamId};
use tidegate_core::position::{GapReason, Offset};
use tidegate_core::time::Clock as _;
use tidegate_store_embedded::EmbeddedStore;
use tidegate_testkit::{ManualClock, block_on};

use super::world::{append, batch, config, maintain, read_all, record, spec, stream};

#[test]
fn retention_by_age_reaches_streams_that_nobody_touches_after_a_restart() {
    block_on(async {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let store = EmbeddedStore::open(config(folder.path(), &clock)).unwrap();
        let aged = LogSpec { retention: Retention { age_ms: Some(1_000), ..Retention::default() }, ..spec() };
        for number in 0..600 {
            let id = stream(&number.to_string());
            store.create(&id, &aged).await.unwrap();
            let mut batch = batch(&id, vec![record("x"); 3]);
            batch.streams[0].partitions[0].append_time = clock.timestamp();
            store.append(batch).await.unwrap();
        }
        store.close();
        clock.advance(Duration::from_millis(1_000));
        let store = EmbeddedStore::open(config(folder.path(), &clock)).unwrap();
        maintain(&store, &clock).await;
        assert_eq!(store.bounds(&stream("599")).await.unwrap()[0].earliest, Offset(0), "exactly as old as allowed");
        clock.advance(Duration::from_millis(1));
        maintain(&store, &clock).await;
        store.close();
        let store = EmbeddedStore::open(config(folder.path(), &clock)).unwrap();
        for number in 0..600 {
            let bounds = store.bounds(&stream(&number.to_string())).await.unwrap()[0];
            assert_eq!((bounds.earliest, bounds.next, bounds.bytes), (Offset(3), Offset(3), 0));
        }
        let (_, gaps) = read_all(&store, &stream("0"), 1).await.unwrap();
        assert_eq!((gaps.len(), gaps[0].to, gaps[0].reason), (1, Offset(3), GapReason::Retention));
        let mut young = batch(&stream("0"), vec![record("y")]);
        young.streams[0].partitions[0].append_time = clock.timestamp();
        young.streams[0].partitions[0].expected_next = Some(Offset(3));
        store.append(young).await.unwrap();
        let now = clock.timestamp();
        assert_eq!(store.maintain(now).unwrap().looked_at, 0, "nothing is due of what is empty or young");
    });
}

/// What a partition should hold: the newest record of each key, and every record without one.
fn expected(appended: &[AppendRecord]) -> Vec<(u64, Bytes)> {
    let keyed = appended.iter().enumerate().filter_map(|(offset, record)| Some((record.key.clone()?, offset)));
    let newest: HashMap<Bytes, usize> = keyed.collect();
    let kept = appended.iter().enumerate().filter(|(offset, record)| match &record.key {
        Some(key) => newest[key] == *offset && !record.tombstone,
        None => true,
    });
    kept.map(|(offset, record)| (offset as u64, record.bytes.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compaction_in_steps_over_restarts_ends_where_the_model_does(
        batches in prop::collection::vec(
            (prop::collection::vec((0_u8..12, any::<bool>(), 0_usize..4), 1..40), 0_u8..4), 1..40),
        large in 0_usize..3,
    ) {
        block_on(async {
            let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
            let open = || EmbeddedStore::open(config(folder.path(), &clock)).unwrap();
            let mut store = open();
            let id = stream("s");
            let compacted = LogSpec { compaction: Some(Compaction { tombstone_grace_ms: 0 }), ..spec() };
            store.create(&id, &compacted).await.unwrap();
            let mut appended: Vec<AppendRecord> = Vec::new();
            for (records, then) in batches {
                let records: Vec<AppendRecord> = records.into_iter().map(|(key, tombstone, len)| AppendRecord {
                    bytes: Bytes::from(vec![key; len * 10_usize.pow(u32::try_from(large).unwrap() * 2) + appended.len() % 7]),
                    key: (key > 1).then(|| Bytes::from(vec![key])),
                    tombstone: tombstone && key > 6,
                }).collect();
                assert_eq!(append(&store, &id, records.clone()).await, appended.len() as u64);
                appended.extend(records);
                match then {
                    0 => { store.maintain(clock.timestamp()).unwrap(); }
                    1 => { store.close(); store = open(); }
                    _ => {}
                }
                // At any time: the newest of each key is there, and all is told.
                let (found, gaps) = read_all(&store, &id, 0).await.unwrap();
                assert!(gaps.iter().all(|gap| gap.reason == GapReason::Compaction));
                let found: HashMap<u64, Bytes> = found.into_iter().collect();
                for (offset, bytes) in expected(&appended) {
                    assert_eq!(found.get(&offset), Some(&bytes));
                }
                for (offset, bytes) in found {
                    assert_eq!(appended[usize::try_from(offset).unwrap()].bytes, bytes);
                }
            }
            clock.advance(Duration::from_secs(3_600));
            maintain(&store, &clock).await;
            for _ in 0..2 {
                let (found, _) = read_all(&store, &id, 0).await.unwrap();
                assert_eq!(found, expected(&appended));
                let bounds = store.bounds(&id).await.unwrap()[0];
                assert_eq!(bounds.bytes, found.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
                assert_eq!(bounds.earliest.0, found.first().map_or(appended.len() as u64, |(offset, _)| *offset));
                store.close();
                store = open();
            }
        });
    }

    #[test]
    fn retention_that_passes_a_compaction_on_its_way_takes_nothing_that_is_kept(
        steps in prop::collection::vec((prop::collection::vec(0_u8..8, 1..4), 0_u8..12), 20..90),
        kept in 3_u64..14,
        step_max_chunks in 1_usize..5,
    ) {
        block_on(async {
            let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
            let open = || {
                let mut config = config(folder.path(), &clock);
                config.step_max_chunks = step_max_chunks;
                EmbeddedStore::open(config).unwrap()
            };
            let mut store = open();
            let id = stream("s");
            let compacted = LogSpec {
                compaction: Some(Compaction { tombstone_grace_ms: 0 }),
                retention: Retention { records: Some(kept), ..Retention::default() },
                ..spec()
            };
            store.create(&id, &compacted).await.unwrap();
            let mut appended: Vec<AppendRecord> = Vec::new();
            for (keys, then) in steps {
                let records: Vec<AppendRecord> = keys.into_iter().map(|key| AppendRecord {
                    bytes: Bytes::from(vec![key; appended.len() % 7]),
                    key: (key > 1).then(|| Bytes::from(vec![key])),
                    tombstone: false,
                }).collect();
                assert_eq!(append(&store, &id, records.clone()).await, appended.len() as u64);
                appended.extend(records);
                match then {
                    0..5 => { store.maintain(clock.timestamp()).unwrap(); }
                    5 => { store.close(); store = open(); }
                    6 => maintain(&store, &clock).await,
                    7 => clock.advance(Duration::from_secs(61)),
                    _ => {}
                }
                whole(&store, &id, &appended).await;
            }
            clock.advance(Duration::from_secs(3_600));
            maintain(&store, &clock).await;
            whole(&store, &id, &appended).await;
            store.close();
            whole(&open(), &id, &appended).await;
        });
    }
}

/// Everything from the floor on is there that is the newest of its key, as it was appended, and the bounds say what is there.
async fn whole(store: &EmbeddedStore, id: &StreamId, appended: &[AppendRecord]) {
    let bounds = store.bounds(id).await.unwrap()[0];
    assert!(bounds.earliest <= bounds.next && bounds.next.0 == appended.len() as u64, "{bounds:?}");
    let (found, _) = read_all(store, id, 0).await.unwrap();
    assert!(found.first().is_none_or(|(offset, _)| *offset == bounds.earliest.0), "the floor stands on a record");
    assert_eq!(bounds.bytes, found.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    let found: HashMap<u64, Bytes> = found.into_iter().collect();
    for (offset, bytes) in expected(appended).iter().filter(|(offset, _)| *offset >= bounds.earliest.0) {
        assert_eq!(found.get(offset), Some(bytes), "{offset} of {bounds:?}");
    }
    for (offset, bytes) in &found {
        assert_eq!(appended[usize::try_from(*offset).unwrap()].bytes, bytes);
    }
}
