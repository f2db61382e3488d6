//! The lines of an upload, one by one, as they come: bounded in length, each piece of the body within its time. It keeps no line
//! that it gave.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use serde_json::value::RawValue;
use tidegate_core::Clock;

use crate::body::BodyError;
use crate::gate::json_problem;
use crate::json::{JsonError, fields, invalid};
use crate::problem::Problem;

/// The first line is short.
pub(crate) const OPEN_MAX_BYTES: usize = 4_096;

/// How the client wants its rows to be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    /// Not at all.
    None,
    /// By a hash in the last line.
    Sha256,
}

/// Why there is no next line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineError {
    /// The body broke off, or nothing came for too long.
    Body(BodyError),
    /// The line is longer than it may be.
    TooLong { limit_bytes: usize },
}

/// A request's body as lines. Blank ones are passed over, and counted.
pub(super) struct Lines {
    body: Body,
    clock: Arc<dyn Clock>,
    limit_ms: u64,
    /// What has come and was not given yet.
    ahead: BytesMut,
    /// How much of it is known to have no line break.
    searched: usize,
    ended: bool,
    /// The number, from 1, of the line that was given last, or that is being read.
    pub(super) number: u64,
}

impl Lines {
    pub(super) fn new(body: Body, clock: Arc<dyn Clock>, limit_ms: u64) -> Self {
        Self { body, clock, limit_ms, ahead: BytesMut::new(), searched: 0, ended: false, number: 0 }
    }

    /// The next line that is not blank, without its line break; `None` at the end of the body.
    pub(super) async fn next(&mut self, limit_bytes: usize) -> Result<Option<Bytes>, LineError> {
        loop {
            while let Some(line) = self.ready() {
                self.number += 1;
                if line.len() > limit_bytes {
                    return Err(LineError::TooLong { limit_bytes });
                }
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
            }
            if self.ended && self.ahead.is_empty() {
                return Ok(None);
            }
            if self.ahead.len() > limit_bytes {
                self.number += 1;
                return Err(LineError::TooLong { limit_bytes });
            }
            if let Err(error) = self.more().await {
                self.number += 1;
                return Err(LineError::Body(error));
            }
        }
    }

    /// Whether something but blanks has come that was not given.
    pub(super) fn has_more(&self) -> bool {
        !self.ahead.trim_ascii().is_empty()
    }

    /// A line that is here whole.
    fn ready(&mut self) -> Option<Bytes> {
        match memchr::memchr(b'\n', &self.ahead[self.searched..]) {
            Some(at) => {
                let end = self.searched + at;
                let mut line = self.ahead.split_to(end + 1);
                line.truncate(end);
                self.searched = 0;
                Some(line.freeze())
            }
            None if self.ended && !self.ahead.is_empty() => {
                self.searched = 0;
                Some(self.ahead.split().freeze())
            }
            None => {
                self.searched = self.ahead.len();
                None
            }
        }
    }

    /// Takes in the next piece of the body.
    async fn more(&mut self) -> Result<(), BodyError> {
        let limit_ms = self.limit_ms;
        let deadline = self.clock.now().after(Duration::from_millis(limit_ms));
        let frame = tokio::select! {
            biased;
            frame = self.body.frame() => frame,
            () = self.clock.sleep_until(deadline) => return Err(BodyError::Timeout { limit_ms }),
        };
        match frame {
            None => self.ended = true,
            Some(Err(_)) => return Err(BodyError::Incomplete),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.ahead.extend_from_slice(&data);
                }
            }
        }
        Ok(())
    }
}

/// Reads the first line. What is wrong with it is a problem document: nothing was answered yet.
pub(super) async fn open(lines: &mut Lines) -> Result<Verify, Problem> {
    let line = match lines.next(OPEN_MAX_BYTES).await {
        Ok(line) => line,
        Err(LineError::Body(error)) => return Err(error.into()),
        Err(LineError::TooLong { limit_bytes }) => {
            let detail = format!("the first line must be {{\"open\":{{...}}}}, it has more than {limit_bytes} bytes");
            return Err(Problem::new(http::StatusCode::BAD_REQUEST, "invalid_field", detail)
                .with("field", "open")
                .with("line", lines.number)
                .with("max_bytes", limit_bytes));
        }
    };
    let number = lines.number.max(1);
    let refused = |error: JsonError| json_problem(&at_line(error, number)).with("line", number);
    parse_open(text(line.as_deref().unwrap_or_default()).map_err(refused)?).map_err(refused)
}

