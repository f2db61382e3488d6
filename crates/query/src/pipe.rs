//! The bounded pipe between a source that pushes rows and the one reader that pulls chunks. It holds at most
//! [`CHUNKS_AHEAD`] finished chunks and one that is being filled; then the source waits. It never drops a row.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use parking_lot::Mutex;
use tidegate_core::port::{CellWriter, RowAbandoned, RowSink, SinkError, SinkState, SourceError};
use tidegate_core::time::{Clock, Moment};
use tidegate_frame::chunk::{Chunk, ChunkBounds, ChunkProducer, FlushCause};
use tidegate_frame::ndjson::{EncodeError, RowEncoder};
use tokio::sync::Notify;

/// How many finished chunks a source may be ahead of its reader.
pub(crate) const CHUNKS_AHEAD: usize = 4;

/// A source that waited for room goes on when so many finished chunks are left: not at every chunk that is taken, because a
/// thread that is woken costs as much as some dozens of rows.
const CHUNKS_LEFT: usize = 2;

/// The first chunk of a run is not held for the latency bound: a reader is waiting for its first row. It is held just
/// long enough that a source that has its rows ready fills a chunk.
const FIRST_CHUNK_LATENCY: Duration = Duration::from_millis(1);

struct Shared {
    state: Mutex<State>,
    readable: Notify,
    writable: Notify,
}

struct State {
    producer: ChunkProducer,
    ready: VecDeque<Chunk>,
    /// `Some` once the source has ended; taken by the reader after the last chunk.
    ended: Option<Result<(), SourceError>>,
    has_ended: bool,
    reader_gone: bool,
    first_row_at: Option<Moment>,
    first_chunk_given: bool,
    /// The reader sleeps without a deadline: a chunk's first row must wake it, so that it sets its timer.
    wake_on_first_row: bool,
}

/// The source's end.
pub(crate) struct PipeSink {
    shared: Arc<Shared>,
    encoder: Arc<RowEncoder>,
    clock: Arc<dyn Clock>,
    row_max_bytes: usize,
}

/// Tells the reader how the source ended; if it is dropped without a word, that is told too.
pub(crate) struct PipeEnd {
    shared: Arc<Shared>,
}

/// The reader's end. Dropping it closes the sink.
pub(crate) struct PipeReader {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    /// The bound of a chunk's latency.
    latency: Duration,
    /// The last chunk was a full one, so the next one is expected before any timer: the reader does not ask to be woken for
    /// its first row, but looks after at most `latency` whether one came. So nothing is late, and a fast source costs one
    /// wake-up a chunk.
    expects_full_chunk: bool,
}

/// What a reader is given.
pub(crate) enum Piped {
    /// Rows.
    Chunk(Chunk),
    /// The source has pushed its last row.
    Complete,
    /// The source failed after the rows that were given.
    Failed(SourceError),
}

pub(crate) fn pipe(
    bounds: ChunkBounds,
    encoder: Arc<RowEncoder>,
    row_max_bytes: usize,
    clock: Arc<dyn Clock>,
) -> (PipeSink, PipeEnd, PipeReader) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            producer: ChunkProducer::new(bounds, 0),
            ready: VecDeque::with_capacity(CHUNKS_AHEAD + 1),
            ended: None,
            has_ended: false,
            reader_gone: false,
            first_row_at: None,
            first_chunk_given: false,
            wake_on_first_row: true,
        }),
        readable: Notify::new(),
        writable: Notify::new(),
    });
    let sink = PipeSink { shared: Arc::clone(&shared), encoder, clock: Arc::clone(&clock), row_max_bytes };
    let latency = bounds.latency;
    let reader = PipeReader { shared: Arc::clone(&shared), clock, latency, expects_full_chunk: false };
    (sink, PipeEnd { shared }, reader)
}

