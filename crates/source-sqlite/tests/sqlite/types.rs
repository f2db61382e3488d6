//! Every value comes as it is stored: no rounding, no repair, no guess.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use tidegate_core::limit::Bound;
use tidegate_core::port::{ColumnType, Parameter, SinkError, SourceError};
use tidegate_testkit::OwnedCell::{Blob, Integer, InvalidText, Null, Real};
use tidegate_testkit::query_source_suite::{rows, statement, statement_with};
use tidegate_testkit::{OwnedCell, block_on};

use crate::world::SqliteWorld;

#[test]
fn every_storage_class_comes_without_loss() {
    block_on(async {
        let world = SqliteWorld::with("create table t (i integer, r real, s text, b blob, a)");
        let writer = world.writer();
        let mut insert = writer.prepare("insert into t values (?1, ?2, ?3, ?4, ?5)").unwrap();
        insert
            .execute((i64::MAX, 0.1, "gr\u{fc}n \u{1f30a}\n\"", [0_u8, 255, 10].as_slice(), 9_007_199_254_740_993_i64))
            .unwrap();
        insert.execute((i64::MIN, f64::INFINITY, "", [].as_slice(), -0.0)).unwrap();
        insert.execute((rusqlite::types::Null, f64::NEG_INFINITY, "a\0b", rusqlite::types::Null, f64::NAN)).unwrap();
        insert.execute((0, f64::MIN_POSITIVE, "x".repeat(100_000), vec![7_u8; 100_000], "text")).unwrap();
        drop(insert);
        let expected = vec![
            vec![
                Integer(i64::MAX),
                Real(0.1),
                OwnedCell::text("gr\u{fc}n \u{1f30a}\n\""),
                Blob([0, 255, 10].into()),
                Integer(9_007_199_254_740_993),
            ],
            vec![Integer(i64::MIN), Real(f64::INFINITY), OwnedCell::text(""), Blob([].into()), Real(-0.0)],
            // SQLite itself stores NaN as NULL.
            vec![Null, Real(f64::NEG_INFINITY), OwnedCell::text("a\0b"), Null, Null],
            vec![
                Integer(0),
                Real(f64::MIN_POSITIVE),
                OwnedCell::text(&"x".repeat(100_000)),
                Blob(vec![7; 100_000].into()),
                OwnedCell::text("text"),
            ],
        ];
        assert_eq!(world.query("select * from t order by rowid").await.unwrap(), expected);
    });
}

#[test]
fn text_that_is_not_utf_8_comes_with_its_bytes() {
    block_on(async {
        let world =
            SqliteWorld::with("create table t (s text); insert into t values (cast(x'61ff62' as text)), ('ok')");
        assert_eq!(
            world.query("select s from t").await.unwrap(),
            [[InvalidText([0x61, 0xff, 0x62].into())], [OwnedCell::text("ok")]]
        );
    });
}

#[test]
fn a_database_in_utf_16_gives_the_same_text() {
    block_on(async {
        let world = SqliteWorld::with(
            "pragma encoding = 'UTF-16le'; create table t (s text); insert into t values ('grün 🌊')",
        );
        assert_eq!(world.query("select s from t").await.unwrap(), [[OwnedCell::text("grün 🌊")]]);
    });
}

#[test]
fn a_cell_of_another_class_than_its_column_comes_as_it_is() {
    block_on(async {
        let world = SqliteWorld::with(
            "create table t (i integer, s text, b blob); insert into t values ('x', 1, 'y'), (1.5, x'00', 2)",
        );
        assert_eq!(
            world.query("select * from t").await.unwrap(),
            [
                [OwnedCell::text("x"), OwnedCell::text("1"), OwnedCell::text("y")],
                [Real(1.5), Blob([0].into()), Integer(2)]
            ]
        );
    });
}

async fn columns(world: &SqliteWorld, sql: &str) -> Vec<(ColumnType, bool, Box<str>)> {
    let described = world.snapshot().await.describe(&statement(sql)).await.unwrap();
    described.columns.into_iter().map(|column| (column.kind, column.nullable, column.native_type)).collect()
}

#[test]
fn a_columns_type_is_its_declared_affinity_and_an_expressions_is_any() {
    block_on(async {
        let world =
            SqliteWorld::with("create table t (i bigint, r double, s varchar(9), b blob, d date, n, x numeric(9,2))");
        let kinds: Vec<_> = columns(&world, "select *, i + 1, count(*) from t").await;
        assert_eq!(
            kinds,
            [
                (ColumnType::Integer, true, "bigint".into()),
                (ColumnType::Real, true, "double".into()),
                (ColumnType::Text, true, "varchar(9)".into()),
                (ColumnType::Blob, true, "BLOB".into()),
                (ColumnType::Any, true, "date".into()),
                (ColumnType::Any, true, "".into()),
                (ColumnType::Any, true, "numeric(9,2)".into()),
                (ColumnType::Any, true, "".into()),
                (ColumnType::Any, true, "".into()),
            ]
        );
        assert_eq!(columns(&world, "select i as renamed from (select i from t)").await[0].0, ColumnType::Integer);
        assert_eq!(columns(&world, "select value from json_each('[1]')").await.len(), 1);
        assert_eq!(columns(&world, "values (1, 'a')").await.len(), 2);
        assert_eq!(columns(&world, "explain query plan select 1").await.len(), 4);
    });
}

