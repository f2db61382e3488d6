//! Large objects in parts. Each part is a blob of its own, sent in any order and as often as wanted; completing lets the object refer to
//! them in one step, without copying. An id proves itself: it is bound to its object, and nobody else can make one.

mod place;

use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tidegate_core::port::{CompareAndSwap, MetaEntry, MetaRange, Revision, Swap, SwapOutcome};

use super::commit::Committed;
use super::put::{Writing, check_metadata};
use super::{Core, ObjectService, Written, head_key};
use crate::blob::{Body, Incoming};
use crate::error::{PutError, StoreError, UploadError};
use crate::key;
use crate::object::{Collection, Metadata, ObjectKey, Version};
use crate::stored::{self, Completed, Head, Intent, Part, Piece, Place, Upload, UploadId};
use crate::tier::Condition;

pub(super) use place::Full;

/// The most parts of an upload.
pub const PART_MAX_COUNT: u32 = 1_000;

/// An upload's id: 16 random bytes, and as many that prove that this server made it for this object. 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UploadToken([u8; 32]);

impl UploadToken {
    /// Reads the wire form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    fn id(self) -> UploadId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        UploadId(id)
    }
}

impl std::fmt::Display for UploadToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for UploadToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UploadToken(..)")
    }
}

/// A part that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartWritten {
    /// Its number.
    pub number: u32,
    /// How many bytes it has.
    pub length: u64,
    /// Which write of it this is.
    pub version: Version,
}

/// A part that is named to complete an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedPart {
    /// Its number.
    pub number: u32,
    /// Which write of it; `None` = whichever is there.
    pub version: Option<Version>,
}

impl ObjectService {
    /// Begins an upload of an object.
    pub async fn begin_upload(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        metadata: Metadata,
    ) -> Result<UploadToken, UploadError> {
        check_metadata(&metadata)?;
        let core = &self.core;
        let mut upload = Upload {
            id: [0; 16],
            tenant: collection.tenant.as_str().into(),
            usecase: collection.usecase.as_str().into(),
            scopes: collection.scopes.as_str().into(),
            key: key.as_str().into(),
            metadata,
            created_ms: core.now().unix_ms(),
        };
        for _ in 0..super::ATTEMPTS_MAX {
            let id = core.free_place(&collection.tenant).await?;
            upload.id = id.0;
            let token = core.token(id, collection, key).await?;
            let key = key::upload(&collection.tenant, id);
            let put = CompareAndSwap { key, expected: None, swap: Swap::Put(upload.seal()) };
            match core.meta.compare_and_swap(vec![put], core.durability).await.map_err(StoreError::from)? {
                SwapOutcome::Swapped(_) => return Ok(token),
                // Somebody else took the place.
                SwapOutcome::Mismatch { .. } => {}
            }
        }
        Err(StoreError::Contended.into())
    }

    /// Writes a part, durable when answered; one of that number that is there already gives way.
    pub async fn put_part(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        token: UploadToken,
        number: u32,
        sha256: Option<[u8; 32]>,
        body: Body<'_>,
    ) -> Result<PartWritten, UploadError> {
        if !(1..=PART_MAX_COUNT).contains(&number) {
            return Err(UploadError::Number { number, limit: PART_MAX_COUNT });
        }
        let core = &self.core;
        core.upload(collection, key, token).await?;
        // A part is one blob.
        let limit_bytes = core.spec.object_max_bytes.min(core.cold.blob_max_bytes());
        let mut incoming = Incoming::new(&collection.tenant, Bytes::new(), body, limit_bytes, sha256);
        let deadline = core.deadline();
        let filled = core.within(deadline, async {
            let writing = Writing::begin(core, deadline).await?;
            let mut unfinished = writing.fill(&mut incoming).await?;
            // One byte more than a blob takes is too much, and found by looking for it.
            incoming.has_more().await?;
            incoming.end()?;
            unfinished.land().await?;
            Ok((writing, unfinished))
        });
        let (writing, unfinished) = filled.await?;
        let core = Arc::clone(core);
        let (collection, key) = (collection.clone(), key.clone());
        // As with a whole object: a blob that is being published cannot be called back.
        let ended = tokio::spawn(async move {
            let (writing, piece) = writing.publish(unfinished).await?;
            core.add_part(&collection, &key, token, number, writing, piece).await
        });
        ended.await.map_err(|error| StoreError::Indeterminate(Box::new(error)))?
    }

