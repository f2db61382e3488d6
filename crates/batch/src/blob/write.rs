//! Writing a blob: blocks with their checksums, handed to the blob store in parts, within a bound of bytes that all writes share. It never
//! waits for room while it holds a part that is not on its way.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryFutureExt as _};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, MultipartUpload, ObjectStoreExt as _, PutPayload, PutPayloadMut};
use sha2::{Digest as _, Sha256};
use tidegate_core::id::Name;
use tokio::task::JoinSet;

use super::budget::{Budget, Room};
use super::{Body, ColdStore, PART_BYTES, SUM_BYTES, path, sum_of_place};
use crate::error::{PutError, StoreError, blob_error};
use crate::stored::{BLOCK_BYTES, BlobId, Piece};

/// Smaller pieces are copied together, so that a body that comes in crumbs costs no more than its bytes.
const COPY_BELOW_BYTES: usize = 64 * 1_024;
/// Parts of one blob that are on their way at the same time.
const PARTS_IN_FLIGHT: usize = 2;

/// A blob of which all bytes have come, and which is not there yet. Dropped, it never comes to be.
pub(crate) struct Unfinished {
    parts: Parts,
    piece: Piece,
}

impl Unfinished {
    /// Waits until the blob store has all its bytes: from then on it holds no room.
    pub(crate) async fn land(&mut self) -> Result<(), StoreError> {
        self.parts.landed(0).await.map_err(blob_error)
    }

    /// Publishes the blob. Must not be dropped on its way: a blob store may go on with what it has begun.
    pub(crate) async fn finish(self) -> Result<Piece, StoreError> {
        self.parts.finish().await.map_err(blob_error)?;
        Ok(self.piece)
    }
}

/// An object's bytes on their way in, for one blob or several.
pub(crate) struct Incoming<'a> {
    /// Whose they are.
    tenant: Name,
    ahead: Bytes,
    rest: Body<'a>,
    over: bool,
    length: u64,
    limit_bytes: u64,
    sha: Option<Sha256>,
    wanted: Option<[u8; 32]>,
}

impl<'a> Incoming<'a> {
    /// Whose they are, what came so far, what follows, how many bytes there may be, and what their SHA-256 must be.
    pub(crate) fn new(tenant: &Name, first: Bytes, rest: Body<'a>, limit_bytes: u64, wanted: Option<[u8; 32]>) -> Self {
        let rest = futures::stream::iter([Ok(first)]).chain(rest).boxed();
        let sha = wanted.map(|_| Sha256::new());
        let tenant = tenant.clone();
        Self { tenant, ahead: Bytes::new(), rest, over: false, length: 0, limit_bytes, sha, wanted }
    }

    /// Whether bytes are left. When it says that there are none, their end has come.
    pub(crate) async fn has_more(&mut self) -> Result<bool, PutError> {
        while self.ahead.is_empty() && !self.over {
            let Some(bytes) = self.rest.next().await.transpose().map_err(PutError::Body)? else {
                self.over = true;
                break;
            };
            if let Some(sha) = &mut self.sha {
                sha.update(&bytes);
            }
            self.length += bytes.len() as u64;
            if self.length > self.limit_bytes {
                return Err(PutError::TooLarge { limit_bytes: self.limit_bytes });
            }
            self.ahead = bytes;
        }
        Ok(!self.ahead.is_empty())
    }

    /// The next bytes, at most so many; `None` = there are no more.
    async fn next(&mut self, most: u64) -> Result<Option<Bytes>, PutError> {
        let more = self.has_more().await?;
        let now = usize::try_from(most).unwrap_or(usize::MAX).min(self.ahead.len());
        Ok(more.then(|| self.ahead.split_to(now)))
    }

    /// Judges them when they have come to their end: how many they were.
    pub(crate) fn end(self) -> Result<u64, PutError> {
        let found = self.sha.map(|sha| sha.finalize().into());
        if found == self.wanted { Ok(self.length) } else { Err(PutError::Checksum) }
    }
}

/// Takes a blob's bytes, up to the most that one has. On an error, and if it or what it gave is dropped, the blob never comes to be; an
/// upload that has a name is for the caller to give up.
pub(crate) async fn write(
    cold: &ColdStore,
    budget: &Budget,
    blob: BlobId,
    upload: Option<&str>,
    incoming: &mut Incoming<'_>,
) -> Result<Unfinished, PutError> {
    let upload = match (&cold.uploads, upload) {
        (Some(uploads), Some(name)) => {
            Upload::Named { store: Arc::clone(uploads), at: path(blob), name: name.into(), parts: Vec::new() }
        }
        _ => Upload::Plain(cold.store.put_multipart(&path(blob)).await.map_err(blob_error)?),
    };
    let mut parts =
        Parts { upload, begun: 0, gathered: PutPayloadMut::new(), room: None, on_their_way: JoinSet::new() };
    let piece = fill(&mut parts, budget, blob, cold.blob_max_bytes(), incoming).await?;
    Ok(Unfinished { parts, piece })
}

