//! Shared groups: each record is delivered until it is acknowledged, counted, and in the end never nowhere.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_cdc::group::{Extend, GroupError, GroupMode, GroupSpec, GroupStart, Nack, OnGap, SeekTo, Settle};
use tidegate_cdc::{NewRecord, ReadFrom, Selection};
use tidegate_core::failure::Failure as _;
use tidegate_testkit::block_on;
use tidegate_testkit::wait::until;

use crate::group_world::{Groups, code, ids, offsets, places, shared, stamp};
use crate::world::{document, keyed, name, spec};

#[test]
fn a_record_is_handed_to_one_and_comes_again_only_when_its_time_is_over() {
    block_on(async {
        let groups = Groups::new(2, GroupSpec { ack_timeout_ms: 1_000, ..shared() }).await;
        groups.fill(0, 3).await;
        groups.fill(1, 2).await;
        let first = groups.poll(None, 3).await.unwrap();
        let second = groups.poll(None, 10).await.unwrap();
        assert_eq!((first.records.len(), second.records.len()), (3, 2));
        let both: BTreeSet<_> = places(&first).into_iter().chain(places(&second)).collect();
        assert_eq!(both.len(), 5);
        assert!(groups.poll(None, 10).await.unwrap().records.is_empty());
        let settled = groups.ack(&ids(&second)).await;
        assert_eq!((settled.acked, settled.unknown.len()), (2, 0));
        groups.advance(999);
        assert!(groups.poll(None, 10).await.unwrap().records.is_empty());
        groups.advance(1);
        let again = groups.poll(None, 10).await.unwrap();
        assert_eq!(places(&again).into_iter().collect::<BTreeSet<_>>(), places(&first).into_iter().collect());
        assert!(again.records.iter().all(|one| one.delivery.as_ref().unwrap().count == 2));
        // The ids of the first time are no longer held, those of the second are.
        assert_eq!(groups.ack(&ids(&first)).await.unknown.len(), 3);
        assert_eq!(groups.ack(&ids(&again)).await.acked, 3);
        assert_eq!(groups.ack(&ids(&again)).await.unknown.len(), 3);
        assert_eq!(groups.committed().await, [3, 2]);
    });
}

#[test]
fn ids_that_were_never_given_are_reported_and_change_nothing() {
    block_on(async {
        let groups = Groups::new(1, shared()).await;
        groups.fill(0, 2).await;
        let polled = groups.poll(None, 1).await.unwrap();
        let own = ids(&polled)[0];
        let near = own.replacen("0-0", "0-1", 1);
        let bad =
            ["", "x", "0-0-1-1-0000000000000000", &near, &own.to_uppercase(), &format!("{own}0"), &"9".repeat(10_000)];
        let settled = groups.ack(&bad).await;
        let unknown = bad.iter().filter(|id| **id != own).count();
        assert_eq!(settled.unknown.len(), unknown);
        // The same id twice in one request is acknowledged once.
        let twice = groups.ack(&[own, own]).await;
        assert_eq!((twice.acked + settled.acked, twice.unknown.len() as u64), (1, 1 + settled.acked));
    });
}

#[test]
fn a_nack_comes_again_after_its_delay_and_an_extension_holds_longer() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec { ack_timeout_ms: 1_000, ..shared() }).await;
        groups.fill(0, 3).await;
        let polled = groups.poll(None, 3).await.unwrap();
        let [now, later, longer] = <[&str; 3]>::try_from(ids(&polled)).unwrap();
        let settled = groups
            .settle(Settle {
                nack: vec![Nack { id: now.into(), delay_ms: 0 }, Nack { id: later.into(), delay_ms: 500 }],
                extend: vec![Extend { id: longer.into(), ms: 5_000 }],
                ..Settle::default()
            })
            .await;
        assert_eq!((settled.nacked, settled.extended, settled.unknown.len()), (2, 1, 0));
        assert_eq!(offsets(&groups.poll(None, 9).await.unwrap()), [0]);
        groups.advance(499);
        assert!(groups.poll(None, 9).await.unwrap().records.is_empty());
        groups.advance(1);
        assert_eq!(offsets(&groups.poll(None, 9).await.unwrap()), [1]);
        groups.advance(4_499);
        let again = groups.poll(None, 9).await.unwrap();
        assert_eq!(offsets(&again), [0, 1]);
        assert_eq!(groups.ack(&[longer]).await.acked, 1);
        for (field, request) in [
            ("delay_ms", Settle { nack: vec![Nack { id: now.into(), delay_ms: u64::MAX }], ..Settle::default() }),
            ("ms", Settle { extend: vec![Extend { id: now.into(), ms: 0 }], ..Settle::default() }),
        ] {
            let answer = groups.service.settle(&groups.world.ann, &name("s"), &name("g"), request).await;
            assert!(matches!(answer, Err(GroupError::Invalid { field: told, .. }) if told == field));
        }
    });
}

