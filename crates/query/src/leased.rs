//! One lease's shared state: the pinned snapshot, the feed, the seat of its one reader, and the signal that makes a reader
//! stop or step aside. Everything that a later reader must find again lives here; nothing here outlives the lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tidegate_core::Timestamp;
use tidegate_core::id::{CursorToken, Epoch, LeaseId};
use tidegate_core::limit::Settings;
use tidegate_core::port::{Column, QuerySnapshot};
use tidegate_core::principal::Owner;
use tidegate_core::time::Moment;
use tidegate_frame::ndjson::OpenLine;
use tidegate_lease::capacity::Slot;
use tidegate_lease::cursor::CursorKey;
use tokio::sync::watch;

use crate::feed::Feed;

/// A lease with all that belongs to it.
pub(crate) struct Leased {
    pub(crate) id: LeaseId,
    /// What the cursor is known by; `None` = not resumable. The token itself is not kept.
    pub(crate) cursor: Option<CursorKey>,
    pub(crate) owner: Owner,
    pub(crate) source: Arc<str>,
    pub(crate) query_hash: [u8; 32],
    pub(crate) snapshot: Arc<dyn QuerySnapshot>,
    pub(crate) columns: Arc<[Column]>,
    pub(crate) schema: String,
    pub(crate) not_resumable_because: Option<String>,
    pub(crate) settings: Settings,
    pub(crate) opened_at: Timestamp,
    /// Only the present reader, or a resume that made it step aside, holds it.
    pub(crate) feed: tokio::sync::Mutex<Feed>,
    pub(crate) seat: Mutex<Seat>,
    pub(crate) signal: watch::Sender<Signal>,
    pub(crate) sent_rows: AtomicU64,
    /// The database still holds the snapshot for it.
    pub(crate) pinned: AtomicBool,
    /// Counts against the lease bounds until the lease ends.
    pub(crate) lease_slot: Mutex<Option<Slot>>,
}

/// Who reads.
pub(crate) struct Seat {
    pub(crate) epoch: Epoch,
    /// Taken while somebody reads; a take-over hands it on.
    pub(crate) slot: Option<Slot>,
    /// When the last reader left.
    pub(crate) left_at: Option<Moment>,
    /// The last reader was sent the end line.
    pub(crate) completed: bool,
    /// Nobody takes this seat any more.
    pub(crate) ended: bool,
}

/// What a reader must heed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signal {
    /// The epoch of the present reader: a lower one is fenced.
    pub(crate) epoch: Epoch,
    /// The lease has ended.
    pub(crate) end: Option<LeaseEnd>,
    /// Resumes that wait for the feed: while there are any, the reader leaves it alone.
    pub(crate) resumes: u32,
}

/// Why a lease ended under its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseEnd {
    Cancelled,
    Expired,
    Draining,
}

impl Leased {
    /// The open line for a reader that begins at `from_row`.
    pub(crate) fn open_line(&self, cursor: Option<&CursorToken>, from_row: u64) -> OpenLine {
        OpenLine {
            lease: self.id,
            cursor: cursor.map(CursorToken::reveal),
            snapshot: self.snapshot.id().as_str().to_owned(),
            resumable: self.cursor.is_some(),
            not_resumable_because: self.not_resumable_because.clone(),
            columns: Arc::clone(&self.columns),
            schema: self.schema.clone(),
            ttl_ms: self.settings.stream_snapshot_ttl_ms(),
            from_row,
        }
    }

    /// Ends it for its reader, if there is one. The first reason stays.
    pub(crate) fn end(&self, end: LeaseEnd) {
        self.signal.send_modify(|signal| {
            signal.end.get_or_insert(end);
        });
    }

    /// Makes the present reader leave the feed alone for as long as the guard lives.
    pub(crate) fn step_aside(self: &Arc<Self>) -> StepAside {
        self.signal.send_modify(|signal| signal.resumes += 1);
        StepAside { leased: Arc::clone(self) }
    }

    /// Stops the run, forgets the rows and gives the snapshot's connection back. Waits until the reader has let go.
    pub(crate) async fn close(&self) {
        self.feed.lock().await.close();
        self.unpin().await;
    }

    /// Gives the snapshot's connection back.
    pub(crate) async fn unpin(&self) {
        self.snapshot.close().await;
        self.pinned.store(false, Ordering::Release);
    }

    pub(crate) fn note_sent(&self, rows: u64) {
        self.sent_rows.fetch_max(rows, Ordering::Relaxed);
    }
}

/// See [`Leased::step_aside`].
pub(crate) struct StepAside {
    leased: Arc<Leased>,
}

impl Drop for StepAside {
    fn drop(&mut self) {
        self.leased.signal.send_modify(|signal| signal.resumes -= 1);
    }
}
