//! What a connection is doing: how many requests it serves, and when it last took anything. It closes nothing itself.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tidegate_core::{Clock, Moment};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};

/// Requests that are being served, over all connections. Clones share one count.
#[derive(Clone)]
pub(super) struct InFlight {
    count: Arc<watch::Sender<usize>>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { count: Arc::new(watch::Sender::new(0)) }
    }
}

impl InFlight {
    pub(super) fn count(&self) -> usize {
        *self.count.borrow()
    }

    pub(super) async fn none(&self) {
        let mut count = self.count.subscribe();
        let _ = count.wait_for(|count| *count == 0).await;
    }
}

/// One connection's activity.
pub(super) struct Activity {
    requests: AtomicUsize,
    /// When the last request was done, or bytes were last taken by the client, in nanoseconds of the clock.
    last: AtomicU64,
    ended: Notify,
    clock: Arc<dyn Clock>,
    all: InFlight,
}

/// One request, from its head to the last byte of its answer's body.
pub(super) struct Serving {
    activity: Arc<Activity>,
    /// Requests that come while draining are answered, not waited for.
    counted: bool,
}

impl Activity {
    pub(super) fn new(clock: Arc<dyn Clock>, all: InFlight) -> Arc<Self> {
        let activity =
            Self { requests: AtomicUsize::new(0), last: AtomicU64::new(0), ended: Notify::new(), clock, all };
        activity.touch();
        Arc::new(activity)
    }

    pub(super) fn begin(self: &Arc<Self>, counted: bool) -> Serving {
        self.requests.fetch_add(1, Ordering::AcqRel);
        if counted {
            self.all.count.send_modify(|count| *count += 1);
        }
        metrics::gauge!("tidegate_http_requests_in_flight").increment(1);
        Serving { activity: Arc::clone(self), counted }
    }

    fn touch(&self) {
        let since = self.clock.now().saturating_since(Moment::ORIGIN);
        self.last.store(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
    }

    fn last(&self) -> Moment {
        Moment::since_origin(Duration::from_nanos(self.last.load(Ordering::Acquire)))
    }

    /// Returns when no request was served and nothing was taken for `limit()`. A head that comes byte by byte counts as
    /// nothing: only what the server sends is activity.
    pub(super) async fn idle(&self, limit: impl Fn() -> Duration) {
        loop {
            let ended = self.ended.notified();
            if self.requests.load(Ordering::Acquire) > 0 {
                ended.await;
                continue;
            }
            let deadline = self.last().after(limit());
            if self.clock.now() >= deadline {
                return;
            }
            self.clock.sleep_until(deadline).await;
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.activity.touch();
        if self.activity.requests.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.activity.ended.notify_one();
        }
        if self.counted {
            self.activity.all.count.send_modify(|count| *count -= 1);
        }
        metrics::gauge!("tidegate_http_requests_in_flight").decrement(1);
    }
}

/// A connection's bytes: what was read ahead to tell HTTP/1 from HTTP/2 comes first, and each write that the client takes is
/// activity.
pub(super) struct Metered<S> {
    stream: S,
    ahead: Bytes,
    activity: Arc<Activity>,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, ahead: Bytes, activity: Arc<Activity>) -> Self {
        Self { stream, ahead, activity }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.ahead.len().min(buffer.remaining());
        let piece = self.ahead.split_to(length);
        buffer.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S> Metered<S> {
    fn note(&self, written: &Poll<std::io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.activity.touch();
        }
    }
}
