//! What a statement may not do, and how that is said.

use proptest::prelude::*;
use tidegate_core::Failure;
use tidegate_core::port::{Parameter, SourceError, Statement};
use tidegate_testkit::block_on;
use tidegate_testkit::query_source_suite::statement;

use crate::world::SqliteWorld;

async fn refusal(world: &SqliteWorld, sql: &str) -> SourceError {
    world.snapshot().await.describe(&statement(sql)).await.unwrap_err()
}

#[test]
fn a_refusal_says_what_was_tried_and_where() {
    block_on(async {
        let world = SqliteWorld::with("create table item (id integer primary key, name text)");
        let error = refusal(&world, "attach 'x.db' as x").await;
        assert_eq!((error.code(), error.to_string().contains("ATTACH is not allowed")), ("read_only", true), "{error}");
        let error = refusal(&world, "delete from item").await;
        assert!(error.to_string().contains("DELETE from item is not allowed (SQLITE_AUTH)"), "{error}");

        let SourceError::Syntax(refused) = refusal(&world, "/* ü */ select id frm item x").await else { panic!() };
        assert_eq!((&*refused.message, &*refused.native_code), ("near \"item\": syntax error", "SQLITE_ERROR"));
        assert_eq!(refused.position, Some(23));
        // The first of the text is no statement: the position is still counted from its start.
        let SourceError::Statement(refused) = refusal(&world, " ; select nam from item").await else { panic!() };
        assert_eq!((&*refused.message, refused.position), ("no such column: nam", Some(11)));
    });
}

#[test]
fn a_misspelled_column_in_double_quotes_is_refused_and_is_no_text() {
    block_on(async {
        let world = SqliteWorld::with("create table item (id integer primary key, \"a name\" text)");
        assert!(world.query("select \"a name\" from item").await.is_ok());
        let error = refusal(&world, "select \"a nme\" from item").await;
        assert!(matches!(error, SourceError::Statement(_)), "{error}");
    });
}

#[test]
fn parameters_that_cannot_be_bound_are_refused_before_a_run() {
    block_on(async {
        let world = SqliteWorld::with("create table item (id integer primary key)");
        let snapshot = world.snapshot().await;
        let describe = async |parameters: Vec<Parameter>| {
            let statement = Statement { sql: "select id from item where id = ?".into(), parameters };
            snapshot.describe(&statement).await.map(drop).map_err(|error| error.code())
        };
        assert_eq!(describe(vec![]).await, Err("parameter_count"));
        assert_eq!(describe(vec![Parameter::Null; 2]).await, Err("parameter_count"));
        assert_eq!(describe(vec![Parameter::Number("9223372036854775808".into())]).await, Err("invalid_parameter"));
        assert_eq!(describe(vec![Parameter::Integer(1)]).await, Ok(()));
    });
}

#[test]
fn a_text_with_a_nul_is_refused_whole() {
    block_on(async {
        let world = SqliteWorld::with("create table item (id integer primary key)");
        let error = refusal(&world, "select 1\0; delete from item").await;
        let SourceError::Syntax(refused) = error else { panic!("{error}") };
        assert_eq!(refused.position, Some(9));
    });
}

#[test]
fn reading_the_schema_is_allowed() {
    block_on(async {
        let world =
            SqliteWorld::with("create table item (id integer primary key); create view v as select * from item");
        for sql in [
            "select name from sqlite_schema",
            "pragma table_info(item)",
            "pragma main.table_xinfo('item')",
            "select name from pragma_table_info('item')",
            "pragma user_version",
            "explain select * from item",
            "explain query plan select * from item",
            "select * from v",
        ] {
            assert!(
                !world.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}")).is_empty()
                    || sql.ends_with('v')
            );
        }
    });
}

#[test]
fn a_trigger_or_view_in_the_file_cannot_write_either() {
    block_on(async {
        let world = SqliteWorld::with(
            "create table item (id integer primary key); create table log (x);
             create view v as select id, random() as r from item;
             create trigger t instead of insert on v begin insert into log values (1); end",
        );
        let error = refusal(&world, "insert into v (id) values (1)").await;
        assert!(matches!(error, SourceError::ReadOnly(_)), "{error}");
        assert!(world.query("select * from v").await.is_ok());
    });
}

#[test]
fn full_text_and_r_tree_tables_can_be_read() {
    block_on(async {
        let world = SqliteWorld::with(
            "create virtual table five using fts5(body); insert into five values ('some words'), ('others');
             create virtual table four using fts4(body); insert into four values ('some words'), ('others');
             create virtual table boxes using rtree(id, x0, x1); insert into boxes values (1, 0, 1), (2, 5, 6)",
        );
        for sql in [
            "select body, rank from five where five match 'words'",
            "select snippet(four) from four where body match 'words'",
            "select id from boxes where x1 < 3",
        ] {
            assert_eq!(world.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}")).len(), 1, "{sql}");
        }
    });
}

/// Pieces of which a statement, or nearly one, is put together.
const PIECES: [&str; 32] = [
    "select",
    "delete from",
    "insert into",
    "update",
    "item",
    "id",
    "from",
    "where",
    "*",
    ",",
    ";",
    "(",
    ")",
    "'",
    "\"",
    "--",
    "/*",
    "*/",
    "1",
    "values",
    "with x as",
    "returning",
    "pragma",
    "user_version",
    "=",
    "begin",
    "commit",
    "attach",
    "drop table",
    "vacuum",
    "\n",
    "\u{fc}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_whatever_writes_or_panics(
        pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..9), noise in any::<String>()
    ) {
        thread_local! {
            static WORLD: SqliteWorld = SqliteWorld::with("create table item (id integer primary key); insert into item values (1)");
        }
        WORLD.with(|world| {
            let before = std::fs::read(&world.path).unwrap();
            block_on(async {
                for sql in [pieces.join(" "), format!("{} {noise}", pieces.join(" ")), noise.clone()] {
                    if let Err(error) = world.query(&sql).await {
                        assert_ne!(error.code(), "internal", "{sql:?}: {error}");
                        assert_ne!(error.code(), "snapshot_lost", "{sql:?}: {error}");
                    }
                }
            });
            assert_eq!(std::fs::read(&world.path).unwrap(), before);
        });
    }
}
