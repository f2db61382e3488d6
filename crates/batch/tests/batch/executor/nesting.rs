//! Batches within operations of batches: refused at once or served, never stuck.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use proptest::prelude::*;
use tidegate_batch::executor::nested;
use tidegate_batch::{AtCapacity, Executor, ItemError, Unweighed};
use tidegate_core::failure::{Failure as _, Retry};
use tidegate_testkit::{block_on, block_on_threads, within};

use super::{AT_REST, Job, Refused, executor, jobs, sleep};

/// What reserving says within an operation of `outer`.
async fn reserve_within(outer: &Executor, inner: &Executor) -> Result<(), AtCapacity> {
    let inner = inner.clone();
    let operate = move |_: Unweighed<()>| {
        let inner = inner.clone();
        async move { inner.reserve().map(drop) }
    };
    let input = stream::iter([((), Ok::<_, AtCapacity>(Unweighed(())))]);
    let mut results: Vec<_> = outer.reserve().unwrap().run(input, operate).collect().await;
    match results.pop().unwrap().1 {
        Ok(()) => Ok(()),
        Err(ItemError::Failed(refused)) => Err(refused),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn within_an_operation_only_executors_that_were_made_later_give_room() {
    block_on(async {
        let (first, second) = (executor(10, 10, 100), executor(10, 10, 100));
        assert_eq!(reserve_within(&first, &second).await, Ok(()));
        assert_eq!(reserve_within(&first, &first).await, Err(AtCapacity::Nested));
        assert_eq!(reserve_within(&second, &first).await, Err(AtCapacity::Nested));
        assert_eq!(AtCapacity::Nested.code(), "batch_capacity_exhausted");
        assert_eq!(AtCapacity::Nested.retry(), Retry::Never);
        assert!(first.reserve().is_ok(), "outside of operations nothing is refused");
    });
}

#[test]
fn a_batch_from_outside_that_is_read_within_an_operation_refuses_its_items_rather_than_wait() {
    block_on(async {
        let executor = executor(10, 10, 100);
        let inner = executor.reserve().unwrap().run(jobs([Job { weight: 100, ms: 0 }; 3]), sleep);
        let inner = Arc::new(parking_lot::Mutex::new(Some(inner)));
        let operate = move |_: Job| {
            let inner = inner.lock().take();
            async move { Ok::<_, Refused>(inner.unwrap().collect::<Vec<_>>().await) }
        };
        let outer = executor.reserve().unwrap().run(jobs([Job { weight: 100, ms: 0 }]), operate);
        let mut results: Vec<_> = within("the outer batch", outer.collect()).await;
        let nested = Err(ItemError::Nested(AtCapacity::Nested));
        assert_eq!(results.pop().unwrap().1.unwrap(), [(0, nested.clone()), (1, nested.clone()), (2, nested)]);
        assert_eq!(executor.usage(), AT_REST);
    });
}

#[test]
fn the_rule_goes_with_tasks_that_are_marked_as_part_of_an_operation() {
    block_on(async {
        let executor = executor(10, 10, 100);
        let inner = executor.clone();
        let operate = move |_: Job| {
            let inner = inner.clone();
            async move {
                let task = tokio::spawn(nested(async move { inner.reserve().map(drop) }));
                Ok::<_, Refused>(task.await.unwrap())
            }
        };
        let mut results: Vec<_> =
            executor.reserve().unwrap().run(jobs([Job { weight: 1, ms: 0 }]), operate).collect().await;
        assert_eq!(results.pop(), Some((0, Ok(Err(AtCapacity::Nested)))));
        assert!(nested(async { executor.reserve().is_ok() }).await);
    });
}

#[test]
fn a_reader_that_stalls_while_its_operation_waits_for_bytes_holds_up_no_other_batch() {
    block_on(async {
        let executor = executor(100, 10, 100);
        let mut stalled: Vec<_> =
            (0..5).map(|_| executor.reserve().unwrap().run(jobs([Job { weight: 100, ms: 0 }; 10]), sleep)).collect();
        for batch in &mut stalled {
            // Each has an operation that runs or waits, and is not read any more while the next one is.
            assert!(futures::poll!(batch.next()).is_pending());
        }
        let other = executor.reserve().unwrap().run(jobs([Job { weight: 100, ms: 0 }; 10]), sleep);
        assert_eq!(within("the other batch", other.count()).await, 10);
        drop(stalled);
        within("the executor at rest", executor.at_rest()).await;
    });
}

/// A batch whose operations run batches on the next executors, down to the last; some leave their batch half read, some
/// hold one batch while they read another.
fn run(
    executors: Arc<[Executor]>,
    depth: usize,
    weights: Arc<[u64]>,
    seed: usize,
) -> futures::future::BoxFuture<'static, usize> {
    Box::pin(async move {
        let Some(executor) = executors.get(depth) else { return 0 };
        let Ok(reservation) = executor.reserve() else { return 0 };
        let count = weights.len();
        let works: Vec<_> = (0..count).map(|n| Job { weight: weights[(n * 7 + seed) % count], ms: 0 }).collect();
        let operate = {
            let (executors, weights) = (Arc::clone(&executors), Arc::clone(&weights));
            move |job: Job| {
                let (executors, weights) = (Arc::clone(&executors), Arc::clone(&weights));
                async move {
                    tokio::task::yield_now().await;
                    let seed = seed + usize::try_from(job.weight).unwrap();
                    let inner = run(Arc::clone(&executors), depth + 1, Arc::clone(&weights), seed).await;
                    // Up again, and the same: refused at once.
                    let up = run(executors, depth.saturating_sub(seed % 2), weights, seed).await;
                    assert_eq!(up, 0, "no batch waits upwards");
                    Ok::<_, Refused>(inner)
                }
            }
        };
        let mut batch = reservation.run(jobs(works), operate);
        let (mut done, mut another) = (0, depth == 0 && seed < 3_000);
        while let Some((_, result)) = batch.next().await {
            done += usize::from(result.is_ok());
            if seed % 5 == 4 && done > count / 2 {
                break;
            }
            if std::mem::take(&mut another) {
                // Another one from the top, while this one is not read.
                run(Arc::clone(&executors), 0, Arc::clone(&weights), seed + 1_000).await;
            }
        }
        done
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn many_batches_of_any_weights_nested_in_any_way_always_finish(
        weights in prop::collection::vec(0_u64..=60, 3..9),
        bounds in prop::collection::vec((1_u32..40, 1_u8..=100, 30_u64..100), 1..4),
        batches in 1_usize..24,
    ) {
        let executors: Arc<[Executor]> =
            bounds.into_iter().map(|(permits, percent, bytes)| executor(permits, percent, bytes)).collect();
        let weights: Arc<[u64]> = weights.into();
        block_on_threads(async {
            let tasks = (0..batches).map(|seed| tokio::spawn(run(Arc::clone(&executors), 0, Arc::clone(&weights), seed)));
            let tasks: Vec<_> = tasks.collect();
            for task in tasks {
                within("every batch to finish", task).await.unwrap();
            }
            for executor in executors.iter() {
                within("the executor at rest", executor.at_rest()).await;
                assert_eq!(executor.usage(), AT_REST);
            }
        });
    }
}
