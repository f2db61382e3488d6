//! Reading states back: every byte is compared with the sum in the manifest, or with the digest too, before anybody sees it. It never gives a byte that differs
//! from what was written, and names the object and the chunk that do.

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use tidegate_frame::envelope::{self, Kind};

use crate::error::{DamageKind, ReadError, StoreError};
use crate::id::Digest;
use crate::log::JobStore;
use crate::manifest::{ChunkList, ChunkRef, Segment, StateRef};
use crate::save::INDEX_SCHEMA;

/// Bytes that are read from a pack at a time: few enough that memory is used again instead of being asked for anew.
const RANGE_BYTES: u64 = 2 * 1_024 * 1_024;
/// Ranges that are read and checked at the same time, in order.
const RANGES_IN_FLIGHT: usize = 4;

/// Reads chunks of one job.
#[derive(Debug, Clone)]
pub(crate) struct ChunkReader {
    store: JobStore,
    thorough: bool,
}

/// Chunks that lie one behind the other in a pack.
#[derive(Debug)]
struct Range {
    chunks: Vec<ChunkRef>,
    bytes: u64,
}

impl ChunkReader {
    /// Compares the sum of each chunk.
    pub(crate) fn new(store: &JobStore) -> Self {
        Self { store: store.clone(), thorough: false }
    }

    /// Compares the digest of each chunk too.
    pub(crate) fn thorough(store: &JobStore) -> Self {
        Self { store: store.clone(), thorough: true }
    }

    /// The job's folder, for what is wrong with no object of its own.
    pub(crate) fn folder(&self) -> object_store::path::Path {
        self.store.layout.folder.clone()
    }

    /// One chunk.
    pub(crate) async fn chunk(&self, chunk: &ChunkRef) -> Result<Bytes, ReadError> {
        let range = Range { chunks: vec![*chunk], bytes: u64::from(chunk.length) };
        let mut read = self.range(range).await?;
        Ok(read.pop().expect("a range gives as many pieces as it has chunks"))
    }

    /// The chunks of a segment, in order.
    pub(crate) async fn list(&self, segment: &Segment) -> Result<Vec<ChunkRef>, ReadError> {
        let chunks = match &segment.chunks {
            ChunkList::Inline(chunks) => chunks.clone(),
            ChunkList::Indexed { count, parts } => {
                let mut chunks: Vec<ChunkRef> = Vec::new();
                for part in parts {
                    let sealed = self.chunk(part).await?;
                    let path = self.store.layout.pack(part.pack);
                    let listed: Vec<ChunkRef> = envelope::open(Kind::CheckpointIndex, &[INDEX_SCHEMA], &sealed)
                        .map_err(|error| DamageKind::Envelope(error).at(&path))?;
                    chunks.extend(listed);
                }
                if chunks.len() as u64 != *count {
                    let path = parts
                        .first()
                        .map_or_else(|| self.store.layout.packs.clone(), |part| self.store.layout.pack(part.pack));
                    return Err(DamageKind::Inconsistent("a list has other chunks than its manifest says")
                        .at(&path)
                        .into());
                }
                chunks
            }
        };
        let length: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        if length != segment.length || Digest::of_all(chunks.iter().map(|chunk| &chunk.digest)) != segment.digest {
            let path = &self.store.layout.log;
            return Err(DamageKind::Inconsistent("a segment's chunks are not those of its digest").at(path).into());
        }
        Ok(chunks)
    }

