//! A pinned snapshot: one session behind a fair lock, worked on by one thread at a time. It never opens a second session.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::channel::oneshot;
use parking_lot::Mutex;
use tidegate_core::id::SnapshotId;
use tidegate_core::port::{Catalogue, CatalogueQuery, Description, QuerySnapshot, RowSink, SourceError, Statement};
use tokio::sync::OwnedMutexGuard;

use crate::error::at_open;
use crate::session::Session;
use crate::stop::{Stop, StopOnDrop};
use crate::{catalogue, describe, rows};

/// The port's snapshot.
pub(crate) struct SqliteSnapshot {
    id: SnapshotId,
    session: Arc<tokio::sync::Mutex<Option<Session>>>,
    /// The stop flag of the work that goes on, if any.
    current: Mutex<Option<Arc<Stop>>>,
    closed: AtomicBool,
}

/// Where a piece of work runs.
enum Place {
    /// On a thread of its own: it may be parked for as long as a reader is slow.
    OwnThread,
    /// On one of tokio's: it is short.
    Pool,
}

impl SqliteSnapshot {
    pub(crate) fn new(id: SnapshotId, session: Session) -> Self {
        let session = Arc::new(tokio::sync::Mutex::new(Some(session)));
        Self { id, session, current: Mutex::new(None), closed: AtomicBool::new(false) }
    }

    /// Does `work` on the session, away from the runtime, after what others do has ended. Dropping the future stops it; the
    /// session comes back to the lock by itself when the work has stopped.
    async fn work<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce(&Session, &Arc<Stop>) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let mut guard = Arc::clone(&self.session).lock_owned().await;
        let stop = Arc::new(Stop::default());
        *self.current.lock() = Some(Arc::clone(&stop));
        // After the flag is in its place: `close` sets `closed` first, then the flag that it finds.
        if self.closed.load(Ordering::SeqCst) {
            *guard = None;
            return Err(SourceError::SnapshotLost(None));
        }
        let _stop_on_drop = StopOnDrop(Arc::clone(&stop));
        let (answer, outcome) = oneshot::channel();
        let job = move || {
            let result = attempt(guard, &stop, work);
            // Nobody listens any more if the future was dropped.
            let _ = answer.send(result);
        };
        match place {
            Place::OwnThread => {
                std::thread::Builder::new()
                    .name("tidegate-sqlite".to_owned())
                    .spawn(job)
                    .map_err(|error| SourceError::Unavailable(Box::new(error)))?;
            }
            Place::Pool => drop(tokio::task::spawn_blocking(job)),
        }
        outcome.await.unwrap_or(Err(SourceError::Internal(None)))
    }
}

/// Does the work and gives the session back, or drops it if its snapshot is gone. The lock is free when this returns.
fn attempt<T>(
    mut guard: OwnedMutexGuard<Option<Session>>,
    stop: &Arc<Stop>,
    work: impl FnOnce(&Session, &Arc<Stop>) -> Result<T, SourceError>,
) -> Result<T, SourceError> {
    let session = guard.as_mut().filter(|session| !session.is_lost()).ok_or(SourceError::SnapshotLost(None))?;
    session.obey(stop).map_err(at_open)?;
    // A panic is a bug in here; it must cost this snapshot, and nobody else.
    let outcome = catch_unwind(AssertUnwindSafe(|| work(session, stop)));
    let lost = outcome.is_err() || session.is_lost();
    if lost {
        *guard = None;
    }
    match outcome {
        // A result that was read whole before the transaction ended would be right, but none can be: it ends with an error.
        Ok(Ok(_)) if lost => Err(SourceError::SnapshotLost(None)),
        Ok(Err(SourceError::Unavailable(cause) | SourceError::Internal(Some(cause)))) if lost => {
            Err(SourceError::SnapshotLost(Some(cause)))
        }
        Ok(outcome) => outcome,
        Err(_) => Err(SourceError::Internal(None)),
    }
}

#[async_trait]
impl QuerySnapshot for SqliteSnapshot {
    fn id(&self) -> &SnapshotId {
        &self.id
    }

    async fn describe(&self, statement: &Statement) -> Result<Description, SourceError> {
        let statement = statement.clone();
        self.work(Place::Pool, move |session, _| describe::describe(session, &statement)).await
    }

    async fn catalogue(&self, query: &CatalogueQuery) -> Result<Catalogue, SourceError> {
        let query = query.clone();
        self.work(Place::Pool, move |session, _| catalogue::catalogue(session, &query)).await
    }

