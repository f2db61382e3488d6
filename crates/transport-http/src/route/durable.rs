//! The Durable Streams protocol 1.0 over HTTP: what its published clients expect, header for header. The streams are those of the
//! change-stream routes; nothing is kept here.

mod body;
mod browser;
mod cursor;
mod events;
mod poll;
mod problem;
mod read;
mod request;

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http::request::Parts as RequestHead;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tidegate_cdc::durable::{DurableAppend, DurableSpec};
use tidegate_core::Principal;
use tidegate_core::id::Name;
use tidegate_core::position::Offset;

use super::name::{Parts, name};
use super::record::producer_stamp;
use crate::body::read_within;
use crate::gate::App;
use crate::problem::Problem;
pub(crate) use browser::Browser;
use problem::{body_problem, durable_problem};
use request::Live;

/// The path of a stream, as the router writes it.
pub(crate) const TEMPLATE: &str = "/ds/v1/stream/{*path}";

const STREAM_NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
const STREAM_UP_TO_DATE: HeaderName = HeaderName::from_static("stream-up-to-date");
const STREAM_CLOSED: HeaderName = HeaderName::from_static("stream-closed");
const STREAM_CURSOR: HeaderName = HeaderName::from_static("stream-cursor");
const STREAM_SEQ: HeaderName = HeaderName::from_static("stream-seq");
const STREAM_TTL: HeaderName = HeaderName::from_static("stream-ttl");
const STREAM_EXPIRES_AT: HeaderName = HeaderName::from_static("stream-expires-at");
const STREAM_FORKED_FROM: HeaderName = HeaderName::from_static("stream-forked-from");
const STREAM_FORK_OFFSET: HeaderName = HeaderName::from_static("stream-fork-offset");
const STREAM_FORK_SUB_OFFSET: HeaderName = HeaderName::from_static("stream-fork-sub-offset");
const STREAM_SSE_DATA_ENCODING: HeaderName = HeaderName::from_static("stream-sse-data-encoding");
const PRODUCER_EPOCH: HeaderName = HeaderName::from_static("producer-epoch");
const PRODUCER_SEQ: HeaderName = HeaderName::from_static("producer-seq");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
    request: Request,
) -> Result<Response, Problem> {
    let stream = name(path)?;
    let (head, body) = request.into_parts();
    let mut spec = DurableSpec {
        content_type: request::content_type(&head.headers)?,
        ttl_s: request::ttl_s(&head.headers)?,
        expires_at: request::expires_at(&head.headers)?,
        closed: request::closes(&head.headers),
        fork: request::fork(&head.headers)?,
        body: bytes::Bytes::new(),
    };
    if spec.ttl_s.is_some() && spec.expires_at.is_some() {
        return Err(request::malformed(&STREAM_TTL, "and stream-expires-at exclude each other"));
    }
    spec.body = whole(&app, body).await?;
    let created = app.services.streams.create_durable(&principal, &stream, &spec).await;
    let created = created.map_err(|error| durable_problem(&error))?;
    let status = if created.new { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = empty(status, created.next);
    let headers = response.headers_mut();
    set_content_type(headers, &created.content_type);
    if created.closed {
        headers.insert(STREAM_CLOSED, TRUE);
    }
    if created.new {
        headers.insert(header::LOCATION, request::location(&head, app.secure));
    }
    Ok(response)
}

pub(super) async fn append(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
    request: Request,
) -> Result<Response, Problem> {
    let stream = name(path)?;
    let (head, body) = request.into_parts();
    let producer = producer_stamp(&head.headers)?;
    let epoch = producer.as_ref().map(|stamp| stamp.epoch);
    let append = DurableAppend {
        content_type: request::content_type(&head.headers)?,
        close: request::closes(&head.headers),
        producer,
        writer_seq: request::writer_seq(&head.headers)?,
        body: whole(&app, body).await?,
    };
    let content = !append.body.is_empty();
    let appended = app.services.streams.append_durable(&principal, &stream, append).await;
    let appended = appended.map_err(|error| durable_problem(&error))?;
    // The protocol tells new records of a producer from a repetition by the status.
    let status = match epoch {
        Some(_) if content && !appended.duplicate => StatusCode::OK,
        _ => StatusCode::NO_CONTENT,
    };
    let mut response = empty(status, appended.next);
    let headers = response.headers_mut();
    if let Some(epoch) = epoch {
        headers.insert(PRODUCER_EPOCH, HeaderValue::from(epoch));
    }
    if let Some(seq) = appended.producer_seq {
        headers.insert(PRODUCER_SEQ, HeaderValue::from(seq));
    }
    if appended.closed {
        headers.insert(STREAM_CLOSED, TRUE);
    }
    Ok(response)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
) -> Result<Response, Problem> {
    let stream = app.services.streams.durable(&principal, &name(path)?, false).await;
    let stream = stream.map_err(|error| durable_problem(&error))?;
    let closed = stream.is_closed();
    let tail = stream.tail().await.map_err(|error| durable_problem(&error.into()))?;
    let mut response = empty(StatusCode::OK, tail);
    let headers = response.headers_mut();
    set_content_type(headers, stream.content_type());
    if let Some(ttl_s) = stream.ttl_s() {
        headers.insert(STREAM_TTL, HeaderValue::from(ttl_s));
    }
    if let Some(value) = stream.expires_at().and_then(|at| HeaderValue::try_from(at.to_string()).ok()) {
        headers.insert(STREAM_EXPIRES_AT, value);
    }
    if closed {
        headers.insert(STREAM_CLOSED, TRUE);
    }
    Ok(response)
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
) -> Result<Response, Problem> {
    let name = name(path)?;
    app.services.streams.durable(&principal, &name, false).await.map_err(|error| durable_problem(&error))?;
    let deleted = app.services.streams.delete(&principal, &name).await;
    deleted.map_err(|error| durable_problem(&error.into()))?;
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
    Ok(response)
}

pub(super) async fn read(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
    head: RequestHead,
) -> Result<Response, Problem> {
    let stream: Name = name(path)?;
    let query = request::query(head.uri.query())?;
    let stream = app.services.streams.durable(&principal, &stream, true).await;
    let stream = stream.map_err(|error| durable_problem(&error))?;
    match query.live {
        None => read::catch_up(&app, &stream, query.from, &head.headers).await,
        Some(Live::LongPoll) => poll::answer(&app, &principal, &stream, query, &head.headers).await,
        Some(Live::Events) => events::answer(&app, &principal, &stream, query).await,
    }
}

/// What a browser asks before it sends; the headers that allow it are set on every answer.
pub(super) async fn preflight() -> StatusCode {
    StatusCode::NO_CONTENT
}

async fn whole(app: &App, body: axum::body::Body) -> Result<bytes::Bytes, Problem> {
    let settings = app.services.streams.settings().freeze();
    let (limit_bytes, limit_ms) = (settings.limits_batch_max_bytes(), settings.limits_body_timeout_ms());
    read_within(body, limit_bytes, limit_ms, app.services.clock.as_ref()).await.map_err(body_problem)
}

/// An answer without a body, about the present: no cache keeps it.
fn empty(status: StatusCode, next: Offset) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(STREAM_NEXT_OFFSET, request::offset_value(next));
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    response
}

fn set_content_type(headers: &mut HeaderMap, content_type: &str) {
    // Checked when the stream was made.
    if let Ok(value) = HeaderValue::from_str(content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
}
