//! Going away in good order: nothing new, time for what runs, an end line for what is left, and every snapshot released.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Inner;
use crate::leased::{LeaseEnd, Leased};

/// How long readers may take their end line.
const FAREWELL: Duration = Duration::from_secs(2);

impl Inner {
    pub(super) async fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        let grace = Duration::from_millis(self.settings.freeze().limits_drain_ms());
        self.readers_gone_within(grace).await;
        let left: Vec<Arc<Leased>> = self.leases.lock().values().cloned().collect();
        for leased in &left {
            self.end(leased, LeaseEnd::Draining);
        }
        self.readers_gone_within(FAREWELL).await;
        self.stopped.send_replace(true);
        // All at once, and not for ever: what is left then ends with the process.
        let deadline = self.clock.now().after(FAREWELL);
        tokio::select! {
            _ = futures::future::join_all(left.iter().map(|leased| leased.close())) => {}
            () = self.clock.sleep_until(deadline) => tracing::warn!("not every snapshot was released in time"),
        }
    }

    async fn readers_gone_within(&self, bound: Duration) {
        let mut readers = self.readers.subscribe();
        let deadline = self.clock.now().after(bound);
        tokio::select! {
            _ = readers.wait_for(|count| *count == 0) => {}
            () = self.clock.sleep_until(deadline) => {}
        }
    }

    /// Resolves when no reader is waited for any more.
    pub(crate) async fn hard_stop(&self) {
        let mut stopped = self.stopped.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}
