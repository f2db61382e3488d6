//! Groups over a store that fails, and two processes over one store: nothing is lost, nothing goes back, nothing that was
//! acknowledged comes again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_cdc::group::{
    CreatedGroup, GroupError, GroupService, GroupSpec, Joined, MemberStamp, Nack, PollRequest, Polled, Settle, Settled,
};
use tidegate_cdc::{ReadFrom, Selection};
use tidegate_core::failure::Failure as _;
use tidegate_core::principal::Principal;
use tidegate_testkit::{Call, Fault, FaultPlan, FaultyStore, MemoryStore, block_on};

use crate::group_world::{Groups, code, shared, stamp, streams_over};
use crate::world::{document, name, spec};

const FAULTS: [Fault; 4] =
    [Fault::Unavailable, Fault::Full, Fault::Indeterminate { applied: false }, Fault::Indeterminate { applied: true }];

/// A group's client that tries again whatever storage says.
struct Client {
    service: GroupService,
    ann: Principal,
}

impl Client {
    fn over(groups: &Groups, store: &Arc<FaultyStore<MemoryStore>>, seed: u64) -> Self {
        let service = GroupService::new(streams_over(&groups.world.clock, store, seed));
        Self { service, ann: groups.world.ann.clone() }
    }

    async fn again<T>(&self, mut ask: impl AsyncFnMut() -> Result<T, GroupError>) -> Result<T, GroupError> {
        for _ in 0..1_000 {
            match ask().await {
                Err(error) if error.code().starts_with("storage_") || error.code() == "contended" => {}
                answer => return answer,
            }
        }
        panic!("a thousand attempts");
    }

    async fn join(&self) -> Joined {
        self.again(async || self.service.join(&self.ann, &name("s"), &name("g"), "c").await).await.unwrap()
    }

    async fn poll(&self, member: Option<MemberStamp>, limit: u32) -> Result<Polled, GroupError> {
        let request = PollRequest { member, limit, max_bytes: 1024 * 1024, wait_ms: 0 };
        self.again(async || self.service.poll(&self.ann, &name("s"), &name("g"), request.clone()).await).await
    }

    async fn commit(&self, member: Option<MemberStamp>, positions: BTreeMap<u32, u64>) -> Result<(), GroupError> {
        let (stream, group) = (name("s"), name("g"));
        let commit =
            async || self.service.commit(&self.ann, &stream, &group, member.clone(), positions.clone()).await.map(drop);
        self.again(commit).await
    }

    async fn settle(&self, request: Settle) -> Result<Settled, GroupError> {
        self.service.settle(&self.ann, &name("s"), &name("g"), request).await
    }
}

fn chances(plan: &FaultPlan, fault: Fault) {
    plan.fail_with_probability(0.25, fault);
    plan.fail_reads_with_probability(0.1);
}

#[test]
fn an_ordered_consumer_that_retries_through_every_kind_of_fault_misses_nothing_and_never_goes_back() {
    block_on(async {
        for (seed, fault) in (0_u64..).zip(FAULTS.into_iter().cycle()).take(24) {
            let groups = Groups::new(2, GroupSpec::default()).await;
            groups.fill(0, 40).await;
            groups.fill(1, 25).await;
            let faulty = FaultyStore::new(Arc::clone(&groups.world.store), seed);
            let client = Client::over(&groups, &faulty, seed);
            chances(faulty.plan(), fault);
            let member = client.join().await;
            let mut next = BTreeMap::from([(0_u32, 0_u64), (1, 0)]);
            let mut committed = BTreeMap::new();
            for round in 0.. {
                assert!(round < 2_000, "no end in sight: {next:?}");
                // A lost answer to a join leaves a member that says nothing more: it goes with its session.
                groups.advance(1_000);
                let mut member = member.clone();
                let beat =
                    async || client.service.heartbeat(&client.ann, &name("s"), &name("g"), &member.member, 1).await;
                member.generation = client.again(beat).await.unwrap().generation;
                let polled = client.poll(Some(stamp(&member)), 7).await.unwrap();
                for one in &polled.records {
                    let (partition, offset) = (one.record.partition.0, one.record.offset.0);
                    let next = next.get_mut(&partition).unwrap();
                    assert!(offset <= *next, "{fault:?}: record {next} of partition {partition} was skipped");
                    *next = (*next).max(offset + 1);
                }
                let positions: BTreeMap<u32, u64> = polled.delivered.clone();
                for (partition, position) in &positions {
                    assert!(*position >= committed.get(partition).copied().unwrap_or(0), "went back");
                }
                match client.commit(Some(stamp(&member)), positions.clone()).await {
                    Ok(()) => committed.extend(positions),
                    Err(error) => assert_eq!(error.code(), "fenced", "{fault:?}: {error}"),
                }
                if committed == BTreeMap::from([(0, 40), (1, 25)]) {
                    break;
                }
            }
            faulty.plan().heal();
            assert_eq!(groups.committed().await, [40, 25]);
        }
    });
}

