//! Where a job goes on: the newest checkpoint that is whole, its states, its positions, its watermark and what the sinks must be told to
//! commit again, together. It never hides that a newer one is damaged.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt as _;
use tidegate_core::Timestamp;
use tidegate_core::id::Name;

use crate::error::{Damage, DamageKind, ReadError};
use crate::id::{Generation, PackId};
use crate::log::JobStore;
use crate::manifest::{Checkpoint, Positions};
use crate::read::{ChunkReader, StateReader};
use crate::survey::{Rejected, Survey};
use crate::writer::{Inner, Writer};

/// Damages that a verification names at most.
pub const DAMAGES_MAX: usize = 1_000;

/// What a claim found of earlier terms.
#[derive(Debug)]
pub struct Recovery {
    inner: Arc<Inner>,
    /// What was not used, and why: newer than what [`Self::newest`] gives, or older and damaged.
    pub rejected: Vec<Rejected>,
    /// Newest first.
    candidates: Vec<Checkpoint>,
}

/// A checkpoint to go on from. While it lives, nothing of it is collected.
#[derive(Debug)]
pub struct Recovered {
    /// It.
    pub checkpoint: Checkpoint,
    /// What each sink must be told to commit again: empty if it is known that they did.
    pub recommit: BTreeMap<Name, Vec<u8>>,
    inner: Arc<Inner>,
}

impl Recovery {
    pub(crate) fn new(writer: &Writer, survey: Survey) -> Self {
        Self { inner: Arc::clone(&writer.inner), rejected: survey.rejected, candidates: survey.checkpoints }
    }

    /// The newest checkpoint, without reading its states: those are checked as they are read. `None` = the job has none, or none that is
    /// readable; see [`Self::rejected`] before beginning from nothing.
    #[must_use]
    pub fn newest(&self) -> Option<Recovered> {
        self.candidates.first().map(|newest| self.recovered(newest.clone()))
    }

    /// The newest checkpoint, of which every byte was read and is right. What is damaged goes to [`Self::rejected`].
    pub async fn newest_whole(&mut self) -> Result<Option<Recovered>, ReadError> {
        while let Some(newest) = self.newest() {
            match verify(&self.inner.store, &newest.checkpoint).await?.into_iter().next() {
                None => return Ok(Some(newest)),
                Some(damage) => self.reject(newest.checkpoint.id.generation, damage),
            }
        }
        Ok(None)
    }

    /// Gives up a checkpoint whose state turned out to be damaged while it was read: [`Self::newest`] is its predecessor then, and the
    /// next checkpoint will be made from that one.
    pub fn reject(&mut self, generation: Generation, damage: Damage) {
        let Some(at) = self.candidates.iter().position(|found| found.id.generation == generation) else { return };
        self.candidates.remove(at);
        let mut ledger = self.inner.ledger.lock();
        let committed = ledger.committed.contains_key(&generation);
        // Only as long as nothing was published from it.
        if ledger.newest.as_ref().is_some_and(|newest| newest.id.generation == generation) {
            ledger.newest = self.candidates.first().map(|next| Arc::new(next.clone()));
        }
        ledger.older = self.candidates.iter().skip(1).map(Checkpoint::parent).collect();
        tracing::error!(job = %self.inner.store.job, %generation, error = %damage, "a checkpoint is damaged; its predecessor is used");
        self.rejected.push(Rejected { generation, committed, damage });
    }

    fn recovered(&self, checkpoint: Checkpoint) -> Recovered {
        let mut ledger = self.inner.ledger.lock();
        *ledger.pins.entry(checkpoint.id.generation).or_default() += 1;
        let done = ledger.committed.contains_key(&checkpoint.id.generation);
        let recommit = if done { BTreeMap::new() } else { checkpoint.manifest.pending.clone() };
        drop(ledger);
        Recovered { checkpoint, recommit, inner: Arc::clone(&self.inner) }
    }
}

impl Recovered {
    /// The states, by operator.
    #[must_use]
    pub fn states(&self) -> BTreeMap<Name, StateReader> {
        let chunks = ChunkReader::new(&self.inner.store);
        let states = self.checkpoint.manifest.states.iter();
        states
            .map(|(name, state)| (name.clone(), StateReader { chunks: chunks.clone(), state: state.clone() }))
            .collect()
    }

    /// The state of one operator.
    #[must_use]
    pub fn state(&self, name: &str) -> Option<StateReader> {
        let state = self.checkpoint.manifest.states.get(name)?.clone();
        Some(StateReader { chunks: ChunkReader::new(&self.inner.store), state })
    }

    /// The next to read of every source.
    #[must_use]
    pub fn positions(&self) -> &Positions {
        &self.checkpoint.manifest.positions
    }

    /// The watermark.
    #[must_use]
    pub fn watermark(&self) -> Option<Timestamp> {
        self.checkpoint.manifest.watermark
    }
}

impl Drop for Recovered {
    fn drop(&mut self) {
        let mut ledger = self.inner.ledger.lock();
        if let Some(pins) = ledger.pins.get_mut(&self.checkpoint.id.generation) {
            *pins -= 1;
            if *pins == 0 {
                ledger.pins.remove(&self.checkpoint.id.generation);
            }
        }
    }
}

/// Reads every byte that a checkpoint refers to, each once, and says what is damaged.
pub(crate) async fn verify(store: &JobStore, checkpoint: &Checkpoint) -> Result<Vec<Damage>, ReadError> {
    let mut damages = Vec::new();
    if !store.still_has(checkpoint).await? {
        let path = store.layout.slot(checkpoint.id.generation);
        damages.push(DamageKind::Inconsistent("the slot was changed since it was listed").at(&path));
    }
    let there: BTreeMap<PackId, u64> = store.packs().await?.into_iter().collect();
    for (pack, expected) in &checkpoint.manifest.packs {
        let path = store.layout.pack(*pack);
        match there.get(pack) {
            Some(actual) if actual == expected => {}
            Some(actual) => {
                damages.push(DamageKind::Length { expected_bytes: *expected, actual_bytes: *actual }.at(&path));
            }
            None => damages.push(JobStore::missing(&path)),
        }
    }
    let reader = ChunkReader::thorough(store);
    for (_, segment) in checkpoint.manifest.states.values().flat_map(|state| &state.segments) {
        if damages.len() >= DAMAGES_MAX {
            break;
        }
        // At full speed as long as nothing is wrong, then chunk by chunk, to name them all.
        let whole = reader.segment(segment.clone()).try_for_each(async |_| Ok(())).await;
        match whole {
            Ok(()) => continue,
            Err(ReadError::Damage(_)) => {}
            Err(error) => return Err(error),
        }
        let chunks = match reader.list(segment).await {
            Ok(chunks) => chunks,
            Err(ReadError::Damage(damage)) => {
                damages.push(damage);
                continue;
            }
            Err(error) => return Err(error),
        };
        for chunk in chunks {
            match reader.chunk(&chunk).await {
                Ok(_) => {}
                Err(ReadError::Damage(damage)) if damages.len() < DAMAGES_MAX => damages.push(damage),
                Err(ReadError::Damage(_)) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(damages)
}
