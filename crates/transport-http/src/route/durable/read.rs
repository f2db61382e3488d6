//! Reading what is there: from an offset to the tail as it is at that moment, in one answer, however long. What it gives at an offset
//! never changes, so caches may keep it.

use std::fmt::Write as _;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tidegate_cdc::ReadError;
use tidegate_cdc::durable::{DurableError, DurableStream};
use tidegate_core::position::{Offset, Partition};

use super::body::{PART, RangeBody, Writer};
use super::problem::durable_problem;
use super::request::{From, offset_value};
use super::{NO_STORE, STREAM_CLOSED, STREAM_NEXT_OFFSET, STREAM_UP_TO_DATE, TRUE, set_content_type};
use crate::gate::App;
use crate::problem::Problem;

const SHARED: HeaderValue = HeaderValue::from_static("public, max-age=60, stale-while-revalidate=300");
const PRIVATE: HeaderValue = HeaderValue::from_static("private, max-age=60, stale-while-revalidate=300");

/// Where a read begins and ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) from: Offset,
    pub(super) next: Offset,
    /// It ends at the tail.
    pub(super) up_to_date: bool,
    /// And nothing comes after it.
    pub(super) closed: bool,
}

/// The range from where a request begins to the tail, and whether the beginning was named by its offset.
pub(super) async fn range(stream: &DurableStream, from: From) -> Result<(Range, bool), Problem> {
    // First: a stream that is closed by now has its last record by now.
    let closed = stream.is_closed();
    let next = stream.tail().await.map_err(|error| durable_problem(&error.into()))?;
    let (from, named) = match from {
        From::Start => (Offset::ZERO, false),
        From::Now => (next, false),
        From::At(offset) => (offset, true),
    };
    if from > next {
        let error = ReadError::OutOfRange { partition: Partition(0), asked: from, next, earliest: Offset::ZERO };
        return Err(durable_problem(&error.into()));
    }
    Ok((Range { from, next, up_to_date: true, closed }, named))
}

pub(super) async fn catch_up(
    app: &App,
    stream: &DurableStream,
    from: From,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let (range, named) = range(stream, from).await?;
    answer(app, stream, range, named, from == From::Now, headers).await
}

/// The answer with everything in the range. `named`: what is gone at its beginning is missed by the client.
pub(super) async fn answer(
    app: &App,
    stream: &DurableStream,
    range: Range,
    named: bool,
    of_now: bool,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let etag = etag(stream, range);
    if !of_now && matches(headers, etag.as_bytes()) {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        describe(app, response.headers_mut(), range, Some(etag));
        return Ok(response);
    }
    let mut writer = Writer::new(stream.kind());
    let mut at = range.from;
    while at < range.next {
        let read = stream.read(at, PART).await;
        let (items, next) = read.map_err(|error| durable_problem(&error.into()))?;
        if let Some(gap) = DurableStream::lost(&items).filter(|gap| named || gap.from > at) {
            return Err(durable_problem(&DurableError::Gap { gap }));
        }
        writer.add(&items, range.next);
        let begun = items.iter().any(|item| matches!(item, tidegate_cdc::Item::Record(_)));
        if next <= at {
            break;
        }
        at = next.min(range.next);
        // Where only a gap was read the first records are still to come.
        if begun {
            break;
        }
    }
    let body = if at < range.next {
        Body::new(RangeBody::new(stream.clone(), writer, at, range.next))
    } else {
        Body::from(writer.whole())
    };
    let mut response = Response::new(body);
    set_content_type(response.headers_mut(), stream.content_type());
    describe(app, response.headers_mut(), range, (!of_now).then_some(etag));
    Ok(response)
}

/// What every answer to a read says about it. Without an entity tag no cache keeps it.
pub(super) fn describe(app: &App, headers: &mut HeaderMap, range: Range, etag: Option<HeaderValue>) {
    headers.insert(STREAM_NEXT_OFFSET, offset_value(range.next));
    if range.up_to_date {
        headers.insert(STREAM_UP_TO_DATE, TRUE);
        if range.closed {
            headers.insert(STREAM_CLOSED, TRUE);
        }
    }
    match etag {
        Some(etag) => {
            let shared = app.services.auth.is_anonymous();
            headers.insert(header::CACHE_CONTROL, if shared { SHARED } else { PRIVATE });
            headers.insert(header::ETAG, etag);
        }
        None => {
            headers.insert(header::CACHE_CONTROL, NO_STORE);
        }
    }
}

/// The entity tag: which life of the stream, from where to where, and whether that is the end.
pub(super) fn etag(stream: &DurableStream, range: Range) -> HeaderValue {
    let mut text = String::with_capacity(64);
    let end = if range.closed && range.up_to_date { ":c" } else { "" };
    let _ = write!(text, "\"{:x}:{:x}:{:x}{end}\"", stream.life(), range.from.0, range.next.0);
    HeaderValue::try_from(text).expect("hexadecimal digits")
}

/// Whether `If-None-Match` names the tag. Compared weakly, as RFC 9110 has it.
fn matches(headers: &HeaderMap, etag: &[u8]) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|one| {
            let one = one.trim_ascii();
            let one = one.strip_prefix(b"W/").unwrap_or(one);
            one == b"*" || one == etag
        })
    })
}
