//! What the executor promises, over operations that do what a test tells them to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, poll, stream};
use tidegate_batch::executor::{LimitsError, Usage};
use tidegate_batch::{
    AtCapacity, Executor, ItemError, Limits, Metadata, ObjectKey, Operation, Reservation, Unweighed, Work,
};
use tidegate_core::failure::{ErrorKind, Failure as _, Retry};
use tidegate_testkit::{block_on, within};
use tokio::sync::Semaphore;

pub(crate) mod adaptive;
pub(crate) mod leak;
pub(crate) mod metrics;
pub(crate) mod nesting;

/// What a test's operation fails with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) &'static str);

pub(crate) type Input<W> = (usize, Result<W, Refused>);

/// An operation that weighs something and waits for a while.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) weight: u64,
    pub(crate) ms: u64,
}

impl Work for Job {
    fn kind(&self) -> &'static str {
        "job"
    }

    fn weight_bytes(&self) -> u64 {
        self.weight
    }
}

pub(crate) async fn sleep(job: Job) -> Result<u64, Refused> {
    tokio::time::sleep(Duration::from_millis(job.ms)).await;
    Ok(job.ms)
}

pub(crate) fn executor(permits: u32, window_percent: u8, bytes_in_flight: u64) -> Executor {
    Executor::new(Limits { permits, window_percent, bytes_in_flight }).unwrap()
}

pub(crate) fn jobs(jobs: impl IntoIterator<Item = Job>) -> impl Stream<Item = Input<Job>> {
    stream::iter(jobs.into_iter().map(Ok).enumerate())
}

/// Numbered operations without weight; counts how many were read.
fn numbers(count: usize, read: &Arc<AtomicUsize>) -> impl Stream<Item = Input<Unweighed<usize>>> + use<> {
    let read = Arc::clone(read);
    stream::iter((0..count).map(move |n| {
        read.fetch_add(1, Ordering::SeqCst);
        (n, Ok(Unweighed(n)))
    }))
}

/// Lets every task do what it can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Runs on one thread whose time stands still until everybody waits for it.
pub(crate) fn on_paused_time<T>(future: impl Future<Output = T>) -> T {
    block_on(async {
        tokio::time::pause();
        future.await
    })
}

const AT_REST: Usage = Usage { permits: 0, bytes: 0 };

#[test]
fn results_come_in_the_order_in_which_operations_end_with_the_index_that_each_came_with() {
    on_paused_time(async {
        let executor = executor(10, 100, 1_000);
        let times = [50, 10, 40, 20, 30].map(|ms| Job { weight: 1, ms });
        let results: Vec<_> = executor.reserve().unwrap().run(jobs(times), sleep).collect().await;
        assert_eq!(results, [(1, Ok(10)), (3, Ok(20)), (4, Ok(30)), (2, Ok(40)), (0, Ok(50))]);
        assert_eq!(executor.usage(), AT_REST);
    });
}

#[test]
fn errors_of_the_input_pass_through_without_a_place_in_the_window() {
    on_paused_time(async {
        let executor = executor(1, 100, 1_000);
        let slow = Job { weight: 0, ms: 1_000 };
        let input = [Ok(slow), Err(Refused("no key")), Ok(slow), Err(Refused("too long")), Ok(slow)];
        let reservation = executor.reserve().unwrap();
        assert_eq!(reservation.window(), 1);
        let results: Vec<_> = reservation.run(stream::iter(input.into_iter().enumerate()), sleep).collect().await;
        let input = |text| Err(ItemError::Input(Refused(text)));
        let expected = [(0, Ok(1_000)), (1, input("no key")), (2, Ok(1_000)), (3, input("too long")), (4, Ok(1_000))];
        assert_eq!(results, expected);
    });
}

#[test]
fn a_flood_of_bad_items_holds_up_no_result() {
    block_on(async {
        let executor = executor(2, 100, 1_000);
        let bad = stream::repeat_with(|| (1, Err(Refused("bad"))));
        let input = stream::iter([(0, Ok(Unweighed(())))]).chain(bad);
        let batch = executor.reserve().unwrap().run(input, async |_: Unweighed<()>| Ok::<_, Refused>(()));
        let mut good = batch.filter(|(_, result)| std::future::ready(result.is_ok())).boxed();
        assert_eq!(within("the one result", good.next()).await, Some((0, Ok(()))));
    });
}

