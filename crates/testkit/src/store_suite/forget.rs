//! Promises about trims and retention: what goes, what stays, and the gaps that tell of it.

use tidegate_core::port::{ChangeLog, LogError, LogSpec, Retention, StreamId, Trim};
use tidegate_core::position::GapReason::{Retention as Retained, Trim as Trimmed};
use tidegate_core::position::{Offset, Partition};
use tidegate_core::time::Clock;

use super::*;

async fn trim_to(log: &impl ChangeLog, id: &StreamId, before: u64) {
    let trim = Trim::Before { partition: P0, before: Offset(before) };
    let answered = log.trim(id, trim).await.expect("a trim is answered");
    assert_eq!(answered, all_bounds(log, id).await, "a trim answers the bounds as they are afterwards");
}

async fn ten<W: StoreWorld>(spec: &LogSpec) -> (W, StreamId) {
    let world = W::fresh().await;
    let id = stream("s");
    create(&*world.store(), &id, spec).await;
    append_to(&world, &id, records("r", 4)).await;
    append_to(&world, &id, (4..10).map(|number| record(format!("r{number}"))).collect()).await;
    (world, id)
}

fn rest(from: u64, to: u64) -> Vec<Seen> {
    (from..to).map(|offset| seen(offset, format!("r{offset}"))).collect()
}

/// Inside a batch too; other partitions stay.
pub async fn a_trim_forgets_exactly_what_was_asked<W: StoreWorld>() {
    let (world, id) = ten::<W>(&keep_all(2)).await;
    let log = world.store();
    append(&*log, batch(&world, &id, [(1, records("other", 3))])).await;
    for before in [1, 3, 4, 7] {
        trim_to(&*log, &id, before).await;
        let of = bounds(&*log, &id).await;
        assert_eq!((of.earliest, of.next), (Offset(before), Offset(10)));
        let items = contents(&*log, &id).await;
        assert_eq!(items[0], Seen::Gap(0, before, Trimmed));
        assert_eq!(items[1..], rest(before, 10));
    }
    assert_eq!(texts(&*log, &id, Partition(1)).await, ["other0", "other1", "other2"]);
}

/// What is trimmed stays so.
pub async fn a_trim_never_goes_back<W: StoreWorld>() {
    let (world, id) = ten::<W>(&keep_all(1)).await;
    let log = world.store();
    trim_to(&*log, &id, 6).await;
    let before = bounds(&*log, &id).await;
    for back in [0, 1, 5, 6] {
        trim_to(&*log, &id, back).await;
        assert_eq!(bounds(&*log, &id).await, before);
    }
    assert_eq!(contents(&*log, &id).await[0], Seen::Gap(0, 6, Trimmed));
}

/// And forgets nothing.
pub async fn a_trim_beyond_the_tail_is_refused<W: StoreWorld>() {
    let (world, id) = ten::<W>(&keep_all(1)).await;
    let log = world.store();
    for before in [11, 1 << 63, u64::MAX] {
        let trim = Trim::Before { partition: P0, before: Offset(before) };
        match log.trim(&id, trim).await {
            Err(LogError::OutOfRange { asked, next }) => assert_eq!((asked, next), (Offset(before), Offset(10))),
            other => panic!("was not refused: {other:?}"),
        }
    }
    assert_eq!(contents(&*log, &id).await, rest(0, 10));
}

/// The next record goes on at the tail.
pub async fn a_trim_of_everything_leaves_the_tail<W: StoreWorld>() {
    let (world, id) = ten::<W>(&keep_all(1)).await;
    let log = world.store();
    trim_to(&*log, &id, 10).await;
    let of = bounds(&*log, &id).await;
    assert_eq!((of.earliest, of.next, of.bytes), (Offset(10), Offset(10), 0));
    assert_eq!(contents(&*log, &id).await, [Seen::Gap(0, 10, Trimmed)]);
    assert_eq!(append_to(&world, &id, records("new", 1)).await.base, Offset(10));
    assert_eq!(contents(&*log, &id).await, [Seen::Gap(0, 10, Trimmed), seen(10, "new0")]);
}

/// From where the reader is to where records are again.
pub async fn a_reader_inside_a_gap_gets_the_rest_of_it<W: StoreWorld>() {
    let (world, id) = ten::<W>(&keep_all(1)).await;
    let log = world.store();
    trim_to(&*log, &id, 6).await;
    for from in 0..6 {
        let items = brief(&whole(&*log, &id, P0, Offset(from)).await);
        assert_eq!(items[0], Seen::Gap(from, 6, Trimmed));
        assert_eq!(items[1..], rest(6, 10));
    }
}

/// Exactly so many, after each append, a partition for itself.
pub async fn retention_keeps_the_newest_records<W: StoreWorld>() {
    let retention = Retention { records: Some(3), ..Retention::default() };
    let (world, id) = ten::<W>(&LogSpec { retention, ..keep_all(2) }).await;
    let log = world.store();
    assert_eq!(contents(&*log, &id).await, [vec![Seen::Gap(0, 7, Retained)], rest(7, 10)].concat());
    assert_eq!(bounds(&*log, &id).await.earliest, Offset(7));
    append(&*log, batch(&world, &id, [(1, records("other", 3))])).await;
    assert_eq!(bounds(&*log, &id).await.earliest, Offset(7), "another partition's records do not count");
    append_to(&world, &id, vec![record("r10")]).await;
    assert_eq!(contents(&*log, &id).await, [vec![Seen::Gap(0, 8, Retained)], rest(8, 11)].concat());
    assert_eq!(texts(&*log, &id, Partition(1)).await.len(), 3);
}

