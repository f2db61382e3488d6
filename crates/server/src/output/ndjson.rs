//! NDJSON: each row's own bytes, or the stream's lines as they came.

use std::io::{self, Write};

use super::cell::row;
use super::{Output, OutputError};
use crate::client::{OpenLine, Summary};

/// Writes NDJSON.
pub struct NdjsonOutput {
    to: io::BufWriter<Box<dyn Write + Send>>,
    raw: bool,
    row: u64,
}

impl NdjsonOutput {
    /// To this place; `raw` = with the frame: the open line, row lines and the end line, as if nothing had ever been cut.
    #[must_use]
    pub fn new(to: Box<dyn Write + Send>, raw: bool) -> Self {
        Self { to: io::BufWriter::with_capacity(64 * 1024, to), raw, row: 0 }
    }

    fn line(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        self.to.write_all(bytes)?;
        Ok(self.to.write_all(b"\n")?)
    }
}

impl Output for NdjsonOutput {
    fn open(&mut self, _: &OpenLine, line: &[u8]) -> Result<(), OutputError> {
        if self.raw { self.line(line) } else { Ok(()) }
    }

    fn row(&mut self, line: &[u8]) -> Result<(), OutputError> {
        let bytes = if self.raw {
            line
        } else {
            row(line).ok_or(OutputError::Row { row: self.row, columns: 0, source: None })?
        };
        self.row += 1;
        self.line(bytes)
    }

    fn pause(&mut self) -> Result<(), OutputError> {
        Ok(self.to.flush()?)
    }

    fn end(&mut self, summary: Option<&Summary>) -> Result<(), OutputError> {
        if let (true, Some(summary)) = (self.raw, summary) {
            self.line(&summary.line)?;
        }
        Ok(self.to.flush()?)
    }
}
