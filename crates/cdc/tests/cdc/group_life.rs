//! Groups come and go: what they may be, where they begin, who sees them, and what is left of them.

use std::time::Duration;

use tidegate_cdc::group::{CreatedGroup, GroupMode, GroupSpec, GroupStart};
use tidegate_testkit::block_on;
use tidegate_testkit::wait::until;

use crate::group_world::{Groups, code, offsets};
use crate::world::{name, spec};

#[test]
fn absurd_bounds_of_a_poll_are_refused_and_an_empty_wait_ends() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec::default()).await;
        let request = tidegate_cdc::group::PollRequest { member: None, limit: 1, max_bytes: 1, wait_ms: 0 };
        let bad = [
            tidegate_cdc::group::PollRequest { limit: 0, ..request.clone() },
            tidegate_cdc::group::PollRequest { limit: u32::MAX, ..request.clone() },
            tidegate_cdc::group::PollRequest { max_bytes: 0, ..request.clone() },
            tidegate_cdc::group::PollRequest { max_bytes: u64::MAX, ..request.clone() },
            tidegate_cdc::group::PollRequest { wait_ms: u64::MAX, ..request.clone() },
        ];
        for request in bad {
            let answer = groups.service.poll(&groups.world.ann, &name("s"), &name("g"), request).await;
            assert_eq!(code(answer), "invalid_field");
        }
        let (polled, ()) = tokio::join!(groups.poll_as(None, 1, 50), async {
            groups.world.clock.wait_for_waiters(2).await;
            groups.world.clock.advance(Duration::from_millis(50));
        });
        assert!(polled.unwrap().records.is_empty());
        // One record at least, however small the bound.
        groups.fill(0, 3).await;
        let request = tidegate_cdc::group::PollRequest { limit: 3, ..request };
        let one = groups.service.poll(&groups.world.ann, &name("s"), &name("g"), request).await.unwrap();
        assert_eq!(offsets(&one), [0]);
    });
}

#[test]
fn a_group_pins_where_it_begins_when_it_is_made() {
    block_on(async {
        let mut groups = Groups::over(spec(1)).await;
        groups.fill(0, 5).await;
        let latest = GroupSpec { start: GroupStart::Latest, ..GroupSpec::default() };
        let (ann, stream, group) = (groups.world.ann.clone(), name("s"), name("g"));
        assert_eq!(groups.service.create(&ann, &stream, &group, &latest).await.unwrap(), CreatedGroup::New);
        groups.fill(0, 2).await;
        groups.restart();
        assert_eq!(groups.service.create(&ann, &stream, &group, &latest).await.unwrap(), CreatedGroup::Existed);
        assert_eq!(code(groups.service.create(&ann, &stream, &group, &GroupSpec::default()).await), "group_exists");
        assert_eq!(offsets(&groups.poll(None, 10).await.unwrap()), [5, 6]);
    });
}

#[test]
fn names_with_separators_keep_their_positions_and_never_meet() {
    block_on(async {
        let mut groups = Groups::over(spec(1)).await;
        groups.fill(0, 5).await;
        let ann = groups.world.ann.clone();
        let names = ["a:b", "a/b", "a%2Fb", "a b", "😀", "a"].map(str::to_owned).into_iter().chain(["x".repeat(255)]);
        let names: Vec<String> = names.collect();
        for (position, group) in (0_u64..).zip(&names) {
            let group = name(group);
            groups.service.create(&ann, &name("s"), &group, &GroupSpec::default()).await.unwrap();
            if position > 0 {
                let request = tidegate_cdc::group::PollRequest {
                    member: None,
                    limit: u32::try_from(position % 5 + 1).unwrap(),
                    max_bytes: 9_999,
                    wait_ms: 0,
                };
                groups.service.poll(&ann, &name("s"), &group, request).await.unwrap();
                groups.service.commit(&ann, &name("s"), &group, None, [(0, position % 5)].into()).await.unwrap();
            }
        }
        groups.restart();
        let listed = groups.service.list(&ann, &name("s"), None, 100).await.unwrap();
        assert_eq!(listed.len(), names.len());
        for (position, group) in (0_u64..).zip(&names) {
            let described = listed.iter().find(|one| one.name.as_str() == group).unwrap();
            assert_eq!(described.positions[0].committed, position % 5, "{group}");
        }
        let sorted: Vec<&str> = listed.iter().map(|one| one.name.as_str()).collect();
        assert!(sorted.is_sorted());
        let after = groups.service.list(&ann, &name("s"), Some(&name(sorted[2])), 2).await.unwrap();
        assert_eq!(after.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), sorted[3..5]);
    });
}

#[test]
fn bad_specifications_are_refused_with_the_field_and_its_bounds() {
    block_on(async {
        let groups = Groups::over(spec(1)).await;
        let shared = GroupSpec { mode: GroupMode::Shared, ..GroupSpec::default() };
        let bad = [
            GroupSpec { session_ms: 99, ..GroupSpec::default() },
            GroupSpec { session_ms: u64::MAX, ..GroupSpec::default() },
            GroupSpec { ack_timeout_ms: 0, ..shared.clone() },
            GroupSpec { max_deliveries: 0, ..shared.clone() },
            GroupSpec { max_deliveries: 1_001, ..shared.clone() },
            GroupSpec { dead_letter: Some(name("s")), ..shared.clone() },
            GroupSpec { dead_letter: Some(name("t")), ..GroupSpec::default() },
        ];
        for spec in bad {
            assert_eq!(
                code(groups.service.create(&groups.world.ann, &name("s"), &name("g"), &spec).await),
                "invalid_group"
            );
        }
        let orphan = GroupSpec { dead_letter: Some(name("missing")), ..shared };
        let created = groups.service.create(&groups.world.ann, &name("s"), &name("g"), &orphan).await;
        assert_eq!(code(created), "dead_letter_not_found");
        let missing =
            groups.service.create(&groups.world.ann, &name("missing"), &name("g"), &GroupSpec::default()).await;
        assert_eq!(code(missing), "stream_not_found");
        assert_eq!(code(groups.poll(None, 1).await), "group_not_found");
        assert!(groups.service.list(&groups.world.ann, &name("s"), None, 10).await.unwrap().is_empty());
    });
}

