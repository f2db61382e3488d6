//! Ordered groups: who holds what, where each partition is, what is committed.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_cdc::group::{GroupError, GroupSpec, GroupStart, OnGap, SeekTo};
use tidegate_core::port::Retention;
use tidegate_core::position::{GapReason, Offset};
use tidegate_testkit::wait::until;
use tidegate_testkit::{block_on, within};

use crate::group_world::{Groups, code, offsets, places, stamp};
use crate::world::{name, placed, spec};

#[test]
fn each_partition_of_an_all_partition_poll_goes_on_from_its_own_position() {
    block_on(async {
        let groups = Groups::new(3, GroupSpec::default()).await;
        groups.fill(0, 10).await;
        groups.fill(2, 4).await;
        let polled = groups.poll(None, 100).await.unwrap();
        assert_eq!(polled.delivered, BTreeMap::from([(0, 10), (2, 4)]));
        groups.commit(None, &[(0, 10)]).await.unwrap();
        // Partition 1 was never committed: its first records are below every other position and come all the same.
        groups.fill(1, 3).await;
        assert_eq!(places(&groups.poll(None, 100).await.unwrap()), [(1, 0), (1, 1), (1, 2)]);
        assert_eq!(groups.committed().await, [10, 0, 0]);
    });
}

#[test]
fn a_limit_neither_skips_nor_repeats_a_record_and_never_starves_a_partition() {
    block_on(async {
        let groups = Groups::new(4, GroupSpec::default()).await;
        for (partition, count) in [(0, 40), (1, 7), (3, 19)] {
            groups.fill(partition, count).await;
        }
        let mut seen = BTreeMap::<u32, Vec<u64>>::new();
        let mut polls = 0;
        loop {
            let polled = groups.poll(None, 5).await.unwrap();
            if polled.records.is_empty() {
                break;
            }
            assert!(polled.records.len() <= 5);
            polls += 1;
            for (partition, offset) in places(&polled) {
                seen.entry(partition).or_default().push(offset);
            }
            if polls == 4 {
                assert_eq!(seen.len(), 3, "after four polls every partition that has records gave some: {seen:?}");
            }
        }
        for (partition, count) in [(0, 40), (1, 7), (3, 19)] {
            assert_eq!(seen[&partition], (0..count).collect::<Vec<u64>>());
        }
    });
}

#[test]
fn records_of_one_transaction_that_a_limit_splits_all_come() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec::default()).await;
        // One append is one transaction: all its records share their place among the appends.
        groups.world.publish("s", (0..10).map(|value| placed(0, value)).collect()).await;
        let mut seen = Vec::new();
        for _ in 0..4 {
            let polled = groups.poll(None, 3).await.unwrap();
            seen.extend(offsets(&polled));
            groups.commit(None, &[(0, polled.delivered[&0])]).await.unwrap();
        }
        assert_eq!(seen, (0..10).collect::<Vec<u64>>());
    });
}

#[test]
fn a_commit_never_goes_back_nor_beyond_what_was_delivered_and_is_all_or_nothing() {
    block_on(async {
        let groups = Groups::new(2, GroupSpec::default()).await;
        groups.fill(0, 10).await;
        groups.fill(1, 10).await;
        assert_eq!(code(groups.commit(None, &[(0, 1)]).await), "offset_beyond_delivered");
        groups.poll(None, 8).await.unwrap();
        groups.commit(None, &[(0, 4), (1, 2)]).await.unwrap();
        groups.commit(None, &[(0, 4)]).await.unwrap();
        assert_eq!(code(groups.commit(None, &[(1, 4), (0, 3)]).await), "offset_regression");
        // The tail is no bound: what was delivered is.
        assert_eq!(code(groups.commit(None, &[(0, 4), (1, 5)]).await), "offset_beyond_delivered");
        for absurd in [11, 1 << 63, u64::MAX] {
            assert_eq!(code(groups.commit(None, &[(0, absurd)]).await), "offset_beyond_delivered");
        }
        assert_eq!(code(groups.commit(None, &[(0, 4), (2, 0)]).await), "partition_not_found");
        assert_eq!(groups.committed().await, [4, 2]);
        groups.commit(None, &[]).await.unwrap();
    });
}

