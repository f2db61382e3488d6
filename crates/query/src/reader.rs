//! Drives one reader: takes rows from the feed, hands them on at the reader's pace, and stops when it is fenced,
//! cancelled, stalled or gone. It holds the feed only while it waits for rows, never while it waits for its reader.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::failure::{Failure, Retry};
use tidegate_core::id::{CursorToken, Epoch};
use tidegate_core::port::SourceError;
use tidegate_core::time::Timestamp;
use tidegate_frame::ndjson::{EndLine, EndStatus, ErrorLine};
use tidegate_frame::prefix::PrefixHasher;
use tidegate_lease::audit::{AuditEvent, CloseReason};
use tokio::sync::{mpsc, watch};

use crate::feed::{Fed, FeedEnd};
use crate::leased::{LeaseEnd, Leased, Signal};
use crate::service::Inner;
use crate::stream::{Frame, Progress};

/// A reader at work.
pub(crate) struct Reader {
    pub(crate) service: Arc<Inner>,
    pub(crate) leased: Arc<Leased>,
    pub(crate) cursor: Option<CursorToken>,
    pub(crate) epoch: Epoch,
    pub(crate) signal: watch::Receiver<Signal>,
    pub(crate) frames: mpsc::Sender<Frame>,
    pub(crate) progress: Progress,
    /// The state after the rows that this reader was handed, or held when it came.
    pub(crate) hasher: PrefixHasher,
    pub(crate) from_row: u64,
    pub(crate) token_expires_at: Option<Timestamp>,
}

/// Why a reader stops.
enum Stop {
    Complete,
    Cancelled,
    TakenOver,
    Expired,
    Draining,
    Stalled,
    ReaderGone,
    Failed(Arc<SourceError>),
    Diverged,
}

/// Leaves the seat on every way out, a panic too.
struct SeatGuard {
    service: Arc<Inner>,
    leased: Arc<Leased>,
    epoch: Epoch,
    completed: bool,
}

impl Drop for SeatGuard {
    fn drop(&mut self) {
        self.service.leave(&self.leased, self.epoch, self.completed);
    }
}

impl Reader {
    pub(crate) async fn run(mut self) {
        let mut seat = SeatGuard {
            service: Arc::clone(&self.service),
            leased: Arc::clone(&self.leased),
            epoch: self.epoch,
            completed: false,
        };
        let started = self.service.clock.now();
        let mut bytes = 0;
        let stop = self.deliver(&mut bytes).await;
        let rows = self.hasher.rows();
        seat.completed = matches!(stop, Stop::Complete);
        drop(seat);
        self.note_token_expiry();
        let (reason, status, error) = stop.told(self.cursor.is_some());
        let duration_ms = millis(self.service.clock.now().saturating_since(started));
        metrics::counter!("tidegate_stream_closed_total", "reason" => reason.as_str()).increment(1);
        self.service.auditor.emit(
            Some(&self.leased.owner),
            AuditEvent::StreamClosed {
                lease: Some(self.leased.id),
                reason,
                rows: rows - self.from_row,
                bytes,
                from_row: self.from_row,
                duration_ms,
            },
        );
        self.farewell(status, error).await;
    }

    /// Hands rows on until there is a reason to stop.
    async fn deliver(&mut self, bytes: &mut u64) -> Stop {
        let open = Frame::Open(self.leased.open_line(self.cursor.as_ref(), self.from_row));
        if let Err(stop) = self.send(open).await {
            return stop;
        }
        loop {
            let fed = match self.pull().await {
                Ok(fed) => fed,
                Err(stop) => return stop,
            };
            match fed {
                Fed::Rows(rows, after) => {
                    let (count, size) = (after.rows() - self.hasher.rows(), rows.len() as u64);
                    if let Err(stop) = self.send(Frame::Rows(rows)).await {
                        return stop;
                    }
                    self.hasher = after;
                    *bytes += size;
                    self.leased.note_sent(self.hasher.rows());
                    metrics::counter!("tidegate_stream_rows_total").increment(count);
                    metrics::counter!("tidegate_stream_bytes_total").increment(size);
                    self.note_token_expiry();
                }
                Fed::End(FeedEnd::Complete) => return Stop::Complete,
                Fed::End(FeedEnd::Failed(error)) => return Stop::Failed(error),
                Fed::End(FeedEnd::Diverged) => return Stop::Diverged,
            }
        }
    }

    /// The next rows after those that were handed on. Lets go of the feed whenever a resume waits for it.
    async fn pull(&mut self) -> Result<Fed, Stop> {
        loop {
            let signal = *self.signal.borrow_and_update();
            self.heed(signal)?;
            if signal.resumes > 0 {
                tokio::select! {
                    changed = self.signal.changed() => changed.map_err(|_| Stop::ReaderGone)?,
                    () = self.frames.closed() => return Err(Stop::ReaderGone),
                }
                continue;
            }
            let mut feed = tokio::select! {
                biased;
                changed = self.signal.changed() => {
                    changed.map_err(|_| Stop::ReaderGone)?;
                    continue;
                }
                feed = self.leased.feed.lock() => feed,
            };
            tokio::select! {
                biased;
                changed = self.signal.changed() => changed.map_err(|_| Stop::ReaderGone)?,
                () = self.frames.closed() => return Err(Stop::ReaderGone),
                fed = feed.next(&self.hasher) => return Ok(fed),
            }
        }
    }

