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
            let of_source = |leased: &Leased| *leased.source == *name;
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
        let completed = |leased: &Leased| leased.completed.load(Ordering::Acquire);
        let chosen = {
            let leases = self.leases.lock();
            let mut chosen = leases
                .values()
                .filter(|leased| eligible(leased) && !leased.is_read())
                .filter(|leased| completed(leased) || leased.owner == *asker)
                .collect::<Vec<_>>();
            chosen.sort_by_key(|leased| (!completed(leased), leased.seat.lock().left_at));
            chosen.first().map(|leased| Arc::clone(leased))
        };
        let Some(leased) = chosen else { return false };
        self.end(&leased, LeaseEnd::Expired);
        leased.close().await;
        true
    }

    pub(super) fn refused(&self, who: &Principal, refused: &CapacityExhausted) {
        let scope = match refused.scope {
            CapacityScope::Global => "global",
            CapacityScope::Owner => "principal",
        };
        metrics::counter!("tidegate_stream_refused_total", "scope" => scope).increment(1);
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
