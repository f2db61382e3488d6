//! What a request of the protocol says: offsets, headers, the query string. What it does not know of the query string it ignores, as
//! the protocol asks; what it knows must be well-formed.

use http::request::Parts as RequestHead;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;
use tidegate_cdc::durable::{ForkSpec, WRITER_SEQ_MAX_BYTES};
use tidegate_core::Timestamp;
use tidegate_core::position::Offset;

use super::super::name::{is_encoded_text, named};
use super::{
    STREAM_CLOSED, STREAM_EXPIRES_AT, STREAM_FORK_OFFSET, STREAM_FORK_SUB_OFFSET, STREAM_FORKED_FROM, STREAM_SEQ,
    STREAM_TTL,
};
use crate::parameter::digits;
use crate::problem::Problem;

/// An offset is written as two numbers of this many digits: what does not fit into the second stands in the first. So offsets
/// sort as texts do.
const PART_DIGITS: usize = 16;
const PART: u64 = 10_u64.pow(16);

/// An offset on the wire.
pub(super) fn offset_value(offset: Offset) -> HeaderValue {
    HeaderValue::from_bytes(&offset_text(offset)).expect("digits and an underscore")
}

pub(super) fn offset_text(offset: Offset) -> [u8; 2 * PART_DIGITS + 1] {
    let mut text = [b'0'; 2 * PART_DIGITS + 1];
    text[PART_DIGITS] = b'_';
    let parts = [(PART_DIGITS, offset.0 / PART), (2 * PART_DIGITS + 1, offset.0 % PART)];
    for (end, mut number) in parts {
        let mut at = end;
        while number > 0 {
            at -= 1;
            text[at] = b'0' + u8::try_from(number % 10).expect("a digit");
            number /= 10;
        }
    }
    text
}

/// Reads an offset; `None` where the text is none.
pub(super) fn offset(text: &str) -> Option<Offset> {
    let (high, low) = text.split_once('_')?;
    if high.len() != PART_DIGITS || low.len() != PART_DIGITS {
        return None;
    }
    // Beyond 2^64 - 1 there is nothing: the last offset stands for it, which no stream reaches.
    Some(Offset(digits(high)?.saturating_mul(PART).saturating_add(digits(low)?)))
}

/// Where to begin to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// At the first record that is still there.
    Start,
    /// At the tail.
    Now,
    /// At this offset.
    At(Offset),
}

/// How to wait for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Live {
    /// One answer, when there is something.
    LongPoll,
    /// An event stream.
    Events,
}

/// A query string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) from: From,
    pub(super) live: Option<Live>,
    /// The cursor that the client was given last.
    pub(super) cursor: Option<u64>,
}

pub(super) fn query(text: Option<&str>) -> Result<Query, Problem> {
    let (mut from, mut live, mut cursor) = (None, None, None);
    for part in text.unwrap_or_default().split('&') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let value = || percent_decode_str(value).decode_utf8().ok();
        match name {
            "offset" => {
                if from.is_some() {
                    return Err(malformed_parameter("malformed_offset", "offset", "is given twice"));
                }
                from = Some(match value().as_deref() {
                    Some("-1") => From::Start,
                    Some("now") => From::Now,
                    other => {
                        let offset = other.and_then(offset);
                        From::At(offset.ok_or_else(|| {
                            let detail = "must be -1, now, or a Stream-Next-Offset that was given before";
                            malformed_parameter("malformed_offset", "offset", detail)
                        })?)
                    }
                });
            }
            "live" => {
                live = Some(match value().as_deref() {
                    Some("long-poll") => Live::LongPoll,
                    Some("sse") => Live::Events,
                    _ => return Err(malformed_parameter("invalid_field", "live", "must be long-poll or sse")),
                });
            }
            "cursor" => cursor = value().and_then(|value| digits(&value)),
            _ => {}
        }
    }
    if live.is_some() && from.is_none() {
        return Err(malformed_parameter("missing_field", "offset", "must be given with live"));
    }
    Ok(Query { from: from.unwrap_or(From::Start), live, cursor })
}

fn malformed_parameter(code: &'static str, field: &'static str, what: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code, format!("{field} {what}")).with("field", field)
}

/// The one value of a header.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(malformed(name, "is given twice"));
    }
    value.to_str().map(Some).map_err(|_| malformed(name, "must be ASCII"))
}

pub(super) fn malformed(name: &HeaderName, what: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "malformed_header", format!("{name} {what}")).with("field", name.as_str())
}

pub(super) fn content_type(headers: &HeaderMap) -> Result<Option<Box<str>>, Problem> {
    Ok(text(headers, &header::CONTENT_TYPE)?.map(Into::into))
}

/// Whether the request closes the stream.
pub(super) fn closes(headers: &HeaderMap) -> bool {
    headers.get(STREAM_CLOSED).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

/// Digits without a leading zero.
fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, Problem> {
    let Some(text) = text(headers, name)? else { return Ok(None) };
    let plain = text == "0" || !text.starts_with('0');
    let number = digits(text).filter(|_| plain);
    number.map(Some).ok_or_else(|| malformed(name, "must be an integer of decimal digits, without a leading zero"))
}

pub(super) fn ttl_s(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    number(headers, &STREAM_TTL)
}

pub(super) fn expires_at(headers: &HeaderMap) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = text(headers, &STREAM_EXPIRES_AT)? else { return Ok(None) };
    Timestamp::parse(text).map(Some).map_err(|error| malformed(&STREAM_EXPIRES_AT, &format!("is {error}")))
}

