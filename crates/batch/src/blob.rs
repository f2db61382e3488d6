//! The cold tier: blobs in an `object_store`. A blob is written once under a name of its own, and its checksums are compared before
//! any byte of it is given on. It never decides which blob belongs to which object.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt as _, WriteMultipart};
use sha2::{Digest as _, Sha256};

use crate::error::{GetError, PutError, StoreError, blob_error};
use crate::stored::{BLOCK_BYTES, BlobId, Piece};

/// Bytes that are handed to the blob store at a time. Twice as many and what is being gathered are in memory for one write.
const PART_BYTES: usize = 8 * 1_024 * 1_024;
/// Smaller pieces are copied together, so that a body that comes in crumbs costs no more than its bytes.
const COPY_BELOW_BYTES: usize = 64 * 1_024;
/// Parts of one blob that are on their way at the same time.
const PARTS_IN_FLIGHT: usize = 2;

/// The folder of all blobs.
const FOLDER: &str = "blobs";

/// Bytes on their way in.
pub type Body<'a> = BoxStream<'a, Result<Bytes, tidegate_core::port::Cause>>;

/// A local directory as a blob store: writes go aside, are synced, renamed, and the directory is synced. What an earlier process left
/// aside is removed, so nobody else may write there meanwhile. Blocks.
pub fn local(directory: &FilePath) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let io = |error: std::io::Error| StoreError::Unavailable(Box::new(error));
    std::fs::create_dir_all(directory).map_err(io)?;
    remove_staged(&directory.join(FOLDER)).map_err(io)?;
    let store = object_store::local::LocalFileSystem::new_with_prefix(directory).map_err(blob_error)?;
    Ok(Arc::new(store.with_fsync(true)))
}

