//! Slots, leases and connections: taken, refused with the bound, and, when they run out, given up by what has finished.
//! Nobody's unfinished stream is given up for another's.

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
    /// A snapshot; where the source's connections are all held, one that a finished stream still pins is given up first.
    pub(super) async fn snapshot(&self, source: &Arc<dyn QuerySource>) -> Result<Arc<dyn QuerySnapshot>, SourceError> {
        match source.open().await {
            Err(SourceError::ConnectionsExhausted { limit }) => {
                let Some(leased) = self.give_up_finished(None) else {
                    return Err(SourceError::ConnectionsExhausted { limit });
                };
                leased.close().await;
                source.open().await
            }
            opened => opened,
        }
    }

    pub(super) fn stream_slot(&self, owner: &Owner, settings: &Settings) -> Result<Slot, CapacityExhausted> {
        self.stream_slots.set_bounds(CapacityBounds::of_streams(settings));
        self.stream_slots.try_acquire(owner)
    }

    pub(super) fn lease_slot(&self, owner: &Owner, settings: &Settings) -> Result<Slot, OpenError> {
        self.lease_slots.set_bounds(CapacityBounds::of_leases(settings));
        loop {
            let refused = match self.lease_slots.try_acquire(owner) {
                Ok(slot) => return Ok(slot),
                Err(refused) => refused,
            };
            let (whose, setting) = match refused.scope {
                CapacityScope::Global => (None, "limits.lease_max_global"),
                CapacityScope::Owner => (Some(owner), "limits.lease_max_per_principal"),
            };
            // Its slot is free when the last reference goes: wait for that only if it is the last one now.
            match self.give_up_finished(whose).map(Arc::try_unwrap) {
                Some(Ok(leased)) => drop(leased),
                _ => return Err(LeasesExhausted { limit: refused.limit, current: refused.current, setting }.into()),
            }
        }
    }

    /// Ends the lease whose stream was completed, and left, longest ago. Nobody's unfinished stream is given up.
    fn give_up_finished(&self, owner: Option<&Owner>) -> Option<Arc<Leased>> {
        let oldest = {
            let leases = self.leases.lock();
            leases
                .values()
                .filter(|leased| owner.is_none_or(|owner| leased.owner == *owner))
                .filter(|leased| leased.completed.load(Ordering::Acquire) && !leased.is_read())
                .min_by_key(|leased| leased.seat.lock().left_at)
                .cloned()
        }?;
        self.end(&oldest, LeaseEnd::Expired);
        Some(oldest)
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
