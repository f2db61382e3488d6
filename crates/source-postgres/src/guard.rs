//! A bound on the size of a row *before* it is in memory: a filter over the bytes that the server sends. The driver
//! would take a message of up to 1 GB in one piece; here a `DataRow` beyond the bound is dropped as it arrives, and an
//! empty one takes its place, which the driver reports as an error. It changes no other byte and never buffers a message.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

const BUFFER_BYTES: usize = 16 * 1024;
/// Tag and length of a message.
const HEADER_BYTES: usize = 5;
/// A `DataRow` without cells.
const EMPTY_ROW: [u8; 7] = [b'D', 0, 0, 0, 6, 0, 0];

/// What the guard was told and what it saw; shared with the session.
#[derive(Debug, Clone)]
pub(crate) struct RowBound {
    limit_bytes: Arc<AtomicUsize>,
    exceeded: Arc<AtomicBool>,
}

impl RowBound {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes: Arc::new(AtomicUsize::new(limit_bytes)), exceeded: Arc::new(AtomicBool::new(false)) }
    }

    /// The bound.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes.load(Ordering::Relaxed) as u64
    }

    /// Changes the bound, between two requests: a connection that was kept ready gets that of its snapshot.
    pub(crate) fn set(&self, limit_bytes: usize) {
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// Whether a row was dropped since the last call.
    pub(crate) fn take_exceeded(&self) -> bool {
        self.exceeded.swap(false, Ordering::AcqRel)
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Everything passes: the bytes are encrypted and are filtered above.
    Off,
    /// One byte that says whether TLS follows.
    TlsReply,
    Header,
    /// The rest of a message that passes.
    Body {
        remaining: usize,
    },
    /// The empty row, then the rest of the message that it replaces.
    Replace {
        emitted: usize,
        discard: usize,
    },
    Discard {
        remaining: usize,
    },
}

/// A stream whose reads are filtered.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    inner: S,
    bound: RowBound,
    state: State,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<S> Guarded<S> {
    /// A stream on which messages come in the clear from the first byte.
    pub(crate) fn plain(inner: S, bound: RowBound) -> Self {
        Self::with(inner, bound, State::Header)
    }

    /// A stream on which the server first says whether TLS follows.
    pub(crate) fn perhaps_tls(inner: S, bound: RowBound) -> Self {
        Self::with(inner, bound, State::TlsReply)
    }

    /// A stream that is not filtered, because TLS runs over it.
    pub(crate) fn below_tls(inner: S, bound: RowBound) -> Self {
        Self::with(inner, bound, State::Off)
    }

    fn with(inner: S, bound: RowBound, state: State) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { inner, bound, state, buffer, start: 0, end: 0 }
    }

    /// Moves what may pass from the buffer into `out`.
    fn filter(&mut self, out: &mut ReadBuf<'_>) {
        loop {
            let available = self.end - self.start;
            match &mut self.state {
                State::Replace { emitted, discard } => {
                    let count = out.remaining().min(EMPTY_ROW.len() - *emitted);
                    out.put_slice(&EMPTY_ROW[*emitted..*emitted + count]);
                    *emitted += count;
                    if *emitted < EMPTY_ROW.len() {
                        return;
                    }
                    self.state = State::Discard { remaining: *discard };
                }
                State::Discard { remaining } => {
                    let count = available.min(*remaining);
                    self.start += count;
                    *remaining -= count;
                    if *remaining > 0 {
                        return;
                    }
                    self.state = State::Header;
                }
                State::Body { remaining } => {
                    let count = available.min(*remaining).min(out.remaining());
                    out.put_slice(&self.buffer[self.start..self.start + count]);
                    self.start += count;
                    *remaining -= count;
                    if *remaining > 0 {
                        return;
                    }
                    self.state = State::Header;
                }
                State::Header => {
                    if available < HEADER_BYTES {
                        return;
                    }
                    let header = &self.buffer[self.start..self.start + HEADER_BYTES];
                    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
                    self.state =
                        if header[0] == b'D' && length as u64 > self.bound.limit_bytes() && length > EMPTY_ROW.len() {
                            self.bound.exceeded.store(true, Ordering::Release);
                            State::Replace { emitted: 0, discard: length.saturating_add(1) }
                        } else {
                            State::Body { remaining: length.saturating_add(1).max(HEADER_BYTES) }
                        };
                }
                State::TlsReply => {
                    if available == 0 || out.remaining() == 0 {
                        return;
                    }
                    let reply = self.buffer[self.start];
                    out.put_slice(&[reply]);
                    self.start += 1;
                    // An `E` begins an error message in the clear; so does whatever else is no `S`.
                    self.state = match reply {
                        b'S' | b'E' => State::Off,
                        _ => State::Header,
                    };
                }
                State::Off => {
                    let count = available.min(out.remaining());
                    out.put_slice(&self.buffer[self.start..self.start + count]);
                    self.start += count;
                    return;
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            this.filter(out);
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if matches!(this.state, State::Off) && this.start == this.end {
                return Pin::new(&mut this.inner).poll_read(cx, out);
            }
            this.buffer.copy_within(this.start..this.end, 0);
            this.end -= this.start;
            this.start = 0;
            // Before TLS no byte too many may be taken: what follows the reply belongs to the layer above.
            let room = if matches!(this.state, State::TlsReply) { 1 } else { BUFFER_BYTES };
            let mut more = ReadBuf::new(&mut this.buffer[this.end..room]);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut more))?;
            let count = more.filled().len();
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            this.end += count;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Guarded<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

/// A TLS connector whose streams are filtered above the encryption.
pub(crate) struct GuardedTls<C> {
    pub(crate) inner: C,
    pub(crate) bound: RowBound,
}

impl<S, C> TlsConnect<S> for GuardedTls<C>
where
    C: TlsConnect<S>,
    C::Future: Send + 'static,
    C::Stream: Unpin + Send,
{
    type Stream = Guarded<C::Stream>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let Self { inner, bound } = self;
        let connecting = inner.connect(stream);
        Box::pin(async move { Ok(Guarded::plain(connecting.await?, bound)) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn message(tag: u8, body: usize) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&(u32::try_from(body).unwrap() + 4).to_be_bytes());
        bytes.extend((0..body).map(|index| u8::try_from(index % 251).unwrap()));
        bytes
    }

    /// Gives its bytes in pieces of the given sizes.
    struct Pieces {
        bytes: Vec<u8>,
        sizes: Vec<usize>,
        turn: usize,
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let size = self.sizes[self.turn % self.sizes.len()].min(out.remaining()).min(self.bytes.len());
            self.turn += 1;
            let piece: Vec<u8> = self.bytes.drain(..size).collect();
            out.put_slice(&piece);
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn only_rows_beyond_the_bound_are_replaced_whatever_the_pieces(
            messages in proptest::collection::vec((prop_oneof![Just(b'D'), Just(b'C'), Just(b'Z')], 0usize..300), 0..40),
            sizes in proptest::collection::vec(1usize..50, 1..8),
            out_size in 1usize..64,
        ) {
            let limit = 150;
            let (mut bytes, mut expected, mut exceeded) = (Vec::new(), Vec::new(), false);
            for &(tag, body) in &messages {
                bytes.extend(message(tag, body));
                if tag == b'D' && body + 4 > limit {
                    exceeded = true;
                    expected.extend_from_slice(&EMPTY_ROW);
                } else {
                    expected.extend(message(tag, body));
                }
            }
            let bound = RowBound::new(limit);
            let mut guarded = Guarded::plain(Pieces { bytes, sizes, turn: 0 }, bound.clone());
            let mut got = Vec::new();
            tidegate_testkit::block_on(async {
                let mut piece = vec![0; out_size];
                loop {
                    let count = guarded.read(&mut piece).await.unwrap();
                    if count == 0 { break; }
                    got.extend_from_slice(&piece[..count]);
                }
            });
            prop_assert_eq!(got, expected);
            prop_assert_eq!(bound.take_exceeded(), exceeded);
            prop_assert!(!bound.take_exceeded());
        }
    }

    #[test]
    fn no_byte_behind_the_answer_to_the_tls_request_is_touched() {
        for (reply, filtered) in [(b'S', false), (b'N', true)] {
            let mut bytes = vec![reply];
            bytes.extend(message(b'D', 400));
            let bound = RowBound::new(10);
            let pieces = Pieces { bytes: bytes.clone(), sizes: vec![1000], turn: 0 };
            let mut guarded = Guarded::perhaps_tls(pieces, bound.clone());
            let mut got = Vec::new();
            tidegate_testkit::block_on(guarded.read_to_end(&mut got)).unwrap();
            assert_eq!(bound.take_exceeded(), filtered);
            assert_eq!(got == bytes, !filtered);
        }
    }
}
