//! Writing the states of a checkpoint: cut, named by digest, written once into packs, and then published in one step. It never holds more
//! than a few packs in memory, and never publishes what it did not find in the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use object_store::PutPayload;
use tidegate_core::id::Name;
use tidegate_frame::envelope::{self, Kind, SealError};
use tokio::task::{JoinHandle, JoinSet};

use crate::chunk::{self, CHUNK_MAX_BYTES, Summed};
use crate::error::{AppendError, DamageKind, StoreError};
use crate::id::{CheckpointId, Digest, PackId};
use crate::log::Created;
use crate::manifest::{Checkpoint, ChunkList, ChunkRef, Draft, InvalidDraft, STATES_MAX, Segment, StateRef};
use crate::read::ChunkReader;
use crate::writer::{Inner, Writer, Written};

/// Bytes that are cut and hashed at a time.
const WINDOW_BYTES: usize = 4 * 1_024 * 1_024;
/// Windows that are being hashed at the same time.
const WINDOWS_IN_FLIGHT: usize = 2;
/// Packs that are being written at the same time.
const PACKS_IN_FLIGHT: usize = 3;
/// Chunks that one part of a list names.
pub(crate) const INDEX_CHUNKS: usize = 32_768;
/// The version of the layout of a part of a list.
pub(crate) const INDEX_SCHEMA: u16 = 1;

/// What a save wrote and what it found already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SaveStats {
    /// Bytes of the states.
    pub state_bytes: u64,
    /// Bytes that were written into packs, those included that were copied out of old packs.
    pub written_bytes: u64,
    /// Of these, bytes that were copied because their packs held little else that is needed.
    pub copied_bytes: u64,
    /// Packs that were written.
    pub packs: u64,
    /// Chunks of the states.
    pub chunks: u64,
    /// Of these, chunks that were there already.
    pub shared_chunks: u64,
}

/// A checkpoint in the making. Dropped, it leaves packs that the next collection deletes.
#[derive(Debug)]
pub struct Save {
    writer: Writer,
    base: Option<Arc<Checkpoint>>,
    known: HashMap<Digest, ChunkRef>,
    states: BTreeMap<Name, StateRef>,
    pack: Vec<Bytes>,
    pack_id: PackId,
    pack_bytes: usize,
    writing: JoinSet<Result<(PackId, u64), AppendError>>,
    written: BTreeMap<PackId, u64>,
    /// The packs that this save has named; taken off the ledger's list when it is dropped.
    named: BTreeSet<PackId>,
    /// The packs that lists of chunks in packs refer to, and in which they lie.
    indexed: BTreeSet<PackId>,
    stats: SaveStats,
}

impl Drop for Save {
    fn drop(&mut self) {
        let mut ledger = self.writer.inner.ledger.lock();
        for pack in &self.named {
            ledger.writing.remove(pack);
        }
    }
}

impl Writer {
    /// Begins a checkpoint that shares what it can with the newest one. Reads that one's lists of chunks if they are not in its manifest.
    pub async fn begin(&self) -> Result<Save, AppendError> {
        let base = self.newest();
        let mut known = HashMap::new();
        if let Some(base) = &base {
            let reader = ChunkReader::new(&self.inner.store);
            for (_, segment) in base.manifest.states.values().flat_map(|state| &state.segments) {
                // Lists that cannot be read are no reason not to save: their chunks are written anew.
                if let Ok(chunks) = reader.list(segment).await {
                    known.extend(chunks.into_iter().map(|chunk| (chunk.digest, chunk)));
                }
                if let ChunkList::Indexed { parts, .. } = &segment.chunks {
                    known.extend(parts.iter().map(|part| (part.digest, *part)));
                }
            }
        }
        let generation = self.inner.tail.lock().await.last.next().ok_or(AppendError::Exhausted)?;
        let mut save = Save {
            writer: self.clone(),
            base,
            known,
            states: BTreeMap::new(),
            pack: Vec::new(),
            pack_id: PackId { epoch: self.inner.epoch, generation, serial: 0 },
            pack_bytes: 0,
            writing: JoinSet::new(),
            written: BTreeMap::new(),
            named: BTreeSet::new(),
            indexed: BTreeSet::new(),
            stats: SaveStats::default(),
        };
        save.name_pack();
        Ok(save)
    }
}

impl Save {
    /// What was written so far.
    #[must_use]
    pub fn stats(&self) -> SaveStats {
        self.stats
    }

    /// The checkpoint that this one shares chunks with.
    #[must_use]
    pub fn base(&self) -> Option<&Arc<Checkpoint>> {
        self.base.as_ref()
    }

