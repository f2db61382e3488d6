//! Writing a blob: blocks with their checksums, handed to the blob store in parts, within a bound of bytes that all writes share. It never
//! waits for room while it holds a part that is not on its way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayloadMut};
use sha2::{Digest as _, Sha256};
use tidegate_core::time::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::{Body, SUM_BYTES, path, sum_of_place};
use crate::error::{PutError, StoreError, blob_error};
use crate::stored::{BLOCK_BYTES, BlobId, Piece};

/// Bytes that are handed to the blob store at a time. Twice as many and what is being gathered are in memory for one write.
pub(crate) const PART_BYTES: usize = 8 * 1_024 * 1_024;
/// Smaller pieces are copied together, so that a body that comes in crumbs costs no more than its bytes.
const COPY_BELOW_BYTES: usize = 64 * 1_024;
/// Parts of one blob that are on their way at the same time.
const PARTS_IN_FLIGHT: usize = 2;
/// What the budget is counted in.
const UNIT_BYTES: u64 = 64 * 1_024;

/// The bytes that all writes of large objects may hold together. A write asks for a part at a time, before the part's first byte, and gives
/// it back when the blob store has the part. While it waits, all that it holds is on its way to the blob store, which waits for
/// nobody: so somebody always goes on. Who asks first is served first.
pub(crate) struct Budget {
    free: Arc<Semaphore>,
    units: u32,
    wait: Duration,
    clock: Arc<dyn Clock>,
}

impl Budget {
    pub(crate) fn new(bytes: u64, wait: Duration, clock: Arc<dyn Clock>) -> Self {
        // One part at least: else nothing could be written at all.
        let units = u32::try_from(bytes.max(PART_BYTES as u64) / UNIT_BYTES).unwrap_or(u32::MAX >> 4);
        let free = Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(Semaphore::MAX_PERMITS)));
        Self { free, units, wait, clock }
    }

    /// Bytes that are held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        let free = u64::try_from(self.free.available_permits()).unwrap_or(u64::MAX);
        u64::from(self.units).saturating_sub(free) * UNIT_BYTES
    }

    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, PutError> {
        let units = (bytes as u64).div_ceil(UNIT_BYTES).min(u64::from(self.units));
        let units = u32::try_from(units).expect("it is at most as many as there are");
        let deadline = self.clock.now().after(self.wait);
        tokio::select! {
            // First, so that room that is there costs no timer.
            biased;
            room = Arc::clone(&self.free).acquire_many_owned(units) => Ok(room.expect("it is never closed")),
            () = self.clock.sleep_until(deadline) => {
                metrics::counter!("tidegate_object_writes_refused_total").increment(1);
                Err(PutError::Busy { limit_bytes: u64::from(self.units) * UNIT_BYTES })
            }
        }
    }
}

/// A blob of which all bytes have come, and which is not there yet.
pub(crate) struct Unfinished {
    parts: Parts,
    piece: Piece,
}

impl Unfinished {
    /// Publishes the blob. Must not be dropped on its way: a blob store may go on with what it has begun.
    pub(crate) async fn finish(self) -> Result<Piece, StoreError> {
        self.parts.finish().await.map_err(blob_error)?;
        Ok(self.piece)
    }
}

/// Takes a blob's bytes. On an error, and if it is dropped, the blob never comes to be.
pub(crate) async fn write(
    store: &dyn ObjectStore,
    budget: &Budget,
    blob: BlobId,
    first: Bytes,
    rest: Body<'_>,
    limit_bytes: u64,
    sha256: Option<[u8; 32]>,
) -> Result<Unfinished, PutError> {
    let upload = store.put_multipart(&path(blob)).await.map_err(blob_error)?;
    let mut parts = Parts { upload, gathered: PutPayloadMut::new(), room: None, on_their_way: JoinSet::new() };
    match fill(&mut parts, budget, blob, first, rest, limit_bytes, sha256).await {
        Ok(piece) => Ok(Unfinished { parts, piece }),
        Err(error) => {
            if let Err(abort) = parts.abort().await {
                tracing::debug!(error = %abort, "a blob that was broken off was not cleared away yet");
            }
            Err(error)
        }
    }
}

async fn fill(
    parts: &mut Parts,
    budget: &Budget,
    blob: BlobId,
    first: Bytes,
    mut rest: Body<'_>,
    limit_bytes: u64,
    sha256: Option<[u8; 32]>,
) -> Result<Piece, PutError> {
    let mut sha = sha256.map(|_| Sha256::new());
    let (mut length, mut blocks, mut in_block, mut sum) = (0_u64, 0_u64, 0_usize, sum_of_place(blob, 0));
    let mut next = Some(first);
    while let Some(mut bytes) = next {
        if let Some(sha) = &mut sha {
            sha.update(&bytes);
        }
        length += bytes.len() as u64;
        if length > limit_bytes {
            return Err(PutError::TooLarge { limit_bytes });
        }
        while !bytes.is_empty() {
            let now = bytes.split_to(bytes.len().min(BLOCK_BYTES - in_block));
            sum = crc32c::crc32c_append(sum, &now);
            in_block += now.len();
            parts.put(budget, now).await?;
            if in_block == BLOCK_BYTES {
                parts.put(budget, Bytes::copy_from_slice(&sum.to_le_bytes())).await?;
                blocks += 1;
                (in_block, sum) = (0, sum_of_place(blob, blocks));
            }
        }
        next = rest.next().await.transpose().map_err(PutError::Body)?;
    }
    if in_block > 0 {
        parts.put(budget, Bytes::copy_from_slice(&sum.to_le_bytes())).await?;
    }
    if sha.map(|sha| sha.finalize().into()) != sha256 {
        return Err(PutError::Checksum);
    }
    Ok(Piece { blob, length })
}

/// A blob on its way, in parts of one size.
struct Parts {
    upload: Box<dyn MultipartUpload>,
    gathered: PutPayloadMut,
    /// For what is gathered; `None` = nothing is.
    room: Option<OwnedSemaphorePermit>,
    on_their_way: JoinSet<object_store::Result<()>>,
}

impl Parts {
    async fn put(&mut self, budget: &Budget, mut bytes: Bytes) -> Result<(), PutError> {
        while !bytes.is_empty() {
            if self.room.is_none() {
                self.landed(PARTS_IN_FLIGHT - 1).await.map_err(blob_error)?;
                self.room = Some(budget.take(PART_BYTES).await?);
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
        let part = self.upload.put_part(std::mem::take(&mut self.gathered).into());
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
            sent.map_err(object_store::Error::from)??;
        }
        Ok(())
    }

    async fn finish(mut self) -> object_store::Result<()> {
        self.send();
        let sent = self.landed(0).await;
        let whole = match sent {
            Ok(()) => self.upload.complete().await.map(drop),
            Err(error) => Err(error),
        };
        if whole.is_err()
            && let Err(abort) = self.abort().await
        {
            tracing::debug!(error = %abort, "a blob that was not finished was not cleared away yet");
        }
        whole
    }

    async fn abort(mut self) -> object_store::Result<()> {
        self.on_their_way.shutdown().await;
        self.upload.abort().await
    }
}

const _: () = assert!(SUM_BYTES == size_of::<u32>());
