//! Slots, leases and connections: taken, refused with the bound, and, when they run out, freed by giving up what has
//! finished, or what the asker itself has left. Nobody's unfinished stream is given up for another's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidegate_core::limit::Settings;
use tidegate_core::port::{QuerySnapshot, QuerySource, SourceError};
use tidegate_core::principal::{Owner, Principal};
use tidegate_lease::audit::{AuditEvent, CloseReason};
use tidegate_lease::capacity::{CapacityBounds, CapacityExhausted, CapacityScope, Slot};

use super::Inner;
use crate::error::{LeasesExhausted, OpenError};
use crate::leased::{LeaseEnd, Leased};

impl Inner {
    /// A snapshot; where the source's connections are all held, those of streams that may be given up are freed for it.
    pub(super) async fn snapshot(
        &self,
        name: &str,
        source: &Arc<dyn QuerySource>,
        asker: &Owner,
    ) -> Result<Arc<dyn QuerySnapshot>, SourceError> {
        loop {
            let limit = match source.open().await {
                Err(SourceError::ConnectionsExhausted { limit }) => limit,
                opened => return opened,
            };
            let of_source = |leased: &Leased| *leased.source == *name && leased.pinned.load(Ordering::Acquire);
            if !self.give_up(asker, of_source).await {
                return Err(SourceError::ConnectionsExhausted { limit });
            }
        }
    }

    pub(super) fn stream_slot(&self, owner: &Owner, settings: &Settings) -> Result<Slot, CapacityExhausted> {
        self.stream_slots.set_bounds(CapacityBounds::of_streams(settings));
        self.stream_slots.try_acquire(owner)
    }

    pub(super) async fn lease_slot(&self, owner: &Owner, settings: &Settings) -> Result<Slot, OpenError> {
        self.lease_slots.set_bounds(CapacityBounds::of_leases(settings));
        loop {
            let refused = match self.lease_slots.try_acquire(owner) {
                Ok(slot) => return Ok(slot),
                Err(refused) => refused,
            };
            let (given_up, setting) = match refused.scope {
                CapacityScope::Global => (self.give_up(owner, |_| true).await, "limits.lease_max_global"),
                CapacityScope::Owner => {
                    let own = self.give_up(owner, |leased| leased.owner == *owner).await;
                    (own, "limits.lease_max_per_principal")
                }
            };
            if !given_up {
                return Err(LeasesExhausted { limit: refused.limit, current: refused.current, setting }.into());
            }
        }
    }

    /// Gives up one lease that nobody reads, and waits until its connection is free: first one whose stream was completed,
    /// whoever's it is, then one that the asker itself left in the middle; the one left longest ago. `false` where there
    /// is none. Every round ends one lease, so a loop over this ends.
    async fn give_up(&self, asker: &Owner, eligible: impl Fn(&Leased) -> bool) -> bool {
        loop {
            let chosen = {
                let leases = self.leases.lock();
                let candidates = leases.values().filter(|leased| eligible(leased)).filter_map(|leased| {
                    let seat = leased.seat.lock();
                    let may = seat.slot.is_none() && (seat.completed || leased.owner == *asker);
                    may.then(|| ((!seat.completed, seat.left_at), Arc::clone(leased)))
                });
                candidates.min_by_key(|(rank, _)| *rank)
            };
            let Some((_, leased)) = chosen else { return false };
            // A resume may have sat down in the meantime: then this is no longer a lease that nobody reads.
            let free = {
                let mut seat = leased.seat.lock();
                let free = seat.slot.is_none() && !seat.ended;
                seat.ended |= free;
                free
            };
            if free {
                self.end(&leased, LeaseEnd::Expired);
                leased.close().await;
                return true;
            }
        }
    }

    /// A refusal by capacity, for the audit trail and the metrics.
    pub(super) fn refused(&self, who: &Principal, code: &'static str) {
        metrics::counter!("tidegate_stream_refused_total", "code" => code).increment(1);
        self.auditor.emit(
            Some(&who.owner),
            AuditEvent::StreamClosed {
                lease: None,
                reason: CloseReason::CapacityRefused,
                rows: 0,
                bytes: 0,
                from_row: 0,
                duration_ms: 0,
            },
        );
    }
}