#[test]
fn as_many_groups_and_members_as_the_settings_say_and_no_more() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec::default()).await;
        groups.world.settings.patch(&[("limits.group_max_per_stream", 2), ("limits.member_max_per_group", 2)]).unwrap();
        let ann = &groups.world.ann;
        groups.service.create(ann, &name("s"), &name("h"), &GroupSpec::default()).await.unwrap();
        let third = groups.service.create(ann, &name("s"), &name("i"), &GroupSpec::default()).await;
        assert_eq!(code(third), "group_quota_exhausted");
        let first = groups.join().await;
        groups.join().await;
        assert_eq!(code(groups.service.join(ann, &name("s"), &name("g"), "x").await), "member_quota_exhausted");
        groups.service.leave(ann, &name("s"), &name("g"), &first.member).await.unwrap();
        groups.join().await;
        assert_eq!(code(groups.service.join(ann, &name("s"), &name("g"), &"x".repeat(256)).await), "invalid_field");
        groups.service.delete(ann, &name("s"), &name("h")).await.unwrap();
        groups.service.create(ann, &name("s"), &name("i"), &GroupSpec::default()).await.unwrap();
    });
}

#[test]
fn who_waits_on_a_group_or_a_stream_that_is_removed_is_told() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec::default()).await;
        let (polled, ()) = tokio::join!(groups.poll_as(None, 1, 60_000), async {
            groups.world.clock.wait_for_waiters(2).await;
            groups.service.delete(&groups.world.ann, &name("s"), &name("g")).await.unwrap();
        });
        assert_eq!(code(polled), "group_not_found");
        assert_eq!(code(groups.service.delete(&groups.world.ann, &name("s"), &name("g")).await), "group_not_found");
        // Made again, it has nothing of the one before.
        groups.fill(0, 3).await;
        groups.service.create(&groups.world.ann, &name("s"), &name("g"), &GroupSpec::default()).await.unwrap();
        assert_eq!(offsets(&groups.poll(None, 10).await.unwrap()), [0, 1, 2]);
        let (polled, ()) = tokio::join!(groups.poll_as(None, 1, 60_000), async {
            groups.world.clock.wait_for_waiters(2).await;
            groups.world.streams.delete(&groups.world.ann, &name("s")).await.unwrap();
        });
        assert_eq!(code(polled), "stream_not_found");
        // And so has a stream that is made again.
        groups.world.create("s", spec(1)).await;
        assert_eq!(code(groups.poll(None, 10).await), "group_not_found");
        assert_eq!(code(groups.commit(None, &[(0, 3)]).await), "group_not_found");
    });
}

#[test]
fn another_tenant_sees_nothing_of_a_group() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec::default()).await;
        let eve = crate::world::principal("evil", "eve");
        assert_eq!(code(groups.service.describe(&eve, &name("s"), &name("g")).await), "stream_not_found");
        assert_eq!(code(groups.service.join(&eve, &name("s"), &name("g"), "").await), "stream_not_found");
        assert_eq!(code(groups.service.delete(&eve, &name("s"), &name("g")).await), "stream_not_found");
    });
}

#[test]
fn a_commit_that_is_answered_under_the_groups_name_is_the_one_that_is_read() {
    block_on(async {
        // A topic and a stream are one thing under one name: what is committed is found by every way to it.
        let mut groups = Groups::new(1, GroupSpec::default()).await;
        groups.fill(0, 2).await;
        groups.poll(None, 2).await.unwrap();
        groups.commit(None, &[(0, 2)]).await.unwrap();
        let here = groups.committed().await;
        groups.restart();
        assert_eq!((here, groups.committed().await), (vec![2], vec![2]));
        assert!(groups.poll(None, 9).await.unwrap().records.is_empty());
    });
}

#[test]
fn a_group_that_nobody_asks_for_anything_and_one_whose_service_is_gone_leave_no_task_behind() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec::default()).await;
        let clock = groups.world.clock.clone();
        groups.poll(None, 1).await.unwrap();
        clock.wait_for_waiters(1).await;
        clock.advance(Duration::from_secs(60));
        until("the idle group rests", async || clock.waiters() == 0).await;
        // It is read again when it is needed. One with members watches their sessions, and rests after the last one ended.
        groups.join().await;
        clock.wait_for_waiters(1).await;
        clock.advance(Duration::from_secs(10));
        until("the member is gone", async || {
            let described = groups.service.describe(&groups.world.ann, &name("s"), &name("g")).await.unwrap();
            described.members.is_empty()
        })
        .await;
        clock.wait_for_waiters(1).await;
        clock.advance(Duration::from_secs(60));
        until("the idle group rests", async || clock.waiters() == 0).await;
        groups.join().await;
        clock.wait_for_waiters(1).await;
        drop(groups);
        until("the task ended with its service", async || clock.waiters() == 0).await;
    });
}