#[test]
fn a_waiting_poll_gets_a_record_when_its_time_is_over() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec { ack_timeout_ms: 1_000, ..shared() }).await;
        groups.fill(0, 1).await;
        groups.poll(None, 1).await.unwrap();
        let (polled, ()) = tokio::join!(groups.poll_as(None, 1, 60_000), async {
            groups.world.clock.wait_for_waiters(2).await;
            groups.advance(1_000);
        });
        assert_eq!(polled.unwrap().records[0].delivery.as_ref().unwrap().count, 2);
    });
}

#[test]
fn deliveries_their_counts_and_their_ids_outlive_a_restart() {
    block_on(async {
        let mut groups = Groups::new(1, GroupSpec { ack_timeout_ms: 1_000, ..shared() }).await;
        groups.fill(0, 200).await;
        let polled = groups.poll(None, 150).await.unwrap();
        let held = ids(&polled);
        assert_eq!(groups.ack(&held[10..140]).await.acked, 130);
        groups.advance(400);
        groups.restart();
        assert_eq!(groups.ack(&held[..5]).await.acked, 5);
        assert_eq!(groups.ack(&held[10..20]).await.unknown.len(), 10);
        let fresh = groups.poll(None, 500).await.unwrap();
        assert_eq!(offsets(&fresh), (150..200).collect::<Vec<u64>>());
        groups.advance(599);
        assert!(groups.poll(None, 500).await.unwrap().records.is_empty());
        groups.advance(1);
        let again = groups.poll(None, 500).await.unwrap();
        assert_eq!(offsets(&again), (5..10).chain(140..150).collect::<Vec<u64>>());
        assert!(again.records.iter().all(|one| one.delivery.as_ref().unwrap().count == 2));
        assert_eq!(groups.committed().await, [5]);
        let described = groups.service.describe(&groups.world.ann, &name("s"), &name("g")).await.unwrap();
        assert_eq!((described.in_flight, described.positions[0].lag), (Some(65), 65));
    });
}

#[test]
fn a_step_of_the_wall_clock_neither_ends_nor_prolongs_a_delivery() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec { ack_timeout_ms: 1_000, ..shared() }).await;
        groups.fill(0, 1).await;
        let polled = groups.poll(None, 1).await.unwrap();
        for ms in [0, 4_000_000_000_000] {
            groups.world.clock.step_wall_clock(tidegate_core::Timestamp::from_unix_ms(ms));
            assert!(groups.poll(None, 1).await.unwrap().records.is_empty());
        }
        groups.advance(1_000);
        assert_eq!(offsets(&groups.poll(None, 1).await.unwrap()), [0]);
        assert_eq!(groups.ack(&ids(&polled)).await.unknown.len(), 1);
    });
}

#[test]
fn acknowledgements_out_of_order_are_kept_and_the_floor_is_the_first_that_is_not_done() {
    block_on(async {
        let mut groups = Groups::new(1, shared()).await;
        groups.fill(0, 300).await;
        let polled = groups.poll(None, 300).await.unwrap();
        let all = ids(&polled);
        let odd: Vec<&str> = all.iter().skip(1).step_by(2).copied().collect();
        groups.ack(&odd).await;
        assert_eq!(groups.committed().await, [0]);
        groups.restart();
        let even: Vec<&str> = all.iter().step_by(2).copied().collect();
        assert_eq!(groups.ack(&even[..50]).await.acked, 50);
        assert_eq!(groups.committed().await, [100]);
        groups.ack(&even[51..]).await;
        assert_eq!(groups.committed().await, [100]);
        groups.ack(&even[50..51]).await;
        assert_eq!(groups.committed().await, [300]);
    });
}