fn parse_open(text: &str) -> Result<Verify, JsonError> {
    if text.is_empty() {
        return Err(JsonError::MissingField { field: "open" });
    }
    let [open] = fields(text, &["open"])?;
    let raw = open.ok_or(JsonError::MissingField { field: "open" })?;
    if !raw.get().starts_with('{') {
        return Err(invalid("open", "an object", raw));
    }
    let [verify] = fields(raw.get(), &["verify"])?;
    match verify.map(RawValue::get) {
        None | Some(r#""none""#) => Ok(Verify::None),
        Some(r#""sha256""#) => Ok(Verify::Sha256),
        Some(_) => Err(invalid("open.verify", r#""none" or "sha256""#, verify.unwrap_or(raw))),
    }
}

/// What a line after the first one says.
#[derive(Debug)]
pub(super) enum Line<'a> {
    /// A row.
    Row(&'a RawValue),
    /// The end, with the hash that the client computed, if it said one.
    End(Option<String>),
}

pub(super) fn parse(text: &str) -> Result<Line<'_>, JsonError> {
    match fields(text, &["row", "end"])? {
        [Some(row), None] => Ok(Line::Row(row)),
        [None, Some(end)] => {
            if !end.get().starts_with('{') {
                return Err(invalid("end", "an object", end));
            }
            let [sha256] = fields(end.get(), &["sha256"])?;
            let hash = |raw: &RawValue| {
                serde_json::from_str::<String>(raw.get())
                    .ok()
                    .filter(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .ok_or_else(|| invalid("end.sha256", "a SHA-256, 64 hexadecimal digits", raw))
            };
            Ok(Line::End(sha256.map(hash).transpose()?))
        }
        [Some(_), Some(end)] => Err(invalid("end", "in a line of its own", end)),
        [None, None] => Err(JsonError::MissingField { field: "row" }),
    }
}

/// The text that a line is.
pub(super) fn text(line: &[u8]) -> Result<&str, JsonError> {
    std::str::from_utf8(line).map_err(|error| JsonError::Malformed {
        what: "invalid UTF-8".into(),
        line: 1,
        column: error.valid_up_to() + 1,
    })
}

/// Malformed JSON is told at its line in the body.
pub(super) fn at_line(error: JsonError, number: u64) -> JsonError {
    match error {
        JsonError::Malformed { what, column, .. } => {
            JsonError::Malformed { what, line: usize::try_from(number).unwrap_or(usize::MAX), column }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Failure as _;

    #[test]
    fn the_first_line_says_how_rows_are_checked() {
        assert_eq!(parse_open(r#"{"open":{}}"#), Ok(Verify::None));
        assert_eq!(parse_open(r#"{"open":{"verify":"none"}}"#), Ok(Verify::None));
        assert_eq!(parse_open(r#" { "open" : { "verify" : "sha256" } } "#), Ok(Verify::Sha256));
        for (line, code) in [
            ("", "missing_field"),
            ("{}", "missing_field"),
            (r#"{"row":{}}"#, "unknown_field"),
            (r#"{"open":true}"#, "invalid_field"),
            (r#"{"open":{"verify":"md5"}}"#, "invalid_field"),
            (r#"{"open":{"verify":null}}"#, "invalid_field"),
            (r#"{"open":{"check":"none"}}"#, "unknown_field"),
            (r#"{"open":{},"open":{}}"#, "duplicate_field"),
            ("nope", "malformed_json"),
        ] {
            assert_eq!(parse_open(line).unwrap_err().code(), code, "{line}");
        }
    }

    #[test]
    fn a_line_is_a_row_or_the_end() {
        assert!(matches!(parse(r#"{"row":[1, 2]}"#), Ok(Line::Row(raw)) if raw.get() == "[1, 2]"));
        assert!(matches!(parse(r#"{"row":null}"#), Ok(Line::Row(raw)) if raw.get() == "null"));
        assert!(matches!(parse(r#"{"end":{}}"#), Ok(Line::End(None))));
        let hash = "aB".repeat(32);
        assert!(matches!(parse(&format!(r#"{{"end":{{"sha256":"{hash}"}}}}"#)), Ok(Line::End(Some(_)))));
        for (line, code) in [
            ("{}", "missing_field"),
            ("7", "invalid_field"),
            (r#"{"rows":1}"#, "unknown_field"),
            (r#"{"row":1,"row":2}"#, "duplicate_field"),
            (r#"{"row":1,"end":{}}"#, "invalid_field"),
            (r#"{"end":{"sha256":"ab"}}"#, "invalid_field"),
            (r#"{"end":{"md5":"ab"}}"#, "unknown_field"),
            (r#"{"row":1}}"#, "malformed_json"),
            (r#"{"row":"#, "malformed_json"),
        ] {
            assert_eq!(parse(line).unwrap_err().code(), code, "{line}");
        }
    }
}
