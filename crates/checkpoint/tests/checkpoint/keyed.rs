//! Keyed states: what is saved is what changed, and what is read back is what was saved.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidegate_checkpoint::{CheckpointId, KeyedState, Mode, Retention, SaveStats, Spec, Writer, Written};
use tidegate_testkit::{SeededEntropy, block_on};

use crate::world::{World, draft, name, noise};

async fn save(writer: &Writer, state: &mut KeyedState) -> (CheckpointId, SaveStats) {
    let snapshot = state.snapshot();
    let mut making = writer.begin().await.unwrap();
    making.keyed(name("totals"), snapshot).await.unwrap();
    let stats = making.stats();
    let Written::Done(id) = making.publish(draft(0, 0)).await.unwrap() else { panic!() };
    state.confirm(id.generation);
    (id, stats)
}

async fn load(world: &World, seed: u64) -> (Writer, KeyedState) {
    let (writer, recovery) = world.claim(seed, Mode::Force).await;
    let newest = recovery.newest().unwrap();
    let state = KeyedState::load(&newest.state("totals").unwrap(), newest.checkpoint.id.generation).await.unwrap();
    (writer, state)
}

fn content(state: &KeyedState) -> BTreeMap<Bytes, Bytes> {
    state.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[test]
fn one_percent_of_the_keys_changed_writes_at_most_three_percent_however_often() {
    block_on(async {
        let mut world = World::new();
        world.spec = Spec { retention: Retention { keep_last: 2, ..Retention::default() }, ..Spec::default() };
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let (dice, mut state) = (SeededEntropy::new(1), KeyedState::new());
        let keys = 20_000_u64;
        for key in 0..keys {
            state.insert(Bytes::copy_from_slice(&key.to_be_bytes()), noise(key, 100)).unwrap();
        }
        let (_, first) = save(&writer, &mut state).await;
        assert!(first.written_bytes > keys * 100);
        for round in 0..80 {
            for _ in 0..keys / 100 {
                let key = dice.below(keys).to_be_bytes();
                state.insert(Bytes::copy_from_slice(&key), noise(dice.next_u64(), 100)).unwrap();
            }
            let (_, stats) = save(&writer, &mut state).await;
            assert!(stats.written_bytes * 100 <= 3 * first.written_bytes, "round {round}: {stats:?}");
            let _ = writer.collect().await.unwrap();
        }
        let (_, read) = load(&world, 2).await;
        assert!(content(&read) == content(&state));
        let stored: u64 = world.objects().await.iter().map(|(_, bytes)| bytes).sum();
        assert!(stored < 8 * first.written_bytes, "{stored} for {}", first.written_bytes);
    });
}

#[test]
fn what_a_failed_save_took_is_in_the_next_one() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let mut state = KeyedState::new();
        state.insert("a".into(), "1".into()).unwrap();
        state.insert("gone".into(), "1".into()).unwrap();
        save(&writer, &mut state).await;
        state.insert("b".into(), "2".into()).unwrap();
        state.remove(b"gone").unwrap();
        let mut failed = writer.begin().await.unwrap();
        failed.keyed(name("totals"), state.snapshot()).await.unwrap();
        drop(failed);
        state.insert("c".into(), "3".into()).unwrap();
        save(&writer, &mut state).await;
        let (_, read) = load(&world, 2).await;
        assert_eq!(content(&read), content(&state));
        assert_eq!(read.len(), 3);
        assert_eq!(read.get(b"b").unwrap(), "2");
    });
}

#[test]
fn a_state_that_changes_while_it_is_saved_is_saved_as_it_was() {
    block_on(async {
        let world = World::new();
        let (writer, _) = world.claim(1, Mode::IfFree).await;
        let mut state = KeyedState::new();
        for key in 0..1_000_u32 {
            state.insert(Bytes::copy_from_slice(&key.to_le_bytes()), noise(key.into(), 50)).unwrap();
        }
        let (then, snapshot) = (content(&state), state.snapshot());
        for key in 0..1_000_u32 {
            state.insert(Bytes::copy_from_slice(&key.to_le_bytes()), "later".into()).unwrap();
        }
        let mut making = writer.begin().await.unwrap();
        making.keyed(name("totals"), snapshot).await.unwrap();
        let Written::Done(id) = making.publish(draft(0, 0)).await.unwrap() else { panic!() };
        state.confirm(id.generation);
        let (writer, mut read) = load(&world, 2).await;
        assert!(content(&read) == then);
        // And goes on from there, in the next term too.
        read.insert("next".into(), "1".into()).unwrap();
        let (_, stats) = save(&writer, &mut read).await;
        assert!(stats.written_bytes < 1_000, "{stats:?}");
        assert!(content(&load(&world, 3).await.1) == content(&read));
    });
}
