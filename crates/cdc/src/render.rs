//! Records and gaps as NDJSON lines and as server-sent events. It never parses: what a producer gave is written as it is.

use std::io::Write as _;

use bytes::{BufMut, Bytes};
use tidegate_core::Timestamp;

use crate::record::{Item, write_gap};

/// Lines `{"record":{...}}` and `{"gap":{...}}`.
#[must_use]
pub fn ndjson(items: &[Item]) -> Bytes {
    let mut out = Vec::with_capacity(capacity(items));
    let mut time = AppendTime::default();
    for item in items {
        match item {
            Item::Record(record) => {
                out.put_slice(b"{\"record\":");
                record.write_json_at(&mut out, time.text(record.append_time), None);
            }
            Item::Gap(gap) => {
                out.put_slice(b"{\"gap\":");
                write_gap(&mut out, gap);
            }
        }
        out.put_slice(b"}\n");
    }
    out.into()
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
