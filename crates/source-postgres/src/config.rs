//! How to reach the database, and the bounds of the source. It never shows a password: not in `Debug`, not in an error.

use std::fmt;
use std::time::Duration;

use tidegate_core::failure::{ErrorKind, Failure};
use tidegate_core::limit::{Bound, Limit};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

const MAX_SNAPSHOTS: usize = 64;
const WARM_CONNECTIONS: usize = 2;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ROW_BYTES: u64 = 32 * 1024 * 1024;

/// The bounds of a source that is told nothing else.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "postgres.connections_max",
        value: MAX_SNAPSHOTS as u64,
        meaning: "Snapshots of a source at one time, unless its max_connections says otherwise; beyond it 429 source_connections_exhausted.",
    },
    Limit {
        name: "postgres.warm_connections_max",
        value: WARM_CONNECTIONS as u64,
        meaning: "Unused connections that a source keeps ready, beside those with snapshots.",
    },
    Limit {
        name: "postgres.connect_timeout_ms",
        value: CONNECT_TIMEOUT.as_millis() as u64,
        meaning: "Connecting and authentication must be done in this time; beyond it 503 source_unavailable.",
    },
    Limit {
        name: "postgres.lock_timeout_ms",
        value: LOCK_TIMEOUT.as_millis() as u64,
        meaning: "How long a statement waits for a lock of the database; then it ends with the database's error.",
    },
    Limit {
        name: "postgres.changes_queue_bytes",
        value: crate::change::QUEUE_BYTES as u64,
        meaning: "What the server sent of a replication stream and nobody took yet; then nothing more is read, and the server waits.",
    },
    Limit {
        name: "postgres.changes_transaction_max_bytes",
        value: crate::change::TRANSACTION_MAX_BYTES as u64,
        meaning: "Changes of one transaction in a batch, unless the source says otherwise; a larger transaction comes in several.",
    },
    Limit {
        name: "postgres.changes_copy_workers_max",
        value: crate::change::COPY_WORKERS_MAX as u64,
        meaning: "Connections that make a first copy at one time.",
    },
    Limit {
        name: "postgres.cancel_timeout_ms",
        value: crate::session::CANCEL_TIMEOUT.as_millis() as u64,
        meaning: "The server must handle a cancel request in this time; beyond it the connection is given up.",
    },
    Limit {
        name: "postgres.restore_timeout_ms",
        value: crate::session::RESTORE_TIMEOUT.as_millis() as u64,
        meaning: "A cancelled statement must have ended in this time; beyond it the connection is given up.",
    },
];

/// Why a [`PostgresConfig`] cannot be used. No message repeats the URL: it may hold a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The URL does not parse.
    #[error("the PostgreSQL URL cannot be read: {reason}")]
    Url {
        /// Why, in words, without the URL.
        reason: Box<str>,
    },
    /// The URL names no host.
    #[error("the PostgreSQL URL names no host")]
    NoHost,
    /// The URL asks for something that this source does not do.
    #[error("the PostgreSQL URL asks for {option}, which is not supported here")]
    Unsupported {
        /// What it asks for.
        option: &'static str,
    },
    /// The certificate authorities cannot be read.
    #[error("the certificate authorities (PEM) cannot be read: {reason}")]
    CertificateAuthority {
        /// Why, in words.
        reason: Box<str>,
    },
    /// The TLS library refused its configuration.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// A bound is zero.
    #[error("{name} must be at least 1")]
    ZeroBound {
        /// Which bound.
        name: &'static str,
    },
    /// A name, or a number that must not be larger, is not what it must be.
    #[error("{what} must be {rule}")]
    Name {
        /// Which setting.
        what: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// There is no tokio runtime to run connections on.
    #[error("a PostgreSQL source is connected inside a tokio runtime")]
    NoRuntime,
}

impl Failure for ConfigError {
    fn code(&self) -> &'static str {
        "source_config_invalid"
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoRuntime | Self::Tls(_) => ErrorKind::Internal,
            _ => ErrorKind::Invalid,
        }
    }
}

