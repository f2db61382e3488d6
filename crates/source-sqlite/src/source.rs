//! The source: opens sessions within its bound, and once, at its start, sees to the journal mode. It holds no connection
//! of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags};
use tidegate_core::id::SnapshotId;
use tidegate_core::port::{Dialect, Entropy, QuerySnapshot, QuerySource, SourceError};
use tidegate_core::system::OsEntropy;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::config::{JournalMode, SqliteConfig};
use crate::session::Session;
use crate::snapshot::SqliteSnapshot;

/// A SQLite file that can be queried. Its methods need a tokio runtime.
#[derive(Debug)]
pub struct SqliteSource {
    config: Arc<SqliteConfig>,
    places: Arc<Semaphore>,
    /// One ping at a time: many callers must not become many threads and connections.
    pings: Arc<Semaphore>,
    /// Tells this source's snapshots from those of an earlier process.
    boot: u64,
    next: AtomicU64,
}

impl SqliteSource {
    /// Checks that the file can be read, and switches it to WAL if the configuration says so.
    ///
    /// Blocks for some file operations (up to the busy time-out twice): call it while starting.
    ///
    /// # Errors
    /// `Unavailable` where the file is missing, no file, or cannot be opened; `Corrupt` where it is no database; `Internal`
    /// where the system gives no randomness.
    pub fn open(mut config: SqliteConfig) -> Result<Self, SourceError> {
        // Absolute: a later change of the folder does not matter, and SQLite cannot take the name for a URI or `:memory:`.
        config.path = std::path::absolute(&config.path).map_err(|error| SourceError::Unavailable(Box::new(error)))?;
        config.max_snapshots = config.max_snapshots.min(Semaphore::MAX_PERMITS);
        let session = Session::open(&config, None)?;
        let mode = journal_mode(&session.connection);
        drop(session);
        match (config.journal_mode, mode.as_deref()) {
            (JournalMode::Wal, Ok("wal")) | (JournalMode::Keep, _) => {}
            (JournalMode::Wal, _) => switch_to_wal(&config),
        }
        let mut boot = [0; 8];
        OsEntropy.fill(&mut boot).map_err(|error| SourceError::Internal(Some(Box::new(error))))?;
        Ok(Self {
            places: Arc::new(Semaphore::new(config.max_snapshots)),
            pings: Arc::new(Semaphore::new(1)),
            config: Arc::new(config),
            boot: u64::from_ne_bytes(boot),
            next: AtomicU64::new(1),
        })
    }

    async fn session(&self, place: OwnedSemaphorePermit) -> Result<Session, SourceError> {
        let config = Arc::clone(&self.config);
        let opened = spawn_blocking(move || Session::open(&config, Some(place))).await;
        opened.map_err(|error| SourceError::Internal(Some(Box::new(error))))?
    }
}

fn journal_mode(connection: &Connection) -> rusqlite::Result<String> {
    connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))
}

/// Best effort: in any mode a snapshot is right, in WAL it does not hold writers up.
fn switch_to_wal(config: &SqliteConfig) {
    let path = &config.path;
    let switched = || -> rusqlite::Result<String> {
        // Neither `CREATE`: the file exists, and if it went away just now it must not come back empty.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(config.busy_timeout)?;
        connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
    };
    match switched() {
        Ok(mode) if mode == "wal" => tracing::info!(?path, "the database was switched to WAL mode"),
        Ok(mode) => tracing::warn!(
            ?path,
            mode,
            "the database stays outside of WAL mode: writers will wait while a snapshot is open"
        ),
        Err(error) => tracing::warn!(
            ?path,
            %error,
            "the database could not be switched to WAL mode: writers will wait while a snapshot is open"
        ),
    }
}

#[async_trait]
impl QuerySource for SqliteSource {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    async fn open(&self) -> Result<Arc<dyn QuerySnapshot>, SourceError> {
        let limit = self.config.max_snapshots;
        let place =
            Arc::clone(&self.places).try_acquire_owned().map_err(|_| SourceError::ConnectionsExhausted { limit })?;
        let session = self.session(place).await?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = SnapshotId::new(format!("sqlite:{:016x}:{number}", self.boot));
        Ok(Arc::new(SqliteSnapshot::new(id, session)))
    }

    async fn ping(&self) -> Result<(), SourceError> {
        // The place goes with the work: a caller that goes away does not make room for the next while a thread still opens.
        let place = Arc::clone(&self.pings).acquire_owned().await;
        let place = place.map_err(|error| SourceError::Internal(Some(Box::new(error))))?;
        self.session(place).await.map(drop)
    }
}
