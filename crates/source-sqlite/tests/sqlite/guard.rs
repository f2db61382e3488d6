//! What a statement may not do, and how that is said.

use tidegate_core::Failure;
use tidegate_core::port::SourceError;
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
