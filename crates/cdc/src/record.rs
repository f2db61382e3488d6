//! Records on their way in and out: what a producer gives, what a reader gets, and how that looks on a wire. Values are never
//! interpreted: a number keeps every digit.

use std::io::Write as _;

use bytes::{BufMut, Bytes};
use serde_json::value::RawValue;
use tidegate_core::Timestamp;
use tidegate_core::port::{AppendRecord, Commit};
use tidegate_core::position::{Gap, GapReason, Offset, Partition};
use tidegate_core::record::{Operation, Origin};

use crate::stored::{self, Stored};

/// A record that a producer gives. JSON texts must be valid JSON on one line: see [`NewRecord::compacted`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// What happened.
    pub operation: Operation,
    /// The key as JSON text; `None` = no key. JSON's own `null` is no key either.
    pub key: Option<Bytes>,
    /// The value as JSON text.
    pub value: Bytes,
    /// The value before, as JSON text.
    pub before: Option<Bytes>,
    /// Headers as a JSON object's text.
    pub headers: Option<Bytes>,
    /// When it happened, by the producer's clock.
    pub event_time: Option<Timestamp>,
    /// Where to; `None` = by the key, or, without one, the request's records together to a partition in turn.
    pub partition: Option<Partition>,
    /// Which collection the record is of, where a stream carries several: part of the key that compaction goes by.
    pub collection: Option<Box<str>>,
    /// Where in a source outside it stands.
    pub source: Option<Origin>,
}

impl NewRecord {
    /// A message with this JSON value and nothing else.
    #[must_use]
    pub fn message(value: impl Into<Bytes>) -> Self {
        Self {
            operation: Operation::Message,
            key: None,
            value: value.into(),
            before: None,
            headers: None,
            event_time: None,
            partition: None,
            collection: None,
            source: None,
        }
    }

    /// JSON text without whitespace between its tokens, so that a record is one line; every digit and escape stays.
    #[must_use]
    pub fn compacted(raw: &RawValue) -> Bytes {
        compact_json(raw.get())
    }

    /// The record as the log takes it.
    pub(crate) fn to_append(&self, compacted: bool) -> AppendRecord {
        AppendRecord {
            bytes: stored::change(&self.fields()),
            key: if compacted { self.compaction_key() } else { None },
            tombstone: self.operation == Operation::Delete || self.value.as_ref() == b"null",
        }
    }

    fn fields(&self) -> stored::Fields<'_> {
        stored::Fields {
            operation: self.operation,
            key: self.key.as_deref(),
            value: &self.value,
            before: self.before.as_deref(),
            headers: self.headers.as_deref(),
            event_time: self.event_time,
            source: self.source.as_ref(),
        }
    }

    /// Typed (`"1"` is not `1`, their texts differ) and with the collection in front, of which a zero byte parts it.
    fn compaction_key(&self) -> Option<Bytes> {
        let key = self.key.as_ref()?;
        let collection = self.collection.as_deref().unwrap_or_default();
        let mut whole = Vec::with_capacity(collection.len() + 1 + key.len());
        whole.extend_from_slice(collection.as_bytes());
        whole.push(0);
        whole.extend_from_slice(key);
        Some(whole.into())
    }
}

/// The name of an operation on the wire.
#[must_use]
pub fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "insert",
        Operation::Update => "update",
        Operation::Delete => "delete",
        Operation::Truncate => "truncate",
        Operation::Message => "message",
    }
}

/// Takes the whitespace between tokens away. The text must be valid JSON.
fn compact_json(text: &str) -> Bytes {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')) {
        return Bytes::copy_from_slice(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let (mut in_string, mut escaped) = (false, false);
    for &byte in bytes {
        if in_string {
            out.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
            in_string = byte == b'"';
            out.push(byte);
        }
    }
    out.into()
}

/// The `source` of a record as JSON.
pub(crate) fn source_json(origin: &Origin) -> Bytes {
    let document = serde_json::json!({
        "position": origin.position.0, "tx": origin.transaction, "index": origin.index,
    });
    document.to_string().into()
}

/// How a message of a byte stream looks as a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RawForm {
    /// A string; what is not UTF-8 as `{"base64":"..."}`.
    Text,
    /// `{"base64":"..."}`.
    #[default]
    Base64,
}

/// A record that a reader gets. Cheap to clone: its bytes are shared with the log.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its partition.
    pub partition: Partition,
    /// Its offset.
    pub offset: Offset,
    /// Its append's place among all appends.
    pub commit: Commit,
    /// When it was appended.
    pub append_time: Timestamp,
    pub(crate) stored: Stored,
    pub(crate) raw_form: RawForm,
    pub(crate) stored_bytes: u32,
}

/// What the delivery of a record by a shared group is: written into the record beside its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryStamp {
    /// What to acknowledge.
    pub id: String,
    /// How often it was delivered, this time too.
    pub count: u32,
    /// Until when it must be acknowledged.
    pub expires_at: Timestamp,
}

