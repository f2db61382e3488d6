//! The checkpoints of one store, and of one job: claiming the term, listing, showing, verifying, removing. It never writes without a term,
//! except that an operator removes what he names.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;
use tidegate_core::id::{Epoch, Name};
use tidegate_core::port::Entropy;
use tidegate_core::time::Clock;

use crate::Spec;
use crate::claim::{Claim, Claimed, Mode, TTL_MAX, TTL_MIN};
use crate::error::{ClaimError, Damage, ReadError, StoreError};
use crate::id::Generation;
use crate::log::{JobStore, LISTED_MAX, Read};
use crate::manifest::Checkpoint;
use crate::recover::Recovery;
use crate::survey::{Rejected, survey};
use crate::writer::Writer;

/// What [`Checkpoints`] are made of.
#[derive(Clone)]
pub struct CheckpointParts {
    /// Where they lie: anything that can create an object only where there is none. A local directory should be told to fsync:
    /// `LocalFileSystem::with_fsync(true)`.
    pub store: Arc<dyn ObjectStore>,
    /// Under which prefix.
    pub root: Path,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness: a writer's own mark.
    pub entropy: Arc<dyn Entropy>,
    /// What may be chosen.
    pub spec: Spec,
}

/// The checkpoints of all jobs of one store. Cheap to clone; holds no state of its own.
#[derive(Clone)]
pub struct Checkpoints {
    parts: Arc<CheckpointParts>,
}

/// The checkpoints of one job. Cheap to clone.
#[derive(Clone)]
pub struct Job {
    pub(crate) parts: Arc<CheckpointParts>,
    pub(crate) store: JobStore,
}

/// What became of a claim.
#[derive(Debug)]
#[must_use = "the term may be somebody else's"]
pub enum ClaimOutcome {
    /// The term is ours.
    Claimed {
        /// Its holder.
        writer: Writer,
        /// Where to go on.
        recovery: Box<Recovery>,
    },
    /// Somebody else holds it.
    HeldBy {
        /// Their epoch.
        epoch: Epoch,
        /// Who they are, where it can be read.
        holder: Option<Name>,
        /// How long their term lasts from each of their entries on.
        ttl: Duration,
    },
}

/// A page of checkpoints, newest first.
#[derive(Debug)]
pub struct Page {
    /// They.
    pub checkpoints: Vec<Listed>,
    /// Where the next page begins: below this generation. `None` = there is no more.
    pub before: Option<Generation>,
    /// Slots that could be checkpoints and are damaged; on every page.
    pub rejected: Vec<Rejected>,
}

/// A checkpoint in a list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// It.
    pub checkpoint: Checkpoint,
    /// Whether its sinks have committed; true if it has none.
    pub committed: bool,
}

/// Checkpoints on one page.
pub const PAGE_MAX: usize = 1_000;

impl Checkpoints {
    /// The checkpoints of a store.
    #[must_use]
    pub fn new(parts: CheckpointParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// One job's.
    #[must_use]
    pub fn job(&self, job: &Name) -> Job {
        let store = JobStore::new(Arc::clone(&self.parts.store), &self.parts.root, job.clone());
        Job { parts: Arc::clone(&self.parts), store }
    }

    /// The names of all jobs that have a readable entry, sorted. Cost: one listing and for each job one more and one read.
    pub async fn jobs(&self) -> Result<Vec<Name>, StoreError> {
        Ok(self.folders().await?.0.into_iter().collect())
    }

    /// The folders in which a log lies that does not tell whose it is: no entry of it is readable, or it was copied from another folder.
    /// Sorted. Cost: as for [`jobs`](Self::jobs).
    pub async fn nameless(&self) -> Result<Vec<Box<str>>, StoreError> {
        Ok(self.folders().await?.1)
    }

    /// The jobs, and the folders whose job nobody can tell.
    async fn folders(&self) -> Result<(BTreeSet<Name>, Vec<Box<str>>), StoreError> {
        let root = &self.parts.root;
        let prefix = (!root.is_root()).then_some(root);
        let listed =
            self.parts.store.list_with_delimiter(prefix).await.map_err(|error| StoreError::new(root, error))?;
        if listed.common_prefixes.len() > LISTED_MAX {
            return Err(StoreError::TooMany { folder: root.as_ref().into(), limit: LISTED_MAX });
        }
        let (mut names, mut nameless) = (BTreeSet::new(), Vec::new());
        for folder in listed.common_prefixes {
            match JobStore::name_in(&self.parts.store, root, &folder).await? {
                InFolder::Job(name) => drop(names.insert(name)),
                InFolder::Nameless => nameless.push(folder.as_ref().into()),
                InFolder::Nothing => {}
            }
        }
        nameless.sort_unstable();
        Ok((names, nameless))
    }
}

impl Job {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.store.job
    }

    /// Begins a term for `holder` that lasts `ttl` from each entry on (10 ms to 1 h), and finds out where to go on.
    pub async fn claim(&self, holder: &Name, ttl: Duration, mode: Mode) -> Result<ClaimOutcome, ClaimError> {
        let claim = Claim {
            store: &self.store,
            clock: &self.parts.clock,
            entropy: &*self.parts.entropy,
            spec: &self.parts.spec,
            holder,
            ttl: ttl.clamp(TTL_MIN, TTL_MAX),
        };
        Ok(match claim.run(mode).await? {
            Claimed::Writer(writer, survey) => {
                let recovery = Box::new(Recovery::new(&writer, survey));
                ClaimOutcome::Claimed { writer, recovery }
            }
            Claimed::HeldBy { epoch, holder, ttl } => ClaimOutcome::HeldBy { epoch, holder, ttl },
        })
    }