    /// Hands one frame on, at the reader's pace.
    async fn send(&mut self, frame: Frame) -> Result<(), Stop> {
        let stalled = stalled(Arc::clone(&self.service), Arc::clone(&self.leased), self.progress.clone());
        tokio::pin!(stalled);
        loop {
            let signal = *self.signal.borrow_and_update();
            self.heed(signal)?;
            tokio::select! {
                biased;
                changed = self.signal.changed() => changed.map_err(|_| Stop::ReaderGone)?,
                permit = self.frames.reserve() => {
                    permit.map_err(|_| Stop::ReaderGone)?.send(frame);
                    return Ok(());
                }
                () = &mut stalled => return Err(Stop::Stalled),
            }
        }
    }

    fn heed(&self, signal: Signal) -> Result<(), Stop> {
        if signal.epoch > self.epoch {
            return Err(Stop::TakenOver);
        }
        match signal.end {
            None => Ok(()),
            Some(LeaseEnd::Cancelled) => Err(Stop::Cancelled),
            Some(LeaseEnd::Expired) => Err(Stop::Expired),
            Some(LeaseEnd::Draining) => Err(Stop::Draining),
        }
    }

    /// The last lines, for a reader that still takes them. The slot is free already: a reader that does not take them
    /// within the idle time-out holds nothing but its connection, which its transport then breaks.
    async fn farewell(&mut self, status: Option<EndStatus>, error: Option<ErrorLine>) {
        let Some(status) = status else { return };
        let end =
            EndLine { rows: self.hasher.rows(), from_row: self.from_row, prefix_hash: self.hasher.digest(), status };
        for frame in error.map(Frame::Error).into_iter().chain([Frame::End(end)]) {
            tokio::select! {
                biased;
                permit = self.frames.reserve() => match permit {
                    Ok(permit) => permit.send(frame),
                    Err(_) => return,
                },
                () = stalled(Arc::clone(&self.service), Arc::clone(&self.leased), self.progress.clone()) => return,
                () = self.service.hard_stop() => return,
            }
        }
    }

    /// A token that expires while its stream runs does not end it: the lease was granted. It is told, once.
    fn note_token_expiry(&mut self) {
        if self.token_expires_at.is_some_and(|at| self.service.clock.timestamp() >= at) {
            self.token_expires_at = None;
            let event = AuditEvent::TokenExpiredDuringLease { lease: self.leased.id };
            self.service.auditor.emit(Some(&self.leased.owner), event);
        }
    }
}

/// Resolves when the reader has given no sign of life for `stream.idle_timeout_ms`.
async fn stalled(service: Arc<Inner>, leased: Arc<Leased>, progress: Progress) {
    let idle = Duration::from_millis(leased.settings.stream_idle_timeout_ms());
    loop {
        let seen = progress.count();
        service.clock.sleep_until(service.clock.now().after(idle)).await;
        if progress.count() == seen {
            return;
        }
    }
}

impl Stop {
    /// The reason for the audit trail, and what the reader is told: the status of its end line (`None` = nobody is
    /// there to read it) after an error line.
    fn told(&self, resumable: bool) -> (CloseReason, Option<EndStatus>, Option<ErrorLine>) {
        let failed = |code: &'static str, message: String, retry: Retry| {
            (Some(EndStatus::Failed), Some(ErrorLine { code: code.into(), message, retry }))
        };
        match self {
            Self::Complete => (CloseReason::Complete, Some(EndStatus::Complete), None),
            Self::Cancelled => (CloseReason::Cancelled, Some(EndStatus::Cancelled), None),
            Self::ReaderGone => (CloseReason::ReaderGone, None, None),
            Self::TakenOver => {
                let message = "another reader resumed this cursor and reads on in this one's place".to_owned();
                let (status, line) = failed("cursor_taken_over", message, Retry::Never);
                (CloseReason::TakenOver, status, line)
            }
            Self::Expired => {
                let message = "the snapshot is not pinned any more; send the query again".to_owned();
                let (status, line) = failed("snapshot_expired", message, Retry::Never);
                (CloseReason::SnapshotExpired, status, line)
            }
            Self::Draining => {
                let message = "the server is shutting down; send the query again when it is back".to_owned();
                let (status, line) = failed("draining", message, Retry::After(Duration::from_secs(1)));
                (CloseReason::Draining, status, line)
            }
            Self::Stalled => {
                let advice = if resumable { "resume with the cursor" } else { "send the query again" };
                let message = format!("nothing was taken for stream.idle_timeout_ms; {advice}");
                let (status, line) = failed("reader_stalled", message, Retry::Now);
                (CloseReason::ReaderStalled, status, line)
            }
            Self::Failed(error) => {
                let (status, line) = failed(error.code(), chain(error.as_ref()), error.retry());
                (CloseReason::Failed, status, line)
            }
            Self::Diverged => {
                let message =
                    "running the query again on the snapshot gave other rows than before; send the query again";
                let (status, line) = failed("snapshot_diverged", message.to_owned(), Retry::Never);
                (CloseReason::IntegrityFailed, status, line)
            }
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