/// At most so many bytes as the store counts them, the newest, and not far fewer.
pub async fn retention_keeps_at_most_the_bytes<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    let retention = Retention { bytes: Some(10_000), ..Retention::default() };
    create(&*log, &id, &LogSpec { retention, ..keep_all(1) }).await;
    for number in 0..40 {
        append_to(&world, &id, vec![record(vec![number; 1_000])]).await;
        let of = bounds(&*log, &id).await;
        assert!(of.bytes <= 10_000, "{of:?}");
        let kept = of.next.0 - of.earliest.0;
        assert!(kept <= 10, "{kept} records of 1,000 bytes are more than 10,000");
        assert!(kept >= 8.min(u64::from(number) + 1), "{kept} records of 1,000 bytes are far fewer than 10,000");
    }
    let earliest = bounds(&*log, &id).await.earliest;
    let items = contents(&*log, &id).await;
    assert_eq!(items[0], Seen::Gap(0, earliest.0, Retained));
    assert_eq!(items[1], seen(earliest.0, vec![earliest.0 as u8; 1_000]));
}

/// As of the clock: what is exactly as old as allowed stays.
pub async fn retention_forgets_what_is_too_old<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    let retention = Retention { age_ms: Some(1_000), ..Retention::default() };
    create(&*log, &id, &LogSpec { retention, ..keep_all(1) }).await;
    for number in 0..3 {
        append_to(&world, &id, vec![record(format!("r{number}"))]).await;
        later(&world, 400);
    }
    // r0 is 1,200 ms old, r1 800, r2 400.
    append_to(&world, &id, vec![record("r3")]).await;
    assert_eq!(contents(&*log, &id).await, [vec![Seen::Gap(0, 1, Retained)], rest(1, 4)].concat());
    later(&world, 200);
    append_to(&world, &id, vec![record("r4")]).await;
    assert_eq!(bounds(&*log, &id).await.earliest, Offset(1), "exactly 1,000 ms old is not too old");
    later(&world, 1);
    append_to(&world, &id, vec![record("r5")]).await;
    assert_eq!(contents(&*log, &id).await, [vec![Seen::Gap(0, 2, Retained)], rest(2, 6)].concat());
}

/// A stream that nobody appends to forgets too; a clock that stepped back forgets nothing.
pub async fn retention_by_age_needs_no_append<W: StoreWorld>() {
    let retention = Retention { age_ms: Some(1_000), ..Retention::default() };
    let (world, id) = ten::<W>(&LogSpec { retention, ..keep_all(1) }).await;
    let log = world.store();
    later(&world, 1_000);
    world.maintain().await;
    assert_eq!(contents(&*log, &id).await, rest(0, 10));
    let now = world.clock().timestamp();
    world.clock().step_wall_clock(tidegate_core::time::Timestamp::from_unix_ms(0));
    world.maintain().await;
    assert_eq!(contents(&*log, &id).await, rest(0, 10));
    world.clock().step_wall_clock(now);
    later(&world, 1);
    world.maintain().await;
    let of = bounds(&*log, &id).await;
    assert_eq!((of.earliest, of.next, of.bytes), (Offset(10), Offset(10), 0));
    assert_eq!(contents(&*log, &id).await, [Seen::Gap(0, 10, Retained)]);
    assert_eq!(append_to(&world, &id, records("new", 1)).await.base, Offset(10));
}

/// Trims and retention that follow each other are told apart, with the bounds of each.
pub async fn gaps_of_one_reason_join_and_of_two_stay_apart<W: StoreWorld>() {
    let retention = Retention { age_ms: Some(1_000), ..Retention::default() };
    let (world, id) = ten::<W>(&LogSpec { retention, ..keep_all(1) }).await;
    let log = world.store();
    trim_to(&*log, &id, 2).await;
    trim_to(&*log, &id, 5).await;
    assert_eq!(contents(&*log, &id).await[0], Seen::Gap(0, 5, Trimmed));
    later(&world, 1_001);
    world.maintain().await;
    let two = [Seen::Gap(0, 5, Trimmed), Seen::Gap(5, 10, Retained)];
    assert_eq!(contents(&*log, &id).await, two);
    append_to(&world, &id, (10..15).map(|number| record(format!("r{number}"))).collect()).await;
    trim_to(&*log, &id, 12).await;
    let three = [vec![two[0].clone(), two[1].clone(), Seen::Gap(10, 12, Trimmed)], rest(12, 15)].concat();
    assert_eq!(contents(&*log, &id).await, three);
    assert_eq!(brief(&whole(&*log, &id, P0, Offset(7)).await)[0], Seen::Gap(7, 10, Retained));
}
