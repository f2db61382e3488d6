//! What a body of records may say, and what not.

use tidegate_core::Failure as _;

use super::*;

fn read(body: &str) -> Result<Vec<NewRecord>, RecordError> {
    records(&Bytes::copy_from_slice(body.as_bytes()), false)
}

fn one(body: &str) -> NewRecord {
    let mut all = read(body).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn refused(body: &str) -> (&'static str, Option<usize>, usize) {
    let error = read(body).unwrap_err();
    (error.error.code(), error.line, error.index)
}

#[test]
fn lines_and_arrays_are_the_same_records() {
    let items = [r#"{"key": "a", "value": {"n": 1}}"#, r#"{"value":null,"op":"delete","key":"a"}"#];
    let lines = read(&format!("\n{}\r\n \n{}\n", items[0], items[1])).unwrap();
    let array = read(&format!(" [\n{},\n{}\n]\n", items[0], items[1])).unwrap();
    assert_eq!(lines, array);
    assert_eq!(lines[0].value.as_ref(), br#"{"n":1}"#);
    assert_eq!(lines[1].operation, Operation::Delete);
    assert_eq!(lines[1].value.as_ref(), b"null");
    assert!(read("").unwrap().is_empty() && read("[]").unwrap().is_empty());
    let line = Bytes::from_static(b"[]");
    assert_eq!(records(&line, true).unwrap_err().error.code(), "invalid_field", "no array where lines are said");
}

#[test]
fn only_the_value_is_required_and_null_is_left_out() {
    let record =
        one(r#"{"value":0,"key":null,"op":null,"before":null,"headers":null,"event_time":null,"partition":null}"#);
    assert_eq!(record, NewRecord::message("0"));
    assert_eq!(refused(r#"{"key":1}"#), ("missing_field", Some(1), 0));
}

#[test]
fn texts_keep_every_digit_escape_and_space_in_strings() {
    let record = one(
        r#"{"key": [ 18446744073709551616, 1.10, -0 ], "value": "a \u0000 \ud83c\udf0a\" ", "before": 1e400, "headers": {"collection": "it\u0065m", "x": {"y": 1 }}, "event_time": "2026-11-21T11:00:00.0079+01:00", "partition": 3, "op": "upd\u0061te"}"#,
    );
    assert_eq!(record.key.as_deref(), Some(&b"[18446744073709551616,1.10,-0]"[..]));
    assert_eq!(record.value.as_ref(), br#""a \u0000 \ud83c\udf0a\" ""#);
    assert_eq!(record.before.as_deref(), Some(&b"1e400"[..]));
    assert_eq!(record.headers.as_deref(), Some(&br#"{"collection":"it\u0065m","x":{"y":1}}"#[..]));
    assert_eq!(record.collection.as_deref(), Some("item"));
    assert_eq!(record.event_time.unwrap().to_string(), "2026-11-21T10:00:00.007Z");
    assert_eq!(record.partition, Some(Partition(3)));
    assert_eq!(record.operation, Operation::Update);
    let number = one(r#"{"value":1,"headers":{"collection":7}}"#);
    assert_eq!(number.collection, None);
}

#[test]
fn a_wrong_line_is_named() {
    let good = r#"{"value":1}"#;
    let six = format!("{good}\n").repeat(6);
    for (bad, code) in [
        ("{\"value\":", "malformed_json"),
        ("{\"value\":1}x", "malformed_json"),
        ("{\"value\":1}{\"value\":2}", "malformed_json"),
        ("nope", "malformed_json"),
        ("7", "invalid_field"),
        ("[{\"value\":1}]", "invalid_field"),
        (r#"{"value":1,"valeu":2}"#, "unknown_field"),
        (r#"{"value":1,"v\u0061lue":2}"#, "duplicate_field"),
        (r#"{"value":1,"op":"upsert"}"#, "invalid_field"),
        (r#"{"value":1,"op":3}"#, "invalid_field"),
        (r#"{"value":1,"headers":[]}"#, "invalid_field"),
        (r#"{"value":1,"event_time":"yesterday"}"#, "invalid_field"),
        (r#"{"value":1,"event_time":17}"#, "invalid_field"),
        (r#"{"value":1,"partition":-1}"#, "invalid_field"),
        (r#"{"value":1,"partition":4294967296}"#, "invalid_field"),
        (r#"{"value":1,"partition":1.0}"#, "invalid_field"),
        (r#"{"value":01}"#, "malformed_json"),
    ] {
        assert_eq!(refused(&format!("{six}{bad}\n{good}\n")), (code, Some(7), 6), "{bad}");
    }
    let error = read(&format!("{six}\n{{\"value\":tru}}\n")).unwrap_err();
    assert_eq!(error.line, Some(8), "blank lines count");
    assert!(matches!(error.error, JsonError::Malformed { line: 8, .. }), "{error:?}");
    assert_eq!(refused(&format!("[{good},{good},{{}}]")), ("missing_field", None, 2));
    assert_eq!(refused(&format!("[{good},")).0, "malformed_json");
    assert_eq!(refused(&format!("[{good}]{good}")).0, "malformed_json");
}

#[test]
fn bytes_that_are_no_text_are_refused_where_they_stand() {
    let body = Bytes::from_static(b"{\"value\":1}\n{\"value\":\"\xff\"}\n");
    let error = records(&body, false).unwrap_err();
    assert_eq!((error.error.code(), error.line), ("malformed_json", Some(2)));
}

#[test]
fn what_is_nested_too_deep_is_refused() {
    let nested = |depth: usize| format!("{{\"value\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert!(read(&nested(DEPTH_MAX)).is_ok());
    assert_eq!(refused(&nested(DEPTH_MAX + 1)).0, "invalid_field");
    assert_eq!(refused(&nested(200_000)).0, "invalid_field");
    let text = format!(r#"{{"value":"{}"}}"#, "[\\\"".repeat(DEPTH_MAX * 2));
    assert!(read(&text).is_ok(), "brackets in a text are no nesting");
}
