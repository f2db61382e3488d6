//! Strict reading of JSON request bodies: every refusal names its field or its line and column. It never guesses, drops
//! or defaults what it does not know, and never turns a number into a double.

mod fields;

use serde::de::{self, Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use tidegate_core::{ErrorKind, Failure};

pub(crate) use fields::fields;

/// Why a body is not what the route reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// It is not JSON, or not UTF-8.
    #[error("the body is not JSON: {what} at line {line} column {column}")]
    Malformed {
        /// The parser's words.
        what: Box<str>,
        /// From 1.
        line: usize,
        /// From 1; 0 = the line's end before its first character.
        column: usize,
    },
    /// It has a field that the route does not know.
    #[error("unknown field {field:?}; the fields are {known}")]
    UnknownField {
        /// Which.
        field: Box<str>,
        /// Those that there are.
        known: Box<str>,
    },
    /// It has a field twice.
    #[error("field {field:?} is given twice")]
    DuplicateField {
        /// Which.
        field: Box<str>,
    },
    /// A field has the wrong type or a value that is not one of its own.
    #[error("{path} must be {expected}, it is {found}")]
    InvalidField {
        /// Which; `$` is the body itself.
        path: Box<str>,
        /// What it must be.
        expected: Box<str>,
        /// What it is.
        found: &'static str,
    },
    /// A field that must be there is not.
    #[error("field {field:?} is missing")]
    MissingField {
        /// Which.
        field: &'static str,
    },
}

