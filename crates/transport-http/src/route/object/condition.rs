//! Conditions of a request (RFC 9110, section 13): entity tags are the library's to judge, in the step that changes the object; times are
//! judged here. A tag that is none is refused rather than passed over, so that no condition is lost.

use axum::response::Response;
use http::{HeaderMap, HeaderName, StatusCode, header};
use std::time::UNIX_EPOCH;
use tidegate_batch::error::{GetError, PreconditionFailed};
use tidegate_batch::service::Got;
use tidegate_batch::{Collection, Condition, ObjectInfo, ObjectKey, ObjectService, Version, Versions};

use super::answer::not_modified;
use super::problem::{get_problem, precondition_problem};
use crate::problem::Problem;

/// What a request makes a condition.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions {
    pub(super) condition: Condition,
    /// In whole seconds since 1970, as HTTP writes times. Looked at only without `If-None-Match`.
    modified_since: Option<i64>,
    /// Only without `If-Match`.
    unmodified_since: Option<i64>,
}

impl Conditions {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let condition = Condition {
            if_match: versions(headers, &header::IF_MATCH, false)?,
            if_none_match: versions(headers, &header::IF_NONE_MATCH, true)?,
        };
        Ok(Self {
            modified_since: time(headers, &header::IF_MODIFIED_SINCE).filter(|_| condition.if_none_match.is_none()),
            unmodified_since: time(headers, &header::IF_UNMODIFIED_SINCE).filter(|_| condition.if_match.is_none()),
            condition,
        })
    }

    pub(super) fn has_times(&self) -> bool {
        self.modified_since.is_some() || self.unmodified_since.is_some()
    }

    /// Judges the times for a reader; gives the answer, where they make one.
    pub(super) fn by_time(&self, info: &ObjectInfo) -> Result<Option<Response>, Problem> {
        self.unmodified(info)?;
        let same = self.modified_since.is_some_and(|since| seconds(info) <= since);
        Ok(same.then(|| not_modified(info)))
    }

    /// Judges `If-Unmodified-Since`.
    pub(super) fn unmodified(&self, info: &ObjectInfo) -> Result<(), Problem> {
        match self.unmodified_since {
            Some(since) if seconds(info) > since => {
                Err(precondition_problem(PreconditionFailed { current: Some(info.version) }))
            }
            _ => Ok(()),
        }
    }

    /// For a change: judged now, so that nobody sends a body in vain, and again in the change's own step, for which a time becomes a
    /// condition on the version that is there now.
    pub(super) async fn pinned(
        self,
        objects: &ObjectService,
        collection: &Collection,
        key: &ObjectKey,
    ) -> Result<Condition, Problem> {
        if self.unmodified_since.is_none() && self.condition == Condition::default() {
            return Ok(self.condition);
        }
        let info = match objects.head(collection, key, &Condition::default()).await {
            Ok(Got::Object(object)) => Some(object.info),
            Ok(Got::NotModified(info)) => Some(info),
            Err(GetError::NotFound { .. }) => None,
            Err(error) => return Err(get_problem(error)),
        };
        let current = info.as_ref().map(|info| info.version);
        if !self.condition.matches(current) || !self.condition.none_matches(current) {
            return Err(precondition_problem(PreconditionFailed { current }));
        }
        match info {
            Some(info) if self.unmodified_since.is_some() => {
                self.unmodified(&info)?;
                Ok(Condition { if_match: Some(Versions::OneOf(vec![info.version])), ..self.condition })
            }
            // What is not there has changed since: the writer has seen something that was deleted, and would bring it back unawares.
            None if self.unmodified_since.is_some() => Err(precondition_problem(PreconditionFailed { current: None })),
            _ => Ok(self.condition),
        }
    }
}

/// When an object was written, as HTTP tells times.
fn seconds(info: &ObjectInfo) -> i64 {
    info.created.unix_ms().div_euclid(1_000)
}

