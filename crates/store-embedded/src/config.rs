//! What an embedded store is opened with, and its bounds. It never reads the environment.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::limit::Limit;
use tidegate_core::time::Clock;

/// Says how many bytes are free on the file system of a folder.
pub type SpaceProbe = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// Asked around every group's write; an error is taken for the disk's. For tests.
pub type WriteHook = Arc<dyn Fn(WriteStep) -> io::Result<()> + Send + Sync>;

/// A step of a group's write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteStep {
    /// The group is about to be written. An error here: nothing was.
    Before {
        /// How many commands are in the group.
        commands: usize,
        /// Whether the group asks for stable storage.
        fsync: bool,
    },
    /// The group was written and made durable, and is not acknowledged yet. An error here: it may or may not be there.
    After,
}

/// How to open an [`EmbeddedStore`](crate::EmbeddedStore).
#[derive(Clone)]
#[non_exhaustive]
pub struct EmbeddedConfig {
    /// The store's own folder; it is made if it is not there.
    pub path: PathBuf,
    /// What retention by age goes by.
    pub clock: Arc<dyn Clock>,
    /// Below this much free space nothing is added any more, so that the database itself never meets a full disk.
    pub free_space_reserve_bytes: u64,
    /// How often retention and compaction run; zero = only by [`maintain`](crate::EmbeddedStore::maintain).
    pub maintenance_interval: Duration,
    /// Memory for blocks that were read.
    pub cache_bytes: u64,
    /// Streams whose bounds are kept in memory; those that are watched are kept beyond it.
    pub loaded_stream_max: usize,
    /// Reads that use the disk at one time; more wait.
    pub read_max: usize,
    /// Chunks that one step of compaction looks at, at least 1.
    pub step_max_chunks: usize,
    /// Where free space is learned.
    pub space_probe: SpaceProbe,
    /// For tests.
    pub write_hook: Option<WriteHook>,
}

impl EmbeddedConfig {
    /// The defaults: 64 MiB reserve, maintenance each second, 32 MiB of cache, 65,536 loaded streams, 8 reads at a time,
    /// 256 chunks a step of compaction.
    pub fn new(path: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        Self {
            path: path.into(),
            clock,
            free_space_reserve_bytes: 64 * 1024 * 1024,
            maintenance_interval: Duration::from_secs(1),
            cache_bytes: 32 * 1024 * 1024,
            loaded_stream_max: 65_536,
            read_max: 8,
            step_max_chunks: STEP_MAX_CHUNKS,
            space_probe: Arc::new(free_space),
            write_hook: None,
        }
    }
}

impl fmt::Debug for EmbeddedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedConfig")
            .field("path", &self.path)
            .field("free_space_reserve_bytes", &self.free_space_reserve_bytes)
            .field("maintenance_interval", &self.maintenance_interval)
            .finish_non_exhaustive()
    }
}

fn free_space(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A record's most bytes.
pub(crate) const RECORD_MAX_BYTES: u64 = 32 * 1024 * 1024;
/// An append's most bytes, keys and state too.
pub(crate) const APPEND_MAX_BYTES: u64 = 48 * 1024 * 1024;
/// A metadata key's most bytes.
pub(crate) const META_KEY_MAX_BYTES: usize = 16 * 1024;
/// A metadata value's most bytes.
pub(crate) const META_VALUE_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Commands that wait for the writer.
pub(crate) const QUEUE_MAX_COMMANDS: usize = 8_192;
/// Their bytes, and those of the group that is being written.
pub(crate) const QUEUE_MAX_BYTES: u64 = 192 * 1024 * 1024;
/// Commands that are made durable together.
pub(crate) const GROUP_MAX_COMMANDS: usize = 4_096;
/// Bytes beyond which no further command joins a group.
pub(crate) const GROUP_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Entries that wait for a watcher of metadata.
pub(crate) const WATCH_MAX_ENTRIES: usize = 1_024;
/// Their bytes.
pub(crate) const WATCH_MAX_BYTES: usize = 1024 * 1024;
/// Metadata entries kept in memory.
pub(crate) const META_CACHE_ENTRIES: usize = 65_536;
/// Their bytes.
pub(crate) const META_CACHE_BYTES: usize = 32 * 1024 * 1024;
/// Chunks that one step of compaction looks at, unless the configuration says otherwise.
pub(crate) const STEP_MAX_CHUNKS: usize = 256;
/// Chunks after which a read ends that has a record.
pub(crate) const READ_MAX_CHUNKS: usize = 4_096;
/// Keys that compaction holds in memory.
pub(crate) const COMPACTION_MAX_KEYS: usize = 1_000_000;
/// Their bytes.
pub(crate) const COMPACTION_MAX_KEY_BYTES: usize = 64 * 1024 * 1024;

/// The bounds of this crate.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "log_record_max_bytes",
        value: RECORD_MAX_BYTES,
        meaning: "A record in the embedded log, with its key; a larger one is refused.",
    },
    Limit {
        name: "log_append_max_bytes",
        value: APPEND_MAX_BYTES,
        meaning: "Records, keys and state of one append to the embedded log; a larger one is refused.",
    },
    Limit {
        name: "meta_key_max_bytes",
        value: META_KEY_MAX_BYTES as u64,
        meaning: "A key of the embedded metadata store; a longer one is refused.",
    },
    Limit {
        name: "meta_value_max_bytes",
        value: META_VALUE_MAX_BYTES as u64,
        meaning: "A value of the embedded metadata store; a larger one is refused.",
    },
    Limit {
        name: "log_queue_max_commands",
        value: QUEUE_MAX_COMMANDS as u64,
        meaning: "Changes that wait for the embedded store's writer; more wait before the queue.",
    },
    Limit { name: "log_queue_max_bytes", value: QUEUE_MAX_BYTES, meaning: "Their bytes; more wait before the queue." },
    Limit {
        name: "log_group_max_commands",
        value: GROUP_MAX_COMMANDS as u64,
        meaning: "Changes that share one fsync; more go into the next group.",
    },
    Limit {
        name: "log_group_max_bytes",
        value: GROUP_MAX_BYTES,
        meaning: "Bytes of changes that share one fsync, beyond which the next group begins.",
    },
    Limit {
        name: "meta_watch_max_entries",
        value: WATCH_MAX_ENTRIES as u64,
        meaning: "Entries that wait for a watcher of metadata; beyond it the watcher is given its whole prefix anew.",
    },
    Limit {
        name: "log_lost_runs_max",
        value: crate::state::MAX_LOST as u64,
        meaning: "Reasons that a partition keeps for what is gone at its beginning; beyond it the oldest two are told as one.",
    },
    Limit {
        name: "log_compaction_max_keys",
        value: COMPACTION_MAX_KEYS as u64,
        meaning: "Keys that a step of compaction holds in memory; more are compacted in further rounds.",
    },
];
