//! Reading: exact records, exact gaps, one order for all partitions.

use tidegate_cdc::{NewRecord, ReadError, ReadFrom, Selection, StreamSpec};
use tidegate_core::port::{ReadBounds, Retention};
use tidegate_core::position::{Offset, Partition};
use tidegate_core::record::{Operation, Origin};
use tidegate_core::{Failure as _, Timestamp};
use tidegate_testkit::block_on;

use crate::world::{BOUNDS, World, document, keyed, message, name, placed, spec};

#[test]
fn a_record_comes_back_byte_for_byte_with_every_digit() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let record = NewRecord {
            operation: Operation::Update,
            key: Some("[9007199254740993,\"k\"]".into()),
            value: "{\"n\":18446744073709551617,\"t\":\"a\\u0000b\",\"e\":1e400}".into(),
            before: Some("null".into()),
            headers: Some("{\"h\":\"v\"}".into()),
            event_time: Some(Timestamp::from_unix_ms(1)),
            source: Some(Origin {
                position: tidegate_core::position::SourcePosition("0/16B3748".into()),
                transaction: "77".into(),
                index: 3,
            }),
            ..message(0)
        };
        world.publish("s", vec![record]).await;
        let lines = world.lines("s", Selection::All, ReadFrom::Earliest).await;
        let time = world.clock_time();
        assert_eq!(
            lines,
            [format!(
                "{{\"record\":{{\"partition\":0,\"offset\":0,\"op\":\"update\",\"key\":[9007199254740993,\"k\"],\
                 \"value\":{{\"n\":18446744073709551617,\"t\":\"a\\u0000b\",\"e\":1e400}},\"before\":null,\
                 \"headers\":{{\"h\":\"v\"}},\"event_time\":\"1970-01-01T00:00:00.001Z\",\"append_time\":\"{time}\",\
                 \"source\":{{\"index\":3,\"position\":\"0/16B3748\",\"tx\":\"77\"}}}}}}"
            )]
        );
    });
}

#[test]
fn records_of_one_key_stay_in_one_partition_and_typed_keys_differ() {
    block_on(async {
        let world = World::new();
        world.create("s", StreamSpec { compact_by_key: true, ..spec(8) }).await;
        for round in 0..3 {
            world.publish("s", vec![keyed("1", round), keyed("\"1\"", round + 10)]).await;
        }
        world.store.maintain(Timestamp::from_unix_ms(0));
        let values = world.values("s", Selection::All).await;
        // Whatever was compacted, the newest of either key is there: 1 and "1" never collide.
        assert!(values.contains(&"2".to_owned()) && values.contains(&"12".to_owned()), "{values:?}");
    });
}

#[test]
fn all_partitions_merge_in_the_order_of_their_appends_whatever_the_bounds() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(4)).await;
        let mut expected = Vec::new();
        for n in 0..200_u32 {
            let batch: Vec<_> = (0..=n % 3).map(|k| placed((n * 7 + k) % 4, n * 10 + k)).collect();
            let mut order: Vec<_> = (0..=n % 3).map(|k| ((n * 7 + k) % 4, (n * 10 + k).to_string())).collect();
            order.sort_by_key(|(partition, _)| *partition);
            expected.extend(order.into_iter().map(|(_, value)| value));
            world.publish("s", batch).await;
        }
        for bounds in [BOUNDS, ReadBounds { records: 1, bytes: 1 }, ReadBounds { records: 7, bytes: 1024 }] {
            let mut reader =
                world.streams.read(&world.ann, &name("s"), Selection::All, ReadFrom::Earliest, false).await.unwrap();
            let mut values = Vec::new();
            while let Some(segment) = reader.next(bounds).await.unwrap() {
                let text = String::from_utf8(segment.ndjson().to_vec()).unwrap();
                values.extend(text.lines().map(|line| document(line)["record"]["value"].to_string()));
            }
            assert_eq!(values, expected, "{bounds:?}");
        }
    });
}

#[test]
fn a_reader_of_all_partitions_goes_on_after_any_record_without_loss_or_repetition() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(3)).await;
        for n in 0..60_u32 {
            world.publish("s", (0..=n % 4).map(|k| placed((n + k * k) % 3, n * 10 + k)).collect()).await;
        }
        let all = world.lines("s", Selection::All, ReadFrom::Earliest).await;
        for (place, line) in all.iter().enumerate() {
            let record = &document(line)["record"];
            let partition = Partition(u32::try_from(record["partition"].as_u64().unwrap()).unwrap());
            let offset = Offset(record["offset"].as_u64().unwrap());
            let rest = world.lines("s", Selection::All, ReadFrom::After(partition, offset)).await;
            assert_eq!(rest, all[place + 1..], "after {partition:?} {offset:?}");
        }
    });
}