#[test]
fn what_is_in_flight_is_bounded_and_an_acknowledgement_makes_room() {
    block_on(async {
        let groups = Groups::new(1, shared()).await;
        groups.world.settings.patch(&[("limits.in_flight_max_per_group", 3)]).unwrap();
        groups.fill(0, 5).await;
        let polled = groups.poll(None, 10).await.unwrap();
        assert_eq!(offsets(&polled), [0, 1, 2]);
        assert!(groups.poll(None, 10).await.unwrap().records.is_empty());
        let (waited, settled) = tokio::join!(groups.poll_as(None, 10, 60_000), async {
            groups.world.clock.wait_for_waiters(2).await;
            groups.ack(&ids(&polled)[1..2]).await
        });
        assert_eq!((settled.acked, offsets(&waited.unwrap())), (1, vec![3]));
    });
}

async fn with_dead_letters(max_deliveries: u32) -> Groups {
    let groups = Groups::over(spec(1)).await;
    groups.world.create("dead", spec(2)).await;
    let group = GroupSpec { max_deliveries, ack_timeout_ms: 1_000, dead_letter: Some(name("dead")), ..shared() };
    groups.service.create(&groups.world.ann, &name("s"), &name("g"), &group).await.unwrap();
    groups
}

async fn dead(groups: &Groups) -> Vec<serde_json::Value> {
    let lines = groups.world.lines("dead", Selection::All, ReadFrom::Earliest).await;
    lines.iter().map(|line| document(line)["record"].clone()).collect()
}