#[async_trait]
impl RowSink for PipeSink {
    fn push(
        &mut self,
        fill: &mut dyn FnMut(&mut dyn CellWriter) -> Result<(), RowAbandoned>,
    ) -> Result<SinkState, SinkError> {
        let mut guard = self.shared.state.lock();
        let state = &mut *guard;
        if state.reader_gone {
            return Err(SinkError::Closed);
        }
        let mut first = None;
        let now = || *first.insert(self.clock.now());
        let row = state.producer.next_row();
        let chunk = state.producer.append(now, |buf: &mut BytesMut| self.encoder.encode(buf, self.row_max_bytes, fill));
        let chunk = chunk.map_err(|error: EncodeError| error.at_row(row))?;
        if let Some(chunk) = chunk {
            state.ready.push_back(chunk);
            self.shared.readable.notify_one();
        } else if let Some(now) = first {
            state.first_row_at.get_or_insert(now);
            if state.wake_on_first_row {
                self.shared.readable.notify_one();
            }
        }
        Ok(if state.ready.len() >= CHUNKS_AHEAD { SinkState::Full } else { SinkState::Ready })
    }

    async fn ready(&mut self) -> Result<(), SinkError> {
        let mut room_from = CHUNKS_AHEAD - 1;
        loop {
            let writable = self.shared.writable.notified();
            {
                let state = self.shared.state.lock();
                if state.reader_gone {
                    return Err(SinkError::Closed);
                }
                if state.ready.len() <= room_from {
                    return Ok(());
                }
            }
            room_from = CHUNKS_LEFT;
            writable.await;
        }
    }
}

impl PipeEnd {
    pub(crate) fn finish(self, result: Result<(), SourceError>) {
        self.set(result);
    }

    fn set(&self, result: Result<(), SourceError>) {
        let mut state = self.shared.state.lock();
        if !state.has_ended {
            state.has_ended = true;
            state.ended = Some(result);
            self.shared.readable.notify_one();
        }
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        // A source that panicked or was stopped says nothing more: its reader must not wait for ever.
        self.set(Err(SourceError::Internal(None)));
    }
}

impl PipeReader {
    /// The next rows, as soon as a bound of the chunk is reached; or the end. Cancel-safe: nothing is lost if the
    /// future is dropped.
    pub(crate) async fn next(&mut self) -> Piped {
        loop {
            let readable = self.shared.readable.notified();
            let now = self.clock.now();
            let deadline = {
                let mut guard = self.shared.state.lock();
                let state = &mut *guard;
                let early = match (state.first_chunk_given, state.first_row_at) {
                    (false, Some(at)) => Some(at.after(FIRST_CHUNK_LATENCY)),
                    _ => None,
                };
                let due = early.is_some_and(|at| now >= at);
                let chunk = state
                    .ready
                    .pop_front()
                    .or_else(|| state.producer.flush_due(now))
                    .or_else(|| if due { state.producer.flush() } else { None })
                    .or_else(|| if state.has_ended { state.producer.finish() } else { None });
                if let Some(chunk) = chunk {
                    state.first_chunk_given = true;
                    if state.ready.len() <= CHUNKS_LEFT {
                        self.shared.writable.notify_one();
                    }
                    self.expects_full_chunk = matches!(chunk.cause, FlushCause::Bytes | FlushCause::Rows);
                    return Piped::Chunk(chunk);
                }
                if let Some(result) = state.ended.take() {
                    return match result {
                        Ok(()) => Piped::Complete,
                        Err(error) => Piped::Failed(error),
                    };
                }
                let deadline = match (state.producer.deadline(), early) {
                    (Some(at), Some(early)) => Some(at.min(early)),
                    (None, _) if self.expects_full_chunk => {
                        // Only once: a source that is idle is not looked at again and again.
                        self.expects_full_chunk = false;
                        Some(now.after(self.latency))
                    }
                    (at, _) => at,
                };
                state.wake_on_first_row = deadline.is_none();
                deadline
            };
            match deadline {
                None => readable.await,
                Some(deadline) => {
                    tokio::select! {
                        () = readable => {}
                        () = self.clock.sleep_until(deadline) => {}
                    }
                }
            }
        }
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.reader_gone = true;
        state.ready.clear();
        self.shared.writable.notify_one();
    }
}
