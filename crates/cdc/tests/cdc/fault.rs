//! Streams over a store that fails: what was refused is not there, what may have happened is told so, and a producer's retry
//! settles it.

use std::time::Duration;

use tidegate_cdc::{ProducerStamp, PublishError, PublishRequest, Readiness, Selection, StreamService};
use tidegate_core::Failure as _;
use tidegate_core::port::MetaStore as _;
use tidegate_testkit::{Call, Fault, FaultyStore, block_on, within};

use crate::world::{World, message, name, service, spec};

fn request(value: u64, seq: u64) -> PublishRequest {
    PublishRequest { records: vec![message(value)], producer: Some(ProducerStamp { id: "p".into(), epoch: 0, seq }) }
}

async fn until_it_is_there(streams: &StreamService, world: &World, seq: u64) -> u64 {
    for attempt in 1..1_000 {
        match streams.publish(&world.ann, &name("s"), request(seq, seq)).await {
            Ok(_) => return attempt,
            Err(PublishError::Stream(error)) => {
                assert!(error.code().starts_with("storage_"), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("a thousand attempts");
}

#[test]
fn a_producer_that_retries_through_every_kind_of_fault_appends_each_record_once_in_order() {
    block_on(async {
        for (seed, fault) in [
            Fault::Unavailable,
            Fault::Full,
            Fault::Indeterminate { applied: false },
            Fault::Indeterminate { applied: true },
        ]
        .into_iter()
        .enumerate()
        {
            let world = World::new();
            world.create("s", spec(1)).await;
            let faulty = FaultyStore::new(std::sync::Arc::clone(&world.store), seed as u64);
            let streams = service(&world.clock, &faulty, &world.settings);
            faulty.plan().fail_with_probability(0.4, fault);
            faulty.plan().fail_reads_with_probability(0.2);
            let mut attempts = 0;
            for seq in 0..200 {
                attempts += until_it_is_there(&streams, &world, seq).await;
            }
            assert!(attempts > 220, "faults were injected: {attempts}");
            let expected: Vec<String> = (0..200).map(|n: u64| n.to_string()).collect();
            assert_eq!(world.values("s", Selection::All).await, expected, "{fault:?}");
        }
    });
}

#[test]
fn what_certainly_did_not_happen_and_what_may_have_have_different_codes() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let faulty = FaultyStore::new(std::sync::Arc::clone(&world.store), 1);
        let streams = service(&world.clock, &faulty, &world.settings);
        // Known from here on, so that the next fault meets the append.
        streams.describe(&world.ann, &name("s")).await.unwrap();
        for (fault, code) in [
            (Fault::Unavailable, "storage_unavailable"),
            (Fault::Full, "storage_full"),
            (Fault::Indeterminate { applied: true }, "storage_indeterminate"),
        ] {
            faulty.plan().fail_next_of(tidegate_testkit::Call::Append, 1, fault);
            let request = PublishRequest { records: vec![message(1)], producer: None };
            let error = streams.publish(&world.ann, &name("s"), request).await.unwrap_err();
            assert_eq!(error.code(), code);
            assert_eq!(error.kind(), tidegate_core::ErrorKind::Unavailable);
        }
        assert_eq!(world.values("s", Selection::All).await, ["1"], "only the one that may have happened did");
    });
}

#[test]
fn storage_is_ready_while_its_writer_answers_and_nothing_is_written_to_find_out() {
    block_on(async {
        let world = World::new();
        let faulty = FaultyStore::new(std::sync::Arc::clone(&world.store), 1);
        let streams = service(&world.clock, &faulty, &world.settings);
        let changes = world.store.watch("".into()).await.unwrap();
        assert_eq!(streams.ready().await.unwrap(), Readiness::Writing);
        // Reads go on; only the writer does not answer.
        for (fault, told) in [
            (Fault::Unavailable, Err("storage_unavailable")),
            (Fault::Indeterminate { applied: true }, Err("storage_unavailable")),
            (Fault::Full, Ok(Readiness::Full)),
        ] {
            faulty.plan().fail_next_of(Call::Swap, 1, fault);
            assert_eq!(streams.ready().await.map_err(|error| error.code()), told, "{fault:?}");
        }
        for stuck in [Call::Swap, Call::Get] {
            faulty.plan().hold(stuck);
            let mut ready = Box::pin(streams.ready());
            assert!(futures::poll!(&mut ready).is_pending());
            world.clock.advance(Duration::from_millis(1_999));
            assert!(futures::poll!(&mut ready).is_pending());
            world.clock.advance(Duration::from_millis(1));
            assert_eq!(within("the answer", ready).await.unwrap_err().code(), "storage_unavailable");
            faulty.plan().resume();
        }
        assert_eq!(streams.ready().await.unwrap(), Readiness::Writing);
        assert!(futures::FutureExt::now_or_never(futures::StreamExt::into_future(changes)).is_none());
    });
}