#[test]
fn one_owners_batches_hold_as_much_as_they_leave_and_another_owner_begins_nevertheless() {
    let executor = executor(500, 10, 1_000);
    let all = |owner: &str| -> Vec<Reservation> { std::iter::from_fn(|| executor.reserve_for(owner).ok()).collect() };
    let window = |held: &[Reservation]| held.iter().map(Reservation::window).sum::<u32>();
    let slow = all("slow");
    assert_eq!(window(&slow), 250);
    assert_eq!(executor.reserve_for("slow").unwrap_err(), AtCapacity::Share { permits: 250 });
    let other = executor.reserve_for("other").unwrap();
    assert_eq!(other.window(), 25);
    drop(other);
    let others: Vec<_> = ["b", "c", "d"].into_iter().map(all).collect();
    let windows: Vec<_> = others.iter().map(|held| window(held)).collect();
    assert_eq!(windows, [125, 63, 31]);
    drop((slow, others));
    assert_eq!(executor.usage(), AT_REST);
    assert_eq!(window(&all("slow")), 250);
    assert_eq!(executor.usage(), AT_REST);
}

#[test]
fn a_window_is_a_share_of_what_is_free_rounded_up_and_refused_at_once_when_nothing_is() {
    let executor = executor(25, 10, 1_000);
    let mut held: Vec<Reservation> = Vec::new();
    let refused = loop {
        match executor.reserve() {
            Ok(reservation) => held.push(reservation),
            Err(refused) => break refused,
        }
    };
    let windows: Vec<_> = held.iter().map(Reservation::window).collect();
    assert_eq!(windows, [3, 3, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(executor.usage().permits, 25);
    assert_eq!(refused, AtCapacity::InUse { permits: 25 });
    assert_eq!((refused.code(), refused.kind()), ("batch_capacity_exhausted", ErrorKind::Exhausted));
    assert_eq!(refused.retry(), Retry::After(Duration::from_secs(1)));
    held.clear();
    assert_eq!(executor.usage(), AT_REST);
    assert_eq!(executor.reserve_at_most(2).unwrap().window(), 2);
    assert_eq!(executor.reserve_at_most(0).unwrap().window(), 1);
    assert_eq!(executor.usage(), AT_REST);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let good = Limits::default();
    let refused = [
        (Limits { permits: 0, ..good }, LimitsError::Permits { permits: 0 }),
        (Limits { permits: 65_537, ..good }, LimitsError::Permits { permits: 65_537 }),
        (Limits { window_percent: 0, ..good }, LimitsError::Window { percent: 0 }),
        (Limits { window_percent: 101, ..good }, LimitsError::Window { percent: 101 }),
        (Limits { bytes_in_flight: 0, ..good }, LimitsError::Bytes { bytes: 0 }),
        (Limits { bytes_in_flight: u64::MAX, ..good }, LimitsError::Bytes { bytes: u64::MAX }),
    ];
    for (limits, error) in refused {
        assert_eq!(Executor::new(limits).err(), Some(error));
        assert_eq!((error.code(), error.kind()), ("batch_limits_invalid", ErrorKind::Invalid));
    }
    assert!(Executor::new(Limits { permits: 65_536, window_percent: 100, bytes_in_flight: 1 << 50 }).is_ok());
}

#[test]
fn nothing_is_read_before_the_stream_is_read_nor_beyond_the_window_nor_while_results_wait() {
    block_on(async {
        let executor = executor(3, 100, 1_000);
        let (read, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let operate = {
            let gate = Arc::clone(&gate);
            move |Unweighed(n): Unweighed<usize>| {
                let gate = Arc::clone(&gate);
                async move {
                    gate.acquire().await.unwrap().forget();
                    Ok::<_, Refused>(n)
                }
            }
        };
        let mut batch = executor.reserve().unwrap().run(numbers(100, &read), operate);
        settle().await;
        assert_eq!(read.load(Ordering::SeqCst), 0, "it was not read");
        assert!(poll!(batch.next()).is_pending());
        assert_eq!(read.load(Ordering::SeqCst), 3, "a window");
        gate.add_permits(100);
        settle().await;
        assert_eq!(read.load(Ordering::SeqCst), 3, "three results wait");
        assert!(within("a result", batch.next()).await.is_some());
        assert_eq!(read.load(Ordering::SeqCst), 3, "its place is free when the next one is asked for");
        assert!(within("a result", batch.next()).await.is_some());
        assert_eq!(read.load(Ordering::SeqCst), 4);
        assert_eq!(batch.count().await, 98);
    });
}

/// Panics where it is told to.
struct Fragile(&'static str);

impl Work for Fragile {
    fn kind(&self) -> &'static str {
        "fragile"
    }

    fn weight_bytes(&self) -> u64 {
        assert_ne!(self.0, "weigh", "secret");
        0
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        if self.0 == "drop" {
            self.0 = "dropped";
            panic!("secret");
        }
    }
}

/// What panics again when it is thrown away.
struct Payload(u32);

impl Drop for Payload {
    fn drop(&mut self) {
        if self.0 > 0 {
            std::panic::panic_any(Self(self.0 - 1));
        }
    }
}

fn fragile(work: Fragile) -> impl Future<Output = Result<(), Refused>> + Send {
    assert_ne!(work.0, "begin", "secret");
    async move {
        tokio::task::yield_now().await;
        assert_ne!(work.0, "run", "secret");
        if work.0 == "payload" {
            std::panic::panic_any(Payload(2));
        }
        Ok(())
    }
}

#[test]
fn a_panic_is_the_error_of_its_item_alone_and_says_nothing_of_its_message() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let (results, usage) = block_on(async {
        let executor = executor(4, 100, 1_000);
        let works = ["begin", "run", "weigh", "drop", "payload", "good", "good"];
        let input = works.into_iter().map(|name| (name, Ok::<_, Refused>(Fragile(name))));
        let batch = executor.reserve().unwrap().run(stream::iter(input), fragile);
        let results: Vec<_> = within("all results", batch.collect()).await;
        (results, executor.usage())
    });
    std::panic::set_hook(print);
    assert_eq!(results.len(), 7);
    for (name, result) in results {
        if name == "good" {
            assert_eq!(result, Ok(()));
        } else {
            let error = result.unwrap_err();
            assert_eq!(error, ItemError::Panicked, "{name}");
            assert!(!format!("{error} {error:?}").contains("secret"));
        }
    }
    assert_eq!(usage, AT_REST);
}

#[test]
fn operations_run_to_their_end_when_the_output_is_dropped_and_only_then_the_room_comes_back() {
    on_paused_time(async {
        let executor = executor(10, 50, 1_000);
        let (ended, read) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let operate = {
            let ended = Arc::clone(&ended);
            move |Unweighed(n): Unweighed<usize>| {
                let ended = Arc::clone(&ended);
                async move {
                    tokio::time::sleep(Duration::from_secs(n as u64)).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Refused>(())
                }
            }
        };
        let mut batch = executor.reserve().unwrap().run(numbers(100, &read), operate);
        assert_eq!(batch.next().await, Some((0, Ok(()))));
        drop(batch);
        assert_eq!((read.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)), (5, 1));
        assert_eq!(executor.usage().permits, 5, "four are in flight");
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        assert_eq!((executor.usage().permits, ended.load(Ordering::SeqCst)), (5, 4), "one is in flight");
        within("the last one", executor.at_rest()).await;
        assert_eq!((executor.usage(), ended.load(Ordering::SeqCst)), (AT_REST, 5));
        assert_eq!(read.load(Ordering::SeqCst), 5, "the rest was never read");
    });
}

#[test]
fn ten_thousand_abandoned_batches_leave_nothing_behind() {
    tidegate_testkit::block_on_threads(async {
        let executor = executor(200, 10, 10_000);
        let (token, begun) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        for round in 0..10_000_u64 {
            let reservation = loop {
                match executor.reserve() {
                    Ok(reservation) => break reservation,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            let (token, begun) = (Arc::clone(&token), Arc::clone(&begun));
            let works = stream::iter((0..50_u64).map({
                let token = Arc::clone(&token);
                move |n| (Arc::clone(&token), Ok::<_, Refused>(Job { weight: (n * 997 + round) % 3_000, ms: 0 }))
            }));
            let operate = move |job: Job| {
                begun.fetch_add(1, Ordering::SeqCst);
                let token = Arc::clone(&token);
                async move {
                    for _ in 0..job.weight % 4 {
                        tokio::task::yield_now().await;
                    }
                    if job.weight.is_multiple_of(7) { Err(Refused("no")) } else { Ok(token) }
                }
            };
            let mut batch = reservation.run(works, operate);
            for _ in 0..round % 4 {
                if round % 3 == 0 {
                    batch.next().await;
                } else {
                    let _ = poll!(batch.next());
                }
            }
        }
        within("the executor at rest", executor.at_rest()).await;
        assert_eq!(executor.usage(), AT_REST);
        assert!(begun.load(Ordering::SeqCst) > 10_000, "operations were begun");
        // A task drops what it captured just after it has landed.
        tidegate_testkit::wait::until("every tag, operation and result dropped", async || {
            Arc::strong_count(&token) == 1
        })
        .await;
    });
}

#[test]
fn bytes_in_flight_stay_below_their_bound_across_batches_and_an_operation_beyond_it_is_refused() {
    on_paused_time(async {
        let executor = executor(100, 20, 1_000);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let batch = |seed: u64| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            let works = (0..60).map(move |n| Job { weight: (seed * 31 + n * 137) % 1_003, ms: n % 5 });
            let operate = move |job: Job| {
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                async move {
                    let weight = usize::try_from(job.weight).unwrap();
                    most.fetch_max(now.fetch_add(weight, Ordering::SeqCst) + weight, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(job.ms)).await;
                    now.fetch_sub(weight, Ordering::SeqCst);
                    Ok::<_, Refused>(job.weight)
                }
            };
            executor.reserve().unwrap().run(jobs(works), operate).collect::<Vec<_>>()
        };
        let results = within("all batches", futures::future::join_all([batch(1), batch(2), batch(3)])).await;
        let refused = results.iter().flatten().filter_map(|(_, result)| result.as_ref().err());
        for error in refused {
            let ItemError::TooLarge { weight_bytes: 1_001..=1_002, max_bytes: 1_000 } = error else {
                panic!("{error:?}");
            };
        }
        assert_eq!(results.iter().map(Vec::len).collect::<Vec<_>>(), [60, 60, 60]);
        assert!((900..=1_000).contains(&most.load(Ordering::SeqCst)), "{most:?}");
        assert_eq!(executor.usage(), AT_REST);
    });
}

#[test]
fn an_operation_of_exactly_the_bound_runs_and_one_byte_more_never_waits() {
    block_on(async {
        // Above 2^28 bytes are counted in units: whoever fits must fit all the same.
        for bound in [1, 1_000, (1 << 28) - 1, 1 << 28, (1 << 28) + 1, (5 << 30) + 3, 1 << 50] {
            let executor = executor(2, 100, bound);
            let works = [bound, bound + 1].map(|weight| Job { weight, ms: 0 });
            let mut results: Vec<_> = executor.reserve().unwrap().run(jobs(works), sleep).collect().await;
            results.sort_by_key(|(index, _)| *index);
            let too_large = ItemError::TooLarge { weight_bytes: bound + 1, max_bytes: bound };
            assert_eq!(results, [(0, Ok(0)), (1, Err(too_large))]);
            assert_eq!(executor.usage(), AT_REST);
        }
    });
}

#[test]
fn while_one_operation_waits_for_bytes_nothing_more_of_its_batch_is_read() {
    on_paused_time(async {
        let executor = executor(20, 50, 100);
        let read = Arc::new(AtomicUsize::new(0));
        let works = jobs((0..20).map(|_| Job { weight: 60, ms: 10 })).inspect({
            let read = Arc::clone(&read);
            move |_| {
                read.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut batch = executor.reserve().unwrap().run(works, sleep);
        assert!(poll!(batch.next()).is_pending());
        settle().await;
        assert!(poll!(batch.next()).is_pending());
        assert_eq!(read.load(Ordering::SeqCst), 2, "one runs, one waits");
        assert_eq!(batch.count().await, 20);
    });
}

#[test]
fn a_heavy_operation_waits_its_turn_and_light_ones_do_not_pass_it_for_ever() {
    on_paused_time(async {
        let executor = executor(100, 10, 100);
        let light = executor.reserve().unwrap().run(jobs(std::iter::repeat(Job { weight: 10, ms: 7 })), sleep);
        let light = tokio::spawn(light.for_each(|_| std::future::ready(())));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let heavy = executor.reserve().unwrap().run(jobs([Job { weight: 100, ms: 1 }]), sleep);
        assert_eq!(within("the heavy one", heavy.collect::<Vec<_>>()).await, [(0, Ok(1))]);
        light.abort();
    });
}

#[test]
fn a_runtime_that_goes_away_leaves_typed_errors_and_no_permit_behind() {
    let executor = executor(4, 100, 100);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The third waits for bytes, and the rest was not read.
    let works = jobs((0..10).map(|_| Job { weight: 40, ms: 3_600_000 }));
    let mut batch = executor.reserve().unwrap().run(works, sleep);
    runtime.block_on(async {
        assert!(poll!(batch.next()).is_pending());
        settle().await;
    });
    drop(runtime);
    let results: Vec<_> = block_on(async { batch.by_ref().take(3).collect().await });
    assert!(results.iter().all(|(_, result)| *result == Err(ItemError::Cancelled)), "{results:?}");
    drop(batch);
    block_on(within("the executor at rest", executor.at_rest()));
    assert_eq!(executor.usage(), AT_REST);
}

#[test]
fn operations_on_objects_weigh_their_payload() {
    block_on(async {
        let executor = executor(10, 100, 10);
        let key = ObjectKey::new("a").unwrap();
        let insert = |bytes: &'static [u8]| Operation::Insert {
            key: Some(key.clone()),
            metadata: Metadata::default(),
            payload: Bytes::from_static(bytes),
        };
        let works = [insert(b"0123456789"), insert(b"0123456789a"), Operation::Get { key: key.clone() }];
        let input = stream::iter(works.map(Ok::<_, Refused>).into_iter().enumerate());
        let operate = |work: Operation| async move { Ok::<_, Refused>(work.payload_bytes()) };
        let results: BTreeMap<_, _> = executor.reserve().unwrap().run(input, operate).collect().await;
        let too_large = ItemError::TooLarge { weight_bytes: 11, max_bytes: 10 };
        assert_eq!(results, BTreeMap::from([(0, Ok(10)), (1, Err(too_large)), (2, Ok(0))]));
    });
}