pub(super) fn writer_seq(headers: &HeaderMap) -> Result<Option<Box<str>>, Problem> {
    let Some(text) = text(headers, &STREAM_SEQ)? else { return Ok(None) };
    if text.is_empty() || text.len() > WRITER_SEQ_MAX_BYTES {
        let what = format!("must have 1 to {WRITER_SEQ_MAX_BYTES} bytes");
        return Err(malformed(&STREAM_SEQ, &what).with("max_bytes", WRITER_SEQ_MAX_BYTES));
    }
    Ok(Some(text.into()))
}

pub(super) fn fork(headers: &HeaderMap) -> Result<Option<ForkSpec>, Problem> {
    let offset_text = text(headers, &STREAM_FORK_OFFSET)?;
    let sub_offset = number(headers, &STREAM_FORK_SUB_OFFSET)?;
    let Some(source) = text(headers, &STREAM_FORKED_FROM)? else {
        for (name, given) in
            [(&STREAM_FORK_OFFSET, offset_text.is_some()), (&STREAM_FORK_SUB_OFFSET, sub_offset.is_some())]
        {
            if given {
                return Err(malformed(name, "needs stream-forked-from"));
            }
        }
        return Ok(None);
    };
    let source = source_name(source)
        .ok_or_else(|| malformed(&STREAM_FORKED_FROM, "must be the path of a stream, /v1/stream/..."))?;
    let offset = match offset_text {
        None | Some("now") => None,
        Some("-1") => Some(Offset::ZERO),
        Some(text) => Some(offset(text).ok_or_else(|| malformed(&STREAM_FORK_OFFSET, "is no offset of a stream"))?),
    };
    Ok(Some(ForkSpec { source: named(source)?, offset, sub_offset: sub_offset.unwrap_or(0) }))
}

/// The name in a stream's path or URL.
fn source_name(text: &str) -> Option<String> {
    let path = match text.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/')?..],
        None => text,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = path.strip_prefix("/ds").unwrap_or(path);
    let name = path.strip_prefix("/v1/stream/").filter(|name| !name.is_empty() && is_encoded_text(name))?;
    percent_decode_str(name).decode_utf8().ok().map(|name| name.into_owned())
}

/// The URL of what was created, as far as the request tells.
pub(super) fn location(head: &RequestHead, secure: bool) -> HeaderValue {
    let host = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = host.or_else(|| head.headers.get(header::HOST).map(HeaderValue::as_bytes));
    let path = head.uri.path();
    let mut url = Vec::with_capacity(64 + path.len());
    if let Some(host) = host {
        url.extend_from_slice(if secure { b"https://" } else { b"http://" });
        url.extend_from_slice(host);
    }
    url.extend_from_slice(path.as_bytes());
    HeaderValue::from_bytes(&url).unwrap_or_else(|_| HeaderValue::from_static("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_sort_as_texts_do_and_come_back() {
        let numbers = [0, 1, 9, 10, 255, PART - 1, PART, PART + 1, u64::MAX - 1, u64::MAX];
        let texts: Vec<String> =
            numbers.iter().map(|number| String::from_utf8(offset_text(Offset(*number)).to_vec()).unwrap()).collect();
        assert!(texts.is_sorted());
        for (number, text) in numbers.iter().zip(&texts) {
            assert_eq!(offset(text), Some(Offset(*number)));
        }
        assert_eq!(texts[0], "0000000000000000_0000000000000000");
        assert_eq!(offset("9999999999999999_9999999999999999"), Some(Offset(u64::MAX)));
        for bad in ["", "0", "-1", "0000000000000000", "0000000000000000_", "0000000000000000_000000000000000a"] {
            assert_eq!(offset(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_a_query_knows_must_be_well_formed_and_the_rest_is_ignored() {
        let tail = "offset=0000000000000000_0000000000000007";
        let read = |text: &str| query(Some(text)).map_err(|problem| problem.code());
        let plain = Query { from: From::Start, live: None, cursor: None };
        assert_eq!(query(None).unwrap(), plain);
        assert_eq!(read("foo=bar&offset=-1&baz"), Ok(plain));
        assert_eq!(read(tail), Ok(Query { from: From::At(Offset(7)), ..plain }));
        let live = Query { from: From::Now, live: Some(Live::LongPoll), cursor: Some(12) };
        assert_eq!(read("cursor=12&live=long-poll&offset=now"), Ok(live));
        assert_eq!(read("offset="), Err("malformed_offset"));
        assert_eq!(read("offset=0,1"), Err("malformed_offset"));
        assert_eq!(read("offset=%ff"), Err("malformed_offset"));
        assert_eq!(read("offset=-1&offset=-1"), Err("malformed_offset"));
        assert_eq!(read("live=sse"), Err("missing_field"));
        assert_eq!(read("offset=-1&live=maybe"), Err("invalid_field"));
    }

    #[test]
    fn a_source_is_named_by_its_path_or_its_url() {
        for text in ["/v1/stream/a%2Fb", "/ds/v1/stream/a/b", "https://host:1/ds/v1/stream/a/b?x=1"] {
            assert_eq!(source_name(text).as_deref(), Some("a/b"), "{text}");
        }
        for bad in ["", "a", "/v1/stream/", "/v1/streams/a", "https://host", "/v1/stream/a%2", "/v1/stream/%ff"] {
            assert_eq!(source_name(bad), None, "{bad}");
        }
    }
}
