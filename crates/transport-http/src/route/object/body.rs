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
use tidegate_batch::error::{GetError, PutError};
use tidegate_core::port::Cause;

use super::problem::put_problem;
use crate::body::{BodyError, PIECE_BYTES};
use crate::gate::App;
use crate::problem::Problem;

/// A request's body in pieces, each of which must come within `limits.body_timeout_ms` of the last. A length beyond the bound is refused
/// before its first byte is asked for.
pub(super) fn incoming(app: &App, body: Body) -> Result<BoxStream<'static, Result<Bytes, Cause>>, Problem> {
    let limit_bytes = app.services.objects.spec().object_max_bytes;
    if body.size_hint().lower() > limit_bytes {
        return Err(put_problem(PutError::TooLarge { limit_bytes }));
    }
    let clock = Arc::clone(&app.services.clock);
    let limit_ms = app.services.streams.settings().freeze().limits_body_timeout_ms();
    let pieces = stream::try_unfold(body, move |mut body| {
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
                    Some(Ok(Ok(data))) => return Ok(Some((data, body))),
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

/// An object, or a part of it, as an answer's body. Its length is told; the next piece is asked for when the client has taken the last.
pub(super) struct ObjectBody {
    bytes: BoxStream<'static, Result<Bytes, GetError>>,
    rest: Bytes,
    /// What is still to be given, `rest` with it.
    left: u64,
}

impl ObjectBody {
    pub(super) fn new(bytes: BoxStream<'static, Result<Bytes, GetError>>, length: u64) -> Self {
        Self { bytes, rest: Bytes::new(), left: length }
    }
}

impl http_body::Body for ObjectBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let body = self.get_mut();
        if body.left == 0 {
            return Poll::Ready(None);
        }
        while body.rest.is_empty() {
            match ready!(Pin::new(&mut body.bytes).poll_next(context)) {
                Some(Ok(bytes)) if bytes.len() as u64 <= body.left => body.rest = bytes,
                Some(Err(error)) => {
                    tracing::warn!(%error, "an object broke off while it was being read");
                    return Poll::Ready(Some(Err(error.into())));
                }
                Some(Ok(_)) | None => {
                    tracing::error!(left = body.left, "an object is not as long as it says");
                    return Poll::Ready(Some(Err(BrokenOff.into())));
                }
            }
        }
        let piece = body.rest.split_to(PIECE_BYTES.min(body.rest.len()));
        body.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
