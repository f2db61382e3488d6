//! One connection: TLS, which HTTP it speaks, serving it, and closing it so that the last answer arrives. Idle connections
//! and heads that do not come to an end are closed after `limits.header_timeout_ms`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::BytesMut;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate_core::Clock;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::activity::{Activity, InFlight, Metered, ServedBody, TAKING, Taking};
use super::{H2_STREAMS_MAX, HEADER_MAX_BYTES, HEADER_MAX_COUNT, TLS_HANDSHAKE_MAX, WRITE_BUFFER_MAX_BYTES};
use crate::body::EndlessAnswer;
use crate::gate::App;

/// The first bytes of HTTP/2 (RFC 9113, section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What the peer of an HTTP/2 connection may send before it must wait: on one stream enough that an object's bytes do not wait for a
/// round trip each few pieces, on all together what one connection may cost.
const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// A peer of HTTP/2 that does not answer a ping within this time after this time is gone.
const H2_PING: Duration = Duration::from_secs(20);
/// How long a closed connection is read from, so that the client gets to the answer that it was sent before.
const LINGER: Duration = Duration::from_secs(1);
/// The same when the whole server goes: most connections are idle then, and nobody should wait for them.
const LAST_LINGER: Duration = Duration::from_millis(100);

/// What all connections share.
pub(super) struct Shared {
    pub(super) app: Arc<App>,
    pub(super) router: Router,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) in_flight: InFlight,
    /// Nothing more is served: finish what is being written and close.
    pub(super) closing: CancellationToken,
}

impl Shared {
    fn clock(&self) -> &Arc<dyn Clock> {
        &self.app.services.clock
    }

    fn header_timeout(&self) -> Duration {
        Duration::from_millis(self.app.services.query.settings().freeze().limits_header_timeout_ms())
    }

    /// How long an answer may wait for a client that takes nothing of it. The query service gives a stream up after the time
    /// of the setting and then offers its last lines for as long again; after both nothing can come of it any more. An
    /// answer without an end has no last lines to offer.
    fn stall_timeout(&self, endless: bool) -> Duration {
        let times = if endless { 1 } else { 2 };
        Duration::from_millis(times * self.app.services.query.settings().freeze().stream_idle_timeout_ms())
    }

    /// Runs `work`, but no longer than `limit`.
    async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.clock().sleep_until(self.clock().now().after(limit)) => None,
        }
    }
}

/// Counts a connection for as long as it is there.
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::counter!("tidegate_http_connections_total").increment(1);
        metrics::gauge!("tidegate_http_connections").increment(1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("tidegate_http_connections").decrement(1);
    }
}

