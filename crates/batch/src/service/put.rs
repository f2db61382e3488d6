//! Writing and deleting. A small object is one step. A large one: its intent, durable; its blob; then the step that lets the head refer
//! to it and takes the intent away. Whoever loses a race is overtaken by the later one, and is right nevertheless.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_core::port::{CompareAndSwap, Revision, Swap, SwapOutcome};
use tidegate_core::time::Moment;
use uuid::Builder;

use super::commit::Committed;
use super::{Core, ObjectService, head_key};
use crate::blob::{self, Body, Gathered, Incoming, Unfinished};
use crate::error::{PutError, StoreError};
use crate::key;
use crate::object::{Collection, METADATA_MAX_BYTES, Metadata, ObjectInfo, ObjectKey, Version};
use crate::stored::{BlobId, Head, Intent, Piece, Place};
use crate::tier::{Condition, New};

/// How long the deletion of a blob is waited for.
const DELETE_MAX: Duration = Duration::from_secs(30);

/// What is said of an object that is written.
#[derive(Debug, Clone, Default)]
pub struct Put {
    /// What is kept of it.
    pub metadata: Metadata,
    /// What must be there, or not.
    pub condition: Condition,
    /// What the bytes must have.
    pub sha256: Option<[u8; 32]>,
}

/// An object that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Nothing was there before, or it had expired.
    pub created: bool,
    /// What is known of it.
    pub info: ObjectInfo,
}

impl ObjectService {
    /// A key that no other object has: a UUID of version 7, so keys sort by when they were made.
    pub fn make_key(&self) -> Result<ObjectKey, StoreError> {
        let mut random = [0; 10];
        self.core.entropy.fill(&mut random)?;
        let ms = u64::try_from(self.core.now().unix_ms()).unwrap_or(0);
        let text = Builder::from_unix_timestamp_millis(ms, &random).into_uuid().to_string();
        Ok(ObjectKey::new(&text).expect("a UUID is a key"))
    }

    /// Writes an object, durable when answered. Memory: up to `hot_max_bytes` and three parts of 8 MiB, however large it is.
    /// Dropping the future before the blob store has the last byte gives the write up, and what is left of it is cleared away; afterwards it
    /// goes to its end. One that is not stored by [`write_max`](super::ObjectSpec::write_max) is given up, however slow its bytes or the blob store.
    /// Needs a tokio runtime.
    pub async fn put(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        put: Put,
        body: Body<'_>,
    ) -> Result<Written, PutError> {
        check_metadata(&put.metadata)?;
        let core = &self.core;
        let limit_bytes = core.spec.object_max_bytes;
        match blob::gather(body, core.spec.hot_max_bytes.min(limit_bytes)).await? {
            Gathered::Whole(payload) => self.put_small(collection, key, put, payload).await,
            Gathered::More(..) if core.spec.hot_max_bytes >= limit_bytes => Err(PutError::TooLarge { limit_bytes }),
            Gathered::More(first, rest) => {
                // A condition that does not hold already need not cost a blob; it is judged again at the end.
                self.check_now(collection, key, &put.condition).await?;
                let incoming = Incoming::new(&collection.tenant, first, rest, limit_bytes, put.sha256);
                let deadline = core.deadline();
                let (blobs, length) = core.within(deadline, fill(core, deadline, incoming)).await?;
                let (objects, head_key, key) = (self.clone(), head_key(collection, key), key.clone());
                // From here on it goes to its end, also if nobody waits for it: a blob that is being published cannot be called back.
                let ended = tokio::spawn(async move {
                    let (mut writings, mut pieces) = (Vec::new(), Vec::new());
                    for (writing, unfinished) in blobs {
                        let (writing, piece) = writing.publish(unfinished).await?;
                        pieces.push(piece);
                        writings.push(writing);
                    }
                    let new = objects.new_head(put.metadata, Place::Cold(pieces), length)?;
                    let along: Vec<_> = writings.iter().map(Writing::consume).collect();
                    match objects.core.commit(&head_key, Some(&new), &put.condition, &along).await {
                        Ok(Committed::Made(before)) => {
                            writings.into_iter().for_each(Writing::done);
                            Ok(Written { created: before.is_none(), info: new.head.info(key) })
                        }
                        Ok(Committed::Fenced | Committed::Nothing) => {
                            let mut error = StoreError::Contended.into();
                            for writing in writings {
                                error = writing.fenced().await;
                            }
                            Err(error)
                        }
                        Err(error) => {
                            if matches!(&error, PutError::Store(StoreError::Indeterminate(_))) {
                                // The blob may be referred to by now: only who finds its intent may delete it.
                                writings.into_iter().for_each(Writing::leave);
                            }
                            Err(error)
                        }
                    }
                });
                ended.await.map_err(|error| StoreError::Indeterminate(Box::new(error)))?
            }
        }
    }

