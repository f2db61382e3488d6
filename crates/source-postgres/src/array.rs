//! PostgreSQL's text of an array, as JSON. It follows `array_out`: nested braces, `NULL` only unquoted, quotes and
//! backslashes. An array whose lower bounds are not 1 keeps them: JSON arrays have none, so it is given as
//! `{"text":"[0:2]={...}"}`. It never guesses: text that is no array is an error.

use crate::shape::Shape;
use crate::value::{Reason, push_json, push_string};

/// `array_out` prints at most this many dimensions.
const DIMENSIONS_MAX: usize = 6;

const NO_ARRAY: Reason = "an array came in a form that is not PostgreSQL's";

/// Appends the array as JSON. On an error what was appended is worthless.
pub(crate) fn write_json(out: &mut String, text: &str, element: &Shape, delimiter: u8) -> Result<(), Reason> {
    if text.starts_with('[') {
        out.push_str("{\"text\":");
        push_string(out, text);
        out.push('}');
        return Ok(());
    }
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut depth = 0;
    // Whether an element or a closing brace of an empty array may come, or else a delimiter or a closing brace.
    let mut expects_element = true;
    let mut just_opened = false;
    let mut unescaped = String::new();
    loop {
        let byte = *bytes.get(at).ok_or(NO_ARRAY)?;
        match byte {
            b'{' if expects_element => {
                depth += 1;
                if depth > DIMENSIONS_MAX {
                    return Err(NO_ARRAY);
                }
                out.push('[');
                just_opened = true;
                at += 1;
                continue;
            }
            b'}' if depth > 0 && (just_opened || !expects_element) => {
                depth -= 1;
                out.push(']');
                at += 1;
                if depth == 0 {
                    return if at == bytes.len() { Ok(()) } else { Err(NO_ARRAY) };
                }
                expects_element = false;
            }
            _ if depth == 0 => return Err(NO_ARRAY),
            byte if byte == delimiter && !expects_element => {
                out.push(',');
                at += 1;
                expects_element = true;
            }
            _ if !expects_element => return Err(NO_ARRAY),
            b'"' => {
                at = quoted(text, at + 1, &mut unescaped)?;
                push_json(out, element, &unescaped)?;
                expects_element = false;
            }
            _ => {
                let length = bytes[at..]
                    .iter()
                    .position(|byte| *byte == delimiter || matches!(byte, b'}' | b'{' | b'"' | b'\\'))
                    .ok_or(NO_ARRAY)?;
                let token = &text[at..at + length];
                match token {
                    "" => return Err(NO_ARRAY),
                    "NULL" => out.push_str("null"),
                    token => push_json(out, element, token)?,
                }
                at += length;
                expects_element = false;
            }
        }
        just_opened = false;
    }
}

/// Reads a quoted element from behind its opening quote; gives the place behind its closing one.
fn quoted(text: &str, start: usize, unescaped: &mut String) -> Result<usize, Reason> {
    unescaped.clear();
    let mut rest = start;
    loop {
        let length = text.as_bytes()[rest..].iter().position(|byte| matches!(byte, b'"' | b'\\')).ok_or(NO_ARRAY)?;
        unescaped.push_str(&text[rest..rest + length]);
        rest += length + 1;
        if text.as_bytes()[rest - 1] == b'"' {
            return Ok(rest);
        }
        let escaped = text[rest..].chars().next().ok_or(NO_ARRAY)?;
        unescaped.push(escaped);
        rest += escaped.len_utf8();
    }
}

/// Appends a JSON string's text, or any other text, as an element that the server's array input reads back unchanged.
pub(crate) fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str, element: &Shape, delimiter: u8) -> Result<String, Reason> {
        let mut out = String::new();
        write_json(&mut out, text, element, delimiter).map(|()| out)
    }

    #[test]
    fn nesting_null_quotes_escapes_bounds_and_delimiters_are_read() {
        for (text, element, expected) in [
            ("{}", Shape::Integer, "[]"),
            ("{1,NULL,-3}", Shape::Integer, "[1,null,-3]"),
            ("{{1,2},{3,4}}", Shape::Integer, "[[1,2],[3,4]]"),
            (r#"{a,"NULL","b,c","q\"\\ü",""}"#, Shape::Text, r#"["a","NULL","b,c","q\"\\ü",""]"#),
            ("{t,f}", Shape::Boolean, "[true,false]"),
            ("{1.5,NaN,-Infinity}", Shape::Float, r#"[1.5,"NaN","-Infinity"]"#),
            (r#"{"\\x00ff"}"#, Shape::Bytea, r#"["AP8="]"#),
            ("{\"{\\\"a\\\": [1,\n2]}\"}", Shape::Json, "[{\"a\": [1, 2]}]"),
            ("[0:1]={1,2}", Shape::Integer, r#"{"text":"[0:1]={1,2}"}"#),
            (r#"{"2026-01-01 12:00:00"}"#, Shape::Timestamp, r#"["2026-01-01T12:00:00"]"#),
            (r#"{"{1,2}","{3}"}"#, Shape::Array(Box::new(Shape::Integer), b','), "[[1,2],[3]]"),
        ] {
            assert_eq!(json(text, &element, b',').as_deref(), Ok(expected), "{text}");
        }
        assert_eq!(json("{(1,1),(0,0);(2,2),(1,1)}", &Shape::Text, b';').unwrap(), r#"["(1,1),(0,0)","(2,2),(1,1)"]"#);
    }

    #[test]
    fn what_is_no_array_is_refused() {
        for text in [
            "",
            "x",
            "{",
            "}",
            "{1",
            "{1,}",
            "{,1}",
            "{1,2}x",
            "{\"a}",
            "{\"a\\",
            "{1}{2}",
            "{a\"b\"}",
            "{{{{{{{1}}}}}}}",
            "{1,,2}",
        ] {
            assert!(json(text, &Shape::Text, b',').is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_it_takes_is_json(text in "[\\[{},\"\\\\a1 NUL=:]{0,24}") {
            if let Ok(json) = json(&text, &Shape::Text, b',') {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
            }
        }

        #[test]
        fn quoted_elements_come_back_unchanged(elements in proptest::collection::vec(proptest::option::of(any::<String>()), 0..8)) {
            let mut text = String::from("{");
            for (index, element) in elements.iter().enumerate() {
                if index > 0 { text.push(','); }
                match element {
                    None => text.push_str("NULL"),
                    Some(element) => push_quoted(&mut text, element),
                }
            }
            text.push('}');
            let read: Vec<Option<String>> = serde_json::from_str(&json(&text, &Shape::Text, b',').unwrap()).unwrap();
            prop_assert_eq!(read, elements);
        }
    }
}