/// How to reach a database, and the bounds of the source.
///
/// ```
/// use tidegate_source_postgres::PostgresConfig;
///
/// let config = PostgresConfig { max_snapshots: 8, ..PostgresConfig::new("postgres://reader:secret@127.0.0.1/crm") };
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct PostgresConfig {
    /// A `postgres://user:password@host:port/database?option=value` URL or a `key=value` connection string. `sslmode` is
    /// `disable`, `prefer` (the default: encrypted where the server can, not authenticated) or `require` (encrypted, and the
    /// certificate is verified for the host's name: stricter than libpq's).
    pub url: Box<str>,
    /// Snapshots that may be open at one time; one connection each. Default 64.
    pub max_snapshots: usize,
    /// Unused connections that are kept ready, so that opening a snapshot costs one round trip. They come on top of
    /// `max_snapshots`. 0 = none. Default 2.
    pub warm_connections: usize,
    /// A ready connection that is older than this is not used. Default 5 minutes.
    pub warm_max_age: Duration,
    /// Connecting, authentication and session settings take at most this long. Default 10 s.
    pub connect_timeout: Duration,
    /// How long a statement waits for a lock of the database. Default 10 s.
    pub lock_timeout: Duration,
    /// A row whose text form is larger is never taken into memory: its stream ends with `row_too_large`. Read when a
    /// snapshot is opened, which keeps it. Default 32 MiB.
    pub max_row_bytes: Bound,
    /// What `pg_stat_activity` shows, unless the URL says so. Default `tidegate`.
    pub application_name: Box<str>,
    /// Certificate authorities (PEM) to trust instead of Mozilla's list, for `sslmode=require`.
    pub certificate_authorities: Option<Box<[u8]>>,
}

impl PostgresConfig {
    /// The defaults, for this URL. The URL is read by [`PostgresSource::connect`](crate::PostgresSource::connect).
    #[must_use]
    pub fn new(url: impl Into<Box<str>>) -> Self {
        Self {
            url: url.into(),
            max_snapshots: MAX_SNAPSHOTS,
            warm_connections: WARM_CONNECTIONS,
            warm_max_age: Duration::from_secs(300),
            connect_timeout: CONNECT_TIMEOUT,
            lock_timeout: LOCK_TIMEOUT,
            max_row_bytes: MAX_ROW_BYTES.into(),
            application_name: "tidegate".into(),
            certificate_authorities: None,
        }
    }

    /// Reads the URL and checks the bounds.
    pub(crate) fn driver(&self) -> Result<tokio_postgres::Config, ConfigError> {
        for (name, value) in [("max_snapshots", self.max_snapshots as u64), ("max_row_bytes", self.max_row_bytes.get())]
        {
            if value == 0 {
                return Err(ConfigError::ZeroBound { name });
            }
        }
        let mut driver: tokio_postgres::Config = self.url.parse().map_err(|error: tokio_postgres::Error| {
            // The driver's own words name the option, not its value; the URL itself is never repeated.
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            ConfigError::Url { reason: reason.into() }
        })?;
        if driver.get_hosts().is_empty() && driver.get_hostaddrs().is_empty() {
            return Err(ConfigError::NoHost);
        }
        if driver.get_target_session_attrs() != TargetSessionAttrs::Any {
            return Err(ConfigError::Unsupported { option: "target_session_attrs" });
        }
        if driver.get_application_name().is_none() {
            driver.application_name(&*self.application_name);
        }
        let only_unix = driver.get_hostaddrs().is_empty()
            && driver.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)))
            && driver.get_ssl_mode() != SslMode::Require;
        if only_unix {
            driver.ssl_mode(SslMode::Disable);
        }
        Ok(driver)
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("url", &"(redacted)")
            .field("max_snapshots", &self.max_snapshots)
            .field("warm_connections", &self.warm_connections)
            .field("warm_max_age", &self.warm_max_age)
            .field("connect_timeout", &self.connect_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("max_row_bytes", &self.max_row_bytes)
            .field("application_name", &self.application_name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_and_no_debug_output_repeats_the_password() {
        for url in
            ["postgres://u:s3cret@h:notaport/db", "postgres://u:s3cret@h/db?sslmode=verify", "host=h password='s3cret"]
        {
            let config = PostgresConfig::new(url);
            let error = config.driver().unwrap_err();
            assert!(!format!("{error} {error:?} {config:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_before_anything_is_opened() {
        assert!(matches!(PostgresConfig::new("user=x").driver(), Err(ConfigError::NoHost)));
        assert!(matches!(
            PostgresConfig::new("postgres://h/db?target_session_attrs=read-write").driver(),
            Err(ConfigError::Unsupported { .. })
        ));
        let config = PostgresConfig { max_snapshots: 0, ..PostgresConfig::new("postgres://h/db") };
        assert!(matches!(config.driver(), Err(ConfigError::ZeroBound { name: "max_snapshots" })));
    }
}
