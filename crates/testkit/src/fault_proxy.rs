//! A TCP proxy on loopback with faults: cut after a number of bytes, cut now, stall, delay. It never changes a byte.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A running proxy. Dropping it closes its port and every connection.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accept: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    faults: watch::Sender<Faults>,
    connections: AtomicU64,
    to_client: AtomicU64,
    to_server: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    /// Each connection made from now on is cut after this many bytes from the server.
    cut_after: Option<u64>,
    /// Connections with a number up to this one are cut.
    cut_up_to: u64,
    stalled: bool,
    delay: Duration,
    refuse: bool,
}

impl FaultProxy {
    /// A proxy to `server` on an ephemeral port of loopback. Needs a tokio runtime.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            faults: watch::Sender::new(Faults::default()),
            connections: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            to_server: AtomicU64::new(0),
        });
        let accept = tokio::spawn(accept(listener, server, Arc::clone(&shared)));
        Ok(Self { address, shared, accept })
    }

    /// Where clients connect to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts each connection made from now on after it was sent exactly this many bytes of the server's; `None` = never.
    pub fn cut_after(&self, bytes: Option<u64>) {
        self.shared.faults.send_modify(|faults| faults.cut_after = bytes);
    }

    /// Cuts every connection that there is now, with whatever is on its way.
    pub fn cut_now(&self) {
        let connections = self.connections();
        self.shared.faults.send_modify(|faults| faults.cut_up_to = connections);
    }

    /// Holds all bytes in both directions, until [`Self::resume`]. Connections stay open.
    pub fn stall(&self) {
        self.shared.faults.send_modify(|faults| faults.stalled = true);
    }

    /// Lets bytes through again.
    pub fn resume(&self) {
        self.shared.faults.send_modify(|faults| faults.stalled = false);
    }

    /// Holds every block of up to 16 KiB this long before it is passed on.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Accepts and at once closes new connections, as a server that is gone behind a load balancer; `false` heals it.
    pub fn refuse(&self, refuse: bool) {
        self.shared.faults.send_modify(|faults| faults.refuse = refuse);
    }

    /// How many connections were made so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many bytes were passed to clients, over all connections.
    #[must_use]
    pub fn bytes_to_client(&self) -> u64 {
        self.shared.to_client.load(Ordering::SeqCst)
    }

    /// How many bytes were passed to the server, over all connections.
    #[must_use]
    pub fn bytes_to_server(&self) -> u64 {
        self.shared.to_server.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, shared: Arc<Shared>) {
    // Dropped with the task: the connections end with the proxy.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let faults = *shared.faults.borrow();
        if !faults.refuse {
            connections.spawn(serve(client, server, Arc::clone(&shared), number, faults.cut_after));
        }
    }
}

async fn serve(client: TcpStream, server: SocketAddr, shared: Arc<Shared>, number: u64, cut_after: Option<u64>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut faults = shared.faults.subscribe();
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let up = pump(client_read, server_write, &shared, &shared.to_server, None);
    let down = pump(server_read, client_write, &shared, &shared.to_client, cut_after);
    // When the server ends its side (or the cut comes) the connection is over; a client may end its side first.
    let up = async {
        if up.await.is_ok() {
            futures::future::pending::<()>().await;
        }
    };
    let both = async {
        tokio::select! {
            _ = down => {}
            () = up => {}
        }
    };
    tokio::select! {
        biased;
        _ = faults.wait_for(|faults| faults.cut_up_to >= number) => {}
        () = both => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    passed: &AtomicU64,
    mut left: Option<u64>,
) -> io::Result<()> {
    let mut faults = shared.faults.subscribe();
    let mut block = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut block).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        let delay = faults.borrow_and_update().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let _ = faults.wait_for(|faults| !faults.stalled).await;
        let allowed = left.map_or(length, |left| usize::try_from(left).unwrap_or(usize::MAX).min(length));
        to.write_all(&block[..allowed]).await?;
        passed.fetch_add(allowed as u64, Ordering::SeqCst);
        if let Some(left) = &mut left {
            *left -= allowed as u64;
            if *left == 0 {
                return to.shutdown().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{block_on, within};

    /// A server that answers every connection with the bytes 0, 1, 2, ... without end.
    async fn endless() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let block: Vec<u8> = (0..=255).collect();
                    while socket.write_all(&block).await.is_ok() {}
                });
            }
        });
        address
    }

    #[test]
    fn a_client_gets_exactly_the_bytes_before_the_cut() {
        block_on(async {
            let proxy = FaultProxy::start(endless().await).await.unwrap();
            proxy.cut_after(Some(100_001));
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            let mut bytes = Vec::new();
            let _ = within("the cut", client.read_to_end(&mut bytes)).await;
            assert_eq!(bytes.len(), 100_001);
            assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at % 256) as u8));
        });
    }

    #[test]
    fn a_stalled_proxy_passes_nothing_until_it_is_resumed_and_cut_now_ends_it() {
        block_on(async {
            let proxy = FaultProxy::start(endless().await).await.unwrap();
            proxy.stall();
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            let mut byte = [0; 1];
            {
                let read = client.read_exact(&mut byte);
                tokio::pin!(read);
                for _ in 0..100 {
                    assert!(futures::poll!(&mut read).is_pending());
                    tokio::task::yield_now().await;
                }
                proxy.resume();
                within("a byte", read).await.unwrap();
            }
            assert_eq!(proxy.connections(), 1);
            proxy.cut_now();
            within("the end", async {
                let mut block = [0; 4096];
                while client.read(&mut block).await.is_ok_and(|length| length > 0) {}
            })
            .await;
        });
    }
}
