//! The adaptive window around real tasks, on a time that stands still while somebody works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use tidegate_batch::{Executor, Limits, Operate};
use tidegate_core::time::{Clock, Moment, Timestamp};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{AT_REST, Job, Refused, jobs, on_paused_time};

/// The runtime's time, which tests pause.
struct RuntimeClock(Instant);

#[async_trait]
impl Clock for RuntimeClock {
    fn now(&self) -> Moment {
        Moment::since_origin(self.0.elapsed())
    }

    fn timestamp(&self) -> Timestamp {
        Timestamp::from_unix_ms(0)
    }

    async fn sleep_until(&self, deadline: Moment) {
        tokio::time::sleep_until(self.0 + deadline.saturating_since(Moment::ORIGIN)).await;
    }
}

/// Works on `width` operations at one time, 40 to 60 ms each. Says how many were there at most, of late.
struct Store {
    width: Semaphore,
    inside: AtomicUsize,
    most: AtomicUsize,
    overloaded_above: usize,
}

impl Store {
    fn new(width: usize, overloaded_above: usize) -> Arc<Self> {
        let width = Semaphore::new(width);
        Arc::new(Self { width, inside: AtomicUsize::new(0), most: AtomicUsize::new(0), overloaded_above })
    }
}

struct Backend(Arc<Store>);

impl Operate<Job> for Backend {
    type Output = ();
    type Error = Refused;

    async fn operate(&self, job: Job) -> Result<(), Refused> {
        let inside = self.0.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(inside, Ordering::SeqCst);
        let served = if inside > self.0.overloaded_above {
            Err(Refused("slow down"))
        } else {
            let _place = self.0.width.acquire().await.unwrap();
            tokio::time::sleep(Duration::from_millis(job.ms)).await;
            Ok(())
        };
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        served
    }

    fn is_overload(&self, error: &Refused) -> bool {
        error.0 == "slow down"
    }
}

/// The most that was in flight in a second batch, after a first one has learnt.
async fn most_in_flight(store: &Arc<Store>) -> usize {
    let limits = Limits { permits: 200, window_percent: 100, ..Limits::default() };
    let executor = Executor::adaptive(limits, Arc::new(RuntimeClock(Instant::now()))).unwrap();
    for operations in [5_000_u64, 1_000] {
        store.most.store(0, Ordering::SeqCst);
        let works = jobs((0..operations).map(|n| Job { weight: 1, ms: 40 + n * 7 % 21 }));
        let results = executor.reserve().unwrap().run(works, Backend(Arc::clone(store))).count().await;
        assert_eq!((results as u64, executor.usage()), (operations, AT_REST));
    }
    store.most.load(Ordering::SeqCst)
}

#[test]
fn it_finds_what_the_store_works_on_at_one_time_and_the_next_batch_begins_with_it() {
    on_paused_time(async {
        let most = most_in_flight(&Store::new(20, usize::MAX)).await;
        assert!((20..=32).contains(&most), "{most} in flight at a store of width 20");
    });
}

#[test]
fn it_takes_the_whole_reservation_of_a_store_that_does_not_become_slower() {
    on_paused_time(async {
        assert_eq!(most_in_flight(&Store::new(1_000, usize::MAX)).await, 200);
    });
}

#[test]
fn a_store_that_says_that_it_has_too_much_to_do_is_asked_for_less() {
    on_paused_time(async {
        let most = most_in_flight(&Store::new(1_000, 30)).await;
        assert!((15..=34).contains(&most), "{most} in flight at a store that refuses beyond 30");
    });
}

/// Serves or refuses everything, 50 ms after it was asked.
struct Moody {
    refuses: AtomicBool,
    inside: AtomicUsize,
    most: AtomicUsize,
}

struct MoodyBackend(Arc<Moody>);

impl Operate<Job> for MoodyBackend {
    type Output = ();
    type Error = Refused;

    async fn operate(&self, job: Job) -> Result<(), Refused> {
        let inside = self.0.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(inside, Ordering::SeqCst);
        // Before it waits: all of one window are refused, or none.
        let refused = self.0.refuses.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(job.ms)).await;
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        if refused { Err(Refused("slow down")) } else { Ok(()) }
    }

    fn is_overload(&self, error: &Refused) -> bool {
        error.0 == "slow down"
    }
}

#[test]
fn a_first_window_that_is_refused_as_a_whole_halves_what_was_learnt_once_and_not_once_an_operation() {
    on_paused_time(async {
        let moody = Arc::new(Moody { refuses: AtomicBool::new(false), inside: 0.into(), most: 0.into() });
        let limits = Limits { permits: 64, window_percent: 100, ..Limits::default() };
        let executor = Executor::adaptive(limits, Arc::new(RuntimeClock(Instant::now()))).unwrap();
        let batch = async |operations: usize| {
            moody.most.store(0, Ordering::SeqCst);
            let works = jobs((0..operations).map(|_| Job { weight: 1, ms: 50 }));
            executor.reserve().unwrap().run(works, MoodyBackend(Arc::clone(&moody))).count().await;
            moody.most.load(Ordering::SeqCst)
        };
        batch(5_000).await;
        assert_eq!(batch(64).await, 64);
        moody.refuses.store(true, Ordering::SeqCst);
        // They begin one after the other, so that 1, 2, 3, ... are in flight.
        assert_eq!(batch(64).await, 64);
        moody.refuses.store(false, Ordering::SeqCst);
        assert_eq!(batch(32).await, 32);
    });
}
