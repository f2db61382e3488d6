//! What is left of batches whose readers went away, and what is at hand.

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _, stream};
use tidegate_batch::executor::Usage;
use tidegate_batch::{AtCapacity, ItemError, Operate, Work};
use tidegate_testkit::{block_on_threads, within};

use super::{Refused, executor};

/// An operation that holds something, and waits so many turns.
struct Holds {
    turns: usize,
    _held: Arc<()>,
}

impl Work for Holds {
    fn kind(&self) -> &'static str {
        "holds"
    }

    fn weight_bytes(&self) -> u64 {
        1_000
    }
}

/// Runs them: every seventh panics if it shall, every fifth fails; those of no turn are at hand, and some that are not are said to be.
struct Turns {
    held: Arc<()>,
    panics: bool,
}

impl Operate<Holds> for Turns {
    type Output = (Arc<()>, usize);
    type Error = Refused;

    async fn operate(&self, work: Holds) -> Result<(Arc<()>, usize), Refused> {
        for _ in 0..work.turns % 4 {
            tokio::task::yield_now().await;
        }
        assert!(!self.panics || work.turns % 7 != 6, "as it is meant to");
        if work.turns % 5 == 4 { Err(Refused("no")) } else { Ok((Arc::clone(&self.held), work.turns)) }
    }

    fn is_at_hand(&self, work: &Holds) -> bool {
        work.turns % 8 < 3
    }
}

fn input(held: &Arc<()>) -> impl futures::Stream<Item = (usize, Result<Holds, Refused>)> + use<> {
    let held = Arc::clone(held);
    stream::iter((0..56).map(move |turns| (turns, Ok(Holds { turns, _held: Arc::clone(&held) }))))
}

#[test]
fn after_ten_thousand_abandoned_batches_no_permit_no_byte_and_nothing_that_they_held_is_left() {
    block_on_threads(async {
        let executor = executor(64, 50, 20_000);
        let held = Arc::new(());
        for round in 0..10_000_usize {
            let reservation = match executor.reserve() {
                Ok(reservation) => reservation,
                Err(AtCapacity::InUse { .. }) => {
                    within("room", executor.at_rest()).await;
                    executor.reserve().unwrap()
                }
                Err(error) => panic!("{error}"),
            };
            let turns = Turns { held: Arc::clone(&held), panics: false };
            let mut batch = reservation.run(input(&held), turns);
            match round % 4 {
                0 => {}
                1 => drop(batch.next().now_or_never()),
                2 => drop(batch.next().await),
                _ => {
                    for _ in 0..10 {
                        batch.next().await;
                    }
                }
            }
        }
        within("all operations to end", executor.at_rest()).await;
        assert_eq!(executor.usage(), Usage { permits: 0, bytes: 0 });
        within("what they held", async {
            while Arc::strong_count(&held) > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    });
}

#[test]
fn what_is_at_hand_has_the_same_outcome_as_what_has_a_task_of_its_own() {
    block_on_threads(async {
        let executor = executor(64, 50, 20_000);
        let held = Arc::new(());
        let turns = Turns { held: Arc::clone(&held), panics: true };
        let mut results: Vec<_> = executor.reserve().unwrap().run(input(&held), turns).collect().await;
        results.sort_by_key(|(tag, _)| *tag);
        assert_eq!(results.len(), 56);
        for (turns, result) in results {
            match result {
                Ok((_, found)) => assert_eq!(found, turns),
                Err(ItemError::Panicked) => assert_eq!(turns % 7, 6),
                Err(ItemError::Failed(Refused("no"))) => assert!(turns % 5 == 4 && turns % 7 != 6),
                Err(error) => panic!("{error}"),
            }
        }
    });
}
