//! The records of a read as a body: bytes in a row, or one JSON array. Large records are handed on as they lie in the log, small ones
//! are put together. While one part is being sent the next is being read, and no more than that is in memory.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::Frame;
use tidegate_cdc::durable::{DurableStream, MessageKind};
use tidegate_cdc::{Item, ReadError};
use tidegate_core::port::ReadBounds;
use tidegate_core::position::Offset;
use tokio::task::JoinHandle;

/// What is read at a time.
pub(super) const PART: ReadBounds = ReadBounds { records: 16_384, bytes: 1024 * 1024 };
/// A record from this size on is not copied.
const SHARED_MIN_BYTES: usize = 8 * 1024;
/// The most that is handed to a connection at a time: each piece that is asked for shows that the client takes something.
const PIECE_BYTES: usize = 128 * 1024;

/// The read broke off: the connection must break, so that nobody takes the part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the read broke off before its end")]
pub(super) struct BrokenOff;

/// Puts records into pieces of a body.
pub(super) struct Writer {
    kind: MessageKind,
    pieces: VecDeque<Bytes>,
    open: BytesMut,
    /// A JSON array's first value has been written.
    begun: bool,
}

impl Writer {
    pub(super) fn new(kind: MessageKind) -> Self {
        let mut open = BytesMut::new();
        if kind == MessageKind::Json {
            open.put_u8(b'[');
        }
        Self { kind, pieces: VecDeque::new(), open, begun: false }
    }

    /// Adds the records before `end`.
    pub(super) fn add(&mut self, items: &[Item], end: Offset) {
        for item in items {
            let Item::Record(record) = item else { continue };
            if record.offset >= end {
                return;
            }
            if self.kind == MessageKind::Json && std::mem::replace(&mut self.begun, true) {
                self.open.put_u8(b',');
            }
            match record.raw() {
                Some(raw) => self.bytes(raw),
                None => self.bytes(&record.value()),
            }
        }
    }

    fn bytes(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARED_MIN_BYTES {
            if self.open.len() + bytes.len() > PIECE_BYTES {
                self.cut();
            }
            if self.open.capacity() == 0 {
                self.open.reserve(bytes.len().max(256));
            }
            self.open.put_slice(bytes);
            return;
        }
        self.cut();
        let mut rest = bytes.clone();
        while rest.len() > PIECE_BYTES {
            self.pieces.push_back(rest.split_to(PIECE_BYTES));
        }
        self.pieces.push_back(rest);
    }

    fn cut(&mut self) {
        if !self.open.is_empty() {
            self.pieces.push_back(self.open.split().freeze());
        }
    }

    /// The whole, where nothing else comes.
    pub(super) fn whole(mut self) -> Bytes {
        self.end();
        if self.pieces.len() == 1 {
            return self.pieces.pop_front().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity(self.pieces.iter().map(Bytes::len).sum());
        self.pieces.iter().for_each(|piece| whole.put_slice(piece));
        whole.freeze()
    }

    fn end(&mut self) {
        if self.kind == MessageKind::Json {
            self.open.put_u8(b']');
        }
        self.cut();
    }
}

type Read = Result<(Vec<Item>, Offset), ReadError>;

/// A read from one offset to another, as a body.
pub(super) struct RangeBody {
    stream: DurableStream,
    writer: Writer,
    at: Offset,
    end: Offset,
    reading: Option<JoinHandle<Read>>,
    ended: bool,
}

impl RangeBody {
    /// The rest of a read of which `writer` has what lies before `at`.
    pub(super) fn new(stream: DurableStream, writer: Writer, at: Offset, end: Offset) -> Self {
        let mut body = Self { stream, writer, at, end, reading: None, ended: false };
        body.read_on();
        body
    }

    fn read_on(&mut self) {
        if self.at < self.end {
            let (stream, at) = (self.stream.clone(), self.at);
            self.reading = Some(tokio::spawn(async move { stream.read(at, PART).await }));
        }
    }

    fn take(&mut self, read: Read) -> Result<(), BrokenOff> {
        let broken = |reason: &dyn std::fmt::Display| {
            tracing::warn!(%reason, "a read broke off");
            BrokenOff
        };
        let (items, next) = read.map_err(|error| broken(&error))?;
        if DurableStream::lost(&items).is_some() || next <= self.at {
            return Err(broken(&"records went while they were read"));
        }
        self.writer.add(&items, self.end);
        self.at = next.min(self.end);
        self.read_on();
        Ok(())
    }
}

impl http_body::Body for RangeBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let body = self.get_mut();
        loop {
            if let Some(piece) = body.writer.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if body.ended {
                return Poll::Ready(None);
            }
            let Some(reading) = &mut body.reading else {
                body.ended = true;
                body.writer.end();
                continue;
            };
            let read = std::task::ready!(Pin::new(reading).poll(context));
            body.reading = None;
            let taken = match read {
                Ok(read) => body.take(read),
                Err(_) => Err(BrokenOff),
            };
            if let Err(error) = taken {
                body.ended = true;
                return Poll::Ready(Some(Err(error.into())));
            }
            // Small pieces of several parts are not held back for each other.
            body.writer.cut();
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.writer.pieces.is_empty()
    }
}

impl Drop for RangeBody {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}