/// A time that is none is passed over, as RFC 9110 asks.
fn time(headers: &HeaderMap, name: &HeaderName) -> Option<i64> {
    let text = headers.get(name)?.to_str().ok()?;
    let time = httpdate::parse_http_date(text).ok()?;
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

fn versions(headers: &HeaderMap, name: &HeaderName, weak: bool) -> Result<Option<Versions>, Problem> {
    let mut values = headers.get_all(name).iter().peekable();
    if values.peek().is_none() {
        return Ok(None);
    }
    let refuse = || {
        let detail = format!("{name} must be *, or entity tags in quotes with commas between them");
        Problem::new(StatusCode::BAD_REQUEST, "invalid_field", detail).with("field", name.as_str())
    };
    let (mut any, mut count) = (false, 0_usize);
    let mut versions = Vec::new();
    for value in values {
        let mut text = value.to_str().map_err(|_| refuse())?.trim_ascii();
        if text == "*" {
            any = true;
            continue;
        }
        while !text.is_empty() {
            let (tag, rest) = entity_tag(text).ok_or_else(refuse)?;
            count += 1;
            if (weak || !tag.weak)
                && let Some(version) = version(tag.opaque)
            {
                versions.push(version);
            }
            text = rest.trim_ascii_start();
            if let Some(after) = text.strip_prefix(',') {
                text = after.trim_ascii_start();
            } else if !text.is_empty() {
                return Err(refuse());
            }
        }
    }
    if !any && count == 0 {
        return Err(refuse());
    }
    Ok(Some(if any { Versions::Any } else { Versions::OneOf(versions) }))
}

/// An entity tag.
pub(super) struct Tag<'a> {
    pub(super) weak: bool,
    pub(super) opaque: &'a str,
}

/// The entity tag that a text begins with, and what follows it.
pub(super) fn entity_tag(text: &str) -> Option<(Tag<'_>, &str)> {
    let (weak, text) = text.strip_prefix("W/").map_or((false, text), |text| (true, text));
    let (opaque, rest) = text.strip_prefix('"')?.split_once('"')?;
    opaque.bytes().all(|byte| byte.is_ascii_graphic()).then_some((Tag { weak, opaque }, rest))
}

/// The version that an entity tag's inside is; `None` = a tag that no object of ours has.
pub(super) fn version(opaque: &str) -> Option<Version> {
    // As it is written, byte for byte: a tag in capitals is another tag.
    if opaque.len() != 32 || !opaque.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    u128::from_str_radix(opaque, 16).ok().map(|bits| Version(bits.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn read(value: &str, weak: bool) -> Result<Option<Versions>, &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, HeaderValue::from_str(value).unwrap());
        versions(&headers, &header::IF_MATCH, weak).map_err(|problem| problem.code())
    }

    #[test]
    fn tags_are_read_as_a_list_and_what_is_no_tag_is_refused() {
        let one = Version(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes());
        let tag = format!("\"{one}\"");
        assert_eq!(read("*", false), Ok(Some(Versions::Any)));
        assert_eq!(read(&tag, false), Ok(Some(Versions::OneOf(vec![one]))));
        assert_eq!(read(&format!("\"x,y\" , {tag},"), false), Ok(Some(Versions::OneOf(vec![one]))));
        assert_eq!(read(&format!("W/{tag}"), false), Ok(Some(Versions::OneOf(vec![]))), "weak never matches If-Match");
        assert_eq!(read(&format!("W/{tag}"), true), Ok(Some(Versions::OneOf(vec![one]))));
        assert_eq!(read(&tag.to_uppercase(), false), Ok(Some(Versions::OneOf(vec![]))));
        for bad in ["", " ", "abc", "\"abc", "\"a\" \"b\"", "w/\"a\"", "\"a b\""] {
            assert_eq!(read(bad, false), Err("invalid_field"), "{bad}");
        }
    }
}