#[test]
fn what_retention_took_is_a_gap_with_exact_bounds() {
    block_on(async {
        let world = World::new();
        let retention = Retention { records: Some(3), ..Retention::default() };
        world.create("s", StreamSpec { retention, ..spec(1) }).await;
        for n in 0..10 {
            world.publish("s", vec![message(n)]).await;
        }
        let lines = world.lines("s", Selection::One(Partition(0)), ReadFrom::Offset(Offset(2))).await;
        assert_eq!(lines[0], r#"{"gap":{"partition":0,"from":2,"to":7,"reason":"retention"}}"#);
        assert_eq!(lines.len(), 4);
        assert_eq!(world.lines("s", Selection::All, ReadFrom::Earliest).await.len(), 3, "earliest begins behind it");
    });
}

#[test]
fn an_offset_beyond_the_tail_is_refused_with_the_bounds_and_one_at_it_is_the_tail() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        world.publish("s", vec![message(1)]).await;
        for asked in [2, 1 << 63, u64::MAX] {
            let from = ReadFrom::Offset(Offset(asked));
            let error = world.streams.read(&world.ann, &name("s"), Selection::All, from, false).await.unwrap_err();
            assert_eq!(error.code(), "offset_out_of_range");
            assert!(matches!(error, ReadError::OutOfRange { next: Offset(1), earliest: Offset(0), .. }));
        }
        assert!(world.lines("s", Selection::All, ReadFrom::Offset(Offset(1))).await.is_empty());
        let one = Selection::One(Partition(1));
        let error = world.streams.read(&world.ann, &name("s"), one, ReadFrom::Earliest, false).await.unwrap_err();
        assert_eq!(error.code(), "partition_not_found");
    });
}

#[test]
fn each_partition_has_an_earliest_offset_of_its_own() {
    block_on(async {
        let world = World::new();
        let retention = Retention { records: Some(2), ..Retention::default() };
        world.create("s", StreamSpec { retention, ..spec(3) }).await;
        for n in 0..5 {
            world.publish("s", vec![placed(0, n)]).await;
        }
        world.publish("s", vec![placed(1, 5)]).await;
        let described = world.streams.describe(&world.ann, &name("s")).await.unwrap();
        let bounds: Vec<_> = described.partitions.iter().map(|one| (one.earliest.0, one.next.0)).collect();
        assert_eq!(bounds, [(3, 5), (0, 1), (0, 0)]);
    });
}

#[test]
fn records_of_one_transaction_share_a_position_and_no_limit_loses_any() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let origin = |index| Origin {
            position: tidegate_core::position::SourcePosition("0/16B3748".into()),
            transaction: "9".into(),
            index,
        };
        let batch = (0..10).map(|index| NewRecord { source: Some(origin(index)), ..message(index) }).collect();
        world.publish("s", batch).await;
        for limit in 1..=11 {
            let read = world.streams.read(&world.ann, &name("s"), Selection::All, ReadFrom::Earliest, false).await;
            let mut reader = read.unwrap();
            let mut seen = 0;
            while let Some(segment) = reader.next(ReadBounds { records: limit, bytes: u64::MAX }).await.unwrap() {
                assert!(segment.items().len() <= limit as usize);
                seen += segment.items().len();
            }
            assert_eq!(seen, 10, "by {limit}");
        }
    });
}

#[test]
fn the_collection_is_part_of_the_key_that_compaction_goes_by() {
    block_on(async {
        let world = World::new();
        world.create("s", StreamSpec { compact_by_key: true, ..spec(1) }).await;
        let of = |collection: &str, value| NewRecord { collection: Some(collection.into()), ..keyed("1", value) };
        for round in 0..4 {
            world.publish("s", vec![of("users", round), of("orders", round + 10)]).await;
        }
        world.publish("s", vec![message(99)]).await;
        world.store.maintain(world.clock_time());
        let values = world.values("s", Selection::All).await;
        for kept in ["3", "13", "99"] {
            assert!(values.contains(&kept.to_owned()), "{kept} in {values:?}");
        }
        let lines = world.lines("s", Selection::All, ReadFrom::Offset(Offset(0))).await;
        assert!(lines.iter().any(|line| line.contains(r#""reason":"compaction""#)), "{lines:?}");
    });
}

#[test]
fn a_wall_clock_that_jumps_moves_no_offset_and_no_order() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        for (n, wall_ms) in [5_000, 1_000, 9_000, 0, 9_000].into_iter().enumerate() {
            world.clock.step_wall_clock(Timestamp::from_unix_ms(wall_ms));
            let published = world.publish("s", vec![message(n)]).await;
            assert_eq!(published.appended[0].base, Offset(n as u64));
        }
        let lines = world.lines("s", Selection::All, ReadFrom::Earliest).await;
        let times: Vec<String> = lines.iter().map(|line| document(line)["record"]["append_time"].to_string()).collect();
        assert!(times.is_sorted(), "an append time never goes back: {times:?}");
        assert_eq!(world.values("s", Selection::All).await, ["0", "1", "2", "3", "4"]);
    });
}
