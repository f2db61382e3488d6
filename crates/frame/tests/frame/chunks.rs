//! The chunk producer against a model that keeps every row apart.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tidegate_core::Moment;
use tidegate_core::limit::Settings;
use tidegate_frame::chunk::{Chunk, ChunkBounds, ChunkProducer, FlushCause, PAGE_BYTES};

#[derive(Debug, Clone)]
enum Step {
    Row(usize),
    BrokenRow(usize),
    Wait(u64),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop_oneof![0_usize..40, 0_usize..600].prop_map(Step::Row),
        1 => (0_usize..40).prop_map(Step::BrokenRow),
        3 => (0_u64..60).prop_map(Step::Wait),
        1 => Just(Step::Flush),
    ]
}

/// Rows that wait, each a line, and the moment of the first.
#[derive(Default)]
struct Model {
    waiting: Vec<Vec<u8>>,
    since: Option<Moment>,
    given: u64,
}

impl Model {
    fn bytes(&self) -> usize {
        self.waiting.iter().map(Vec::len).sum()
    }

    fn take(&mut self, cause: FlushCause) -> Option<Chunk> {
        self.since = None;
        let rows = std::mem::take(&mut self.waiting);
        let first_row = self.given;
        self.given += rows.len() as u64;
        let count = u32::try_from(rows.len()).unwrap();
        (count > 0).then(|| Chunk { first_row, rows: count, bytes: rows.concat().into(), cause })
    }
}

fn line(row: u64, length: usize) -> Vec<u8> {
    let mut line = format!("{row}:").into_bytes();
    line.resize(line.len() + length, b'x');
    line.push(b'\n');
    line
}

/// What a kept chunk really takes.
fn pinned_bytes(bytes: Bytes) -> usize {
    bytes.try_into_mut().expect("nobody else holds the chunk").capacity()
}

proptest! {
    #[test]
    fn chunks_are_all_rows_in_order_each_on_the_first_of_its_bounds_and_none_is_late(
        bytes in 0_usize..400, rows in 0_u32..12, latency_ms in 0_u64..80, first_row in 0_u64..1_000_000,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let latency = Duration::from_millis(latency_ms);
        let mut producer = ChunkProducer::new(ChunkBounds { bytes, rows, latency }, first_row);
        let mut model = Model { given: first_row, ..Model::default() };
        let mut now = Moment::ORIGIN;
        let (mut sent, mut all) = (Vec::new(), Vec::new());
        let mut next_row = first_row;
        for step in steps {
            let (chunk, wanted) = match step {
                Step::Row(length) => {
                    let row = line(next_row, length);
                    let mut asked = false;
                    let chunk = producer.append(|| { asked = true; now }, |buf| { buf.extend_from_slice(&row); Ok::<_, ()>(()) });
                    prop_assert_eq!(asked, model.waiting.is_empty(), "the clock is read for the first row of a chunk only");
                    all.extend_from_slice(&row);
                    model.since.get_or_insert(now);
                    model.waiting.push(row);
                    next_row += 1;
                    let wanted = if model.bytes() >= bytes.max(1) {
                        model.take(FlushCause::Bytes)
                    } else if model.waiting.len() >= rows.max(1) as usize {
                        model.take(FlushCause::Rows)
                    } else {
                        None
                    };
                    (chunk.unwrap(), wanted)
                }
                Step::BrokenRow(length) => {
                    let row = line(next_row, length);
                    let refused = producer.append(|| panic!("no row, no clock"), |buf| { buf.extend_from_slice(&row[..length]); Err("broken") });
                    prop_assert_eq!(refused, Err("broken"));
                    (None, None)
                }
                Step::Wait(ms) => {
                    let until = now.after(Duration::from_millis(ms));
                    let due = producer.deadline().filter(|due| *due <= until);
                    now = due.unwrap_or(until);
                    let wanted = if due.is_some() { model.take(FlushCause::Latency) } else { None };
                    let chunk = producer.flush_due(now);
                    now = until;
                    (chunk, wanted)
                }
                Step::Flush => (producer.flush(), model.take(FlushCause::Asked)),
            };
            prop_assert_eq!(&chunk, &wanted);
            prop_assert_eq!(producer.deadline(), model.since.map(|since| since.after(latency)));
            prop_assert_eq!(producer.next_row(), next_row);
            prop_assert_eq!(producer.buffered_bytes(), model.bytes());
            if let Some(chunk) = chunk {
                prop_assert!(chunk.rows <= rows.max(1));
                let last = chunk.split_at_row(chunk.end_row() - 1).unwrap();
                prop_assert!(last < bytes.max(1), "without its last row the chunk is below the bound");
                sent.extend_from_slice(&chunk.bytes);
                let length = chunk.bytes.len();
                prop_assert!(pinned_bytes(chunk.bytes) <= length + length / 2 + 8, "a chunk pins little more than itself");
            }
        }
        if let Some(chunk) = producer.finish() {
            prop_assert_eq!(chunk.cause, FlushCause::End);
            sent.extend_from_slice(&chunk.bytes);
        }
        prop_assert_eq!(sent, all);
        prop_assert_eq!(producer.finish(), None);
        prop_assert_eq!(producer.deadline(), None);
        prop_assert_eq!(producer.capacity_bytes(), 0);
    }

    #[test]
    fn a_chunk_is_split_before_any_of_its_rows(first_row in any::<u32>(), lengths in prop::collection::vec(0_usize..20, 1..20)) {
        let first_row = u64::from(first_row);
        let lines: Vec<Vec<u8>> = lengths.iter().map(|length| line(0, *length)).collect();
        let rows = u32::try_from(lines.len()).unwrap();
        let chunk = Chunk { first_row, rows, bytes: lines.concat().into(), cause: FlushCause::Asked };
        for skip in 0..=lines.len() {
            prop_assert_eq!(chunk.split_at_row(first_row + skip as u64), Some(lines[..skip].concat().len()));
        }
        prop_assert_eq!(chunk.split_at_row(chunk.end_row() + 1), None);
        prop_assert_eq!(first_row.checked_sub(1).and_then(|row| chunk.split_at_row(row)), None);
    }
}

