//! The judge against a table of statements: what is resumable, and why what is not is not.

use tidegate_core::port::{Catalogue, Dialect, RelationFacts, RelationName, UniqueKey, Volatility};

use super::read;

fn catalogue() -> Catalogue {
    let table = |name: &str, columns: &[&str], keys: &[&[&str]], is_table: bool| {
        let columns = columns.iter().map(|name| (*name).into()).collect();
        let unique_keys =
            keys.iter().map(|key| UniqueKey { columns: key.iter().map(|name| (*name).into()).collect() }).collect();
        (RelationName { schema: None, name: name.into() }, RelationFacts { is_table, columns, unique_keys })
    };
    Catalogue {
        relations: vec![
            table("item", &["id", "name", "price"], &[&["id"]], true),
            table("line", &["order_id", "line_no", "item_id"], &[&["order_id", "line_no"]], true),
            table("account", &["number", "owner"], &[&["number"]], true),
            table("loose", &["a", "b"], &[], true),
            table("seen", &["id"], &[], false),
        ],
        functions: [("lower", Volatility::Immutable), ("count", Volatility::Immutable), ("sum", Volatility::Immutable)]
            .into_iter()
            .chain([("max", Volatility::Immutable), ("random", Volatility::Volatile), ("now", Volatility::Stable)])
            .map(|(name, volatility)| (name.into(), volatility))
            .collect(),
    }
}

fn verdict(sql: &str, dialect: Dialect) -> String {
    let Some(query) = read(sql, dialect) else { return "not_a_plain_query".into() };
    match query.judge(&catalogue()) {
        Ok(()) => "resumable".into(),
        Err(reason) => reason.to_string().split(':').next().unwrap().to_owned(),
    }
}

#[test]
fn a_result_is_resumable_exactly_where_the_order_is_fixed() {
    let table = [
        // A unique key, in any position, under any name that stands for it.
        ("select * from item order by id", "resumable"),
        ("select * from item order by name, id desc", "resumable"),
        ("SELECT * FROM Item ORDER BY ID", "resumable"),
        ("select i.* from item as i order by i.id", "resumable"),
        ("select id, name from item order by 1", "resumable"),
        ("select name, id from item order by 2", "resumable"),
        ("select id as number from item order by number", "resumable"),
        ("select * from item where name = 'union group by (' order by id limit 10", "resumable"),
        ("select * from line order by order_id, line_no", "resumable"),
        ("select * from account order by number", "resumable"),
        ("select lower(name) from item order by lower(name), id", "resumable"),
        ("select * from item\nwhere id > ?1\norder\nby\tid", "resumable"),
        ("select * from item where id in (select item_id from line) order by id", "resumable"),
        // No unique key, or not the whole of it.
        ("select * from item", "no_order"),
        ("select * from item order by name", "order_not_unique"),
        ("select * from line order by order_id", "order_not_unique"),
        ("select * from loose order by a, b", "order_not_unique"),
        ("select name as id from item order by id", "order_not_unique"),
        ("select lower(name) as id from item order by id", "order_not_unique"),
        ("select * from item order by id + 0", "order_not_unique"),
        ("select * from item order by id collate nocase", "order_not_unique"),
        ("select *, name from item order by 1", "order_not_unique"),
        ("select * from item order by 'id'", "order_not_unique"),
        ("select * from seen order by id", "not_a_table"),
        ("select * from missing order by id", "not_a_table"),
        // Joins: a key of each.
        ("select * from item i join line l on l.item_id = i.id order by i.id, l.order_id, l.line_no", "resumable"),
        ("select * from item, line order by id, order_id, line_no", "resumable"),
        ("select * from item i left join account a on a.number = i.id order by i.id, a.number", "resumable"),
        ("select * from item i join line l on l.item_id = i.id order by i.id", "order_not_unique"),
        ("select * from item a join item b on a.id = b.id order by id", "order_not_unique"),
        ("select * from item a join item b on a.id = b.id order by a.id, b.id", "resumable"),
        // Groups and single rows.
        ("select name, count(*) from item group by name order by name", "resumable"),
        ("select name, count(*) from item group by name order by 1", "resumable"),
        ("select name as n, count(*) from item group by n order by n", "resumable"),
        ("select name, price, count(*) from item group by name, price order by name", "order_not_unique"),
        ("select name, count(*)\n\ngroup\nby name", "no_order"),
        ("select count(*), max(id) from item", "resumable"),
        ("select max(id, 3) from item", "no_order"),
        ("select count(*), name from item", "no_order"),
        ("select 1", "resumable"),
        ("select 1 + 2 as three", "resumable"),
        ("select distinct name from item order by name", "resumable"),
        ("select distinct name, price from item order by name", "order_not_unique"),
        ("select distinct * from item order by id", "order_not_unique"),
        ("select distinct id as name, name as price from item order by name", "order_not_unique"),
        ("select max(id) as name from item group by name order by name", "order_not_unique"),
        ("select max(id) as top, name from item group by name order by top", "order_not_unique"),
        ("select lower(name) as low, count(*) from item group by low order by low", "resumable"),
        ("select lower(name) as low, count(*) from item group by 1 order by 1", "resumable"),
        // What a second run may answer differently.
        ("select id, random() from item order by id", "volatile_function"),
        ("select id from item where price > random() order by id", "volatile_function"),
        ("select id, unheard_of(name) from item order by id", "unknown_function"),
        ("select id, row_number() over (order by name) from item order by id", "window_function"),
        ("select group_concat(name) from item", "order_sensitive_aggregate"),
        ("select id from item where name = (select name from item limit 1) order by id", "limit_in_subquery"),
        // Shapes without a key. Words in strings and names do not count.
        ("select id from item union select 1 order by 1", "set_operation"),
        ("values (1), (2)", "set_operation"),
        ("with w as (select 1 as id) select * from w order by id", "common_table_expression"),
        ("select * from (select id from item) s order by id", "derived_table"),
        ("select 'union', 'group by', \"name\" from item order by id", "resumable"),
        ("select id as \"count(\" from item order by id", "resumable"),
        // What the parser does not take for one query is left to the database.
        ("select 1; select 2", "not_a_plain_query"),
        ("selec", "not_a_plain_query"),
        ("", "not_a_plain_query"),
        ("insert into item values (1)", "not_a_plain_query"),
    ];
    for (sql, expected) in table {
        assert_eq!(verdict(sql, Dialect::Sqlite), expected, "{sql}");
    }
}

