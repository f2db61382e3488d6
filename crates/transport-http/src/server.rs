//! The listener: accepts connections up to a bound, serves HTTP/1.1 and HTTP/2 on them, with TLS or without, and drains on
//! the way out. It knows no route.

mod activity;
mod connection;
mod tls;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::gate::App;
use crate::route::router;
use crate::service::Services;
use activity::InFlight;
use connection::Shared;

pub use tls::TlsError;

/// The largest head of a request that is answered properly; a larger one gets 431 too, but where it is twice as large from
/// the HTTP library itself, without a document.
pub const HEADER_MAX_BYTES: usize = 32 * 1024;
/// The most header fields of a request.
pub const HEADER_MAX_COUNT: usize = 100;
/// Requests at one time on one HTTP/2 connection.
pub const H2_STREAMS_MAX: u32 = 128;
/// What waits for one slow reader at most, beyond the piece that is being handed over.
pub const WRITE_BUFFER_MAX_BYTES: usize = 128 * 1024;
/// How long a TLS handshake may take.
pub const TLS_HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Connections that the kernel keeps ready while this server is at its bound.
const BACKLOG: u32 = 4_096;
/// After `limits.drain_ms` the query service gives streams their end lines; this is what that may take.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// How long the last bytes of ended streams may take to leave.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// How long to wait after the system refused to accept, for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where to listen, and how. Plain data: the server fills it from its configuration.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// The address; port 0 = any free one.
    pub listen: SocketAddr,
    /// With TLS, if there is any.
    pub tls: Option<TlsConfig>,
}

/// PEM files for TLS.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The certificate chain, the server's own first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// With it every client must show a certificate that one of these authorities signed.
    pub client_ca: Option<PathBuf>,
}

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address cannot be had.
    #[error("cannot listen on {listen}")]
    Address {
        /// Which.
        listen: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The HTTP transport, bound and ready to run.
pub struct HttpServer {
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<TlsAcceptor>,
    app: Arc<App>,
    router: Router,
    in_flight: InFlight,
}

impl HttpServer {
    /// Binds the address and reads the TLS files. Must be called in a tokio runtime. Connections that come before
    /// [`run`](Self::run) wait in the kernel.
    pub fn bind(config: HttpConfig, services: Services) -> Result<Self, BindError> {
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let listen = || -> std::io::Result<(TcpListener, SocketAddr)> {
            let socket = if config.listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // A restarted server takes its port back although old connections linger in TIME_WAIT.
            socket.set_reuseaddr(true)?;
            socket.bind(config.listen)?;
            let listener = socket.listen(BACKLOG)?;
            let local_addr = listener.local_addr()?;
            Ok((listener, local_addr))
        };
        let (listener, local_addr) = listen().map_err(|source| BindError::Address { listen: config.listen, source })?;
        let app = Arc::new(App::new(services, tls.is_some()));
        let router = router(Arc::clone(&app));
        Ok(Self { listener, local_addr, tls, app, router, in_flight: InFlight::default() })
    }

    /// Where it listens: the port that the system chose, for port 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many requests are being served, streams among them, as that changes: for what a caller tells people while it drains.
    /// Requests that come while draining are not counted.
    #[must_use]
    pub fn in_flight(&self) -> watch::Receiver<usize> {
        self.in_flight.subscribe()
    }

    /// Serves until `shutdown`, then drains: new work is refused with 503 `draining`, running streams go on until the query
    /// service, which is told to drain, has given them their end line. Returns when nothing is being served any more, or
    /// `limits.drain_ms` and five seconds later; what still hangs then is cut off.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        describe_metrics();
        let Self { listener, tls, app, router, in_flight, .. } = self;
        let shared = Arc::new(Shared {
            app: Arc::clone(&app),
            router,
            tls,
            in_flight: in_flight.clone(),
            closing: CancellationToken::new(),
        });
        let mut connections = JoinSet::new();
        {
            let accepting = accept(&listener, &shared, &mut connections);
            tokio::select! {
                never = accepting => match never {},
                () = shutdown => {}
            }
        }
        app.leave();
        let settings = app.services.query.settings().freeze();
        let bound = Duration::from_millis(settings.limits_drain_ms()) + DRAIN_GRACE;
        let end = app.services.clock.now().after(bound);
        tracing::info!(in_flight = in_flight.count(), "draining");
        let drained = async {
            // What waits ends at once; the query service ends its streams; an upload may go on for as long as they may. Then the
            // last of their bytes must leave, for which a reader that takes nothing is not waited for long.
            let over = app.services.clock.now().after(Duration::from_millis(settings.limits_drain_ms()));
            let others = async {
                tokio::select! {
                    () = in_flight.none() => {}
                    () = app.services.clock.sleep_until(over) => {}
                }
            };
            tokio::join!(app.services.query.drain(), others);
            let patience = app.services.clock.now().after(LAST_BYTES);
            tokio::select! {
                () = in_flight.none() => {}
                () = app.services.clock.sleep_until(patience) => {}
            }
        };
        tokio::select! {
            // Still accepted: a client that comes now is told `draining` rather than left without an answer.
            never = accept(&listener, &shared, &mut connections) => match never {},
            () = drained => {}
            () = app.services.clock.sleep_until(end) => {}
        }
        drop(listener);
        shared.closing.cancel();
        let closed = async { while connections.join_next().await.is_some() {} };
        tokio::select! {
            () = closed => {}
            () = app.services.clock.sleep_until(app.services.clock.now().after(LAST_BYTES)) => {}
        }
        let left = connections.len();
        if left > 0 {
            tracing::warn!(connections = left, "connections were cut off");
        }
        connections.shutdown().await;
    }
}

