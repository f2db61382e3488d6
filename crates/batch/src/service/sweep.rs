//! Finishing what was left half done, and removing what has expired. Every step may happen twice, or beside another server's.

use bytes::Bytes;
use tidegate_core::port::{CompareAndSwap, MetaEntry, MetaRange, Swap, SwapOutcome};

use super::{Core, ObjectService};
use crate::blob;
use crate::error::StoreError;
use crate::key;
use crate::stored::{Completed, Head, Intent, Upload, UploadId};
use crate::tier::{Current, replace};

/// Entries that are looked at together.
const PAGE: usize = 256;
/// Pages of a kind that one sweep looks at.
const PAGES: usize = 16;
/// How long after its deadline a write is given up: its writer publishes nothing after the deadline, and has this long to end.
const DEADLINE_MARGIN_MS: i64 = 10 * 60 * 1_000;

/// How far a sweep came.
#[derive(Debug, Clone, Default)]
pub struct SweepPlace {
    intents: Option<Bytes>,
    heads: Option<Bytes>,
    uploads: Option<Bytes>,
    completed: Option<Bytes>,
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

    /// Looks at some 4,096 entries of each kind from where the last sweep ended, and clears away what is due. What cannot be looked at or
    /// cleared away is counted and left for the next round; it holds up nothing else. Meant to be called every second or so.
    pub async fn sweep(&self, place: &mut SweepPlace) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for _ in 0..PAGES {
            place.intents = self.core.sweep_intents(place.intents.take(), false, &mut swept).await?;
            if place.intents.is_none() {
                break;
            }
        }
        for _ in 0..PAGES {
            place.heads = self.core.sweep_heads(place.heads.take(), &mut swept).await?;
            if place.heads.is_none() {
                break;
            }
        }
        place.uploads = self.core.sweep_uploads(place.uploads.take(), &mut swept).await?;
        for _ in 0..PAGES {
            place.completed = self.core.sweep_completed(place.completed.take(), &mut swept).await?;
            if place.completed.is_none() {
                break;
            }
        }
        metrics::counter!("tidegate_object_swept_blobs_total").increment(swept.blobs);
        metrics::counter!("tidegate_object_expired_total").increment(swept.expired);
        metrics::counter!("tidegate_object_writes_given_up_total").increment(swept.given_up);
        Ok(swept)
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

    async fn sweep_uploads(&self, from: Option<Bytes>, swept: &mut Swept) -> Result<Option<Bytes>, StoreError> {
        let (entries, next) = self.page(key::uploads(), from).await?;
        for entry in entries {
            match self.sweep_upload(&entry).await {
                Ok(removed) => swept.uploads += u64::from(removed),
                Err(error) => swept.note("an upload", &error),
            }
        }
        Ok(next)
    }

    async fn sweep_upload(&self, entry: &MetaEntry) -> Result<bool, StoreError> {
        let Some(value) = &entry.value else { return Ok(false) };
        let limit_ms = i64::try_from(self.spec.upload_max.as_millis()).unwrap_or(i64::MAX);
        let upload = Upload::open(value)?;
        if self.now().unix_ms().saturating_sub(upload.created_ms) < limit_ms {
            return Ok(false);
        }
        self.remove_upload(entry.key.clone(), UploadId(upload.id), entry.revision).await
    }

    /// Forgets what completions were answered, a page in one step.
    async fn sweep_completed(&self, from: Option<Bytes>, swept: &mut Swept) -> Result<Option<Bytes>, StoreError> {
        let (entries, next) = self.page(key::all_completed(), from).await?;
        let now_ms = self.now().unix_ms();
        let mut due = Vec::new();
        for MetaEntry { key, value, revision } in entries {
            match value.as_deref().map(Completed::open) {
                Some(Ok(completed)) if now_ms >= completed.until_ms => {
                    due.push(CompareAndSwap { key, expected: Some(revision), swap: Swap::Delete });
                }
                Some(Err(error)) => swept.note("a completed upload", &error),
                _ => {}
            }
        }
        // Nobody changes one: a mismatch is another server that was quicker, and the rest are found by the next round.
        if !due.is_empty()
            && let Err(error) = self.meta.compare_and_swap(due, self.durability).await
        {
            swept.note("completed uploads", &error.into());
        }
        Ok(next)
    }

