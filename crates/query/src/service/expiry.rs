//! The task that ends leases when their TTL is over. It sleeps until the next deadline and is woken when one comes nearer.

use std::sync::{Arc, Weak};

use tidegate_core::id::LeaseId;
use tidegate_core::time::Moment;
use tidegate_lease::audit::AuditEvent;
use tidegate_lease::machine::{Command, ExpiredLease, Outcome};

use super::Inner;
use crate::leased::LeaseEnd;

pub(super) fn spawn(service: &Arc<Inner>) {
    let service = Arc::downgrade(service);
    tokio::spawn(run(service));
}

async fn run(service: Weak<Inner>) {
    // The task does not keep the service alive: it holds it only for a step.
    while let Some(deadline) = step(&service) {
        let Some(held) = service.upgrade() else { return };
        let (clock, rearm, mut stopped) = (Arc::clone(&held.clock), Arc::clone(&held.rearm), held.stopped.subscribe());
        drop(held);
        tokio::select! {
            () = clock.sleep_until(deadline) => {}
            () = rearm.notified() => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

/// Ends what is over; gives the next deadline.
fn step(service: &Weak<Inner>) -> Option<Moment> {
    let service = service.upgrade()?;
    let now = service.clock.now();
    loop {
        let swept = service.machine.lock().apply(now, Command::Expire);
        let Outcome::Swept { expired, more } = swept else { break };
        for lease in expired {
            service.expire(&lease);
        }
        if !more {
            break;
        }
    }
    service.cursors.lock().sweep(now);
    Some(service.machine.lock().next_deadline().unwrap_or(Moment::NEVER))
}

impl Inner {
    fn expire(&self, expired: &ExpiredLease<LeaseId>) {
        let leased = self.leases.lock().get(&expired.resource).cloned();
        if let Some(leased) = leased {
            let (lease, epoch) = (expired.resource, expired.epoch);
            self.auditor.emit(Some(&leased.owner), AuditEvent::LeaseExpired { lease, epoch });
            self.end(&leased, LeaseEnd::Expired);
        }
    }
}
