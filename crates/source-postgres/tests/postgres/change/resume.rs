//! Cut anywhere, it goes on exactly there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidegate_core::port::ChangeSource;
use tidegate_testkit::block_on_threads;

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
