//! The answer to a batch on its way out, in the order in which it was laid out. An object that breaks off breaks the connection, so that a
//! part that is short is never taken for a whole one.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::task::AbortOnDropHandle;

use super::super::body::Pieces;
use crate::body::{BrokenOff, PIECE_BYTES};

/// A piece of the answer that is ready.
pub(super) enum Reply {
    /// Heads, and small parts.
    Bytes { bytes: Bytes, laid: Laid },
    /// An object's bytes, asked for as the client takes them.
    Object {
        pieces: Pieces,
        /// Given back when the last byte was taken.
        place: Option<OwnedSemaphorePermit>,
    },
    /// Nothing more comes.
    End,
}

/// Objects' bytes that are laid out. Dropped when the client has taken them.
pub(super) struct Laid {
    bytes: usize,
    all: Arc<AtomicUsize>,
    /// Held, not looked at.
    _places: Vec<OwnedSemaphorePermit>,
}

impl Laid {
    pub(super) fn new(bytes: usize, all: Arc<AtomicUsize>, places: Vec<OwnedSemaphorePermit>) -> Self {
        Self { bytes, all, _places: places }
    }
}

impl Drop for Laid {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What is going out.
enum Open {
    Bytes { rest: Bytes, _laid: Laid },
    Object { pieces: Pieces, _place: Option<OwnedSemaphorePermit> },
}

/// The answer's body.
pub(super) struct ReplyBody {
    waiting: UnboundedReceiver<Reply>,
    open: Option<Open>,
    ended: bool,
    /// What reads the request; it ends with this.
    _task: AbortOnDropHandle<()>,
}

impl ReplyBody {
    pub(super) fn new(waiting: UnboundedReceiver<Reply>, task: AbortOnDropHandle<()>) -> Self {
        Self { waiting, open: None, ended: false, _task: task }
    }

    /// A piece of what is going out; `None` when there is nothing.
    fn piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::BoxError>>> {
        let (piece, over) = match &mut self.open {
            None => return Poll::Ready(None),
            Some(Open::Bytes { rest, .. }) => {
                let piece = rest.split_to(rest.len().min(2 * PIECE_BYTES));
                (Some(Ok(piece)), rest.is_empty())
            }
            Some(Open::Object { pieces, .. }) => {
                let piece = ready!(pieces.poll_piece(context));
                (piece, pieces.left() == 0)
            }
        };
        if over {
            self.open = None;
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
        loop {
            if let Some(piece) = ready!(body.piece(context)) {
                return Poll::Ready(Some(piece.map(Frame::data)));
            }
            if body.ended {
                return Poll::Ready(None);
            }
            match ready!(body.waiting.poll_recv(context)) {
                Some(Reply::Bytes { bytes, laid }) => body.open = Some(Open::Bytes { rest: bytes, _laid: laid }),
                Some(Reply::Object { pieces, place }) => body.open = Some(Open::Object { pieces, _place: place }),
                Some(Reply::End) => body.ended = true,
                // What reads the request is gone without saying that this is the end.
                None => return Poll::Ready(Some(Err(BrokenOff.into()))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.open.is_none()
    }
}
