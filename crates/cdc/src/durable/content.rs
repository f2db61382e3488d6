//! Content types and what they say about messages. JSON is taken apart into its values, everything else is bytes; neither is
//! ever changed, but for line breaks between a JSON value's tokens.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::ContentError;
use crate::record::NewRecord;

/// The most bytes of a content type.
pub const CONTENT_TYPE_MAX_BYTES: usize = 255;

/// What a stream's content type says about its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// JSON values: each is a record, a read gives an array of them. `application/json` and everything that ends in `+json`.
    Json,
    /// Text: bytes that an event stream can carry as they are. `text/*`.
    Text,
    /// Bytes.
    Binary,
}

impl MessageKind {
    /// What a content type says.
    #[must_use]
    pub fn of(content_type: &str) -> Self {
        let essence = essence(content_type);
        let starts = |prefix: &str| essence.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        let ends = |suffix: &str| {
            let at = essence.len().checked_sub(suffix.len());
            at.and_then(|at| essence.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        };
        if essence.eq_ignore_ascii_case("application/json") || ends("+json") {
            Self::Json
        } else if starts("text/") {
            Self::Text
        } else {
            Self::Binary
        }
    }
}

/// Type and subtype, without parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether two content types are the same, whatever their case and their parameters.
#[must_use]
pub fn same_type(one: &str, other: &str) -> bool {
    essence(one).eq_ignore_ascii_case(essence(other))
}

/// Whether a text is a content type: `type/subtype`, with or without parameters.
pub(crate) fn check(content_type: &str) -> Result<(), ContentError> {
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    let well_formed = essence(content_type).split_once('/').is_some_and(|(kind, sub)| token(kind) && token(sub));
    let plain = content_type.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte));
    if !well_formed || !plain || content_type.len() > CONTENT_TYPE_MAX_BYTES {
        return Err(ContentError::Type { limit_bytes: CONTENT_TYPE_MAX_BYTES });
    }
    Ok(())
}

/// The values of a JSON body, an array's elements one by one: slices of it. Line breaks are taken out, so that a record is one
/// line for those who read lines; every other byte of a value stays.
pub(crate) fn json_values(body: &Bytes) -> Result<Vec<Bytes>, ContentError> {
    let malformed = |error: serde_json::Error| ContentError::Json { line: error.line(), column: error.column() };
    let first = body.iter().find(|byte| !matches!(byte, b' ' | b'\n' | b'\r' | b'\t'));
    if first == Some(&b'[') {
        let elements: Vec<&RawValue> = serde_json::from_slice(body).map_err(malformed)?;
        return Ok(elements.into_iter().map(|element| value(body, element)).collect());
    }
    let whole: &RawValue = serde_json::from_slice(body).map_err(malformed)?;
    Ok(vec![value(body, whole)])
}

fn value(body: &Bytes, raw: &RawValue) -> Bytes {
    let text = raw.get().as_bytes();
    if text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return NewRecord::compacted(raw);
    }
    body.slice_ref(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_says_what_messages_are() {
        for (content_type, kind) in [
            ("application/json", MessageKind::Json),
            ("APPLICATION/JSON; charset=utf-8", MessageKind::Json),
            ("application/vnd.api+json", MessageKind::Json),
            ("text/plain", MessageKind::Text),
            ("Text/HTML; charset=utf-8", MessageKind::Text),
            ("application/ndjson", MessageKind::Binary),
            ("application/octet-stream", MessageKind::Binary),
            ("image/png", MessageKind::Binary),
        ] {
            assert_eq!(MessageKind::of(content_type), kind, "{content_type}");
            assert!(check(content_type).is_ok(), "{content_type}");
        }
        assert!(same_type("text/plain", "TEXT/PLAIN; charset=utf-8"));
        assert!(!same_type("text/plain", "text/html"));
        for bad in ["", "text", "text/", "/plain", "te xt/plain", "text/plain\u{7f}", "text/pl\u{e4}in"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_array_is_taken_apart_one_level_deep_and_every_digit_stays() {
        let values = |text: &str| -> Vec<String> {
            let body = Bytes::copy_from_slice(text.as_bytes());
            json_values(&body).unwrap().iter().map(|value| String::from_utf8(value.to_vec()).unwrap()).collect()
        };
        assert_eq!(values("[ 1.10, {\"a\": 1e400} ,[2,[3]]]"), ["1.10", "{\"a\": 1e400}", "[2,[3]]"]);
        assert_eq!(values(" {\"a\":\n 12345678901234567890}\n"), ["{\"a\":12345678901234567890}"]);
        assert_eq!(values("[]"), Vec::<String>::new());
        assert_eq!(values("null"), ["null"]);
        for bad in ["", " ", "{", "[1,]", "[1] 2", "{ invalid json }", "\u{0}"] {
            assert!(json_values(&Bytes::copy_from_slice(bad.as_bytes())).is_err(), "{bad:?}");
        }
        assert!(json_values(&Bytes::from_static(b"\"\xff\"")).is_err());
    }
}
