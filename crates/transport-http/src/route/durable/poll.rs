//! A long poll: what is there at once, or the first that comes, or nothing when the time is over. All who wait at one place are
//! given the same bytes of the log; waiting costs nothing when the client goes away.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode};
use tidegate_cdc::durable::{DurableError, DurableStream};
use tidegate_core::Principal;

use super::body::{PART, Writer};
use super::problem::durable_problem;
use super::read::{Range, answer as whole_answer, describe, etag, range};
use super::request::Query;
use super::{STREAM_CURSOR, cursor, set_content_type};
use crate::gate::App;
use crate::problem::Problem;

pub(super) async fn answer(
    app: &App,
    principal: &Principal,
    stream: &DurableStream,
    query: Query,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let (range, named) = range(stream, query.from).await?;
    let mut response = if range.from < range.next {
        whole_answer(app, stream, range, named, false, headers).await?
    } else if range.closed {
        nothing(app, range)
    } else {
        wait(app, principal, stream, range).await?
    };
    let cursor = cursor::next(app.services.clock.timestamp(), query.cursor);
    response.headers_mut().insert(STREAM_CURSOR, HeaderValue::from(cursor));
    Ok(response)
}

/// Nothing came.
fn nothing(app: &App, range: Range) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    describe(app, response.headers_mut(), range, None);
    response
}

async fn wait(app: &App, principal: &Principal, stream: &DurableStream, range: Range) -> Result<Response, Problem> {
    let follow = stream.follow(principal, range.from);
    let mut reader = follow.map_err(|error| durable_problem(&error.into()))?;
    let clock = &app.services.clock;
    let limit = Duration::from_millis(app.services.streams.settings().freeze().stream_long_poll_ms());
    let over = clock.sleep_until(clock.now().after(limit));
    let leaving = app.leaving.cancelled();
    tokio::pin!(over, leaving);
    let mut last = false;
    loop {
        let closed = stream.is_closed();
        let segment = reader.next(PART).await.map_err(|error| durable_problem(&error.into()))?;
        if let Some(segment) = segment {
            if let Some(gap) = DurableStream::lost(segment.items()) {
                return Err(durable_problem(&DurableError::Gap { gap }));
            }
            stream.touch();
            let tail = stream.tail().await.map_err(|error| durable_problem(&error.into()))?;
            let next = segment.next();
            let range = Range { from: range.from, next, up_to_date: next >= tail, closed };
            let mut writer = Writer::new(stream.kind());
            writer.add(segment.items(), next);
            let mut response = Response::new(Body::from(writer.whole()));
            set_content_type(response.headers_mut(), stream.content_type());
            describe(app, response.headers_mut(), range, Some(etag(stream, range)));
            return Ok(response);
        }
        if closed || last {
            return Ok(nothing(app, Range { closed, ..range }));
        }
        tokio::select! {
            biased;
            () = reader.changed() => {}
            () = &mut leaving => return Ok(nothing(app, range)),
            () = &mut over => {
                stream.look_again().await;
                // Once more: what closed the stream at the last moment may have brought records too.
                last = true;
            }
        }
    }
}
