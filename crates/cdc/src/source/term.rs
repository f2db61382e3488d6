//! Whose the source is: one process at a time, each with an epoch of its own, and the entry that only the present one can change. It never
//! goes on from an entry that is not the one that it wrote.

use tidegate_core::port::{Durability, Revision, SwapOutcome};

use super::driver::{Driver, Held};
use super::error::Halt;
use super::machine::{Command, Outcome};
use super::status::{SourceGap, SourceState};
use super::stored::StoredSource;
use crate::error::StoreError;

impl Driver {
    /// Takes the term, or waits for it.
    pub(crate) async fn take(&mut self) -> Result<(), Halt> {
        loop {
            let entry = self.core.meta.get(&self.key).await.map_err(StoreError::from)?;
            let revision = entry.as_ref().map(|entry| entry.revision);
            let stored = entry.and_then(|entry| entry.value).map(|value| StoredSource::open(&value)).transpose()?;
            let found = stored.as_ref().zip(revision);
            let found = found.map(|(stored, revision)| (stored.epoch(), stored.holder, revision));
            let now = self.core.clock.now();
            match self.machine.apply(now, Command::Observe { found, at_once: self.fresh }) {
                Outcome::Take(epoch) => {
                    let mut next = stored.unwrap_or_else(|| StoredSource::first(self.holder));
                    (next.epoch, next.holder) = (epoch.get(), self.holder);
                    next.beat += 1;
                    let swap = vec![next.swap(&self.key, revision)];
                    let outcome = self.core.meta.compare_and_swap(swap, Durability::Fsync).await;
                    // Who loses this race stands by like everybody else.
                    self.fresh = false;
                    let SwapOutcome::Swapped(revisions) = outcome.map_err(StoreError::from)? else { continue };
                    let _ = self.machine.apply(self.core.clock.now(), Command::Took { epoch });
                    tracing::info!(source = %self.spec.name, epoch = epoch.get(), "the source's changes are read here");
                    self.hold(next, revisions.first().copied());
                    return self.load_tables().await;
                }
                Outcome::StandBy(until) => {
                    self.held = None;
                    self.show_fault("source_held_elsewhere", "another process reads the source".into());
                    self.show_state(SourceState::Waiting);
                    self.pause(until).await?;
                }
                _ => {
                    let Some(stored) = stored else { continue };
                    self.hold(stored, revision);
                    return self.load_tables().await;
                }
            }
        }
    }

    pub(crate) fn hold(&mut self, stored: StoredSource, revision: Option<Revision>) {
        let now = self.core.clock.now();
        let _ = self.machine.apply(now, Command::Beat);
        self.beat_at = now.after(self.machine.beat_interval());
        {
            let mut live = self.shared.live.lock();
            live.position.clone_from(&stored.position);
            live.records = stored.records;
            live.epoch = stored.epoch;
            live.gap = stored.gap.as_ref().map(|gap| SourceGap {
                from: gap.from.clone(),
                reason: gap.reason.clone(),
                since: tidegate_core::Timestamp::from_unix_ms(gap.since_ms),
            });
        }
        self.held = Some(Held { stored, revision });
    }

    /// An append or a change of the entry was made: reads the revision that it gave.
    pub(crate) async fn settle(&mut self, next: StoredSource) -> Result<(), Halt> {
        let entry = self.core.meta.get(&self.key).await.map_err(StoreError::from)?;
        let stored = entry.as_ref().and_then(|entry| entry.value.as_ref());
        if !stored.map(|value| StoredSource::open(value)).transpose()?.is_some_and(|stored| stored == next) {
            return Err(self.overtaken().await?);
        }
        self.hold(next, entry.map(|entry| entry.revision));
        Ok(())
    }

    /// The entry is not what it was held to be: who has the term?
    pub(crate) async fn overtaken(&mut self) -> Result<Halt, Halt> {
        self.held = None;
        let entry = self.core.meta.get(&self.key).await.map_err(StoreError::from)?;
        let stored = entry.and_then(|entry| entry.value).map(|value| StoredSource::open(&value)).transpose()?;
        let Some(stored) = stored.filter(|stored| stored.holder != self.holder) else {
            // One's own, of an append that was not answered: what is stored counts.
            return Ok(StoreError::Contended.into());
        };
        let _ = self.machine.apply(self.core.clock.now(), Command::Fenced { current: stored.epoch() });
        Ok(Halt::Fenced)
    }

    /// Changes the entry alone.
    pub(crate) async fn write(
        &mut self,
        change: impl FnOnce(&mut StoredSource),
        durability: Durability,
    ) -> Result<(), Halt> {
        let held = self.held.as_ref().ok_or(Halt::Fenced)?;
        let mut next = held.stored.clone();
        next.beat += 1;
        change(&mut next);
        let swap = vec![next.swap(&self.key, held.revision)];
        match self.core.meta.compare_and_swap(swap, durability).await.map_err(StoreError::from)? {
            SwapOutcome::Swapped(revisions) => {
                self.hold(next, revisions.first().copied());
                Ok(())
            }
            SwapOutcome::Mismatch { .. } => Err(self.overtaken().await?),
        }
    }
}
