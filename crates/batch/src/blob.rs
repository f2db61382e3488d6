//! The cold tier: blobs in an `object_store`. A blob is written once under a name of its own, and its checksums are compared before
//! any byte of it is given on. It never decides which blob belongs to which object.
//!
//! **Layout.** A blob is blocks of [`BLOCK_BYTES`] of the object, the last one shorter, each followed by its checksum: four bytes,
//! little-endian, the CRC-32C of the blob's name, the block's number (`u64`, little-endian) and its bytes. So a block of another blob, or
//! of another place, is no block of this one, a range is checked by what is read with it, and nothing that is known of an object
//! grows with its size.

mod budget;
mod cold;
mod read;
mod write;

use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path;
use sha2::{Digest as _, Sha256};
use tidegate_core::limit::Limit;

use crate::error::{PutError, StoreError, blob_error};
use crate::stored::{BLOCK_BYTES, BlobId};

pub(crate) use budget::Budget;
pub use cold::ColdStore;
pub(crate) use read::{OpenError, open};
pub(crate) use write::{Incoming, Unfinished, write};

/// The bounds of this module.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "object_blob_part_bytes",
        value: PART_BYTES as u64,
        meaning: "What is handed to the cold store at a time; a write holds up to three of them in memory, however large the object is.",
    },
    Limit {
        name: "object_blob_max_bytes",
        value: cold::BLOB_MAX_BYTES,
        meaning: "What lies in one object of a bucket; larger objects of ours lie in several. Of a local directory: no bound.",
    },
];

/// Bytes that are handed to the blob store at a time. Twice as many and what is being gathered are in memory for one write.
const PART_BYTES: usize = 8 * 1_024 * 1_024;

/// Bytes of a block's checksum.
const SUM_BYTES: usize = 4;

/// The folder of all blobs.
const FOLDER: &str = "blobs";

/// Bytes on their way in.
pub type Body<'a> = BoxStream<'a, Result<Bytes, tidegate_core::port::Cause>>;

/// A local directory as a blob store: writes go aside, are synced, renamed, and the directory is synced, also after a deletion. What an earlier process left
/// aside is removed, so nobody else may write there meanwhile. Blocks.
pub fn local(directory: &FilePath) -> Result<ColdStore, StoreError> {
    let io = |error: std::io::Error| StoreError::Unavailable(Box::new(error));
    std::fs::create_dir_all(directory).map_err(io)?;
    remove_staged(&directory.join(FOLDER)).map_err(io)?;
    let store = object_store::local::LocalFileSystem::new_with_prefix(directory).map_err(blob_error)?;
    Ok(ColdStore::in_directory(Arc::new(store.with_fsync(true)), directory))
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

/// What a block's checksum begins with: no two blocks of any blob share it.
fn sum_of_place(blob: BlobId, block: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&blob.0), &block.to_le_bytes())
}

/// How many bytes a blob with so many bytes of an object has.
fn stored_bytes(length: u64) -> u64 {
    length + length.div_ceil(BLOCK_BYTES as u64) * SUM_BYTES as u64
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

/// The SHA-256 of bytes.
pub(crate) fn sha256_of(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
