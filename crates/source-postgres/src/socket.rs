//! Connecting to the server, and asking it to cancel. The driver could connect by itself; it is done here so that rows are
//! bounded on the way in ([`guard`](crate::guard)) and so that a cancel request is known to have been handled before the
//! next statement is sent: otherwise it could hit that one. It never retries.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend::ssl_request;
use socket2::{SockRef, TcpKeepalive};
use tidegate_core::port::Cause;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{Config, Host, SslMode, SslNegotiation};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{CancelToken, Client, Connection};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::guard::{Guarded, GuardedTls, RowBound};

/// A silent server is asked after this time, and again after each third of it.
const KEEPALIVE: Duration = Duration::from_secs(30);

type TlsStreamOf = <MakeRustlsConnect as MakeTlsConnect<Guarded<Socket>>>::Stream;
/// The driver's half that does the I/O.
pub(crate) type Driving = Connection<Guarded<Socket>, Guarded<TlsStreamOf>>;

/// Where one server listens.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    place: Place,
    /// The name that the certificate must have; none for a Unix socket.
    host_name: Option<String>,
}

#[derive(Debug, Clone)]
enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// The addresses of a connection string, in its order.
pub(crate) fn addresses(config: &Config) -> Vec<Address> {
    let (hosts, literal, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    (0..hosts.len().max(literal.len()))
        .filter_map(|index| {
            let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
            let host_name = match hosts.get(index) {
                Some(Host::Tcp(name)) => Some(name.clone()),
                #[cfg(unix)]
                Some(Host::Unix(directory)) if literal.get(index).is_none() => {
                    let place = Place::Unix(directory.join(format!(".s.PGSQL.{port}")));
                    return Some(Address { place, host_name: None });
                }
                _ => None,
            };
            let target = literal.get(index).map(ToString::to_string).or_else(|| host_name.clone())?;
            Some(Address { place: Place::Tcp(target, port), host_name })
        })
        .collect()
}

/// A connected stream of bytes. Cheap to clone; closed with the last clone.
#[derive(Debug, Clone)]
pub(crate) enum Socket {
    Tcp(Arc<TcpStream>),
    Unix(Arc<UnixStream>),
}

impl Socket {
    async fn connect(address: &Address) -> io::Result<Self> {
        match &address.place {
            Place::Tcp(target, port) => {
                let stream = TcpStream::connect((target.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                // A server that vanished without a word is noticed while we only wait for it.
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                Ok(Self::Tcp(Arc::new(stream)))
            }
            Place::Unix(path) => Ok(Self::Unix(Arc::new(UnixStream::connect(path).await?))),
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>, interest: Interest) -> Poll<io::Result<()>> {
        match (self, interest.is_readable()) {
            (Self::Tcp(stream), true) => stream.poll_read_ready(cx),
            (Self::Tcp(stream), false) => stream.poll_write_ready(cx),
            (Self::Unix(stream), true) => stream.poll_read_ready(cx),
            (Self::Unix(stream), false) => stream.poll_write_ready(cx),
        }
    }

    /// Waits until the peer has closed the connection.
    async fn closed_by_peer(&self) {
        let mut scratch = [0; 64];
        loop {
            let read = match self {
                Self::Tcp(stream) => match stream.readable().await {
                    Ok(()) => stream.try_read(&mut scratch),
                    Err(_) => return,
                },
                Self::Unix(stream) => match stream.readable().await {
                    Ok(()) => stream.try_read(&mut scratch),
                    Err(_) => return,
                },
            };
            match read {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_ready(cx, Interest::READABLE))?;
            let unfilled = out.initialize_unfilled();
            let read = match &*self {
                Self::Tcp(stream) => stream.try_read(unfilled),
                Self::Unix(stream) => stream.try_read(unfilled),
            };
            match read {
                Ok(count) => {
                    out.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_ready(cx, Interest::WRITABLE))?;
            let written = match &*self {
                Self::Tcp(stream) => stream.try_write(bytes),
                Self::Unix(stream) => stream.try_write(bytes),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing: the connection is closed with the last clone.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Connects to the first of the addresses that answers. Not bounded in time: the caller is.
pub(crate) async fn connect(
    config: &Config,
    tls: &MakeRustlsConnect,
    bound: &RowBound,
) -> Result<(Client, Driving, Address), Cause> {
    let mut last: Cause = "the connection string names no host".into();
    for address in addresses(config) {
        match connect_to(&address, config, tls, bound).await {
            Ok((client, driving)) => return Ok((client, driving, address)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(
    address: &Address,
    config: &Config,
    tls: &MakeRustlsConnect,
    bound: &RowBound,
) -> Result<(Client, Driving), Cause> {
    let socket = Socket::connect(address).await?;
    let mut config = config.clone();
    if matches!(socket, Socket::Unix(_)) {
        config.ssl_mode(SslMode::Disable);
    }
    let guarded = match config.get_ssl_mode() {
        SslMode::Disable => Guarded::plain(socket, bound.clone()),
        SslMode::Prefer => Guarded::perhaps_tls(socket, bound.clone()),
        _ => Guarded::below_tls(socket, bound.clone()),
    };
    Ok(config.connect_raw(guarded, connector(address, tls, bound)).await?)
}

/// A stream of bytes in both directions.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// A connection without the driver, encrypted as the configuration asks. Not bounded in time: the caller is.
pub(crate) async fn bare(
    address: &Address,
    config: &Config,
    tls: &MakeRustlsConnect,
) -> Result<Box<dyn Duplex>, Cause> {
    let mut socket = Socket::connect(address).await?;
    let mode = config.get_ssl_mode();
    if matches!(socket, Socket::Unix(_)) || mode == SslMode::Disable {
        return Ok(Box::new(socket));
    }
    if config.get_ssl_negotiation() == SslNegotiation::Postgres {
        let mut request = BytesMut::new();
        ssl_request(&mut request);
        socket.write_all(&request).await?;
        match (socket.read_u8().await?, mode) {
            (b'S', _) => {}
            (b'N', SslMode::Prefer) => return Ok(Box::new(socket)),
            (b'N', _) => return Err("the server does not offer TLS".into()),
            _ => return Err("the server answered the request for TLS with something else".into()),
        }
    }
    let name = address.host_name.as_deref().unwrap_or_default();
    let Ok(connect) = MakeTlsConnect::<Socket>::make_tls_connect(&mut tls.clone(), name);
    Ok(Box::new(TlsConnect::connect(connect, socket).await?))
}

fn connector(
    address: &Address,
    tls: &MakeRustlsConnect,
    bound: &RowBound,
) -> GuardedTls<<MakeRustlsConnect as MakeTlsConnect<Guarded<Socket>>>::TlsConnect> {
    let name = address.host_name.as_deref().unwrap_or_default();
    let Ok(inner) = MakeTlsConnect::<Guarded<Socket>>::make_tls_connect(&mut tls.clone(), name);
    GuardedTls { inner, bound: bound.clone() }
}

/// Asks the server to cancel what a connection is doing, and waits until it has handled the request. Best effort.
pub(crate) async fn cancel(token: &CancelToken, address: &Address, tls: &MakeRustlsConnect) {
    let Ok(socket) = Socket::connect(address).await else { return };
    // Nothing large comes back: the answer is the end of the connection.
    let bound = RowBound::new(usize::MAX);
    let guarded = Guarded::below_tls(socket.clone(), bound.clone());
    if token.cancel_query_raw(guarded, connector(address, tls, &bound)).await.is_ok() {
        socket.closed_by_peer().await;
    }
}