    /// The parts that are there, in order.
    pub async fn parts(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        token: UploadToken,
    ) -> Result<Vec<PartWritten>, UploadError> {
        self.core.upload(collection, key, token).await?;
        let parts = self.core.parts(token.id()).await?;
        let written = |(number, part, _): (u32, Part, Revision)| PartWritten {
            number,
            length: part.piece.length,
            version: part.version,
        };
        Ok(parts.into_iter().map(written).collect())
    }

    /// Makes the object out of its parts, in one step; parts that are not named are discarded. `None` = all that are there, which must then be
    /// 1 to the last without a hole. Asked again within [`completed_keep`](super::ObjectSpec::completed_keep), because the answer was
    /// lost, it answers the same and changes nothing.
    pub async fn complete_upload(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        token: UploadToken,
        named: Option<&[NamedPart]>,
        condition: &Condition,
    ) -> Result<Written, UploadError> {
        match self.complete(collection, key, token, named, condition).await {
            // Another completion may have been quicker: then its answer is the answer of this one.
            Err(
                refused @ (UploadError::Unknown
                | UploadError::Missing { .. }
                | UploadError::Replaced { .. }
                | UploadError::Put(PutError::Precondition(_) | PutError::Store(StoreError::Contended))),
            ) => self.completed_upload(collection, key, token).await?.ok_or(refused),
            Err(unknown @ UploadError::Put(PutError::Store(StoreError::Indeterminate(_)))) => {
                match self.completed_upload(collection, key, token).await {
                    Ok(Some(written)) => Ok(written),
                    _ => Err(unknown),
                }
            }
            ended => ended,
        }
    }

    /// What the completion of an upload was answered, where it is remembered; `None` = the upload is open.
    pub async fn completed_upload(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        token: UploadToken,
    ) -> Result<Option<Written>, UploadError> {
        match self.core.upload(collection, key, token).await {
            Ok(_) => Ok(None),
            Err(UploadError::Unknown) => self.core.completed(collection, key, token).await.map(Some),
            Err(error) => Err(error),
        }
    }

    async fn complete(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        token: UploadToken,
        named: Option<&[NamedPart]>,
        condition: &Condition,
    ) -> Result<Written, UploadError> {
        let core = &self.core;
        let (upload, revision) = core.upload(collection, key, token).await?;
        let there = core.parts(token.id()).await?;
        let chosen = choose(&there, named)?;
        let pieces: Vec<_> = chosen.iter().map(|part| part.piece.clone()).collect();
        let length = pieces.iter().map(|piece| piece.length).sum();
        let limit_bytes = core.spec.object_max_bytes;
        if length > limit_bytes {
            return Err(PutError::TooLarge { limit_bytes }.into());
        }
        let mut along = vec![CompareAndSwap {
            key: key::upload(&collection.tenant, token.id()),
            expected: Some(revision),
            swap: Swap::Delete,
        }];
        for (number, part, revision) in &there {
            let part_key = key::part(token.id(), *number);
            along.push(CompareAndSwap { key: part_key, expected: Some(*revision), swap: Swap::Delete });
            if !chosen.iter().any(|chosen| chosen.version == part.version) {
                along.push(core.discard(part));
            }
        }
        let new = self.new_head(upload.metadata, Place::Cold(pieces), length)?;
        let head = Head { place: Place::Cold(Vec::new()), ..new.head.clone() };
        let keep_ms = i64::try_from(core.spec.completed_keep.as_millis()).unwrap_or(i64::MAX);
        let until_ms = core.now().unix_ms().saturating_add(keep_ms);
        let remember = |created| CompareAndSwap {
            key: key::completed(token.id()),
            expected: None,
            swap: Swap::Put(Completed { until_ms, created, head: head.clone() }.seal()),
        };
        match core.commit_and(&head_key(collection, key), Some(&new), condition, &along, &remember).await? {
            Committed::Made(before) => {
                core.full.forget(collection.tenant.as_str());
                Ok(Written { created: before.is_none(), info: new.head.info(key.clone()) })
            }
            // It was completed or aborted meanwhile, or a part was sent again.
            Committed::Fenced | Committed::Nothing => Err(StoreError::Contended.into()),
        }
    }

