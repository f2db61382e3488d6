//! Lines out of a body that comes in pieces. It holds at most one line (bounded) and one piece, and never gives out a line
//! whose line break has not come.

use bytes::{Buf, Bytes, BytesMut};

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] reqwest::Error),
    /// The line is longer than the bound.
    #[error("the line is longer than {limit_bytes} bytes")]
    TooLong {
        /// The bound.
        limit_bytes: usize,
    },
}

/// Reads the lines of an answer.
#[derive(Debug)]
pub struct LineReader {
    answer: reqwest::Response,
    buffer: BytesMut,
    /// Up to here the buffer has no line break.
    searched: usize,
    limit_bytes: usize,
    received_bytes: u64,
}

impl LineReader {
    /// Reads lines of at most `limit_bytes`.
    #[must_use]
    pub fn new(answer: reqwest::Response, limit_bytes: usize) -> Self {
        Self { answer, buffer: BytesMut::new(), searched: 0, limit_bytes, received_bytes: 0 }
    }

    /// Bytes that came, with what was not read yet.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Whether a whole line is here.
    pub fn has_line(&mut self) -> bool {
        self.find().is_some()
    }

    /// The place of the next line break.
    fn find(&mut self) -> Option<usize> {
        let found = memchr::memchr(b'\n', &self.buffer[self.searched..]).map(|at| self.searched + at);
        // The next search begins at the line break itself, or where there was none.
        self.searched = found.unwrap_or(self.buffer.len());
        found
    }

    /// A whole line that is here already.
    pub fn buffered(&mut self) -> Option<Bytes> {
        let at = self.find()?;
        let line = self.buffer.split_to(at).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        Some(line)
    }

    /// The next line, without its line break; `None` at the end. What follows the last line break is dropped: it is no line.
    /// Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            if let Some(line) = self.buffered() {
                return Ok(Some(line));
            }
            if self.buffer.len() > self.limit_bytes {
                return Err(LineError::TooLong { limit_bytes: self.limit_bytes });
            }
            match self.answer.chunk().await.map_err(LineError::Broken)? {
                Some(piece) => {
                    self.received_bytes += piece.len() as u64;
                    self.buffer.extend_from_slice(&piece);
                }
                None => return Ok(None),
            }
        }
    }
}
