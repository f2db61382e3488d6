//! The documents of a query stream as a client reads them, and problem documents. It takes what a later server adds
//! without complaint, and never believes a row before its line is whole.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::change::GapInfo;

/// The first line of a stream.
#[derive(Debug, Clone, Deserialize)]
pub struct OpenLine {
    /// The lease's public handle.
    pub lease: String,
    /// What a resume needs; `None` = the stream cannot be resumed.
    pub cursor: Option<String>,
    /// The snapshot's name.
    pub snapshot: String,
    /// Why there is no cursor.
    #[serde(default)]
    pub not_resumable_because: Option<String>,
    /// The columns, in order.
    pub columns: Vec<Column>,
    /// A hash of the columns.
    pub schema: String,
    /// How long the cursor lives without being read, in ms.
    pub ttl_ms: u64,
    /// The number of the first row that follows.
    pub from_row: u64,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its portable type.
    #[serde(rename = "type")]
    pub kind: String,
}

/// The last line of a stream.
#[derive(Debug, Clone, Deserialize)]
pub struct EndLine {
    /// How many rows there are, from row 0.
    pub rows: u64,
    /// SHA-256 over all row lines, from row 0, in hex.
    pub prefix_hash: String,
    /// `complete`, `cancelled` or `failed`.
    pub status: String,
}

/// What went wrong after the first line.
#[derive(Debug, Clone, Deserialize)]
pub struct ErrorLine {
    /// The stable code.
    pub code: String,
    /// In words.
    pub message: String,
    /// `never`, `now` or `after`.
    #[serde(default)]
    pub retry: String,
    /// With `after`: how long, in ms.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
}

impl ErrorLine {
    /// Whether a resume can succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.retry.as_str(), "now" | "after")
    }
}

/// A line that is no row.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Document {
    Open(OpenLine),
    End(EndLine),
    Error(ErrorLine),
}

const ROW_HEAD: &[u8] = b"{\"row\":";

/// The row in a row line, or `None` where the line is another document.
pub(super) fn row_of(line: &[u8]) -> Option<&[u8]> {
    line.strip_prefix(ROW_HEAD)?.strip_suffix(b"}")
}

/// A problem document (RFC 9457), or what could be made of an answer that is none.
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// The stable code.
    #[serde(default)]
    pub code: String,
    /// A short text.
    #[serde(default)]
    pub title: String,
    /// In words.
    #[serde(default)]
    pub detail: String,
    /// `never`, `now` or `after`.
    #[serde(default)]
    pub retry: String,
    /// With `after`: how long, in ms.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    /// What else it says, such as the line that is broken.
    #[serde(flatten)]
    pub members: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    /// The record of the request's body that it is about, from 0.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        self.members.get("index")?.as_u64().and_then(|index| usize::try_from(index).ok())
    }

    /// Whether the same request can succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.retry.as_str() {
            "now" | "after" => true,
            "never" => false,
            // Not one of ours: something between us and the server.
            _ => matches!(self.status, 429 | 502 | 503 | 504),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = if self.code.is_empty() { "no code" } else { &self.code };
        let words = if self.detail.is_empty() { &self.title } else { &self.detail };
        write!(f, "{} {code}: {}", self.status, printable(words))
    }
}

/// A server's words on a terminal: no control character of theirs takes effect.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

const PROBLEM_MAX_BYTES: usize = 64 * 1024;

/// Reads the problem out of an answer that is not 200.
pub(super) async fn problem(mut answer: reqwest::Response) -> Problem {
    let status = answer.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        let room = PROBLEM_MAX_BYTES - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == PROBLEM_MAX_BYTES {
            break;
        }
    }
    match serde_json::from_slice::<Problem>(&body) {
        Ok(mut problem) => {
            problem.status = status.as_u16();
            problem
        }
        Err(_) => Problem {
            status: status.as_u16(),
            code: String::new(),
            title: status.canonical_reason().unwrap_or("no reason given").to_owned(),
            detail: String::new(),
            retry: String::new(),
            retry_after_ms: None,
            members: serde_json::Map::new(),
        },
    }
}

/// A line of a read of records.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ItemLine<'a> {
    #[serde(borrow)]
    Record(&'a RawValue),
    Gap(GapInfo),
    Next(NextLine),
    Error(Box<ErrorLine>),
}

/// Where to read on.
#[derive(Debug, Deserialize)]
pub(super) struct NextLine {
    pub(super) offset: u64,
}