impl Failure for JsonError {
    fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed_json",
            Self::UnknownField { .. } => "unknown_field",
            Self::DuplicateField { .. } => "duplicate_field",
            Self::InvalidField { .. } => "invalid_field",
            Self::MissingField { .. } => "missing_field",
        }
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// A JSON object whose fields are known, unique and not yet read.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    text: &'a str,
    fields: Vec<(String, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// Reads a body. Whether it is JSON at all is judged first, then its fields in their order.
    pub(crate) fn parse(body: &'a [u8], known: &[&str]) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(body).map_err(|error| {
            let (line, column) = place(&body[..error.valid_up_to()]);
            JsonError::Malformed { what: "invalid UTF-8".into(), line, column }
        })?;
        let whole: &RawValue = serde_json::from_str(text).map_err(|error| malformed(&error, (1, 0)))?;
        if !whole.get().starts_with('{') {
            return Err(invalid("$", "a JSON object", whole));
        }
        let mut reader = FieldReader { known, fields: Vec::new(), refused: None };
        let read = serde_json::Deserializer::from_str(text).deserialize_map(&mut reader);
        match (reader.refused, read) {
            (Some(refused), _) => Err(refused),
            (None, Err(error)) => Err(malformed(&error, (1, 0))),
            (None, Ok(())) => Ok(Self { text, fields: reader.fields }),
        }
    }

    /// All fields, in order.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.fields.iter().map(|(name, raw)| (name.as_str(), *raw))
    }

    /// A field that may be absent.
    pub(crate) fn optional(&self, field: &str) -> Option<&'a RawValue> {
        self.fields.iter().find(|(name, _)| name == field).map(|(_, raw)| *raw)
    }

    /// A field that may be absent or `null`, which is the same.
    pub(crate) fn given(&self, field: &str) -> Option<&'a RawValue> {
        self.optional(field).filter(|raw| raw.get() != "null")
    }

    /// The object that `raw`, at `path`, is. Its fields are named with the path in front.
    pub(crate) fn child(&self, raw: &'a RawValue, path: &str, known: &[&str]) -> Result<Self, JsonError> {
        if !raw.get().starts_with('{') {
            return Err(invalid(path, "an object", raw));
        }
        let mut child = Self::parse(raw.get().as_bytes(), known).map_err(|error| match error {
            JsonError::UnknownField { field, known } => {
                JsonError::UnknownField { field: format!("{path}.{field}").into(), known }
            }
            JsonError::DuplicateField { field } => {
                JsonError::DuplicateField { field: format!("{path}.{field}").into() }
            }
            other => other,
        })?;
        // Places are told within the whole body.
        child.text = self.text;
        Ok(child)
    }

    /// A field that must be there.
    pub(crate) fn required(&self, field: &'static str) -> Result<&'a RawValue, JsonError> {
        self.optional(field).ok_or(JsonError::MissingField { field })
    }

    /// A string that must be there.
    pub(crate) fn string(&self, field: &'static str) -> Result<String, JsonError> {
        self.text_of(self.required(field)?, field)
    }

    /// The string that `raw`, at `path`, is.
    pub(crate) fn text_of(&self, raw: &'a RawValue, path: &str) -> Result<String, JsonError> {
        if !raw.get().starts_with('"') {
            return Err(invalid(path, "a string", raw));
        }
        // The text is JSON, so what can still be wrong is an escape: half of a surrogate pair.
        serde_json::from_str(raw.get()).map_err(|error| malformed(&error, self.place_of(raw)))
    }

    /// The items of the array that `raw`, at `path`, is.
    pub(crate) fn items_of(&self, raw: &'a RawValue, path: &str) -> Result<Vec<&'a RawValue>, JsonError> {
        if !raw.get().starts_with('[') {
            return Err(invalid(path, "an array", raw));
        }
        serde_json::from_str(raw.get()).map_err(|error| malformed(&error, self.place_of(raw)))
    }

    /// The fields of the object that `raw`, at `path`, is, whatever their names.
    pub(crate) fn entries_of(&self, raw: &'a RawValue, path: &str) -> Result<Vec<(String, &'a RawValue)>, JsonError> {
        if !raw.get().starts_with('{') {
            return Err(invalid(path, "an object", raw));
        }
        let mut entries = Entries(Vec::new());
        let read = serde_json::Deserializer::from_str(raw.get()).deserialize_map(&mut entries);
        read.map(|()| entries.0).map_err(|error| malformed(&error, self.place_of(raw)))
    }

    /// Where `raw` begins in the body, as (line, characters before it).
    fn place_of(&self, raw: &RawValue) -> (usize, usize) {
        // Both borrow from one allocation; a foreign `raw` would give the body's beginning.
        let offset = (raw.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let (line, column) = place(self.text.as_bytes().get(..offset).unwrap_or_default());
        (line, column - 1)
    }
}

/// An unsigned integer of any size, digit by digit: `1.0` and `1e3` are refused.
pub(crate) fn unsigned(raw: &RawValue, path: &str) -> Result<u64, JsonError> {
    unsigned_of(raw, path, 0, u64::MAX)
}

/// An unsigned integer where only those from `min` to `max` are of use, which is said of what is no integer. Whether an integer is
/// within them is judged, with a code of its own, by whose bounds they are.
pub(crate) fn unsigned_of(raw: &RawValue, path: &str, min: u64, max: u64) -> Result<u64, JsonError> {
    raw.get().parse().map_err(|_| invalid(path, &format!("an integer from {min} to {max}"), raw))
}

/// The error that says what a field must be.
pub(crate) fn invalid(path: &str, expected: &str, raw: &RawValue) -> JsonError {
    JsonError::InvalidField { path: path.into(), expected: expected.into(), found: type_of(raw) }
}

fn type_of(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ if raw.get().contains(['.', 'e', 'E']) => "a number with a fraction or an exponent",
        Some(b'-') => "a negative number",
        _ => "a number",
    }
}

/// The line and column, from 1, of what follows `before`. Columns count bytes, as the JSON parser does.
pub(crate) fn place(before: &[u8]) -> (usize, usize) {
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    (line, column)
}

pub(crate) fn malformed(error: &serde_json::Error, (line, before): (usize, usize)) -> JsonError {
    let column = if error.line() == 1 { before + error.column() } else { error.column() };
    let what = error.to_string();
    // The parser appends the place, which is relative to the piece that it read.
    let what = what.split(" at line ").next().unwrap_or_default();
    JsonError::Malformed { what: what.into(), line: line + error.line().saturating_sub(1), column }
}

struct FieldReader<'a, 'k> {
    known: &'k [&'k str],
    fields: Vec<(String, &'a RawValue)>,
    refused: Option<JsonError>,
}

impl<'a> Visitor<'a> for &mut FieldReader<'a, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        // Stops at the first name that is unknown or comes again, so the work is bounded by the known names.
        while let Some(name) = map.next_key::<String>()? {
            if !self.known.contains(&name.as_str()) {
                self.refused =
                    Some(JsonError::UnknownField { field: name.into(), known: self.known.join(", ").into() });
                return Err(de::Error::custom("refused"));
            }
            if self.fields.iter().any(|(field, _)| *field == name) {
                self.refused = Some(JsonError::DuplicateField { field: name.into() });
                return Err(de::Error::custom("refused"));
            }
            let raw = map.next_value::<&'a RawValue>()?;
            self.fields.push((name, raw));
        }
        Ok(())
    }
}

struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Visitor<'a> for &mut Entries<'a> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(entry) = map.next_entry::<String, &'a RawValue>()? {
            self.0.push(entry);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: impl AsRef<[u8]>) -> JsonError {
        Object::parse(body.as_ref(), &["a", "b"]).expect_err("refused")
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_line_and_column() {
        for (body, line, column) in [
            ("", 1, 0),
            ("{\"a\":1,\n  nope}", 2, 3),
            ("{\"a\":1}x", 1, 8),
            ("{\"a\":1", 1, 6),
            ("{\"a\":01}", 1, 7),
            ("{'a':1}", 1, 2),
        ] {
            match refused(body) {
                JsonError::Malformed { line: l, column: c, what } => {
                    assert_eq!((l, c), (line, column), "{body:?}: {what}");
                    assert!(!what.contains(" at line "));
                }
                other => panic!("{body:?}: {other}"),
            }
        }
    }

    #[test]
    fn invalid_utf_8_is_refused_where_it_stands() {
        let error = refused(b"{\n\"a\":\"\xff\"}");
        assert_eq!(error, JsonError::Malformed { what: "invalid UTF-8".into(), line: 2, column: 6 });
    }

    #[test]
    fn half_a_surrogate_pair_is_refused_where_it_stands() {
        let body = b"{\"b\":1,\n\"a\":\"x\\ud800\"}";
        let object = Object::parse(body, &["a", "b"]).unwrap();
        match object.string("a") {
            Err(JsonError::Malformed { line: 2, column, .. }) => assert!((12..=14).contains(&column), "{column}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unknown_and_repeated_fields_are_named() {
        assert_eq!(refused(r#"{"a":1,"c":2}"#), JsonError::UnknownField { field: "c".into(), known: "a, b".into() });
        assert_eq!(refused(r#"{"a":1,"\u0061":2}"#), JsonError::DuplicateField { field: "a".into() });
    }

    #[test]
    fn a_body_that_is_no_object_and_a_wrong_type_are_named() {
        for body in ["[]", "1", "null", "\"x\"", "true"] {
            assert_eq!(refused(body).code(), "invalid_field", "{body}");
        }
        let body = br#"{"a":1.0,"b":null}"#;
        let object = Object::parse(body, &["a", "b"]).unwrap();
        assert_eq!(object.string("b").unwrap_err().code(), "invalid_field");
        assert_eq!(unsigned(object.required("a").unwrap(), "a").unwrap_err().code(), "invalid_field");
    }

    #[test]
    fn integers_keep_every_digit() {
        let body = br#"{"a":18446744073709551615}"#;
        let object = Object::parse(body, &["a"]).unwrap();
        assert_eq!(unsigned(object.required("a").unwrap(), "a"), Ok(u64::MAX));
        for bad in ["-1", "18446744073709551616", "1e3", "\"1\""] {
            let raw: Box<RawValue> = serde_json::from_str(bad).unwrap();
            assert!(unsigned(&raw, "a").is_err(), "{bad}");
        }
    }
}
