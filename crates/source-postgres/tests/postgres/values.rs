//! Every type comes without loss: compared with the server's own `to_json` where the rule is the same, with fixed
//! expectations where it is ours.

use base64::Engine;
use serde_json::Value;
use tidegate_core::port::QuerySource;
use tidegate_core::port::{ColumnType, Parameter, SourceError};
use tidegate_source_postgres::{PostgresConfig, PostgresSource};
use tidegate_testkit::query_source_suite::{rows, statement, statement_with};
use tidegate_testkit::{OwnedCell, block_on};

use crate::world::{Database, cell, query};

/// A cell as the frame writes it.
pub(crate) fn json(cell: &OwnedCell) -> Value {
    match cell {
        OwnedCell::Null => Value::Null,
        OwnedCell::Bool(value) => Value::Bool(*value),
        OwnedCell::Integer(value) => (*value).into(),
        OwnedCell::Real(value) if value.is_nan() => "NaN".into(),
        OwnedCell::Real(value) => if *value > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        OwnedCell::Number(digits) => serde_json::from_str(digits).expect("a number is JSON"),
        OwnedCell::Text(text) => (**text).into(),
        OwnedCell::InvalidText(_) => panic!("no invalid text here"),
        OwnedCell::Blob(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        OwnedCell::Json(json) => {
            assert!(!json.contains(['\n', '\r']), "a line break: {json}");
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
        }
    }
}

pub(crate) const TYPES: &str = "
    create type mood as enum ('sad', 'it''s ok', 'a, \"b\"');
    create domain cents as numeric(12, 2) check (value >= 0);
    create domain many_cents as cents[];
    create type pair as (a int, b text);
";

use ColumnType as T;

/// Values whose rule is that of `to_json`.
pub(crate) const AS_TO_JSON: &[(&str, ColumnType)] = &[
    ("true", T::Boolean),
    ("false", T::Boolean),
    ("null::boolean", T::Boolean),
    ("(-32768)::int2", T::Integer),
    ("2147483647::int4", T::Integer),
    ("9007199254740993::int8", T::Integer),
    ("(-9223372036854775808)::int8", T::Integer),
    ("4294967295::oid::int8", T::Integer),
    ("0.1::float8", T::Real),
    ("'-0'::float8", T::Real),
    ("1e20::float8", T::Real),
    ("1e-7::float8", T::Real),
    ("1.7976931348623157e308::float8", T::Real),
    ("5e-324::float8", T::Real),
    ("3.4028235e38::float4", T::Real),
    ("0.1::float4", T::Real),
    ("'NaN'::float8", T::Real),
    ("'Infinity'::float8", T::Real),
    ("'-Infinity'::float4", T::Real),
    ("'a\"b\\c'::text", T::Text),
    (r"E'line\nbreak\ttab\u0001\u007f\u2028 ü 😀'::text", T::Text),
    ("''::text", T::Text),
    ("'abc'::varchar(10)", T::Text),
    ("'abc'::char(5)", T::Text),
    ("'abc'::name", T::Text),
    ("'it''s ok'::mood", T::Text),
    ("null::text", T::Text),
    ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", T::Uuid),
    ("'2026-02-28'::date", T::Date),
    ("'0044-03-15 BC'::date", T::Date),
    ("'infinity'::date", T::Date),
    ("'12026-01-01'::date", T::Date),
    ("'23:59:59.999999'::time", T::Time),
    ("'24:00:00'::time", T::Time),
    ("'12:34:56.5+05:30'::timetz", T::Time),
    ("'2026-01-01 12:00:00'::timestamp", T::Timestamp),
    ("'2026-01-01 12:00:00.123456'::timestamp", T::Timestamp),
    ("'0044-03-15 12:00:00 BC'::timestamp", T::Timestamp),
    ("'-infinity'::timestamp", T::Timestamp),
    ("'12026-01-01 12:00:00.1'::timestamp", T::Timestamp),
    ("'2026-01-01 12:00:00+02'::timestamptz", T::Timestamptz),
    ("'2026-01-01 12:00:00.000001+05:30'::timestamptz", T::Timestamptz),
    ("'0044-03-15 12:00:00+00 BC'::timestamptz", T::Timestamptz),
    ("'infinity'::timestamptz", T::Timestamptz),
    ("'1 year 2 mons -3 days 04:05:06.789'::interval", T::Interval),
    ("'0'::interval", T::Interval),
    (r#"'{"b": [1, 2.50, "x\n"], "a": null}'::json"#, T::Json),
    ("E'{\\n\"a\"\\r\\n:\\t1 }'::json", T::Json),
    (r#"'{"b": 123456789012345678, "a": {"c": "ü"}}'::jsonb"#, T::Json),
    ("'null'::jsonb", T::Json),
    ("'\"text\"'::json", T::Json),
    ("array[1, null, 3]", T::Array),
    ("array[[1, 2], [3, 4]]", T::Array),
    ("'{}'::int[]", T::Array),
    (r#"array['a', null, 'NULL', '', 'b,c', '{d}', 'e"f\g', E'h\ni', ' j ']"#, T::Array),
    ("array[true, false, null]", T::Array),
    ("array[0.1, 'NaN', '-Infinity', 1e20]::float8[]", T::Array),
    ("array['2026-01-01 12:00:00', 'infinity']::timestamp[]", T::Array),
    ("array['2026-01-01 12:00:00+00']::timestamptz[]", T::Array),
    ("array['2026-01-01']::date[]", T::Array),
    ("array['it''s ok', 'a, \"b\"']::mood[]", T::Array),
    (r#"array['{"a": [1, "}\""]}', 'null']::jsonb[]"#, T::Array),
    ("array['(1,1),(0,0)', '(2,2),(1,1)']::box[]", T::Array),
    ("'10.0.0.1/8'::inet", T::Other),
    ("'[1,5)'::int4range", T::Other),
    ("'$1.50'::money", T::Other),
    ("'101'::bit(3)", T::Other),
    ("'(1,2)'::point", T::Other),
    ("'a & b'::tsquery", T::Other),
    ("'<a>x</a>'::xml", T::Other),
    ("'pg_class'::regclass", T::Other),
    ("'0/16B3748'::pg_lsn", T::Other),
];

#[test]
fn values_are_those_of_to_json_where_the_rule_is_the_same() {
    block_on(async {
        let Some(database) = Database::fresh("values_are_those_of_to_json_where_the_rule_is_the_same", |_| ()) else {
            return;
        };
        database.sql(TYPES);
        let snapshot = database.open().await;
        for &(literal, kind) in AS_TO_JSON {
            let one = statement(&format!("select {literal} as v"));
            let description = snapshot.describe(&one).await.unwrap_or_else(|error| panic!("{literal}: {error}"));
            assert_eq!(description.columns[0].kind, kind, "{literal}");
            let ours = json(&rows(&*snapshot, &one).await.unwrap_or_else(|error| panic!("{literal}: {error}"))[0][0]);
            let theirs = json(&cell(&*snapshot, &format!("select to_json({literal})")).await);
            assert_eq!(ours, theirs, "{literal}");
        }
    });
}

#[test]
fn values_are_exact_where_our_rule_differs() {
    block_on(async {
        let Some(database) = Database::fresh("values_are_exact_where_our_rule_differs", |_| ()) else { return };
        database.sql(TYPES);
        let snapshot = database.open().await;
        for (literal, kind, native, expected) in [
            ("1.10::numeric", T::Numeric, "numeric", r#""1.10""#),
            ("'NaN'::numeric", T::Numeric, "numeric", r#""NaN""#),
            (
                "123456789012345678901234567890.000000001",
                T::Numeric,
                "numeric",
                r#""123456789012345678901234567890.000000001""#,
            ),
            ("5::numeric(12, 2)", T::Numeric, "numeric(12,2)", r#""5.00""#),
            ("1.5::cents", T::Numeric, "numeric(12,2)", r#""1.50""#),
            ("array[1.10, null, 'NaN']::numeric[]", T::Array, "numeric[]", r#"["1.10",null,"NaN"]"#),
            ("array[1.5]::cents[]", T::Array, "cents[]", r#"["1.50"]"#),
            ("array[1.5]::many_cents", T::Array, "cents[]", r#"["1.50"]"#),
            (r"'\x00ff10'::bytea", T::Blob, "bytea", r#""AP8Q""#),
            ("''::bytea", T::Blob, "bytea", r#""""#),
            (r"array['\x00ff'::bytea, null]", T::Array, "bytea[]", r#"["AP8=",null]"#),
            ("'[0:1]={1,2}'::int[]", T::Array, "integer[]", r#"{"text":"[0:1]={1,2}"}"#),
            ("row(1, 'a b')::pair", T::Other, "pair", r#""(1,\"a b\")""#),
            ("array[row(1, 'a b')::pair]", T::Array, "pair[]", r#"["(1,\"a b\")"]"#),
            ("'1 2 3'::int2vector", T::Other, "int2vector", r#""1 2 3""#),
            ("4294967295::oid", T::Integer, "oid", "4294967295"),
            ("'abc'::varchar(10)", T::Text, "character varying(10)", r#""abc""#),
            ("'x'::\"char\"", T::Text, "\"char\"", r#""x""#),
            ("pg_typeof(1)", T::Other, "regtype", r#""integer""#),
        ] {
            let one = statement(&format!("select {literal} as v"));
            let column =
                snapshot.describe(&one).await.unwrap_or_else(|error| panic!("{literal}: {error}")).columns.remove(0);
            assert_eq!((column.kind, &*column.native_type), (kind, native), "{literal}");
            let ours = json(&rows(&*snapshot, &one).await.unwrap_or_else(|error| panic!("{literal}: {error}"))[0][0]);
            assert_eq!(ours, serde_json::from_str::<Value>(expected).unwrap(), "{literal}");
        }
    });
}

#[test]
fn every_kind_of_parameter_is_read_by_the_servers_own_input() {
    block_on(async {
        let Some(database) = Database::fresh("every_kind_of_parameter_is_read", |_| ()) else { return };
        let snapshot = database.open().await;
        let text = |text: &str| Parameter::Text(text.into());
        let document = |text: &str| Parameter::Json(text.into());
        for (sql, parameter, expected) in [
            ("select $1::text", text("O'Reilly; -- \\ \"ü"), "O'Reilly; -- \\ \"ü"),
            ("select ($1::int8)::text", Parameter::Integer(i64::MIN), "-9223372036854775808"),
            ("select ($1::numeric)::text", Parameter::Number("1.10".into()), "1.10"),
            ("select ($1::numeric)::text", Parameter::Number("184467440737095516160".into()), "184467440737095516160"),
            ("select ($1::boolean)::text", Parameter::Bool(true), "true"),
            ("select ($1::timestamptz)::text", text("2026-01-01T12:00:00+02:00"), "2026-01-01 10:00:00+00"),
            (
                "select ($1::uuid)::text",
                text("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            ),
            ("select ($1::bytea)::text", text("\\x00ff"), "\\x00ff"),
            ("select ($1::jsonb ->> 'a')", document(r#"{"a":"b"}"#), "b"),
            ("select ($1::int[])::text", document("[1,null,3]"), "{1,NULL,3}"),
            ("select ($1::text[])[2]", document(r#"["a","q\"\\,{}"]"#), "q\"\\,{}"),
            ("select ($1::int[])::text", text("{4,5}"), "{4,5}"),
            ("select coalesce($1::text, 'was null')", Parameter::Null, "was null"),
        ] {
            let given = rows(&*snapshot, &statement_with(sql, vec![parameter.clone()])).await;
            let given = given.unwrap_or_else(|error| panic!("{sql} with {parameter:?}: {error}"));
            assert_eq!(given, [[OwnedCell::text(expected)]], "{sql} with {parameter:?}");
        }
        for (sql, parameter) in [
            ("select $1::int", text("abc")),
            ("select $1::int", Parameter::Integer(i64::MAX)),
            ("select $1::uuid", text("abc")),
            ("select $1::int[]", document("[1,[2]]")),
            ("select $1::int", document("[1]")),
            ("select $1::text", text("a\0b")),
        ] {
            let both = statement_with(&format!("{sql}, $2::int"), vec![parameter, Parameter::Integer(1)]);
            for refused in [snapshot.describe(&both).await.map(|_| ()), rows(&*snapshot, &both).await.map(|_| ())] {
                let error = refused.expect_err("it does not fit");
                assert!(matches!(error, SourceError::Parameter { index: 1, .. }), "{sql}: {error:?}");
            }
        }
    });
}

#[test]
fn types_of_extensions_come_as_their_own_text() {
    block_on(async {
        let Some(database) = Database::fresh("types_of_extensions_come_as_their_own_text", |_| ()) else { return };
        let installed = "select count(*) from pg_available_extensions where name in ('citext', 'hstore')";
        if database.sql(installed) != "2\n" {
            println!("skipped: types_of_extensions_come_as_their_own_text: PostgreSQL's contrib is not installed");
            return;
        }
        database.sql("create extension citext");
        database.sql("create extension hstore");
        let snapshot = database.open().await;
        for (literal, kind, native, expected) in [
            ("'AbC'::citext", ColumnType::Text, "citext", r#""AbC""#),
            ("array['A,b', null]::citext[]", ColumnType::Array, "citext[]", r#"["A,b",null]"#),
            ("'a=>1, b=>NULL'::hstore", ColumnType::Other, "hstore", r#""\"a\"=>\"1\", \"b\"=>NULL""#),
        ] {
            let one = statement(&format!("select {literal} as v"));
            let column =
                snapshot.describe(&one).await.unwrap_or_else(|error| panic!("{literal}: {error}")).columns.remove(0);
            assert_eq!((column.kind, &*column.native_type), (kind, native), "{literal}");
            let ours = json(&rows(&*snapshot, &one).await.unwrap_or_else(|error| panic!("{literal}: {error}"))[0][0]);
            assert_eq!(ours, serde_json::from_str::<Value>(expected).unwrap(), "{literal}");
        }
    });
}

#[test]
fn bytes_that_are_not_utf_8_end_the_run_and_are_not_repaired() {
    block_on(async {
        let test = "bytes_that_are_not_utf_8_end_the_run_and_are_not_repaired";
        let Some(database) = Database::fresh(test, |_| ()) else { return };
        database.sql("create database ascii template template0 encoding 'SQL_ASCII' locale 'C'");
        let source = PostgresSource::connect(PostgresConfig::new(database.server.url("ascii"))).expect("a URL");
        let snapshot = source.open().await.expect("the server runs");
        let sql = r"select i, case i when 3 then E'\xff' else 'a' end from generate_series(1, 5) i";
        let error = query(&*snapshot, sql).await.expect_err("a value is not UTF-8");
        // The server checks on the way out, whatever the encoding of the database promises.
        assert!(matches!(&error, SourceError::Statement(words) if &*words.native_code == "22021"), "{error:?}");
    });
}

#[test]
fn a_query_that_changes_the_formats_is_stopped_and_the_next_run_has_the_old_ones() {
    block_on(async {
        let Some(database) = Database::fresh("a_query_that_changes_the_formats", |_| ()) else { return };
        let snapshot = database.open().await;
        let changing = "select set_config('DateStyle', 'German', false), '2026-01-02 00:00:00'::timestamp";
        let error = query(&*snapshot, changing).await.expect_err("the text is no ISO timestamp");
        assert!(matches!(error, SourceError::Unreadable { column: 1, row: 0, .. }), "{error:?}");
        let now = cell(&*snapshot, "select '2026-01-02 00:00:00'::timestamp").await;
        assert_eq!(now, OwnedCell::text("2026-01-02T00:00:00"));
    });
}

#[test]
fn columns_are_not_nullable_only_where_the_catalogue_proves_it() {
    block_on(async {
        let Some(database) = Database::fresh("columns_are_not_nullable_only_where_proved", |_| ()) else { return };
        database.sql("create table t (id int primary key, a text not null, b text)");
        database.sql("create table parent (x int not null); create table child () inherits (parent)");
        let snapshot = database.open().await;
        for (sql, nullable) in [
            ("select id, a, b, a || b from t", vec![false, false, true, true]),
            ("select s.id from (select id from t) s", vec![false]),
            ("select u.id from t left join t u on u.id = t.id + 1", vec![true]),
            ("select id from t group by rollup (id)", vec![true]),
            ("select x from parent", vec![true]),
            ("select id from t union all select null", vec![true]),
        ] {
            let described = snapshot.describe(&statement(sql)).await.expect(sql);
            assert_eq!(described.columns.iter().map(|column| column.nullable).collect::<Vec<_>>(), nullable, "{sql}");
        }
    });
}