    /// Whether anything was ever written in its log: a job that only began has no checkpoint yet. Cost: one listing.
    pub async fn exists(&self) -> Result<bool, StoreError> {
        Ok(!self.store.slots(None).await?.is_empty())
    }

    /// Checkpoints below `before` (or from the newest on), newest first, at most `limit` (1 to 1,000). Cost: reads the log.
    pub async fn list(&self, before: Option<Generation>, limit: usize) -> Result<Page, StoreError> {
        let survey = survey(&self.store, usize::MAX, &BTreeSet::new()).await?;
        let limit = limit.clamp(1, PAGE_MAX);
        let committed = survey.committed;
        let mut found = survey
            .checkpoints
            .into_iter()
            .filter(|found| before.is_none_or(|before| found.id.generation < before))
            .map(|checkpoint| Listed {
                committed: checkpoint.manifest.pending.is_empty() || committed.contains_key(&checkpoint.id.generation),
                checkpoint,
            });
        let checkpoints: Vec<_> = found.by_ref().take(limit).collect();
        let more = found.next().is_some();
        let before = checkpoints.last().filter(|_| more).map(|last| last.checkpoint.id.generation);
        Ok(Page { checkpoints, before, rejected: survey.rejected })
    }

    /// One checkpoint.
    pub async fn show(&self, generation: Generation) -> Result<Listed, ReadError> {
        let survey = survey(&self.store, usize::MAX, &BTreeSet::new()).await?;
        let committed = survey.committed.contains_key(&generation);
        if let Some(checkpoint) = survey.checkpoints.into_iter().find(|found| found.id.generation == generation) {
            let committed = committed || checkpoint.manifest.pending.is_empty();
            return Ok(Listed { checkpoint, committed });
        }
        match survey.rejected.into_iter().find(|rejected| rejected.generation == generation) {
            Some(rejected) => Err(rejected.damage.into()),
            None => Err(ReadError::NotFound { job: self.store.job.clone(), generation }),
        }
    }

    /// Reads every byte of a checkpoint - its slot, its lists, its chunks, the lengths of its packs - and names what is damaged; nothing
    /// is damaged if the list is empty. At most 1,000 are named.
    pub async fn verify(&self, generation: Generation) -> Result<Vec<Damage>, ReadError> {
        match self.show(generation).await {
            Ok(listed) => crate::recover::verify(&self.store, &listed.checkpoint).await,
            Err(ReadError::Damage(damage)) => Ok(vec![damage]),
            Err(error) => Err(error),
        }
    }

    /// Removes a checkpoint, as an operator asks: a savepoint, or one that is damaged. The newest valid one is not removed; the packs go with
    /// the writer's next collection. False = it was not there, or it is the last complete one.
    pub async fn remove(&self, generation: Generation) -> Result<Removed, ReadError> {
        let survey = survey(&self.store, usize::MAX, &BTreeSet::new()).await?;
        let known = survey.checkpoints.iter().any(|found| found.id.generation == generation)
            || survey.rejected.iter().any(|rejected| rejected.generation == generation);
        if !known {
            return Err(ReadError::NotFound { job: self.store.job.clone(), generation });
        }
        let newest = survey.checkpoints.first().map(|found| found.id.generation);
        // The newest slot numbers the log, and the one in which the term began says what is valid: neither is ever deleted.
        let term = survey.head.as_ref().map(|head| head.entry.began);
        if Some(generation) == newest || Some(generation) == survey.last || Some(generation) == term {
            return Ok(Removed::Kept);
        }
        self.store.delete(&self.store.layout.slot(generation)).await?;
        Ok(Removed::Gone)
    }
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Gone,
    /// It is the last complete one, or holds the log together: it stays.
    Kept,
}

/// Whose log lies in a folder.
enum InFolder {
    /// This job's.
    Job(Name),
    /// One that does not say.
    Nameless,
    /// None.
    Nothing,
}

impl JobStore {
    /// The name of the job in a folder, by its newest readable entry.
    async fn name_in(store: &Arc<dyn ObjectStore>, root: &Path, folder: &Path) -> Result<InFolder, StoreError> {
        use futures::TryStreamExt as _;
        let log = folder.clone().join("log");
        let listed: Vec<_> =
            store.list(Some(&log)).try_collect().await.map_err(|error| StoreError::new(&log, error))?;
        let mut slots: Vec<_> = listed
            .iter()
            .filter_map(|object| crate::id::slot_number(&object.location).map(|slot| (slot, &object.location)))
            .collect();
        slots.sort_unstable();
        if slots.is_empty() {
            return Ok(InFolder::Nothing);
        }
        for (generation, path) in slots.into_iter().rev() {
            let any = Name::new("-").expect("it is a name");
            let Some(sealed) = Self::new(Arc::clone(store), root, any.clone()).get(path).await? else { continue };
            if let Err(crate::error::DamageKind::Elsewhere { job, generation: of }) =
                crate::entry::Entry::open(&any, generation, &sealed)
                && of == generation
            {
                let same = Self::new(Arc::clone(store), root, job.clone()).layout.folder == *folder;
                return Ok(if same { InFolder::Job(job) } else { InFolder::Nameless });
            }
        }
        Ok(InFolder::Nameless)
    }

    /// Whether a slot still holds this checkpoint.
    pub(crate) async fn still_has(&self, checkpoint: &Checkpoint) -> Result<bool, StoreError> {
        Ok(
            matches!(self.read_slot(checkpoint.id.generation).await?, Read::Entry(slot) if slot.digest == checkpoint.digest),
        )
    }
}
