//! Following: readers are woken, share what they read, and hurt nobody.

use tidegate_cdc::{ReadFrom, Selection};
use tidegate_core::Failure as _;
use tidegate_testkit::{block_on, within};

use crate::world::{BOUNDS, World, document, message, name, placed, spec};

#[test]
fn an_append_wakes_whoever_follows_and_all_share_the_same_bytes() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let mut readers = Vec::new();
        for _ in 0..50 {
            let follow = world.streams.read(&world.ann, &name("s"), Selection::All, ReadFrom::Latest, true).await;
            readers.push(follow.unwrap());
        }
        for reader in &mut readers {
            assert!(reader.next(BOUNDS).await.unwrap().is_none());
        }
        world.publish("s", vec![message(1)]).await;
        let mut shared = Vec::new();
        for reader in &mut readers {
            let segment = within("the wake-up", async {
                loop {
                    if let Some(segment) = reader.next(BOUNDS).await.unwrap() {
                        break segment;
                    }
                    reader.changed().await;
                }
            })
            .await;
            shared.push((segment.ndjson(), segment.sse()));
        }
        let (ndjson, sse) = (shared[0].0.as_ptr(), shared[0].1.as_ptr());
        assert!(shared.iter().all(|(a, b)| a.as_ptr() == ndjson && b.as_ptr() == sse), "one copy for all");
    });
}

#[test]
fn who_begins_to_follow_finds_what_was_acknowledged_however_many_wait_to_be_woken() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let stream = name("s");
        let follow = async |from| {
            let read = world.streams.read(&world.ann, &stream, Selection::All, from, true).await;
            read.unwrap()
        };
        let mut waiting = Vec::new();
        // So many that a pause lies between two wake-ups.
        for _ in 0..200 {
            let mut reader = follow(ReadFrom::Latest).await;
            waiting.push(tokio::spawn(async move {
                let mut got = 0;
                while got < 20 {
                    match reader.next(BOUNDS).await.unwrap() {
                        Some(segment) => got += segment.items().len(),
                        None => reader.changed().await,
                    }
                }
            }));
        }
        for n in 0..20_u64 {
            world.publish("s", vec![message(n)]).await;
            let offset = tidegate_core::position::Offset(n);
            let mut late = follow(ReadFrom::Offset(offset)).await;
            assert!(late.next(BOUNDS).await.unwrap().is_some(), "record {n} was acknowledged");
        }
        for reader in waiting {
            within("every record", reader).await.unwrap();
        }
    });
}

#[test]
fn a_reader_that_waits_is_told_when_its_stream_is_removed() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        let read = world.streams.read(&world.ann, &name("s"), Selection::All, ReadFrom::Latest, true).await;
        let mut reader = read.unwrap();
        assert!(reader.next(BOUNDS).await.unwrap().is_none());
        world.streams.delete(&world.ann, &name("s")).await.unwrap();
        let error = within("the news", async {
            loop {
                match reader.next(BOUNDS).await {
                    Err(error) => break error,
                    Ok(Some(_)) => panic!("there was nothing"),
                    Ok(None) => reader.changed().await,
                }
            }
        })
        .await;
        assert_eq!(error.code(), "stream_not_found");
    });
}

#[test]
fn followers_at_different_places_all_get_every_record_once_in_order() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(3)).await;
        for n in 0..100_u32 {
            world.publish("s", vec![placed(n % 3, n)]).await;
        }
        let mut tasks = Vec::new();
        for begin in [ReadFrom::Earliest, ReadFrom::Earliest, ReadFrom::Latest, ReadFrom::Latest] {
            let expected = if begin == ReadFrom::Earliest { 0..200_u32 } else { 100..200 };
            let mut reader = world.streams.read(&world.ann, &name("s"), Selection::All, begin, true).await.unwrap();
            tasks.push(tokio::spawn(async move {
                let mut got = Vec::new();
                while got.len() < expected.len() {
                    match reader.next(tidegate_core::port::ReadBounds { records: 7, bytes: 4_096 }).await.unwrap() {
                        None => reader.changed().await,
                        Some(segment) => {
                            let text = String::from_utf8(segment.ndjson().to_vec()).unwrap();
                            got.extend(text.lines().map(|line| document(line)["record"]["value"].as_u64().unwrap()));
                        }
                    }
                }
                assert_eq!(got, expected.map(u64::from).collect::<Vec<_>>());
            }));
        }
        for n in 100..200_u32 {
            world.publish("s", vec![placed((n * 5) % 3, n)]).await;
            tokio::task::yield_now().await;
        }
        for task in tasks {
            within("every record", task).await.unwrap();
        }
    });
}

#[test]
fn followers_are_bounded_and_give_their_slots_back() {
    block_on(async {
        let world = World::new();
        world.create("s", spec(1)).await;
        world.settings.patch(&[("limits.tail_max_global", 2)]).unwrap();
        let stream = name("s");
        let follow = || world.streams.read(&world.ann, &stream, Selection::All, ReadFrom::Latest, true);
        let (first, second) = (follow().await.unwrap(), follow().await.unwrap());
        assert_eq!(follow().await.unwrap_err().code(), "tail_capacity_exhausted");
        drop(first);
        let third = follow().await.unwrap();
        drop((second, third));
    });
}

#[test]
fn a_follower_inside_a_gap_that_others_share_is_told_of_its_own_part_only() {
    block_on(async {
        let world = World::new();
        let retention = tidegate_core::port::Retention { records: Some(2), ..Default::default() };
        world.create("s", tidegate_cdc::StreamSpec { retention, ..spec(1) }).await;
        for n in 0..10 {
            world.publish("s", vec![message(n)]).await;
        }
        let stream = name("s");
        let at = |offset| ReadFrom::Offset(tidegate_core::position::Offset(offset));
        let mut others = world.streams.read(&world.ann, &stream, Selection::All, at(1), true).await.unwrap();
        let shared = others.next(BOUNDS).await.unwrap().unwrap();
        assert!(String::from_utf8(shared.ndjson().to_vec()).unwrap().contains(r#""from":1,"to":8"#));
        let mut inside = world.streams.read(&world.ann, &stream, Selection::All, at(5), true).await.unwrap();
        let own = inside.next(BOUNDS).await.unwrap().unwrap();
        assert!(String::from_utf8(own.ndjson().to_vec()).unwrap().contains(r#""from":5,"to":8"#));
        assert_eq!(own.items().len(), 3);
    });
}

#[test]
fn a_reader_of_all_partitions_that_comes_back_is_told_of_what_retention_took_from_the_others() {
    block_on(async {
        let world = World::new();
        let retention = tidegate_core::port::Retention { records: Some(3), ..Default::default() };
        world.create("s", tidegate_cdc::StreamSpec { retention, ..spec(2) }).await;
        world.publish("s", vec![placed(0, 0)]).await;
        for n in 1..20 {
            world.publish("s", vec![placed(1, n)]).await;
        }
        // It had read the first record and nothing of partition 1.
        let after = ReadFrom::After(tidegate_core::position::Partition(0), tidegate_core::position::Offset(0));
        let lines = world.lines("s", Selection::All, after).await;
        assert_eq!(lines[0], r#"{"gap":{"partition":1,"from":0,"to":16,"reason":"retention"}}"#);
        assert_eq!(lines.len(), 4);
    });
}