#[test]
fn an_answered_commit_is_there_after_any_fault_and_a_restart() {
    block_on(async {
        for fault in FAULTS {
            // The fault hits each changing call of the story in turn.
            for at in 0..12 {
                let groups = Groups::new(1, GroupSpec::default()).await;
                groups.fill(0, 10).await;
                let faulty = FaultyStore::new(Arc::clone(&groups.world.store), 1);
                let client = Client::over(&groups, &faulty, 1);
                let mut answered = 0;
                for step in 0..10 {
                    if step == at {
                        faulty.plan().fail_next_of(Call::Swap, 1, fault);
                    }
                    let request = PollRequest { member: None, limit: 2, max_bytes: 999, wait_ms: 0 };
                    let (ann, stream, group) = (&client.ann, name("s"), name("g"));
                    let Ok(polled) = client.service.poll(ann, &stream, &group, request).await else { continue };
                    let Some(&to) = polled.delivered.get(&0) else { continue };
                    if client.service.commit(ann, &stream, &group, None, [(0, to)].into()).await.is_ok() {
                        answered = to;
                    }
                    // Somebody else reads what is stored, as after a kill.
                    let stored = Client::over(&groups, &FaultyStore::new(Arc::clone(&groups.world.store), 2), 2);
                    let described = stored.service.describe(ann, &stream, &group).await.unwrap();
                    let committed = described.positions[0].committed;
                    assert!(committed >= answered, "{fault:?} at {at}: {answered} was answered, {committed} is there");
                    assert!(committed <= to);
                }
            }
        }
    });
}

#[test]
fn a_shared_group_loses_nothing_and_delivers_nothing_acknowledged_again_through_every_kind_of_fault() {
    block_on(async {
        for (seed, fault) in (0_u64..).zip(FAULTS.into_iter().cycle()).take(16) {
            let groups = Groups::over(spec(2)).await;
            groups.world.create("dead", spec(1)).await;
            let group =
                GroupSpec { max_deliveries: 2, ack_timeout_ms: 1_000, dead_letter: Some(name("dead")), ..shared() };
            groups.service.create(&groups.world.ann, &name("s"), &name("g"), &group).await.unwrap();
            groups.fill(0, 30).await;
            groups.fill(1, 30).await;
            let faulty = FaultyStore::new(Arc::clone(&groups.world.store), seed);
            let client = Client::over(&groups, &faulty, seed);
            chances(faulty.plan(), fault);
            let mut acked = BTreeSet::new();
            let mut rounds = 0;
            while groups.committed().await != [30, 30] {
                rounds += 1;
                assert!(rounds < 5_000, "{fault:?}: no end in sight: {}", acked.len());
                groups.advance(300);
                let polled = client.poll(None, 5).await.unwrap();
                for one in &polled.records {
                    let place = (one.record.partition.0, one.record.offset.0);
                    let delivery = one.delivery.as_ref().unwrap();
                    assert!(!acked.contains(&place), "{fault:?}: {place:?} was acknowledged and came again");
                    let id: Box<str> = delivery.id.as_str().into();
                    // Every seventh record always fails.
                    let request = if place.1 % 7 == 0 {
                        Settle { nack: vec![Nack { id, delay_ms: 10 }], ..Settle::default() }
                    } else {
                        Settle { ack: vec![id], ..Settle::default() }
                    };
                    match client.settle(request).await {
                        Ok(settled) if settled.acked == 1 => assert!(acked.insert(place), "acknowledged twice"),
                        Ok(_) => {}
                        Err(error) => assert!(error.code().starts_with("storage_"), "{error}"),
                    }
                }
            }
            let lines = groups.world.lines("dead", Selection::All, ReadFrom::Earliest).await;
            let letters: Vec<(u64, u64)> = lines
                .iter()
                .map(|line| {
                    let headers = document(line)["record"]["headers"].clone();
                    let at = |field: &str| headers[field].as_u64().unwrap();
                    (at("tidegate-origin-partition"), at("tidegate-origin-offset"))
                })
                .collect();
            let once: BTreeSet<_> = letters.iter().copied().collect();
            assert_eq!(once.len(), letters.len(), "{fault:?}: a dead letter is there twice");
            let failing = (0..2).flat_map(|partition| (0..30).step_by(7).map(move |offset| (partition, offset)));
            for place in failing {
                assert!(once.contains(&place), "{fault:?}: {place:?} went nowhere");
            }
            assert!(!acked.iter().any(|(partition, offset)| once.contains(&(u64::from(*partition), *offset))));
        }
    });
}

