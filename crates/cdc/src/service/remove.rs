//! Removing a stream: its entry says so first, then its records and everything that belongs to it go, then the entry. A stream
//! that others were forked from is kept for them under a name that nobody can use, and goes with the last of them.

use std::sync::Arc;

use tidegate_core::port::{CompareAndSwap, Revision, StreamId, Swap, SwapOutcome, Trim};

use super::{ATTEMPTS_MAX, StreamService};
use crate::error::{StoreError, StreamError};
use crate::handle::{StreamHandle, log_id};
use crate::key;
use crate::spec::StreamMeta;

impl StreamService {
    /// Removes a stream, and with it the sources that were only kept for it. Who reads it is told.
    pub(crate) async fn remove(&self, handle: &Arc<StreamHandle>) -> Result<(), StreamError> {
        let mut next = Some(Arc::clone(handle));
        // As many rounds as the chain of forks is long, which is bounded where forks are made.
        while let Some(handle) = next.take() {
            next = self.remove_one(&handle).await?;
        }
        Ok(())
    }

    /// Removes one stream, or hides it while others need its records. Gives the source that nobody needs any more.
    async fn remove_one(&self, handle: &Arc<StreamHandle>) -> Result<Option<Arc<StreamHandle>>, StreamError> {
        for _ in 0..ATTEMPTS_MAX {
            let (known, revision) = handle.known();
            let mut meta = (*known).clone();
            if let Some(durable) = meta.durable.as_mut().filter(|durable| durable.forks > 0) {
                if durable.soft_deleted {
                    return Ok(None);
                }
                durable.soft_deleted = true;
                let swap = handle.change_at(revision, &meta);
                let outcome = self.core.meta.compare_and_swap(vec![swap], self.core.durability).await;
                match outcome.map_err(StoreError::from)? {
                    SwapOutcome::Swapped(revisions) => {
                        revisions.into_iter().for_each(|revision| handle.learn(meta.clone(), revision));
                        handle.wake();
                        return Ok(None);
                    }
                    SwapOutcome::Mismatch { .. } => self.core.refresh(handle).await?,
                }
                continue;
            }
            meta.removing = true;
            let mut swaps = vec![handle.change_at(revision, &meta)];
            let source = self.released_source(handle).await?;
            if let Some((source, meta, revision)) = &source {
                swaps.push(source.change_at(*revision, meta));
            }
            let outcome = self.core.meta.compare_and_swap(swaps, self.core.durability).await;
            match outcome.map_err(StoreError::from)? {
                SwapOutcome::Swapped(revisions) => {
                    self.core.drop_handle(handle);
                    self.clear_away(&handle.id, &meta, revisions.first().copied()).await?;
                    let Some((source, meta, _)) = source else { return Ok(None) };
                    let orphaned =
                        meta.durable.as_ref().is_some_and(|durable| durable.soft_deleted && durable.forks == 0);
                    revisions.get(1).into_iter().for_each(|revision| source.learn(meta.clone(), *revision));
                    return Ok(orphaned.then_some(source));
                }
                SwapOutcome::Mismatch { index: 0, .. } => self.core.refresh(handle).await?,
                SwapOutcome::Mismatch { .. } => {
                    if let Some((source, ..)) = &source {
                        self.core.refresh(source).await?;
                    }
                }
            }
        }
        Err(StoreError::Contended.into())
    }

    /// Clears away what is left of a stream that is marked as being removed. It may be done again after a crash.
    pub(crate) async fn clear_away(
        &self,
        id: &StreamId,
        meta: &StreamMeta,
        revision: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.core.log.trim(&log_id(id, meta.incarnation), Trim::Stream).await?;
        self.core.remove_entries(key::life(meta.incarnation).freeze()).await?;
        let swap = CompareAndSwap { key: key::stream(id), expected: revision, swap: Swap::Delete };
        // A mismatch: somebody else cleared it away.
        if let SwapOutcome::Swapped(_) = self.core.meta.compare_and_swap(vec![swap], self.core.durability).await? {
            self.core.counts.subtract(&id.tenant);
        }
        Ok(())
    }
}