#[test]
fn after_its_last_delivery_a_record_goes_to_the_dead_letters_once_with_its_origin() {
    block_on(async {
        let groups = with_dead_letters(2).await;
        let record = NewRecord {
            headers: Some(r#"{"trace":12345678901234567890123,"tidegate-origin-stream":"a lie"}"#.into()),
            event_time: Some(tidegate_core::Timestamp::from_unix_ms(5)),
            before: Some("[1.50]".into()),
            ..keyed("\"k\"", r#"{"a":1.2300}"#)
        };
        groups.world.publish("s", vec![record]).await;
        let first = groups.poll(None, 1).await.unwrap();
        groups.advance(1_000);
        let second = groups.poll(None, 1).await.unwrap();
        assert_eq!(groups.ack(&ids(&first)).await.unknown.len(), 1);
        let nack = Nack { id: ids(&second)[0].into(), delay_ms: 0 };
        assert_eq!(groups.settle(Settle { nack: vec![nack], ..Settle::default() }).await.nacked, 1);
        until("the dead letter", async || !dead(&groups).await.is_empty()).await;
        assert!(groups.poll(None, 1).await.unwrap().records.is_empty());
        groups.advance(10_000);
        assert!(groups.poll(None, 1).await.unwrap().records.is_empty());
        let letters = dead(&groups).await;
        assert_eq!(letters.len(), 1);
        let line = groups.world.lines("dead", Selection::All, ReadFrom::Earliest).await.remove(0);
        assert!(line.contains(r#""value":{"a":1.2300},"before":[1.50]"#), "{line}");
        assert!(line.contains(r#""trace":12345678901234567890123"#), "{line}");
        let headers = &letters[0]["headers"];
        assert_eq!(headers["tidegate-origin-stream"], "s");
        assert_eq!(headers["tidegate-origin-group"], "g");
        assert_eq!(
            (headers["tidegate-origin-partition"].as_u64(), headers["tidegate-origin-offset"].as_u64()),
            (Some(0), Some(0))
        );
        assert_eq!(headers["tidegate-origin-deliveries"], 2);
        assert_eq!(
            (letters[0]["key"].as_str(), letters[0]["event_time"].as_str()),
            (Some("k"), Some("1970-01-01T00:00:00.005Z"))
        );
        assert_eq!(groups.committed().await, [1]);
    });
}

#[test]
fn without_dead_letters_a_record_is_delivered_again_for_ever() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec { max_deliveries: 1, ack_timeout_ms: 1_000, ..shared() }).await;
        groups.fill(0, 1).await;
        for count in 1..20 {
            let polled = groups.poll(None, 1).await.unwrap();
            assert_eq!(polled.records[0].delivery.as_ref().unwrap().count, count);
            groups.advance(1_000);
        }
    });
}

#[test]
fn when_the_stream_of_dead_letters_is_gone_the_record_stays_until_it_is_there_again() {
    block_on(async {
        let mut groups = with_dead_letters(1).await;
        groups.fill(0, 1).await;
        groups.world.streams.delete(&groups.world.ann, &name("dead")).await.unwrap();
        groups.poll(None, 1).await.unwrap();
        groups.advance(1_000);
        for _ in 0..20 {
            assert!(groups.poll(None, 1).await.unwrap().records.is_empty());
            groups.advance(2_000);
        }
        assert_eq!(groups.committed().await, [0]);
        groups.restart();
        assert!(groups.poll(None, 1).await.unwrap().records.is_empty());
        groups.world.create("dead", spec(1)).await;
        until("the dead letter", async || {
            groups.advance(60_000);
            !dead(&groups).await.is_empty()
        })
        .await;
        until("the floor passes it", async || groups.committed().await == [1]).await;
        assert_eq!(dead(&groups).await.len(), 1);
    });
}

#[test]
fn a_record_that_always_fails_keeps_no_other_away() {
    block_on(async {
        let groups = Groups::new(1, shared()).await;
        groups.fill(0, 20).await;
        let mut acked = BTreeSet::new();
        for _ in 0..80 {
            let polled = groups.poll(None, 1).await.unwrap();
            let id = ids(&polled)[0];
            if offsets(&polled) == [0] {
                groups.settle(Settle { nack: vec![Nack { id: id.into(), delay_ms: 0 }], ..Settle::default() }).await;
            } else {
                groups.ack(&[id]).await;
                acked.extend(offsets(&polled));
            }
        }
        assert_eq!(acked.len(), 19);
    });
}

#[test]
fn a_gap_is_reported_once_to_the_group_and_what_was_out_and_is_gone_too() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec { ack_timeout_ms: 1_000, ..shared() }).await;
        groups.fill(0, 10).await;
        let polled = groups.poll(None, 4).await.unwrap();
        assert_eq!(groups.ack(&ids(&polled)[1..2]).await.acked, 1);
        groups.trim(0, 7).await;
        let fresh = groups.poll(None, 10).await.unwrap();
        assert_eq!(offsets(&fresh), [7, 8, 9]);
        assert_eq!((fresh.gaps[0].from.0, fresh.gaps[0].to.0, fresh.gaps.len()), (4, 7, 1));
        groups.advance(1_000);
        // 0, 2 and 3 were out; 1 is done, so nothing of it was lost.
        let again = groups.poll(None, 10).await.unwrap();
        let told: Vec<_> = again.gaps.iter().map(|gap| (gap.from.0, gap.to.0)).collect();
        assert_eq!((told, offsets(&again)), (vec![(0, 1), (2, 4)], vec![7, 8, 9]));
        assert!(groups.poll(None, 10).await.unwrap().gaps.is_empty());
        assert_eq!(groups.committed().await, [7]);
    });
}

#[test]
fn a_shared_group_that_stops_at_gaps_refuses_until_somebody_seeks() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec { on_gap: OnGap::Stop, ..shared() }).await;
        groups.fill(0, 10).await;
        groups.trim(0, 4).await;
        for _ in 0..3 {
            assert_eq!(code(groups.poll(None, 2).await), "gap");
        }
        groups.service.seek(&groups.world.ann, &name("s"), &name("g"), SeekTo::Earliest).await.unwrap();
        assert_eq!(offsets(&groups.poll(None, 2).await.unwrap()), [4, 5]);
    });
}

