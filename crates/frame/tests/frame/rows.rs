//! The wire rule of a cell, against a decoder that is written from the README alone.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::value::RawValue;
use tidegate_core::Failure as _;
use tidegate_core::port::{Cell, Column, ColumnType, RowAbandoned, SinkError};
use tidegate_frame::ndjson::{EncodeError, RowEncoder, RowShape};

const KINDS: [ColumnType; 16] = [
    ColumnType::Boolean,
    ColumnType::Integer,
    ColumnType::Real,
    ColumnType::Numeric,
    ColumnType::Text,
    ColumnType::Blob,
    ColumnType::Json,
    ColumnType::Array,
    ColumnType::Date,
    ColumnType::Time,
    ColumnType::Timestamp,
    ColumnType::Timestamptz,
    ColumnType::Interval,
    ColumnType::Uuid,
    ColumnType::Any,
    ColumnType::Other,
];

const NO_BOUND: usize = usize::MAX;

fn column(name: &str, kind: ColumnType) -> Column {
    Column { name: name.into(), kind, nullable: true, native_type: "".into() }
}

fn encode(encoder: &RowEncoder, cells: &[Cell<'_>], max_bytes: usize, buf: &mut BytesMut) -> Result<(), EncodeError> {
    encoder.encode(buf, max_bytes, &mut |row| {
        cells.iter().for_each(|cell| row.cell(*cell));
        Ok(())
    })
}

/// One cell in an array row, without what is around it.
fn shown(kind: ColumnType, cell: Cell<'_>) -> String {
    let encoder = RowEncoder::new(&[column("c", kind)], RowShape::Array).unwrap();
    let mut buf = BytesMut::new();
    encode(&encoder, &[cell], NO_BOUND, &mut buf).unwrap();
    let line = std::str::from_utf8(&buf).unwrap();
    line.strip_prefix("{\"row\":[").unwrap().strip_suffix("]}\n").unwrap().to_owned()
}

/// A cell that owns what it shows.
#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Null,
    Bool(bool),
    Integer(i64),
    Real(f64),
    Number(String),
    Text(String),
    InvalidText(Vec<u8>),
    Blob(Vec<u8>),
    Json(String),
}

impl Owned {
    fn cell(&self) -> Cell<'_> {
        match self {
            Self::Null => Cell::Null,
            Self::Bool(value) => Cell::Bool(*value),
            Self::Integer(value) => Cell::Integer(*value),
            Self::Real(value) => Cell::Real(*value),
            Self::Number(text) => Cell::Number(text),
            Self::Text(text) => Cell::Text(text),
            Self::InvalidText(bytes) => Cell::InvalidText(bytes),
            Self::Blob(bytes) => Cell::Blob(bytes),
            Self::Json(text) => Cell::Json(text),
        }
    }
}

/// What a reader gets back. Numbers by their text: an integer and an exact number of the same digits are the same.
#[derive(Debug, PartialEq)]
enum Read {
    Null,
    Bool(bool),
    Integer(String),
    Fraction(String),
    NonFinite(String),
    Text(String),
    InvalidText(Vec<u8>),
    Blob(Vec<u8>),
    Json(String),
}

fn expected(cell: &Owned) -> Read {
    match cell {
        Owned::Null => Read::Null,
        Owned::Bool(value) => Read::Bool(*value),
        Owned::Integer(value) => Read::Integer(value.to_string()),
        Owned::Real(value) if value.is_nan() => Read::NonFinite("NaN".into()),
        Owned::Real(value) if value.is_infinite() => {
            Read::NonFinite(if *value > 0.0 { "Infinity" } else { "-Infinity" }.into())
        }
        Owned::Real(value) => Read::Fraction(serde_json::to_string(value).unwrap()),
        Owned::Number(text) if text.contains(['.', 'e', 'E']) => Read::Fraction(text.clone()),
        Owned::Number(text) => Read::Integer(text.clone()),
        Owned::Text(text) => Read::Text(text.clone()),
        Owned::InvalidText(bytes) => Read::InvalidText(bytes.clone()),
        Owned::Blob(bytes) => Read::Blob(bytes.clone()),
        // The README's one exception.
        Owned::Json(text) if text == "null" => Read::Null,
        Owned::Json(text) => Read::Json(text.clone()),
    }
}