/// Serves one connection to its end. Never fails: what goes wrong with a connection is that connection's end.
pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let _counted = Counted::new();
    super::prepare(&stream);
    let Some(acceptor) = shared.tls.clone() else {
        speak(&shared, stream, None).await;
        return;
    };
    let limit = TLS_HANDSHAKE_MAX.min(shared.header_timeout());
    let shaken = tokio::select! {
        shaken = shared.within(limit, acceptor.accept(stream)) => shaken,
        () = shared.closing.cancelled() => return,
    };
    match shaken {
        Some(Ok(stream)) => {
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            speak(&shared, stream, Some(is_h2)).await;
        }
        Some(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
        None => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}

/// Finds out which HTTP is spoken, and serves it.
async fn speak<S>(shared: &Arc<Shared>, mut stream: S, is_h2: Option<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut ahead = BytesMut::new();
    let is_h2 = match is_h2 {
        Some(is_h2) => is_h2,
        // hyper-util's `auto` builder would look at the first bytes too, but without any bound in time.
        None => {
            let told = async {
                loop {
                    if ahead.len() >= H2_PREFACE.len() || !H2_PREFACE.starts_with(&ahead) {
                        return Ok(ahead.starts_with(H2_PREFACE));
                    }
                    if stream.read_buf(&mut ahead).await? == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                }
            };
            let told: Option<std::io::Result<bool>> = tokio::select! {
                told = shared.within(shared.header_timeout(), told) => told,
                () = shared.closing.cancelled() => None,
            };
            match told {
                Some(Ok(is_h2)) => is_h2,
                Some(Err(_)) | None => return,
            }
        }
    };
    let activity = Activity::new(Arc::clone(shared.clock()), shared.in_flight.clone());
    let io = TokioIo::new(Metered::new(stream, ahead.freeze(), Arc::clone(&activity)));
    if is_h2 {
        speak_h2(shared, io, &activity).await;
    } else {
        speak_h1(shared, io, &activity).await;
    }
}

async fn speak_h1<S>(shared: &Arc<Shared>, io: TokioIo<Metered<S>>, activity: &Arc<Activity>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = {
        let (shared, activity) = (Arc::clone(shared), Arc::clone(activity));
        service_fn(move |request| Box::pin(answer(Arc::clone(&shared), Arc::clone(&activity), request)))
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The idle watch below measures the head's time as well, on this server's own clock.
        .header_read_timeout(None)
        .max_buf_size(WRITE_BUFFER_MAX_BYTES)
        .max_header_size(2 * HEADER_MAX_BYTES)
        .max_headers(HEADER_MAX_COUNT)
        .serve_connection(io, service);
    let idle = activity.idle(|| shared.header_timeout());
    let blocked = activity.blocked(|endless| shared.stall_timeout(endless));
    tokio::pin!(idle, blocked);
    let mut closing = false;
    let served = loop {
        tokio::select! {
            served = std::future::poll_fn(|context| connection.poll_without_shutdown(context)) => break served,
            () = shared.closing.cancelled(), if !closing => {
                closing = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            // Dropping it closes it: either nothing was asked, or the head never came to its end.
            () = &mut idle => return,
            // hyper asks a body for more only when the client takes something, so it would never see that the stream is over.
            () = &mut blocked => {
                tracing::debug!("a client that takes nothing was cut off");
                return;
            }
        }
    };
    match served {
        Ok(()) => linger(shared, connection.into_parts().io.into_inner()).await,
        Err(error) => tracing::debug!(%error, "a connection ended early"),
    }
}

/// Says that nothing more will be sent, and reads on for a moment. If the socket were closed while bytes of a refused body lie
/// unread in it, the kernel would answer with a reset, and the client would lose the answer that says why.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(shared: &Arc<Shared>, mut stream: S) {
    let mut scratch = vec![0; 8 * 1024];
    let lingering = async {
        stream.shutdown().await?;
        while stream.read(&mut scratch).await? > 0 {}
        std::io::Result::Ok(())
    };
    let limit = if shared.closing.is_cancelled() { LAST_LINGER } else { LINGER };
    let _ = shared.within(limit, lingering).await;
}

async fn speak_h2<S>(shared: &Arc<Shared>, io: TokioIo<Metered<S>>, activity: &Arc<Activity>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = {
        let (shared, activity) = (Arc::clone(shared), Arc::clone(activity));
        service_fn(move |request| Box::pin(answer(Arc::clone(&shared), Arc::clone(&activity), request)))
    };
    let connection = http2::Builder::new(StreamExecutor { shared: Arc::clone(shared) })
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING)
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_send_buf_size(WRITE_BUFFER_MAX_BYTES)
        .max_header_list_size(2 * HEADER_MAX_BYTES as u32)
        .serve_connection(io, service);
    let blocked = activity.blocked(|endless| shared.stall_timeout(endless));
    tokio::pin!(connection, blocked);
    let mut closing = false;
    loop {
        let idle = activity.idle(|| if closing { LINGER } else { shared.header_timeout() });
        tokio::select! {
            served = &mut connection => {
                if let Err(error) = served {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            () = shared.closing.cancelled(), if !closing => {}
            () = &mut blocked => {
                tracing::debug!("a client that takes nothing was cut off");
                return;
            }
            () = idle => {
                if closing {
                    return;
                }
            }
        }
        closing = true;
        connection.as_mut().graceful_shutdown();
    }
}

/// Runs the streams of an HTTP/2 connection, and resets one whose client gives it no window for too long. The others on the
/// connection go on.
#[derive(Clone)]
struct StreamExecutor {
    shared: Arc<Shared>,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let shared = Arc::clone(&self.shared);
        let taking = Taking::new(Arc::clone(shared.clock()));
        tokio::spawn(TAKING.scope(Arc::clone(&taking), async move {
            tokio::select! {
                _ = stream => {}
                // Dropping the stream resets it.
                () = taking.stalled(|endless| shared.stall_timeout(endless)) => {
                    tracing::debug!("a stream of which nothing is taken was reset");
                }
            }
        }));
    }
}

async fn answer(
    shared: Arc<Shared>,
    activity: Arc<Activity>,
    request: Request<Incoming>,
) -> Result<Response<ServedBody>, Infallible> {
    let serving = activity.begin(!shared.app.is_draining());
    let mut response = match shared.router.clone().oneshot(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if response.extensions_mut().remove::<EndlessAnswer>().is_some() {
        serving.mark_endless();
    }
    Ok(response.map(|body| ServedBody::new(body, serving)))
}
