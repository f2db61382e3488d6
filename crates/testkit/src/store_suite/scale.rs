//! Promises about size: a large record, a large batch, many small streams.

use bytes::Bytes;
use futures::StreamExt;
use tidegate_core::port::ChangeLog;
use tidegate_core::port::{ReadBounds, Trim};
use tidegate_core::position::{Offset, Partition};

use super::*;

const MIB: usize = 1024 * 1024;

/// Whole, between small ones, and by itself where it is more than a read asks for.
pub async fn a_record_of_16_mib_comes_back<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let large: Bytes = (0..16 * MIB).map(|at| (at * 31 + at / 4_099) as u8).collect::<Vec<u8>>().into();
    append_to(&world, &id, vec![record("before"), record(large.clone()), record("after")]).await;
    let expected = [seen(0, "before"), seen(1, large), seen(2, "after")];
    assert!(contents(&*log, &id).await == expected, "not what was appended");
    let narrow = ReadBounds { records: 10, bytes: 1_000 };
    let items = bounded(&*log, &id, P0, Offset::ZERO, narrow).await;
    assert!(brief(&items) == expected, "not what was appended");
}

/// All records of a batch have one commit and are there together.
pub async fn a_batch_of_10_000_records_is_one_step<W: StoreWorld>() {
    let world = W::fresh().await;
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(2)).await;
    let all = [(0, records("a", 9_000)), (1, records("b", 1_000))];
    let ranges = append(&*log, batch(&world, &id, all)).await;
    assert_eq!((ranges[0].next, ranges[1].next), (Offset(9_000), Offset(1_000)));
    let a = texts(&*log, &id, P0).await;
    assert_eq!((a.len(), &*a[8_999]), (9_000, "a8999"));
    let items = bounded(&*log, &id, P0, Offset(4_321), ReadBounds { records: 777, bytes: 3_000 }).await;
    assert_eq!(brief(&items)[0], seen(4_321, "a4321"));
    assert_eq!(items.len(), 9_000 - 4_321);
    let trim = Trim::Before { partition: Partition(1), before: Offset(999) };
    log.trim(&id, trim).await.expect("a trim is answered");
    assert_eq!(texts(&*log, &id, Partition(1)).await, ["b999"]);
}

/// Many small streams are the normal case: each has its own records and bounds.
pub async fn ten_thousand_small_streams_are_kept_apart<W: StoreWorld>() {
    const STREAMS: usize = 10_000;
    let world = W::fresh().await;
    let log = world.store();
    // 256 at a time, so that a store that makes each step durable can share the cost.
    futures::stream::iter(0..STREAMS)
        .for_each_concurrent(256, |number| {
            let (world, log) = (&world, &log);
            async move {
                let id = stream(&format!("stream {number}"));
                create(&**log, &id, &keep_all(1)).await;
                append_to(world, &id, vec![record(format!("of {number}"))]).await;
            }
        })
        .await;
    for number in (0..STREAMS).step_by(97).chain([1, 10, 100, 1_000, STREAMS - 1]) {
        let id = stream(&format!("stream {number}"));
        assert_eq!(contents(&*log, &id).await, [seen(0, format!("of {number}"))]);
    }
    for number in [1, 10, 999] {
        log.trim(&stream(&format!("stream {number}")), Trim::Stream).await.expect("a removal is answered");
    }
    world.maintain().await;
    let mut left = 0;
    for number in 0..STREAMS {
        left += usize::from(!all_bounds(&*log, &stream(&format!("stream {number}"))).await.is_empty());
    }
    assert_eq!(left, STREAMS - 3);
}
