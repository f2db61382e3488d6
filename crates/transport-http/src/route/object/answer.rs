//! Answers about objects: headers that describe one, and its JSON form. A header that an object's writer gave is given back as it came.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};
use tidegate_batch::ObjectInfo;
use tidegate_batch::service::{Object, Written};

use super::body::ObjectBody;
use super::metadata::{CUSTOM, EXPIRES};
use crate::body::EndlessAnswer;
use crate::route::json;

const CREATED: HeaderName = HeaderName::from_static("x-tidegate-created");
const EXPIRES_AT: HeaderName = HeaderName::from_static("x-tidegate-expires-at");
const TIER: HeaderName = HeaderName::from_static("x-tidegate-tier");
/// Kept by whoever asked, and asked for again with its tag before it is used.
const REVALIDATED: HeaderValue = HeaderValue::from_static("private, no-cache");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");

/// The entity tag: the version in quotes.
pub(super) fn tag(info: &ObjectInfo) -> String {
    format!("\"{}\"", info.version)
}

fn value(text: impl AsRef<[u8]>) -> Option<HeaderValue> {
    HeaderValue::from_bytes(text.as_ref()).ok()
}

/// An object's JSON form.
pub(super) fn shown(info: &ObjectInfo) -> Value {
    json!({
        "key": info.key.as_str(),
        "length": info.length,
        "etag": tag(info),
        "created": info.created.to_string(),
        "expires": info.expires.map(|at| at.to_string()),
        "tier": info.tier.as_str(),
        "content_type": info.metadata.content_type,
    })
}

/// What an object that was written is answered with.
pub(super) fn written(written: &Written) -> Response {
    let mut response = json(&shown(&written.info));
    *response.status_mut() = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    identify(response.headers_mut(), &written.info);
    response
}

/// Which write of the object it is, and where it lies.
fn identify(headers: &mut HeaderMap, info: &ObjectInfo) {
    let pairs = [
        (header::ETAG, value(tag(info))),
        (CREATED, value(info.created.to_string())),
        (EXPIRES, value(info.metadata.expiry.to_string())),
        (TIER, value(info.tier.as_str())),
        (EXPIRES_AT, info.expires.and_then(|at| value(at.to_string()))),
    ];
    headers.extend(pairs.into_iter().filter_map(|(name, value)| Some((name, value?))));
    if let Ok(seconds) = u64::try_from(info.created.unix_ms().div_euclid(1_000))
        && let Some(time) = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    {
        headers.extend(value(httpdate::fmt_http_date(time)).map(|time| (header::LAST_MODIFIED, time)));
    }
}

/// All that is known of an object.
pub(super) fn describe(headers: &mut HeaderMap, info: &ObjectInfo) {
    identify(headers, info);
    headers.insert(header::CACHE_CONTROL, REVALIDATED);
    headers.insert(header::ACCEPT_RANGES, BYTES);
    let content_type = info.metadata.content_type.as_deref().and_then(value);
    headers.insert(header::CONTENT_TYPE, content_type.unwrap_or(OCTETS));
    if let Some(coding) = info.metadata.content_encoding.as_deref().and_then(value) {
        headers.insert(header::CONTENT_ENCODING, coding);
    }
    for (name, text) in &info.metadata.custom {
        if let (Ok(name), Some(text)) = (HeaderName::try_from(format!("{CUSTOM}{name}")), value(text.as_bytes())) {
            headers.insert(name, text);
        }
    }
}

pub(super) fn not_modified(info: &ObjectInfo) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    identify(response.headers_mut(), info);
    response.headers_mut().insert(header::CACHE_CONTROL, REVALIDATED);
    response
}

/// The object's bytes.
pub(super) fn object_answer(object: Object, part: bool) -> Response {
    let Object { info, range, body } = object;
    let length = range.end - range.start;
    let mut response = Response::new(Body::new(ObjectBody::new(body, length)));
    describe(response.headers_mut(), &info);
    if part {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let text = format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), info.length);
        response.headers_mut().extend(value(text).map(|text| (header::CONTENT_RANGE, text)));
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    // A client that takes nothing of it has nothing else to wait for.
    response.extensions_mut().insert(EndlessAnswer);
    response
}
