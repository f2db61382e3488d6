//! Late records: right at the boundary.

use tidegate_cdc::{LatePolicy, NewRecord, Selection, StreamSpec};
use tidegate_core::Timestamp;
use tidegate_testkit::block_on;

use crate::world::{World, message, name, spec};

fn at(ms: i64) -> NewRecord {
    NewRecord { event_time: Some(Timestamp::from_unix_ms(ms)), ..message(ms) }
}

#[test]
fn a_record_before_the_watermark_is_dropped_and_told_and_one_at_it_is_kept() {
    block_on(async {
        let world = World::new();
        world.create("s", StreamSpec { late: LatePolicy::Drop, ..spec(1) }).await;
        // Records of one request do not make one another late.
        let first = world.publish("s", vec![at(100), at(50)]).await;
        assert_eq!((first.count, first.late.len()), (2, 0));
        let second = world.publish("s", vec![at(99), at(100), at(101), message(7)]).await;
        assert_eq!(second.count, 3);
        let late = second.late[0];
        assert_eq!((late.index, late.event_time.unix_ms(), late.watermark.unix_ms()), (0, 99, 100));
        let all_late = world.publish("s", vec![at(1)]).await;
        assert_eq!((all_late.count, all_late.late.len()), (0, 1));
        assert_eq!(world.values("s", Selection::All).await, ["100", "50", "100", "101", "7"]);
        let described = world.restarted().describe(&world.ann, &name("s")).await.unwrap();
        assert_eq!(described.watermarks.unwrap()[0].unwrap().unix_ms(), 101);
    });
}

#[test]
fn many_publishers_at_one_time_never_let_a_late_record_in() {
    block_on(async {
        let world = World::new();
        world.create("s", StreamSpec { late: LatePolicy::Drop, ..spec(1) }).await;
        let all = futures::future::join_all((0..50).map(|n| world.publish("s", vec![at((n * 7) % 50)]))).await;
        let values = world.values("s", Selection::All).await;
        let times: Vec<i64> = values.iter().map(|value| value.parse().unwrap()).collect();
        assert!(times.is_sorted(), "{times:?}");
        let dropped: usize = all.iter().map(|one| one.late.len()).sum();
        assert_eq!(times.len() + dropped, 50);
    });
}

#[test]
fn a_stream_that_allows_late_records_keeps_them_all() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        world.publish("s", vec![at(100)]).await;
        assert!(world.publish("s", vec![at(1)]).await.late.is_empty());
        assert_eq!(world.values("s", Selection::All).await, ["100", "1"]);
    });
}
