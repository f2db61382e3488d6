//! [`QuerySource`] over a bounded number of connections, with a few kept ready. It never reuses a connection that held a
//! snapshot, and never retries a statement.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_core::port::{Dialect, QuerySnapshot, QuerySource, SourceError};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_postgres::Config;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{ConfigError, PostgresConfig};
use crate::error::unavailable;
use crate::guard::RowBound;
use crate::session::{Link, Session, settings};
use crate::snapshot::PostgresSnapshot;
use crate::{socket, tls};

/// How long after a snapshot was opened the next connection is made ready.
const REFILL_DELAY: Duration = Duration::from_millis(20);

/// A PostgreSQL database that answers queries.
pub struct PostgresSource {
    shared: Arc<Shared>,
    /// One ping at a time: many callers must not become many connections.
    ping: tokio::sync::Mutex<()>,
}

struct Shared {
    config: PostgresConfig,
    driver: Config,
    tls: MakeRustlsConnect,
    runtime: Handle,
    permits: Arc<Semaphore>,
    warm: Mutex<Warm>,
}

#[derive(Default)]
struct Warm {
    /// Oldest first.
    links: VecDeque<(Instant, Link)>,
    refilling: bool,
}

impl PostgresSource {
    /// Reads the configuration and begins to open the ready connections. The server need not be there: [`ping`] tells, and a
    /// source works from the moment that the server does. Call it inside a tokio runtime.
    ///
    /// [`ping`]: QuerySource::ping
    ///
    /// # Errors
    /// The configuration cannot be used. Nothing was opened then.
    pub fn connect(config: PostgresConfig) -> Result<Self, ConfigError> {
        let driver = config.driver()?;
        let tls = tls::connector(driver.get_ssl_mode(), config.certificate_authorities.as_deref())?;
        let runtime = Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        let permits = Arc::new(Semaphore::new(config.max_snapshots.min(Semaphore::MAX_PERMITS)));
        let shared = Arc::new(Shared { config, driver, tls, runtime, permits, warm: Mutex::default() });
        shared.refill();
        Ok(Self { shared, ping: tokio::sync::Mutex::new(()) })
    }

    /// How many snapshots are open now.
    #[must_use]
    pub fn open_snapshots(&self) -> usize {
        self.shared.config.max_snapshots.saturating_sub(self.shared.permits.available_permits())
    }
}

impl std::fmt::Debug for PostgresSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresSource").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl QuerySource for PostgresSource {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn open(&self) -> Result<Arc<dyn QuerySnapshot>, SourceError> {
        let limit = self.shared.config.max_snapshots;
        let row_bytes = self.shared.row_bytes();
        let begin = |link: Link, permit| {
            link.bound.set(row_bytes);
            Session::begin(link, permit, self.shared.runtime.clone())
        };
        let exhausted = |_| SourceError::ConnectionsExhausted { limit };
        let work = async {
            while let Some(link) = self.shared.take_warm() {
                let permit = Arc::clone(&self.shared.permits).try_acquire_owned().map_err(exhausted)?;
                // A ready connection may have died unnoticed: then the next is tried, at last a new one.
                if let Ok(begun) = begin(link, permit).await {
                    return Ok(begun);
                }
            }
            let permit = Arc::clone(&self.shared.permits).try_acquire_owned().map_err(exhausted)?;
            begin(self.shared.link().await?, permit).await
        };
        if self.shared.permits.available_permits() == 0 {
            return Err(SourceError::ConnectionsExhausted { limit });
        }
        let opened = self.shared.in_time(work).await;
        self.shared.refill();
        let (session, id) = opened?;
        Ok(Arc::new(PostgresSnapshot::new(session, id)))
    }

    async fn ping(&self) -> Result<(), SourceError> {
        let _one = self.ping.lock().await;
        let work = async {
            let taken = self.shared.take_warm();
            let link = match taken {
                Some(link) if link.client.simple_query("").await.is_ok() => link,
                _ => {
                    let link = self.shared.link().await?;
                    link.client.simple_query("").await.map_err(unavailable)?;
                    link
                }
            };
            self.shared.put_warm(link);
            Ok(())
        };
        self.shared.in_time(work).await
    }
}

impl Shared {
    /// The bound on a row as it is now.
    fn row_bytes(&self) -> usize {
        usize::try_from(self.config.max_row_bytes.get().max(1)).unwrap_or(usize::MAX)
    }

    /// A new connection with its session settings.
    async fn link(&self) -> Result<Link, SourceError> {
        let bound = RowBound::new(self.row_bytes());
        let connected = socket::connect(&self.driver, &self.tls, &bound).await.map_err(SourceError::Unavailable)?;
        Link::begin(connected, &settings(self.config.lock_timeout), self.tls.clone(), bound).await.map_err(unavailable)
    }

    /// As [`link`](Self::link), made ready so that the first statement on it is as fast as the next.
    async fn warm_link(&self) -> Result<Link, SourceError> {
        let link = self.link().await?;
        link.warm().await.map_err(unavailable)?;
        Ok(link)
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
        match tokio::time::timeout(self.config.connect_timeout, work).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(unavailable(elapsed)),
        }
    }

    /// The oldest ready connection that is alive and not too old.
    fn take_warm(&self) -> Option<Link> {
        let mut warm = self.warm.lock();
        let now = Instant::now();
        loop {
            let (since, link) = warm.links.pop_front()?;
            if now.duration_since(since) <= self.config.warm_max_age && !link.client.is_closed() {
                return Some(link);
            }
        }
    }

    /// Keeps a connection that nothing was done with.
    fn put_warm(&self, link: Link) {
        let mut warm = self.warm.lock();
        if warm.links.len() < self.config.warm_connections {
            warm.links.push_back((Instant::now(), link));
        }
    }

    /// Opens ready connections in the background until there are enough. A failure ends it until the next call.
    fn refill(self: &Arc<Self>) {
        {
            let mut warm = self.warm.lock();
            if warm.refilling || warm.links.len() >= self.config.warm_connections {
                return;
            }
            warm.refilling = true;
        }
        let shared = Arc::downgrade(self);
        self.runtime.spawn(async move {
            // Whoever has just taken one is about to use it: the server has better to do than to start another process.
            tokio::time::sleep(REFILL_DELAY).await;
            while let Some(shared) = Weak::upgrade(&shared) {
                if shared.warm.lock().is_full(&shared.config) {
                    break;
                }
                match shared.in_time(shared.warm_link()).await {
                    Ok(link) => shared.put_warm(link),
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "no connection could be made ready");
                        shared.warm.lock().refilling = false;
                        break;
                    }
                }
            }
        });
    }
}

impl Warm {
    /// Whether there are enough; then the refilling is over, decided under the same lock.
    fn is_full(&mut self, config: &PostgresConfig) -> bool {
        let full = self.links.len() >= config.warm_connections;
        if full {
            self.refilling = false;
        }
        full
    }
}