#[test]
fn what_may_have_happened_is_told_so_and_what_did_not_too() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec::default()).await;
        groups.fill(0, 4).await;
        let faulty = FaultyStore::new(Arc::clone(&groups.world.store), 1);
        let client = Client::over(&groups, &faulty, 1);
        client.poll(None, 4).await.unwrap();
        let (ann, stream, group) = (&client.ann, name("s"), name("g"));
        let commit = async |to: u64| client.service.commit(ann, &stream, &group, None, [(0, to)].into()).await;
        for (fault, told, there) in [
            (Fault::Unavailable, "storage_unavailable", 0),
            (Fault::Full, "storage_full", 0),
            (Fault::Indeterminate { applied: true }, "storage_indeterminate", 1),
        ] {
            faulty.plan().fail_next_of(Call::Swap, 1, fault);
            assert_eq!(code(commit(1).await), told);
            assert_eq!(groups.committed().await, [there]);
        }
        // The same again is granted, whatever became of the first.
        commit(1).await.unwrap();
        assert_eq!(commit(4).await.unwrap(), BTreeMap::from([(0, 4)]));
    });
}

#[test]
fn a_group_is_made_and_removed_through_every_kind_of_fault() {
    block_on(async {
        for fault in FAULTS {
            for at in 0..4 {
                let groups = Groups::over(spec(1)).await;
                groups.fill(0, 2).await;
                let faulty = FaultyStore::new(Arc::clone(&groups.world.store), 1);
                let client = Client::over(&groups, &faulty, 1);
                let (ann, stream, group) = (&client.ann, name("s"), name("g"));
                let spec = GroupSpec::default();
                let create =
                    async || client.again(async || client.service.create(ann, &stream, &group, &spec).await).await;
                faulty.plan().fail_next_of(Call::Swap, at, fault);
                create().await.unwrap();
                assert_eq!(create().await.unwrap(), CreatedGroup::Existed);
                client.poll(None, 2).await.unwrap();
                client.commit(None, [(0, 2)].into()).await.unwrap();
                faulty.plan().fail_next_of(Call::Swap, at, fault);
                // What may have happened can have happened: then the second attempt finds nothing.
                let deleted = client.again(async || client.service.delete(ann, &stream, &group).await).await;
                assert!(deleted.is_ok() || code(deleted) == "group_not_found");
                assert_eq!(code(client.poll(None, 1).await), "group_not_found");
                assert_eq!(create().await.unwrap(), CreatedGroup::New);
                assert_eq!(groups.committed().await, [0]);
            }
        }
    });
}

#[test]
fn two_processes_over_one_store_never_both_commit_a_partition() {
    block_on(async {
        let groups = Groups::new(2, GroupSpec::default()).await;
        groups.fill(0, 10).await;
        groups.fill(1, 10).await;
        let other = groups.beside(1234);
        let ann = groups.join().await;
        groups.poll(Some(&ann), 20).await.unwrap();
        groups.commit(Some(&ann), &[(0, 1), (1, 1)]).await.unwrap();
        // The other process gives a partition to another member; this one does not know of it yet.
        let ben = other.join(&groups.world.ann, &name("s"), &name("g"), "ben").await.unwrap();
        let moved = ben.partitions[0];
        let kept = 1 - moved;
        assert_eq!(code(groups.commit(Some(&ann), &[(moved, 5)]).await), "fenced");
        assert_eq!(code(groups.commit(Some(&ann), &[(kept, 5)]).await), "fenced");
        let mut ann = ann;
        groups.heartbeat(&mut ann).await.unwrap();
        assert_eq!(ann.generation, ben.generation);
        groups.commit(Some(&ann), &[(kept, 5)]).await.unwrap();
        let request = PollRequest { member: Some(stamp(&ben)), limit: 20, max_bytes: 9_999, wait_ms: 0 };
        other.poll(&groups.world.ann, &name("s"), &name("g"), request).await.unwrap();
        let (stream, group) = (name("s"), name("g"));
        other.commit(&groups.world.ann, &stream, &group, Some(stamp(&ben)), [(moved, 7)].into()).await.unwrap();
        let committed = groups.committed().await;
        // What was committed here is known there, and the other way round.
        let described = other.describe(&groups.world.ann, &stream, &group).await.unwrap();
        let there: Vec<u64> = described.positions.iter().map(|one| one.committed).collect();
        assert_eq!(there[moved as usize], 7);
        assert!(committed[kept as usize] == 5);
    });
}