#[test]
fn a_commit_is_what_was_delivered_not_the_tail() {
    block_on(async {
        let mut groups = Groups::new(1, GroupSpec::default()).await;
        groups.fill(0, 3).await;
        let polled = groups.poll(None, 100).await.unwrap();
        groups.fill(0, 5).await;
        groups.commit(None, &[(0, polled.delivered[&0])]).await.unwrap();
        groups.restart();
        assert_eq!(offsets(&groups.poll(None, 100).await.unwrap()), [3, 4, 5, 6, 7]);
    });
}

#[test]
fn a_consumer_that_commits_a_part_of_what_it_got_gets_the_rest_again_when_it_starts_anew() {
    block_on(async {
        let groups = Groups::new(2, GroupSpec::default()).await;
        groups.fill(0, 6).await;
        groups.fill(1, 6).await;
        let sink = groups.join().await;
        assert_eq!(groups.poll(Some(&sink), 12).await.unwrap().records.len(), 12);
        // It published four records of one partition and then failed.
        groups.commit(Some(&sink), &[(0, 4)]).await.unwrap();
        groups.service.leave(&groups.world.ann, &name("s"), &name("g"), &sink.member).await.unwrap();
        let sink = groups.join().await;
        let again: BTreeSet<(u32, u64)> = places(&groups.poll(Some(&sink), 12).await.unwrap()).into_iter().collect();
        assert_eq!(again, (4..6).map(|at| (0, at)).chain((0..6).map(|at| (1, at))).collect());
    });
}

#[test]
fn reading_never_commits() {
    block_on(async {
        let mut groups = Groups::new(1, GroupSpec::default()).await;
        groups.fill(0, 3).await;
        groups.poll(None, 2).await.unwrap();
        assert_eq!(groups.committed().await, [0]);
        groups.restart();
        assert_eq!(groups.committed().await, [0]);
    });
}

#[test]
fn after_a_restart_a_commit_of_what_was_delivered_before_is_granted_and_what_is_not_committed_comes_again() {
    block_on(async {
        let mut groups = Groups::new(1, GroupSpec::default()).await;
        groups.fill(0, 10).await;
        let member = groups.join().await;
        groups.poll(Some(&member), 6).await.unwrap();
        groups.commit(Some(&member), &[(0, 2)]).await.unwrap();
        groups.restart();
        assert_eq!(code(groups.commit(Some(&member), &[(0, 7)]).await), "offset_beyond_delivered");
        groups.commit(Some(&member), &[(0, 5)]).await.unwrap();
        // Whether the answer of the last poll arrived, nobody knows.
        assert_eq!(offsets(&groups.poll(Some(&member), 2).await.unwrap()), [5, 6]);
        assert_eq!(code(groups.commit(Some(&member), &[(0, 8)]).await), "offset_beyond_delivered");
    });
}

