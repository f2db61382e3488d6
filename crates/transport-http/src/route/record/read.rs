//! A bounded read of records as lines. What is read is handed on piece by piece as the client takes it; a long poll waits for
//! something to be there, for the time to be over, or for the server to leave, and costs nothing when its client goes away.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
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

/// What is read at a time. Twice this much waits for a slow client: what is being sent, and what was read meanwhile.
const PIECE: ReadBounds = ReadBounds { records: 10_000, bytes: 512 * 1024 };
/// An answer whose first piece is smaller is likely a whole one, which is worth knowing before it begins.
const BEGUN_BYTES: usize = 64 * 1024;

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
    let pieces = match first {
        None => Pieces::whole(Vec::new(), &lines),
        Some(first) => begin(first, lines).await.map_err(|error| read_problem(&error))?,
    };
    let body = match pieces {
        Pieces { given, reading: None, .. } if coding == ContentCoding::Identity => Body::from(joined(given)),
        pieces => Body::new(PieceBody::new(pieces, coding)?),
    };
    let mut response = Response::new(body);
    streaming_headers(response.headers_mut(), NDJSON);
    if let Some(coding) = coding.header() {
        response.headers_mut().insert(http::header::CONTENT_ENCODING, coding);
    }
    Ok(response)
}

async fn wait(app: &App, lines: &mut Lines, limit: Duration) -> Result<Option<Vec<Bytes>>, ReadError> {
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

/// The pieces of a read that began with these. Where that is all, they are the whole.
async fn begin(first: Vec<Bytes>, mut lines: Lines) -> Result<Pieces, ReadError> {
    if lines.is_met() {
        return Ok(Pieces::whole(first, &lines));
    }
    let mut given = VecDeque::from(first);
    if given.iter().map(Bytes::len).sum::<usize>() < BEGUN_BYTES {
        match lines.next().await? {
            Some(second) => given.extend(second),
            None => return Ok(Pieces::whole(given.into(), &lines)),
        }
    }
    Ok(Pieces { given, reading: Some(Box::pin(read_on(lines))), read: None })
}

/// A read as it goes out. While one part is being sent the next one is being read, and no more than that is in memory; its last lines
/// say where to read on, or why it broke off.
struct Pieces {
    given: VecDeque<Bytes>,
    reading: Option<BoxFuture<'static, ReadOn>>,
    /// What was read while what came before it was sent.
    read: Option<ReadOn>,
}

type ReadOn = (Result<Option<Vec<Bytes>>, ReadError>, Lines);

async fn read_on(mut lines: Lines) -> ReadOn {
    (lines.next().await, lines)
}

impl Pieces {
    /// An answer that is there.
    fn whole(pieces: Vec<Bytes>, lines: &Lines) -> Self {
        let mut given = VecDeque::from(pieces);
        given.push_back(lines.end());
        Self { given, reading: None, read: None }
    }

    /// Sees that the next part is being read: another thread reads while this one sends.
    fn read_on(&mut self, context: &mut Context<'_>) {
        if self.read.is_none()
            && let Some(reading) = &mut self.reading
            && let Poll::Ready(read) = reading.as_mut().poll(context)
        {
            (self.reading, self.read) = (None, Some(read));
        }
    }

    fn take(&mut self, (read, lines): ReadOn) {
        match read {
            Ok(Some(pieces)) => {
                self.given.extend(pieces);
                self.reading = Some(Box::pin(read_on(lines)));
            }
            Ok(None) => self.given.push_back(lines.end()),
            Err(error) => self.given.extend([error_line(&error), lines.end()]),
        }
    }
}

impl futures::Stream for Pieces {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let pieces = self.get_mut();
        loop {
            pieces.read_on(context);
            if let Some(piece) = pieces.given.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            match pieces.read.take() {
                Some(read) => pieces.take(read),
                None if pieces.reading.is_some() => return Poll::Pending,
                None => return Poll::Ready(None),
            }
        }
    }
}

/// A read that goes on: what is left of its bounds, and where it is.
struct Lines {
    reader: StreamReader,
    positions: Vec<(Partition, Offset)>,
    records: u64,
    bytes: u64,
}

impl Lines {
    fn is_met(&self) -> bool {
        self.records == 0 || self.bytes == 0
    }

    /// The next lines; `None` where nothing is there or the bounds are met.
    async fn next(&mut self) -> Result<Option<Vec<Bytes>>, ReadError> {
        if self.is_met() {
            return Ok(None);
        }
        let records = u32::try_from(self.records).unwrap_or(u32::MAX).min(PIECE.records);
        let bounds = ReadBounds { records, bytes: self.bytes.min(PIECE.bytes) };
        let Some(segment) = self.reader.next(bounds).await? else { return Ok(None) };
        Ok(Some(self.take(&segment)))
    }

    /// The part of a segment that the bounds leave room for: whole, it is shared with others who read it.
    fn take(&mut self, segment: &Arc<Segment>) -> Vec<Bytes> {
        let items = segment.items();
        let mut taken = 0;
        for item in items {
            if let Item::Record(record) = item {
                if self.is_met() {
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
            return segment.ndjson_pieces();
        }
        // The reader is past what was left out: this was its last piece.
        (self.records, self.bytes) = (0, 0);
        vec![render::ndjson(&items[..taken])]
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

fn joined(mut pieces: VecDeque<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.pop_front().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| whole.put_slice(piece));
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
