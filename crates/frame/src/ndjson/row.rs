//! Rows into lines: the hottest code of Tidegate. It writes each cell once, straight into the caller's buffer. It never
//! grows the buffer much beyond the caller's bound and never leaves half a row behind.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use tidegate_core::port::{Cell, CellWriter, Column, ColumnType, RowAbandoned, SinkError};
use tidegate_core::{ErrorKind, Failure};

use super::RowShape;

/// Two columns of one name cannot both be fields of one JSON object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "two columns are named {name:?}, so a row cannot be a JSON object; give one of them an alias (`... as other_name`), or ask for \"rows\":\"array\""
)]
pub struct DuplicateColumn {
    /// The name that comes twice.
    pub name: Box<str>,
}

impl Failure for DuplicateColumn {
    fn code(&self) -> &'static str {
        "duplicate_column"
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// Why a row was not encoded. The buffer is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// `fill` gave the row up.
    #[error("the source gave the row up")]
    Abandoned,
    /// The line would be longer than it may be.
    #[error("the row is larger than a row may be ({limit_bytes} bytes)")]
    TooLarge {
        /// The bound, the line break included.
        limit_bytes: usize,
    },
    /// `fill` did not write one cell a column.
    #[error("a row has {expected} cells, {written} were written")]
    WrongCellCount {
        /// How many columns there are.
        expected: usize,
        /// How many cells were written.
        written: usize,
    },
}

impl EncodeError {
    /// The same as the error of a row sink; `row` is the row's number in the result, from 0.
    #[must_use]
    pub fn at_row(self, row: u64) -> SinkError {
        match self {
            Self::Abandoned => SinkError::Abandoned,
            Self::TooLarge { limit_bytes } => {
                SinkError::RowTooLarge { row, limit_bytes: u64::try_from(limit_bytes).unwrap_or(u64::MAX) }
            }
            Self::WrongCellCount { expected, written } => SinkError::WrongCellCount { expected, written },
        }
    }
}

/// Encodes the rows of one result. Immutable: one encoder serves any number of threads and resumes.
///
/// Everything that is the same in each row (the braces, the escaped names) is laid down once, in [`RowEncoder::new`].
#[derive(Debug, Clone)]
pub struct RowEncoder {
    /// What stands before each cell, all in one piece, each followed by a `"` for cells that are strings.
    prefixes: Box<[u8]>,
    cells: Box<[CellPlan]>,
    /// What a row without columns begins with; otherwise it is part of the first prefix.
    head: &'static [u8],
    tail: &'static [u8],
}

/// How the cells of one column are written.
#[derive(Debug, Clone, Copy)]
struct CellPlan {
    /// Where its prefix begins in [`RowEncoder::prefixes`].
    start: usize,
    /// Where it ends, without the quotation mark that follows it.
    end: usize,
    /// Whether a text is a bare string here; if not it is `{"text":...}`.
    bare_text: bool,
    /// Whether a blob is a bare string here; if not it is `{"blob":...}`.
    bare_blob: bool,
    /// Whether NaN and the infinities are bare strings here; if not they are `{"real":...}`.
    bare_non_finite: bool,
}

impl CellPlan {
    fn new(start: usize, end: usize, kind: ColumnType) -> Self {
        Self {
            start,
            end,
            bare_text: !matches!(kind, ColumnType::Blob | ColumnType::Real),
            bare_blob: kind == ColumnType::Blob,
            bare_non_finite: kind == ColumnType::Real,
        }
    }
}

impl RowEncoder {
    /// An encoder for rows of these columns.
    ///
    /// Fails when the rows are to be objects and two columns share a name.
    pub fn new(columns: &[Column], shape: RowShape) -> Result<Self, DuplicateColumn> {
        let (head, tail): (&'static [u8], &'static [u8]) = match shape {
            RowShape::Object => (b"{\"row\":{", b"}}\n"),
            RowShape::Array => (b"{\"row\":[", b"]}\n"),
        };
        if shape == RowShape::Object {
            let mut seen = std::collections::HashSet::with_capacity(columns.len());
            if let Some(column) = columns.iter().find(|column| !seen.insert(&column.name)) {
                return Err(DuplicateColumn { name: column.name.clone() });
            }
        }
        let mut prefixes = Vec::new();
        let mut cells = Vec::with_capacity(columns.len());
        for column in columns {
            let start = prefixes.len();
            prefixes.extend_from_slice(if cells.is_empty() { head } else { b"," });
            if shape == RowShape::Object {
                serde_json::to_writer(&mut prefixes, &*column.name).expect("a string goes into a Vec");
                prefixes.push(b':');
            }
            let end = prefixes.len();
            prefixes.push(b'"');
            cells.push(CellPlan::new(start, end, column.kind));
        }
        Ok(Self { prefixes: prefixes.into(), cells: cells.into(), head, tail })
    }

