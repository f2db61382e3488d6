//! One connection with one pinned snapshot: what is in flight on it, and how it comes back after an error or after its user
//! went away. It never gives a connection back to anybody: a function in a query may have changed the session.
//!
//! ```text
//! BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;  SELECT pg_current_snapshot();  SAVEPOINT
//!   describe: DECLARE ... CURSOR FOR <statement>;  RELEASE SAVEPOINT;  SAVEPOINT     (keeps the locks on the tables)
//!   stream:   FETCH FORWARD n, until it gives less than n
//!   after an error, a run, or a caller that went away:  ROLLBACK TO SAVEPOINT;  CLOSE ALL
//! ```

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_core::id::SnapshotId;
use tidegate_core::port::{Cause, SourceError};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::describe::Prepared;
use crate::error::{Prefix, statement_failed, unavailable};
use crate::guard::RowBound;
use crate::lookup::Lookups;
use crate::socket::{self, Address, Driving};

/// A cancel request must be handled in this time; else it is given up.
pub(crate) const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// What was in flight must have ended in this time after a cancel request; else the connection is given up.
pub(crate) const RESTORE_TIMEOUT: Duration = Duration::from_secs(10);

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                     SELECT pg_catalog.pg_current_snapshot()::text; SAVEPOINT tidegate";
const RESTORE: &str = "ROLLBACK TO SAVEPOINT tidegate; CLOSE ALL";

/// What makes the text of every value exact and the same on every server, and a session that waits for us.
pub(crate) fn settings(lock_timeout: Duration) -> String {
    let lock_timeout_ms = lock_timeout.as_millis().min(i32::MAX as u128);
    format!(
        "SET client_encoding = 'UTF8'; SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; \
         SET IntervalStyle = 'iso_8601'; SET extra_float_digits = 1; SET bytea_output = 'hex'; \
         SET xmloption = 'content'; SET synchronize_seqscans = off; SET standard_conforming_strings = on; \
         SET default_transaction_read_only = on; SET statement_timeout = 0; \
         SET idle_in_transaction_session_timeout = 0; SET lock_timeout = {lock_timeout_ms}; \
         SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
         WHERE name IN ('idle_session_timeout', 'transaction_timeout')"
    )
}

/// A connection, not yet in use for anything.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) bound: RowBound,
    pub(crate) lookups: Lookups,
    address: Address,
    tls: MakeRustlsConnect,
    driving: JoinHandle<()>,
    /// Why the connection ended, once it has.
    ended: Arc<Mutex<Option<Error>>>,
}

impl Link {
    /// Takes a fresh connection into use: begins to drive it, applies the session settings and prepares what we ask. One
    /// round trip.
    pub(crate) async fn begin(
        (client, driving, address): (Client, Driving, Address),
        settings: &str,
        tls: MakeRustlsConnect,
        bound: RowBound,
    ) -> Result<Self, Error> {
        let ended = Arc::new(Mutex::new(None));
        let task = Arc::clone(&ended);
        let driving = tokio::spawn(async move {
            if let Err(error) = driving.await {
                *task.lock() = Some(error);
            }
        });
        let (lookups, ()) = {
            let settings = client.batch_execute(settings);
            let (settings, lookups) = futures::join!(settings, Lookups::prepare(&client));
            (lookups, settings?)
        };
        Ok(Self { lookups: lookups?, client, bound, address, tls, driving, ended })
    }

    /// Makes the server read its own catalogue, before a user waits for it.
    pub(crate) async fn warm(&self) -> Result<(), Error> {
        self.lookups.warm(&self.client).await
    }

    /// Closes the connection at once, whatever runs on it.
    pub(crate) fn abandon(&self) {
        self.driving.abort();
    }

    /// Why a request on this connection failed, in the words of what ended the connection.
    fn failure(&self, error: Error, prefix: Prefix) -> SourceError {
        if error.as_db_error().is_some() {
            return statement_failed(error, prefix);
        }
        let cause: Cause = match self.ended.lock().take() {
            Some(ended) => ended.into(),
            None => error.into(),
        };
        SourceError::SnapshotLost(Some(cause))
    }

    /// A request to cancel whatever runs on this connection, to be run as a task. `false`: it is not known whether the
    /// server will still act on it.
    fn cancel(&self) -> impl Future<Output = bool> + Send + 'static {
        let (token, address, tls) = (self.client.cancel_token(), self.address.clone(), self.tls.clone());
        async move { tokio::time::timeout(CANCEL_TIMEOUT, socket::cancel(&token, &address, &tls)).await.is_ok() }
    }
}

/// A connection with a snapshot.
pub(crate) struct Session {
    link: Option<Link>,
    runtime: Handle,
    /// A request was sent and its answer has not been read.
    in_flight: bool,
    /// Something ran since the savepoint was set.
    dirty: bool,
    /// A cancel request is under way.
    stopping: Option<JoinHandle<bool>>,
    /// The statement that was described last, perhaps with its cursor open at the first row.
    pub(crate) prepared: Option<Prepared>,
    _permit: OwnedSemaphorePermit,
}

