//! What the server is told: `tidegate.toml`, then variables `TIDEGATE__SECTION__KEY`, then flags, the later over the
//! earlier. It reads and checks; it never starts, binds or opens anything but the files that it was given, never takes an
//! unknown key in silence, and never puts a secret into a message.
//!
//! Relative paths in a configuration are relative to the working directory of the process, wherever the file lies.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tidegate_batch::policy::Rules;
use tidegate_core::id::Name;
use tidegate_core::limit::Settings;
use tidegate_transport_http::TokenConfig;

mod auth;
mod check;
mod checkpoint;
mod effective;
mod layer;
mod object;
mod object_limit;
mod problem;
mod read;
mod s3;
mod source;

pub use layer::{Flag, Flags};
pub(crate) use object::directory_of;
pub use problem::{ConfigError, Origin, Problem};
pub use s3::{Addressing, S3, S3Credentials};
pub use source::{SourceSpec, SourceSpecError};

/// Everything that the server is told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the server keeps what is its own.
    pub data_dir: PathBuf,
    /// When a write counts as done.
    pub durability: Durability,
    /// Where it listens.
    pub listen: Listen,
    /// The databases that can be queried, by name.
    pub sources: BTreeMap<Name, Source>,
    /// Who may call; `None` = everybody, as `anonymous`.
    pub auth: Option<TokenConfig>,
    /// Where objects lie.
    pub objects: Objects,
    /// Where checkpoints of stream processors lie. The server shows them and writes none.
    pub checkpoints: Cold,
    /// Where the audit trail goes; a path outside of `data_dir` only where the configuration names one.
    pub audit_path: PathBuf,
    /// The `stream.*` and `limits.*` settings.
    pub settings: Settings,
    /// Who may use objects, and how much: `limits.object.*`.
    pub object_rules: Rules,
}

/// Where objects lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objects {
    /// Where the large ones lie.
    pub cold: Cold,
    /// Objects up to this size lie in the metadata store: 0 to [`Objects::HOT_MAX_BYTES`].
    pub hot_max_bytes: u64,
}

/// Where large objects lie, or checkpoints. Nobody else may write where objects lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cold {
    /// In a directory of this machine.
    Directory(PathBuf),
    /// In a bucket.
    S3(Box<S3>),
}

impl Objects {
    /// The largest `hot_max_bytes`.
    pub const HOT_MAX_BYTES: u64 = 8 * 1024 * 1024;
}

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When the disk has it.
    #[default]
    Fsync,
    /// When the operating system has it: a power cut may lose the last writes.
    Os,
}

impl Durability {
    /// Its name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Os => "os",
        }
    }
}

/// Where the server listens.
#[derive(Debug, Clone)]
pub struct Listen {
    /// HTTP; port 0 = any free one.
    pub http: SocketAddr,
    /// With these certificates; `None` = without TLS.
    pub tls: Option<ListenTls>,
}

/// Certificates of the listeners: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    /// The server's certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs the clients' certificates; `None` = clients need none.
    pub client_ca: Option<PathBuf>,
}

/// A database that can be queried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What to do about its journal mode.
        journal_mode: JournalMode,
    },
    /// A PostgreSQL database.
    Postgres {
        /// Its address, with the password if there is one.
        url: Secret,
        /// The publication whose changes become streams, with `slot`.
        publication: Option<String>,
        /// The replication slot, with `publication`.
        slot: Option<String>,
        /// The most connections at one time; `None` = the source's own default.
        max_connections: Option<usize>,
        /// The certificate authorities (PEM) that sign the server's certificate; `None` = Mozilla's list.
        ca: Option<PathBuf>,
    },
}

/// What to do about a SQLite file's journal mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JournalMode {
    /// Switch it to WAL when it is opened: readers of a snapshot then never block writers.
    #[default]
    Wal,
    /// Leave it as it is: in a rollback-journal file a pinned snapshot makes writers wait.
    Keep,
}

/// A text that is shown to nobody: `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text. Take care where it goes.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a configuration is read from.
#[derive(Debug, Clone, Default)]
pub struct Inputs<'a> {
    /// The file; `None` = no file.
    pub file: Option<&'a Path>,
    /// The environment: only variables that begin with [`ENV_PREFIX`] are looked at.
    pub env: Vec<(String, String)>,
    /// What the command line said.
    pub flags: Flags,
}

/// What the name of every variable begins with that sets a key.
pub const ENV_PREFIX: &str = "TIDEGATE__";

/// The file that is read when no other is named and it exists.
pub const DEFAULT_FILE: &str = "tidegate.toml";

/// A checked configuration and what its author should know.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is legal and probably not meant.
    pub warnings: Vec<Problem>,
}

/// Reads and checks a configuration.
///
/// # Errors
/// [`ConfigError`] with everything that is wrong, as far as it can be known at once.
pub fn load(inputs: &Inputs<'_>) -> Result<Loaded, ConfigError> {
    check::load(inputs)
}

/// The variables of this process that set a key. A value that is not Unicode comes with U+FFFD in the place of what is not.
#[must_use]
pub fn process_env() -> Vec<(String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, _)| name.starts_with(ENV_PREFIX))
        .collect()
}

#[cfg(test)]
mod tests;
