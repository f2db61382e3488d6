//! Bodies: requests read whole within a bound and a time, query streams written frame by frame. It never buffers more than
//! the bound of the one and the present frame of the other.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::StatusCode;
use http_body::{Body as _, Frame as HttpFrame};
use http_body_util::BodyExt as _;
use tidegate_core::limit::Settings;
use tidegate_core::{Clock, ErrorKind, Failure, Retry};
use tidegate_query::{Frame, QueryStream};

use crate::encoding::{ContentCoding, Encoder};
use crate::problem::Problem;

/// Why a request's body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// It is larger than the bound, or says that it will be.
    #[error("the body has more than {limit_bytes} bytes (limits.body_max_bytes)")]
    TooLarge {
        /// The bound.
        limit_bytes: u64,
    },
    /// It did not come in time.
    #[error("the body was not there within {limit_ms} ms (limits.body_timeout_ms)")]
    Timeout {
        /// The bound.
        limit_ms: u64,
    },
    /// It comes, but so slowly that it would hold for hours what others wait for.
    #[error("the body came with less than {min_bytes_a_second} bytes a second")]
    TooSlow {
        /// The bound.
        min_bytes_a_second: u64,
    },
    /// The connection broke, or its framing is wrong.
    #[error("the body broke off before its end")]
    Incomplete,
}

impl Failure for BodyError {
    fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "body_too_large",
            Self::Timeout { .. } => "body_timeout",
            Self::TooSlow { .. } => "body_too_slow",
            Self::Incomplete => "body_incomplete",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Timeout { .. } | Self::TooSlow { .. } => ErrorKind::Timeout,
            Self::Incomplete => ErrorKind::Invalid,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::TooLarge { .. } => Retry::Never,
            // The request never began: it is safe to send it again.
            Self::Timeout { .. } | Self::TooSlow { .. } | Self::Incomplete => Retry::Now,
        }
    }
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        let problem = Self::of(&error);
        match error {
            BodyError::TooLarge { limit_bytes } => problem.with("max_bytes", limit_bytes),
            BodyError::Timeout { limit_ms } => {
                problem.with_status(StatusCode::REQUEST_TIMEOUT).with("timeout_ms", limit_ms)
            }
            BodyError::TooSlow { min_bytes_a_second } => {
                problem.with_status(StatusCode::REQUEST_TIMEOUT).with("min_bytes_per_second", min_bytes_a_second)
            }
            BodyError::Incomplete => problem,
        }
    }
}

/// Reads a body whole. Memory: at most `limits.body_max_bytes` and one frame.
pub(crate) async fn read_whole(body: Body, settings: &Settings, clock: &dyn Clock) -> Result<Bytes, BodyError> {
    read_within(body, settings.limits_body_max_bytes(), settings.limits_body_timeout_ms(), clock).await
}

/// Reads a body whole within a bound and a time. A body that came in one piece is not copied.
pub(crate) async fn read_within(
    mut body: Body,
    limit_bytes: u64,
    limit_ms: u64,
    clock: &dyn Clock,
) -> Result<Bytes, BodyError> {
    let too_large = BodyError::TooLarge { limit_bytes };
    // A Content-Length beyond the bound is refused before its first byte is asked for.
    if body.size_hint().lower() > limit_bytes {
        return Err(too_large);
    }
    let deadline = clock.now().after(Duration::from_millis(limit_ms));
    let read = async {
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyError::Incomplete)?.into_data() else { continue };
            if (first.len().max(whole.len()) + data.len()) as u64 > limit_bytes {
                return Err(too_large);
            }
            if first.is_empty() && whole.is_empty() {
                first = data;
                continue;
            }
            if whole.is_empty() {
                whole.extend_from_slice(&first);
                first = Bytes::new();
            }
            whole.extend_from_slice(&data);
        }
        Ok(if whole.is_empty() { first } else { whole.freeze() })
    };
    tokio::select! {
        // First, so that a body that is there already costs no timer.
        biased;
        done = read => done,
        () = clock.sleep_until(deadline) => Err(BodyError::Timeout { limit_ms }),
    }
}

/// Marks an answer that goes on for as long as the client likes, and of which nothing is left to say to a client that takes nothing
/// for `stream.idle_timeout_ms`. Taken off before the answer is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndlessAnswer;

/// Marks an answer that begins while its request is still being read, and will be read to its end: its connection can be used again.
/// Taken off before the answer is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadsOn;