async fn fill(
    parts: &mut Parts,
    budget: &Budget,
    blob: BlobId,
    max_bytes: u64,
    incoming: &mut Incoming<'_>,
) -> Result<Piece, PutError> {
    let (mut length, mut blocks, mut in_block, mut sum) = (0_u64, 0_u64, 0_u64, sum_of_place(blob, 0));
    while length < max_bytes {
        let most = (BLOCK_BYTES as u64 - in_block).min(max_bytes - length);
        let Some(now) = incoming.next(most).await? else { break };
        sum = crc32c::crc32c_append(sum, &now);
        in_block += now.len() as u64;
        length += now.len() as u64;
        parts.put(budget, &incoming.tenant, now).await?;
        if in_block == BLOCK_BYTES as u64 {
            parts.put(budget, &incoming.tenant, Bytes::copy_from_slice(&sum.to_le_bytes())).await?;
            blocks += 1;
            (in_block, sum) = (0, sum_of_place(blob, blocks));
        }
    }
    if in_block > 0 {
        parts.put(budget, &incoming.tenant, Bytes::copy_from_slice(&sum.to_le_bytes())).await?;
    }
    // The next blob of the object must not wait for room that this one holds.
    parts.send();
    Ok(Piece { blob, length })
}

/// An upload in parts.
enum Upload {
    /// Known to this process alone.
    Plain(Box<dyn MultipartUpload>),
    /// Written down by the caller, who gives it up where it is not completed.
    Named { store: Arc<dyn MultipartStore>, at: Path, name: MultipartId, parts: Vec<(usize, PartId)> },
    /// Completed, or given up.
    Over,
}

impl Upload {
    fn put(&mut self, number: usize, part: PutPayload) -> BoxFuture<'static, object_store::Result<Sent>> {
        match self {
            Self::Plain(upload) => upload.put_part(part).map_ok(|()| None).boxed(),
            Self::Named { store, at, name, .. } => {
                let (store, at, name) = (Arc::clone(store), at.clone(), name.clone());
                async move { Ok(Some((number, store.put_part(&at, &name, number, part).await?))) }.boxed()
            }
            Self::Over => futures::future::err(over()).boxed(),
        }
    }

    async fn complete(&mut self) -> object_store::Result<()> {
        match self {
            Self::Plain(upload) => upload.complete().await.map(drop),
            Self::Named { store, at, name, parts } => {
                parts.sort_unstable_by_key(|(number, _)| *number);
                let parts = parts.drain(..).map(|(_, part)| part).collect();
                store.complete_multipart(at, name, parts).await.map(drop)
            }
            Self::Over => Err(over()),
        }
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        match self {
            Self::Plain(upload) => upload.abort().await,
            Self::Named { .. } | Self::Over => Ok(()),
        }
    }
}

fn over() -> object_store::Error {
    object_store::Error::Generic { store: "tidegate", source: "the upload has ended".into() }
}

/// What a part is called that was sent, where it must be named in the end.
type Sent = Option<(usize, PartId)>;

/// A blob on its way, in parts of one size.
struct Parts {
    upload: Upload,
    /// Parts so far.
    begun: usize,
    gathered: PutPayloadMut,
    /// For what is gathered; `None` = nothing is.
    room: Option<Room>,
    on_their_way: JoinSet<object_store::Result<Sent>>,
}

impl Parts {
    async fn put(&mut self, budget: &Budget, tenant: &Name, mut bytes: Bytes) -> Result<(), PutError> {
        while !bytes.is_empty() {
            if self.room.is_none() {
                self.landed(PARTS_IN_FLIGHT - 1).await.map_err(blob_error)?;
                self.room = Some(budget.take(tenant).await?);
            }
            let now = bytes.split_to(bytes.len().min(PART_BYTES - self.gathered.content_length()));
            if now.len() < COPY_BELOW_BYTES {
                self.gathered.extend_from_slice(&now);
            } else {
                self.gathered.push(now);
            }
            if self.gathered.content_length() == PART_BYTES {
                self.send();
            }
        }
        Ok(())
    }

    /// Hands over what is gathered.
    fn send(&mut self) {
        let Some(room) = self.room.take() else { return };
        let part = self.upload.put(self.begun, std::mem::take(&mut self.gathered).into());
        self.begun += 1;
        self.on_their_way.spawn(async move {
            let sent = part.await;
            drop(room);
            sent
        });
    }

    /// Waits until no more than so many parts are on their way.
    async fn landed(&mut self, at_most: usize) -> object_store::Result<()> {
        while self.on_their_way.len() > at_most
            && let Some(sent) = self.on_their_way.join_next().await
        {
            let sent = sent.map_err(object_store::Error::from)??;
            if let (Upload::Named { parts, .. }, Some(sent)) = (&mut self.upload, sent) {
                parts.push(sent);
            }
        }
        Ok(())
    }

    async fn finish(mut self) -> object_store::Result<()> {
        self.send();
        self.landed(0).await?;
        self.upload.complete().await?;
        self.upload = Upload::Over;
        Ok(())
    }
}

impl Drop for Parts {
    /// Gives up what was not completed, on whichever way it ends: only this process knows an upload without a name, so that whoever does not
    /// say here that it is over leaves its parts in the blob store for good.
    fn drop(&mut self) {
        let mut upload = std::mem::replace(&mut self.upload, Upload::Over);
        let mut on_their_way = std::mem::take(&mut self.on_their_way);
        if !matches!(upload, Upload::Plain(_)) {
            return;
        }
        // Without a runtime the server ends.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            on_their_way.shutdown().await;
            if let Err(error) = upload.abort().await {
                tracing::debug!(%error, "a blob that was broken off was not cleared away yet");
            }
        });
    }
}

const _: () = assert!(SUM_BYTES == size_of::<u32>());
