//! The one step that changes an object, tried again while others overtake it: the last writer wins.

use bytes::Bytes;
use tidegate_core::port::{CompareAndSwap, MetaError, SwapOutcome};

use super::{ATTEMPTS_MAX, Core};
use crate::error::{PreconditionFailed, PutError, StoreError};
use crate::object::Version;
use crate::stored::Head;
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

impl Core {
    /// Puts something in the place of whatever is there, or deletes it. What is `along` happens in the same step.
    pub(super) async fn commit(
        &self,
        head_key: &Bytes,
        new: Option<&New>,
        condition: &Condition,
        along: &[CompareAndSwap],
    ) -> Result<Committed, PutError> {
        for _ in 0..ATTEMPTS_MAX {
            let current = self.current(head_key).await?;
            let now = self.now();
            let live = current.head.as_ref().map(|(head, _)| head).filter(|head| !head.is_expired(now));
            let before = live.map(|head| head.version);
            if !condition.matches(before) || !condition.none_matches(before) {
                return Err(PreconditionFailed { current: before }.into());
            }
            if new.is_none() && current.head.is_none() {
                return Ok(Committed::Nothing);
            }
            let swaps = replace(head_key, &current, new, self.garbage_from_ms(), along);
            let along_from = swaps.len() - along.len();
            match self.meta.compare_and_swap(swaps, self.durability).await {
                Ok(SwapOutcome::Swapped(_)) => return Ok(Committed::Made(before)),
                Ok(SwapOutcome::Mismatch { index, .. }) if index >= along_from => return Ok(Committed::Fenced),
                Ok(SwapOutcome::Mismatch { .. }) => {}
                Err(MetaError::Indeterminate(cause)) => {
                    if self.happened(head_key, new, current.head.as_ref().map(|(head, _)| head), along).await? {
                        return Ok(Committed::Made(before));
                    }
                    tracing::debug!(error = %cause, "a change that storage did not answer did not happen");
                }
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Contended.into())
    }

    /// Whether a step that storage did not answer was made.
    async fn happened(
        &self,
        head_key: &Bytes,
        new: Option<&New>,
        before: Option<&Head>,
        along: &[CompareAndSwap],
    ) -> Result<bool, StoreError> {
        // What was given along changes in that step and in no other.
        if let Some(first) = along.first() {
            let there = self.meta.get(&first.key).await?;
            return Ok(there.map(|entry| entry.revision) != first.expected);
        }
        let now = self.head(head_key).await?.map(|(head, _)| head);
        let (is, was) = (now.as_ref().map(|head| head.version), before.map(|head| head.version));
        match new {
            Some(new) if is == Some(new.head.version) => Ok(true),
            None if is.is_none() => Ok(true),
            _ if is == was => Ok(false),
            // Somebody else changed it since: before or after us, which nobody can tell.
            _ => Err(StoreError::Indeterminate("the object was changed by another since".into())),
        }
    }
}