impl Session {
    /// Pins a snapshot.
    pub(crate) async fn begin(
        link: Link,
        permit: OwnedSemaphorePermit,
        runtime: Handle,
    ) -> Result<(Self, SnapshotId), SourceError> {
        let answers = link.client.simple_query(BEGIN).await.map_err(unavailable)?;
        let id = answers
            .iter()
            .find_map(|answer| match answer {
                SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten().map(SnapshotId::new),
                _ => None,
            })
            .ok_or(SourceError::Internal(None))?;
        let session = Self {
            link: Some(link),
            runtime,
            in_flight: false,
            dirty: false,
            stopping: None,
            prepared: None,
            _permit: permit,
        };
        Ok((session, id))
    }

    pub(crate) fn link(&self) -> &Link {
        self.link.as_ref().expect("a session has its connection until it is dropped")
    }

    /// Waits for the answer to what `request` sends. Its caller may go away at any moment: [`Operation`] sees to that.
    pub(crate) async fn ask<T>(
        &mut self,
        prefix: Prefix,
        request: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, SourceError> {
        self.sent();
        let answer = request(&self.link().client).await;
        self.answered();
        answer.map_err(|error| self.link().failure(error, prefix))
    }

    /// As [`ask`](Self::ask), for a statement of our own: that the server refuses it says nothing about the user's.
    pub(crate) async fn ask_catalogue<T>(
        &mut self,
        request: impl AsyncFnOnce(&Client, &Lookups) -> Result<T, Error>,
    ) -> Result<T, SourceError> {
        self.sent();
        let link = self.link();
        let answer = request(&link.client, &link.lookups).await;
        self.answered();
        answer.map_err(|error| match self.failure(error, Prefix::NONE) {
            lost @ SourceError::SnapshotLost(_) => lost,
            refused => SourceError::Internal(Some(refused.into())),
        })
    }

    /// A request is about to be sent.
    pub(crate) fn sent(&mut self) {
        self.dirty = true;
        self.in_flight = true;
    }

    /// The whole answer was read.
    pub(crate) fn answered(&mut self) {
        self.in_flight = false;
    }

    /// As [`Link::failure`].
    pub(crate) fn failure(&self, error: Error, prefix: Prefix) -> SourceError {
        self.link().failure(error, prefix)
    }

    /// What ran since the savepoint may stay: it changed nothing, or the savepoint was moved behind it.
    pub(crate) fn kept(&mut self) {
        self.dirty = false;
    }

    /// Forgets the statement that was described last; its cursor is closed before anything else runs.
    pub(crate) fn forget(&mut self) {
        if self.prepared.take().is_some_and(|prepared| prepared.cursor_is_fresh) {
            self.dirty = true;
        }
    }

    /// Brings the connection back to the savepoint, where it is not: waits until what was in flight has ended, then rolls
    /// back. The snapshot stays: it belongs to the transaction.
    pub(crate) async fn restore(&mut self) -> Result<(), SourceError> {
        if self.in_flight {
            self.begin_cancel();
        }
        if !self.dirty {
            return Ok(());
        }
        if let Some(prepared) = &mut self.prepared {
            prepared.cursor_is_fresh = false;
        }
        match tokio::time::timeout(RESTORE_TIMEOUT, self.roll_back()).await {
            Ok(restored) => restored,
            Err(elapsed) => Err(SourceError::SnapshotLost(Some(elapsed.into()))),
        }
    }

    async fn roll_back(&mut self) -> Result<(), SourceError> {
        if let Some(stopping) = &mut self.stopping {
            let settled = stopping.await.unwrap_or(false);
            self.stopping = None;
            if !settled {
                // It could hit a later statement: then rows would be missing for no reason.
                return Err(SourceError::SnapshotLost(Some("a cancel request was not answered".into())));
            }
        }
        // The driver reads and drops what was still to come before it reads the answer to this.
        self.ask(Prefix::NONE, async |client| client.batch_execute(RESTORE).await).await.map_err(
            |error| match error {
                SourceError::SnapshotLost(_) => error,
                // Without its savepoint the transaction is over.
                refused => SourceError::SnapshotLost(Some(refused.into())),
            },
        )?;
        // A row that was dropped for its size was one of the run that has been given up.
        let _ = self.link().bound.take_exceeded();
        self.dirty = false;
        Ok(())
    }

    fn begin_cancel(&mut self) {
        self.in_flight = false;
        self.dirty = true;
        self.stopping = Some(self.runtime.spawn(self.link().cancel()));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        if !self.in_flight && self.stopping.is_none() {
            // Without its client the driver says goodbye and closes.
            return;
        }
        // The server would go on with the statement until it next writes: it is told, and the socket is closed.
        let cancel = link.cancel();
        self.runtime.spawn(async move {
            let _ = cancel.await;
            link.driving.abort();
        });
    }
}

/// The use of a session by one call. If the call is dropped with a request in flight, the server is asked to cancel it.
pub(crate) struct Operation<'a>(pub(crate) &'a mut Session);

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if self.0.in_flight {
            self.0.begin_cancel();
        }
    }
}