    /// How many cells a row has.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.cells.len()
    }

    /// Appends one line, its line break included, of at most `max_bytes`. Calls `fill` once; `fill` writes one cell a
    /// column, in order. On an error `buf` holds what it held before.
    ///
    /// A cell that does not fit into what is left of `max_bytes` is not written, so the buffer's capacity stays within
    /// the usual doubling of `max_bytes`, however large the cell is.
    pub fn encode(
        &self,
        buf: &mut BytesMut,
        max_bytes: usize,
        fill: &mut dyn FnMut(&mut dyn CellWriter) -> Result<(), RowAbandoned>,
    ) -> Result<(), EncodeError> {
        let start = buf.len();
        let fixed = self.tail.len() + if self.cells.is_empty() { self.head.len() } else { 0 };
        let mut line = LineWriter {
            encoder: self,
            end: start.saturating_add(max_bytes.saturating_sub(fixed)),
            buf,
            written: 0,
            overflowed: max_bytes < fixed,
        };
        let filled = fill(&mut line);
        let LineWriter { buf, written, overflowed, .. } = line;
        let error = if filled.is_err() {
            EncodeError::Abandoned
        } else if written != self.cells.len() {
            EncodeError::WrongCellCount { expected: self.cells.len(), written }
        } else if overflowed {
            EncodeError::TooLarge { limit_bytes: max_bytes }
        } else {
            if self.cells.is_empty() {
                buf.extend_from_slice(self.head);
            }
            buf.extend_from_slice(self.tail);
            return Ok(());
        };
        buf.truncate(start);
        Err(error)
    }
}

/// The cell does not fit into what is left.
struct Overflow;

/// One line while it is being written.
struct LineWriter<'a> {
    encoder: &'a RowEncoder,
    buf: &'a mut BytesMut,
    /// The length that `buf` may reach before the tail: never below `buf.len()`.
    end: usize,
    written: usize,
    overflowed: bool,
}

impl CellWriter for LineWriter<'_> {
    fn cell(&mut self, cell: Cell<'_>) {
        let encoder = self.encoder;
        let plan = encoder.cells.get(self.written);
        self.written = self.written.saturating_add(1);
        let Some(plan) = plan else { return };
        if !self.overflowed {
            self.overflowed = self.write(plan, cell).is_err();
        }
    }
}

