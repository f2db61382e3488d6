//! Bytes on their way: a request's body as the library reads it, an object as an HTTP body. Neither is ever whole in memory, and an
//! object that breaks off breaks the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream as _, StreamExt as _};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tidegate_batch::Collection;
use tidegate_batch::error::PutError;
use tidegate_batch::service::ObjectBytes;
use tidegate_core::port::Cause;

use super::admission::Admission;
use super::problem::put_problem;
use crate::body::{BodyError, PIECE_BYTES};
use crate::gate::App;
use crate::problem::Problem;

/// A request's body in pieces, each of which must come within `limits.body_timeout_ms` of the last. A length beyond the bound is refused
/// before its first byte is asked for.
///
/// Its bytes wait where they are limited, for which its sender is given all the time that it takes.
pub(super) fn incoming(
    app: &App,
    collection: &Collection,
    body: Body,
) -> Result<BoxStream<'static, Result<Bytes, Cause>>, Problem> {
    let limit_bytes = app.services.objects.spec().object_max_bytes;
    if body.size_hint().lower() > limit_bytes {
        return Err(put_problem(PutError::TooLarge { limit_bytes }));
    }
    let shape = Admission::of(app, collection).shape_or_withdraw(body.size_hint().exact())?;
    let clock = Arc::clone(&app.services.clock);
    let limit_ms = app.services.streams.settings().freeze().limits_body_timeout_ms();
    let pieces = stream::try_unfold((body, shape), move |(mut body, mut shape)| {
        let clock = Arc::clone(&clock);
        async move {
            let deadline = clock.now().after(Duration::from_millis(limit_ms));
            loop {
                let frame = tokio::select! {
                    // First, so that a piece that is there already costs no timer.
                    biased;
                    frame = body.frame() => frame,
                    () = clock.sleep_until(deadline) => return Err(Cause::from(BodyError::Timeout { limit_ms })),
                };
                match frame.map(|frame| frame.map(Frame::into_data)) {
                    None => return Ok(None),
                    Some(Err(_)) => return Err(Cause::from(BodyError::Incomplete)),
                    Some(Ok(Ok(data))) => {
                        if let Some(shape) = &mut shape {
                            shape.pass(data.len()).await;
                        }
                        return Ok(Some((data, (body, shape))));
                    }
                    // Trailers.
                    Some(Ok(Err(_))) => {}
                }
            }
        }
    });
    Ok(pieces.boxed())
}

/// The object's bytes ended before its end: the connection must break, so that nobody takes the part for the whole.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the object's bytes broke off")]
struct BrokenOff;

/// An object's bytes in pieces, no more and no fewer than were told. What breaks off, or is longer, is an error.
pub(super) struct Pieces {
    /// `None` = nothing follows `rest`.
    bytes: Option<ObjectBytes>,
    rest: Bytes,
    /// What is still to be given, `rest` with it.
    left: u64,
}

impl Pieces {
    /// `first` is what is there already, `left` how many bytes there are with it.
    pub(super) fn new(first: Bytes, bytes: Option<ObjectBytes>, left: u64) -> Self {
        if first.len() as u64 > left {
            // Never a part of what is longer than it says: the first look finds that it broke off.
            return Self { bytes: None, rest: Bytes::new(), left: left.max(1) };
        }
        Self { bytes, rest: first, left }
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next piece; `None` once all were given.
    pub(super) fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::BoxError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        while self.rest.is_empty() {
            let next = match &mut self.bytes {
                Some(bytes) => ready!(Pin::new(bytes).poll_next(context)),
                None => None,
            };
            match next {
                Some(Ok(bytes)) if bytes.len() as u64 <= self.left => self.rest = bytes,
                Some(Err(error)) => {
                    tracing::warn!(%error, "an object broke off while it was being read");
                    return Poll::Ready(Some(Err(error.into())));
                }
                Some(Ok(_)) | None => {
                    tracing::error!(left = self.left, "an object is not as long as it says");
                    return Poll::Ready(Some(Err(BrokenOff.into())));
                }
            }
        }
        let piece = self.rest.split_to(PIECE_BYTES.min(self.rest.len()));
        self.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(piece)))
    }
}

/// An object, or a part of it, as an answer's body. Its length is told; the next piece is asked for when the client has taken the last.
pub(super) struct ObjectBody(Pieces);

impl ObjectBody {
    pub(super) fn new(bytes: ObjectBytes, length: u64) -> Self {
        Self(Pieces::new(Bytes::new(), Some(bytes), length))
    }
}

impl http_body::Body for ObjectBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let piece = ready!(self.get_mut().0.poll_piece(context));
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.left())
    }
}
