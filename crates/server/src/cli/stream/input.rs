//! Records out of lines, gathered into batches while the batch before is on its way. The reading thread and the sender share
//! one batch in the making: what is there is sent at once, and what comes faster than it is sent waits, bounded.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Notify;

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineKind {
    /// A record as JSON.
    Record,
    /// A JSON value, which becomes a record.
    Value,
    /// A text, which becomes a record's value.
    Text,
}

/// What every record made of a value gets.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Frame {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) op: Option<&'static str>,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub(super) headers: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) event_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) partition: Option<u32>,
}

#[derive(Serialize)]
struct Framed<'a> {
    value: &'a RawValue,
    #[serde(flatten)]
    frame: &'a Frame,
}

impl Frame {
    /// The record of a value, as one line of JSON.
    pub(super) fn record(&self, value: &RawValue) -> String {
        let record = serde_json::to_string(&Framed { value, frame: self }).expect("a record of JSON is JSON");
        // A line break in JSON text is white space, never a part of a value.
        record.replace(['\n', '\r'], " ")
    }
}

/// JSON where it is JSON, a text otherwise.
pub(super) fn json_or_text(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.trim().to_owned()).unwrap_or_else(|_| as_text(text))
}

fn as_text(text: &str) -> Box<RawValue> {
    serde_json::value::to_raw_value(text).expect("a text is JSON")
}

/// A record as a user writes it: whatever else stands in it is refused here, with its line, before anything is sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read for their presence only: the line itself is sent")]
struct Written<'a> {
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    op: Option<&'a RawValue>,
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(borrow, default)]
    before: Option<&'a RawValue>,
    #[serde(borrow, default)]
    headers: Option<&'a RawValue>,
    #[serde(borrow, default)]
    event_time: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partition: Option<&'a RawValue>,
}

/// The record in a line; `None` = an empty line, which stands for nothing.
fn record(line: &str, kind: LineKind, frame: &Frame) -> Result<Option<String>, serde_json::Error> {
    match kind {
        LineKind::Text => Ok(Some(frame.record(&as_text(line)))),
        _ if line.trim().is_empty() => Ok(None),
        LineKind::Value => Ok(Some(frame.record(&RawValue::from_string(line.trim().to_owned())?))),
        LineKind::Record => {
            serde_json::from_str::<Written<'_>>(line)?;
            Ok(Some(line.to_owned()))
        }
    }
}

/// A batch of records.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    /// One record a line.
    pub(super) body: Bytes,
    /// The line of the input that each record stands in, from 1.
    pub(super) numbers: Vec<u64>,
}

/// Why there are no more lines.
#[derive(Debug)]
pub(super) enum End {
    /// All were read.
    Whole,
    /// A line is no record.
    Line { line: u64, what: String },
    /// The input cannot be read.
    Io(io::Error),
}

/// How large a batch may become; a single record may be larger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

#[derive(Debug, Default)]
struct Making {
    body: Vec<u8>,
    numbers: Vec<u64>,
    end: Option<End>,
}

/// The batch in the making.
#[derive(Debug)]
pub(super) struct Handover {
    size: Size,
    making: Mutex<Making>,
    room: Condvar,
    ready: Notify,
}

/// The longest line that is read: what the largest batch of any server takes.
const LINE_MAX_BYTES: u64 = 48 * 1024 * 1024;

impl Handover {
    pub(super) fn new(size: Size) -> Arc<Self> {
        Arc::new(Self { size, making: Mutex::default(), room: Condvar::new(), ready: Notify::new() })
    }

    /// Reads lines to their end; blocks while a full batch waits. For a thread of its own.
    pub(super) fn fill(&self, mut input: impl BufRead, kind: LineKind, frame: &Frame) {
        let end = self.read(&mut input, kind, frame);
        self.making.lock().end = Some(end);
        self.ready.notify_one();
    }

    fn read(&self, input: &mut impl BufRead, kind: LineKind, frame: &Frame) -> End {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            match input.by_ref().take(LINE_MAX_BYTES + 1).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return End::Io(error),
            }
            if line.ends_with(b"\n") {
                line.pop();
                if line.ends_with(b"\r") {
                    line.pop();
                }
            }
            if line.len() as u64 > LINE_MAX_BYTES {
                return End::Line { line: number, what: format!("longer than {LINE_MAX_BYTES} bytes") };
            }
            let made = std::str::from_utf8(&line)
                .map_err(|why| why.to_string())
                .and_then(|text| record(text, kind, frame).map_err(|why| reason(&why)));
            match made {
                Ok(Some(record)) => self.push(number, &record),
                Ok(None) => {}
                Err(what) => return End::Line { line: number, what },
            }
        }
        End::Whole
    }

    fn push(&self, number: u64, record: &str) {
        let mut making = self.making.lock();
        while !making.numbers.is_empty()
            && (making.numbers.len() >= self.size.records || making.body.len() + record.len() >= self.size.bytes)
        {
            self.room.wait(&mut making);
        }
        making.body.extend_from_slice(record.as_bytes());
        making.body.push(b'\n');
        making.numbers.push(number);
        drop(making);
        self.ready.notify_one();
    }

    /// The next batch, as soon as there is a record, or the end. Safe to drop and call again.
    pub(super) async fn next(&self) -> Result<Lines, End> {
        loop {
            {
                let mut making = self.making.lock();
                if !making.numbers.is_empty() {
                    let body = Bytes::from(std::mem::take(&mut making.body));
                    let numbers = std::mem::take(&mut making.numbers);
                    self.room.notify_one();
                    return Ok(Lines { body, numbers });
                }
                if let Some(end) = making.end.take() {
                    return Err(end);
                }
            }
            self.ready.notified().await;
        }
    }
}

