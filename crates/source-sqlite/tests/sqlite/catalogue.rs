//! Keys and volatilities: what is told is true, and what might not be is left out.

use tidegate_core::port::{Catalogue, CatalogueQuery, RelationName, Volatility};
use tidegate_testkit::block_on;

use crate::world::SqliteWorld;

async fn look_up(world: &SqliteWorld, relations: &[(Option<&str>, &str)], functions: &[&str]) -> Catalogue {
    let relations = relations
        .iter()
        .map(|(schema, name)| RelationName { schema: schema.map(Into::into), name: (*name).into() })
        .collect();
    let functions = functions.iter().map(|name| (*name).into()).collect();
    world.snapshot().await.catalogue(&CatalogueQuery { relations, functions }).await.unwrap()
}

async fn keys(world: &SqliteWorld, table: &str) -> Vec<String> {
    let found = look_up(world, &[(None, table)], &[]).await;
    let (_, facts) = found.relations.first().unwrap_or_else(|| panic!("no {table}"));
    facts.unique_keys.iter().map(|key| key.columns.join(",")).collect()
}

const ROWID: [&str; 3] = ["rowid", "_rowid_", "oid"];

#[test]
fn keys_are_told_only_where_they_hold_under_order_by() {
    block_on(async {
        let world = SqliteWorld::with(
            "create table alias (id integer primary key, a text not null unique, b text unique);
             create table int_pk (id int primary key, c text not null);
             create table text_pk (k text primary key);
             create table text_pk_nn (k text primary key not null);
             create table pair (x integer not null, y text not null, z integer, primary key (x, y), unique (y, z));
             create table without_rowid (k text, l integer, primary key (k, l)) without rowid;
             create table nocase (k text collate nocase not null unique, m text not null);
             create unique index nocase_m on nocase (m collate nocase);
             create table odd (a integer not null, b integer not null);
             create unique index odd_partial on odd (a) where b > 0;
             create unique index odd_expression on odd (a + b);
             create index odd_plain on odd (b);
             create unique index odd_ab on odd (b desc, a);
             create table shadowed (rowid text, oid text);
             create table descending (id integer primary key desc);",
        );
        let with_rowid =
            |keys: &[&str]| -> Vec<String> { keys.iter().chain(&ROWID).map(|key| (*key).to_owned()).collect() };
        assert_eq!(keys(&world, "alias").await, with_rowid(&["id", "a"]));
        assert_eq!(keys(&world, "int_pk").await, with_rowid(&[]), "a key that may hold NULLs");
        assert_eq!(keys(&world, "text_pk").await, with_rowid(&[]), "a key that may hold NULLs");
        assert_eq!(keys(&world, "text_pk_nn").await, with_rowid(&["k"]));
        assert_eq!(keys(&world, "pair").await, with_rowid(&["x,y"]));
        assert_eq!(keys(&world, "without_rowid").await, ["k,l"]);
        assert_eq!(keys(&world, "nocase").await, with_rowid(&["m"]), "k's own collation takes 'a' and 'A' for equal");
        assert_eq!(keys(&world, "odd").await, with_rowid(&["b,a"]));
        assert_eq!(keys(&world, "shadowed").await, ["_rowid_"]);
        assert_eq!(keys(&world, "descending").await, with_rowid(&[]));
    });
}

#[test]
fn relations_are_found_by_sqlites_rules_and_views_have_no_keys() {
    block_on(async {
        let world = SqliteWorld::with(
            "create table Item (Id integer primary key, g integer generated always as (id * 2));
             create view v as select id from item;
             create virtual table words using fts5(body)",
        );
        let names = [
            (None, "ITEM"),
            (Some("MAIN"), "item"),
            (Some("temp"), "item"),
            (Some("other"), "item"),
            (None, "v"),
            (None, "words"),
            (None, "nothing"),
            (None, "it'em"),
            (None, "pragma_table_info"),
        ];
        let found = look_up(&world, &names, &[]).await;
        let told: Vec<_> = found
            .relations
            .iter()
            .map(|(name, facts)| (&*name.name, facts.is_table, facts.columns.join(","), facts.unique_keys.len()))
            .collect();
        assert_eq!(
            told,
            [
                ("ITEM", true, "Id,g".to_owned(), 4),
                ("item", true, "Id,g".to_owned(), 4),
                ("v", false, "Id".to_owned(), 0),
                ("words", false, "body".to_owned(), 0),
            ]
        );
    });
}

#[test]
fn a_function_that_may_read_a_clock_or_randomness_is_volatile() {
    block_on(async {
        let world = SqliteWorld::with("");
        let names = ["lower", "abs", "json_extract", "random", "randomblob", "date", "unixepoch", "changes", "count"];
        let more = ["sum", "row_number", "current_timestamp", "no_such_function", "coalesce"];
        let found = look_up(&world, &[], &[&names[..], &more[..]].concat()).await;
        let told = |name: &str| found.functions.iter().find(|(known, _)| &**known == name).map(|(_, worst)| *worst);
        for name in ["lower", "abs", "json_extract", "coalesce"] {
            assert_eq!(told(name), Some(Volatility::Immutable), "{name}");
        }
        for name in ["random", "randomblob", "date", "unixepoch", "changes", "current_timestamp"] {
            assert_eq!(told(name), Some(Volatility::Volatile), "{name}");
        }
        for name in ["count", "sum", "row_number"] {
            assert_eq!(told(name), Some(Volatility::Stable), "{name}");
        }
        assert_eq!(told("no_such_function"), None);
    });
}
