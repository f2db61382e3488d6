//! From PostgreSQL's text of a value to a cell. What a type's text cannot be is an error with a reason, never a guess: a
//! function in the query may have changed the session's formats.

use tidegate_core::port::{Cell, CellWriter};

use crate::array;
use crate::shape::Shape;

/// Why a value cannot be read, in words.
pub(crate) type Reason = &'static str;

/// Buffers that the cells of all rows of a run share.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    text: String,
    bytes: Vec<u8>,
}

/// Writes one value.
pub(crate) fn write_cell(
    out: &mut dyn CellWriter,
    shape: &Shape,
    text: Option<&str>,
    scratch: &mut Scratch,
) -> Result<(), Reason> {
    let Some(text) = text else {
        out.cell(Cell::Null);
        return Ok(());
    };
    match shape {
        Shape::Text => out.cell(Cell::Text(text)),
        Shape::Integer => out.cell(Cell::Integer(integer(text)?)),
        Shape::Boolean => out.cell(Cell::Bool(boolean(text)?)),
        Shape::Float => match float(text)? {
            Float::Finite(digits) => out.cell(Cell::Number(digits)),
            Float::NotFinite(value) => out.cell(Cell::Real(value)),
        },
        Shape::Bytea => {
            let bytes = hex_digits(text)?;
            scratch.bytes.resize(bytes.len() / 2, 0);
            hex::decode_to_slice(bytes, &mut scratch.bytes).map_err(|_| NO_BYTEA)?;
            out.cell(Cell::Blob(&scratch.bytes));
        }
        Shape::Json => {
            scratch.text.clear();
            out.cell(Cell::Json(one_line(text, &mut scratch.text)));
        }
        Shape::Timestamp | Shape::Timestamptz => {
            scratch.text.clear();
            timestamp(text, *shape == Shape::Timestamptz, &mut scratch.text)?;
            out.cell(Cell::Text(&scratch.text));
        }
        Shape::Array(element, delimiter) => {
            scratch.text.clear();
            array::write_json(&mut scratch.text, text, element, *delimiter)?;
            out.cell(Cell::Json(&scratch.text));
        }
    }
    Ok(())
}

/// Appends one value as JSON: the same rules, for an element of an array.
pub(crate) fn push_json(out: &mut String, shape: &Shape, text: &str) -> Result<(), Reason> {
    match shape {
        Shape::Text => push_string(out, text),
        Shape::Integer => {
            integer(text)?;
            out.push_str(text);
        }
        Shape::Boolean => out.push_str(if boolean(text)? { "true" } else { "false" }),
        Shape::Float => match float(text)? {
            Float::Finite(digits) => out.push_str(digits),
            Float::NotFinite(_) => push_string(out, text),
        },
        Shape::Bytea => {
            let bytes = hex::decode(hex_digits(text)?).map_err(|_| NO_BYTEA)?;
            out.push('"');
            base64::Engine::encode_string(&base64::engine::general_purpose::STANDARD, bytes, out);
            out.push('"');
        }
        Shape::Json => {
            let mut scratch = String::new();
            out.push_str(one_line(text, &mut scratch));
        }
        Shape::Timestamp | Shape::Timestamptz => {
            out.push('"');
            timestamp(text, *shape == Shape::Timestamptz, out)?;
            out.push('"');
        }
        Shape::Array(element, delimiter) => array::write_json(out, text, element, *delimiter)?,
    }
    Ok(())
}

/// Appends a JSON string.
pub(crate) fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let code = c as usize;
                out.push_str("\\u00");
                out.push(char::from(DIGITS[code >> 4]));
                out.push(char::from(DIGITS[code & 15]));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

const NO_BYTEA: Reason = "a bytea came in a form other than hexadecimal digits";

fn hex_digits(text: &str) -> Result<&[u8], Reason> {
    text.strip_prefix("\\x").map(str::as_bytes).filter(|digits| digits.len().is_multiple_of(2)).ok_or(NO_BYTEA)
}

fn boolean(text: &str) -> Result<bool, Reason> {
    match text {
        "t" => Ok(true),
        "f" => Ok(false),
        _ => Err("a boolean came as neither t nor f"),
    }
}

fn integer(text: &str) -> Result<i64, Reason> {
    text.parse().map_err(|_| "an integer came with other characters than the digits of 64 bits")
}

enum Float<'a> {
    Finite(&'a str),
    NotFinite(f64),
}

/// PostgreSQL prints a finite float as JSON wants it: `1.5`, `-0`, `1e+20`, `1e-05`.
fn float(text: &str) -> Result<Float<'_>, Reason> {
    match text {
        "NaN" => Ok(Float::NotFinite(f64::NAN)),
        "Infinity" => Ok(Float::NotFinite(f64::INFINITY)),
        "-Infinity" => Ok(Float::NotFinite(f64::NEG_INFINITY)),
        // Many parsers read `-0` as the integer 0 and lose the sign.
        "-0" => Ok(Float::Finite("-0.0")),
        _ if is_json_number(text.as_bytes()) => Ok(Float::Finite(text)),
        _ => Err("a floating-point number came in a form that JSON does not have"),
    }
}