    async fn check_now(&self, collection: &Collection, key: &ObjectKey, condition: &Condition) -> Result<(), PutError> {
        if *condition == Condition::default() {
            return Ok(());
        }
        let now = self.core.now();
        let head = self.core.head(&head_key(collection, key)).await?.map(|(head, _)| head);
        let current = head.filter(|head| !head.is_expired(now)).map(|head| head.version);
        if condition.matches(current) && condition.none_matches(current) {
            Ok(())
        } else {
            Err(crate::error::PreconditionFailed { current }.into())
        }
    }

    async fn put_small(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        put: Put,
        payload: Bytes,
    ) -> Result<Written, PutError> {
        if put.sha256.is_some_and(|wanted| wanted != blob::sha256_of(&payload)) {
            return Err(PutError::Checksum);
        }
        let mut new = self.new_head(put.metadata, Place::Hot, payload.len() as u64)?;
        new.payload = Some(payload);
        match self.core.commit(&head_key(collection, key), Some(&new), &put.condition, &[]).await? {
            Committed::Made(before) => Ok(Written { created: before.is_none(), info: new.head.info(key.clone()) }),
            Committed::Nothing | Committed::Fenced => Err(StoreError::Contended.into()),
        }
    }

    pub(super) fn new_head(&self, metadata: Metadata, place: Place, length: u64) -> Result<New, StoreError> {
        let now_ms = self.core.now().unix_ms();
        let version = Version(self.core.draw()?);
        let head = Head { version, place, length, created_ms: now_ms, used_ms: now_ms, metadata };
        Ok(New { head, payload: None })
    }

    /// Deletes an object; `false` = there was none. Its bytes go after the grace, so that who reads them may end.
    pub async fn delete(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        condition: &Condition,
    ) -> Result<bool, PutError> {
        match self.core.commit(&head_key(collection, key), None, condition, &[]).await? {
            Committed::Made(before) => Ok(before.is_some()),
            Committed::Nothing | Committed::Fenced => Ok(false),
        }
    }
}

pub(super) fn check_metadata(metadata: &Metadata) -> Result<(), PutError> {
    let bytes = metadata.bytes();
    if bytes > METADATA_MAX_BYTES {
        return Err(PutError::Metadata { bytes, limit_bytes: METADATA_MAX_BYTES });
    }
    Ok(())
}

/// Takes an object's bytes, for as many blobs as it needs, until the blob store has them: how many they were.
async fn fill(
    core: &Arc<Core>,
    deadline: Deadline,
    mut incoming: Incoming<'_>,
) -> Result<(Vec<(Writing, Unfinished)>, u64), PutError> {
    let mut blobs = Vec::new();
    while incoming.has_more().await? {
        let writing = Writing::begin(core, deadline).await?;
        let unfinished = writing.fill(&mut incoming).await?;
        blobs.push((writing, unfinished));
    }
    let length = incoming.end()?;
    for (_, unfinished) in &mut blobs {
        unfinished.land().await?;
    }
    Ok((blobs, length))
}

