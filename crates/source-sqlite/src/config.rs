//! What a source is told. Nothing here is read from a file or an environment.

use std::path::PathBuf;
use std::time::Duration;

use tidegate_core::limit::{Bound, Limit};

const MAX_SNAPSHOTS: usize = 64;
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_VALUE_BYTES: u64 = 16 << 20;

/// The bounds of a source that is told nothing else.
pub const LIMITS: &[Limit] = &[Limit {
    name: "sqlite.busy_timeout_ms",
    value: BUSY_TIMEOUT.as_millis() as u64,
    meaning: "How long a snapshot that is opened waits for a writer that holds the file (outside of WAL mode only); then 503 source_unavailable.",
}];

/// How to reach a database and what it may cost.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SqliteConfig {
    /// The file. It must exist; a relative path is made absolute when the source is opened. Never read as a URI.
    pub path: PathBuf,
    /// How many snapshots may be open at a time; each holds one connection (about 3 file descriptors and up to 2 MiB of
    /// cache); with 0 every one is refused. 64 unless told otherwise.
    pub max_snapshots: usize,
    /// What to do about the file's journal mode; [`JournalMode::Wal`] unless told otherwise.
    pub journal_mode: JournalMode,
    /// How long to wait for a writer that holds the file (only outside of WAL, and while a WAL is being recovered). 1 second
    /// unless told otherwise.
    pub busy_timeout: Duration,
    /// The most bytes that one value, and a row that SQLite sorts, may have; at most 1,000,000,000 counts. Read when a
    /// snapshot is opened, which keeps it. 16 MiB unless told otherwise: the same as a row.
    pub max_value_bytes: Bound,
}

impl SqliteConfig {
    /// The configuration for this file, with everything else as it is unless told otherwise.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_snapshots: MAX_SNAPSHOTS,
            journal_mode: JournalMode::Wal,
            busy_timeout: BUSY_TIMEOUT,
            max_value_bytes: MAX_VALUE_BYTES.into(),
        }
    }
}

/// What to do about a file's journal mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum JournalMode {
    /// Switch the file to WAL when the source is opened, so that writers need not wait for snapshots. The mode is stored in
    /// the file. If it cannot be switched, that is logged as a warning and the source goes on.
    #[default]
    Wal,
    /// Leave it as it is. Snapshots are right in every mode; outside of WAL writers wait while one is open.
    Keep,
}
