//! Which executor runs the operation that we are in, so that waiting goes one way only. It never refuses by itself.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

/// Executors in the order in which they were made. An operation of one may wait for a greater one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u64);

static NEXT: AtomicU64 = AtomicU64::new(1);

tokio::task_local! {
    static INSIDE: Rank;
}

impl Rank {
    /// Outside of every operation.
    const OUTSIDE: Self = Self(0);

    /// The rank of an executor that is made now.
    pub(super) fn next() -> Self {
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether who asks now may wait for what an executor of this rank has.
    pub(super) fn may_wait(self) -> bool {
        self > here()
    }

    /// The future, as one that runs within an operation of this rank's executor.
    pub(super) fn within<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        INSIDE.scope(self, future)
    }
}

fn here() -> Rank {
    INSIDE.try_with(|rank| *rank).unwrap_or(Rank::OUTSIDE)
}

/// Makes a future that an operation gives to a task of its own, and then waits for, count as part of that operation: batches
/// that it runs follow the rule of nesting. Outside of operations it changes nothing. `tokio::spawn(nested(future))`.
pub fn nested<F: Future>(future: F) -> impl Future<Output = F::Output> {
    here().within(future)
}
