//! Finishing what was left half done, and removing what has expired. Every step may happen twice, or beside another server's.

use bytes::Bytes;
use tidegate_core::port::{CompareAndSwap, MetaEntry, MetaRange, Swap, SwapOutcome};

use super::{Core, ObjectService};
use crate::blob;
use crate::error::StoreError;
use crate::key;
use crate::stored::{Head, Intent, Upload};
use crate::tier::{Current, replace};

/// Entries that are looked at together.
const PAGE: usize = 256;

/// How far a sweep came.
#[derive(Debug, Clone, Default)]
pub struct SweepPlace {
    intents: Option<Bytes>,
    heads: Option<Bytes>,
    uploads: Option<Bytes>,
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Blobs that were deleted.
    pub blobs: u64,
    /// Objects that had expired.
    pub expired: u64,
    /// Uploads that had taken too long.
    pub uploads: u64,
    /// Writes that were given up: their server is gone, or they took too long.
    pub given_up: u64,
    /// Entries that could not be looked at or cleared away, and will be tried again.
    pub failed: u64,
}

impl ObjectService {
    /// Gives up every write that another life of the server began, and deletes what is due. Only where no other server uses the same
    /// stores. Its cost follows what was left half done, not how many objects there are.
    pub async fn recover(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let mut from = None;
        loop {
            from = self.core.sweep_intents(from, true, &mut swept).await?;
            if from.is_none() {
                return Ok(swept);
            }
        }
    }

    /// Looks at some 256 entries of each kind from where the last sweep ended, and clears away what is due. Meant to be called every second or so.
    pub async fn sweep(&self, place: &mut SweepPlace) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        place.intents = self.core.sweep_intents(place.intents.take(), false, &mut swept).await?;
        place.heads = self.core.sweep_heads(place.heads.take(), &mut swept).await?;
        place.uploads = self.sweep_uploads(place.uploads.take(), &mut swept).await?;
        metrics::counter!("tidegate_object_swept_blobs_total").increment(swept.blobs);
        metrics::counter!("tidegate_object_expired_total").increment(swept.expired);
        metrics::counter!("tidegate_object_writes_given_up_total").increment(swept.given_up);
        Ok(swept)
    }

    async fn sweep_uploads(&self, from: Option<Bytes>, swept: &mut Swept) -> Result<Option<Bytes>, StoreError> {
        let (entries, next) = self.core.page(key::uploads(), from).await?;
        let limit_ms = i64::try_from(self.core.spec.upload_max.as_millis()).unwrap_or(i64::MAX);
        let now_ms = self.core.now().unix_ms();
        for entry in entries {
            let (Some(value), Some(upload)) = (&entry.value, key::upload_of(&entry.key)) else { continue };
            let created_ms = match Upload::open(value) {
                Ok(upload) => upload.created_ms,
                Err(error) => {
                    tracing::error!(%error, "an upload cannot be looked at");
                    swept.failed += 1;
                    continue;
                }
            };
            if now_ms.saturating_sub(created_ms) >= limit_ms && self.core.remove_upload(upload, entry.revision).await? {
                swept.uploads += 1;
            }
        }
        Ok(next)
    }
}

impl Core {
    async fn page(&self, prefix: Bytes, from: Option<Bytes>) -> Result<(Vec<MetaEntry>, Option<Bytes>), StoreError> {
        let range = MetaRange { from: from.unwrap_or_else(|| prefix.clone()), prefix, limit: PAGE };
        let entries = self.meta.scan(range).await?;
        let next = entries.last().filter(|_| entries.len() == PAGE).map(|entry| {
            let mut after = entry.key.to_vec();
            after.push(0);
            Bytes::from(after)
        });
        Ok((entries, next))
    }

    async fn sweep_intents(
        &self,
        from: Option<Bytes>,
        alone: bool,
        swept: &mut Swept,
    ) -> Result<Option<Bytes>, StoreError> {
        let (entries, next) = self.page(key::intents(), from).await?;
        let now_ms = self.now().unix_ms();
        for entry in entries {
            let (Some(value), Some(blob)) = (&entry.value, key::blob_of(&entry.key)) else { continue };
            let intent = match Intent::open(value) {
                Ok(intent) => intent,
                Err(error) => {
                    tracing::error!(%error, "a blob's intent cannot be looked at");
                    swept.failed += 1;
                    continue;
                }
            };
            let mut revision = entry.revision;
            match intent {
                Intent::Garbage { from_ms } if now_ms < from_ms => continue,
                Intent::Garbage { .. } => {}
                Intent::Writing { by, deadline_ms } => {
                    if now_ms < deadline_ms && !(alone && by != self.life) {
                        continue;
                    }
                    // First it is taken from its writer, whose last step fails from then on; then the blob can go.
                    let garbage = Swap::Put(Intent::Garbage { from_ms: now_ms }.seal());
                    let swap = CompareAndSwap { key: entry.key.clone(), expected: Some(revision), swap: garbage };
                    match self.meta.compare_and_swap(vec![swap], self.durability).await? {
                        SwapOutcome::Swapped(revisions) => {
                            revision = revisions.first().copied().unwrap_or(revision);
                            swept.given_up += 1;
                        }
                        SwapOutcome::Mismatch { .. } => continue,
                    }
                }
            }
            if let Err(error) = blob::delete(self.cold.as_ref(), blob).await {
                tracing::warn!(%error, ?blob, "a blob was not deleted yet");
                swept.failed += 1;
                continue;
            }
            let forget = CompareAndSwap { key: entry.key, expected: Some(revision), swap: Swap::Delete };
            if matches!(self.meta.compare_and_swap(vec![forget], self.durability).await?, SwapOutcome::Swapped(_)) {
                swept.blobs += 1;
            }
        }
        Ok(next)
    }

    async fn sweep_heads(&self, from: Option<Bytes>, swept: &mut Swept) -> Result<Option<Bytes>, StoreError> {
        let (entries, next) = self.page(key::all_heads(), from).await?;
        for entry in entries {
            let Some(value) = &entry.value else { continue };
            let head = match Head::open(value) {
                Ok(head) => head,
                Err(error) => {
                    tracing::error!(%error, "an object cannot be looked at");
                    swept.failed += 1;
                    continue;
                }
            };
            if !head.is_expired(self.now()) {
                continue;
            }
            let body = match self.current(&entry.key).await? {
                // Only what was looked at: another write since then has another time.
                Current { head: Some((_, revision)), body } if revision == entry.revision => body,
                _ => continue,
            };
            let current = Current { head: Some((head, entry.revision)), body };
            let swaps = replace(&entry.key, &current, None, self.garbage_from_ms(), &[]);
            if matches!(self.meta.compare_and_swap(swaps, self.durability).await?, SwapOutcome::Swapped(_)) {
                swept.expired += 1;
            }
        }
        Ok(next)
    }
}
