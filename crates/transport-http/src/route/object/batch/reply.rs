//! The answer to a batch: parts one after the other, in the order in which they are ready. An object that breaks off breaks the
//! connection, so that a part that is short is never taken for a whole one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::HeaderMap;
use http_body::Frame;
use tidegate_batch::error::GetError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::super::body::Pieces;
use crate::body::{BrokenOff, PIECE_BYTES};
use crate::multipart::Writer;

/// A reply that is ready.
pub(super) enum Reply {
    Part {
        head: HeaderMap,
        content: Content,
    },
    /// Nothing more comes.
    End,
}

/// The bytes of a part.
pub(super) enum Content {
    Whole(Bytes),
    Stream {
        /// What is there already.
        first: Bytes,
        rest: BoxStream<'static, Result<Bytes, GetError>>,
        /// How many bytes there are, `first` with them.
        left: u64,
        /// Given back when the last byte was taken.
        place: Option<OwnedSemaphorePermit>,
    },
}

/// A part of which bytes are still to come.
struct Open {
    pieces: Pieces,
    /// Held, not looked at.
    _place: Option<OwnedSemaphorePermit>,
}

/// Up to this size a part is laid beside others into one piece.
const SMALL_BYTES: usize = 16 * 1_024;

/// The answer's body.
pub(super) struct ReplyBody {
    writer: Writer,
    waiting: mpsc::Receiver<Reply>,
    /// Heads and small parts that go out together.
    out: BytesMut,
    open: Option<Open>,
    ended: bool,
    /// What reads the request; it ends with this.
    _task: AbortOnDropHandle<()>,
}

impl ReplyBody {
    pub(super) fn new(writer: Writer, waiting: mpsc::Receiver<Reply>, task: AbortOnDropHandle<()>) -> Self {
        Self { writer, waiting, out: BytesMut::new(), open: None, ended: false, _task: task }
    }

    fn begin(&mut self, head: &HeaderMap, content: Content) {
        self.writer.begin_part(&mut self.out, head);
        let (first, rest, left, place) = match content {
            Content::Whole(bytes) => {
                let left = bytes.len() as u64;
                (bytes, futures::stream::empty().boxed(), left, None)
            }
            Content::Stream { first, rest, left, place } => (first, rest, left, place),
        };
        if first.len() as u64 == left && first.len() <= SMALL_BYTES {
            self.out.extend_from_slice(&first);
            self.writer.end_part(&mut self.out);
        } else {
            self.open = Some(Open { pieces: Pieces::new(first, rest, left), _place: place });
        }
    }

    /// A piece of the part that is open; `None` when there is none.
    fn piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::BoxError>>> {
        let Some(open) = &mut self.open else { return Poll::Ready(None) };
        let piece = ready!(open.pieces.poll_piece(context));
        if open.pieces.left() == 0 {
            self.open = None;
            self.writer.end_part(&mut self.out);
        }
        Poll::Ready(piece)
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let body = self.get_mut();
        while body.open.is_none() && !body.ended && body.out.len() < PIECE_BYTES {
            match body.waiting.poll_recv(context) {
                Poll::Ready(Some(Reply::Part { head, content })) => body.begin(&head, content),
                Poll::Ready(Some(Reply::End)) => {
                    body.ended = true;
                    body.writer.end(&mut body.out);
                }
                // What reads the request is gone without saying that this is the end.
                Poll::Ready(None) => return Poll::Ready(Some(Err(BrokenOff.into()))),
                Poll::Pending if body.out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if !body.out.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(body.out.split().freeze()))));
        }
        let piece = ready!(body.piece(context));
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.out.is_empty()
    }
}
