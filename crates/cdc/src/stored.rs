//! The bytes of one record in the log. A change lies there as the JSON text that a reader is sent, with an index of its key
//! and value in front, so that reading parses nothing. It never panics on foreign bytes.
//!
//! A change: tag 1; five little-endian `u32`: where the value begins, its length, where the key begins, its length (0 = no
//! key), the length of the text before the append time; then that text (`"op":...,"event_time":...`), then the source (JSON).
//! A message of a byte stream: tag 2, then its bytes.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use tidegate_core::Timestamp;
use tidegate_core::record::{Operation, Origin};

use crate::record::operation_name;

const TAG_CHANGE: u8 = 1;
const TAG_RAW: u8 = 2;
const CHANGE_HEADER: usize = 1 + 5 * 4;

/// A stored record, taken apart without copying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// A change: JSON texts.
    Change(Change),
    /// A message of a byte stream.
    Raw(Bytes),
}

/// A change's texts: one piece of shared bytes and places in it. A reader of small records pays for each count of references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// The text, then the source.
    texts: Bytes,
    text_len: u32,
    /// Where the value is: its begin and its length. It lies within the text, as does the key.
    value: (u32, u32),
    key: (u32, u32),
}

impl Change {
    /// `"op":...,"key":...,"value":...,"before":...,"headers":...,"event_time":...`
    pub(crate) fn text(&self) -> &[u8] {
        &self.texts[..self.text_len as usize]
    }

    /// The same, shared.
    pub(crate) fn shared_text(&self) -> Bytes {
        self.texts.slice(..self.text_len as usize)
    }

    /// The value within it.
    pub(crate) fn value(&self) -> &[u8] {
        let (at, len) = self.value;
        &self.texts[at as usize..][..len as usize]
    }

    /// The same, shared.
    pub(crate) fn shared_value(&self) -> Bytes {
        self.texts.slice_ref(self.value())
    }

    /// The key within it, shared; empty = none.
    pub(crate) fn shared_key(&self) -> Bytes {
        let (at, len) = self.key;
        self.texts.slice_ref(&self.texts[at as usize..][..len as usize])
    }

    /// The source, or `null`.
    pub(crate) fn source(&self) -> &[u8] {
        &self.texts[self.text_len as usize..]
    }
}

/// The bytes are not a stored record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no stored record")]
pub(crate) struct NotARecord;

/// What a change is stored from: JSON texts that were checked before, borrowed from whoever has them.
pub(crate) struct Fields<'a> {
    pub(crate) operation: Operation,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: &'a [u8],
    pub(crate) before: Option<&'a [u8]>,
    pub(crate) headers: Option<&'a [u8]>,
    pub(crate) event_time: Option<Timestamp>,
    pub(crate) source: Option<&'a Origin>,
}

/// A change as it is stored.
pub(crate) fn change(record: &Fields<'_>) -> Bytes {
    let null: &[u8] = b"null";
    let (key, before) = (record.key.unwrap_or(null), record.before.unwrap_or(null));
    let headers = record.headers.unwrap_or(b"{}");
    let source = record.source.map_or_else(|| Bytes::from_static(null), crate::record::source_json);
    let capacity = CHANGE_HEADER + 128 + key.len() + record.value.len() + before.len() + headers.len() + source.len();
    let mut out = BytesMut::with_capacity(capacity);
    out.put_u8(TAG_CHANGE);
    out.put_bytes(0, 5 * 4);
    out.put_slice(b"\"op\":\"");
    out.put_slice(operation_name(record.operation).as_bytes());
    out.put_slice(b"\",\"key\":");
    let key_at = out.len() - CHANGE_HEADER;
    out.put_slice(key);
    out.put_slice(b",\"value\":");
    let value_at = out.len() - CHANGE_HEADER;
    out.put_slice(record.value);
    out.put_slice(b",\"before\":");
    out.put_slice(before);
    out.put_slice(b",\"headers\":");
    out.put_slice(headers);
    out.put_slice(b",\"event_time\":");
    match record.event_time {
        Some(time) => {
            out.put_u8(b'"');
            out.put_slice(time.to_string().as_bytes());
            out.put_u8(b'"');
        }
        None => out.put_slice(null),
    }
    let text_len = out.len() - CHANGE_HEADER;
    out.put_slice(&source);
    let key_len = if record.key.is_some() { key.len() } else { 0 };
    let index = [value_at, record.value.len(), key_at, key_len, text_len];
    for (slot, number) in out[1..CHANGE_HEADER].chunks_exact_mut(4).zip(index) {
        let number = u32::try_from(number).expect("a record is at most limits.record_max_bytes, below 4 GiB");
        slot.copy_from_slice(&number.to_le_bytes());
    }
    out.freeze()
}

/// A message of a byte stream as it is stored.
pub(crate) fn raw(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + message.len());
    out.put_u8(TAG_RAW);
    out.put_slice(message);
    out.freeze()
}

/// Takes stored bytes apart; they stay one piece.
pub(crate) fn open(mut bytes: Bytes) -> Result<Stored, NotARecord> {
    match bytes.first() {
        Some(&TAG_RAW) => {
            bytes.advance(1);
            Ok(Stored::Raw(bytes))
        }
        Some(&TAG_CHANGE) => {
            let header: &[u8; CHANGE_HEADER] = bytes.first_chunk().ok_or(NotARecord)?;
            let mut index = [0_u32; 5];
            for (number, slot) in index.iter_mut().zip(header[1..].as_chunks().0) {
                *number = u32::from_le_bytes(*slot);
            }
            let [value_at, value_len, key_at, key_len, text_len] = index;
            let fits = |at: u32, len: u32| at.checked_add(len).is_some_and(|end| end <= text_len);
            if text_len as usize > bytes.len() - CHANGE_HEADER || !fits(value_at, value_len) || !fits(key_at, key_len) {
                return Err(NotARecord);
            }
            bytes.advance(CHANGE_HEADER);
            Ok(Stored::Change(Change { texts: bytes, text_len, value: (value_at, value_len), key: (key_at, key_len) }))
        }
        _ => Err(NotARecord),
    }
}