/// When a write is given up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    /// As this process waits for it.
    at: Moment,
    /// As it is written down for others.
    unix_ms: i64,
}

impl Core {
    /// That of a write that begins now.
    pub(super) fn deadline(&self) -> Deadline {
        let limit_ms = i64::try_from(self.spec.write_max.as_millis()).unwrap_or(i64::MAX);
        let unix_ms = self.now().unix_ms().saturating_add(limit_ms);
        Deadline { at: self.clock.now().after(self.spec.write_max), unix_ms }
    }

    /// Drops what is not done by the deadline.
    pub(super) async fn within<T>(
        &self,
        deadline: Deadline,
        write: impl Future<Output = Result<T, PutError>>,
    ) -> Result<T, PutError> {
        tokio::select! {
            biased;
            written = write => written,
            () = self.clock.sleep_until(deadline.at) => Err(PutError::TookTooLong { limit: self.spec.write_max }),
        }
    }
}

/// A blob that is being written: its intent is durable. Dropped, it is given up and cleared away.
pub(super) struct Writing {
    core: Arc<Core>,
    blob: BlobId,
    /// The name of its upload in parts, where that has one.
    upload: Option<Box<str>>,
    intent: Revision,
    deadline: Deadline,
    over: bool,
}

impl Writing {
    pub(super) async fn begin(core: &Arc<Core>, deadline: Deadline) -> Result<Self, PutError> {
        let blob = BlobId(core.draw()?);
        let swap = Swap::Put(Intent::Writing { by: core.life, deadline_ms: deadline.unix_ms }.seal());
        let put = CompareAndSwap { key: key::intent(blob), expected: None, swap };
        match core.meta.compare_and_swap(vec![put], core.durability).await.map_err(StoreError::from)? {
            SwapOutcome::Swapped(revisions) => {
                let intent = revisions.first().copied().unwrap_or(Revision(0));
                let writing = Self { core: Arc::clone(core), blob, upload: None, intent, deadline, over: false };
                if !core.cold.names_uploads() {
                    return Ok(writing);
                }
                // To its end, also if nobody waits for it: an upload that was begun must have its name written down.
                let named = tokio::spawn(writing.begin_upload());
                named.await.map_err(|error| StoreError::Indeterminate(Box::new(error)))?
            }
            SwapOutcome::Mismatch { .. } => Err(StoreError::Contended.into()),
        }
    }

    /// Begins the upload in parts and writes its name down, before it has a part.
    async fn begin_upload(mut self) -> Result<Self, PutError> {
        self.upload = self.core.cold.begin(self.blob).await?;
        let Some(upload) = self.upload.clone() else { return Ok(self) };
        let uploading = Intent::Uploading { by: self.core.life, deadline_ms: self.deadline.unix_ms, upload };
        let swap = CompareAndSwap { swap: Swap::Put(uploading.seal()), ..self.consume() };
        match self.core.meta.compare_and_swap(vec![swap], self.core.durability).await.map_err(StoreError::from)? {
            SwapOutcome::Swapped(revisions) => {
                self.intent = revisions.first().copied().unwrap_or(self.intent);
                Ok(self)
            }
            // Who took the intent away does not know the name.
            SwapOutcome::Mismatch { .. } => Err(self.fenced().await),
        }
    }

    /// Takes the bytes of the blob, as many as one blob has.
    pub(super) async fn fill(&self, incoming: &mut Incoming<'_>) -> Result<Unfinished, PutError> {
        let Core { cold, budget, .. } = self.core.as_ref();
        blob::write(cold, budget, self.blob, self.upload.as_deref(), incoming).await
    }

