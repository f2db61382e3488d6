//! Cut anywhere, it goes on exactly there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use tidegate_core::port::{ChangeSource, ChangeSourceError};
use tidegate_testkit::wait::within;
use tidegate_testkit::{PostgresServer, block_on_threads};

use super::world::{Taken, World};

/// A small generator for tests: the same seed, the same numbers.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A test that fails must not wait for its writer.
pub(crate) struct StopOnDrop(pub(crate) Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

const WRITE: &str = "do $$ declare n int; begin
  for n in 1..20 loop
    insert into item select k, 'n' || n, repeat(md5(random()::text), 3)
      from (select (random() * 300)::int k) s on conflict (id) do update set name = excluded.name, body = excluded.body;
    update item set name = 'u' || n where id = (random() * 300)::int;
    delete from item where id = (random() * 300)::int;
    begin update item set id = id + 1000 where id = (random() * 300)::int; exception when unique_violation then null; end;
    if n % 3 = 0 then commit; end if;
    if random() < 0.03 then truncate item; commit; end if;
  end loop; end $$";

#[test]
fn a_reader_that_is_cut_again_and_again_loses_nothing_and_repeats_nothing() {
    block_on_threads(async {
        let Some(world) = World::fresh("a_reader_that_is_cut_again_and_again") else { return };
        let world = Arc::new(world);
        world.sql("create table item (id int primary key, name text, body text)");
        world.sql("insert into item select i, 'first', md5(i::text) from generate_series(1, 200) i");
        let stop = Arc::new(AtomicBool::new(false));
        let _stopped = StopOnDrop(Arc::clone(&stop));
        let writer = tokio::task::spawn_blocking({
            let (world, stop) = (Arc::clone(&world), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    world.sql(WRITE);
                }
                world.sql("insert into item values (-1, 'the end', null)");
            }
        });
        let mut dice = Dice(7);
        let mut taken = Taken::default();
        for cut in 0..60 {
            let source = world.source(|config| {
                config.copy_rows = 7;
                // Most transactions come in parts.
                config.transaction_max_bytes = if cut % 2 == 0 { 2_000 } else { 1 << 20 };
            });
            let mut stream = taken.open(&source).await;
            let end = taken.batches + 1 + dice.below(12) as usize;
            taken.until(&source, &mut stream, |taken| taken.batches >= end).await;
            if dice.below(2) == 0 {
                let position = taken.resume.as_ref().expect("batches").position.clone();
                source.confirm(&position).await.expect("a position of its own");
            }
        }
        stop.store(true, Ordering::SeqCst);
        let source = world.source(|_| ());
        let mut stream = taken.open(&source).await;
        taken.until(&source, &mut stream, |taken| taken.has("the end")).await;
        writer.await.expect("the writer");
        assert_eq!(taken.fold("public.item", "id"), world.rows("item", "id"));
        drop(stream);
    });
}