/// Pieces of bytes as an HTTP body, encoded if asked for, each flushed as soon as it is there.
pub(crate) struct PieceBody<S> {
    pieces: Pin<Box<S>>,
    rest: Bytes,
    encoder: Option<Encoder>,
    ended: bool,
}

impl<S> PieceBody<S> {
    pub(crate) fn new(pieces: S, coding: ContentCoding) -> Result<Self, Problem> {
        let encoder = Encoder::new(coding).map_err(|error| {
            tracing::error!(%error, "no encoder");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the compressor could not be set up")
        })?;
        Ok(Self { pieces: Box::pin(pieces), rest: Bytes::new(), encoder, ended: false })
    }
}

impl<S> http_body::Body for PieceBody<S>
where
    S: futures::Stream<Item = Result<Bytes, Infallible>>,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, axum::BoxError>>> {
        let body = self.get_mut();
        while body.rest.is_empty() {
            if body.ended {
                let tail = body.encoder.take().map(Encoder::finish);
                return Poll::Ready(tail.map(|tail| tail.map(HttpFrame::data).map_err(Into::into)));
            }
            match std::task::ready!(body.pieces.as_mut().poll_next(context)) {
                Some(Ok(piece)) => body.rest = piece,
                Some(Err(never)) => match never {},
                None => body.ended = true,
            }
        }
        let piece = body.rest.split_to(PIECE_BYTES.min(body.rest.len()));
        Poll::Ready(Some(match &mut body.encoder {
            None => Ok(HttpFrame::data(piece)),
            Some(encoder) => encoder.encode(&piece).map(HttpFrame::data).map_err(Into::into),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.rest.is_empty() && self.encoder.is_none()
    }
}

/// The stream ended without its end line: the connection must break, so that nobody takes the part for the whole.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the stream broke off before its end line")]
pub(crate) struct BrokenOff;

/// The most that is handed to a connection at a time. A frame with a huge row goes out in such pieces, and each that is
/// asked for shows that the client still takes something.
pub(crate) const PIECE_BYTES: usize = 72 * 1024;

/// A query stream as an HTTP body. Each frame becomes one or more pieces of data as soon as it is there. Dropping it drops the
/// stream, which tells the query service that the reader is gone.
pub(crate) struct StreamBody {
    stream: QueryStream,
    /// What is left of a frame that is handed on in pieces.
    rest: Bytes,
    encoder: Option<Encoder>,
    state: State,
}

enum State {
    Streaming,
    /// The end line has gone out: what is left is the coding's own end, once the stream has closed.
    Ended,
    Done,
}

impl StreamBody {
    pub(crate) fn new(stream: QueryStream, coding: ContentCoding) -> std::io::Result<Self> {
        Ok(Self { stream, rest: Bytes::new(), encoder: Encoder::new(coding)?, state: State::Streaming })
    }
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, axum::BoxError>>> {
        let body = self.get_mut();
        if body.rest.is_empty() {
            body.rest = match body.state {
                State::Done => return Poll::Ready(None),
                State::Ended => {
                    body.state = State::Done;
                    let tail = body.encoder.take().map(Encoder::finish);
                    return Poll::Ready(tail.map(|tail| tail.map(HttpFrame::data).map_err(Into::into)));
                }
                State::Streaming => match std::task::ready!(body.stream.poll_next_unpin(context)) {
                    Some(Frame::Open(line)) => line.to_line(),
                    Some(Frame::Rows(rows)) => rows,
                    Some(Frame::Error(line)) => line.to_line(),
                    Some(Frame::End(line)) => {
                        body.state = State::Ended;
                        line.to_line()
                    }
                    None => {
                        body.state = State::Done;
                        return Poll::Ready(Some(Err(BrokenOff.into())));
                    }
                },
            };
        }
        body.stream.note_progress();
        let piece = body.rest.split_to(PIECE_BYTES.min(body.rest.len()));
        Poll::Ready(Some(match &mut body.encoder {
            None => Ok(HttpFrame::data(piece)),
            Some(encoder) => encoder.encode(&piece).map(HttpFrame::data).map_err(Into::into),
        }))
    }

    fn is_end_stream(&self) -> bool {
        let nothing_follows = match self.state {
            State::Done => true,
            State::Ended => self.encoder.is_none(),
            State::Streaming => false,
        };
        nothing_follows && self.rest.is_empty()
    }
}