    /// Lets the blob come to be, unless its time is over: the sweep may take the intent some time after that. Where the blob store does not
    /// answer in time it is left to itself, and what it may yet make is deleted when it has answered.
    pub(super) async fn publish(self, unfinished: Unfinished) -> Result<(Self, Piece), PutError> {
        if self.core.now().unix_ms() >= self.deadline.unix_ms {
            return Err(self.took_too_long());
        }
        let mut finishing = tokio::spawn(unfinished.finish());
        let finished = self.core.within(self.deadline, async { Ok((&mut finishing).await) }).await;
        match finished {
            Ok(Ok(piece)) => Ok((self, piece?)),
            Ok(Err(died)) => Err(StoreError::Unavailable(Box::new(died)).into()),
            Err(late) => {
                tokio::spawn(async move {
                    let _ = finishing.await;
                    self.fenced().await;
                });
                Err(late)
            }
        }
    }

    fn took_too_long(&self) -> PutError {
        PutError::TookTooLong { limit: self.core.spec.write_max }
    }

    /// Others took the intent away, or that of another blob of the object: nothing refers to the blob, and nothing ever will. Where the intent
    /// is there still it goes the way of all that is given up.
    pub(super) async fn fenced(self) -> PutError {
        if let Err(error) = self.core.delete_blob(self.blob, self.upload.clone()).await {
            tracing::error!(%error, blob = ?self.blob, "a blob that nobody refers to was not deleted");
        }
        self.took_too_long()
    }

    /// Takes the intent away, in the step that lets something refer to the blob.
    pub(super) fn consume(&self) -> CompareAndSwap {
        CompareAndSwap { key: key::intent(self.blob), expected: Some(self.intent), swap: Swap::Delete }
    }

    pub(super) fn done(mut self) {
        self.over = true;
    }

    /// Leaves the intent to the sweep.
    pub(super) fn leave(mut self) {
        self.over = true;
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Without a runtime nobody can clear it away now: the intent stays, and with it the sweep's knowledge.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.over {
            return;
        }
        let (core, blob, upload, consume) = (Arc::clone(&self.core), self.blob, self.upload.take(), self.consume());
        runtime.spawn(async move {
            // The intent becomes garbage first: from then on nothing can begin to refer to the blob.
            if let Err(error) = core.give_up(blob, upload, consume).await {
                tracing::debug!(%error, "a blob that was given up is left to the sweep");
            }
        });
    }
}

impl Core {
    /// Deletes a blob. One that the blob store does not delete in time goes on beside the caller, and there are never more than a few of
    /// those: a directory that hangs holds up neither the sweep nor the threads that everybody shares.
    pub(super) async fn delete_blob(&self, blob: BlobId, upload: Option<Box<str>>) -> Result<(), StoreError> {
        let cold = self.cold.clone();
        let deleted = async {
            let turn = Arc::clone(&self.deletions).acquire_owned().await.expect("it is never closed");
            let delete = tokio::spawn(async move {
                let deleted = cold.delete(blob, upload.as_deref()).await;
                drop(turn);
                deleted
            });
            delete.await.map_err(|died| StoreError::Unavailable(Box::new(died)))?
        };
        let late = self.clock.now().after(DELETE_MAX);
        tokio::select! {
            biased;
            deleted = deleted => deleted,
            () = self.clock.sleep_until(late) => {
                Err(StoreError::Unavailable("the blob store does not delete what it is asked to".into()))
            }
        }
    }

    async fn give_up(&self, blob: BlobId, upload: Option<Box<str>>, consume: CompareAndSwap) -> Result<(), StoreError> {
        let garbage = Swap::Put(Intent::garbage(self.now().unix_ms(), upload.clone()).seal());
        let swap = CompareAndSwap { swap: garbage, ..consume };
        let key = swap.key.clone();
        let revision = match self.meta.compare_and_swap(vec![swap], self.durability).await? {
            SwapOutcome::Swapped(revisions) => revisions.first().copied(),
            SwapOutcome::Mismatch { .. } => return Ok(()),
        };
        self.delete_blob(blob, upload).await?;
        let forget = CompareAndSwap { key, expected: revision, swap: Swap::Delete };
        self.meta.compare_and_swap(vec![forget], self.durability).await?;
        Ok(())
    }
}