#[test]
fn commits_of_two_processes_at_the_same_time_never_go_back() {
    block_on(async {
        let groups = Groups::new(1, GroupSpec::default()).await;
        groups.fill(0, 50).await;
        let other = groups.beside(77);
        let (ann, stream, group) = (&groups.world.ann, name("s"), name("g"));
        for service in [&groups.service, &other] {
            let request = PollRequest { member: None, limit: 50, max_bytes: 99_999, wait_ms: 0 };
            service.poll(ann, &stream, &group, request).await.unwrap();
        }
        let mut highest = 0;
        for round in 0..50_u64 {
            let (one, two) = (round, (round * 7) % 50);
            let (first, second) = tokio::join!(
                groups.service.commit(ann, &stream, &group, None, [(0, one)].into()),
                other.commit(ann, &stream, &group, None, [(0, two)].into()),
            );
            for (answer, to) in [(first, one), (second, two)] {
                match answer {
                    Ok(_) => highest = highest.max(to),
                    Err(error) => assert_eq!(error.code(), "offset_regression", "{error}"),
                }
            }
            let fresh = groups.beside(1_000 + round).describe(ann, &stream, &group).await.unwrap();
            assert_eq!(fresh.positions[0].committed, highest);
        }
    });
}

#[test]
fn two_processes_over_one_store_never_acknowledge_a_delivery_twice() {
    block_on(async {
        let groups = Groups::new(1, shared()).await;
        groups.fill(0, 40).await;
        let other = groups.beside(5);
        let (ann, stream, group) = (&groups.world.ann, name("s"), name("g"));
        let mut seen = BTreeSet::new();
        let mut acked = 0;
        for _ in 0..20 {
            let request = || PollRequest { member: None, limit: 3, max_bytes: 9_999, wait_ms: 0 };
            let (first, second) = tokio::join!(
                groups.service.poll(ann, &stream, &group, request()),
                other.poll(ann, &stream, &group, request()),
            );
            let mut ids = Vec::<Box<str>>::new();
            for polled in [first.unwrap(), second.unwrap()] {
                for one in polled.records {
                    assert!(seen.insert(one.record.offset.0), "two have record {}", one.record.offset.0);
                    ids.push(one.delivery.unwrap().id.into());
                }
            }
            let request = || Settle { ack: ids.clone(), ..Settle::default() };
            let (first, second) = tokio::join!(
                groups.service.settle(ann, &stream, &group, request()),
                other.settle(ann, &stream, &group, request()),
            );
            let (first, second) = (first.unwrap(), second.unwrap());
            assert_eq!(first.acked + second.acked, ids.len() as u64);
            acked += first.acked + second.acked;
        }
        assert_eq!((seen.len(), acked), (40, 40));
    });
}

#[test]
fn a_member_that_never_learned_that_it_joined_is_gone_although_storage_failed_when_it_was_taken_back() {
    block_on(async {
        for fault in FAULTS {
            let groups = Groups::new(2, GroupSpec { session_ms: 86_400_000, ..GroupSpec::default() }).await;
            let faulty = FaultyStore::new(Arc::clone(&groups.world.store), 1);
            let client = Client::over(&groups, &faulty, 1);
            let (ann, stream, group) = (&client.ann, name("s"), name("g"));
            let members = async |service: &GroupService| {
                service.describe(ann, &stream, &group).await.map(|described| described.members.len())
            };
            faulty.plan().hold_answers(Call::Swap);
            {
                let join = client.service.join(ann, &stream, &group, "gone");
                tokio::select! {
                    _ = join => panic!("the answer is held"),
                    () = faulty.plan().wait_for_held(1) => {}
                }
            }
            // The caller is gone; what takes the member back fails once.
            faulty.plan().fail_next_of(Call::Swap, 1, fault);
            faulty.plan().resume();
            tidegate_testkit::wait::until("the failure", async || faulty.plan().injected() == 1).await;
            tidegate_testkit::wait::until("the member to be gone, although nobody asks", async || {
                groups.advance(500);
                members(&groups.beside(7)).await.unwrap() == 0
            })
            .await;
            assert_eq!(members(&client.service).await.unwrap(), 0, "{fault:?}");
        }
    });
}