    /// Takes the state of an operator as opaque bytes. Cut by content: what the last checkpoint has is not written again. Holds a few
    /// windows of 4 MiB and the packs on their way.
    pub async fn state<E>(&mut self, name: Name, bytes: impl Stream<Item = Result<Bytes, E>>) -> Result<(), AppendError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let segment = self.segment(&name, bytes).await?;
        self.put(name, StateRef { form: 0, segments: vec![(0, segment)] })
    }

    /// Takes the state of an operator, in its segments.
    pub(crate) fn put(&mut self, name: Name, state: StateRef) -> Result<(), AppendError> {
        self.states.insert(name, state);
        if self.states.len() > STATES_MAX {
            let (what, actual) = ("states", self.states.len());
            return Err(InvalidDraft::TooMany { what, actual, limit: STATES_MAX }.into());
        }
        Ok(())
    }

    /// Writes the bytes of a segment.
    pub(crate) async fn segment<E>(
        &mut self,
        state: &Name,
        bytes: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<Segment, AppendError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // A long piece is handed on in windows: cutting one and hashing another then go on at the same time.
        let bytes = bytes.flat_map(|piece| {
            let (piece, failed) = match piece {
                Ok(piece) => (piece, None),
                Err(error) => (Bytes::new(), Some(Err(error))),
            };
            let windows = (0..piece.len()).step_by(WINDOW_BYTES);
            let windows = windows.map(move |from| Ok(piece.slice(from..piece.len().min(from + WINDOW_BYTES))));
            futures::stream::iter(windows.chain(failed))
        });
        let mut bytes = std::pin::pin!(bytes);
        let mut hashing: std::collections::VecDeque<JoinHandle<Vec<Summed>>> = std::collections::VecDeque::new();
        let (mut left, mut gathered, mut gathered_bytes) = (Bytes::new(), Vec::new(), 0);
        let mut chunks = Vec::new();
        let mut end = false;
        while !end {
            match bytes.next().await {
                Some(Ok(piece)) => {
                    gathered_bytes += piece.len();
                    gathered.push(piece);
                }
                Some(Err(error)) => return Err(AppendError::State { state: state.clone(), source: error.into() }),
                None => end = true,
            }
            if gathered_bytes < WINDOW_BYTES && !end {
                continue;
            }
            let (window, carried) = (std::mem::take(&mut gathered), std::mem::take(&mut left));
            gathered_bytes = 0;
            let cut = move || {
                let mut cuts = Vec::new();
                let left = cut_window(carried, window, end, &mut cuts);
                (cuts, left)
            };
            let (cuts, rest) = run(cut).await;
            left = rest;
            hashing.push_back(tokio::task::spawn_blocking(move || chunk::digest(cuts)));
            while hashing.len() > if end { 0 } else { WINDOWS_IN_FLIGHT } {
                let hashed = joined(hashing.pop_front().expect("its length was looked at").await);
                for chunk in hashed {
                    chunks.push(self.chunk(chunk).await?);
                }
            }
        }
        self.list(chunks).await
    }

    /// Refers to a segment of the base as it is.
    pub(crate) fn reuse(&mut self, segment: &Segment) -> Segment {
        self.stats.state_bytes += segment.length;
        if let (ChunkList::Indexed { .. }, Some(base)) = (&segment.chunks, &self.base) {
            self.indexed.extend(base.manifest.packs.keys());
        }
        segment.clone()
    }

    async fn list(&mut self, chunks: Vec<ChunkRef>) -> Result<Segment, AppendError> {
        let length = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        let digest = Digest::of_all(chunks.iter().map(|chunk| &chunk.digest));
        let named: usize = self.stats.chunks.try_into().unwrap_or(usize::MAX);
        if named <= self.writer.inner.spec.inline_chunks {
            return Ok(Segment { length, digest, chunks: ChunkList::Inline(chunks) });
        }
        self.indexed.extend(chunks.iter().map(|chunk| chunk.pack));
        let mut parts = Vec::new();
        for part in chunks.chunks(INDEX_CHUNKS) {
            let sealed = envelope::seal(Kind::CheckpointIndex, INDEX_SCHEMA, part)?;
            let part = self.chunk(Summed::new(sealed)).await?;
            self.indexed.insert(part.pack);
            parts.push(part);
        }
        Ok(Segment { length, digest, chunks: ChunkList::Indexed { count: chunks.len() as u64, parts } })
    }

    async fn chunk(&mut self, chunk: Summed) -> Result<ChunkRef, AppendError> {
        self.stats.chunks += 1;
        self.stats.state_bytes += chunk.bytes.len() as u64;
        if let Some(known) = self.known.get(&chunk.digest)
            && known.length as usize == chunk.bytes.len()
        {
            self.stats.shared_chunks += 1;
            return Ok(*known);
        }
        self.write(chunk).await
    }

    async fn write(&mut self, chunk: Summed) -> Result<ChunkRef, AppendError> {
        let Summed { digest, sum, bytes } = chunk;
        if self.pack_bytes + bytes.len() > self.writer.inner.spec.pack_bytes && self.pack_bytes > 0 {
            self.send().await?;
        }
        let too_large = || SealError::TooLarge { limit_bytes: u32::MAX as usize };
        let written = ChunkRef {
            digest,
            sum,
            pack: self.pack_id,
            offset: u32::try_from(self.pack_bytes).map_err(|_| too_large())?,
            length: u32::try_from(bytes.len()).map_err(|_| too_large())?,
        };
        self.pack_bytes += bytes.len();
        self.stats.written_bytes += bytes.len() as u64;
        self.pack.push(bytes);
        self.known.insert(digest, written);
        Ok(written)
    }

    fn name_pack(&mut self) {
        let mut ledger = self.writer.inner.ledger.lock();
        self.pack_id.serial = ledger.serial;
        ledger.serial += 1;
        ledger.writing.insert(self.pack_id);
        self.named.insert(self.pack_id);
    }

    /// Sends the pack that is being filled to the store, and waits while too many are on their way.
    async fn send(&mut self) -> Result<(), AppendError> {
        if self.pack.is_empty() {
            return Ok(());
        }
        while self.writing.len() >= PACKS_IN_FLIGHT {
            self.sent().await?;
        }
        let (id, bytes) = (self.pack_id, self.pack_bytes as u64);
        let payload: PutPayload = std::mem::take(&mut self.pack).into_iter().collect();
        self.pack_bytes = 0;
        self.name_pack();
        self.stats.packs += 1;
        let writer = Arc::clone(&self.writer.inner);
        self.writing.spawn(async move {
            let path = writer.store.layout.pack(id);
            match writer.store.create(&path, payload).await.map_err(AppendError::Store)? {
                // No two packs have one name: it is this one, whose first answer was lost.
                Created::Made | Created::Exists => Ok((id, bytes)),
            }
        });
        Ok(())
    }

    async fn sent(&mut self) -> Result<(), AppendError> {
        if let Some(done) = self.writing.join_next().await {
            let (id, bytes) = joined(done)?;
            self.written.insert(id, bytes);
        }
        Ok(())
    }

    /// Publishes the checkpoint: after `Done` it is durable, whole, and the newest one of the job. Until then it is nothing.
    ///
    /// After [`AppendError::Indeterminate`], and after its future was dropped, [`Writer::settle`] says whether it was published.
    pub async fn publish(mut self, draft: Draft) -> Result<Written<CheckpointId>, AppendError> {
        draft.check(self.base.as_deref())?;
        self.repack().await?;
        self.send().await?;
        while !self.writing.is_empty() {
            self.sent().await?;
        }
        let used: BTreeSet<PackId> =
            inline(&self.states).map(|chunk| chunk.pack).chain(self.indexed.iter().copied()).collect();
        let inner = Arc::clone(&self.writer.inner);
        let there = self.verify_packs(&inner, &used).await?;
        let newest = self.writer.newest();
        if let (Some(newest), base) = (&newest, &self.base)
            && base.as_ref().map(|base| base.digest) != Some(newest.digest)
        {
            return Err(AppendError::Overtaken { published: newest.id.clone() });
        }
        let states = std::mem::take(&mut self.states);
        self.writer.publish_manifest(draft, states, there).await
    }

    /// All packs that are referred to are there, and as long as they were written.
    async fn verify_packs(&self, inner: &Inner, used: &BTreeSet<PackId>) -> Result<BTreeMap<PackId, u64>, AppendError> {
        if used.is_empty() {
            return Ok(BTreeMap::new());
        }
        let there: BTreeMap<PackId, u64> = inner.store.packs().await.map_err(AppendError::Store)?.into_iter().collect();
        let mut packs = BTreeMap::new();
        for pack in used {
            let by_base = || self.base.as_ref().and_then(|base| base.manifest.packs.get(pack));
            let expected = self.written.get(pack).or_else(by_base).copied();
            let path = inner.store.layout.pack(*pack);
            match (there.get(pack), expected) {
                (Some(actual), Some(expected)) if *actual == expected => drop(packs.insert(*pack, expected)),
                (Some(actual), Some(expected)) => {
                    let kind = DamageKind::Length { expected_bytes: expected, actual_bytes: *actual };
                    return Err(kind.at(&path).into());
                }
                (Some(_), None) => {
                    return Err(DamageKind::Inconsistent("a chunk's pack is not named").at(&path).into());
                }
                (None, _) => return Err(DamageKind::Missing.at(&path).into()),
            }
        }
        Ok(packs)
    }

    /// Copies chunks out of packs of which little is needed, so that these can be deleted. Bounded for each save.
    async fn repack(&mut self) -> Result<(), AppendError> {
        let Some(base) = self.base.clone() else { return Ok(()) };
        let mut live: BTreeMap<PackId, u64> = BTreeMap::new();
        let mut seen = std::collections::HashSet::new();
        for chunk in inline(&self.states) {
            if seen.insert(chunk.digest) {
                *live.entry(chunk.pack).or_default() += u64::from(chunk.length);
            }
        }
        let mut budget = self.stats.state_bytes / self.writer.inner.spec.repack_share.max(1);
        let mut chosen = BTreeSet::new();
        for (pack, bytes) in live {
            let Some(length) = base.manifest.packs.get(&pack) else { continue };
            if bytes.saturating_mul(REPACK_BELOW) < *length && bytes <= budget {
                budget -= bytes;
                chosen.insert(pack);
            }
        }
        // Parts of lists lie in packs too and name places: where there are any, nothing is moved.
        let indexed = self.states.values().flat_map(|state| &state.segments);
        if chosen.is_empty()
            || indexed.into_iter().any(|(_, segment)| matches!(segment.chunks, ChunkList::Indexed { .. }))
        {
            return Ok(());
        }
        let reader = ChunkReader::thorough(&self.writer.inner.store);
        let mut moved: HashMap<Digest, ChunkRef> = HashMap::new();
        let old: Vec<ChunkRef> = inline(&self.states).filter(|chunk| chosen.contains(&chunk.pack)).copied().collect();
        for chunk in old {
            if moved.contains_key(&chunk.digest) {
                continue;
            }
            // What cannot be read stays where it is: a copy of it would be no better.
            let Ok(bytes) = reader.chunk(&chunk).await else { return Ok(()) };
            self.stats.copied_bytes += bytes.len() as u64;
            let place = self.write(Summed { digest: chunk.digest, sum: chunk.sum, bytes }).await?;
            moved.insert(chunk.digest, place);
        }
        for state in self.states.values_mut() {
            for (_, segment) in &mut state.segments {
                let ChunkList::Inline(chunks) = &mut segment.chunks else { continue };
                for chunk in chunks {
                    if let Some(place) = moved.get(&chunk.digest) {
                        *chunk = *place;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A pack is rewritten when less than one in so many of its bytes is needed.
const REPACK_BELOW: u64 = 4;

fn inline(states: &BTreeMap<Name, StateRef>) -> impl Iterator<Item = &ChunkRef> {
    states.values().flat_map(|state| &state.segments).flat_map(|(_, segment)| match &segment.chunks {
        ChunkList::Inline(chunks) => chunks.iter(),
        ChunkList::Indexed { .. } => [].iter(),
    })
}

/// Cuts what was carried over and the pieces behind it, copying as little as can be: a piece that is long is cut in place.
fn cut_window(mut left: Bytes, pieces: Vec<Bytes>, end: bool, cuts: &mut Vec<Bytes>) -> Bytes {
    for mut piece in pieces {
        if !left.is_empty() && piece.len() > 2 * CHUNK_MAX_BYTES {
            // The chunks that begin in what was carried over end within a chunk's length of the piece.
            let head = chunk::join(&left, piece.slice(..CHUNK_MAX_BYTES));
            let before = cuts.len();
            let rest = chunk::cut(&head, false, cuts);
            // Only those that begin in the carried part are taken; the piece is cut from where the last of them ends.
            let mut at = 0;
            cuts.truncate(
                before
                    + cuts[before..]
                        .iter()
                        .take_while(|cut| {
                            let begins = at;
                            at += cut.len();
                            begins < left.len()
                        })
                        .count(),
            );
            let taken: usize = cuts[before..].iter().map(Bytes::len).sum();
            if taken < left.len() {
                left = chunk::join(&left, piece);
                left = chunk::cut(&left, false, cuts);
                continue;
            }
            drop(rest);
            piece = piece.slice(taken - left.len()..);
            left = Bytes::new();
        }
        left = chunk::cut(&chunk::join(&left, piece), false, cuts);
    }
    if end { chunk::cut(&left, true, cuts) } else { left }
}

pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work).await)
}

/// What a task gave; a panic in it goes on here.
fn joined<T>(done: Result<T, tokio::task::JoinError>) -> T {
    match done {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("the task is not aborted while somebody waits for it"),
        },
    }
}

impl From<StoreError> for AppendError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
