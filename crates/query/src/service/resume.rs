//! Resumes, take-overs and leaving: who sits in a lease's one seat. The seat's lock and the machine's epoch move together; a
//! seat that has ended is never taken again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_core::failure::{ErrorKind, Failure};
use tidegate_core::id::Epoch;
use tidegate_core::port::SourceError;
use tidegate_core::principal::Principal;
use tidegate_core::time::Moment;
use tidegate_lease::audit::AuditEvent;
use tidegate_lease::cursor::{CursorEnd, Found};
use tidegate_lease::machine::{Command, Outcome};
use tokio::sync::watch;

use super::Inner;
use crate::error::{Draining, ResumeError};
use crate::feed::Sought;
use crate::leased::{LeaseEnd, Leased, Signal};
use crate::request::ResumeRequest;
use crate::stream::QueryStream;

/// Holds an empty seat for a resume while it looks for its row: the slot is taken before any work is done, and the lease
/// does not expire under the work. If the resume fails, the seat is as it was, deadline included.
struct Visit {
    service: Arc<Inner>,
    leased: Arc<Leased>,
    /// The epoch of the visit; `None` where a reader sits there, who goes on until the prefix is proved.
    epoch: Option<Epoch>,
    before: Before,
}

/// How an empty seat stood.
struct Before {
    expires_at: Moment,
    left_at: Option<Moment>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Some(epoch) = self.epoch else { return };
        let now = self.service.clock.now();
        let mut seat = self.leased.seat.lock();
        if seat.epoch == epoch && !seat.ended {
            seat.slot = None;
            seat.left_at = self.before.left_at;
            if let Some(vacant) = self.service.fence(&self.leased, self.before.expires_at.saturating_since(now)) {
                seat.epoch = vacant;
            }
            drop(seat);
            self.service.rearm.notify_one();
        }
    }
}

impl Inner {
    pub(super) async fn resume(
        self: &Arc<Self>,
        who: &Principal,
        request: ResumeRequest,
    ) -> Result<QueryStream, ResumeError> {
        let resumed = self.try_resume(who, request).await;
        if let Err(error) = &resumed {
            metrics::counter!("tidegate_stream_resume_refused_total", "reason" => error.code()).increment(1);
            if error.kind() == ErrorKind::Exhausted {
                self.refused(who, error.code());
            }
        }
        resumed
    }