#[test]
fn two_members_never_hold_one_partition_and_an_old_generation_is_fenced() {
    block_on(async {
        let groups = Groups::new(4, GroupSpec::default()).await;
        for partition in 0..4 {
            groups.fill(partition, 10).await;
        }
        let mut ann = groups.join().await;
        assert_eq!(ann.partitions, [0, 1, 2, 3]);
        assert_eq!(groups.poll(Some(&ann), 40).await.unwrap().records.len(), 40);
        groups.commit(Some(&ann), &[(0, 3), (1, 3), (2, 3), (3, 3)]).await.unwrap();
        let ben = groups.join().await;
        assert!(ben.generation > ann.generation);
        assert_eq!(code(groups.poll(Some(&ann), 1).await), "fenced");
        assert_eq!(code(groups.commit(Some(&ann), &[(0, 5)]).await), "fenced");
        groups.heartbeat(&mut ann).await.unwrap();
        assert_eq!(ann.generation, ben.generation);
        assert_eq!((ann.partitions.len(), ben.partitions.len()), (2, 2));
        let all: BTreeSet<u32> = ann.partitions.iter().chain(&ben.partitions).copied().collect();
        assert_eq!(all.len(), 4);
        // What stayed goes on and can be committed up to what was delivered; what moved restarts at what was committed.
        assert!(groups.poll(Some(&ann), 40).await.unwrap().records.is_empty());
        let kept = ann.partitions[0];
        groups.commit(Some(&ann), &[(kept, 10)]).await.unwrap();
        let moved = ben.partitions[0];
        assert_eq!(code(groups.commit(Some(&ann), &[(moved, 5)]).await), "fenced");
        assert_eq!(code(groups.commit(Some(&ben), &[(moved, 5)]).await), "offset_beyond_delivered");
        let polled = groups.poll(Some(&ben), 40).await.unwrap();
        assert_eq!(polled.records.len(), 14);
        assert!(polled.records.iter().all(|one| one.record.offset >= Offset(3)));
        // Who is no member gets nothing where there are members.
        assert_eq!(code(groups.poll(None, 1).await), "fenced");
        assert_eq!(code(groups.commit(None, &[(0, 3)]).await), "fenced");
        let mut nobody = ben.clone();
        nobody.member = "0".repeat(32).into();
        assert_eq!(code(groups.poll(Some(&nobody), 1).await), "unknown_member");
        nobody = ben.clone();
        nobody.generation += 1;
        assert_eq!(code(groups.heartbeat(&mut nobody).await), "fenced");
    });
}

#[test]
fn a_silent_member_is_removed_after_its_session_and_a_step_of_the_wall_clock_removes_nobody() {
    block_on(async {
        let groups = Groups::new(2, GroupSpec { session_ms: 1_000, ..GroupSpec::default() }).await;
        let silent = groups.join().await;
        let mut alive = groups.join().await;
        groups.world.clock.step_wall_clock(tidegate_core::Timestamp::from_unix_ms(4_000_000_000_000));
        for _ in 0..3 {
            groups.heartbeat(&mut alive).await.unwrap();
            assert_eq!(alive.partitions.len(), 1);
            groups.advance(333);
        }
        groups.advance(1);
        // Nobody asked: the group's own timer removed it.
        within("the silent member is gone", async {
            loop {
                groups.heartbeat(&mut alive).await.unwrap();
                if alive.partitions.len() == 2 {
                    break;
                }
            }
        })
        .await;
        assert_eq!(code(groups.poll(Some(&silent), 1).await), "unknown_member");
        groups.service.leave(&groups.world.ann, &name("s"), &name("g"), &alive.member).await.unwrap();
        assert_eq!(code(groups.heartbeat(&mut alive).await), "unknown_member");
        // Without members it may be polled by anybody again, and the generation never comes back.
        assert!(groups.poll(None, 1).await.unwrap().generation > alive.generation);
    });
}

#[test]
fn members_are_known_after_a_restart_and_have_a_whole_session() {
    block_on(async {
        let mut groups = Groups::new(2, GroupSpec { session_ms: 1_000, ..GroupSpec::default() }).await;
        let mut member = groups.join().await;
        groups.advance(900);
        groups.restart();
        groups.heartbeat(&mut member).await.unwrap();
        groups.restart();
        // Read for the first time after the restart: the session runs from here.
        assert_eq!(groups.poll(Some(&member), 1).await.unwrap().generation, member.generation);
        groups.advance(999);
        groups.heartbeat(&mut member).await.unwrap();
        groups.advance(1_000);
        assert_eq!(code(groups.heartbeat(&mut member).await), "unknown_member");
    });
}