    /// The bytes of a segment, in order, each checked before it is given.
    pub(crate) fn segment(&self, segment: Segment) -> BoxStream<'static, Result<Bytes, ReadError>> {
        let reader = self.clone();
        let ranges = async move {
            let ranges = group(reader.list(&segment).await?);
            let read = stream::iter(ranges).map(move |range| {
                let reader = reader.clone();
                async move { reader.range(range).await }
            });
            let pieces = read.buffered(RANGES_IN_FLIGHT);
            Ok::<_, ReadError>(pieces.map_ok(|chunks| stream::iter(chunks.into_iter().map(Ok))).try_flatten())
        };
        stream::once(ranges).try_flatten().boxed()
    }

    async fn range(&self, range: Range) -> Result<Vec<Bytes>, ReadError> {
        let path = self.store.layout.pack(range.chunks[0].pack);
        let from = u64::from(range.chunks[0].offset);
        let read = match self.store.store.get_range(&path, from..from + range.bytes).await {
            Ok(read) => read,
            Err(object_store::Error::NotFound { .. }) => return Err(JobStore::missing(&path).into()),
            Err(error) => {
                // A range beyond the end is a pack that was cut.
                if let Ok(meta) = self.store.store.head(&path).await
                    && meta.size < from + range.bytes
                {
                    let kind = DamageKind::Length { expected_bytes: from + range.bytes, actual_bytes: meta.size };
                    return Err(kind.at(&path).into());
                }
                return Err(StoreError::new(&path, error).into());
            }
        };
        if read.len() as u64 != range.bytes {
            let kind = DamageKind::Length { expected_bytes: range.bytes, actual_bytes: read.len() as u64 };
            return Err(kind.at(&path).into());
        }
        if !self.thorough {
            // A fifth of a millisecond at most: handing it to another thread would cost as much.
            return check(&range, &read, false).map_err(|kind| kind.at(&path).into());
        }
        let checked = crate::save::run(move || check(&range, &read, true)).await;
        checked.map_err(|kind| kind.at(&path).into())
    }
}

/// The chunks of a range, if each is what was written.
fn check(range: &Range, read: &Bytes, thorough: bool) -> Result<Vec<Bytes>, DamageKind> {
    let mut at = 0;
    let mut pieces = Vec::with_capacity(range.chunks.len());
    for chunk in &range.chunks {
        let piece = read.slice(at..at + chunk.length as usize);
        at += chunk.length as usize;
        let same = crate::chunk::sum(&piece) == chunk.sum;
        if !same || (thorough && Digest::of(&piece) != chunk.digest) {
            return Err(DamageKind::Chunk {
                offset: u64::from(chunk.offset),
                length: u64::from(chunk.length),
                expected: chunk.digest,
                actual: Digest::of(&piece),
            });
        }
        pieces.push(piece);
    }
    Ok(pieces)
}

/// Puts chunks that lie one behind the other together, up to a bound.
fn group(chunks: Vec<ChunkRef>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for chunk in chunks {
        let length = u64::from(chunk.length);
        if let Some(range) = ranges.last_mut()
            && range.chunks[0].pack == chunk.pack
            && u64::from(range.chunks[0].offset) + range.bytes == u64::from(chunk.offset)
            && range.bytes + length <= RANGE_BYTES
        {
            range.bytes += length;
            range.chunks.push(chunk);
        } else {
            ranges.push(Range { chunks: vec![chunk], bytes: length });
        }
    }
    ranges
}

/// Reads the state of one operator.
#[derive(Debug, Clone)]
pub struct StateReader {
    pub(crate) chunks: ChunkReader,
    pub(crate) state: StateRef,
}

impl StateReader {
    /// How many bytes there are.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.state.length()
    }

    /// What its segments mean: see [`StateRef::form`].
    #[must_use]
    pub fn form(&self) -> u8 {
        self.state.form
    }

    /// The bytes, in order, each checked before it is given. An error ends it: what came before is right, what follows is not there.
    /// Holds at most a few ranges of 2 MiB.
    #[must_use]
    pub fn stream(&self) -> BoxStream<'static, Result<Bytes, ReadError>> {
        let chunks = self.chunks.clone();
        let segments: Vec<Segment> = self.state.segments.iter().map(|(_, segment)| segment.clone()).collect();
        stream::iter(segments).map(move |segment| chunks.segment(segment)).flatten().boxed()
    }

    /// All bytes at once, if they are not more than `limit_bytes`.
    pub async fn read(&self, limit_bytes: u64) -> Result<Bytes, ReadError> {
        let actual_bytes = self.length();
        if actual_bytes > limit_bytes {
            return Err(ReadError::TooLarge { actual_bytes, limit_bytes });
        }
        let pieces: Vec<Bytes> = self.stream().try_collect().await?;
        match pieces.len() {
            1 => Ok(pieces.into_iter().next().expect("there is one")),
            _ => Ok(pieces.concat().into()),
        }
    }
}