    async fn sweep_intents(
        &self,
        from: Option<Bytes>,
        alone: bool,
        swept: &mut Swept,
    ) -> Result<Option<Bytes>, StoreError> {
        let (entries, next) = self.page(key::intents(), from).await?;
        for entry in entries {
            if let Err(error) = self.sweep_intent(entry, alone, swept).await {
                swept.note("a blob", &error);
            }
        }
        Ok(next)
    }

    async fn sweep_intent(&self, entry: MetaEntry, alone: bool, swept: &mut Swept) -> Result<(), StoreError> {
        let (Some(value), Some(blob)) = (&entry.value, key::blob_of(&entry.key)) else { return Ok(()) };
        let now_ms = self.now().unix_ms();
        let mut revision = entry.revision;
        match Intent::open(value)? {
            Intent::Garbage { from_ms } if now_ms < from_ms => return Ok(()),
            Intent::Garbage { .. } => {}
            Intent::Writing { by, deadline_ms } => {
                let over = now_ms >= deadline_ms.saturating_add(DEADLINE_MARGIN_MS);
                let foreign = alone && by != self.life;
                if !over && !foreign {
                    return Ok(());
                }
                // First it is taken from its writer, whose last step fails from then on; then the blob can go.
                let garbage = Swap::Put(Intent::Garbage { from_ms: now_ms }.seal());
                let swap = CompareAndSwap { key: entry.key.clone(), expected: Some(revision), swap: garbage };
                match self.meta.compare_and_swap(vec![swap], self.durability).await? {
                    SwapOutcome::Swapped(revisions) => {
                        revision = revisions.first().copied().unwrap_or(revision);
                        swept.given_up += 1;
                    }
                    SwapOutcome::Mismatch { .. } => return Ok(()),
                }
            }
        }
        blob::delete(self.cold.as_ref(), blob).await?;
        let forget = CompareAndSwap { key: entry.key, expected: Some(revision), swap: Swap::Delete };
        if matches!(self.meta.compare_and_swap(vec![forget], self.durability).await?, SwapOutcome::Swapped(_)) {
            swept.blobs += 1;
        }
        Ok(())
    }

    async fn sweep_heads(&self, from: Option<Bytes>, swept: &mut Swept) -> Result<Option<Bytes>, StoreError> {
        let (entries, next) = self.page(key::all_heads(), from).await?;
        for entry in entries {
            match self.sweep_head(entry).await {
                Ok(removed) => swept.expired += u64::from(removed),
                Err(error) => swept.note("an object", &error),
            }
        }
        Ok(next)
    }

    async fn sweep_head(&self, entry: MetaEntry) -> Result<bool, StoreError> {
        let Some(value) = &entry.value else { return Ok(false) };
        let head = Head::open(value)?;
        if !head.is_expired(self.now()) {
            return Ok(false);
        }
        let body = match self.current(&entry.key).await? {
            // Only what was looked at: another write since then has another time.
            Current { head: Some((_, revision)), body } if revision == entry.revision => body,
            _ => return Ok(false),
        };
        let current = Current { head: Some((head, entry.revision)), body };
        let swaps = replace(&entry.key, &current, None, self.garbage_from_ms(), &[]);
        Ok(matches!(self.meta.compare_and_swap(swaps, self.durability).await?, SwapOutcome::Swapped(_)))
    }
}

impl Swept {
    /// Counts what could not be looked at or cleared away.
    fn note(&mut self, what: &str, error: &StoreError) {
        tracing::warn!(%error, "{what} could not be looked at or cleared away now");
        self.failed += 1;
    }
}
