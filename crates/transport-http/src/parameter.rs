//! The parameters of a query string: known ones, each at most once, decoded. It never ignores what it does not know.

use std::borrow::Cow;

use http::StatusCode;
use percent_encoding::percent_decode_str;

use crate::json::JsonError;
use crate::problem::Problem;

/// The parameters of a request, checked by the gate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    /// Reads a query string. As forms are written: `+` is a space, and percent-encoded bytes must be UTF-8.
    pub(crate) fn parse(query: &str, known: &'static [&'static str]) -> Result<Self, JsonError> {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        for part in query.split('&').filter(|part| !matches!(*part, "" | "=")) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let shown = || decode(name).unwrap_or(Cow::Borrowed(name)).chars().take(100).collect::<String>();
            let known_name = decode(name).and_then(|name| known.iter().find(|known| **known == name).copied());
            let Some(name) = known_name else {
                let known = if known.is_empty() { "none in the query string".into() } else { known.join(", ").into() };
                return Err(JsonError::UnknownField { field: shown().into(), known });
            };
            if found.iter().any(|(known, _)| *known == name) {
                return Err(JsonError::DuplicateField { field: name.into() });
            }
            let Some(value) = decode(value) else {
                return Err(JsonError::InvalidField {
                    path: name.into(),
                    expected: "percent-encoded UTF-8".into(),
                    found: "other bytes",
                });
            };
            found.push((name, value.into_owned()));
        }
        Ok(Self(found))
    }

    /// A parameter's text.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// An integer from `min` to `max`, or `default` where it is not given.
    pub(crate) fn integer(&self, name: &'static str, default: u64, min: u64, max: u64) -> Result<u64, Problem> {
        let Some(text) = self.get(name) else { return Ok(default) };
        match digits(text) {
            Some(value) if (min..=max).contains(&value) => Ok(value),
            _ => Err(bounded(name, text, min, max)),
        }
    }
}

/// What an integer out of its bounds is answered with.
pub(crate) fn bounded(name: &str, given: &str, min: u64, max: u64) -> Problem {
    let given: String = given.chars().take(40).collect();
    let detail = format!("{name} must be an integer from {min} to {max}, it is {given:?}");
    Problem::new(StatusCode::BAD_REQUEST, "invalid_field", detail).with("field", name).with("min", min).with("max", max)
}

/// A number of nothing but digits: no sign, no space, no fraction. `None` beyond 2^64 - 1 too.
pub(crate) fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return percent_decode_str(&spaced).decode_utf8().ok().map(|text| Cow::Owned(text.into_owned()));
    }
    percent_decode_str(text).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Failure as _;

    const KNOWN: &[&str] = &["from", "limit"];

    #[test]
    fn values_are_decoded_and_empty_parts_are_nothing() {
        let read = Parameters::parse("&from=a%2Fb+c%2B%F0%9F%8C%8A&&limit", KNOWN).unwrap();
        assert_eq!(read.get("from"), Some("a/b c+🌊"));
        assert_eq!(read.get("limit"), Some(""));
        assert_eq!(Parameters::parse("", KNOWN).unwrap().get("from"), None);
        assert_eq!(Parameters::parse("%66rom=1", KNOWN).unwrap().get("from"), Some("1"));
    }

    #[test]
    fn what_is_unknown_comes_twice_or_is_no_text_is_refused() {
        let code = |query: &str| Parameters::parse(query, KNOWN).map_err(|error| error.code());
        for (query, expected) in [
            ("form=1", "unknown_field"),
            ("=1", "unknown_field"),
            ("FROM=1", "unknown_field"),
            ("%ff=1", "unknown_field"),
            ("from=1&from=1", "duplicate_field"),
            ("from=1&%66rom=2", "duplicate_field"),
            ("from=%ff", "invalid_field"),
        ] {
            assert_eq!(code(query), Err(expected), "{query}");
        }
        assert_eq!(Parameters::parse("a", &[]).unwrap_err().code(), "unknown_field");
    }

    #[test]
    fn an_integer_is_digits_within_its_bounds() {
        let integer = |text: &str| {
            let read = Parameters::parse(&format!("limit={text}"), KNOWN).unwrap();
            read.integer("limit", 7, 1, 100).map_err(|problem| problem.code())
        };
        assert_eq!(integer("1"), Ok(1));
        assert_eq!(integer("0100"), Ok(100));
        for bad in ["", "0", "101", "-1", "%2B1", "1.0", "1e1", "%201", "18446744073709551616", "x"] {
            assert_eq!(integer(bad), Err("invalid_field"), "{bad}");
        }
        assert_eq!(Parameters::default().integer("limit", 7, 1, 100).unwrap(), 7);
    }
}