fn push(producer: &mut ChunkProducer, length: usize) -> Option<Chunk> {
    let row = line(0, length);
    let write = |buf: &mut BytesMut| {
        buf.extend_from_slice(&row);
        Ok::<_, ()>(())
    };
    producer.append(|| Moment::ORIGIN, write).unwrap()
}

#[test]
fn one_huge_row_does_not_make_the_buffer_large_for_ever() {
    let bounds = ChunkBounds { bytes: 4 * PAGE_BYTES, rows: 1_000, latency: Duration::from_millis(50) };
    let mut producer = ChunkProducer::new(bounds, 0);
    push(&mut producer, 100);
    let chunk = push(&mut producer, 16 * 1024 * 1024).expect("the bound is reached");
    assert_eq!(chunk.rows, 2);
    for _ in 0..10_000 {
        if let Some(chunk) = push(&mut producer, 100) {
            let length = chunk.bytes.len();
            assert!(pinned_bytes(chunk.bytes) < length * 3 / 2);
        }
        assert!(producer.capacity_bytes() <= 5 * PAGE_BYTES, "{}", producer.capacity_bytes());
    }
    let refused = producer.append(
        || Moment::ORIGIN,
        |buf| {
            buf.resize(buf.len() + 16 * 1024 * 1024, b'x');
            Err(())
        },
    );
    assert_eq!(refused, Err(()));
    producer.flush();
    assert!(producer.capacity_bytes() <= 5 * PAGE_BYTES, "{}", producer.capacity_bytes());
}

#[test]
fn a_small_chunk_of_a_slow_source_takes_only_its_own_bytes() {
    let mut producer = ChunkProducer::new(ChunkBounds::from_settings(&Settings::default()), 0);
    push(&mut producer, 100);
    let due = producer.deadline().unwrap();
    assert_eq!(due, Moment::ORIGIN.after(Duration::from_millis(50)));
    let chunk = producer.flush_due(due).unwrap();
    let length = chunk.bytes.len();
    assert_eq!(pinned_bytes(chunk.bytes), length);
}

#[test]
fn the_settings_give_the_bounds() {
    let mut settings = Settings::default();
    let default = ChunkBounds { bytes: 65_536, rows: 1_000, latency: Duration::from_millis(50) };
    assert_eq!(ChunkBounds::from_settings(&settings), default);
    settings.set("stream.chunk.pages", 64).unwrap();
    assert_eq!(ChunkBounds::from_settings(&settings).bytes, 1024 * 1024);
}

#[test]
fn a_first_row_at_the_end_of_all_numbers_does_not_panic() {
    let mut producer = ChunkProducer::new(ChunkBounds::from_settings(&Settings::default()), u64::MAX);
    push(&mut producer, 1);
    assert_eq!(producer.next_row(), u64::MAX);
    assert_eq!(producer.finish().unwrap().end_row(), u64::MAX);
}

#[test]
fn a_writer_that_panics_leaves_no_half_row_behind() {
    let mut producer = ChunkProducer::new(ChunkBounds::from_settings(&Settings::default()), 0);
    push(&mut producer, 3);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        producer.append(
            || Moment::ORIGIN,
            |buf| -> Result<(), ()> {
                buf.extend_from_slice(b"half");
                panic!("in the middle of a row")
            },
        )
    }));
    assert!(panicked.is_err());
    push(&mut producer, 1);
    assert_eq!(&producer.finish().unwrap().bytes[..], b"0:xxx\n0:x\n");
}
