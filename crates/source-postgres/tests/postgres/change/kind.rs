//! Every kind of value, of table and of change comes without loss.

use serde_json::{Value, json};
use tidegate_core::port::QuerySource;
use tidegate_core::record::Operation;
use tidegate_source_postgres::{PostgresConfig, PostgresSource};
use tidegate_testkit::block_on_threads;

use super::world::{Taken, World};
use crate::values::{AS_TO_JSON, TYPES, json as json_of};
use crate::world::query;

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn every_type_comes_as_it_does_in_a_query_in_the_copy_and_in_the_stream() {
    block_on_threads(async {
        let Some(world) = World::fresh("every_type_comes_as_it_does_in_a_query") else { return };
        world.sql(TYPES);
        let more = ["1.10::numeric", "'NaN'::numeric", r"'\x00ff10'::bytea", "array[1.5]::cents[]", "1.5::cents"];
        let more = more.into_iter().chain([r"E'\\x\t\\N\\\\.'::text", "'[0:1]={1,2}'::int[]", "row(1, 'a b')::pair"]);
        let literals: Vec<&str> = AS_TO_JSON.iter().map(|(literal, _)| *literal).chain(more).collect();
        let columns = literals.iter().enumerate().map(|(at, literal)| format!("{literal} as c{at}"));
        let columns = columns.collect::<Vec<_>>().join(", ");
        world.sql(&format!("create table everything as select 1 as id, {columns}"));
        world.sql("alter table everything add primary key (id)");
        let source = world.source(|_| ());
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        world.sql(&format!("insert into everything select 2, {columns}"));
        taken.until(&source, &mut stream, |taken| taken.records.len() == 2).await;

        let queries = PostgresSource::connect(PostgresConfig::new(world.url.as_str())).expect("a URL");
        let snapshot = queries.open().await.expect("the server runs");
        let rows = query(&*snapshot, "select * from everything order by id").await.expect("rows");
        for (row, (_, change)) in rows.iter().zip(&taken.records) {
            let value = parse(&change.value);
            for (at, literal) in literals.iter().enumerate() {
                assert_eq!(value[format!("c{at}")], json_of(&row[at + 1]), "{literal}");
            }
        }
        assert_eq!(rows.len(), 2);
    });
}

#[test]
fn what_was_not_sent_because_it_did_not_change_is_left_out_and_named() {
    block_on_threads(async {
        let Some(world) = World::fresh("what_was_not_sent_is_left_out_and_named") else { return };
        for (table, identity) in [("thin", "default"), ("fat", "full")] {
            world.sql(&format!("create table {table} (id int primary key, n int, big text)"));
            world.sql(&format!("alter table {table} alter big set storage external, replica identity {identity}"));
        }
        let source = world.source(|_| ());
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        for table in ["thin", "fat"] {
            world.sql(&format!("insert into {table} values (1, 1, repeat('x', 100000))"));
            world.sql(&format!("update {table} set n = 2"));
            world.sql(&format!("update {table} set id = 5"));
        }
        taken.until(&source, &mut stream, |taken| taken.fold("public.fat", "id").contains_key("5")).await;
        for table in ["thin", "fat"] {
            let name = format!("public.{table}");
            let update =
                taken.records.iter().find(|(at, change)| **at == *name && change.operation == Operation::Update);
            let (_, update) = update.expect("an update");
            let (value, headers) = (parse(&update.value), parse(update.headers.as_deref().expect("headers")));
            if table == "thin" {
                assert_eq!(value, json!({"id": 1, "n": 2}));
                assert_eq!(headers["unchanged_toast"], json!(["big"]));
                assert_eq!(update.before, None);
            } else {
                // The old row has the value.
                assert_eq!(value["big"].as_str().map(str::len), Some(100_000));
                assert_eq!(headers["unchanged_toast"], Value::Null);
                assert_eq!(parse(update.before.as_deref().expect("the old row"))["n"], 1);
            }
            assert_eq!(taken.fold(&name, "id"), world.rows(table, "id"));
        }
    });
}