    /// Gives an upload up and discards its parts.
    pub async fn abort_upload(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        token: UploadToken,
    ) -> Result<(), UploadError> {
        let core = &self.core;
        for _ in 0..super::ATTEMPTS_MAX {
            let (_, revision) = core.upload(collection, key, token).await?;
            if core.remove_upload(key::upload(&collection.tenant, token.id()), token.id(), revision).await? {
                core.full.forget(collection.tenant.as_str());
                return Ok(());
            }
        }
        Err(StoreError::Contended.into())
    }
}

fn choose<'a>(there: &'a [(u32, Part, Revision)], named: Option<&[NamedPart]>) -> Result<Vec<&'a Part>, UploadError> {
    let Some(named) = named else {
        let mut chosen = Vec::with_capacity(there.len());
        for (expected, (number, part, _)) in (1..).zip(there) {
            if *number != expected {
                return Err(UploadError::Missing { number: expected });
            }
            chosen.push(part);
        }
        return if chosen.is_empty() { Err(UploadError::Missing { number: 1 }) } else { Ok(chosen) };
    };
    let mut chosen = Vec::with_capacity(named.len());
    let mut last = 0;
    for NamedPart { number, version } in named {
        if *number <= last {
            return Err(UploadError::Order { number: *number });
        }
        last = *number;
        let found = there.iter().find(|(there, _, _)| there == number);
        let (_, part, _) = found.ok_or(UploadError::Missing { number: *number })?;
        if version.is_some_and(|version| version != part.version) {
            return Err(UploadError::Replaced { number: *number });
        }
        chosen.push(part);
    }
    if chosen.is_empty() { Err(UploadError::Missing { number: 1 }) } else { Ok(chosen) }
}

impl Core {
    /// Lets an upload refer to a part's blob.
    async fn add_part(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        token: UploadToken,
        number: u32,
        writing: Writing,
        piece: Piece,
    ) -> Result<PartWritten, UploadError> {
        let part = Part { version: Version(self.draw()?), piece };
        let written = PartWritten { number, length: part.piece.length, version: part.version };
        let part_key = key::part(token.id(), number);
        for _ in 0..super::ATTEMPTS_MAX {
            let (upload, upload_revision) = self.upload(collection, key, token).await?;
            let before = self.meta.get(&part_key).await.map_err(StoreError::from)?;
            let mut swaps = vec![
                // Written anew, so that who completes or aborts the upload with the parts that he saw is told of this one.
                CompareAndSwap {
                    key: key::upload(&collection.tenant, token.id()),
                    expected: Some(upload_revision),
                    swap: Swap::Put(upload.seal()),
                },
                CompareAndSwap {
                    key: part_key.clone(),
                    expected: before.as_ref().map(|entry| entry.revision),
                    swap: Swap::Put(part.seal()),
                },
                writing.consume(),
            ];
            if let Some(value) = before.as_ref().and_then(|entry| entry.value.as_ref()) {
                swaps.push(self.discard(&Part::open(value)?));
            }
            match self.meta.compare_and_swap(swaps, self.durability).await {
                Ok(SwapOutcome::Swapped(_)) => {
                    writing.done();
                    return Ok(written);
                }
                Ok(SwapOutcome::Mismatch { index: 2, .. }) => return Err(writing.fenced().await.into()),
                Ok(SwapOutcome::Mismatch { .. }) => {}
                Err(error) => {
                    let error = StoreError::from(error);
                    if matches!(error, StoreError::Indeterminate(_)) {
                        writing.leave();
                    }
                    return Err(error.into());
                }
            }
        }
        Err(StoreError::Contended.into())
    }

    /// Makes a part's blob garbage.
    fn discard(&self, part: &Part) -> CompareAndSwap {
        let garbage = Intent::Garbage { from_ms: self.now().unix_ms() }.seal();
        CompareAndSwap { key: key::intent(part.piece.blob), expected: None, swap: Swap::Put(garbage) }
    }

    /// The upload of an id that proves itself for this object.
    async fn upload(
        &self,
        collection: &Collection,
        object: &ObjectKey,
        token: UploadToken,
    ) -> Result<(Upload, Revision), UploadError> {
        self.prove(collection, object, token).await?;
        match self.meta.get(&key::upload(&collection.tenant, token.id())).await.map_err(StoreError::from)? {
            Some(MetaEntry { value: Some(value), revision, .. }) => {
                let upload = Upload::open(&value)?;
                // Its place may be another's by now.
                if upload.id == token.id().0 { Ok((upload, revision)) } else { Err(UploadError::Unknown) }
            }
            _ => Err(UploadError::Unknown),
        }
    }

