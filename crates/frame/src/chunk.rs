//! Chunks of row lines: a chunk is given on the first of bytes, rows and latency. Pure: it reads no clock, and its caller
//! drives the timer. It never holds more than one chunk and never cuts a line.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidegate_core::Moment;
use tidegate_core::limit::Settings;

/// A page, the unit in which a chunk's size is set.
pub const PAGE_BYTES: usize = 16_384;

/// When a chunk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkBounds {
    /// It has this many bytes or more. 0 means 1.
    pub bytes: usize,
    /// It has this many rows. 0 means 1.
    pub rows: u32,
    /// It is due this long after its first row.
    pub latency: Duration,
}

impl ChunkBounds {
    /// The bounds that a stream opened with these settings keeps.
    #[must_use]
    pub fn from_settings(settings: &Settings) -> Self {
        Self {
            bytes: usize::try_from(settings.stream_chunk_pages()).unwrap_or(usize::MAX).saturating_mul(PAGE_BYTES),
            rows: u32::try_from(settings.stream_chunk_max_rows()).unwrap_or(u32::MAX),
            latency: Duration::from_millis(settings.stream_chunk_max_latency_ms()),
        }
    }
}

/// Why a chunk was given when it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlushCause {
    /// It reached the bound of bytes.
    Bytes,
    /// It reached the bound of rows.
    Rows,
    /// Its first row had waited long enough.
    Latency,
    /// The caller asked for it.
    Asked,
    /// No more rows come.
    End,
}

/// Complete row lines, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The number of its first row, counted from 0 of the whole result.
    pub first_row: u64,
    /// How many rows it has; at least 1.
    pub rows: u32,
    /// Their lines, each with its line break.
    pub bytes: Bytes,
    /// Why it was given.
    pub cause: FlushCause,
}

impl Chunk {
    /// The number of the row after its last.
    #[must_use]
    pub fn end_row(&self) -> u64 {
        self.first_row.saturating_add(u64::from(self.rows))
    }

    /// Where in `bytes` the row of this number begins; the length of `bytes` for the row after the last; `None` for a row
    /// that is neither. Costs a search for line breaks up to there.
    #[must_use]
    pub fn split_at_row(&self, row: u64) -> Option<usize> {
        let skip = row.checked_sub(self.first_row).filter(|skip| *skip <= u64::from(self.rows))?;
        match usize::try_from(skip).ok()?.checked_sub(1) {
            None => Some(0),
            Some(before) => memchr::memchr_iter(b'\n', &self.bytes).nth(before).map(|end| end + 1),
        }
    }
}

/// Gathers lines into chunks.
///
/// A chunk is given by [`append`](Self::append) as soon as it reaches a bound, so it exceeds the bound of bytes by less
/// than its last row, and a row that is larger than the bound ends its chunk at once. The caller waits for
/// [`deadline`](Self::deadline) beside waiting for rows and then calls [`flush_due`](Self::flush_due), so that rows of an idle
/// source are sent too.
///
/// Memory: one buffer of the bound's size and an eighth, allocated with the first row. A chunk that fills most of
/// the buffer takes it along; a smaller one is copied out at its own size. So a chunk that is kept for long never
/// pins much more than its own bytes, and a buffer that one huge row made grow is not kept.
#[derive(Debug)]
pub struct ChunkProducer {
    bounds: ChunkBounds,
    buffer: BytesMut,
    /// Bytes of complete lines in `buffer`; whatever lies behind was left by a writer that panicked.
    filled: usize,
    rows: u32,
    first_row: u64,
    deadline: Option<Moment>,
}

impl ChunkProducer {
    /// A producer whose first row has this number.
    #[must_use]
    pub fn new(bounds: ChunkBounds, next_row: u64) -> Self {
        let bounds = ChunkBounds { bytes: bounds.bytes.max(1), rows: bounds.rows.max(1), latency: bounds.latency };
        Self { bounds, buffer: BytesMut::new(), filled: 0, rows: 0, first_row: next_row, deadline: None }
    }

    /// Adds one row. `write` appends exactly one line with its line break, or fails and the row is not there. `now` is
    /// called only if the row is the first of its chunk. Gives the chunk if it reached a bound with this row.
    pub fn append<E>(
        &mut self,
        now: impl FnOnce() -> Moment,
        write: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<Option<Chunk>, E> {
        self.buffer.truncate(self.filled);
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(self.nominal_capacity());
        }
        if let Err(error) = write(&mut self.buffer) {
            self.buffer.truncate(self.filled);
            if self.rows == 0 {
                self.drop_oversized();
            }
            return Err(error);
        }
        debug_assert_eq!(
            memchr::memchr(b'\n', &self.buffer[self.filled..]),
            Some(self.buffer.len() - self.filled - 1),
            "exactly one line"
        );
        self.filled = self.buffer.len();
        self.rows += 1;
        if self.rows == 1 {
            self.deadline = Some(now().after(self.bounds.latency));
        }
        Ok(if self.filled >= self.bounds.bytes {
            self.take(FlushCause::Bytes)
        } else if self.rows >= self.bounds.rows {
            self.take(FlushCause::Rows)
        } else {
            None
        })
    }

    /// When what is buffered is due; `None` if nothing is.
    #[must_use]
    pub const fn deadline(&self) -> Option<Moment> {
        self.deadline
    }

    /// What is buffered, if it is due.
    pub fn flush_due(&mut self, now: Moment) -> Option<Chunk> {
        if self.deadline? <= now { self.take(FlushCause::Latency) } else { None }
    }

    /// What is buffered, due or not.
    pub fn flush(&mut self) -> Option<Chunk> {
        self.take(FlushCause::Asked)
    }

    /// What is buffered, as the last chunk; frees the buffer.
    pub fn finish(&mut self) -> Option<Chunk> {
        let last = self.take(FlushCause::End);
        self.buffer = BytesMut::new();
        last
    }

    /// The number of the next row that comes in.
    #[must_use]
    pub fn next_row(&self) -> u64 {
        self.first_row.saturating_add(u64::from(self.rows))
    }

    /// Bytes of rows that no chunk has yet.
    #[must_use]
    pub const fn buffered_bytes(&self) -> usize {
        self.filled
    }

    /// The bytes that the producer's own buffer takes.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// The bound, and room for a last row that crosses it.
    fn nominal_capacity(&self) -> usize {
        self.bounds.bytes.saturating_add((self.bounds.bytes / 8).max(512))
    }

    fn drop_oversized(&mut self) {
        if self.buffer.capacity() > self.nominal_capacity() {
            self.buffer = BytesMut::new();
        }
    }

    fn take(&mut self, cause: FlushCause) -> Option<Chunk> {
        self.deadline = None;
        if self.rows == 0 {
            return None;
        }
        self.buffer.truncate(self.filled);
        let bytes = if self.filled >= self.buffer.capacity() / 4 * 3 {
            std::mem::take(&mut self.buffer).freeze()
        } else {
            let copy = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            self.drop_oversized();
            copy
        };
        let chunk = Chunk { first_row: self.first_row, rows: self.rows, bytes, cause };
        self.first_row = chunk.end_row();
        self.rows = 0;
        self.filled = 0;
        Some(chunk)
    }
}
