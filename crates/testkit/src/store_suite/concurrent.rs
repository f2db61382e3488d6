//! Promises about appends at the same time: dense disjoint ranges, one winner, one order of commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::join_all;
use tidegate_core::port::{AppendOutcome, AppendedRange, Commit, LogReadItem};
use tidegate_core::position::{Offset, Partition};

use super::*;
use crate::wait::within;

const TASKS: usize = 64;

/// Runs one future a task at the same time, to their ends.
async fn all_at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(make: impl Fn(usize) -> F) -> Vec<T> {
    let tasks: Vec<_> = (0..TASKS).map(|task| tokio::spawn(make(task))).collect();
    let joined = within("tasks at the same time", join_all(tasks)).await;
    joined.into_iter().map(|outcome| outcome.expect("no task panics")).collect()
}

/// What 64 tasks append comes to lie side by side; each finds its own records where it was told.
pub async fn concurrent_appenders_get_disjoint_dense_ranges<W: StoreWorld>() {
    const BATCHES: usize = 8;
    let world = Arc::new(W::fresh().await);
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    let ranges = all_at_once(|task| {
        let (world, id) = (Arc::clone(&world), id.clone());
        async move {
            let mut ranges = Vec::new();
            for number in 0..BATCHES {
                let name = format!("{task}/{number}/");
                let range = append_to(&*world, &id, records(&name, 1 + (task + number) % 3)).await;
                ranges.push((name, range));
            }
            ranges
        }
    })
    .await;
    for of_one in &ranges {
        assert!(of_one.windows(2).all(|pair| pair[0].1.next <= pair[1].1.base), "a task's own appends are in order");
    }
    let mut ranges: Vec<_> = ranges.into_iter().flatten().collect();
    ranges.sort_by_key(|(_, range)| range.base);
    let mut next = Offset::ZERO;
    let texts = texts(&*log, &id, P0).await;
    for (name, AppendedRange { base, next: end, .. }) in ranges {
        assert_eq!(base, next, "no hole and no overlap");
        for (number, offset) in (base.0..end.0).enumerate() {
            assert_eq!(texts[offset as usize], format!("{name}{number}"));
        }
        next = end;
    }
    assert_eq!(texts.len() as u64, next.0);
}

/// Of 64 tasks that expect the same next offset one appends, again and again.
pub async fn one_of_many_who_expect_an_offset_wins<W: StoreWorld>() {
    let world = Arc::new(W::fresh().await);
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(1)).await;
    for round in 0..4 {
        let outcomes = all_at_once(|task| {
            let mut one = batch(&*world, &id, [(0, records(&format!("{round}/{task}/"), 1))]);
            one.streams[0].partitions[0].expected_next = Some(Offset(round));
            let log = Arc::clone(&log);
            async move { try_append(&*log, one).await }
        })
        .await;
        let mut winner = None;
        for (task, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                AppendOutcome::Appended(_) => assert_eq!(winner.replace(task), None, "one wins"),
                AppendOutcome::OffsetMismatch { partition: P0, next, .. } => assert_eq!(next, Offset(round + 1)),
                other => panic!("neither won nor lost: {other:?}"),
            }
        }
        let winner = winner.expect("one wins");
        assert_eq!(texts(&*log, &id, P0).await[round as usize..], [format!("{round}/{winner}/0")]);
    }
}

/// Of 64 tasks whose appends expect the same revision one appends; the others' records are nowhere.
pub async fn one_of_many_who_expect_a_revision_wins<W: StoreWorld>() {
    let world = Arc::new(W::fresh().await);
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(4)).await;
    let mut revision = None;
    for round in 0..4_usize {
        let outcomes = all_at_once(|task| {
            let partition = (task % 4) as u32;
            let mut one = batch(&*world, &id, [(partition, records(&format!("{round}/{task}/"), 1))]);
            one.state = vec![put("state", revision, &format!("{round}/{task}"))];
            let log = Arc::clone(&log);
            async move { matches!(try_append(&*log, one).await, AppendOutcome::Appended(_)) }
        })
        .await;
        let winners: Vec<_> = (0..TASKS).filter(|task| outcomes[*task]).collect();
        assert_eq!(winners.len(), 1, "one wins: {winners:?}");
        let (state, now) = value(&*log, "state").await.expect("the winner put it");
        assert_eq!(state, format!("{round}/{}", winners[0]));
        revision = Some(now);
        let total: u64 = all_bounds(&*log, &id).await.iter().map(|of| of.next.0).sum();
        assert_eq!(total, round as u64 + 1);
    }
}