#[test]
fn the_key_and_the_old_values_are_those_of_the_replica_identity() {
    block_on_threads(async {
        let Some(world) = World::fresh("the_key_and_the_old_values_are_those_of_the_replica_identity") else { return };
        world.sql("create table by_index (id int primary key, a int not null, b text not null, c int)");
        world.sql(
            "create unique index other on by_index (b, a); alter table by_index replica identity using index other",
        );
        world.sql("create table whole (a int, b text); alter table whole replica identity full");
        world.sql("create table nothing (id int primary key, b text); alter table nothing replica identity nothing");
        world.sql("create table keyless (a int)");
        world.sql(&format!("create publication {} for all tables with (publish = 'insert, truncate')", world.name));
        world.sql(&format!("alter publication {} set (publish = 'insert, update, delete, truncate')", world.name));
        let source = world.source(|config| config.require_keys = false);
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        world.sql("insert into by_index values (1, 2, 'x', 3)");
        world.sql("update by_index set c = 4; update by_index set a = 5; delete from by_index");
        world.sql("insert into whole values (1, null); update whole set b = 'y'; delete from whole");
        world.sql("insert into nothing values (1, 'n'); insert into keyless values (9)");
        taken.until(&source, &mut stream, |taken| taken.has(r#"{"a":9}"#)).await;
        let shown: Vec<_> = taken
            .records
            .iter()
            .filter(|(_, change)| change.operation != Operation::Message)
            .map(|(table, change)| {
                let text = |text: &Option<std::sync::Arc<str>>| text.as_deref().unwrap_or("-").to_owned();
                let table = table.strip_prefix("public.").expect("a schema");
                format!(
                    "{table} {:?} {} {} {}",
                    change.operation,
                    text(&change.key),
                    change.value,
                    text(&change.before)
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                r#"by_index Insert {"a":2,"b":"x"} {"id":1,"a":2,"b":"x","c":3} -"#,
                r#"by_index Update {"a":2,"b":"x"} {"id":1,"a":2,"b":"x","c":4} -"#,
                r#"by_index Delete {"a":2,"b":"x"} null {"a":2,"b":"x"}"#,
                r#"by_index Insert {"a":5,"b":"x"} {"id":1,"a":5,"b":"x","c":4} -"#,
                r#"by_index Delete {"a":5,"b":"x"} null {"a":5,"b":"x"}"#,
                r#"whole Insert - {"a":1,"b":null} -"#,
                r#"whole Update - {"a":1,"b":"y"} {"a":1,"b":null}"#,
                r#"whole Delete - null {"a":1,"b":"y"}"#,
                r#"nothing Insert {"id":1} {"id":1,"b":"n"} -"#,
                r#"keyless Insert - {"a":9} -"#,
            ]
        );
    });
}

#[test]
fn a_truncate_names_each_of_its_tables_and_an_altered_table_is_described_before_its_next_row() {
    block_on_threads(async {
        let Some(world) = World::fresh("a_truncate_names_each_of_its_tables") else { return };
        world.sql("create table a (id int primary key); create table b (id int primary key references a)");
        let source = world.source(|_| ());
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        world.sql("insert into a values (1); insert into b values (1); truncate a, b");
        world.sql(
            "begin; alter table a add column \"na\"\"me\" varchar(7) default 'd'; insert into a values (2); commit",
        );
        world.sql("alter table a drop column \"na\"\"me\"; alter table a rename to c; insert into c values (3)");
        taken.until(&source, &mut stream, |taken| taken.has(r#"{"id":3}"#)).await;
        let shown: Vec<_> =
            taken.records.iter().map(|(table, change)| (&**table, change.operation, parse(&change.value))).collect();
        let described = |columns: Value, at: usize| {
            let version = parse(taken.records[at].1.headers.as_deref().expect("headers"))["schema"].clone();
            json!({"schema": {"version": version, "columns": columns}})
        };
        let id = json!({"name": "id", "type": "integer", "key": true});
        let name = json!({"name": "na\"me", "type": "character varying(7)", "key": false});
        use Operation as O;
        assert_eq!(
            shown,
            [
                ("public.a", O::Insert, json!({"id": 1})),
                ("public.b", O::Insert, json!({"id": 1})),
                ("public.a", O::Truncate, Value::Null),
                ("public.b", O::Truncate, Value::Null),
                ("public.a", O::Message, described(json!([id, name]), 5)),
                ("public.a", O::Insert, json!({"id": 2, "na\"me": "d"})),
                ("public.c", O::Message, described(json!([id]), 7)),
                ("public.c", O::Insert, json!({"id": 3})),
            ]
        );
    });
}

#[test]
fn the_copy_gives_what_the_publication_publishes_and_nothing_else() {
    block_on_threads(async {
        let Some(world) = World::fresh("the_copy_gives_what_the_publication_publishes") else { return };
        world.sql("create table part (id int primary key, \"B\" text, secret text, twice int generated always as (id * 2) stored)");
        world.sql("insert into part values (1, 'no', 's'), (2, 'yes', 's'), (3, 'yes', 's')");
        world.sql("create table tree (id int, region text, primary key (id, region)) partition by list (region)");
        world.sql("create table tree_a partition of tree for values in ('a'); create table tree_b partition of tree for values in ('b')");
        world.sql("insert into tree values (1, 'a'), (2, 'b')");
        world.sql("create table parent (id int primary key); create table child () inherits (parent)");
        world
            .sql("alter table child add primary key (id); insert into parent values (1); insert into child values (2)");
        let version: i32 = world.sql("show server_version_num").trim().parse().expect("a number");
        let only = if version >= 150_000 { "(id, \"B\") where (id <> 1)" } else { "" };
        world.sql(&format!(
            "create publication {} for table part {only}, table tree, table only parent, table child \
             with (publish_via_partition_root = true)",
            world.name
        ));
        let source = world.source(|_| ());
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        taken.until(&source, &mut stream, |taken| taken.records.len() >= 6).await;
        world.sql("update part set \"B\" = 'now' where id = 2; insert into tree values (3, 'a'); insert into child values (5)");
        taken.until(&source, &mut stream, |taken| taken.has(r#"{"id":5}"#)).await;
        let mut shown: Vec<String> = taken
            .records
            .iter()
            .map(|(table, change)| format!("{table} {:?} {}", change.operation, change.value))
            .collect();
        shown[..6].sort();
        if version >= 150_000 {
            assert_eq!(
                shown,
                [
                    r#"public.child Insert {"id":2}"#,
                    r#"public.parent Insert {"id":1}"#,
                    r#"public.part Insert {"id":2,"B":"yes"}"#,
                    r#"public.part Insert {"id":3,"B":"yes"}"#,
                    r#"public.tree Insert {"id":1,"region":"a"}"#,
                    r#"public.tree Insert {"id":2,"region":"b"}"#,
                    r#"public.part Update {"id":2,"B":"now"}"#,
                    r#"public.tree Insert {"id":3,"region":"a"}"#,
                    r#"public.child Insert {"id":5}"#,
                ]
            );
        }
    });
}
