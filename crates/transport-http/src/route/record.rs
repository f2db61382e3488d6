//! Records of change streams: appending them, and choosing how they are read. An append is all or nothing.

mod accept;
mod producer;
mod read;
mod tail;

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut as _, Bytes};
use http::request::Parts as RequestHead;
use http::{HeaderMap, HeaderValue, header};
use tidegate_cdc::{PublishRequest, Published, ReadFrom, Selection};
use tidegate_core::Principal;
use tidegate_core::limit::Settings;
use tidegate_core::position::{Offset, Partition};

use super::change_problem::{publish_problem, record_problem};
use super::name::{Parts, name};
use crate::body::{BodyError, read_within};
use crate::gate::App;
use crate::parameter::{Parameters, bounded, digits};
use crate::problem::Problem;
use crate::record::records;
use accept::Wanted;

pub(super) use accept::NDJSON;
pub(super) use producer::stamp as producer_stamp;
pub(crate) use tail::HEARTBEAT;

/// Records of a read, unless told otherwise.
const LIMIT_DEFAULT: u64 = 1_000;
/// Bytes of a read, unless told otherwise.
const MAX_BYTES_DEFAULT: u64 = 1024 * 1024;

pub(super) async fn publish(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let (stream, producer) = (name(path)?, producer::stamp(&head.headers)?);
    let settings = app.services.streams.settings().freeze();
    let (limit_bytes, limit_ms) = (settings.limits_batch_max_bytes(), settings.limits_body_timeout_ms());
    let body = read_within(body, limit_bytes, limit_ms, app.services.clock.as_ref()).await.map_err(batch_problem)?;
    let records = records(&body, says_lines(&head.headers)).map_err(|error| record_problem(&error))?;
    let request = PublishRequest { records, producer };
    let published = app.services.streams.publish(&principal, &stream, request).await;
    Ok(answer(&published.map_err(|error| publish_problem(&error))?))
}

/// A body beyond the bound is a batch beyond it: one code, whether the bytes or the records were counted.
fn batch_problem(error: BodyError) -> Problem {
    match error {
        BodyError::TooLarge { limit_bytes } => Problem::new(
            http::StatusCode::PAYLOAD_TOO_LARGE,
            "batch_too_large",
            format!("the records have more than {limit_bytes} bytes (limits.batch_max_bytes); nothing was appended"),
        )
        .with("max_bytes", limit_bytes),
        other => other.into(),
    }
}

/// Whether the request says that its body is NDJSON, whatever it begins with.
fn says_lines(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/x-ndjson")
}

/// Written by hand: this is the hottest answer that there is.
fn answer(published: &Published) -> Response {
    let mut number = itoa::Buffer::new();
    let mut out = Vec::with_capacity(64 + 64 * published.appended.len() + 160 * published.late.len());
    out.put_slice(b"{\"count\":");
    out.put_slice(number.format(published.count).as_bytes());
    out.put_slice(b",\"appended\":[");
    for (place, range) in published.appended.iter().enumerate() {
        out.put_slice(if place == 0 { b"{\"partition\":" } else { b",{\"partition\":" });
        out.put_slice(number.format(range.partition.0).as_bytes());
        out.put_slice(b",\"base\":");
        out.put_slice(number.format(range.base.0).as_bytes());
        out.put_slice(b",\"next\":");
        out.put_slice(number.format(range.next.0).as_bytes());
        out.put_u8(b'}');
    }
    out.put_u8(b']');
    if published.duplicate {
        out.put_slice(b",\"duplicate\":true");
    }
    if !published.late.is_empty() {
        let late: Vec<_> = published
            .late
            .iter()
            .map(|late| {
                serde_json::json!({
                    "index": late.index,
                    "partition": late.partition.0,
                    "event_time": late.event_time,
                    "watermark": late.watermark,
                })
            })
            .collect();
        out.put_slice(b",\"late\":");
        serde_json::to_writer(&mut out, &late).expect("a list of numbers and texts is JSON");
    }
    out.put_slice(b"}\n");
    let mut response = Bytes::from(out).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What a request asks to be read.
struct ReadRequest {
    selection: Selection,
    from: ReadFrom,
    limit: u64,
    max_bytes: u64,
    wait_ms: u64,
}

pub(super) async fn read(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
    head: RequestHead,
) -> Result<Response, Problem> {
    let stream = name(path)?;
    let settings = app.services.streams.settings().freeze();
    let none = Parameters::default();
    let parameters = head.extensions.get::<Parameters>().unwrap_or(&none);
    match accept::wanted(&head.headers) {
        Wanted::Lines => {
            let request = read_request(parameters, &settings)?;
            read::answer(&app, &principal, &stream, request, &head.headers).await
        }
        Wanted::Events => {
            let mut request = read_request(parameters, &settings)?;
            if let Some(field) =
                ["limit", "max_bytes", "wait_ms"].into_iter().find(|field| parameters.get(field).is_some())
            {
                let detail = format!("{field} bounds a read; events follow the stream without end");
                return Err(Problem::new(http::StatusCode::BAD_REQUEST, "invalid_field", detail).with("field", field));
            }
            if let Some(after) = tail::last_event_id(&head.headers, request.selection)? {
                request.from = after;
            }
            tail::answer(&app, &principal, &stream, request, &head.headers).await
        }
    }
}

fn read_request(parameters: &Parameters, settings: &Settings) -> Result<ReadRequest, Problem> {
    let selection = match parameters.get("partition") {
        None => Selection::All,
        Some(text) => {
            let partition = digits(text).and_then(|number| u32::try_from(number).ok());
            Selection::One(Partition(partition.ok_or_else(|| bounded("partition", text, 0, u64::from(u32::MAX)))?))
        }
    };
    let from = match parameters.get("from") {
        None | Some("earliest") => ReadFrom::Earliest,
        Some("latest") => ReadFrom::Latest,
        Some(text) => ReadFrom::Offset(Offset(digits(text).ok_or_else(|| {
            let given: String = text.chars().take(40).collect();
            let detail = format!(r#"from must be an offset (0 to 2^64 - 1), "earliest" or "latest", it is {given:?}"#);
            Problem::new(http::StatusCode::BAD_REQUEST, "invalid_field", detail)
                .with("field", "from")
                .with("min", 0)
                .with("max", u64::MAX)
        })?)),
    };
    let read_max = settings.limits_read_max_records();
    let bytes_max = settings.limits_read_max_bytes();
    Ok(ReadRequest {
        selection,
        from,
        limit: parameters.integer("limit", LIMIT_DEFAULT.min(read_max), 1, read_max)?,
        max_bytes: parameters.integer("max_bytes", MAX_BYTES_DEFAULT.min(bytes_max), 1, bytes_max)?,
        wait_ms: parameters.integer("wait_ms", 0, 0, settings.limits_wait_max_ms())?,
    })
}

/// What every answer that goes on for a while says to caches and to proxies that like to collect.
pub(super) fn streaming_headers(headers: &mut HeaderMap, content_type: HeaderValue) {
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    headers.insert(super::X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
}