/// The README's rule, read backwards.
fn decode(kind: ColumnType, raw: &str) -> Read {
    if raw == "null" {
        return Read::Null;
    }
    if matches!(kind, ColumnType::Json | ColumnType::Array) {
        return Read::Json(raw.to_owned());
    }
    match raw.as_bytes()[0] {
        b't' | b'f' => Read::Bool(raw == "true"),
        b'"' => {
            let text: String = serde_json::from_str(raw).unwrap();
            match kind {
                ColumnType::Blob => Read::Blob(BASE64.decode(text).unwrap()),
                ColumnType::Real => Read::NonFinite(text),
                _ => Read::Text(text),
            }
        }
        b'{' => {
            let tagged: BTreeMap<String, String> = serde_json::from_str(raw).unwrap();
            assert_eq!(tagged.len(), 1);
            let (tag, text) = tagged.into_iter().next().unwrap();
            match tag.as_str() {
                "text" => Read::Text(text),
                "text_base64" => Read::InvalidText(BASE64.decode(text).unwrap()),
                "blob" => Read::Blob(BASE64.decode(text).unwrap()),
                "real" => Read::NonFinite(text),
                other => panic!("no such tag: {other}"),
            }
        }
        _ if raw.contains(['.', 'e', 'E']) => Read::Fraction(raw.to_owned()),
        _ => Read::Integer(raw.to_owned()),
    }
}

/// Texts that try to look like something else.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any::<String>(),
        2 => "[ -~\\n\\r\\t\\\\\"\u{2028}\u{7f}\u{0}]{0,200}",
        1 => prop_oneof![
            Just("NaN"), Just("Infinity"), Just("-Infinity"), Just("null"), Just("1"), Just("true"), Just("AAAA"),
            Just(""), Just("{\"blob\":\"AAAA\"}"), Just("{\"text\":\"a\"}"), Just("\"}}\n{\"row\":{"), Just("1.0"),
        ]
        .prop_map(str::to_owned),
    ]
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        text().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            (prop_oneof![Just("blob"), Just("text"), Just("a")], inner)
                .prop_map(|(key, value)| format!("{{\"{key}\":{value}}}")),
        ]
    })
}

fn cell_of(kind: ColumnType) -> BoxedStrategy<Owned> {
    if matches!(kind, ColumnType::Json | ColumnType::Array) {
        return prop_oneof![Just(Owned::Null), json().prop_map(Owned::Json)].boxed();
    }
    prop_oneof![
        Just(Owned::Null),
        any::<bool>().prop_map(Owned::Bool),
        any::<i64>().prop_map(Owned::Integer),
        any::<u64>().prop_map(|bits| Owned::Real(f64::from_bits(bits))),
        prop_oneof![Just(0.0), Just(-0.0), Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(1e300)]
            .prop_map(Owned::Real),
        "-?[1-9][0-9]{0,60}(\\.[0-9]{1,60})?([eE][+-]?[0-9]{1,3})?".prop_map(Owned::Number),
        text().prop_map(Owned::Text),
        text().prop_map(Owned::Text),
        prop::collection::vec(any::<u8>(), 0..100).prop_map(Owned::InvalidText),
        prop::collection::vec(any::<u8>(), 0..100).prop_map(Owned::Blob),
    ]
    .boxed()
}

fn row() -> impl Strategy<Value = (Vec<Column>, Vec<Owned>)> {
    prop::collection::vec(
        (text(), prop::sample::select(&KINDS[..]))
            .prop_flat_map(|(name, kind)| cell_of(kind).prop_map(move |cell| (name.clone(), kind, cell))),
        0..6,
    )
    .prop_map(|fields| {
        let columns =
            fields.iter().enumerate().map(|(i, (name, kind, _))| column(&format!("{name}{i}"), *kind)).collect();
        (columns, fields.into_iter().map(|(_, _, cell)| cell).collect())
    })
}

#[derive(serde::Deserialize)]
struct ObjectLine {
    row: BTreeMap<String, Box<RawValue>>,
}

#[derive(serde::Deserialize)]
struct ArrayLine {
    row: Vec<Box<RawValue>>,
}