#[test]
fn each_dialect_has_its_own_clock_and_case() {
    for (sql, sqlite, postgres) in [
        ("select id, current_timestamp from item order by id", "volatile_function", "resumable"),
        ("select id, now() from item order by id", "resumable", "resumable"),
        ("select id, coalesce(name, '') from item order by id", "unknown_function", "resumable"),
        ("select * from \"ITEM\" order by id", "resumable", "not_a_table"),
        ("select * from item order by \"ID\"", "resumable", "order_not_unique"),
        ("select * from item order by ID", "resumable", "resumable"),
        ("select distinct on (name) id from item order by id", "not_a_plain_query", "unsupported_clause"),
        ("select * from item tablesample bernoulli (10) order by id", "not_a_plain_query", "sample"),
        ("select * from generate_series(1, 10) order by 1", "derived_table", "derived_table"),
    ] {
        let judged = (verdict(sql, Dialect::Sqlite), verdict(sql, Dialect::Postgres));
        let sqlite_ok = judged.0 == sqlite || sqlite == "not_a_plain_query";
        assert!(sqlite_ok && judged.1 == postgres, "{sql}: {judged:?}");
    }
}

/// The parser reads a chain of operators in a loop and builds a tree as deep as the chain, which would be walked, compared and
/// dropped on a small stack.
#[test]
fn depth_without_end_is_no_crash() {
    let chains = [
        format!("select {}1{}", "(".repeat(50_000), ")".repeat(50_000)),
        format!("select 1{}", "+1".repeat(100_000)),
        format!("select 1 where 1{}", " or 1".repeat(50_000)),
        format!("select 'x'{}", "||'x'".repeat(50_000)),
        format!("select {}1", "- ".repeat(100_000)),
        format!("select {}1", "not ".repeat(50_000)),
        format!("select 1{}", "::int".repeat(50_000)),
        format!("select 1{}", " union select 1".repeat(15_000)),
        format!("select 1{}", " is null".repeat(30_000)),
        format!("select x{}", "[1]".repeat(60_000)),
        format!("select x{}", " collate nocase".repeat(15_000)),
        format!("select 1 from a{}", " join a".repeat(30_000)),
        format!("select {}1{}", "case when 1 then ".repeat(10_000), " end".repeat(10_000)),
    ];
    for sql in chains {
        for dialect in [Dialect::Sqlite, Dialect::Postgres] {
            // On a stack as small as a worker's.
            let sql = sql.clone();
            let worker = std::thread::Builder::new().stack_size(1 << 20);
            let judged = worker.spawn(move || verdict(&sql, dialect)).unwrap().join().unwrap();
            assert_eq!(judged, "not_a_plain_query");
        }
    }
}

#[test]
fn a_long_plain_statement_is_still_read() {
    let columns: Vec<String> = (0..2_000).map(|n| format!("i.name as c{n}")).collect();
    let sql =
        format!("select {} from item i where id in ({}) order by i.id", columns.join(", "), "1,".repeat(9_999) + "1");
    assert_eq!(verdict(&sql, Dialect::Sqlite), "resumable");
}
