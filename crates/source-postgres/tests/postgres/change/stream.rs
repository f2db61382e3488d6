//! What a stream says of each kind of change.

use serde_json::{Value, json};
use tidegate_core::record::Operation;
use tidegate_testkit::block_on_threads;

use super::world::{Taken, World};

fn shown(taken: &Taken, from: usize) -> Vec<(Operation, Value, Value, Value)> {
    let parse = |text: Option<&str>| text.map_or(Value::Null, |text| serde_json::from_str(text).expect("JSON"));
    taken.records[from..]
        .iter()
        .filter(|(_, change)| change.operation != Operation::Message)
        .map(|(_, change)| {
            (
                change.operation,
                parse(change.key.as_deref()),
                parse(Some(&change.value)),
                parse(change.before.as_deref()),
            )
        })
        .collect()
}

#[test]
fn rows_that_are_there_come_first_and_then_every_change_in_commit_order() {
    block_on_threads(async {
        let Some(world) = World::fresh("rows_that_are_there_come_first") else { return };
        world.sql("create table item (id bigint primary key, name text)");
        world.sql("insert into item values (1, 'one'), (2, 'two')");
        let source = world.source(|_| ());
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        world.sql("insert into item values (3, 'three')");
        world.sql("begin; update item set name = 'ONE' where id = 1; delete from item where id = 2; commit");
        world.sql("update item set id = 30 where id = 3");
        taken.until(&source, &mut stream, |taken| taken.has("30")).await;
        let copied = json!({"id": 1});
        assert_eq!(
            shown(&taken, 0),
            [
                (Operation::Insert, copied, json!({"id": 1, "name": "one"}), Value::Null),
                (Operation::Insert, json!({"id": 2}), json!({"id": 2, "name": "two"}), Value::Null),
                (Operation::Insert, json!({"id": 3}), json!({"id": 3, "name": "three"}), Value::Null),
                (Operation::Update, json!({"id": 1}), json!({"id": 1, "name": "ONE"}), Value::Null),
                (Operation::Delete, json!({"id": 2}), Value::Null, json!({"id": 2})),
                (Operation::Delete, json!({"id": 3}), Value::Null, json!({"id": 3})),
                (Operation::Insert, json!({"id": 30}), json!({"id": 30, "name": "three"}), Value::Null),
            ]
        );
        let (table, last) = taken.records.last().expect("records");
        assert_eq!(&**table, "public.item");
        assert!(last.headers.as_deref().expect("headers").contains(r#""moved_from":{"id":3}"#), "{last:?}");
        let places: Vec<_> = taken.records.iter().map(|(_, change)| change.source.clone().expect("a place")).collect();
        assert_eq!(places[3].position, places[4].position, "a transaction's changes share their position");
        assert_eq!((places[3].index, places[4].index), (0, 1));
        assert!(taken.records[0].1.event_time.is_none() && taken.records[3].1.event_time.is_some());
        drop(stream);
    });
}