#[test]
fn a_waiting_poll_is_woken_by_a_record_and_fenced_at_once_by_a_new_generation() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec { session_ms: 1_000, ..GroupSpec::default() }).await;
        let ann = groups.join().await;
        let (polled, ()) = tokio::join!(groups.poll_as(Some(stamp(&ann)), 10, 60_000), async {
            groups.world.clock.wait_for_waiters(2).await;
            // It waits for longer than a session, and is alive for as long as it waits.
            for _ in 0..9 {
                groups.advance(350);
                until("the member was seen", async || {
                    let described = groups.service.describe(&groups.world.ann, &name("s"), &name("g")).await.unwrap();
                    described.members[0].last_seen == groups.world.clock_time()
                })
                .await;
            }
            groups.fill(0, 1).await;
        });
        assert_eq!(offsets(&polled.unwrap()), [0]);
        let (polled, later) = tokio::join!(groups.poll_as(Some(stamp(&ann)), 10, 60_000), async {
            groups.world.clock.wait_for_waiters(2).await;
            // With one partition the second member gets none: nothing changes hands, nobody is fenced.
            let later = groups.join().await;
            groups.fill(0, 1).await;
            later
        });
        assert_eq!((offsets(&polled.unwrap()), later.generation), (vec![1], ann.generation));
        let (ann, stream, group) = (&groups.world.ann, name("s"), name("g"));
        let (fenced, ()) = tokio::join!(groups.poll_as(Some(stamp(&later)), 10, 60_000), async {
            groups.world.clock.wait_for_waiters(2).await;
            let first = groups.service.describe(ann, &stream, &group).await.unwrap().members;
            let first = first.iter().find(|member| !member.partitions.is_empty()).unwrap();
            groups.service.leave(ann, &stream, &group, &first.member).await.unwrap();
        });
        assert_eq!(code(fenced), "fenced");
    });
}

#[test]
fn a_seek_fences_a_waiting_poll_and_members_go_on_after_a_heartbeat() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec::default()).await;
        groups.fill(0, 5).await;
        let mut ann = groups.join().await;
        groups.poll(Some(&ann), 10).await.unwrap();
        groups.commit(Some(&ann), &[(0, 5)]).await.unwrap();
        let (fenced, sought) = tokio::join!(groups.poll_as(Some(stamp(&ann)), 10, 60_000), async {
            groups.world.clock.wait_for_waiters(2).await;
            groups.service.seek(&groups.world.ann, &name("s"), &name("g"), SeekTo::Positions([(0, 2)].into())).await
        });
        assert_eq!(sought.unwrap(), BTreeMap::from([(0, 2)]));
        assert_eq!(code(fenced), "fenced");
        assert_eq!(code(groups.commit(Some(&ann), &[(0, 5)]).await), "fenced");
        groups.heartbeat(&mut ann).await.unwrap();
        assert_eq!(groups.committed().await, [2]);
        assert_eq!(offsets(&groups.poll(Some(&ann), 10).await.unwrap()), [2, 3, 4]);
    });
}

#[test]
fn a_seek_goes_to_either_end_or_to_a_time_and_nowhere_else() {
    block_on(async {
        let groups = Groups::new(2, GroupSpec { start: GroupStart::Latest, ..GroupSpec::default() }).await;
        groups.fill(0, 3).await;
        groups.advance(1_000);
        let later = groups.world.clock_time();
        groups.fill(0, 2).await;
        let seek = async |to| groups.service.seek(&groups.world.ann, &name("s"), &name("g"), to).await;
        assert_eq!(seek(SeekTo::Time(later)).await.unwrap(), BTreeMap::from([(0, 3), (1, 0)]));
        assert_eq!(seek(SeekTo::Latest).await.unwrap(), BTreeMap::from([(0, 5), (1, 0)]));
        assert!(groups.poll(None, 10).await.unwrap().records.is_empty());
        assert_eq!(seek(SeekTo::Earliest).await.unwrap(), BTreeMap::from([(0, 0), (1, 0)]));
        for offset in [6, 1 << 63, u64::MAX] {
            assert_eq!(code(seek(SeekTo::Positions([(0, offset)].into())).await), "offset_out_of_range");
        }
        groups.trim(0, 2).await;
        assert_eq!(code(seek(SeekTo::Positions([(0, 1)].into())).await), "offset_out_of_range");
        assert_eq!(code(seek(SeekTo::Positions([(7, 0)].into())).await), "partition_not_found");
        assert_eq!(groups.committed().await, [0, 0]);
        assert_eq!(seek(SeekTo::Positions([(0, 2)].into())).await.unwrap(), BTreeMap::from([(0, 2)]));
    });
}

