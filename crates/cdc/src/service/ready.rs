//! Whether storage answers now, its one writer too. It never writes anything to find out.

use std::time::Duration;

use bytes::Bytes;
use tidegate_core::port::{CompareAndSwap, Durability, Swap};

use super::StreamService;
use crate::error::StoreError;

/// How long storage may take to answer.
pub(crate) const READINESS_MAX: Duration = Duration::from_secs(2);

/// A key that nobody writes.
const NOTHING: &[u8] = b"ready";

/// Storage that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// It takes changes.
    Writing,
    /// The disk is full: it refuses changes that need space, and everything else goes on.
    Full,
}

impl StreamService {
    /// Whether storage answers now: a read, and a condition that goes the way of every change through the writer and changes
    /// nothing. No answer within two seconds is [`StoreError::Unavailable`]. A full disk is an answer: reads go on, and so does what
    /// makes room.
    pub async fn ready(&self) -> Result<Readiness, StoreError> {
        let clock = &self.core.clock;
        let deadline = clock.now().after(READINESS_MAX);
        tokio::select! {
            // First, so that who answers at once costs no timer.
            biased;
            answered = self.ask_storage() => answered,
            () = clock.sleep_until(deadline) => {
                Err(StoreError::Unavailable(format!("no answer within {} ms", READINESS_MAX.as_millis()).into()))
            }
        }
    }

    async fn ask_storage(&self) -> Result<Readiness, StoreError> {
        self.core.meta.get(NOTHING).await?;
        let key = Bytes::from_static(NOTHING);
        let check = vec![CompareAndSwap { key, expected: None, swap: Swap::Check }];
        // Whether the condition holds says nothing: either answer comes from the writer.
        match self.core.meta.compare_and_swap(check, Durability::Os).await.map_err(StoreError::from) {
            Ok(_) => Ok(Readiness::Writing),
            Err(StoreError::Full) => Ok(Readiness::Full),
            // Nothing was asked for that could have happened.
            Err(StoreError::Indeterminate(cause)) => Err(StoreError::Unavailable(cause)),
            Err(error) => Err(error),
        }
    }
}
