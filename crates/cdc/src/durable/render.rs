//! Records as one `data` event of the protocol's event stream. What is inside a record never ends a line of it, so a record can
//! not pass itself off as an event.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes};

use super::MessageKind;
use crate::record::{Item, Record};

/// The event with the records of `items`; empty where there are none. Text that is no UTF-8 shows the replacement character.
pub(crate) fn event(items: &[Item], kind: MessageKind) -> Bytes {
    let records: Vec<&Record> = items
        .iter()
        .filter_map(|item| match item {
            Item::Record(record) => Some(record),
            Item::Gap(_) => None,
        })
        .collect();
    if records.is_empty() {
        return Bytes::new();
    }
    let size: u64 = records.iter().map(|record| record.bytes()).sum();
    let mut out = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 64);
    out.put_slice(b"event: data\n");
    match kind {
        MessageKind::Json => {
            out.put_slice(b"data:[");
            for (place, record) in records.iter().enumerate() {
                if place > 0 {
                    out.put_u8(b',');
                }
                record.write_value(&mut out);
            }
            out.put_slice(b"]\n");
        }
        MessageKind::Text => text(&mut out, &whole(&records)),
        MessageKind::Binary => {
            out.put_slice(b"data:");
            out.put_slice(STANDARD.encode(whole(&records)).as_bytes());
            out.put_u8(b'\n');
        }
    }
    out.put_u8(b'\n');
    out.into()
}

/// The bytes of all records in a row: a line or a character may go across them.
fn whole(records: &[&Record]) -> Bytes {
    if let [one] = records {
        return one.raw().cloned().unwrap_or_else(|| one.value());
    }
    let mut all = Vec::new();
    for record in records {
        match record.raw() {
            Some(raw) => all.put_slice(raw),
            None => record.write_value(&mut all),
        }
    }
    all.into()
}

/// One `data` line a line: CR, LF and CRLF all end one, as a reader of event streams sees it.
fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.as_ref();
    loop {
        let end = rest.find(['\r', '\n']);
        let line = end.map_or(rest, |end| &rest[..end]);
        out.put_slice(b"data:");
        // A reader takes one leading space away.
        if line.starts_with(' ') {
            out.put_u8(b' ');
        }
        out.put_slice(line.as_bytes());
        out.put_u8(b'\n');
        let Some(end) = end else { return };
        let width = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + width..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_its_event_early() {
        let lines = |bytes: &[u8]| {
            let mut out = Vec::new();
            text(&mut out, bytes);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(lines(b"one"), "data:one\n");
        assert_eq!(lines(b"a\nb\r\nc\rd"), "data:a\ndata:b\ndata:c\ndata:d\n");
        assert_eq!(lines(b"a\n\nevent: control\n"), "data:a\ndata:\ndata:event: control\ndata:\n");
        assert_eq!(lines(b" spaced"), "data:  spaced\n");
        assert_eq!(lines(b"\xff"), "data:\u{fffd}\n");
        assert_eq!(lines(b""), "data:\n");
    }
}
