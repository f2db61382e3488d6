//! What the catalogue proves, and what it must not claim.

use tidegate_core::port::{CatalogueQuery, RelationName, Volatility};
use tidegate_testkit::block_on;

use crate::world::Database;

fn name(text: &str) -> RelationName {
    match text.split_once('.') {
        Some((schema, name)) => RelationName { schema: Some(schema.into()), name: name.into() },
        None => RelationName { schema: None, name: text.into() },
    }
}

#[test]
fn only_true_keys_are_keys() {
    block_on(async {
        let Some(database) = Database::fresh("only_true_keys_are_keys", |_| ()) else { return };
        for sql in [
            "create schema other",
            "create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
            "create table plain (id int primary key, a text not null, b text not null, c text, unique (a, b), unique (c))",
            "create table other.plain (x int not null)",
            "create unique index on other.plain (x)",
            "create table partial (x int not null, y int not null, z text not null)",
            "create unique index on partial (x) where y > 0",
            "create unique index on partial ((x + 1))",
            "create unique index on partial (z text_pattern_ops)",
            "create unique index on partial (y) include (x)",
            "create table late (x int not null unique deferrable)",
            "create table folded (x text collate nocase not null unique, y text collate nocase not null)",
            "create unique index on folded (y collate \"C\")",
            "create table parent (id int primary key)",
            "create table child () inherits (parent)",
            "create table parts (id int primary key, v text) partition by range (id)",
            "create table parts_1 partition of parts for values from (0) to (10)",
            "create view seen as select * from plain",
            "create materialized view stored as select * from plain",
            "create table \"Strange \"\" name\" (\"A col\" int primary key)",
            "create table dropped (gone int, id int primary key); alter table dropped drop column gone",
        ] {
            database.sql(sql);
        }
        let snapshot = database.open().await;
        type Facts = (bool, &'static [&'static [&'static str]]);
        let keys: [(&str, Option<Facts>); 14] = [
            ("plain", Some((true, &[&["id"], &["a", "b"]]))),
            ("public.plain", Some((true, &[&["id"], &["a", "b"]]))),
            ("other.plain", Some((true, &[&["x"]]))),
            ("partial", Some((true, &[&["y"]]))),
            ("late", Some((true, &[]))),
            ("folded", Some((true, &[]))),
            ("parent", Some((true, &[]))),
            ("child", Some((true, &[]))),
            ("parts", Some((true, &[&["id"]]))),
            ("seen", Some((false, &[]))),
            ("stored", Some((false, &[]))),
            ("Strange \" name", Some((true, &[&["A col"]]))),
            ("dropped", Some((true, &[&["id"]]))),
            ("missing", None),
        ];
        let query = CatalogueQuery { relations: keys.iter().map(|(text, _)| name(text)).collect(), functions: vec![] };
        let found = snapshot.catalogue(&query).await.expect("a catalogue").relations;
        for (text, expected) in keys {
            let facts = found.iter().find(|(found, _)| *found == name(text)).map(|(_, facts)| facts);
            let given = facts.map(|facts| {
                let keys: Vec<Vec<&str>> =
                    facts.unique_keys.iter().map(|key| key.columns.iter().map(|column| &**column).collect()).collect();
                (facts.is_table, keys)
            });
            let expected = expected.map(|(table, keys)| (table, keys.iter().map(|key| key.to_vec()).collect()));
            assert_eq!(given, expected, "{text}");
        }
        let columns =
            |text: &str| &found.iter().find(|(found, _)| *found == name(text)).expect("it is there").1.columns;
        assert_eq!(**columns("plain"), ["id".into(), "a".into(), "b".into(), "c".into()]);
        assert_eq!(**columns("dropped"), ["id".into()]);
    });
}

#[test]
fn the_worst_overload_of_a_function_counts() {
    block_on(async {
        let Some(database) = Database::fresh("the_worst_overload_of_a_function_counts", |_| ()) else { return };
        database.sql(
            "create schema hidden; create function hidden.mine(int) returns int volatile language sql as 'select 1'",
        );
        database.sql("create function mine() returns int immutable language sql as 'select 1'");
        let snapshot = database.open().await;
        let expected = [
            ("lower", Volatility::Immutable),
            ("now", Volatility::Stable),
            ("random", Volatility::Volatile),
            ("clock_timestamp", Volatility::Volatile),
            ("statement_timestamp", Volatility::Volatile),
            ("pg_stat_get_activity", Volatility::Volatile),
            ("count", Volatility::Immutable),
            ("mine", Volatility::Volatile),
        ];
        let mut functions: Vec<Box<str>> = expected.iter().map(|(name, _)| (*name).into()).collect();
        functions.push("missing".into());
        let query = CatalogueQuery { relations: vec![], functions };
        let mut found = snapshot.catalogue(&query).await.expect("a catalogue").functions;
        found.sort();
        let mut expected: Vec<(Box<str>, Volatility)> =
            expected.iter().map(|(name, how)| ((*name).into(), *how)).collect();
        expected.sort();
        assert_eq!(found, expected);
    });
}
