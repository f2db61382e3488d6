//! Finishing what was left half done, and removing what has expired. Every step may happen twice, or beside another server's.

use std::num::NonZeroUsize;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use lru::LruCache;
use parking_lot::Mutex;
use tidegate_core::port::{CompareAndSwap, MetaEntry, MetaRange, Swap, SwapOutcome};

use super::{Core, ObjectService};
use crate::error::StoreError;
use crate::key;
use crate::stored::{Completed, Head, Intent, Upload, UploadId};
use crate::tier::{Current, replace};

/// Entries that are looked at together.
const PAGE: usize = 256;
/// Blobs that are deleted side by side: a bucket takes its time for each.
pub(super) const BLOBS_AT_ONCE: usize = 16;
/// Pages of a kind that one sweep looks at.
const PAGES: usize = 16;
/// How long after its deadline a write is given up: its writer publishes nothing after the deadline, and has this long to end.
const DEADLINE_MARGIN_MS: i64 = 10 * 60 * 1_000;
/// Damaged entries of which it is remembered that they were told.
const DAMAGED_MAX_COUNT: NonZeroUsize = NonZeroUsize::new(1_024).expect("it is not zero");

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
    /// stores. Its cost follows what was left half done, not how many objects there are. Where the blob store does not answer, what is left
    /// in it is left to [`sweep`](Self::sweep), and it costs one wait.
    pub async fn recover(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let (mut from, mut away) = (None, false);
        loop {
            from = self.core.sweep_intents(from, true, &mut away, &mut swept).await?;
            if from.is_none() {
                return Ok(swept);
            }
        }
    }

    /// Looks at some 4,096 entries of each kind from where the last sweep ended, and clears away what is due. What cannot be looked at or
    /// cleared away is counted and left for the next round; it holds up nothing else. Meant to be called every second or so.
    pub async fn sweep(&self, place: &mut SweepPlace) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let mut away = false;
        for _ in 0..PAGES {
            place.intents = self.core.sweep_intents(place.intents.take(), false, &mut away, &mut swept).await?;
            if place.intents.is_none() || away {
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
                Err(error) => swept.note("an upload", &error, self.damaged.told(&entry.key, &error)),
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
        let removed = self.remove_upload(entry.key.clone(), UploadId(upload.id), entry.revision).await?;
        self.full.forget(&upload.tenant);
        Ok(removed)
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
                Some(Err(error)) => swept.note("a completed upload", &error, self.damaged.told(&key, &error)),
                _ => {}
            }
        }
        // Nobody changes one: a mismatch is another server that was quicker, and the rest are found by the next round.
        if !due.is_empty()
            && let Err(error) = self.meta.compare_and_swap(due, self.durability).await
        {
            swept.note("completed uploads", &error.into(), false);
        }
        Ok(next)
    }

    /// Some at a time. Where the blob store deleted none of those that it was asked for it is `away`: whoever is `alone` then only takes what is left
    /// from its writers, for the sweeps; others stop there.
    async fn sweep_intents(
        &self,
        from: Option<Bytes>,
        alone: bool,
        away: &mut bool,
        swept: &mut Swept,
    ) -> Result<Option<Bytes>, StoreError> {
        let (mut entries, next) = self.page(key::intents(), from).await?;
        while !entries.is_empty() {
            let rest = entries.split_off(entries.len().min(BLOBS_AT_ONCE));
            let skip = *away;
            let done: Vec<(Bytes, Swept, Result<(), Unswept>)> = stream::iter(entries)
                .map(|entry| async move {
                    let (key, mut one) = (entry.key.clone(), Swept::default());
                    let done = self.sweep_intent(entry, alone, skip, &mut one).await;
                    (key, one, done)
                })
                .buffer_unordered(BLOBS_AT_ONCE)
                .collect()
                .await;
            let (before, mut kept) = (swept.blobs, false);
            for (key, one, done) in done {
                swept.blobs += one.blobs;
                swept.given_up += one.given_up;
                match done {
                    Ok(()) => {}
                    Err(Unswept::Entry(error)) => {
                        swept.note("a blob's intent", &error, self.damaged.told(&key, &error))
                    }
                    Err(Unswept::Blob(error)) => {
                        kept = true;
                        swept.note("a blob", &error, false);
                    }
                }
            }
            *away |= swept.blobs == before && kept;
            entries = rest;
            if *away
                && !alone
                && let Some(first) = entries.first()
            {
                return Ok(Some(first.key.clone()));
            }
        }
        Ok(next)
    }

    async fn sweep_intent(&self, entry: MetaEntry, alone: bool, skip: bool, swept: &mut Swept) -> Result<(), Unswept> {
        let (Some(value), Some(blob)) = (&entry.value, key::blob_of(&entry.key)) else { return Ok(()) };
        let now_ms = self.now().unix_ms();
        let (due, upload, writer) = match Intent::open(value)? {
            Intent::Garbage { from_ms } => (from_ms, None, None),
            Intent::Abandoned { from_ms, upload } => (from_ms, Some(upload), None),
            Intent::Writing { by, deadline_ms } => (deadline_ms.saturating_add(DEADLINE_MARGIN_MS), None, Some(by)),
            Intent::Uploading { by, deadline_ms, upload } => {
                (deadline_ms.saturating_add(DEADLINE_MARGIN_MS), Some(upload), Some(by))
            }
        };
        let foreign = alone && writer.is_some_and(|by| by != self.life);
        if now_ms < due && !foreign {
            return Ok(());
        }
        let mut revision = entry.revision;
        if writer.is_some() {
            // First it is taken from its writer, whose last step fails from then on; then the blob can go.
            let garbage = Swap::Put(Intent::garbage(now_ms, upload.clone()).seal());
            let swap = CompareAndSwap { key: entry.key.clone(), expected: Some(revision), swap: garbage };
            match self.meta.compare_and_swap(vec![swap], self.durability).await.map_err(StoreError::from)? {
                SwapOutcome::Swapped(revisions) => {
                    revision = revisions.first().copied().unwrap_or(revision);
                    swept.given_up += 1;
                }
                SwapOutcome::Mismatch { .. } => return Ok(()),
            }
        }
        if skip {
            return Ok(());
        }
        self.delete_blob(blob, upload).await.map_err(Unswept::Blob)?;
        let forget = CompareAndSwap { key: entry.key, expected: Some(revision), swap: Swap::Delete };
        let forgotten = self.meta.compare_and_swap(vec![forget], self.durability).await.map_err(StoreError::from)?;
        if matches!(forgotten, SwapOutcome::Swapped(_)) {
            swept.blobs += 1;
        }
        Ok(())
    }

    async fn sweep_heads(&self, from: Option<Bytes>, swept: &mut Swept) -> Result<Option<Bytes>, StoreError> {
        let (entries, next) = self.page(key::all_heads(), from).await?;
        for entry in entries {
            let key = entry.key.clone();
            match self.sweep_head(entry).await {
                Ok(removed) => swept.expired += u64::from(removed),
                Err(error) => swept.note("an object", &error, self.damaged.told(&key, &error)),
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

/// Why a blob was not cleared away.
enum Unswept {
    /// What is known of it could not be read or changed.
    Entry(StoreError),
    /// The blob store did not delete it.
    Blob(StoreError),
}

impl From<StoreError> for Unswept {
    fn from(error: StoreError) -> Self {
        Self::Entry(error)
    }
}

/// Damaged entries that were told: a sweep comes by every second, and nothing mends them.
pub(crate) struct Damaged(Mutex<LruCache<Bytes, ()>>);

impl Default for Damaged {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(DAMAGED_MAX_COUNT)))
    }
}

impl Damaged {
    /// Whether this entry's damage was told before.
    fn told(&self, key: &Bytes, error: &StoreError) -> bool {
        matches!(error, StoreError::Corrupt { .. }) && self.0.lock().put(key.clone(), ()).is_some()
    }
}

impl Swept {
    /// Counts what could not be looked at or cleared away.
    fn note(&mut self, what: &str, error: &StoreError, told: bool) {
        if told {
            tracing::debug!(%error, "{what} could not be looked at or cleared away, as before");
        } else {
            tracing::warn!(%error, "{what} could not be looked at or cleared away now");
        }
        self.failed += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_told_once_and_what_is_away_each_time() {
        let (damaged, key) = (Damaged::default(), Bytes::from_static(b"a"));
        let corrupt = StoreError::Corrupt { what: "cut".into() };
        let told: Vec<bool> = (0..3).map(|_| damaged.told(&key, &corrupt)).collect();
        assert_eq!(told, [false, true, true]);
        assert!(!damaged.told(&Bytes::from_static(b"b"), &corrupt));
        let away = StoreError::Unavailable("away".into());
        assert!(!damaged.told(&key, &away) && !damaged.told(&key, &away));
    }
}
