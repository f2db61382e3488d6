//! Lines of `COPY ... TO STDOUT` in text form. It never looks at what a value means.

use std::borrow::Cow;

use super::pgoutput::{Malformed, Value};

/// The values of a line, as PostgreSQL's output functions print them.
pub(crate) fn cells(line: &[u8]) -> Result<Vec<Option<Cow<'_, str>>>, Malformed> {
    let line = str::from_utf8(line).map_err(|_| "a line of the copy is not UTF-8")?;
    let line = line.strip_suffix('\n').ok_or("a line of the copy has no end")?;
    if line.is_empty() {
        // One column without a text, or no column: the table knows which.
        return Ok(vec![Some(Cow::Borrowed(""))]);
    }
    line.split('\t').map(cell).collect()
}

fn cell(text: &str) -> Result<Option<Cow<'_, str>>, Malformed> {
    if text == "\\N" {
        return Ok(None);
    }
    let Some(first) = text.find('\\') else { return Ok(Some(Cow::Borrowed(text))) };
    let mut plain = String::with_capacity(text.len());
    plain.push_str(&text[..first]);
    let mut rest = text[first..].chars();
    while let Some(c) = rest.next() {
        plain.push(match (c, c == '\\') {
            (c, false) => c,
            (_, true) => match rest.next() {
                Some('b') => '\u{8}',
                Some('f') => '\u{c}',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('v') => '\u{b}',
                Some('\\') => '\\',
                _ => return Err("an escape that COPY does not write"),
            },
        });
    }
    Ok(Some(Cow::Owned(plain)))
}

/// The values as those of a change.
pub(crate) fn values<'a>(cells: &'a [Option<Cow<'_, str>>]) -> Vec<Value<'a>> {
    cells.iter().map(|cell| cell.as_deref().map_or(Value::Null, Value::Text)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &str) -> String {
        let mut line = String::new();
        for c in text.chars() {
            match c {
                '\u{8}' => line.push_str("\\b"),
                '\u{c}' => line.push_str("\\f"),
                '\n' => line.push_str("\\n"),
                '\r' => line.push_str("\\r"),
                '\t' => line.push_str("\\t"),
                '\u{b}' => line.push_str("\\v"),
                '\\' => line.push_str("\\\\"),
                c => line.push(c),
            }
        }
        line
    }

    proptest! {
        #[test]
        fn every_row_reads_back(row in proptest::collection::vec(proptest::option::of("[\\x08-\\x0d\\\\a-dNü]{0,8}"), 1..5)) {
            let line: Vec<String> = row.iter().map(|cell| cell.as_deref().map_or("\\N".into(), written)).collect();
            let line = format!("{}\n", line.join("\t"));
            let cells = cells(line.as_bytes()).unwrap();
            let expected: Vec<Option<&str>> = row.iter().map(|cell| cell.as_deref()).collect();
            prop_assert_eq!(cells.iter().map(|cell| cell.as_deref()).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = cells(&bytes);
        }
    }
}
