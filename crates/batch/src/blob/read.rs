//! Reading a blob, or a range of it, block by block: a block is read whole and its checksum compared before any byte of it is given on.
//! It never keeps more than one block.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt as _};

use super::{SUM_BYTES, path, stored_bytes, sum_of_place};
use crate::error::{GetError, StoreError, blob_error};
use crate::stored::{BLOCK_BYTES, BlobId, Piece};

/// Bytes from one block to the next.
const STRIDE_BYTES: u64 = (BLOCK_BYTES + SUM_BYTES) as u64;

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
    let blocks = range.start / block..range.end.div_ceil(block);
    let source = if range.is_empty() {
        Source::Nothing
    } else {
        let stored = blocks.start * STRIDE_BYTES..(blocks.end * STRIDE_BYTES).min(stored_bytes(piece.length));
        let found = found(store, &piece, stored.clone()).await?;
        match found.payload {
            GetResultPayload::File(file, _) => Source::File { file, at: stored.start },
            GetResultPayload::Stream(bytes) => Source::Stream { bytes, ahead: Bytes::new() },
        }
    };
    let blocks = Blocks { source, blocks, wanted: range, piece };
    Ok(futures::stream::try_unfold(blocks, |mut blocks| async move {
        Ok(blocks.next().await?.map(|bytes| (bytes, blocks)))
    }))
}

async fn found(store: &dyn ObjectStore, piece: &Piece, range: Range<u64>) -> Result<GetResult, OpenError> {
    let path = path(piece.blob);
    let whole = stored_bytes(piece.length);
    let cut = |size: u64| {
        let what = format!("blob {:?} has {size} bytes instead of {whole}", piece.blob);
        OpenError::Store(StoreError::Corrupt { what: what.into() })
    };
    let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
    match store.get_opts(&path, options).await {
        Ok(found) if found.meta.size == whole => Ok(found),
        Ok(found) => Err(cut(found.meta.size)),
        Err(object_store::Error::NotFound { .. }) => Err(OpenError::Missing),
        // A range beyond the end of a blob that was cut is an error of its own in every store.
        Err(error) => Err(match store.head(&path).await {
            Ok(meta) if meta.size != whole => cut(meta.size),
            _ => OpenError::Store(blob_error(error)),
        }),
    }
}

/// Where blocks come from.
enum Source {
    Nothing,
    /// A local file: a block is one hop to a thread that may block, however the store would have cut it.
    File {
        file: File,
        at: u64,
    },
    Stream {
        bytes: BoxStream<'static, object_store::Result<Bytes>>,
        /// What was read beyond the last block.
        ahead: Bytes,
    },
}

/// A blob's blocks on their way out. At most one is in memory.
struct Blocks {
    source: Source,
    /// Those that are still to be read.
    blocks: Range<u64>,
    wanted: Range<u64>,
    piece: Piece,
}

/// Why a block was not read.
enum Failed {
    /// There are fewer bytes than there should be.
    Cut,
    Io(std::io::Error),
    Store(object_store::Error),
}

impl Blocks {
    /// The next block, or what is wanted of it.
    async fn next(&mut self) -> Result<Option<Bytes>, GetError> {
        let Some(block) = self.blocks.next() else { return Ok(None) };
        let from = block * BLOCK_BYTES as u64;
        let length = (self.piece.length - from).min(BLOCK_BYTES as u64);
        let wanted = usize::try_from(length).expect("a block is small") + SUM_BYTES;
        let source = std::mem::replace(&mut self.source, Source::Nothing);
        let (read, source) = match source.read(wanted).await {
            Ok(read) => read,
            Err(Failed::Cut) => return Err(damaged(self.piece.blob, from, "it is cut short")),
            Err(Failed::Io(error)) => return Err(StoreError::Unavailable(Box::new(error)).into()),
            Err(Failed::Store(error)) => return Err(blob_error(error).into()),
        };
        self.source = source;
        let Some((bytes, sum)) = read.split_last_chunk::<SUM_BYTES>() else {
            return Err(damaged(self.piece.blob, from, "it is cut short"));
        };
        if crc32c::crc32c_append(sum_of_place(self.piece.blob, block), bytes) != u32::from_le_bytes(*sum) {
            return Err(damaged(self.piece.blob, from, "its checksum differs"));
        }
        let within = |at: u64| usize::try_from(at.saturating_sub(from).min(length)).expect("a block is small");
        Ok(Some(read.slice(within(self.wanted.start)..within(self.wanted.end))))
    }
}

fn damaged(blob: BlobId, at: u64, what: &str) -> GetError {
    let what = format!("blob {blob:?}, block at byte {at}: {what}").into();
    StoreError::Corrupt { what }.into()
}

impl Source {
    /// So many bytes, in one piece.
    async fn read(self, wanted: usize) -> Result<(Bytes, Self), Failed> {
        match self {
            Self::Nothing => Err(Failed::Cut),
            Self::File { mut file, at } => {
                // Made here: of dozens of threads that may block, each would keep pages of the allocator's for itself.
                let mut bytes = Vec::with_capacity(wanted);
                let read = tokio::task::spawn_blocking(move || {
                    file.seek(SeekFrom::Start(at))?;
                    // Without the store's own cutting into small pieces, and without filling the buffer with zeros first.
                    (&file).take(wanted as u64).read_to_end(&mut bytes)?;
                    Ok((bytes, file))
                });
                let (bytes, file) = read.await.map_err(std::io::Error::from).flatten().map_err(Failed::Io)?;
                if bytes.len() < wanted {
                    return Err(Failed::Cut);
                }
                Ok((bytes.into(), Self::File { file, at: at + wanted as u64 }))
            }
            Self::Stream { mut bytes, mut ahead } => {
                let mut block = BytesMut::new();
                loop {
                    if block.is_empty() && ahead.len() >= wanted {
                        // It came in one piece.
                        return Ok((ahead.split_to(wanted), Self::Stream { bytes, ahead }));
                    }
                    let now = ahead.split_to(ahead.len().min(wanted - block.len()));
                    block.reserve(wanted - block.len());
                    block.extend_from_slice(&now);
                    if block.len() == wanted {
                        return Ok((block.freeze(), Self::Stream { bytes, ahead }));
                    }
                    ahead = bytes.next().await.ok_or(Failed::Cut)?.map_err(Failed::Store)?;
                }
            }
        }
    }
}