/// The blob store writes `name#number` first. Only what has such a name, where blobs lie, is ours to remove.
fn remove_staged(blobs: &FilePath) -> std::io::Result<()> {
    let folders = match std::fs::read_dir(blobs) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        folders => folders?,
    };
    for folder in folders {
        let folder = folder?;
        if !folder.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(folder.path())? {
            let file = file?;
            if file.file_name().to_str().is_some_and(is_staged) {
                std::fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}

fn is_staged(name: &str) -> bool {
    name.split_once('#').is_some_and(|(blob, number)| {
        blob.len() == 32
            && blob.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Where a blob lies. Its name says nothing of the object's.
pub(crate) fn path(blob: BlobId) -> Path {
    let name = hex::encode(blob.0);
    Path::from_iter([FOLDER, &name[..2], &name])
}

/// Checksums of bytes as they pass.
struct Summing {
    sums: Vec<u32>,
    current: u32,
    in_block: usize,
    length: u64,
    sha: Option<Sha256>,
}

impl Summing {
    fn new(sha256: bool) -> Self {
        Self { sums: Vec::new(), current: 0, in_block: 0, length: 0, sha: sha256.then(Sha256::new) }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        if let Some(sha) = &mut self.sha {
            sha.update(bytes);
        }
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.in_block));
            self.current = crc32c::crc32c_append(self.current, now);
            self.in_block += now.len();
            if self.in_block == BLOCK_BYTES {
                self.close_block();
            }
            bytes = rest;
        }
    }

    fn close_block(&mut self) {
        self.sums.push(self.current);
        (self.current, self.in_block) = (0, 0);
    }

    fn finish(mut self) -> (u64, Vec<u32>, Option<[u8; 32]>) {
        if self.in_block > 0 {
            self.close_block();
        }
        (self.length, self.sums, self.sha.map(|sha| sha.finalize().into()))
    }
}

/// Bytes as they come, gathered up to a bound.
pub(crate) enum Gathered<'a> {
    /// All there is.
    Whole(Bytes),
    /// More than the bound: what came so far, and what follows.
    More(Bytes, Body<'a>),
}

/// Reads until the end, or until there are more bytes than `limit`. Copies, so that many small pieces hold no more than they say.
pub(crate) async fn gather(mut body: Body<'_>, limit: u64) -> Result<Gathered<'_>, PutError> {
    let mut gathered = BytesMut::new();
    while let Some(bytes) = body.next().await {
        gathered.extend_from_slice(&bytes.map_err(PutError::Body)?);
        if gathered.len() as u64 > limit {
            return Ok(Gathered::More(gathered.freeze(), body));
        }
    }
    Ok(Gathered::Whole(gathered.freeze()))
}

/// A blob of which all bytes have come, and which is not there yet.
pub(crate) struct Unfinished {
    upload: WriteMultipart,
    piece: Piece,
}

impl Unfinished {
    /// Publishes the blob. Must not be dropped on its way: a blob store may go on with what it has begun.
    pub(crate) async fn finish(self) -> Result<Piece, StoreError> {
        self.upload.finish().await.map_err(blob_error)?;
        Ok(self.piece)
    }
}

/// Takes a blob's bytes. On an error, and if it is dropped, the blob never comes to be.
pub(crate) async fn write(
    store: &dyn ObjectStore,
    blob: BlobId,
    first: Bytes,
    rest: Body<'_>,
    limit_bytes: u64,
    sha256: Option<[u8; 32]>,
) -> Result<Unfinished, PutError> {
    let upload = store.put_multipart(&path(blob)).await.map_err(blob_error)?;
    let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    match fill(&mut upload, blob, first, rest, limit_bytes, sha256).await {
        Ok(piece) => Ok(Unfinished { upload, piece }),
        Err(error) => {
            if let Err(abort) = upload.abort().await {
                tracing::debug!(error = %abort, "a blob that was broken off was not cleared away yet");
            }
            Err(error)
        }
    }
}

async fn fill(
    upload: &mut WriteMultipart,
    blob: BlobId,
    first: Bytes,
    mut rest: Body<'_>,
    limit_bytes: u64,
    sha256: Option<[u8; 32]>,
) -> Result<Piece, PutError> {
    let mut summing = Summing::new(sha256.is_some());
    let mut next = Some(first);
    while let Some(bytes) = next {
        summing.add(&bytes);
        if summing.length > limit_bytes {
            return Err(PutError::TooLarge { limit_bytes });
        }
        upload.wait_for_capacity(PARTS_IN_FLIGHT).await.map_err(blob_error)?;
        if bytes.len() < COPY_BELOW_BYTES {
            upload.write(&bytes)
        } else {
            upload.put(bytes)
        }
        next = rest.next().await.transpose().map_err(PutError::Body)?;
    }
    let (length, sums, sha) = summing.finish();
    if sha != sha256 {
        return Err(PutError::Checksum);
    }
    Ok(Piece { blob, length, sums })
}

/// The SHA-256 of bytes.
pub(crate) fn sha256_of(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Deletes a blob; one that is not there is deleted already.
pub(crate) async fn delete(store: &dyn ObjectStore, blob: BlobId) -> Result<(), StoreError> {
    match store.delete(&path(blob)).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(blob_error(error)),
    }
}

/// Why a blob was not opened.
pub(crate) enum OpenError {
    /// It is not there.
    Missing,
    /// Something else.
    Store(StoreError),
}

/// Opens a blob for reading a range of it, which must lie within it. Nothing that is given has a bit that differs from what was written.
pub(crate) async fn open(
    store: &dyn ObjectStore,
    piece: Piece,
    range: Range<u64>,
) -> Result<impl Stream<Item = Result<Bytes, GetError>> + Send + use<>, OpenError> {
    let block = BLOCK_BYTES as u64;
    let first_block = range.start / block;
    let aligned = first_block * block..range.end.div_ceil(block).saturating_mul(block).min(piece.length);
    let opened = if aligned.is_empty() { None } else { Some(found(store, &piece, aligned.clone()).await?) };
    let blocks = Blocks {
        bytes: opened.map(object_store::GetResult::into_stream),
        ahead: Bytes::new(),
        sums: piece.sums.into_iter().skip(usize::try_from(first_block).unwrap_or(usize::MAX)),
        at: aligned.start,
        end: aligned.end,
        wanted: range,
        waiting: VecDeque::new(),
        blob: piece.blob,
    };
    Ok(futures::stream::try_unfold(blocks, |mut blocks| async move {
        Ok(blocks.next().await?.map(|bytes| (bytes, blocks)))
    }))
}

async fn found(store: &dyn ObjectStore, piece: &Piece, range: Range<u64>) -> Result<GetResult, OpenError> {
    let path = path(piece.blob);
    let cut = |size: u64| {
        let what = format!("blob {:?} has {size} bytes instead of {}", piece.blob, piece.length);
        OpenError::Store(StoreError::Corrupt { what: what.into() })
    };
    let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
    match store.get_opts(&path, options).await {
        Ok(found) if found.meta.size == piece.length => Ok(found),
        Ok(found) => Err(cut(found.meta.size)),
        Err(object_store::Error::NotFound { .. }) => Err(OpenError::Missing),
        // A range beyond the end of a blob that was cut is an error of its own in every store.
        Err(error) => Err(match store.head(&path).await {
            Ok(meta) if meta.size != piece.length => cut(meta.size),
            _ => OpenError::Store(blob_error(error)),
        }),
    }
}

/// A blob's blocks on their way out. At most one block waits.
struct Blocks {
    bytes: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    /// What was read beyond the last block.
    ahead: Bytes,
    sums: std::iter::Skip<std::vec::IntoIter<u32>>,
    /// Where the next block begins.
    at: u64,
    end: u64,
    wanted: Range<u64>,
    /// What was found right and is to be given.
    waiting: VecDeque<Bytes>,
    blob: BlobId,
}

impl Blocks {
    fn damaged(&self, what: &str) -> GetError {
        let what = format!("blob {:?}, block at byte {}: {what}", self.blob, self.at).into();
        StoreError::Corrupt { what }.into()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, GetError> {
        while self.waiting.is_empty() {
            if self.at >= self.end {
                return Ok(None);
            }
            self.block().await?;
        }
        Ok(self.waiting.pop_front())
    }

    /// Reads one block whole and compares its checksum.
    async fn block(&mut self) -> Result<(), GetError> {
        let length = (self.end - self.at).min(BLOCK_BYTES as u64);
        let (mut sum, mut left, mut pieces) = (0, length, Vec::new());
        while left > 0 {
            let mut bytes = std::mem::take(&mut self.ahead);
            if bytes.is_empty() {
                let Some(stream) = &mut self.bytes else { return Err(self.damaged("it is cut short")) };
                let Some(next) = stream.next().await else { return Err(self.damaged("it is cut short")) };
                bytes = next.map_err(blob_error)?;
            }
            if bytes.len() as u64 > left {
                // The rest belongs to the next block.
                self.ahead = bytes.split_off(usize::try_from(left).unwrap_or(usize::MAX));
            }
            sum = crc32c::crc32c_append(sum, &bytes);
            left -= bytes.len() as u64;
            pieces.push(bytes);
        }
        if self.sums.next() != Some(sum) {
            return Err(self.damaged("its checksum differs"));
        }
        let mut at = self.at;
        self.at += length;
        for mut bytes in pieces {
            let end = at + bytes.len() as u64;
            let skip = self.wanted.start.saturating_sub(at).min(bytes.len() as u64);
            let keep = self.wanted.end.min(end).saturating_sub(at + skip);
            bytes.advance(usize::try_from(skip).unwrap_or(usize::MAX));
            bytes.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            if !bytes.is_empty() {
                self.waiting.push_back(bytes);
            }
            at = end;
        }
        Ok(())
    }
}