/// What is wrong with a line: the column within it, not serde's count of lines.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let words = text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words);
    if error.column() == 0 { words.to_owned() } else { format!("{words}, at column {}", error.column()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(input: &str, kind: LineKind, size: Size) -> (Vec<Lines>, End) {
        tidegate_testkit::block_on(async {
            let handover = Handover::new(size);
            let (filler, text) = (Arc::clone(&handover), input.to_owned());
            let frame = Frame { partition: Some(1), ..Frame::default() };
            let thread = std::thread::spawn(move || filler.fill(text.as_bytes(), kind, &frame));
            let mut batches = Vec::new();
            loop {
                match handover.next().await {
                    Ok(lines) => batches.push(lines),
                    Err(end) => {
                        thread.join().unwrap();
                        return (batches, end);
                    }
                }
            }
        })
    }

    const SMALL: Size = Size { records: 3, bytes: 1 << 20 };

    fn all(batches: &[Lines]) -> (String, Vec<u64>) {
        let body = batches.iter().map(|batch| std::str::from_utf8(&batch.body).unwrap()).collect();
        (body, batches.iter().flat_map(|batch| batch.numbers.clone()).collect())
    }

    #[test]
    fn every_line_is_in_one_batch_in_order_and_no_batch_is_too_large() {
        let input: String = (0..100).map(|number| format!("{{\"value\":{number}}}\n")).collect();
        let (batches, end) = gather(&input, LineKind::Record, SMALL);
        assert!(matches!(end, End::Whole));
        assert!(batches.iter().all(|batch| batch.numbers.len() <= 3));
        assert_eq!(all(&batches), (input, (1..=100).collect()));
        let (batches, _) = gather(&"\"0123456789\"\n".repeat(20), LineKind::Value, Size { records: 100, bytes: 70 });
        assert!(batches.iter().all(|batch| batch.body.len() <= 2 * 36), "{batches:?}");
        let (batches, _) =
            gather(&format!("{}\n1\n", "9".repeat(100)), LineKind::Value, Size { records: 9, bytes: 20 });
        assert_eq!(batches.len(), 2, "a record that is larger than a batch goes by itself");
    }

    #[test]
    fn a_broken_line_is_named_and_what_stood_before_it_is_sent() {
        for (broken, kind, word) in [
            ("{\"value\":", LineKind::Record, "EOF"),
            ("{\"value\":1,\"valeu\":2}", LineKind::Record, "unknown field `valeu`"),
            ("{\"key\":1}", LineKind::Record, "missing field `value`"),
            ("[1]", LineKind::Record, ""),
            ("{\"value\":1,\"value\":2}", LineKind::Record, "duplicate"),
            ("1 2", LineKind::Value, "trailing"),
        ] {
            let input = format!("{{\"value\":1}}\n\n  {{\"value\":2}}\r\n{broken}\n{{\"value\":3}}\n");
            let (batches, end) = gather(&input, kind, SMALL);
            let End::Line { line: 4, what } = end else { panic!("{broken}: {end:?}") };
            assert!(what.contains(word) && !what.contains("line"), "{broken}: {what}");
            assert_eq!(all(&batches).1, [1, 3]);
        }
        let handover = Handover::new(SMALL);
        handover.fill(&b"{\"value\":1}\n\xff\n"[..], LineKind::Record, &Frame::default());
        let end = tidegate_testkit::block_on(async { (handover.next().await, handover.next().await) });
        assert!(end.0.is_ok() && matches!(end.1, Err(End::Line { line: 2, .. })), "{end:?}");
    }

    #[test]
    fn values_and_texts_become_records_that_keep_every_digit() {
        let (batches, _) = gather("18446744073709551616\n{\"a\": 1.10}\n", LineKind::Value, SMALL);
        assert_eq!(
            all(&batches).0,
            "{\"value\":18446744073709551616,\"partition\":1}\n{\"value\":{\"a\": 1.10},\"partition\":1}\n"
        );
        let (batches, _) = gather("5\n\n\"x\"\n", LineKind::Text, SMALL);
        assert_eq!(
            all(&batches).0,
            "{\"value\":\"5\",\"partition\":1}\n{\"value\":\"\",\"partition\":1}\n{\"value\":\"\\\"x\\\"\",\"partition\":1}\n"
        );
        let frame = Frame { key: Some(json_or_text("a b")), op: Some("delete"), ..Frame::default() };
        assert_eq!(
            frame.record(&json_or_text("{\n\"a\":\r\n1}")),
            "{\"value\":{ \"a\":  1},\"key\":\"a b\",\"op\":\"delete\"}"
        );
    }
}