proptest! {
    #[test]
    fn a_reader_gets_every_cell_back_so_no_two_cells_of_a_column_look_the_same((columns, cells) in row()) {
        let borrowed: Vec<Cell<'_>> = cells.iter().map(Owned::cell).collect();
        for shape in [RowShape::Object, RowShape::Array] {
            let mut buf = BytesMut::new();
            encode(&RowEncoder::new(&columns, shape).unwrap(), &borrowed, NO_BOUND, &mut buf).unwrap();
            prop_assert_eq!(memchr::memchr_iter(b'\n', &buf).collect::<Vec<_>>(), vec![buf.len() - 1]);
            let raws: Vec<String> = match shape {
                RowShape::Array => {
                    let line: ArrayLine = serde_json::from_slice(&buf).unwrap();
                    line.row.iter().map(|raw| raw.get().to_owned()).collect()
                }
                RowShape::Object => {
                    let mut line: ObjectLine = serde_json::from_slice(&buf).unwrap();
                    let raws = columns.iter().map(|c| line.row.remove(&*c.name).unwrap().get().to_owned()).collect();
                    prop_assert!(line.row.is_empty());
                    raws
                }
            };
            prop_assert_eq!(raws.len(), cells.len());
            for ((column, cell), raw) in columns.iter().zip(&cells).zip(&raws) {
                prop_assert_eq!(decode(column.kind, raw), expected(cell), "{:?} as {}", column.kind, raw);
                if let Owned::Real(value) = cell && value.is_finite() {
                    prop_assert_eq!(raw.parse::<f64>().unwrap().to_bits(), value.to_bits());
                    prop_assert!(raw.contains(['.', 'e']), "a real is never taken for an integer");
                }
            }
        }
    }

    #[test]
    fn a_line_fits_its_bound_or_leaves_the_buffer_as_it_was(
        (columns, cells) in row(), before in prop::collection::vec(any::<u8>(), 0..20), cut in any::<prop::sample::Index>(),
    ) {
        let borrowed: Vec<Cell<'_>> = cells.iter().map(Owned::cell).collect();
        let encoder = RowEncoder::new(&columns, RowShape::Object).unwrap();
        let mut whole = BytesMut::new();
        encode(&encoder, &borrowed, NO_BOUND, &mut whole).unwrap();

        let mut buf = BytesMut::from(&before[..]);
        encode(&encoder, &borrowed, whole.len(), &mut buf).unwrap();
        prop_assert_eq!(&buf[before.len()..], &whole[..]);
        for limit_bytes in [whole.len() - 1, cut.index(whole.len())] {
            let mut buf = BytesMut::from(&before[..]);
            let refused = encode(&encoder, &borrowed, limit_bytes, &mut buf);
            prop_assert_eq!(refused, Err(EncodeError::TooLarge { limit_bytes }));
            prop_assert_eq!(&buf[..], &before[..]);
        }
    }
}

#[test]
fn every_cell_looks_as_the_readme_says() {
    use ColumnType as T;
    for (kind, cell, looks) in [
        (T::Any, Cell::Null, "null"),
        (T::Boolean, Cell::Bool(true), "true"),
        (T::Integer, Cell::Integer(i64::MIN), "-9223372036854775808"),
        (T::Integer, Cell::Integer(9_007_199_254_740_993), "9007199254740993"),
        (T::Real, Cell::Real(1.0), "1.0"),
        (T::Real, Cell::Real(-0.0), "-0.0"),
        (T::Real, Cell::Real(0.1), "0.1"),
        (T::Real, Cell::Real(f64::NAN), "\"NaN\""),
        (T::Real, Cell::Real(-f64::NAN), "\"NaN\""),
        (T::Real, Cell::Real(f64::INFINITY), "\"Infinity\""),
        (T::Real, Cell::Real(f64::NEG_INFINITY), "\"-Infinity\""),
        (T::Any, Cell::Real(f64::INFINITY), "{\"real\":\"Infinity\"}"),
        (T::Real, Cell::Text("Infinity"), "{\"text\":\"Infinity\"}"),
        (T::Any, Cell::Text("Infinity"), "\"Infinity\""),
        (T::Numeric, Cell::Number("1.50000000000000000000000000001"), "1.50000000000000000000000000001"),
        (T::Numeric, Cell::Text("1.50"), "\"1.50\""),
        (T::Text, Cell::Text("a\"\\\n\u{1}\u{7f}é"), "\"a\\\"\\\\\\n\\u0001\u{7f}é\""),
        (T::Text, Cell::InvalidText(b"a\xff"), "{\"text_base64\":\"Yf8=\"}"),
        (T::Blob, Cell::Blob(b"\x00\x01"), "\"AAE=\""),
        (T::Blob, Cell::Blob(b""), "\"\""),
        (T::Any, Cell::Blob(b"\x00\x01"), "{\"blob\":\"AAE=\"}"),
        (T::Blob, Cell::Text("AAE="), "{\"text\":\"AAE=\"}"),
        (T::Json, Cell::Json("{\"a\":[1,2]}"), "{\"a\":[1,2]}"),
        (T::Json, Cell::Json("null"), "null"),
    ] {
        assert_eq!(shown(kind, cell), looks, "{kind:?} {cell:?}");
    }
}

