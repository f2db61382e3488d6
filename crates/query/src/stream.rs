//! The reader's end of a stream: a bounded channel of frames. It holds two frames; the reader's pace is the source's pace.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tidegate_frame::ndjson::{EndLine, ErrorLine, OpenLine};
use tokio::sync::mpsc;

/// A part of a stream, in the order `Open`, `Rows`*, `Error`?, `End`.
#[derive(Debug, Clone)]
pub enum Frame {
    /// The first.
    Open(OpenLine),
    /// One or more whole row lines, each with its newline.
    Rows(Bytes),
    /// Something went wrong; `End` with status `failed` follows.
    Error(ErrorLine),
    /// The last.
    End(EndLine),
}

/// A stream of frames. It ends after [`Frame::End`]; if it ends before, the reader had stalled even over its end line: a
/// transport must then break the connection rather than end the body in good order. Dropping it tells the service
/// that the reader is gone: the slot is free at once, the cursor lives on.
#[derive(Debug)]
pub struct QueryStream {
    frames: mpsc::Receiver<Frame>,
    progress: Progress,
}

/// Counts the signs of life of a reader that is taking a frame bit by bit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl QueryStream {
    pub(crate) fn new(frames: mpsc::Receiver<Frame>, progress: Progress) -> Self {
        Self { frames, progress }
    }

    /// The client took a part of the last frame: it is slow, and not stalled. A transport that hands a frame on in pieces says
    /// so for each, so that `stream.idle_timeout_ms` is measured from the last piece.
    pub fn note_progress(&self) {
        self.progress.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The next frame. Cancel-safe.
    pub async fn next(&mut self) -> Option<Frame> {
        self.frames.recv().await
    }
}

impl futures::Stream for QueryStream {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.frames.poll_recv(context)
    }
}