    async fn stream(&self, statement: &Statement, mut sink: Box<dyn RowSink>) -> Result<(), SourceError> {
        let statement = statement.clone();
        self.work(Place::OwnThread, move |session, stop| rows::run(session, &statement, &mut *sink, stop)).await
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(stop) = &*self.current.lock() {
            stop.set();
        }
        let mut guard = Arc::clone(&self.session).lock_owned().await;
        if let Some(session) = guard.take() {
            // SQLite's own close lets file descriptors and locks go: short, but not the runtime's.
            let _ = tokio::task::spawn_blocking(move || drop(session)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SqliteConfig;
    use tidegate_testkit::query_source_suite::{rows, statement};
    use tidegate_testkit::{Gate, OwnedCell, block_on, collect_sink};

    fn session() -> (tempfile::TempDir, Session) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute_batch("create table t (x); insert into t values (1)")
            .unwrap();
        let session = Session::open(&SqliteConfig::new(path), None).unwrap();
        (folder, session)
    }

    fn snapshot(session: Session) -> SqliteSnapshot {
        SqliteSnapshot::new(SnapshotId::new("test"), session)
    }

    #[test]
    fn a_transaction_that_sqlite_ended_is_a_lost_snapshot_and_never_a_newer_one() {
        block_on(async {
            let (_folder, session) = session();
            // As SQLite does after an I/O error.
            let none = None::<fn(rusqlite::hooks::AuthContext<'_>) -> rusqlite::hooks::Authorization>;
            let mut session = session;
            session.connection.authorizer(none).unwrap();
            session.connection.execute_batch("rollback").unwrap();
            let snapshot = snapshot(session);
            let (sink, reader) = collect_sink(10);
            let error = snapshot.stream(&statement("select x from t"), Box::new(sink)).await.unwrap_err();
            assert!(matches!(error, SourceError::SnapshotLost(None)), "{error}");
            assert_eq!(reader.pushed(), 0);
            assert!(snapshot.describe(&statement("select x from t")).await.is_err());
        });
    }

    #[test]
    fn a_transaction_that_ends_under_a_run_makes_its_result_an_error() {
        block_on(async {
            let (_folder, mut session) = session();
            let none = None::<fn(rusqlite::hooks::AuthContext<'_>) -> rusqlite::hooks::Authorization>;
            session.connection.authorizer(none).unwrap();
            let snapshot = snapshot(session);
            let run = snapshot
                .work(Place::OwnThread, |session, _| session.connection.execute_batch("rollback").map_err(at_open));
            assert!(matches!(run.await, Err(SourceError::SnapshotLost(None))));
        });
    }

    #[test]
    fn a_panic_costs_its_snapshot_and_is_told() {
        block_on(async {
            let (_folder, session) = session();
            let snapshot = snapshot(session);
            let run = snapshot.work(Place::OwnThread, |_, _| -> Result<(), SourceError> { panic!("on purpose") });
            assert!(matches!(run.await, Err(SourceError::Internal(None))));
            let error = rows(&snapshot, &statement("select x from t")).await.unwrap_err();
            assert!(matches!(error, SourceError::SnapshotLost(None)), "{error}");
        });
    }

    #[test]
    fn a_stop_that_comes_late_does_not_hit_the_next_run() {
        block_on(async {
            let (_folder, session) = session();
            let snapshot = Arc::new(snapshot(session));
            let gate = Gate::closed();
            // The first run has ended on its thread, but its future, and the stop that it carries, is still there.
            let late = tokio::spawn({
                let (snapshot, gate) = (Arc::clone(&snapshot), gate.clone());
                async move {
                    let first = statement("select x from t");
                    // Full after its one row: the run cannot end before it is drained.
                    let (sink, reader) = collect_sink(1);
                    let mut run = snapshot.stream(&first, Box::new(sink));
                    assert!(futures::poll!(&mut run).is_pending());
                    reader.wait_until_full().await;
                    assert_eq!(reader.drain().len(), 1);
                    reader.wait_for_sink_gone().await;
                    gate.pass().await;
                    drop(run);
                }
            });
            let (sink, reader) = collect_sink(10);
            let endless = statement(
                "with recursive c(x) as (select 1 union all select x + 1 from c) select x from c where x <= 2 or x = 3000000",
            );
            let next = tokio::spawn({
                let snapshot = Arc::clone(&snapshot);
                async move { snapshot.stream(&endless, Box::new(sink)).await }
            });
            reader.wait_for_pushed(2).await;
            gate.open();
            late.await.unwrap();
            reader.wait_for_pushed(3).await;
            assert_eq!(reader.drain().pop().unwrap(), [OwnedCell::Integer(3_000_000)]);
            next.abort();
            reader.wait_for_sink_gone().await;
        });
    }
}
