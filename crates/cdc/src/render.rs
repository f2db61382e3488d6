//! Records and gaps as NDJSON lines and as server-sent events. It never parses: what a producer gave is written as it is.

use std::io::Write as _;

use bytes::{BufMut, Bytes};
use tidegate_core::Timestamp;

use crate::record::{Item, Record, write_gap};

/// A record's text from this size on is not copied where lines go out in pieces.
const SHARED_MIN_BYTES: usize = 8 * 1024;
/// What lies between two such texts, mostly.
const RUN_BYTES: usize = 256;

/// Lines `{"record":{...}}` and `{"gap":{...}}`.
#[must_use]
pub fn ndjson(items: &[Item]) -> Bytes {
    let mut out = Vec::with_capacity(capacity(items));
    lines(&mut out, items, |_, _| false);
    out.into()
}

/// The same lines in pieces: large texts are shared with the log, what lies between them is copied.
pub(crate) fn ndjson_pieces(items: &[Item]) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut rest = Vec::with_capacity(RUN_BYTES);
    lines(&mut rest, items, |out, record| {
        let Some(text) = record.shared_text(SHARED_MIN_BYTES) else { return false };
        pieces.push(std::mem::replace(out, Vec::with_capacity(RUN_BYTES)).into());
        pieces.push(text);
        true
    });
    pieces.push(rest.into());
    pieces
}

/// Whether [`ndjson_pieces`] would share anything.
pub(crate) fn shares(items: &[Item]) -> bool {
    items.iter().any(|item| matches!(item, Item::Record(record) if record.shared_text(SHARED_MIN_BYTES).is_some()))
}

/// Writes lines. `share` may take a record's text itself.
fn lines(out: &mut Vec<u8>, items: &[Item], mut share: impl FnMut(&mut Vec<u8>, &Record) -> bool) {
    let mut time = AppendTime::default();
    for item in items {
        match item {
            Item::Record(record) => {
                out.put_slice(b"{\"record\":");
                record.write_head(out);
                if !share(out, record) {
                    record.write_text(out);
                }
                record.write_tail(out, time.text(record.append_time), None);
            }
            Item::Gap(gap) => {
                out.put_slice(b"{\"gap\":");
                write_gap(out, gap);
            }
        }
        out.put_slice(b"}\n");
    }
}

/// Events `record` and `gap`. The id is `partition:offset`, of a gap that of its last missing record: after it one goes on.
#[must_use]
pub fn sse(items: &[Item]) -> Bytes {
    let mut out = Vec::with_capacity(capacity(items));
    let mut time = AppendTime::default();
    for item in items {
        let last = item.next().0.saturating_sub(1);
        match item {
            Item::Record(record) => {
                let _ = write!(out, "event: record\nid: {}:{last}\ndata: ", record.partition.0);
                record.write_json_at(&mut out, time.text(record.append_time), None);
            }
            Item::Gap(gap) => {
                let _ = write!(out, "event: gap\nid: {}:{last}\ndata: ", gap.partition.0);
                write_gap(&mut out, gap);
            }
        }
        out.put_slice(b"\n\n");
    }
    out.into()
}

fn capacity(items: &[Item]) -> usize {
    items
        .iter()
        .map(|item| match item {
            Item::Record(record) => usize::try_from(record.bytes()).unwrap_or(0) + 160,
            Item::Gap(_) => 128,
        })
        .sum()
}

/// The text of the append time, written once for records that share it.
#[derive(Default)]
struct AppendTime {
    last: Option<(Timestamp, String)>,
}

impl AppendTime {
    fn text(&mut self, time: Timestamp) -> &str {
        if self.last.as_ref().is_none_or(|(known, _)| *known != time) {
            self.last = Some((time, time.to_string()));
        }
        self.last.as_ref().map_or("", |(_, text)| text)
    }
}
