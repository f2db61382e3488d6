//! What a connection is doing: how many requests it serves, when its client last took anything, and whether what is there
//! for it waits. It closes nothing itself.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
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

    pub(super) fn subscribe(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
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
    /// Since when bytes wait for the client, in nanoseconds of the clock; 0 = none do.
    blocked: AtomicU64,
    /// The answer that is being given has no end of its own.
    endless: AtomicBool,
    ended: Notify,
    clock: Arc<dyn Clock>,
    all: InFlight,
}

/// One request, from its head to the last byte of its answer's body.
pub(super) struct Serving {
    activity: Arc<Activity>,
    /// Requests that come while draining are answered, not waited for.
    counted: bool,
    /// Where the client can hold one answer back and not the others.
    taking: Option<Arc<Taking>>,
}

tokio::task_local! {
    /// The answer that an HTTP/2 stream's task is giving.
    pub(super) static TAKING: Arc<Taking>;
}

/// How the client takes one answer.
pub(super) struct Taking {
    /// Since when a piece that was given waits for the client, in nanoseconds of the clock; 0 = none does.
    waits: AtomicU64,
    endless: AtomicBool,
    clock: Arc<dyn Clock>,
}

impl Taking {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { waits: AtomicU64::new(0), endless: AtomicBool::new(false), clock })
    }

    /// Returns when a piece has waited for `limit(endless)`.
    pub(super) async fn stalled(&self, limit: impl Fn(bool) -> Duration) {
        let limit = || limit(self.endless.load(Ordering::Acquire));
        waited(&self.waits, self.clock.as_ref(), limit).await;
    }
}

/// Returns when `since` has been the same for `limit()`. It looks four times in that time rather than being told of each
/// change: those come with every piece of every stream.
async fn waited(since: &AtomicU64, clock: &dyn Clock, limit: impl Fn() -> Duration) {
    loop {
        let (now, limit) = (clock.now(), limit());
        let since = since.load(Ordering::Acquire);
        if since != 0 && now >= at(since).after(limit) {
            return;
        }
        clock.sleep_until(now.after(limit / 4)).await;
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.saturating_since(Moment::ORIGIN).as_nanos()).unwrap_or(u64::MAX)
}

fn at(nanos: u64) -> Moment {
    Moment::since_origin(Duration::from_nanos(nanos))
}

impl Activity {
    pub(super) fn new(clock: Arc<dyn Clock>, all: InFlight) -> Arc<Self> {
        Arc::new(Self {
            requests: AtomicUsize::new(0),
            last: AtomicU64::new(nanos(clock.now())),
            blocked: AtomicU64::new(0),
            endless: AtomicBool::new(false),
            ended: Notify::new(),
            clock,
            all,
        })
    }

    pub(super) fn begin(self: &Arc<Self>, counted: bool) -> Serving {
        self.requests.fetch_add(1, Ordering::AcqRel);
        if counted {
            self.all.count.send_modify(|count| *count += 1);
        }
        metrics::gauge!("tidegate_http_requests_in_flight").increment(1);
        Serving { activity: Arc::clone(self), counted, taking: TAKING.try_with(Arc::clone).ok() }
    }

    fn touch(&self) {
        self.last.store(nanos(self.clock.now()), Ordering::Release);
    }

    /// Returns when bytes have waited for the client for `limit(endless)` and it took none.
    pub(super) async fn blocked(&self, limit: impl Fn(bool) -> Duration) {
        let limit = || limit(self.endless.load(Ordering::Acquire));
        waited(&self.blocked, self.clock.as_ref(), limit).await;
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
            let deadline = at(self.last.load(Ordering::Acquire)).after(limit());
            if self.clock.now() >= deadline {
                return;
            }
            self.clock.sleep_until(deadline).await;
        }
    }
}

impl Serving {
    /// The answer has no end of its own: a client that takes nothing of it is not offered a last line.
    pub(super) fn mark_endless(&self) {
        match &self.taking {
            Some(taking) => taking.endless.store(true, Ordering::Release),
            None => self.activity.endless.store(true, Ordering::Release),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.activity.endless.store(false, Ordering::Release);
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
        let blocked = &self.activity.blocked;
        match written {
            Poll::Ready(_) => {
                blocked.store(0, Ordering::Release);
                self.activity.touch();
            }
            Poll::Pending if blocked.load(Ordering::Acquire) == 0 => {
                blocked.store(nanos(self.activity.clock.now()).max(1), Ordering::Release);
            }
            Poll::Pending => {}
        }
    }
}

/// An answer's body, served until it is dropped.
pub(super) struct ServedBody {
    body: Body,
    serving: Serving,
}

impl ServedBody {
    pub(super) fn new(body: Body, serving: Serving) -> Self {
        Self { body, serving }
    }
}

impl http_body::Body for ServedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let served = self.get_mut();
        let polled = Pin::new(&mut served.body).poll_frame(context);
        if let Some(taking) = &served.serving.taking {
            // Who asks for the next piece has taken the last one; while the source makes it, nobody waits for the client.
            let waits = match &polled {
                Poll::Ready(Some(_)) => nanos(taking.clock.now()).max(1),
                Poll::Ready(None) | Poll::Pending => 0,
            };
            taking.waits.store(waits, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