/// Rows of several tables with keys of all kinds are written while the copy is cut.
#[test]
fn a_first_copy_that_is_cut_again_and_again_gives_every_row_once_whatever_its_key() {
    block_on_threads(async {
        let Some(world) = World::fresh("a_first_copy_that_is_cut_again_and_again") else { return };
        let world = Arc::new(world);
        const TABLES: &[(&str, &str, &str)] = &[
            ("by_text", "text collate \"und-x-icu\"", "chr(65 + (I % 50)) || 'k' || I"),
            ("by_number", "numeric", "(I - 200) * 1.5"),
            ("by_day", "date", "date '0001-01-01' + I * 900 - 100000"),
            ("by_uuid", "uuid", "md5((I)::text)::uuid"),
            ("by_bytes", "bytea", "decode(md5((I)::text), 'hex')"),
            ("by_char", "char(8)", "to_char(I, 'FM99999')"),
        ];
        let key_of = |key: &str, i: &str| key.replace('I', i);
        for (table, kind, key) in TABLES {
            world.sql(&format!("create table {table} (id {kind} primary key, n int)"));
            world.sql(&format!("insert into {table} select {}, i from generate_series(1, 300) i", key_of(key, "i")));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let _stopped = StopOnDrop(Arc::clone(&stop));
        let writer = tokio::task::spawn_blocking({
            let (world, stop) = (Arc::clone(&world), Arc::clone(&stop));
            move || {
                let mut round = 0;
                while !stop.load(Ordering::SeqCst) {
                    round += 1;
                    let mut sql = String::from("begin; ");
                    for (table, _, key) in TABLES {
                        let (new, other) = (key_of(key, &format!("{}", 300 + round)), key_of(key, "(n + 5000)"));
                        sql.push_str(&format!(
                            "insert into {table} values ({new}, 300 + {round}); \
                             delete from {table} where n = {round}; \
                             update {table} set n = -n where n = {round} + 100; \
                             update {table} set id = {other} where n = {round} + 50 and n % 3 = 0; "
                        ));
                    }
                    sql.push_str("commit");
                    world.sql(&sql);
                }
            }
        });
        let mut dice = Dice(11);
        let mut taken = Taken::default();
        for cut in 0..40 {
            let source = world.source(|config| {
                config.copy_rows = 13;
                config.copy_workers = 1 + cut % 3;
            });
            let mut stream = taken.open(&source).await;
            let end = taken.batches + 1 + dice.below(9) as usize;
            taken.until(&source, &mut stream, |taken| taken.batches >= end).await;
        }
        stop.store(true, Ordering::SeqCst);
        writer.await.expect("the writer");
        world.sql("insert into by_uuid values (md5('end')::uuid, 424242)");
        let source = world.source(|_| ());
        let mut stream = taken.open(&source).await;
        taken.until(&source, &mut stream, |taken| taken.has("424242")).await;
        let numbers = |rows: std::collections::BTreeMap<String, serde_json::Value>| {
            let mut numbers: Vec<i64> = rows.values().filter_map(|row| row["n"].as_i64()).collect();
            numbers.sort_unstable();
            numbers
        };
        for (table, _, _) in TABLES {
            let ours = taken.fold(&format!("public.{table}"), "id");
            assert_eq!(numbers(ours), numbers(world.rows(table, "id")), "{table}");
        }
        drop(stream);
    });
}

#[test]
fn a_large_table_is_copied_in_ranges_by_several_workers() {
    block_on_threads(async {
        let Some(world) = World::fresh("a_large_table_is_copied_in_ranges") else { return };
        world.sql("create table pair (id bigint, part text collate \"C\", body text, primary key (id, part))");
        world.sql(
            "insert into pair select i / 7, 'p''' || i, repeat(md5(i::text), 12) from generate_series(1, 40000) i",
        );
        let mut taken = Taken::default();
        let mut ranges = 0;
        for cut in [3, 9, usize::MAX] {
            let source = world.source(|config| config.copy_workers = 3);
            let mut stream = taken.open(&source).await;
            taken
                .until(&source, &mut stream, |taken| {
                    let state = taken.resume.as_ref().map(|at| String::from_utf8_lossy(&at.state).into_owned());
                    let state = state.unwrap_or_default();
                    ranges = ranges.max(state.matches("\"s\":").count());
                    taken.batches >= cut || state.contains("\"done\":true")
                })
                .await;
        }
        assert_eq!(taken.records.len(), 40_000);
        assert!(ranges > 1, "one range only");
        let keys: std::collections::HashSet<_> = taken.records.iter().map(|(_, change)| change.key.clone()).collect();
        assert_eq!(keys.len(), 40_000);
    });
}

#[test]
fn a_postgresql_that_is_killed_in_the_middle_loses_nothing_and_repeats_nothing() {
    block_on_threads(async {
        let test = "a_postgresql_that_is_killed_in_the_middle";
        let Some(server) = PostgresServer::start_with_fsync(true).expect("it starts") else {
            return PostgresServer::skip(test);
        };
        // For the writers' threads; the server's keeper ends with this process.
        let server: &'static PostgresServer = Box::leak(Box::new(server));
        let url = server.fresh_database();
        let name = url.rsplit('/').next().expect("a name").to_owned();
        let world = World { server, url, name };
        world.sql("create table item (id int primary key, n int)");
        world.sql("insert into item select i, 0 from generate_series(1, 500) i");
        let mut dice = Dice(3);
        let mut taken = Taken::default();
        let source = world.source(|config| config.copy_rows = 40);
        for round in 0..6 {
            let mut stream = taken.open(&source).await;
            let end = taken.batches + 2 + dice.below(6) as usize;
            let writer = tokio::task::spawn_blocking({
                let url = world.url.clone();
                let sql = format!(
                    "do $$ begin for k in 1..400 loop update item set n = n + 1 where id = 1 + k % 90; \
                     insert into item values (1000 + {round} * 1000 + k, k); commit; end loop; end $$"
                );
                // What is written while the server dies may or may not be there afterwards.
                move || std::panic::catch_unwind(|| server.run_sql(&url, &sql)).is_ok()
            });
            taken.until(&source, &mut stream, |taken| taken.batches >= end).await;
            let victim = server.run_sql(&world.url, "select pid from pg_stat_replication limit 1");
            assert!(std::process::Command::new("kill").args(["-9", victim.trim()]).status().expect("kill").success());
            // The server ends every connection, throws its memory away and recovers from its log.
            loop {
                match within("the end", stream.next()).await.expect("an error") {
                    Ok(batch) => taken.take(&source, batch),
                    Err(error) => {
                        assert!(matches!(error, ChangeSourceError::Unavailable(_)), "{error:?}");
                        break;
                    }
                }
            }
            writer.await.expect("the panic was caught");
            if let Some(at) = &taken.resume {
                source.confirm(&at.position).await.expect("a position");
            }
        }
        let mut stream = taken.open(&source).await;
        world.sql("insert into item values (-7, -777)");
        taken.until(&source, &mut stream, |taken| taken.has("-777")).await;
        assert_eq!(taken.fold("public.item", "id"), world.rows("item", "id"));
    });
}

#[test]
fn a_reader_that_is_cut_before_its_first_batch_begins_again_with_the_slot_that_it_made() {
    block_on_threads(async {
        let Some(world) = World::fresh("a_reader_that_is_cut_before_its_first_batch") else { return };
        world.sql("create table item (id int primary key, n int)");
        world.sql("insert into item select i, i from generate_series(1, 100) i");
        let mut taken = Taken::default();
        for round in 1..4 {
            let source = world.source(|_| ());
            drop(taken.open(&source).await);
            world.sql(&format!(
                "insert into item values (100 + {round}, 0); update item set n = -n where id = {round}; \
                 delete from item where id = 10 + {round}"
            ));
        }
        let source = world.source(|_| ());
        let mut stream = taken.open(&source).await;
        world.sql("insert into item values (777, 777)");
        taken.until(&source, &mut stream, |taken| taken.has("777")).await;
        assert_eq!(taken.fold("public.item", "id"), world.rows("item", "id"));
        // The copy has all but the last.
        assert_eq!(taken.records.len(), 101);
    });
}