#[test]
fn a_seek_forgets_what_was_out_of_the_partitions_that_move_and_nothing_else() {
    block_on(async {
        let groups = Groups::new(2, shared()).await;
        groups.fill(0, 3).await;
        groups.fill(1, 3).await;
        let polled = groups.poll(None, 10).await.unwrap();
        groups
            .service
            .seek(&groups.world.ann, &name("s"), &name("g"), SeekTo::Positions([(0, 1)].into()))
            .await
            .unwrap();
        let settled = groups.ack(&ids(&polled)).await;
        assert_eq!((settled.acked, settled.unknown.len()), (3, 3));
        let again = groups.poll(None, 10).await.unwrap();
        assert_eq!(places(&again), [(0, 1), (0, 2)]);
        assert!(again.records.iter().all(|one| one.delivery.as_ref().unwrap().count == 1));
        // What was given before the seek is not what was given after it, although record and count are the same.
        assert_eq!(groups.ack(&ids(&polled)).await.acked, 0);
        assert_eq!(groups.ack(&ids(&again)).await.acked, 2);
        assert_eq!(groups.committed().await, [3, 3]);
    });
}

#[test]
fn each_mode_refuses_what_belongs_to_the_other() {
    block_on(async {
        let groups = Groups::new(1, shared()).await;
        assert_eq!(code(groups.commit(None, &[(0, 0)]).await), "wrong_mode");
        groups.service.create(&groups.world.ann, &name("s"), &name("o"), &GroupSpec::default()).await.unwrap();
        let error =
            groups.service.settle(&groups.world.ann, &name("s"), &name("o"), Settle::default()).await.unwrap_err();
        assert!(matches!(error, GroupError::WrongMode { mode: GroupMode::Ordered }));
        assert_eq!(error.code(), "wrong_mode");
        // A member may join, and is not needed.
        let mut member = groups.join().await;
        groups.fill(0, 2).await;
        assert_eq!(groups.poll(Some(&member), 1).await.unwrap().records.len(), 1);
        assert_eq!(groups.poll(None, 1).await.unwrap().records.len(), 1);
        groups.heartbeat(&mut member).await.unwrap();
        groups.advance(10_000);
        assert_eq!(code(groups.poll_as(Some(stamp(&member)), 1, 0).await), "unknown_member");
    });
}

#[test]
fn a_poll_that_is_dropped_at_any_moment_counts_no_delivery_and_loses_nothing() {
    block_on(async {
        let groups = Groups::new(1, shared()).await;
        groups.fill(0, 40).await;
        let mut given = BTreeMap::new();
        for steps in 0..80 {
            let mut poll = Box::pin(groups.poll(None, 2));
            let mut done = None;
            for _ in 0..steps % 20 {
                match futures::poll!(&mut poll) {
                    std::task::Poll::Ready(polled) => {
                        done = Some(polled.unwrap());
                        break;
                    }
                    std::task::Poll::Pending => tokio::task::yield_now().await,
                }
            }
            drop(poll);
            for one in done.iter().flat_map(|polled| &polled.records) {
                *given.entry(one.record.offset.0).or_insert(0) += one.delivery.as_ref().unwrap().count;
            }
        }
        for _ in 0..40 {
            for one in groups.poll(None, 2).await.unwrap().records {
                *given.entry(one.record.offset.0).or_insert(0) += one.delivery.as_ref().unwrap().count;
            }
        }
        // Each came once, although its time is not over, and was counted once.
        assert_eq!(given, (0..40).map(|offset| (offset, 1)).collect());
    });
}

#[test]
fn a_shared_group_can_begin_at_the_tail() {
    block_on(async {
        let groups = Groups::over(spec(1)).await;
        groups.fill(0, 5).await;
        let latest = GroupSpec { start: GroupStart::Latest, ..shared() };
        groups.service.create(&groups.world.ann, &name("s"), &name("g"), &latest).await.unwrap();
        groups.fill(0, 1).await;
        assert_eq!(offsets(&groups.poll(None, 9).await.unwrap()), [5]);
    });
}
