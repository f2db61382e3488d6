//! Idempotent producers: a repetition appends nothing and gets the first answer.

use tidegate_cdc::{ProducerStamp, PublishError, Selection};
use tidegate_core::Failure as _;
use tidegate_testkit::block_on;

use crate::world::{World, message, name, placed, spec};

fn stamp(epoch: u64, seq: u64) -> Option<ProducerStamp> {
    Some(ProducerStamp { id: "p".into(), epoch, seq })
}

#[test]
fn a_repetition_appends_nothing_and_gets_the_same_places_even_after_a_restart() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(3)).await;
        let batch = || vec![placed(2, 1), placed(0, 2), placed(2, 3)];
        world.publish("s", vec![placed(2, 0)]).await;
        let first = world.try_publish("s", batch(), stamp(0, 0)).await.unwrap();
        assert!(!first.duplicate);
        let again = world.try_publish("s", batch(), stamp(0, 0)).await.unwrap();
        assert!(again.duplicate);
        assert_eq!((&again.appended, again.count), (&first.appended, 3));
        let request = tidegate_cdc::PublishRequest { records: batch(), producer: stamp(0, 0) };
        let restarted = world.restarted().publish(&world.ann, &name("s"), request).await.unwrap();
        assert!(restarted.duplicate);
        assert_eq!(restarted.appended, first.appended);
        assert_eq!(world.values("s", Selection::All).await.len(), 4);
    });
}

#[test]
fn repetitions_of_earlier_appends_are_known_too() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let mut first = Vec::new();
        for seq in 0..6 {
            first.push(world.try_publish("s", vec![message(seq)], stamp(0, seq)).await.unwrap());
        }
        for seq in 0..6 {
            let again = world.try_publish("s", vec![message(seq)], stamp(0, seq)).await.unwrap();
            assert!(again.duplicate);
            assert_eq!(again.appended, first[usize::try_from(seq).unwrap()].appended);
            assert_eq!(again.producer_seq, Some(5));
        }
        assert_eq!(world.values("s", Selection::All).await.len(), 6);
    });
}

#[test]
fn skipping_going_back_an_epoch_and_starting_one_in_the_middle_are_refused() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let refused = async |epoch, seq| world.try_publish("s", vec![message(0)], stamp(epoch, seq)).await.unwrap_err();
        assert!(matches!(refused(0, 1).await, PublishError::ProducerGap { expected: 0, received: 1 }));
        world.try_publish("s", vec![message(1)], stamp(5, 0)).await.unwrap();
        assert!(matches!(refused(5, 2).await, PublishError::ProducerGap { expected: 1, received: 2 }));
        assert!(matches!(refused(4, 1).await, PublishError::ProducerFenced { epoch: 4, current: 5 }));
        assert!(matches!(refused(6, 1).await, PublishError::ProducerEpochStart { epoch: 6, seq: 1 }));
        world.try_publish("s", vec![message(2)], stamp(6, 0)).await.unwrap();
        assert!(matches!(refused(5, 1).await, PublishError::ProducerFenced { epoch: 5, current: 6 }));
        assert_eq!(world.values("s", Selection::All).await, ["1", "2"]);
    });
}

#[test]
fn sixty_four_retries_of_one_append_at_one_time_append_it_once() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let all =
            futures::future::join_all((0..64).map(|_| world.try_publish("s", vec![message(1)], stamp(0, 0)))).await;
        assert_eq!(all.iter().filter(|one| !one.as_ref().unwrap().duplicate).count(), 1);
        assert_eq!(world.values("s", Selection::All).await, ["1"]);
    });
}

#[test]
fn a_request_over_a_bound_or_to_a_partition_that_is_not_there_appends_nothing() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(2)).await;
        world.settings.patch(&[("limits.record_max_bytes", 1_024), ("limits.batch_max_records", 3)]).unwrap();
        let big = format!("\"{}\"", "x".repeat(2_000));
        for (records, code) in [
            (Vec::new(), "empty_batch"),
            (vec![message(1), message(big)], "record_too_large"),
            ((0..4).map(message).collect(), "batch_too_large"),
            (vec![placed(0, 1), placed(2, 2)], "partition_not_found"),
        ] {
            let error = world.try_publish("s", records, None).await.unwrap_err();
            assert_eq!(error.code(), code);
        }
        let no_id = Some(ProducerStamp { id: "".into(), epoch: 0, seq: 0 });
        assert_eq!(world.try_publish("s", vec![message(1)], no_id).await.unwrap_err().code(), "malformed_producer");
        assert!(world.values("s", Selection::All).await.is_empty());
    });
}

#[test]
fn a_producer_that_was_idle_too_long_is_forgotten_and_its_entry_removed() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let by = |id: usize, seq| Some(ProducerStamp { id: format!("p{id}").into(), epoch: 0, seq });
        for id in 0..100 {
            world.try_publish("s", vec![message(id)], by(id, 0)).await.unwrap();
        }
        let idle = std::time::Duration::from_millis(world.settings.freeze().limits_producer_idle_ms() + 1);
        world.clock.advance(idle);
        let error = world.try_publish("s", vec![message(1)], by(1, 1)).await.unwrap_err();
        assert!(matches!(error, PublishError::ProducerGap { expected: 0, received: 1 }));
        assert!(!world.try_publish("s", vec![message(1)], by(1, 0)).await.unwrap().duplicate);
        for id in 1_000..1_100 {
            world.try_publish("s", vec![message(id)], by(id, 0)).await.unwrap();
        }
        let range = tidegate_core::port::MetaRange { prefix: "i\0".into(), from: "i\0".into(), limit: 10_000 };
        let left = tidegate_core::port::MetaStore::scan(world.store.as_ref(), range).await.unwrap().len();
        assert_eq!(left, 101, "the hundred new ones and the one that came back");
    });
}