#[test]
fn a_column_is_promised_never_null_only_where_nothing_can_null_it() {
    block_on(async {
        let world = SqliteWorld::with(
            "create table t (id integer primary key, a text not null, b text);
             create table d (id integer primary key desc, a text not null);
             create table p (x integer, y integer, primary key (x, y));
             create table w (k text primary key) without rowid;
             create table s (rowid text primary key);
             create table n (x);
             create view v as select t.id, d.a from t left join d on d.id = t.id",
        );
        let nullable = async |sql: &str| -> Vec<bool> {
            columns(&world, sql).await.into_iter().map(|(_, nullable, _)| nullable).collect()
        };
        assert_eq!(nullable("select id, a, b, rowid from t order by id").await, [false, false, true, false]);
        assert_eq!(nullable("select id, a from d").await, [true, false], "DESC makes it an ordinary column");
        assert_eq!(nullable("select x, y from p").await, [true, true]);
        assert_eq!(nullable("select k from w").await, [false]);
        assert_eq!(nullable("select rowid, oid from s").await, [true, true], "a column has taken the name");
        assert_eq!(nullable("select rowid, x from n").await, [false, true]);
        for sql in [
            "select t.id, d.a from t left join d on d.id = t.id",
            "select id, a from v",
            "select id, a from t union all select null, null",
            "select id, max(b) from t",
            "select id, (select a from d where d.id = t.id) from t",
            "select id, a from (select null as id, null as a)",
        ] {
            assert_eq!(nullable(sql).await, [true, true], "{sql}");
        }
    });
}

#[test]
fn parameters_of_every_kind_are_bound_or_refused() {
    block_on(async {
        let world = SqliteWorld::with("");
        let snapshot = world.snapshot().await;
        let bound = async |parameter: Parameter| {
            let typed = statement_with("select ?1, typeof(?1)", vec![parameter]);
            rows(&*snapshot, &typed).await.map(|mut rows| rows.remove(0))
        };
        let text = OwnedCell::text;
        for (parameter, cell, class) in [
            (Parameter::Null, Null, "null"),
            (Parameter::Bool(true), Integer(1), "integer"),
            (Parameter::Bool(false), Integer(0), "integer"),
            (Parameter::Integer(i64::MIN), Integer(i64::MIN), "integer"),
            (Parameter::Number("2.50".into()), Real(2.5), "real"),
            (Parameter::Number("1e2".into()), Real(100.0), "real"),
            (Parameter::Text("a\0'b".into()), text("a\0'b"), "text"),
            (Parameter::Json("{\"a\":[1]}".into()), text("{\"a\":[1]}"), "text"),
        ] {
            assert_eq!(bound(parameter).await.unwrap(), [cell, text(class)]);
        }
        for number in ["9223372036854775808", "1e999"] {
            let error = bound(Parameter::Number(number.into())).await.unwrap_err();
            assert!(matches!(error, SourceError::Parameter { index: 1, .. }), "{error}");
        }
        let named =
            statement_with("select :a, @b, :a, ?", vec![Parameter::Integer(1), Parameter::Integer(2), Parameter::Null]);
        assert_eq!(rows(&*snapshot, &named).await.unwrap(), [[Integer(1), Integer(2), Integer(1), Null]]);
    });
}

#[test]
fn a_value_above_the_bound_is_refused_before_it_takes_memory() {
    block_on(async {
        let world = SqliteWorld::configured(
            "create table t (id integer primary key, b blob); insert into t values (1, x'00'), (2, zeroblob(5000))",
            |config| config.max_value_bytes = 4_096.into(),
        );
        for sql in ["select b from t order by id", "select 1 union all select zeroblob(2000000000)"] {
            match world.query(sql).await.unwrap_err() {
                SourceError::Sink(SinkError::RowTooLarge { row, limit_bytes: 4_096 }) => assert_eq!(row, 1, "{sql}"),
                error => panic!("{sql}: {error}"),
            }
        }
        let snapshot = world.snapshot().await;
        let long = statement_with("select length(?1)", vec![Parameter::Text("x".repeat(5_000).into())]);
        let error = rows(&*snapshot, &long).await.unwrap_err();
        assert!(matches!(error, SourceError::Parameter { index: 1, .. }), "{error}");
        assert_eq!(rows(&*snapshot, &statement("select id from t where id = 1")).await.unwrap().len(), 1);
    });
}

#[test]
fn a_bound_that_is_changed_counts_for_the_next_snapshot() {
    block_on(async {
        let bound = Arc::new(AtomicU64::new(4_096));
        let read = Arc::clone(&bound);
        let world = SqliteWorld::configured("create table t (x)", |config| {
            config.max_value_bytes = Bound::live(move || read.load(Ordering::Relaxed));
        });
        let wide = statement("select zeroblob(5000)");
        let before = world.snapshot().await;
        bound.store(8_192, Ordering::Relaxed);
        assert!(rows(&*before, &wide).await.is_err(), "a snapshot keeps what it was opened with");
        assert_eq!(rows(&*world.snapshot().await, &wide).await.unwrap().len(), 1);
        bound.store(4_096, Ordering::Relaxed);
        assert!(rows(&*world.snapshot().await, &wide).await.is_err());
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_value_comes_back_as_it_was_stored(
        i in any::<i64>(), r in any::<f64>().prop_filter("NaN is NULL", |r| !r.is_nan()), s in any::<String>(), b in any::<Vec<u8>>()
    ) {
        block_on(async {
            let world = SqliteWorld::with("create table t (i integer, r, s text, b blob)");
            // SQLite itself stores -0.0 as 0 in a column that is declared REAL: `r` has no type.
            world.writer().execute("insert into t values (?1, ?2, ?3, ?4)", (i, r, &s, &b)).unwrap();
            let row = vec![Integer(i), Real(r), OwnedCell::text(&s), Blob(b.into())];
            assert_eq!(world.query("select * from t").await.unwrap(), [row]);
        });
    }
}
