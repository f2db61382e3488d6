//! Changes out of PostgreSQL by logical replication: a consistent copy of what is there, then every committed transaction, in
//! commit order. It never confirms more than it is told, never goes on over a gap, and never keeps what is not committed.
//!
//! ```text
//! changes(None)   publication -> slot, with a snapshot -> the copy, in ranges of keys -> the stream
//! changes(state)  the same system, the same slot, not behind and not ahead? -> what the copy lacks -> the stream
//! ```

mod assemble;
mod config;
mod copy;
mod coverage;
mod feed;
mod lsn;
mod open;
mod pgoutput;
mod refusal;
mod rows;
mod server;
mod state;
mod status;
mod stream;
mod table;
mod wire;

use std::cmp::Ordering;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_core::port::{ChangeSource, ChangeSourceError, ChangeSourceStatus, ChangeStream, CopyStatus, Resume};
use tidegate_core::position::SourcePosition;
use tokio::sync::watch;

pub use config::ChangeConfig;
pub(crate) use config::{COPY_WORKERS_MAX, TRANSACTION_MAX_BYTES};
pub(crate) use feed::QUEUE_BYTES;

use self::lsn::Lsn;
use self::server::Server;
use crate::config::{ConfigError, PostgresConfig};
use crate::session::Link;
use crate::tls;

/// The changes of a PostgreSQL database. See the crate's page for what it promises.
pub struct PostgresChanges {
    shared: Arc<Shared>,
}

/// What the source and its stream share.
pub(crate) struct Shared {
    pub(crate) server: Arc<Server>,
    /// What is durable here. The stream's connection tells the server.
    pub(crate) confirmed: watch::Sender<Lsn>,
    pub(crate) copy: Mutex<CopyStatus>,
    /// The process that served our last stream.
    pub(crate) last_pid: Mutex<Option<i32>>,
    pub(crate) status_link: tokio::sync::Mutex<Option<Link>>,
}

impl PostgresChanges {
    /// Reads the configuration. The server need not be there.
    ///
    /// # Errors
    /// The configuration cannot be used. Nothing was opened then.
    pub fn connect(postgres: PostgresConfig, change: ChangeConfig) -> Result<Self, ConfigError> {
        change.check()?;
        let driver = postgres.driver()?;
        let tls = tls::connector(driver.get_ssl_mode(), postgres.certificate_authorities.as_deref())?;
        let server = Arc::new(Server { postgres, change, driver, tls });
        let shared = Shared {
            server,
            confirmed: watch::Sender::new(Lsn::default()),
            copy: Mutex::new(CopyStatus::Waiting),
            last_pid: Mutex::new(None),
            status_link: tokio::sync::Mutex::new(None),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl std::fmt::Debug for PostgresChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let server = &self.shared.server;
        f.debug_struct("PostgresChanges")
            .field("postgres", &server.postgres)
            .field("change", &server.change)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ChangeSource for PostgresChanges {
    async fn changes(&self, from: Option<Resume>) -> Result<ChangeStream, ChangeSourceError> {
        let opened = open::open(&self.shared, from).await?;
        Ok(stream::run(Arc::clone(&self.shared), opened))
    }

    async fn confirm(&self, position: &SourcePosition) -> Result<(), ChangeSourceError> {
        let durable = Lsn::of(position).ok_or_else(|| refusal::unreadable("the position is none of PostgreSQL's"))?;
        self.shared.confirmed.send_if_modified(|confirmed| {
            let more = durable > *confirmed;
            *confirmed = durable.max(*confirmed);
            more
        });
        Ok(())
    }

    fn compare(&self, left: &SourcePosition, right: &SourcePosition) -> Option<Ordering> {
        Some(Lsn::of(left)?.cmp(&Lsn::of(right)?))
    }

    async fn status(&self) -> Result<ChangeSourceStatus, ChangeSourceError> {
        status::ask(&self.shared).await
    }
}
