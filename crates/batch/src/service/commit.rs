//! The one step that changes an object, tried again while others overtake it: the last writer wins.

use bytes::Bytes;
use tidegate_core::port::{Cause, CompareAndSwap, MetaError, Revision, Swap, SwapOutcome};

use super::{ATTEMPTS_MAX, Core};
use crate::error::{PreconditionFailed, PutError, StoreError};
use crate::object::Version;
use crate::tier::{Condition, New, replace};

/// What a commit came to.
#[derive(Debug)]
pub(super) enum Committed {
    /// It was made; what was there before and had not expired.
    Made(Option<Version>),
    /// There was nothing to delete.
    Nothing,
    /// What was given along is not as it was: others took it away.
    Fenced,
}

/// What is told of a change that was refused in the end: where a step of it was not answered, nobody can tell that it was not made.
fn told(unanswered: &mut Option<(Option<Version>, Cause)>, error: impl Into<PutError>) -> PutError {
    match unanswered.take() {
        Some((_, cause)) => StoreError::Indeterminate(cause).into(),
        None => error.into(),
    }
}

impl Core {
    /// Puts something in the place of whatever is there, or deletes it. What is `along` happens in the same step.
    pub(super) async fn commit(
        &self,
        head_key: &Bytes,
        new: Option<&New>,
        condition: &Condition,
        along: &[CompareAndSwap],
    ) -> Result<Committed, PutError> {
        self.commit_with(head_key, new, condition, along, None).await
    }

    /// The same, and `remember` makes one more swap out of whether the object is created.
    pub(super) async fn commit_and(
        &self,
        head_key: &Bytes,
        new: Option<&New>,
        condition: &Condition,
        along: &[CompareAndSwap],
        remember: &(dyn Fn(bool) -> CompareAndSwap + Sync),
    ) -> Result<Committed, PutError> {
        self.commit_with(head_key, new, condition, along, Some(remember)).await
    }

    async fn commit_with(
        &self,
        head_key: &Bytes,
        new: Option<&New>,
        condition: &Condition,
        along: &[CompareAndSwap],
        remember: Option<&(dyn Fn(bool) -> CompareAndSwap + Sync)>,
    ) -> Result<Committed, PutError> {
        // What the last step that storage did not answer found before it. It may be made later, whatever was found out since.
        let mut unanswered: Option<(Option<Version>, Cause)> = None;
        for _ in 0..ATTEMPTS_MAX {
            let current = self.current(head_key).await.map_err(|error| told(&mut unanswered, error))?;
            let there = current.head.as_ref().map(|(head, _)| head.version);
            if let Some((before, _)) = &unanswered
                && there == new.map(|new| new.head.version)
            {
                // It was made after all: one's own is not replaced, nor are its blobs garbage.
                return Ok(Committed::Made(*before));
            }
            let now = self.now();
            let live = current.head.as_ref().map(|(head, _)| head).filter(|head| !head.is_expired(now));
            let before = live.map(|head| head.version);
            if !condition.matches(before) || !condition.none_matches(before) {
                return Err(told(&mut unanswered, PreconditionFailed { current: before }));
            }
            if new.is_none() && current.head.is_none() {
                return Ok(Committed::Nothing);
            }
            let mut swaps = replace(head_key, &current, new, self.garbage_from_ms(), along);
            let along_from = swaps.len() - along.len();
            swaps.extend(remember.map(|remember| remember(before.is_none())));
            match self.meta.compare_and_swap(swaps, self.durability).await {
                Ok(SwapOutcome::Swapped(_)) => return Ok(Committed::Made(before)),
                Ok(SwapOutcome::Mismatch { index, .. }) if index >= along_from => {
                    let Some((before, cause)) = unanswered else { return Ok(Committed::Fenced) };
                    // Who took it away may have been the step that was not answered.
                    let mine = self.head(head_key).await.ok().flatten().map(|(head, _)| head.version);
                    if mine.is_some() && mine == new.map(|new| new.head.version) {
                        return Ok(Committed::Made(before));
                    }
                    return Err(StoreError::Indeterminate(cause).into());
                }
                Ok(SwapOutcome::Mismatch { .. }) => {}
                Err(MetaError::Indeterminate(cause)) => {
                    let read = current.head.as_ref().map(|(_, revision)| *revision);
                    match self.happened(head_key, new, read, along).await {
                        Ok(Some(true)) => return Ok(Committed::Made(before)),
                        Ok(Some(false)) => {
                            tracing::debug!(error = %cause, "a change that was not answered was not made yet");
                            unanswered = Some((before, cause));
                        }
                        Ok(None) | Err(_) => return Err(StoreError::Indeterminate(cause).into()),
                    }
                }
                Err(error) => return Err(told(&mut unanswered, StoreError::from(error))),
            }
        }
        Err(told(&mut unanswered, StoreError::Contended))
    }

    /// Whether a step that storage did not answer was made; `None` = nobody can tell.
    async fn happened(
        &self,
        head_key: &Bytes,
        new: Option<&New>,
        read: Option<Revision>,
        along: &[CompareAndSwap],
    ) -> Result<Option<bool>, StoreError> {
        let now = self.head(head_key).await?;
        match (new, &now) {
            (Some(new), Some((head, _))) if head.version == new.head.version => return Ok(Some(true)),
            (None, None) => return Ok(Some(true)),
            _ => {}
        }
        // What goes in this step is there still: it was not made. If it is gone, others may have taken it too.
        if let Some(first) = along.iter().find(|swap| swap.swap == Swap::Delete) {
            if self.meta.get(&first.key).await?.is_some() {
                return Ok(Some(false));
            }
            // Unless it was made between the two looks.
            let now = self.head(head_key).await?;
            return Ok((now.map(|(head, _)| head.version) == new.map(|new| new.head.version)).then_some(true));
        }
        // The very entry that was read is there still. An object that is absent as before may have been written and deleted since.
        Ok(now.filter(|(_, revision)| Some(*revision) == read).map(|_| false))
    }
}
