//! The lines around the rows, byte for byte.

use std::time::Duration;

use proptest::prelude::*;
use tidegate_core::Retry;
use tidegate_core::id::LeaseId;
use tidegate_core::port::{Column, ColumnType};
use tidegate_frame::ndjson::{DuplicateColumn, EndLine, EndStatus, ErrorLine, OpenLine, RowShape, schema_fingerprint};
use tidegate_frame::prefix::PrefixHasher;

fn open() -> OpenLine {
    let columns =
        vec![Column { name: "id".into(), kind: ColumnType::Integer, nullable: false, native_type: "INTEGER".into() }];
    OpenLine {
        lease: LeaseId::from_bytes([0xab; 16]),
        cursor: Some("c".repeat(48)),
        snapshot: "wal:\"7\"".into(),
        resumable: true,
        not_resumable_because: None,
        schema: schema_fingerprint(&columns),
        columns: columns.into(),
        ttl_ms: 60_000,
        from_row: 0,
    }
}

#[test]
fn the_open_line_has_the_contract_s_fields_in_its_order() {
    let line = open();
    assert_eq!(
        std::str::from_utf8(&line.to_line()).unwrap(),
        format!(
            concat!(
                "{{\"open\":{{\"lease\":\"{lease}\",\"cursor\":\"{cursor}\",\"snapshot\":\"wal:\\\"7\\\"\",\"resumable\":true,",
                "\"not_resumable_because\":null,\"columns\":[{{\"name\":\"id\",\"type\":\"integer\",\"nullable\":false,",
                "\"native_type\":\"INTEGER\"}}],\"schema\":\"{schema}\",\"ttl_ms\":60000,\"from_row\":0}}}}\n"
            ),
            lease = "ab".repeat(16),
            cursor = "c".repeat(48),
            schema = line.schema,
        )
    );
    let unresumable =
        OpenLine { cursor: None, resumable: false, not_resumable_because: Some("no order".into()), ..line };
    let text = unresumable.to_line();
    let text = std::str::from_utf8(&text).unwrap();
    assert!(text.contains("\"cursor\":null") && text.contains("\"not_resumable_because\":\"no order\""), "{text}");
}

#[test]
fn debug_never_shows_a_cursor() {
    assert!(!format!("{:?}", open()).contains("cccc"));
}

#[test]
fn the_end_line_has_the_contract_s_fields_in_its_order() {
    for (status, word) in
        [(EndStatus::Complete, "complete"), (EndStatus::Cancelled, "cancelled"), (EndStatus::Failed, "failed")]
    {
        let line = EndLine { rows: 1_500, from_row: 3, prefix_hash: PrefixHasher::new().digest(), status };
        assert_eq!(
            std::str::from_utf8(&line.to_line()).unwrap(),
            format!(
                "{{\"end\":{{\"rows\":1500,\"from_row\":3,\"prefix_hash\":\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\"status\":\"{word}\"}}}}\n"
            )
        );
    }
}

#[test]
fn an_error_line_says_whether_to_try_again_and_when() {
    let line = |retry| {
        let line = ErrorLine { code: "snapshot_lost".into(), message: "line\nbreak".into(), retry };
        String::from_utf8(line.to_line().to_vec()).unwrap()
    };
    let start = "{\"error\":{\"code\":\"snapshot_lost\",\"message\":\"line\\nbreak\",\"retry\":";
    assert_eq!(line(Retry::Never), format!("{start}\"never\"}}}}\n"));
    assert_eq!(line(Retry::Now), format!("{start}\"now\"}}}}\n"));
    assert_eq!(
        line(Retry::After(Duration::from_millis(1_500))),
        format!("{start}\"after\",\"retry_after_ms\":1500}}}}\n")
    );

    let of = ErrorLine::of(&DuplicateColumn { name: "id".into() });
    assert_eq!((&*of.code, of.retry), ("duplicate_column", Retry::Never));
}

#[test]
fn the_row_shape_is_a_word_in_lower_case() {
    assert_eq!(serde_json::from_str::<RowShape>("\"object\"").unwrap(), RowShape::Object);
    assert_eq!(serde_json::to_string(&RowShape::Array).unwrap(), "\"array\"");
    assert!(serde_json::from_str::<RowShape>("\"Object\"").is_err());
}

fn columns() -> impl Strategy<Value = Vec<Column>> {
    let kind = prop_oneof![Just(ColumnType::Text), Just(ColumnType::Time), Just(ColumnType::Any)];
    let column = ("[ab]{0,2}", kind, any::<bool>(), "[ab]{0,2}").prop_map(|(name, kind, nullable, native)| Column {
        name: name.into(),
        kind,
        nullable,
        native_type: native.into(),
    });
    prop::collection::vec(column, 0..3)
}

proptest! {
    #[test]
    fn two_schemas_share_a_fingerprint_only_if_they_are_equal(one in columns(), other in columns()) {
        prop_assert_eq!(schema_fingerprint(&one) == schema_fingerprint(&other), one == other);
    }
}

#[test]
fn a_fingerprint_is_the_same_in_every_release() {
    let column = Column { name: "id".into(), kind: ColumnType::Integer, nullable: false, native_type: "int8".into() };
    assert_eq!(schema_fingerprint(&[column]), "340ebbcd8cf5daf2092e8a647b3c993d");
    assert_eq!(schema_fingerprint(&[]), "200e33b956162ee485bfca8f7ad871ef");
}
