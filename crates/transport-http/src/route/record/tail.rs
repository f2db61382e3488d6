//! A stream followed for ever, as server-sent events. All who follow share the bytes of what comes; who takes nothing holds up nobody
//! else. A tail ends with an `error` event that says why, never in silence.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tidegate_cdc::{ReadFrom, Selection, StreamReader};
use tidegate_core::id::Name;
use tidegate_core::port::ReadBounds;
use tidegate_core::position::{Offset, Partition};
use tidegate_core::{Clock, Moment, Principal};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::super::change_problem::read_problem;
use super::accept::EVENT_STREAM;
use super::{ReadRequest, streaming_headers};
use crate::body::{EndlessAnswer, PieceBody};
use crate::encoding::ContentCoding;
use crate::gate::{App, draining};
use crate::parameter::digits;
use crate::problem::Problem;

/// After so long without an event a comment is sent: proxies keep the connection, and a client that is gone is found out.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(15);
/// The first thing that is sent: how long a browser waits before it connects again.
const HELLO: Bytes = Bytes::from_static(b"retry: 1000\n\n");
const COMMENT: Bytes = Bytes::from_static(b":\n\n");
/// What a tail that is behind the others reads at a time for itself.
const BEHIND: ReadBounds = ReadBounds { records: 10_000, bytes: 256 * 1024 };

/// Where `Last-Event-ID` says to go on; `None` where it says nothing.
pub(super) fn last_event_id(headers: &HeaderMap, selection: Selection) -> Result<Option<ReadFrom>, Problem> {
    let mut values = headers.get_all("last-event-id").iter();
    let Some(value) = values.next().filter(|value| !value.is_empty()) else { return Ok(None) };
    let malformed = |detail: &str| {
        Problem::new(StatusCode::BAD_REQUEST, "malformed_last_event_id", detail).with("field", "last-event-id")
    };
    let id = value.to_str().ok().filter(|_| values.next().is_none()).and_then(|text| text.split_once(':'));
    let id = id.and_then(|(partition, offset)| {
        Some((Partition(u32::try_from(digits(partition)?).ok()?), Offset(digits(offset)?)))
    });
    let Some((partition, offset)) = id else {
        return Err(malformed("Last-Event-ID must be the id of an event, partition:offset"));
    };
    if matches!(selection, Selection::One(asked) if asked != partition) {
        return Err(malformed("Last-Event-ID is of another partition than the one that is asked for"));
    }
    Ok(Some(ReadFrom::After(partition, offset)))
}

pub(super) async fn answer(
    app: &Arc<App>,
    principal: &Principal,
    stream: &Name,
    request: ReadRequest,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let opened = app.services.streams.read(principal, stream, request.selection, request.from, true).await;
    let reader = opened.map_err(|error| read_problem(&error))?;
    let coding = ContentCoding::negotiate(headers);
    let body = PieceBody::new(events(Tail::new(app, reader)), coding)?;
    let mut response = Response::new(Body::new(body));
    streaming_headers(response.headers_mut(), EVENT_STREAM);
    if let Some(coding) = coding.header() {
        response.headers_mut().insert(http::header::CONTENT_ENCODING, coding);
    }
    response.extensions_mut().insert(EndlessAnswer);
    Ok(response)
}

fn events(tail: Tail) -> impl futures::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
    futures::stream::unfold(Some(tail), |tail| async {
        let mut tail = tail?;
        if !tail.greeted {
            tail.greeted = true;
            return Some((Ok(HELLO), Some(tail)));
        }
        match tail.next().await {
            Ok(events) => Some((Ok(events), Some(tail))),
            Err(problem) => Some((Ok(error_event(&problem)), None)),
        }
    })
}

struct Tail {
    reader: StreamReader,
    clock: Arc<dyn Clock>,
    greeted: bool,
    /// When something was last sent.
    sent: Moment,
    /// One timer and one registration for the life of the tail: a thousand tails are woken a thousand times a second.
    pause: Pin<Box<dyn Future<Output = ()> + Send>>,
    leaving: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Tail {
    fn new(app: &App, reader: StreamReader) -> Self {
        let clock = Arc::clone(&app.services.clock);
        let sent = clock.now();
        let pause = pause(&clock, sent.after(HEARTBEAT));
        Self { reader, clock, greeted: false, sent, pause, leaving: Box::pin(app.leaving.clone().cancelled_owned()) }
    }

    /// The next events, or a comment where none come; the reason where there will be no more.
    async fn next(&mut self) -> Result<Bytes, Problem> {
        loop {
            let segment = tokio::select! {
                biased;
                () = &mut self.leaving => return Err(draining()),
                segment = self.reader.next(BEHIND) => segment.map_err(|error| read_problem(&error))?,
            };
            if let Some(segment) = segment {
                self.sent = self.clock.now();
                return Ok(segment.sse());
            }
            tokio::select! {
                biased;
                () = &mut self.leaving => return Err(draining()),
                () = self.reader.changed() => {}
                () = &mut self.pause => {
                    let (now, due) = (self.clock.now(), self.sent.after(HEARTBEAT));
                    if now >= due {
                        self.sent = now;
                        self.pause = pause(&self.clock, now.after(HEARTBEAT));
                        return Ok(COMMENT);
                    }
                    self.pause = pause(&self.clock, due);
                }
            }
        }
    }
}

fn pause(clock: &Arc<dyn Clock>, until: Moment) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let clock = Arc::clone(clock);
    Box::pin(async move { clock.sleep_until(until).await })
}

/// The last event: a problem document with `message`, as the error lines of other streams have it.
fn error_event(problem: &Problem) -> Bytes {
    let document = problem.clone().with("message", problem.detail()).document();
    let mut event = b"event: error\ndata: ".to_vec();
    event.extend_from_slice(document.trim_ascii_end());
    event.extend_from_slice(b"\n\n");
    event.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_partition_and_an_offset() {
        let read = |id: &str, selection| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", id.parse().unwrap());
            last_event_id(&headers, selection).map_err(|problem| problem.code())
        };
        let one = Selection::One(Partition(3));
        assert_eq!(read("3:18446744073709551615", one), Ok(Some(ReadFrom::After(Partition(3), Offset(u64::MAX)))));
        assert_eq!(read("7:0", Selection::All), Ok(Some(ReadFrom::After(Partition(7), Offset(0)))));
        assert_eq!(read("", one), Ok(None));
        for bad in ["3", "3:", ":3", "3:x", "3:-1", "3:1:2", "4294967296:1", "3:18446744073709551616", "4:1", " 3: 1"] {
            assert_eq!(read(bad, one), Err("malformed_last_event_id"), "{bad}");
        }
    }
}