impl Record {
    /// How large it is in the log.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.stored_bytes)
    }

    /// The value as JSON text; a message of a byte stream as its JSON form.
    #[must_use]
    pub fn value(&self) -> Bytes {
        match &self.stored {
            Stored::Change(change) => change.shared_value(),
            Stored::Raw(bytes) => {
                let mut out = Vec::with_capacity(bytes.len() + 16);
                write_raw(&mut out, bytes, self.raw_form);
                out.into()
            }
        }
    }

    /// The value of a change, as it lies in the log; `None` for a message of a byte stream.
    #[must_use]
    pub fn change_value(&self) -> Option<&[u8]> {
        match &self.stored {
            Stored::Change(change) => Some(change.value()),
            Stored::Raw(_) => None,
        }
    }

    /// Writes what [`value`](Self::value) gives.
    pub(crate) fn write_value(&self, out: &mut Vec<u8>) {
        match &self.stored {
            Stored::Change(change) => out.put_slice(change.value()),
            Stored::Raw(bytes) => write_raw(out, bytes, self.raw_form),
        }
    }

    /// The key as JSON text.
    #[must_use]
    pub fn key(&self) -> Option<Bytes> {
        match &self.stored {
            Stored::Change(change) => Some(change.shared_key()).filter(|key| !key.is_empty()),
            Stored::Raw(_) => None,
        }
    }

    /// The bytes of a message of a byte stream; `None` for a change.
    #[must_use]
    pub fn raw(&self) -> Option<&Bytes> {
        match &self.stored {
            Stored::Raw(bytes) => Some(bytes),
            Stored::Change(_) => None,
        }
    }

    /// Writes the record's JSON object: `{"partition":..., ..., "source":...}`.
    pub fn write_json(&self, out: &mut Vec<u8>, delivery: Option<&DeliveryStamp>) {
        self.write_json_at(out, &self.append_time.to_string(), delivery);
    }

    /// The same where the caller has written the append time already: records of one append share it.
    pub(crate) fn write_json_at(&self, out: &mut Vec<u8>, append_time: &str, delivery: Option<&DeliveryStamp>) {
        self.write_head(out);
        self.write_text(out);
        self.write_tail(out, append_time, delivery);
    }

    pub(crate) fn write_text(&self, out: &mut Vec<u8>) {
        match &self.stored {
            Stored::Change(change) => out.put_slice(change.text()),
            Stored::Raw(bytes) => {
                out.put_slice(b"\"op\":\"message\",\"key\":null,\"value\":");
                write_raw(out, bytes, self.raw_form);
                out.put_slice(b",\"before\":null,\"headers\":{},\"event_time\":null");
            }
        }
    }

    /// What stands in the log of the record's JSON object: it goes between the head and the tail. `None` where nothing does, or where
    /// it has less than `min_bytes`.
    pub(crate) fn shared_text(&self, min_bytes: usize) -> Option<Bytes> {
        match &self.stored {
            Stored::Change(change) if change.text().len() >= min_bytes => Some(change.shared_text()),
            Stored::Change(_) | Stored::Raw(_) => None,
        }
    }

    pub(crate) fn write_head(&self, out: &mut Vec<u8>) {
        let mut number = itoa::Buffer::new();
        out.put_slice(b"{\"partition\":");
        out.put_slice(number.format(self.partition.0).as_bytes());
        out.put_slice(b",\"offset\":");
        out.put_slice(number.format(self.offset.0).as_bytes());
        out.put_u8(b',');
    }

    pub(crate) fn write_tail(&self, out: &mut Vec<u8>, append_time: &str, delivery: Option<&DeliveryStamp>) {
        out.put_slice(b",\"append_time\":\"");
        out.put_slice(append_time.as_bytes());
        out.put_slice(b"\",\"source\":");
        out.put_slice(match &self.stored {
            Stored::Change(change) => change.source(),
            Stored::Raw(_) => b"null",
        });
        if let Some(delivery) = delivery {
            let _ = write!(
                out,
                ",\"delivery\":{{\"id\":\"{}\",\"count\":{},\"expires_at\":\"{}\"}}",
                delivery.id, delivery.count, delivery.expires_at
            );
        }
        out.put_u8(b'}');
    }
}

fn write_raw(out: &mut Vec<u8>, bytes: &[u8], form: RawForm) {
    use base64::Engine as _;
    let text = match form {
        RawForm::Text => std::str::from_utf8(bytes).ok(),
        RawForm::Base64 => None,
    };
    match text {
        Some(text) => serde_json::to_writer(out, text).expect("a string is serialisable, and memory takes it"),
        None => {
            out.put_slice(b"{\"base64\":\"");
            out.put_slice(base64::engine::general_purpose::STANDARD.encode(bytes).as_bytes());
            out.put_slice(b"\"}");
        }
    }
}

/// What a reader gets in order: a record, or the place where records are gone.
#[derive(Debug, Clone)]
pub enum Item {
    /// A record.
    Record(Record),
    /// Records that are gone.
    Gap(Gap),
}

impl Item {
    /// Whose partition.
    #[must_use]
    pub fn partition(&self) -> Partition {
        match self {
            Self::Record(record) => record.partition,
            Self::Gap(gap) => gap.partition,
        }
    }

    /// The offset after it.
    #[must_use]
    pub fn next(&self) -> Offset {
        match self {
            Self::Record(record) => Offset(record.offset.0 + 1),
            Self::Gap(gap) => gap.to,
        }
    }
}

/// The name of a gap's reason on the wire.
#[must_use]
pub fn gap_reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Retention => "retention",
        GapReason::Compaction => "compaction",
        GapReason::Trim => "trim",
    }
}

/// Writes a gap's JSON object.
pub fn write_gap(out: &mut Vec<u8>, gap: &Gap) {
    let _ = write!(
        out,
        "{{\"partition\":{},\"from\":{},\"to\":{},\"reason\":\"{}\"}}",
        gap.partition.0,
        gap.from.0,
        gap.to.0,
        gap_reason(gap.reason)
    );
}
