//! A stream followed as server-sent events: `data` with what came, then `control` with where that ends. All who follow share the
//! bytes of what comes. The answer ends after a while, so that caches can gather those who follow; a client comes back with its offset.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut as _, Bytes};
use http::{HeaderValue, header};
use tidegate_cdc::StreamReader;
use tidegate_cdc::durable::{DurableStream, MessageKind};
use tidegate_core::position::Offset;
use tidegate_core::{Clock, Moment, Principal};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::body::PART;
use super::problem::durable_problem;
use super::read::range;
use super::request::{From, Query, offset_text};
use super::{STREAM_SSE_DATA_ENCODING, cursor};
use crate::body::{EndlessAnswer, PieceBody};
use crate::encoding::ContentCoding;
use crate::gate::App;
use crate::problem::Problem;

/// After so long without an event a comment is sent: proxies keep the connection, and a client that is gone is found out.
const HEARTBEAT: Duration = Duration::from_secs(15);
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

pub(super) async fn answer(
    app: &Arc<App>,
    principal: &Principal,
    stream: &DurableStream,
    query: Query,
) -> Result<Response, Problem> {
    let (range, _) = range(stream, query.from).await?;
    let reader = stream.follow(principal, range.from).map_err(|error| durable_problem(&error.into()))?;
    let clock = Arc::clone(&app.services.clock);
    let life = Duration::from_millis(app.services.streams.settings().freeze().stream_sse_ms());
    let sent = clock.now();
    let tail = Tail {
        reader,
        stream: stream.clone(),
        kind: stream.kind(),
        from_start: query.from == From::Start,
        at: range.from,
        cursor: cursor::next(clock.timestamp(), query.cursor),
        control: None,
        ended: false,
        greeted: false,
        sent,
        ends: sent.after(life),
        pause: pause(&clock, sent.after(HEARTBEAT.min(life))),
        leaving: Box::pin(app.leaving.clone().cancelled_owned()),
        clock,
    };
    let body = PieceBody::new(futures::stream::unfold(Some(tail), next), ContentCoding::Identity)?;
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(super::super::X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    if stream.kind() == MessageKind::Binary {
        headers.insert(STREAM_SSE_DATA_ENCODING, HeaderValue::from_static("base64"));
    }
    response.extensions_mut().insert(EndlessAnswer);
    Ok(response)
}

type Piece = Result<Bytes, std::convert::Infallible>;

async fn next(tail: Option<Tail>) -> Option<(Piece, Option<Tail>)> {
    let mut tail = tail?;
    let piece = match tail.control.take() {
        Some(control) => control,
        None if tail.ended => return None,
        None => tail.next().await?,
    };
    Some((Ok(piece), Some(tail)))
}

struct Tail {
    reader: StreamReader,
    stream: DurableStream,
    kind: MessageKind,
    /// What is gone at the very beginning is not missed.
    from_start: bool,
    at: Offset,
    /// The least cursor to give.
    cursor: u64,
    /// The control event that belongs behind the data event that was just sent.
    control: Option<Bytes>,
    /// The stream is closed, and the client has or gets all of it.
    ended: bool,
    /// The client knows where it is.
    greeted: bool,
    /// When something was last sent.
    sent: Moment,
    ends: Moment,
    pause: Pin<Box<dyn Future<Output = ()> + Send>>,
    leaving: Pin<Box<WaitForCancellationFutureOwned>>,
    clock: Arc<dyn Clock>,
}

impl Tail {
    /// The next event; `None` where the answer ends: the client comes back with its offset and is told why, if there is a reason.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Before the read: a stream that is closed by now has its last record by now.
            let closed = self.stream.is_closed();
            let segment = tokio::select! {
                biased;
                () = &mut self.leaving => return None,
                segment = self.reader.next(PART) => segment.ok()?,
            };
            if let Some(segment) = segment {
                let lost = DurableStream::lost(segment.items());
                if lost.is_some_and(|gap| !self.from_start || gap.from > self.at) {
                    return None;
                }
                self.at = segment.next();
                self.stream.touch();
                let up_to_date = self.at >= self.stream.tail().await.ok()?;
                let data = segment.durable_sse(self.kind);
                if data.is_empty() {
                    continue;
                }
                self.from_start = false;
                self.ended = closed && up_to_date;
                self.control = Some(self.control_event(up_to_date, self.ended));
                (self.greeted, self.sent) = (true, self.clock.now());
                return Some(data);
            }
            if closed {
                self.ended = true;
                return Some(self.control_event(true, true));
            }
            if !self.greeted {
                (self.greeted, self.sent) = (true, self.clock.now());
                return Some(self.control_event(true, false));
            }
            tokio::select! {
                biased;
                () = &mut self.leaving => return None,
                () = self.reader.changed() => {}
                () = &mut self.pause => {
                    let now = self.clock.now();
                    if now >= self.ends {
                        return None;
                    }
                    let due = now >= self.sent.after(HEARTBEAT);
                    if due {
                        self.sent = now;
                    }
                    self.pause = pause(&self.clock, self.sent.after(HEARTBEAT).min(self.ends));
                    if due {
                        self.stream.look_again().await;
                        return Some(COMMENT);
                    }
                }
            }
        }
    }

    fn control_event(&self, up_to_date: bool, closed: bool) -> Bytes {
        let mut number = itoa::Buffer::new();
        let mut out = Vec::with_capacity(160);
        out.put_slice(b"event: control\ndata:{\"streamNextOffset\":\"");
        out.put_slice(&offset_text(self.at));
        out.put_u8(b'"');
        if closed {
            out.put_slice(b",\"streamClosed\":true");
        } else {
            out.put_slice(b",\"streamCursor\":\"");
            let cursor = cursor::next(self.clock.timestamp(), None).max(self.cursor);
            out.put_slice(number.format(cursor).as_bytes());
            out.put_u8(b'"');
        }
        if up_to_date {
            out.put_slice(b",\"upToDate\":true");
        }
        out.put_slice(b"}\n\n");
        out.into()
    }
}

fn pause(clock: &Arc<dyn Clock>, until: Moment) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let clock = Arc::clone(clock);
    Box::pin(async move { clock.sleep_until(until).await })
}
