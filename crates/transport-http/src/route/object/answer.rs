//! Answers about objects: headers that describe one, and its JSON form. A header that an object's writer gave is given back as it came.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};
use tidegate_batch::service::{Object, Written};
use tidegate_batch::{Expiry, ObjectInfo};
use tidegate_core::time::Timestamp;

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

/// Times as headers have them. Objects that were written in the same second share the work.
#[derive(Debug, Default)]
pub(super) struct Times {
    second: Option<i64>,
    rfc_3339: String,
    http: Option<String>,
}

impl Times {
    /// RFC 3339, and as HTTP tells times, where it can.
    fn of(&mut self, time: Timestamp) -> (&str, Option<&str>) {
        let (second, ms) = (time.unix_ms().div_euclid(1_000), time.unix_ms().rem_euclid(1_000));
        if self.second.replace(second) != Some(second) {
            self.rfc_3339 = Timestamp::from_unix_ms(second * 1_000).to_string();
            let since = u64::try_from(second).ok().map(Duration::from_secs);
            self.http = since.and_then(|since| UNIX_EPOCH.checked_add(since)).map(httpdate::fmt_http_date);
        }
        match self.rfc_3339.len().checked_sub(4) {
            Some(at) if self.rfc_3339.ends_with('Z') => {
                self.rfc_3339.truncate(at);
                let _ = write!(self.rfc_3339, "{ms:03}Z");
            }
            // Beyond the years that the standard has a form for.
            _ => self.rfc_3339 = time.to_string(),
        }
        (&self.rfc_3339, self.http.as_deref())
    }
}

/// Which write of the object it is, and where it lies, field by field.
pub(super) fn identity(info: &ObjectInfo, times: &mut Times, tell: &mut dyn FnMut(&str, &[u8])) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut tag = [b'"'; 34];
    for (place, byte) in tag[1..33].chunks_exact_mut(2).zip(info.version.0) {
        place.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    tell(header::ETAG.as_str(), &tag);
    let (created, http) = times.of(info.created);
    tell(CREATED.as_str(), created.as_bytes());
    if let Some(http) = http {
        tell(header::LAST_MODIFIED.as_str(), http.as_bytes());
    }
    match info.metadata.expiry {
        Expiry::Never => tell(EXPIRES.as_str(), b"never"),
        expiry => tell(EXPIRES.as_str(), expiry.to_string().as_bytes()),
    }
    tell(TIER.as_str(), info.tier.as_str().as_bytes());
    if let Some(at) = info.expires {
        tell(EXPIRES_AT.as_str(), at.to_string().as_bytes());
    }
}

/// What its writer said of it, field by field.
pub(super) fn said(info: &ObjectInfo, tell: &mut dyn FnMut(&str, &[u8])) {
    let content_type = info.metadata.content_type.as_deref().filter(|text| HeaderValue::from_str(text).is_ok());
    tell(header::CONTENT_TYPE.as_str(), content_type.map_or(OCTETS.as_bytes(), str::as_bytes));
    if let Some(coding) = info.metadata.content_encoding.as_deref() {
        tell(header::CONTENT_ENCODING.as_str(), coding.as_bytes());
    }
    for (name, text) in &info.metadata.custom {
        if let Ok(name) = HeaderName::try_from(format!("{CUSTOM}{name}")) {
            tell(name.as_str(), text.as_bytes());
        }
    }
}

/// Puts a field into a map, unless it is none.
fn insert(headers: &mut HeaderMap, name: &str, value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
        headers.insert(name, value);
    }
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
    identity(info, &mut Times::default(), &mut |name, value| insert(headers, name, value));
}

/// All that is known of an object.
pub(super) fn describe(headers: &mut HeaderMap, info: &ObjectInfo) {
    identify(headers, info);
    headers.insert(header::CACHE_CONTROL, REVALIDATED);
    headers.insert(header::ACCEPT_RANGES, BYTES);
    said(info, &mut |name, value| insert(headers, name, value));
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
