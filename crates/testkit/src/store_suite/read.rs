//! Promises about reads: bounds, progress, the tail. That items stand dense and in order is checked by every read.

use tidegate_core::port::{ChangeLog, LogError, ReadBounds};
use tidegate_core::position::Offset;

use super::*;

/// Twenty records of ten bytes, in batches of 1, 2, 3, 4 and 10.
async fn twenty<W: StoreWorld>() -> (W, tidegate_core::port::StreamId) {
    let world = W::fresh().await;
    let id = stream("s");
    create(&*world.store(), &id, &keep_all(1)).await;
    let mut texts = (0..20).map(|number| record(format!("record {number:03}")));
    for count in [1, 2, 3, 4, 10] {
        append_to(&world, &id, texts.by_ref().take(count).collect()).await;
    }
    (world, id)
}

fn expected(from: u64) -> Vec<Seen> {
    (from..20).map(|offset| seen(offset, format!("record {offset:03}"))).collect()
}

/// Never more records than asked for, and all of them by reading on.
pub async fn a_read_is_bounded_by_records<W: StoreWorld>() {
    let (world, id) = twenty::<W>().await;
    let log = world.store();
    for records in [1, 2, 3, 7, 19, 20, 21, u32::MAX] {
        let items = bounded(&*log, &id, P0, Offset::ZERO, ReadBounds { records, ..WIDE }).await;
        assert_eq!(brief(&items), expected(0), "{records}");
    }
}

/// Never more bytes than asked for, and all of them by reading on.
pub async fn a_read_is_bounded_by_bytes<W: StoreWorld>() {
    let (world, id) = twenty::<W>().await;
    let log = world.store();
    for bytes in [10, 11, 19, 20, 35, 199, 200, 201, u64::MAX] {
        let items = bounded(&*log, &id, P0, Offset::ZERO, ReadBounds { bytes, ..WIDE }).await;
        assert_eq!(brief(&items), expected(0), "{bytes}");
    }
}

/// However narrow the bounds: even zero gives one record.
pub async fn a_read_gives_at_least_one_record<W: StoreWorld>() {
    let (world, id) = twenty::<W>().await;
    let log = world.store();
    for bounds in [
        ReadBounds { records: 1, bytes: 9 },
        ReadBounds { records: 100, bytes: 0 },
        ReadBounds { records: 0, bytes: 100 },
        ReadBounds { records: 0, bytes: 0 },
    ] {
        let items = bounded(&*log, &id, P0, Offset(3), bounds).await;
        assert_eq!(brief(&items), expected(3), "{bounds:?}");
    }
}

/// In the middle of a batch too.
pub async fn a_read_begins_at_any_offset<W: StoreWorld>() {
    let (world, id) = twenty::<W>().await;
    let log = world.store();
    for from in 0..=20 {
        let items = bounded(&*log, &id, P0, Offset(from), ReadBounds { records: 4, bytes: 25 }).await;
        assert_eq!(brief(&items), expected(from));
    }
}

/// Nothing, at once, and one stays where one is.
pub async fn a_read_at_the_tail_gives_nothing<W: StoreWorld>() {
    let (world, id) = twenty::<W>().await;
    let log = world.store();
    let read = log.read(&id, P0, Offset(20), WIDE).await.expect("the tail can be read");
    assert!(read.items.is_empty());
    assert_eq!(read.next, Offset(20));
    append_to(&world, &id, records("new", 1)).await;
    let read = log.read(&id, P0, Offset(20), WIDE).await.expect("the tail can be read");
    assert_eq!(brief(&read.items), [seen(20, "new0")]);
}

/// The answer says where the tail is.
pub async fn a_read_beyond_the_tail_is_refused<W: StoreWorld>() {
    let (world, id) = twenty::<W>().await;
    let log = world.store();
    create(&*log, &stream("empty"), &keep_all(1)).await;
    for asked in [21, 22, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, u64::MAX - 1, u64::MAX] {
        for (id, next) in [(&id, 20), (&stream("empty"), 0)] {
            match log.read(id, P0, Offset(asked), WIDE).await {
                Err(LogError::OutOfRange { asked: told, next: tail }) => {
                    assert_eq!((told, tail), (Offset(asked), Offset(next)));
                }
                other => panic!("was not refused: {other:?}"),
            }
        }
    }
}
