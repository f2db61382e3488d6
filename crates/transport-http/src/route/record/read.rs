//! A bounded read of records as lines. What is read is handed on piece by piece as the client takes it; a long poll waits for
//! something to be there, for the time to be over, or for the server to leave, and costs nothing when its client goes away.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use tidegate_cdc::{Item, ReadError, Segment, StreamReader, render};
use tidegate_core::id::Name;
use tidegate_core::port::ReadBounds;
use tidegate_core::position::{Offset, Partition};
use tidegate_core::{Failure as _, Principal};

use super::super::change_problem::read_problem;
use super::accept::NDJSON;
use super::{ReadRequest, streaming_headers};
use crate::body::PieceBody;
use crate::encoding::ContentCoding;
use crate::gate::App;
use crate::problem::Problem;

/// What is read at a time: this much waits for a slow client.
const PIECE: ReadBounds = ReadBounds { records: 10_000, bytes: 256 * 1024 };

pub(super) async fn answer(
    app: &Arc<App>,
    principal: &Principal,
    stream: &Name,
    request: ReadRequest,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let ReadRequest { selection, from, limit, max_bytes, wait_ms } = request;
    let streams = &app.services.streams;
    let opened = streams.read(principal, stream, selection, from, wait_ms > 0).await;
    let reader = opened.map_err(|error| read_problem(&error))?;
    let positions = reader.positions().collect();
    let mut lines = Lines { reader, positions, records: limit, bytes: max_bytes };
    let mut first = lines.next().await.map_err(|error| read_problem(&error))?;
    if first.is_none() && wait_ms > 0 {
        first = wait(app, &mut lines, Duration::from_millis(wait_ms)).await.map_err(|error| read_problem(&error))?;
        // What came is the answer: who waited for a record wants it now, and asks again for the rest.
        lines.records = 0;
    }
    let coding = ContentCoding::negotiate(headers);
    let second = match &first {
        Some(_) => lines.next().await.map_err(|error| read_problem(&error))?,
        None => None,
    };
    let mut response = match (first, second) {
        (Some(first), Some(second)) => Response::new(Body::new(PieceBody::new(pieces(first, second, lines), coding)?)),
        (first, _) => {
            let whole = with_end(first.unwrap_or_default(), &lines.end());
            match coding {
                ContentCoding::Identity => Response::new(Body::from(whole)),
                coding => {
                    let pieces = futures::stream::once(std::future::ready(Ok(whole)));
                    Response::new(Body::new(PieceBody::new(pieces, coding)?))
                }
            }
        }
    };
    streaming_headers(response.headers_mut(), NDJSON);
    if let Some(coding) = coding.header() {
        response.headers_mut().insert(http::header::CONTENT_ENCODING, coding);
    }
    Ok(response)
}

async fn wait(app: &App, lines: &mut Lines, limit: Duration) -> Result<Option<Bytes>, ReadError> {
    let clock = &app.services.clock;
    let over = clock.sleep_until(clock.now().after(limit));
    let leaving = app.leaving.cancelled();
    tokio::pin!(over, leaving);
    loop {
        tokio::select! {
            biased;
            () = lines.reader.changed() => {}
            () = &mut leaving => return Ok(None),
            () = &mut over => return Ok(None),
        }
        if let Some(piece) = lines.next().await? {
            return Ok(Some(piece));
        }
    }
}

/// The rest of a read, after its first two pieces; its last lines say where to read on, or why it broke off.
fn pieces(
    first: Bytes,
    second: Bytes,
    lines: Lines,
) -> impl futures::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
    enum State {
        First(Bytes, Bytes, Lines),
        Next(Option<Bytes>, Lines),
        Done,
    }
    futures::stream::unfold(State::First(first, second, lines), async |state| match state {
        State::First(first, second, lines) => Some((Ok(first), State::Next(Some(second), lines))),
        State::Next(Some(piece), lines) => Some((Ok(piece), State::Next(None, lines))),
        State::Next(None, mut lines) => match lines.next().await {
            Ok(Some(piece)) => Some((Ok(piece), State::Next(None, lines))),
            Ok(None) => Some((Ok(with_end(Bytes::new(), &lines.end())), State::Done)),
            Err(error) => {
                let line = error_line(&error);
                Some((Ok(with_end(line, &lines.end())), State::Done))
            }
        },
        State::Done => None,
    })
}

/// A read that goes on: what is left of its bounds, and where it is.
struct Lines {
    reader: StreamReader,
    positions: Vec<(Partition, Offset)>,
    records: u64,
    bytes: u64,
}

impl Lines {
    /// The next lines; `None` where nothing is there or the bounds are met.
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if self.records == 0 || self.bytes == 0 {
            return Ok(None);
        }
        let records = u32::try_from(self.records).unwrap_or(u32::MAX).min(PIECE.records);
        let bounds = ReadBounds { records, bytes: self.bytes.min(PIECE.bytes) };
        let Some(segment) = self.reader.next(bounds).await? else { return Ok(None) };
        Ok(Some(self.take(&segment)))
    }

    /// The part of a segment that the bounds leave room for: whole, it is shared with others who read it.
    fn take(&mut self, segment: &Arc<Segment>) -> Bytes {
        let items = segment.items();
        let mut taken = 0;
        for item in items {
            if let Item::Record(record) = item {
                if self.records == 0 || self.bytes == 0 {
                    break;
                }
                self.records -= 1;
                self.bytes = self.bytes.saturating_sub(record.bytes());
            }
            taken += 1;
        }
        let first = self.positions.first().map_or(0, |(partition, _)| partition.0);
        for item in &items[..taken] {
            // One partition, or all of them in their order.
            if let Some((_, position)) = self.positions.get_mut((item.partition().0 - first) as usize) {
                *position = item.next();
            }
        }
        if taken == items.len() {
            return segment.ndjson();
        }
        // The reader is past what was left out: this was its last piece.
        (self.records, self.bytes) = (0, 0);
        render::ndjson(&items[..taken])
    }

    /// The last lines: where to read on.
    fn end(&self) -> Bytes {
        let mut number = itoa::Buffer::new();
        let mut out = Vec::with_capacity(48 * self.positions.len());
        for (partition, position) in &self.positions {
            out.put_slice(b"{\"next\":{\"partition\":");
            out.put_slice(number.format(partition.0).as_bytes());
            out.put_slice(b",\"offset\":");
            out.put_slice(number.format(position.0).as_bytes());
            out.put_slice(b"}}\n");
        }
        out.into()
    }
}

fn with_end(piece: Bytes, end: &Bytes) -> Bytes {
    if piece.is_empty() {
        return end.clone();
    }
    let mut whole = BytesMut::with_capacity(piece.len() + end.len());
    whole.put_slice(&piece);
    whole.put_slice(end);
    whole.freeze()
}

/// An error after lines went out, in the form of a query stream's.
fn error_line(error: &ReadError) -> Bytes {
    let problem = read_problem(error);
    let line = serde_json::json!({
        "error": {"code": problem.code(), "message": error.to_string(), "retry": problem.advice()}
    });
    debug_assert_eq!(problem.code(), error.code());
    format!("{line}\n").into()
}
