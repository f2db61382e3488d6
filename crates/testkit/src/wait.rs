//! Waiting for a condition with a bound. It never waits for a time to pass.

use std::future::Future;
use std::time::Duration;

/// How long a test waits for a condition before it fails. Long, because a machine may be busy; a test that passes never
/// waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The future's output; panics with `what` when it takes longer than [`PATIENCE`].
///
/// # Panics
/// When the condition does not come true in time.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// Asks `condition` again and again, giving way in between, until it is true.
///
/// # Panics
/// When the condition does not come true within [`PATIENCE`].
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Runs a future on a current-thread runtime with timer and network: whoever blocks that one thread is found out.
///
/// # Panics
/// When the runtime cannot be built, and with whatever the future panics.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a current-thread runtime needs nothing but file descriptors")
        .block_on(future)
}

/// Runs a future on the test's own thread and what it spawns on four others, so that tasks truly overlap.
///
/// # Panics
/// When the runtime cannot be built, and with whatever the future panics.
pub fn block_on_threads<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime needs nothing but threads and file descriptors")
        .block_on(future)
}
