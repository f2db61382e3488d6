//! Promises of the outputs: nothing lost, nothing dangerous on a terminal, bounded pages.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open_line(columns: &[(&str, &str)]) -> OpenLine {
    OpenLine {
        lease: String::new(),
        cursor: None,
        snapshot: String::new(),
        not_resumable_because: None,
        columns: columns
            .iter()
            .map(|(name, kind)| Column { name: (*name).to_owned(), kind: (*kind).to_owned() })
            .collect(),
        schema: String::new(),
        ttl_ms: 1,
        from_row: 0,
    }
}

fn written(format: Format, raw: bool, columns: &[(&str, &str)], rows: &[&str], width: Option<u16>) -> String {
    let shared = Shared::default();
    let mut sink = output(format, raw, Box::new(shared.clone()), width);
    sink.open(&open_line(columns), b"{\"open\":1}").unwrap();
    for row in rows {
        sink.row(format!("{{\"row\":{row}}}").as_bytes()).unwrap();
    }
    let summary = Summary {
        line: bytes::Bytes::from_static(b"{\"end\":1}"),
        rows: rows.len() as u64,
        prefix_hash: String::new(),
        resumes: 0,
        bytes: 0,
    };
    sink.end(Some(&summary)).unwrap();
    drop(sink);
    String::from_utf8(shared.0.lock().clone()).unwrap()
}

#[test]
fn csv_keeps_every_digit_and_tells_null_from_the_empty_text() {
    let columns = [("id", "integer"), ("na,me", "text"), ("id", "any")];
    let rows = [
        r#"[9223372036854775807,"a \"b\"\nc",null]"#,
        r#"[1.10,"",""]"#,
        r#"[null,null,null]"#,
        r#"[true,"Größe\u00e9",{"text_base64":"//8="}]"#,
    ];
    assert_eq!(
        written(Format::Csv, false, &columns, &rows, None),
        "id,\"na,me\",id\n9223372036854775807,\"a \"\"b\"\"\nc\",\n1.10,\"\",\"\"\n,,\ntrue,Größeé,\"{\"\"text_base64\"\":\"\"//8=\"\"}\"\n"
    );
    let one = written(Format::Csv, false, &[("a", "text")], &[r#"["x"]"#, r#"[""]"#, "[null]"], None);
    assert_eq!(one, "a\nx\n\"\"\n\"\"\n");
}

#[test]
fn csv_fields_longer_than_a_buffer_come_whole() {
    let long = "x\"".repeat(5000);
    let row = format!("[{}]", serde_json::to_string(&long).unwrap());
    let text = written(Format::Csv, false, &[("a", "text")], &[&row], None);
    assert_eq!(text, format!("a\n\"{}\"\n", long.replace('"', "\"\"")));
}

#[test]
fn ndjson_is_the_rows_own_bytes_and_raw_is_the_streams() {
    let rows = [r#"{"id":1,"x":1.10}"#, r#"{"id":2,"x":null}"#];
    assert_eq!(written(Format::Ndjson, false, &[], &rows, None), "{\"id\":1,\"x\":1.10}\n{\"id\":2,\"x\":null}\n");
    assert_eq!(
        written(Format::Ndjson, true, &[], &rows[..1], None),
        "{\"open\":1}\n{\"row\":{\"id\":1,\"x\":1.10}}\n{\"end\":1}\n"
    );
}

#[test]
fn a_table_of_many_pages_is_one_table_and_marks_what_it_cuts() {
    let columns = [("id", "integer"), ("name", "text")];
    let mut rows: Vec<String> = (0..1500).map(|row| format!(r#"[{row},"n{row}"]"#)).collect();
    rows[1200] = format!(r#"[1200,"{}"]"#, "w".repeat(1000));
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let text = written(Format::Table, false, &columns, &rows, Some(80));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1502, "a head, a rule and a line a row");
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["id", "name"]);
    assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["0", "n0"]);
    assert_eq!(lines[1101].split_whitespace().collect::<Vec<_>>(), ["1099", "n1099"]);
    assert!(lines[1202].ends_with("w…"), "{}", lines[1202]);
    assert!(lines.iter().filter(|line| line.contains('…')).count() == 1);
}

#[test]
fn a_table_of_no_rows_shows_its_columns() {
    let text = written(Format::Table, false, &[("id", "integer"), ("name", "text")], &[], None);
    assert_eq!(text.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(), ["id", "name"]);
}

#[test]
fn no_cell_commands_the_terminal() {
    let text = written(Format::Table, false, &[("a", "text")], &["[\"\\u001b[2Jx\\ny\"]", "[null]"], None);
    assert!(!text.contains('\u{1b}'), "{text:?}");
    assert!(text.contains(r"\u{1b}[2Jx\ny"), "{text:?}");
    assert!(text.contains("NULL"));
}

#[test]
fn a_table_fits_the_terminal_where_it_can() {
    let columns = [("a", "text"), ("b", "text"), ("c", "text")];
    let row = format!(r#"["{0}","{0}","{0}"]"#, "word ".repeat(30));
    let text = written(Format::Table, false, &columns, &[&row], Some(60));
    for line in text.lines() {
        assert!(line.chars().count() <= 60, "{line}");
    }
}

#[test]
fn a_row_that_is_not_of_the_announced_columns_is_an_error() {
    for row in ["{\"row\":[1]}", "{\"row\":{}}", "[1,2]", "{\"row\":[1,2,3]}"] {
        for format in [Format::Csv, Format::Table] {
            let mut sink = output(format, false, Box::new(Shared::default()), None);
            sink.open(&open_line(&[("a", "any"), ("b", "any")]), b"").unwrap();
            assert!(matches!(sink.row(row.as_bytes()), Err(OutputError::Row { row: 0, .. })), "{row}");
        }
    }
}
