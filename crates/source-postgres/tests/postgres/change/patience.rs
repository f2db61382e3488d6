//! Time passes: nothing happens, nobody takes, or much comes at once.

use std::time::{Duration, Instant};

use futures::StreamExt;
use tidegate_core::port::{ChangeSource, CopyStatus};
use tidegate_testkit::block_on_threads;
use tidegate_testkit::wait::{until, within};

use super::world::{Taken, World};

#[test]
fn the_log_of_other_tables_is_let_go_while_nothing_happens_in_the_published_ones() {
    block_on_threads(async {
        let Some(world) = World::fresh("the_log_of_other_tables_is_let_go") else { return };
        world.sql("create table item (id int primary key); create table other (x text)");
        let source = world.source(|config| {
            config.tables = vec!["public.item".into()];
            config.idle_advance = Duration::from_millis(20);
        });
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        world.sql("insert into other select repeat('x', 1000) from generate_series(1, 2000)");
        let end = world.sql("select pg_current_wal_insert_lsn()").trim().to_owned();
        let end = tidegate_core::position::SourcePosition(end.into());
        while !taken.resume.as_ref().is_some_and(|at| source.compare(&at.position, &end).expect("positions").is_ge()) {
            let batch = within("a batch", stream.next()).await.expect("it goes on").expect("no error");
            assert_eq!(batch.changes, []);
            taken.take(&source, batch);
        }
        source.confirm(&taken.resume.as_ref().expect("a batch").position).await.expect("a position");
        let confirmed = format!(
            "select confirmed_flush_lsn >= '{}' from pg_replication_slots where slot_name = '{}'",
            end.0, world.name
        );
        until("the slot to be confirmed", async || world.sql(&confirmed) == "t\n").await;
        let status = source.status().await.expect("the server runs");
        assert!(status.lag_bytes < 1_000_000 && status.copy == CopyStatus::Done, "{status:?}");
        // The position that moved on alone is one to go on from.
        drop(stream);
        let mut stream = taken.open(&source).await;
        world.sql("insert into item values (7)");
        taken.until(&source, &mut stream, |taken| taken.has("7")).await;
    });
}

#[test]
fn a_consumer_that_takes_nothing_for_longer_than_the_senders_timeout_stays_connected() {
    block_on_threads(async {
        let Some(world) = World::fresh("a_consumer_that_takes_nothing_stays_connected") else { return };
        world.sql(&format!("alter database {} set wal_sender_timeout = '1s'", world.name));
        world.sql("create table item (id int primary key, body text)");
        let source = world.source(|_| ());
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        taken.until(&source, &mut stream, |taken| taken.batches == 1).await;
        // More than the queue and the sockets hold, so that the server has to wait for us.
        world.sql("insert into item select i, repeat(md5(i::text), 30) from generate_series(1, 30000) i");
        let pid = format!("select active_pid from pg_replication_slots where slot_name = '{}'", world.name);
        let before = world.sql(&pid);
        let since = Instant::now();
        until("three times the timeout", async || since.elapsed() > Duration::from_secs(3)).await;
        assert_eq!(world.sql(&pid), before);
        world.sql("insert into item values (-1, 'the end')");
        taken.until(&source, &mut stream, |taken| taken.has("the end")).await;
        assert_eq!(taken.records.len(), 30_001);
        assert_eq!(world.sql(&pid), before);
    });
}

#[test]
fn a_large_transaction_comes_in_parts_of_bounded_size_that_share_its_position() {
    block_on_threads(async {
        let Some(world) = World::fresh("a_large_transaction_comes_in_parts") else { return };
        world.sql("create table item (id int primary key, body text)");
        const BOUND: usize = 100_000;
        let source = world.source(|config| config.transaction_max_bytes = BOUND);
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        world.sql("insert into item select i, repeat('b', 200) from generate_series(1, 20000) i");
        let mut parts = 0;
        while taken.records.len() < 20_000 {
            let batch = within("a batch", stream.next()).await.expect("it goes on").expect("no error");
            let bytes: usize = batch.changes.iter().map(|(_, change)| change.value.len()).sum();
            assert!(bytes <= BOUND, "{bytes}");
            assert!(batch.state.len() < 500, "{:?}", batch.state);
            parts += usize::from(!batch.changes.is_empty());
            taken.take(&source, batch);
        }
        assert!(parts > 30, "{parts}");
        let first = taken.records[0].1.source.as_ref().expect("a place");
        assert!(taken.records.iter().all(|(_, change)| {
            change
                .source
                .as_ref()
                .is_some_and(|at| at.position == first.position && at.transaction == first.transaction)
        }));
        assert_eq!(taken.fold("public.item", "id"), world.rows("item", "id"));
    });
}