impl LineWriter<'_> {
    #[inline]
    fn write(&mut self, plan: &CellPlan, cell: Cell<'_>) -> Result<(), Overflow> {
        let prefix = &self.encoder.prefixes[plan.start..plan.end];
        match cell {
            Cell::Null => self.pair(prefix, b"null"),
            Cell::Bool(true) => self.pair(prefix, b"true"),
            Cell::Bool(false) => self.pair(prefix, b"false"),
            Cell::Integer(value) => self.pair(prefix, itoa::Buffer::new().format(value).as_bytes()),
            Cell::Real(value) if value.is_finite() => {
                self.put(prefix)?;
                serde_json::to_writer(self.bounded(), &value).map_err(|_| Overflow)
            }
            Cell::Real(value) => {
                let name = if value.is_nan() {
                    "NaN"
                } else if value > 0.0 {
                    "Infinity"
                } else {
                    "-Infinity"
                };
                self.put(prefix)?;
                let (open, close): (&[u8], &[u8]) =
                    if plan.bare_non_finite { (b"\"", b"\"") } else { (b"{\"real\":\"", b"\"}") };
                self.pair(open, name.as_bytes())?;
                self.put(close)
            }
            Cell::Number(text) => {
                debug_assert!(
                    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)),
                    "the text of a finite number"
                );
                self.pair(prefix, text.as_bytes())
            }
            Cell::Text(text) if plan.bare_text => self.string(plan, text),
            Cell::Text(text) => {
                self.pair(prefix, b"{\"text\":")?;
                self.escaped(text)?;
                self.put(b"}")
            }
            Cell::InvalidText(bytes) => {
                self.put(prefix)?;
                self.base64(b"{\"text_base64\":\"", bytes, b"\"}")
            }
            Cell::Blob(bytes) => {
                self.put(prefix)?;
                if plan.bare_blob {
                    self.base64(b"\"", bytes, b"\"")
                } else {
                    self.base64(b"{\"blob\":\"", bytes, b"\"}")
                }
            }
            Cell::Json(text) => {
                self.put(prefix)?;
                self.json(text.as_bytes())
            }
        }
    }

    #[inline]
    fn room(&self) -> usize {
        self.end - self.buf.len()
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Overflow> {
        if bytes.len() > self.room() {
            return Err(Overflow);
        }
        self.buf.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn pair(&mut self, first: &[u8], second: &[u8]) -> Result<(), Overflow> {
        if first.len().saturating_add(second.len()) > self.room() {
            return Err(Overflow);
        }
        self.buf.reserve(first.len() + second.len());
        self.buf.extend_from_slice(first);
        self.buf.extend_from_slice(second);
        Ok(())
    }

    /// A text as a bare string. Most texts have nothing to escape: one vectorised pass finds that out, and they are copied.
    #[inline]
    fn string(&mut self, plan: &CellPlan, text: &str) -> Result<(), Overflow> {
        let prefix = &self.encoder.prefixes[plan.start..plan.end];
        let size = (prefix.len() + 2).saturating_add(text.len());
        if size > self.room() {
            return Err(Overflow);
        }
        self.buf.reserve(size);
        if needs_escape(text.as_bytes()) {
            self.buf.extend_from_slice(prefix);
            return self.escaped(text);
        }
        self.buf.extend_from_slice(&self.encoder.prefixes[plan.start..=plan.end]);
        self.buf.extend_from_slice(text.as_bytes());
        self.buf.extend_from_slice(b"\"");
        Ok(())
    }

    fn escaped(&mut self, text: &str) -> Result<(), Overflow> {
        if text.len().saturating_add(2) > self.room() {
            return Err(Overflow);
        }
        serde_json::to_writer(self.bounded(), text).map_err(|_| Overflow)
    }

    fn base64(&mut self, open: &[u8], bytes: &[u8], close: &[u8]) -> Result<(), Overflow> {
        let encoded = base64::encoded_len(bytes.len(), true).ok_or(Overflow)?;
        let size = encoded.saturating_add(open.len() + close.len());
        if size > self.room() {
            return Err(Overflow);
        }
        self.buf.reserve(size);
        self.buf.extend_from_slice(open);
        let at = self.buf.len();
        self.buf.resize(at + encoded, 0);
        BASE64.encode_slice(bytes, &mut self.buf[at..]).expect("the slice has the encoded length");
        self.buf.extend_from_slice(close);
        Ok(())
    }

    /// JSON as it is. A source promises no line breaks outside of strings, and inside of strings JSON has none; a break
    /// here would let a value forge lines of the stream, so one that comes all the same becomes a space, which means
    /// the same in JSON.
    fn json(&mut self, text: &[u8]) -> Result<(), Overflow> {
        let at = self.buf.len();
        self.put(text)?;
        for broken in memchr::memchr2_iter(b'\n', b'\r', text) {
            self.buf[at + broken] = b' ';
        }
        Ok(())
    }

    fn bounded(&mut self) -> Bounded<'_> {
        Bounded { end: self.end, buf: self.buf }
    }
}

/// Whether JSON writes any of these bytes as something else. Looks at 16 bytes at a time without an early exit inside
/// them, which compiles to a few vector instructions; the last 16 overlap those before, so that short texts, the
/// most common ones, have no slow remainder.
#[inline]
fn needs_escape(text: &[u8]) -> bool {
    if let Some(last) = text.last_chunk::<16>() {
        let (blocks, _) = text.as_chunks::<16>();
        blocks.iter().any(any_escaped) || any_escaped(last)
    } else if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        any_escaped(first) | any_escaped(last)
    } else {
        text.iter().fold(false, |found, &byte| found | is_escaped(byte))
    }
}

#[inline]
fn any_escaped<const N: usize>(block: &[u8; N]) -> bool {
    block.iter().fold(0, |found, &byte| found | u8::from(is_escaped(byte))) != 0
}

#[inline]
const fn is_escaped(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

/// Takes bytes up to a bound, then errors.
struct Bounded<'a> {
    buf: &'a mut BytesMut,
    end: usize,
}

impl io::Write for Bounded<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.end - self.buf.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.buf.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
