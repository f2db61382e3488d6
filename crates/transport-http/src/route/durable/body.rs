//! The records of a read as a body: bytes in a row, or one JSON array. Large records are handed on as they lie in the log, small ones
//! are put together. While one part is being sent the next is being read, and no more than that is in memory.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use http_body::Frame;
use tidegate_cdc::durable::{DurableStream, MessageKind};
use tidegate_cdc::{Item, ReadError};
use tidegate_core::port::ReadBounds;
use tidegate_core::position::Offset;

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
    open: Vec<u8>,
    /// A JSON array's first value has been written.
    begun: bool,
}

impl Writer {
    pub(super) fn new(kind: MessageKind) -> Self {
        let mut open = Vec::new();
        if kind == MessageKind::Json {
            open.put_u8(b'[');
        }
        Self { kind, pieces: VecDeque::new(), open, begun: false }
    }

    /// Adds the records before `end`.
    pub(super) fn add(&mut self, items: &[Item], end: Offset) {
        let size = |item: &Item| match item {
            Item::Record(record) => usize::try_from(record.bytes()).unwrap_or(usize::MAX),
            Item::Gap(_) => 0,
        };
        // About what is still to be copied, so that no piece is moved while it grows.
        let mut left = items.iter().map(size).filter(|size| *size < SHARED_MIN_BYTES).sum();
        for item in items {
            let Item::Record(record) = item else { continue };
            if record.offset >= end {
                return;
            }
            if self.kind == MessageKind::Json && std::mem::replace(&mut self.begun, true) {
                self.open.put_u8(b',');
            }
            match (record.raw(), record.change_value()) {
                (Some(raw), _) if raw.len() >= SHARED_MIN_BYTES => self.share(raw.clone()),
                (None, Some(value)) if value.len() >= SHARED_MIN_BYTES => self.share(record.value()),
                (Some(bytes), _) => self.copy(bytes, left),
                (None, Some(bytes)) => self.copy(bytes, left),
                (None, None) => {}
            }
            left = left.saturating_sub(size(item));
        }
    }

    fn copy(&mut self, bytes: &[u8], left: usize) {
        if self.open.len() + bytes.len() > PIECE_BYTES {
            self.cut();
        }
        if self.open.capacity() - self.open.len() < bytes.len() {
            // A comma each, and the bracket.
            let size = (left + left / 16 + 16).max(bytes.len()).min(PIECE_BYTES - self.open.len());
            self.open.reserve_exact(size);
        }
        self.open.put_slice(bytes);
    }

    fn share(&mut self, mut rest: Bytes) {
        self.cut();
        while rest.len() > PIECE_BYTES {
            self.pieces.push_back(rest.split_to(PIECE_BYTES));
        }
        self.pieces.push_back(rest);
    }

    fn cut(&mut self) {
        if !self.open.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.open).into());
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
    reading: Option<BoxFuture<'static, Read>>,
    /// What was read while what came before it was sent.
    read: Option<Read>,
    ended: bool,
}

impl RangeBody {
    /// The rest of a read of which `writer` has what lies before `at`.
    pub(super) fn new(stream: DurableStream, writer: Writer, at: Offset, end: Offset) -> Self {
        Self { stream, writer, at, end, reading: None, read: None, ended: false }
    }

    /// Sees that the next part is being read: another thread reads while this one sends.
    fn read_on(&mut self, context: &mut Context<'_>) {
        if self.read.is_some() || self.at >= self.end {
            return;
        }
        let (stream, at) = (&self.stream, self.at);
        let reading = self.reading.get_or_insert_with(|| {
            let stream = stream.clone();
            Box::pin(async move { stream.read(at, PART).await })
        });
        if let Poll::Ready(read) = reading.as_mut().poll(context) {
            (self.reading, self.read) = (None, Some(read));
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
        // Small pieces of several parts are not held back for each other.
        self.writer.cut();
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
            if !body.ended {
                body.read_on(context);
            }
            if let Some(piece) = body.writer.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if body.ended {
                return Poll::Ready(None);
            }
            if body.at >= body.end {
                body.ended = true;
                body.writer.end();
                continue;
            }
            let Some(read) = body.read.take() else { return Poll::Pending };
            if let Err(error) = body.take(read) {
                body.ended = true;
                return Poll::Ready(Some(Err(error.into())));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.writer.pieces.is_empty()
    }
}