#[test]
fn a_gap_is_reported_once_to_each_group_with_exact_bounds() {
    block_on(async {
        let retention = Retention { records: Some(4), ..Retention::default() };
        let groups = Groups::over(tidegate_cdc::StreamSpec { retention, ..spec(1) }).await;
        for group in ["g", "h"] {
            groups.service.create(&groups.world.ann, &name("s"), &name(group), &GroupSpec::default()).await.unwrap();
        }
        groups.fill(0, 4).await;
        assert_eq!(groups.poll(None, 2).await.unwrap().records.len(), 2);
        groups.commit(None, &[(0, 1)]).await.unwrap();
        groups.fill(0, 6).await;
        let polled = groups.poll(None, 100).await.unwrap();
        let gap = polled.gaps[0];
        assert_eq!((gap.from.0, gap.to.0, gap.reason, polled.gaps.len()), (2, 6, GapReason::Retention, 1));
        assert_eq!(offsets(&polled), [6, 7, 8, 9]);
        assert_eq!(polled.delivered[&0], 10);
        let again = groups.poll(None, 100).await.unwrap();
        assert!(again.gaps.is_empty() && again.records.is_empty());
        // Neither the first poll of a group nor another group's has an effect on what the next one is told.
        let request = tidegate_cdc::group::PollRequest { member: None, limit: 9, max_bytes: 9_999, wait_ms: 0 };
        let other = groups.service.poll(&groups.world.ann, &name("s"), &name("h"), request).await.unwrap();
        assert_eq!((other.gaps[0].from.0, other.gaps[0].to.0), (0, 6));
        // A group that begins now begins at what is there, and has lost nothing.
        groups.service.create(&groups.world.ann, &name("s"), &name("i"), &GroupSpec::default()).await.unwrap();
        let described = groups.service.describe(&groups.world.ann, &name("s"), &name("i")).await.unwrap();
        assert_eq!((described.positions[0].committed, described.positions[0].lag), (6, 4));
    });
}

#[test]
fn a_group_that_stops_at_gaps_delivers_what_is_before_and_then_refuses_until_somebody_seeks() {
    block_on(async {
        let groups = Groups::new(2, GroupSpec { on_gap: OnGap::Stop, ..GroupSpec::default() }).await;
        groups.fill(0, 10).await;
        groups.fill(1, 100).await;
        groups.trim(0, 4).await;
        for _ in 0..5 {
            let error = groups.poll(None, 2).await.unwrap_err();
            let GroupError::Gap { gap } = error else { panic!("{error:?}") };
            assert_eq!((gap.from.0, gap.to.0, gap.reason), (0, 4, GapReason::Trim));
        }
        groups
            .service
            .seek(&groups.world.ann, &name("s"), &name("g"), SeekTo::Positions([(0, 4)].into()))
            .await
            .unwrap();
        assert!(groups.poll(None, 2).await.unwrap().gaps.is_empty());
    });
}

#[test]
fn the_oldest_that_is_there_is_each_partitions_own() {
    block_on(async {
        let groups = Groups::new(2, GroupSpec::default()).await;
        groups.fill(0, 10).await;
        groups.fill(1, 3).await;
        groups.trim(0, 7).await;
        let described = groups.service.describe(&groups.world.ann, &name("s"), &name("g")).await.unwrap();
        let told: Vec<_> = described.positions.iter().map(|one| (one.earliest, one.next, one.lag)).collect();
        assert_eq!(told, [(7, 10, 3), (0, 3, 3)]);
    });
}

#[test]
fn a_poll_that_is_dropped_at_any_moment_loses_nothing() {
    block_on(async {
        let groups = Groups::new(2, GroupSpec::default()).await;
        groups.fill(0, 30).await;
        groups.fill(1, 30).await;
        let mut seen = BTreeSet::new();
        for steps in 0..60 {
            let mut poll = Box::pin(groups.poll(None, 3));
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
            seen.extend(done.iter().flat_map(places));
        }
        loop {
            let polled = groups.poll(None, 7).await.unwrap();
            if polled.records.is_empty() {
                break;
            }
            seen.extend(places(&polled));
        }
        assert_eq!(seen.len(), 60);
    });
}