fn is_json_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> Option<&[u8]> {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then(|| &text[count..])
    }
    let whole = text.strip_prefix(b"-").unwrap_or(text);
    let Some(mut rest) = digits(whole) else { return false };
    if whole[0] == b'0' && whole.len() - rest.len() > 1 {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let Some(after) = digits(fraction) else { return false };
        rest = after;
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-")).unwrap_or(exponent);
        let Some(after) = digits(exponent) else { return false };
        rest = after;
    }
    rest.is_empty()
}

/// Valid JSON without line breaks. In valid JSON a raw line break stands only between tokens (inside a string it must be
/// escaped, and PostgreSQL checks that), so each becomes a space and no length changes.
pub(crate) fn one_line<'a>(json: &'a str, scratch: &'a mut String) -> &'a str {
    if !json.bytes().any(|byte| byte == b'\n' || byte == b'\r') {
        return json;
    }
    scratch.extend(json.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }));
    scratch
}

const NO_TIMESTAMP: Reason = "a timestamp came in a form other than ISO (the query changed DateStyle?)";

/// `2026-01-01 12:00:00.5+00` becomes `2026-01-01T12:00:00.5+00:00`: what `to_json` makes of it. `infinity` and ` BC` stay.
fn timestamp(text: &str, zoned: bool, out: &mut String) -> Result<(), Reason> {
    if text == "infinity" || text == "-infinity" {
        out.push_str(text);
        return Ok(());
    }
    let (moment, era) = match text.strip_suffix(" BC") {
        Some(moment) => (moment, " BC"),
        None => (text, ""),
    };
    let (date, time) = moment.split_once(' ').ok_or(NO_TIMESTAMP)?;
    let time_like = time.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b'.' | b'+' | b'-'));
    if !is_iso_date(date.as_bytes()) || !time_like {
        return Err(NO_TIMESTAMP);
    }
    out.push_str(date);
    out.push('T');
    out.push_str(time);
    match (zoned, time.rfind(['+', '-'])) {
        (true, Some(sign)) if time.len() - sign == 3 => out.push_str(":00"),
        (true, Some(_)) | (false, None) => {}
        (true, None) | (false, Some(_)) => return Err(NO_TIMESTAMP),
    }
    out.push_str(era);
    Ok(())
}

/// Year (4 digits or more), month, day.
fn is_iso_date(date: &[u8]) -> bool {
    let Some((year, [b'-', m1, m2, b'-', d1, d2])) = date.split_at_checked(date.len().saturating_sub(6)) else {
        return false;
    };
    year.len() >= 4 && year.iter().chain([m1, m2, d1, d2]).all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timestamps_become_iso_8601_and_other_forms_are_refused() {
        let good = [
            ("2026-01-01 12:00:00", false, "2026-01-01T12:00:00"),
            ("2026-01-01 12:00:00.123456+00", true, "2026-01-01T12:00:00.123456+00:00"),
            ("2026-01-01 12:00:00+05:30", true, "2026-01-01T12:00:00+05:30"),
            ("12026-01-01 12:00:00-03", true, "12026-01-01T12:00:00-03:00"),
            ("0044-03-15 12:00:00 BC", false, "0044-03-15T12:00:00 BC"),
            ("0044-03-15 12:00:00+00 BC", true, "0044-03-15T12:00:00+00:00 BC"),
            ("-infinity", true, "-infinity"),
        ];
        for (text, zoned, expected) in good {
            let mut out = String::new();
            timestamp(text, zoned, &mut out).unwrap();
            assert_eq!(out, expected);
        }
        let bad =
            ["", "x", "01.02.2026 12:00:00", "Thu Jan 01 12:00:00 2026", "01/02/2026 12:00:00", "01-02-2026 12:00:00"];
        for text in bad {
            assert!(timestamp(text, false, &mut String::new()).is_err(), "{text}");
        }
        assert!(timestamp("2026-01-01 12:00:00", true, &mut String::new()).is_err());
    }

    #[test]
    fn minus_zero_keeps_its_sign_for_parsers_that_know_integers() {
        let mut json = String::new();
        push_json(&mut json, &Shape::Float, "-0").unwrap();
        assert_eq!(json, "-0.0");
    }

    proptest! {
        #[test]
        fn every_finite_float_text_is_the_same_number_in_json(value in proptest::num::f64::NORMAL | proptest::num::f64::ZERO) {
            for text in [format!("{value}"), format!("{value:e}")] {
                prop_assert!(is_json_number(text.as_bytes()), "{text}");
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            }
        }

        #[test]
        fn what_is_taken_as_a_number_is_a_json_number(text in "-?[0-9]{0,3}\\.?[0-9]{0,3}(e[+-]?[0-9]{0,2})?") {
            prop_assert_eq!(is_json_number(text.as_bytes()), serde_json::from_str::<serde_json::Number>(&text).is_ok());
        }

        #[test]
        fn a_document_on_one_line_is_the_same_document(value in document(), breaks in "[ \n\r\t]{0,3}") {
            let pretty = serde_json::to_string_pretty(&value).unwrap().replace("\n", &format!("{breaks}\n\r"));
            let mut scratch = String::new();
            let line = one_line(&pretty, &mut scratch);
            prop_assert!(!line.contains(['\n', '\r']));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(line).unwrap(), value);
        }

        #[test]
        fn strings_are_escaped_as_json_wants(text in any::<String>()) {
            let mut out = String::new();
            push_string(&mut out, &text);
            prop_assert!(!out.contains(['\n', '\r']));
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }

    fn document() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::hash_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect()))
            ]
        })
    }
}