#[test]
fn whatever_must_be_escaped_is_found_at_every_place_of_a_text_of_any_length() {
    for length in 0..70 {
        let clean = "é".repeat(length / 2) + &"~".repeat(length % 2);
        assert_eq!(shown(ColumnType::Text, Cell::Text(&clean)), format!("\"{clean}\""));
        for (at, escaped) in (0..length).flat_map(|at| "\"\\\n\0\u{1f}".chars().map(move |escaped| (at, escaped))) {
            let text: String = (0..length).map(|i| if i == at { escaped } else { '~' }).collect();
            assert_eq!(shown(ColumnType::Text, Cell::Text(&text)), serde_json::to_string(&text).unwrap());
        }
    }
}

#[test]
fn a_value_cannot_forge_a_line_of_the_stream() {
    let forged = "[1\n]}\n{\"end\":{\"rows\":0}}\r\n";
    assert!(!shown(ColumnType::Json, Cell::Json(forged)).contains(['\n', '\r']));
    assert!(!shown(ColumnType::Text, Cell::Text(forged)).contains(['\n', '\r']));
}

#[test]
fn two_columns_of_one_name_need_an_alias_or_array_rows() {
    let columns = [column("id", ColumnType::Integer), column("a", ColumnType::Text), column("id", ColumnType::Text)];
    let refused = RowEncoder::new(&columns, RowShape::Object).unwrap_err();
    assert_eq!((&*refused.name, refused.code()), ("id", "duplicate_column"));
    let words = refused.to_string();
    assert!(words.contains("\"id\"") && words.contains("alias") && words.contains("\"rows\":\"array\""), "{words}");
    assert!(RowEncoder::new(&columns, RowShape::Array).is_ok());
}

#[test]
fn a_row_with_the_wrong_number_of_cells_or_given_up_leaves_nothing_behind() {
    let columns = [column("a", ColumnType::Integer), column("b", ColumnType::Integer)];
    let encoder = RowEncoder::new(&columns, RowShape::Object).unwrap();
    let mut buf = BytesMut::from(&b"before"[..]);
    for written in [0, 1, 3, 100] {
        let refused = encode(&encoder, &vec![Cell::Integer(1); written], 1_000, &mut buf).unwrap_err();
        assert_eq!(refused, EncodeError::WrongCellCount { expected: 2, written });
        assert_eq!(&buf[..], b"before");
    }
    let refused = encoder.encode(&mut buf, 1_000, &mut |row| {
        row.cell(Cell::Integer(1));
        Err(RowAbandoned)
    });
    assert_eq!(refused, Err(EncodeError::Abandoned));
    assert_eq!(&buf[..], b"before");
}

#[test]
fn a_cell_of_100_mb_is_refused_without_being_copied() {
    let huge = "\"".repeat(100_000_000);
    let encoder = RowEncoder::new(&[column("a", ColumnType::Text)], RowShape::Object).unwrap();
    for cell in [
        Cell::Text(&huge),
        Cell::Text(&huge[..1_000]),
        Cell::Blob(huge.as_bytes()),
        Cell::InvalidText(huge.as_bytes()),
        Cell::Json(&huge),
    ] {
        let mut buf = BytesMut::new();
        assert_eq!(encode(&encoder, &[cell], 1_024, &mut buf), Err(EncodeError::TooLarge { limit_bytes: 1_024 }));
        assert!(buf.is_empty() && buf.capacity() <= 2_048, "{}", buf.capacity());
    }
}

#[test]
fn an_encoding_error_names_the_row_for_the_sink() {
    assert_eq!(EncodeError::TooLarge { limit_bytes: 10 }.at_row(7), SinkError::RowTooLarge { row: 7, limit_bytes: 10 });
    assert_eq!(EncodeError::Abandoned.at_row(7), SinkError::Abandoned);
}