impl std::fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpServer").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// Accepts for ever. At the bound of connections it stops accepting, so that new ones wait in the kernel's backlog.
async fn accept(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    connections: &mut JoinSet<()>,
) -> std::convert::Infallible {
    let clock = &shared.app.services.clock;
    loop {
        let bound = shared.app.services.query.settings().freeze().limits_connection_max();
        if connections.len() as u64 >= bound {
            // The bound may be raised at run time, so it is looked at again now and then.
            tokio::select! {
                _ = connections.join_next() => {}
                () = clock.sleep_until(clock.now().after(Duration::from_secs(1))) => {}
            }
            continue;
        }
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(connection::serve(Arc::clone(shared), stream, peer));
                }
                Err(error) if is_of_one_connection(&error) => tracing::debug!(%error, "a connection was not accepted"),
                Err(error) => {
                    // EMFILE and the like: the listener is sound, so it waits for others to close and goes on.
                    tracing::warn!(%error, "no connection can be accepted now");
                    metrics::counter!("tidegate_http_accept_errors_total").increment(1);
                    clock.sleep_until(clock.now().after(ACCEPT_PAUSE)).await;
                }
            },
        }
    }
}

fn describe_metrics() {
    metrics::describe_counter!("tidegate_http_requests_total", "Requests by route template, method and status class.");
    metrics::describe_gauge!(
        "tidegate_http_requests_in_flight",
        "Requests whose answer is not whole yet, streams too."
    );
    metrics::describe_counter!("tidegate_http_connections_total", "Connections accepted.");
    metrics::describe_gauge!("tidegate_http_connections", "Connections now.");
    metrics::describe_counter!("tidegate_http_accept_errors_total", "Accepts that the system refused.");
    metrics::describe_counter!("tidegate_auth_refused_total", "Callers turned away, by code.");
}

/// Whether the error says that the one connection was gone before it was accepted.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::Interrupted
    )
}

/// Unsent bytes that the kernel takes for one connection before it calls the socket full. Without a bound it takes megabytes, and
/// a client that reads slowly but steadily shows no sign of life until a third of them is gone. What is sent and on
/// its way is not counted, so a long fat network is not slowed.
const UNSENT_MAX_BYTES: u32 = 64 * 1024;

/// Rows must not wait for Nagle's algorithm, nor pile up in the kernel.
fn prepare(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was not set");
    }
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_MAX_BYTES) {
        tracing::debug!(%error, "TCP_NOTSENT_LOWAT was not set");
    }
}
