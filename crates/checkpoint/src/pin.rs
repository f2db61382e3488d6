//! Reading a checkpoint without holding the term, from any process: a note in the store says so, and the collector honours it for a bounded
//! time. It never reads what a collection may have begun to delete.

use std::collections::{BTreeMap, BTreeSet};

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tidegate_core::id::Name;
use tidegate_frame::envelope::{self, Kind};

use crate::error::{ReadError, StoreError};
use crate::id::{Generation, Nonce, PackId};
use crate::job::Job;
use crate::log::JobStore;
use crate::manifest::Checkpoint;
use crate::read::{ChunkReader, StateReader};
use crate::survey::survey;

/// Readers that are noted at one job at a time.
pub const READERS_MAX: usize = 1_024;
/// Checkpoints that are collected under a reader's hands, one after the other, before it gives up.
const TRIES_MAX: usize = 16;
const READER_SCHEMA: u16 = 1;

/// What is noted: enough to keep the packs, also when the manifest is gone.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) job: Name,
    pub(crate) generation: Generation,
    pub(crate) packs: BTreeSet<PackId>,
}

impl Note {
    pub(crate) fn open(sealed: &[u8]) -> Option<Self> {
        envelope::open(Kind::CheckpointReader, &[READER_SCHEMA], sealed).ok()
    }
}

/// A checkpoint that is being read. Nothing of it is collected until [`Self::release`], nor before the collector has known of it for
/// [`Spec::reader_ttl`](crate::Spec::reader_ttl); who reads for longer says so with [`Self::renew`].
#[derive(Debug)]
pub struct Pinned {
    /// It.
    pub checkpoint: Checkpoint,
    store: JobStore,
    note: Path,
}

impl Job {
    /// Opens a checkpoint for reading: the newest one (`None`) or the one that is named.
    ///
    /// The note comes first and the look whether the slot is still there after it; a collector deletes the slot first and looks for
    /// notes after that: so one of the two sees the other.
    pub async fn open(&self, generation: Option<Generation>) -> Result<Pinned, ReadError> {
        let not_found = |generation: Option<Generation>| ReadError::NotFound {
            job: self.store.job.clone(),
            generation: generation.unwrap_or(Generation(0)),
        };
        for _ in 0..TRIES_MAX {
            if self.store.readers().await?.len() >= READERS_MAX {
                return Err(ReadError::TooManyReaders { limit: READERS_MAX });
            }
            let found = survey(&self.store, usize::MAX, &BTreeSet::new()).await?;
            if let Some(generation) = generation
                && let Some(at) = found.rejected.iter().position(|rejected| rejected.generation == generation)
            {
                let mut rejected = found.rejected;
                return Err(rejected.swap_remove(at).damage.into());
            }
            let mut checkpoints = found.checkpoints.into_iter();
            let checkpoint = checkpoints.find(|found| generation.is_none_or(|wanted| found.id.generation == wanted));
            let Some(checkpoint) = checkpoint else { return Err(not_found(generation)) };
            let note = self.note(&checkpoint).await?;
            if self.store.still_has(&checkpoint).await? {
                return Ok(Pinned { checkpoint, store: self.store.clone(), note });
            }
            self.store.delete(&note).await?;
        }
        Err(not_found(generation))
    }

    async fn note(&self, checkpoint: &Checkpoint) -> Result<Path, ReadError> {
        let id = Nonce::draw(&*self.parts.entropy)?;
        note(&self.store, checkpoint, &id.to_hex()).await.map_err(ReadError::from)
    }
}

async fn note(store: &JobStore, checkpoint: &Checkpoint, id: &str) -> Result<Path, StoreError> {
    let path = store.layout.reader(id);
    let note = Note {
        job: store.job.clone(),
        generation: checkpoint.id.generation,
        packs: checkpoint.manifest.packs.keys().copied().collect(),
    };
    let sealed = envelope::seal(Kind::CheckpointReader, READER_SCHEMA, &note)
        .expect("it names fewer packs than the manifest, which has the same bound");
    store.create(&path, sealed.into()).await?;
    Ok(path)
}

impl Pinned {
    /// The states, by operator.
    #[must_use]
    pub fn states(&self) -> BTreeMap<Name, StateReader> {
        let chunks = ChunkReader::new(&self.store);
        let states = self.checkpoint.manifest.states.iter();
        states
            .map(|(name, state)| (name.clone(), StateReader { chunks: chunks.clone(), state: state.clone() }))
            .collect()
    }

    /// Says that it is still being read: the time of the note begins again. Cost: three small requests.
    pub async fn renew(&mut self, job: &Job) -> Result<(), ReadError> {
        let renewed = job.note(&self.checkpoint).await?;
        self.store.delete(&std::mem::replace(&mut self.note, renewed)).await?;
        Ok(())
    }

    /// Says that it is no longer being read. Dropping it without that costs the space until the note's time is over.
    pub async fn release(self) -> Result<(), ReadError> {
        Ok(self.store.delete(&self.note).await?)
    }
}