/// Each partition's commits, with the texts that belong to each.
async fn by_commit(
    log: &impl tidegate_core::port::ChangeLog,
    id: &tidegate_core::port::StreamId,
    partitions: u32,
) -> BTreeMap<Commit, Vec<String>> {
    let mut commits: BTreeMap<Commit, Vec<String>> = BTreeMap::new();
    for partition in 0..partitions {
        for item in whole(log, id, Partition(partition), Offset::ZERO).await {
            let LogReadItem::Record { commit, bytes, .. } = item else { panic!("nothing is gone") };
            commits.entry(commit).or_default().push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    commits
}

/// All records of an append share a commit that no other append has, and who appends after another has a higher one. That
/// commits go up in each partition is checked by every read of the suite.
pub async fn commits_order_all_appends_the_same_way_in_every_partition<W: StoreWorld>() {
    const PARTITIONS: u32 = 4;
    let world = Arc::new(W::fresh().await);
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(PARTITIONS)).await;
    all_at_once(|task| {
        let (world, id) = (Arc::clone(&world), id.clone());
        async move {
            for number in 0..4 {
                let partitions: BTreeSet<u32> =
                    (0..=number).map(|of| (task as u32 * 7 + of * 3) % PARTITIONS).collect();
                let text = format!("{task:02}/{number}");
                let all = partitions.into_iter().map(|of| (of, vec![record(text.clone()), record(text.clone())]));
                append(&*world.store(), batch(&*world, &id, all)).await;
            }
        }
    })
    .await;
    let commits = by_commit(&*log, &id, PARTITIONS).await;
    let mut order: BTreeMap<String, Commit> = BTreeMap::new();
    for (commit, texts) in &commits {
        assert!(texts.iter().all(|text| *text == texts[0]), "one commit is one append: {texts:?}");
        assert_eq!(order.insert(texts[0].clone(), *commit), None, "one append is one commit: {}", texts[0]);
    }
    assert_eq!(order.len(), TASKS * 4);
    for task in 0..TASKS {
        let of_one: Vec<_> = (0..4).map(|number| order[&format!("{task:02}/{number}")]).collect();
        assert!(of_one.is_sorted(), "a task's later append has a higher commit: {of_one:?}");
    }
}

/// Once a commit can be read, every lower one can: a reader who has seen one and then looks everywhere finds all before it.
pub async fn what_can_be_read_has_nothing_unread_before_it<W: StoreWorld>() {
    const PARTITIONS: u32 = 4;
    let world = Arc::new(W::fresh().await);
    let (log, id) = (world.store(), stream("s"));
    create(&*log, &id, &keep_all(PARTITIONS)).await;
    let reader = tokio::spawn({
        let (log, id) = (Arc::clone(&log), id.clone());
        async move {
            let mut looks = Vec::new();
            loop {
                let seen = by_commit(&*log, &id, PARTITIONS).await;
                let Some((newest, _)) = seen.last_key_value() else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let all: BTreeSet<Commit> = by_commit(&*log, &id, PARTITIONS).await.into_keys().collect();
                let done = seen.len() == TASKS * 4;
                looks.push((*newest, all));
                if done {
                    return looks;
                }
                tokio::task::yield_now().await;
            }
        }
    });
    all_at_once(|task| {
        let (world, id) = (Arc::clone(&world), id.clone());
        async move {
            for number in 0..4 {
                let partition = ((task + number) % 4) as u32;
                append(&*world.store(), batch(&*world, &id, [(partition, records("r", 1))])).await;
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let looks = within("the reader", reader).await.expect("the reader does not panic");
    let commits: BTreeSet<Commit> = by_commit(&*log, &id, PARTITIONS).await.into_keys().collect();
    for (newest, all) in looks {
        let missed: Vec<_> = commits.range(..=newest).filter(|commit| !all.contains(commit)).collect();
        assert!(missed.is_empty(), "{newest:?} could be read, and these not: {missed:?}");
    }
}
