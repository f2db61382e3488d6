//! Streams by name: creation, removal, tenants.

use tidegate_cdc::{CreateError, CreatedStream, ReadFrom, Selection, StreamError, StreamSpec};
use tidegate_core::Failure as _;
use tidegate_core::port::Retention;
use tidegate_testkit::block_on;

use crate::world::{BOUNDS, World, message, name, principal, spec};

#[test]
fn the_same_stream_again_exists_and_a_different_one_is_refused_with_what_differs() {
    block_on(async {
        let world = World::new();
        let create = |spec: StreamSpec| {
            let (streams, ann) = (world.streams.clone(), world.ann.clone());
            async move { streams.create(&ann, &name("s"), &spec).await }
        };
        assert_eq!(create(spec(4)).await.unwrap(), CreatedStream::New);
        assert_eq!(create(spec(4)).await.unwrap(), CreatedStream::Existed);
        match create(spec(5)).await {
            Err(CreateError::Exists { difference, .. }) => assert!(difference.contains("partitions is 4, not 5")),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn absurd_specifications_are_refused_and_nothing_is_made() {
    block_on(async {
        let world = World::new();
        let zero = StreamSpec { retention: Retention { records: Some(0), ..Retention::default() }, ..spec(1) };
        let long = StreamSpec { description: Some("x".repeat(5_000).into()), ..spec(1) };
        for (bad, code) in [
            (spec(0), "too_many_partitions"),
            (spec(u32::MAX), "too_many_partitions"),
            (zero, "invalid_field"),
            (long, "description_too_long"),
        ] {
            let error = world.streams.create(&world.ann, &name("s"), &bad).await.unwrap_err();
            assert_eq!(error.code(), code);
            assert!(matches!(world.streams.describe(&world.ann, &name("s")).await, Err(StreamError::NotFound { .. })));
        }
    });
}

#[test]
fn names_with_separators_signs_and_255_bytes_round_trip_and_survive_a_restart() {
    block_on(async {
        let world = World::new();
        let names = ["a:b", "a/b", "a%2Fb", "a", "🌊", &"x".repeat(255), " ", "a b?c#d"];
        for text in names {
            world.create(text, spec(1)).await;
            world.publish(text, vec![message(format!("{text:?}"))]).await;
        }
        let again = world.restarted();
        let listed = again.list(&world.ann, None, 100).await.unwrap();
        let mut expected: Vec<&str> = names.to_vec();
        expected.sort_unstable();
        assert_eq!(listed.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), expected);
        for text in names {
            let mut reader =
                again.read(&world.ann, &name(text), Selection::All, ReadFrom::Earliest, false).await.unwrap();
            let segment = reader.next(BOUNDS).await.unwrap().unwrap();
            assert_eq!(segment.items().len(), 1, "{text}");
        }
        let page = again.list(&world.ann, Some(&name(expected[2])), 2).await.unwrap();
        assert_eq!(page.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), expected[3..5]);
    });
}

#[test]
fn two_tenants_streams_of_one_name_never_meet() {
    block_on(async {
        let world = World::new();
        let bob = principal("umbrella", "bob");
        world.create("s", spec(1)).await;
        world.publish("s", vec![message(1)]).await;
        assert!(matches!(world.streams.describe(&bob, &name("s")).await, Err(StreamError::NotFound { .. })));
        world.streams.create(&bob, &name("s"), &spec(2)).await.unwrap();
        assert_eq!(world.streams.describe(&bob, &name("s")).await.unwrap().partitions[0].next.0, 0);
        world.streams.delete(&bob, &name("s")).await.unwrap();
        assert_eq!(world.values("s", Selection::All).await, ["1"]);
    });
}

#[test]
fn a_stream_made_again_has_nothing_of_the_old_one() {
    block_on(async {
        let world = World::new();
        let stamp = |seq| Some(tidegate_cdc::ProducerStamp { id: "p".into(), epoch: 3, seq });
        world.create("s", spec(1)).await;
        world.try_publish("s", vec![message(1)], stamp(0)).await.unwrap();
        world.streams.delete(&world.ann, &name("s")).await.unwrap();
        assert!(matches!(world.streams.delete(&world.ann, &name("s")).await, Err(StreamError::NotFound { .. })));
        world.create("s", spec(1)).await;
        assert!(world.values("s", Selection::All).await.is_empty());
        // The producer is unknown again: its sequence starts anew.
        assert!(!world.try_publish("s", vec![message(2)], stamp(0)).await.unwrap().duplicate);
        assert_eq!(world.values("s", Selection::All).await, ["2"]);
    });
}

#[test]
fn of_creations_at_one_moment_one_wins_and_none_touches_the_winners_records() {
    block_on(async {
        for round in 0..50_u32 {
            let world = World::new();
            let stream = name("s");
            let creations = (1..=8_u32).map(|partitions| {
                let (world, stream) = (&world, &stream);
                async move {
                    let made = world.streams.create(&world.ann, stream, &spec((round + partitions) % 8 + 1)).await;
                    if !matches!(made, Ok(CreatedStream::New)) {
                        return 0;
                    }
                    world.publish("s", vec![message(1)]).await;
                    (round + partitions) % 8 + 1
                }
            });
            let won: u32 = futures::future::join_all(creations).await.into_iter().sum();
            let described = world.streams.describe(&world.ann, &stream).await.unwrap();
            assert_eq!((described.spec.partitions, described.partitions.len()), (won, won as usize));
            assert_eq!(world.values("s", Selection::All).await, ["1"]);
        }
    });
}