    async fn try_resume(self: &Arc<Self>, who: &Principal, request: ResumeRequest) -> Result<QueryStream, ResumeError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Draining.into());
        }
        let found = self.cursors.lock().find(&request.cursor, &who.owner);
        let leased = match found {
            Found::Live(leased) => leased,
            Found::Ended(CursorEnd::Cancelled) => return Err(ResumeError::Cancelled),
            Found::Ended(_) => return Err(ResumeError::SnapshotExpired(None)),
            Found::NotFound => return Err(ResumeError::CursorNotFound),
        };
        let rows = request.rows;
        let mut visit = self.visit(&leased, who)?;
        let limit_ms = leased.settings.limits_resume_timeout_ms();
        let deadline = self.clock.now().after(Duration::from_millis(limit_ms));
        let mut signal = leased.signal.subscribe();
        let _aside = leased.step_aside();
        // The prefix is proved before the present reader is fenced: a wrong resume costs it time and nothing else.
        let seeking = async {
            let mut feed = leased.feed.lock().await;
            let sought = feed.seek(rows, &request.prefix_hash).await;
            (feed, sought)
        };
        let (feed, sought) = tokio::select! {
            biased;
            end = ended(&mut signal) => return Err(end.into()),
            sought = seeking => sought,
            () = self.clock.sleep_until(deadline) => return Err(ResumeError::Timeout { rows, limit_ms }),
        };
        let (hasher, from_memory) = match sought {
            Sought::Found { hasher, from_memory } => (hasher, from_memory),
            Sought::Mismatch => return Err(ResumeError::PrefixHashMismatch { rows }),
            Sought::Diverged => return Err(ResumeError::Diverged),
            Sought::Gone(error) if matches!(*error, SourceError::SnapshotLost(_)) => {
                return Err(ResumeError::SnapshotExpired(Some(error)));
            }
            Sought::Gone(error) => return Err(ResumeError::Source(error)),
        };
        let epoch = self.take_over(&mut visit, who)?;
        let kind = if from_memory { "resume_from_memory" } else { "resume_from_snapshot" };
        metrics::counter!("tidegate_stream_opened_total", "kind" => kind).increment(1);
        self.auditor.emit(
            Some(&who.owner),
            AuditEvent::StreamOpened {
                lease: leased.id,
                source: Arc::clone(&leased.source),
                snapshot: leased.snapshot.id().clone(),
                query_hash: leased.query_hash,
                from_row: rows,
            },
        );
        drop(feed);
        Ok(self.read(Arc::clone(&leased), Some(request.cursor), epoch, hasher, who))
    }

    /// Takes an empty seat for the time of a resume. Refused before anything is done where no slot is free.
    fn visit(self: &Arc<Self>, leased: &Arc<Leased>, who: &Principal) -> Result<Visit, ResumeError> {
        let settings = self.settings.freeze();
        let mut seat = leased.seat.lock();
        if seat.ended {
            return Err(ResumeError::SnapshotExpired(None));
        }
        let mut before = Before { expires_at: Moment::NEVER, left_at: seat.left_at };
        let mut epoch = None;
        if seat.slot.is_none() {
            let slot = self.stream_slot(&who.owner, &settings)?;
            let now = self.clock.now();
            before.expires_at = self.machine.lock().find(now, &leased.id).map_or(now, |held| held.expires_at);
            let visiting = self.fence(leased, Duration::MAX).ok_or(ResumeError::SnapshotExpired(None))?;
            seat.slot = Some(slot);
            seat.epoch = visiting;
            seat.left_at = None;
            epoch = Some(visiting);
        }
        Ok(Visit { service: Arc::clone(self), leased: Arc::clone(leased), epoch, before })
    }

    /// Gives the seat to the reader that the visit was for: the visit's own epoch, or the next one, which fences whoever sits
    /// there and takes its slot over.
    fn take_over(&self, visit: &mut Visit, who: &Principal) -> Result<Epoch, ResumeError> {
        let settings = self.settings.freeze();
        let leased = &visit.leased;
        let mut seat = leased.seat.lock();
        if seat.ended {
            return Err(ResumeError::SnapshotExpired(None));
        }
        if visit.epoch == Some(seat.epoch) {
            // From here on the reader leaves the seat, not the visit.
            visit.epoch = None;
        } else {
            let fenced = seat.slot.is_some().then_some(seat.epoch);
            let slot = match seat.slot.take() {
                Some(slot) => slot,
                None => self.stream_slot(&who.owner, &settings)?,
            };
            // The seat has not ended, so its lease is held and can be fenced; else it ends with this slot.
            seat.epoch = self.fence(leased, Duration::MAX).ok_or(ResumeError::SnapshotExpired(None))?;
            seat.slot = Some(slot);
            if let Some(epoch) = fenced {
                self.auditor.emit(Some(&who.owner), AuditEvent::LeaseFenced { lease: leased.id, epoch });
            }
        }
        seat.left_at = None;
        seat.completed = false;
        let epoch = seat.epoch;
        drop(seat);
        leased.signal.send_modify(|signal| signal.epoch = epoch);
        Ok(epoch)
    }

    /// The next epoch of a lease that has not ended. A reader's epoch has no deadline: it is renewed while it is read, and
    /// when the reader leaves, an epoch without a reader begins that has the TTL.
    fn fence(&self, leased: &Leased, ttl: Duration) -> Option<Epoch> {
        let now = self.clock.now();
        let mut machine = self.machine.lock();
        machine.find(now, &leased.id)?;
        let fence = Command::Fence { resource: leased.id, holder: leased.owner.clone(), ttl };
        match machine.apply(now, fence) {
            Outcome::Acquired { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// The reader of this epoch is gone. Its slot is free, unless a later reader has taken it over; the lease lives on
    /// for its TTL, or ends now if nobody could resume it.
    pub(crate) fn leave(&self, leased: &Arc<Leased>, epoch: Epoch, completed: bool) {
        {
            let mut seat = leased.seat.lock();
            if seat.epoch != epoch {
                return;
            }
            seat.slot = None;
            seat.left_at = Some(self.clock.now());
            seat.completed = completed;
            let ttl = Duration::from_millis(leased.settings.stream_snapshot_ttl_ms());
            if let Some(vacant) = self.fence(leased, ttl) {
                seat.epoch = vacant;
            }
        }
        if leased.cursor.is_none() {
            self.end(leased, LeaseEnd::Expired);
            return;
        }
        self.rearm.notify_one();
        if completed {
            // Where every row is in memory the database need not hold the snapshot for a resume that may never come.
            let leased = Arc::clone(leased);
            tokio::spawn(async move {
                let feed = leased.feed.lock().await;
                if feed.is_whole() {
                    leased.unpin().await;
                }
            });
        }
    }
}

/// Resolves when the lease has ended.
async fn ended(signal: &mut watch::Receiver<Signal>) -> LeaseEnd {
    match signal.wait_for(|signal| signal.end.is_some()).await.map(|signal| signal.end) {
        Ok(Some(end)) => end,
        // The lease's state is gone, and so is the lease.
        Ok(None) | Err(_) => LeaseEnd::Expired,
    }
}

impl From<LeaseEnd> for ResumeError {
    fn from(end: LeaseEnd) -> Self {
        match end {
            LeaseEnd::Cancelled => Self::Cancelled,
            LeaseEnd::Expired => Self::SnapshotExpired(None),
            LeaseEnd::Draining => Self::Draining(Draining),
        }
    }
}