    /// What the completion of this upload was answered, if it is remembered.
    async fn completed(
        &self,
        collection: &Collection,
        object: &ObjectKey,
        token: UploadToken,
    ) -> Result<Written, UploadError> {
        self.prove(collection, object, token).await?;
        match self.meta.get(&key::completed(token.id())).await.map_err(StoreError::from)? {
            Some(MetaEntry { value: Some(value), .. }) => {
                let completed = Completed::open(&value)?;
                if self.now().unix_ms() >= completed.until_ms {
                    return Err(UploadError::Unknown);
                }
                Ok(Written { created: completed.created, info: completed.head.info(object.clone()) })
            }
            _ => Err(UploadError::Unknown),
        }
    }

    async fn prove(&self, collection: &Collection, object: &ObjectKey, token: UploadToken) -> Result<(), UploadError> {
        let proof = self.proof(token.id(), collection, object).await?;
        proof.verify_truncated_left(&token.0[16..]).map_err(|_| UploadError::Unknown)
    }

    async fn token(
        &self,
        id: UploadId,
        collection: &Collection,
        object: &ObjectKey,
    ) -> Result<UploadToken, StoreError> {
        let proof = self.proof(id, collection, object).await?.finalize().into_bytes();
        let mut token = [0; 32];
        token[..16].copy_from_slice(&id.0);
        token[16..].copy_from_slice(&proof[..16]);
        Ok(UploadToken(token))
    }

    async fn proof(
        &self,
        id: UploadId,
        collection: &Collection,
        object: &ObjectKey,
    ) -> Result<Hmac<Sha256>, StoreError> {
        let secret = self.secret().await?;
        let mut proof = Hmac::<Sha256>::new_from_slice(&secret).expect("a key of any length is one");
        proof.update(&id.0);
        // The head's key holds every part of the object's name, with zero bytes between them.
        proof.update(&head_key(collection, object));
        Ok(proof)
    }

    /// The secret of all upload ids; made when it is first needed. It lies where the uploads lie.
    async fn secret(&self) -> Result<[u8; 32], StoreError> {
        let key = key::secret();
        if let Some(MetaEntry { value: Some(value), .. }) = self.meta.get(&key).await? {
            return stored::open_secret(&value);
        }
        let mut secret = [0; 32];
        self.entropy.fill(&mut secret)?;
        let put = CompareAndSwap { key, expected: None, swap: Swap::Put(stored::seal_secret(&secret)) };
        match self.meta.compare_and_swap(vec![put], self.durability).await? {
            SwapOutcome::Swapped(_) => Ok(secret),
            SwapOutcome::Mismatch { current: Some(MetaEntry { value: Some(value), .. }), .. } => {
                stored::open_secret(&value)
            }
            SwapOutcome::Mismatch { .. } => Err(StoreError::Contended),
        }
    }

    async fn parts(&self, upload: UploadId) -> Result<Vec<(u32, Part, Revision)>, StoreError> {
        let prefix = key::parts(upload).freeze();
        let range = MetaRange { prefix: prefix.clone(), from: prefix, limit: PART_MAX_COUNT as usize };
        let entries = self.meta.scan(range).await?;
        let mut parts = Vec::with_capacity(entries.len());
        for entry in entries {
            let (Some(value), Some(number)) = (&entry.value, key::part_number(&entry.key)) else { continue };
            parts.push((number, Part::open(value)?, entry.revision));
        }
        Ok(parts)
    }

    /// Removes an upload with its parts; `false` = it changed meanwhile.
    pub(super) async fn remove_upload(
        &self,
        key: Bytes,
        upload: UploadId,
        revision: Revision,
    ) -> Result<bool, StoreError> {
        let mut swaps = vec![CompareAndSwap { key, expected: Some(revision), swap: Swap::Delete }];
        for (number, part, revision) in self.parts(upload).await? {
            swaps.push(CompareAndSwap { key: key::part(upload, number), expected: Some(revision), swap: Swap::Delete });
            swaps.push(self.discard(&part));
        }
        Ok(matches!(self.meta.compare_and_swap(swaps, self.durability).await?, SwapOutcome::Swapped(_)))
    }
}
