//! The lines around the rows: `open`, `end`, `error`. Field for field as the public contract lists them. They never hold
//! rows, and `Debug` never shows a cursor.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::ser::SerializeStruct as _;
use tidegate_core::id::LeaseId;
use tidegate_core::port::Column;
use tidegate_core::{Failure, Retry};

use crate::prefix::PrefixHash;

/// The first line of a stream.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct OpenLine {
    /// The lease's public handle.
    pub lease: LeaseId,
    /// The cursor as it goes over the wire (48 hex digits); `None` where the stream cannot be resumed.
    pub cursor: Option<String>,
    /// The source's name of the pinned snapshot.
    pub snapshot: String,
    /// Whether a resume gives the same rows.
    pub resumable: bool,
    /// Why not, in words.
    pub not_resumable_because: Option<String>,
    /// The columns, in order.
    pub columns: Arc<[Column]>,
    /// [`schema_fingerprint`](super::schema_fingerprint) of the columns.
    pub schema: String,
    /// How long the snapshot outlives the last read, in milliseconds.
    pub ttl_ms: u64,
    /// The number of the first row that follows, counted from 0 of the whole result.
    pub from_row: u64,
}

impl fmt::Debug for OpenLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenLine")
            .field("lease", &self.lease)
            .field("cursor", &self.cursor.as_ref().map(|_| format_args!("..")))
            .field("snapshot", &self.snapshot)
            .field("from_row", &self.from_row)
            .finish_non_exhaustive()
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EndStatus {
    /// Every row was sent.
    Complete,
    /// Its owner cancelled it.
    Cancelled,
    /// An error line says why.
    Failed,
}

/// The last line of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndLine {
    /// Rows from row 0 of the whole result, those of earlier readings included.
    pub rows: u64,
    /// The number of the first row of this reading.
    pub from_row: u64,
    /// The hash over all these `rows`.
    pub prefix_hash: PrefixHash,
    /// How it ended.
    pub status: EndStatus,
}

/// An error after the first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorLine {
    /// The stable code.
    pub code: Cow<'static, str>,
    /// What happened and what to do, for people.
    pub message: String,
    /// Whether to try again; on the wire `retry` and, where there is a time, `retry_after_ms`.
    pub retry: Retry,
}

impl ErrorLine {
    /// The line for a typed error: its code, its own words, its advice on retrying.
    #[must_use]
    pub fn of(failure: &(impl Failure + ?Sized)) -> Self {
        Self { code: Cow::Borrowed(failure.code()), message: failure.to_string(), retry: failure.retry() }
    }

    /// `{"error":{...}}` and a line break.
    #[must_use]
    pub fn to_line(&self) -> Bytes {
        line("error", self)
    }
}

impl Serialize for ErrorLine {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (retry, after) = match self.retry {
            Retry::Never => ("never", None),
            Retry::Now => ("now", None),
            Retry::After(wait) => ("after", Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))),
        };
        let mut fields = serializer.serialize_struct("ErrorLine", if after.is_some() { 4 } else { 3 })?;
        fields.serialize_field("code", &self.code)?;
        fields.serialize_field("message", &self.message)?;
        fields.serialize_field("retry", retry)?;
        if let Some(ms) = after {
            fields.serialize_field("retry_after_ms", &ms)?;
        }
        fields.end()
    }
}

impl OpenLine {
    /// `{"open":{...}}` and a line break.
    #[must_use]
    pub fn to_line(&self) -> Bytes {
        line("open", self)
    }
}

impl EndLine {
    /// `{"end":{...}}` and a line break.
    #[must_use]
    pub fn to_line(&self) -> Bytes {
        line("end", self)
    }
}

fn line(name: &'static str, body: &impl Serialize) -> Bytes {
    let mut text = Vec::with_capacity(256);
    text.extend_from_slice(b"{\"");
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\":");
    serde_json::to_writer(&mut text, body).expect("texts and numbers in structs with fixed names always serialize");
    text.extend_from_slice(b"}\n");
    text.into()
}
