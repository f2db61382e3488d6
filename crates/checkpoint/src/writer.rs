//! The writer of a job: the one that holds its term. It appends to the job's log, and nothing of it is there for anybody before it is
//! certain that nobody took over. It never writes when its term is over, and never believes an answer that it did not get.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tidegate_core::id::Epoch;
use tidegate_core::time::{Clock, Moment};
use tidegate_lease::machine::{Command, LeaseMachine, Outcome};

use crate::Spec;
use crate::entry::{Body, Entry, Slot};
use crate::error::{AppendError, StoreError};
use crate::id::{CheckpointId, Digest, Generation, Nonce, PackId};
use crate::log::{Created, JobStore, Read};
use crate::manifest::{Checkpoint, Draft, Manifest, Parent};
use crate::survey::Survey;

/// Slots in which an entry of this term may still arrive although another one took it, that are remembered. The oldest is forgotten.
const GUARDED_MAX: usize = 1_024;
/// Entries for one slot that are in doubt at the same time.
const UNRESOLVED_MAX: usize = 8;
/// Earlier entries of its own that a writer finds in its way, one after the other, before it gives up. There is one at most.
const LANDED_MAX: usize = 4;

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the outcome says whether anything was written"]
pub enum Written<T> {
    /// It is durable, and the term was not over.
    Done(T),
    /// Somebody else has the job. This writer publishes nothing more: stop, and abort nothing: an entry that was written just before the
    /// later term began is that one's to go on from and to commit.
    Fenced {
        /// The later term, where it could be read.
        by: Option<Epoch>,
    },
    /// The term was not renewed in time. Nothing was written, and nothing ever will be by this writer: claim a new term. What was
    /// pre-committed is the next recovery's to judge.
    Expired,
}

impl<T> Written<T> {
    /// The same outcome, about something else.
    pub fn map<U>(self, done: impl FnOnce(T) -> U) -> Written<U> {
        match self {
            Self::Done(value) => Written::Done(done(value)),
            Self::Fenced { by } => Written::Fenced { by },
            Self::Expired => Written::Expired,
        }
    }
}

/// What became of an entry whose writing was in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settled {
    /// Nothing was in doubt, or what was is not there and never will be.
    NotWritten,
    /// The checkpoint is there.
    Published(CheckpointId),
    /// Another entry (a renewal, a commit) is there.
    Written,
}

/// The holder of a term of a job. Cheap to clone; all clones are one writer.
#[derive(Debug, Clone)]
pub struct Writer {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: JobStore,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) spec: Spec,
    pub(crate) epoch: Epoch,
    pub(crate) nonce: Nonce,
    pub(crate) began: Generation,
    pub(crate) ttl: Duration,
    /// Whether the term is over, as far as this process can tell by itself.
    pub(crate) term: Mutex<LeaseMachine<()>>,
    /// The end of the log. Held while one entry is written, by nobody who reads.
    pub(crate) tail: tokio::sync::Mutex<Tail>,
    pub(crate) ledger: Mutex<Ledger>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("job", &self.store.job)
            .field("epoch", &self.epoch)
            .field("began", &self.began)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct Tail {
    /// The newest slot that is known to be this term's.
    pub(crate) last: Generation,
    /// Entries for the next slot whose writing began and whose end was not seen: noted before the store is asked, so that a dropped
    /// future leaves its entry here.
    unresolved: Vec<Unresolved>,
    stopped: Option<Stop>,
}

#[derive(Debug, Clone)]
struct Unresolved {
    generation: Generation,
    digest: Digest,
    checkpoint: Option<Arc<Checkpoint>>,
    committed: Option<Generation>,
}

#[derive(Debug, Clone, Copy)]
enum Stop {
    Fenced(Option<Epoch>),
    Vanished(Generation),
    Released,
}

impl Tail {
    /// The checkpoints that may be there, or come yet.
    pub(crate) fn doubtful(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        self.unresolved.iter().filter_map(|doubt| doubt.checkpoint.as_ref())
    }
}

/// What the writer knows of the job's checkpoints.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The newest one.
    pub(crate) newest: Option<Arc<Checkpoint>>,
    /// Those before it that are kept, newest first.
    pub(crate) older: Vec<Parent>,
    /// Generation -> the slot that says that it is committed.
    pub(crate) committed: BTreeMap<Generation, Generation>,
    /// Slots of this term in which an entry that was given up may still arrive: they stay taken.
    pub(crate) guarded: BTreeSet<Generation>,
    /// Packs that saves are writing now.
    pub(crate) writing: BTreeSet<PackId>,
    /// The number of the next pack.
    pub(crate) serial: u64,
    /// Generations that somebody in this process reads, and how many do.
    pub(crate) pins: BTreeMap<Generation, usize>,
    /// The packs of checkpoints whose manifests were read.
    pub(crate) packs: BTreeMap<Generation, Arc<BTreeSet<PackId>>>,
    /// Readers of other processes, and since when this collector knows of them.
    pub(crate) readers: BTreeMap<String, Moment>,
}

/// What is in the slot that an entry was to take.
enum Verdict {
    Ours,
    OurEarlier(usize),
    Foreign(Option<Epoch>),
    NotThere(AppendError),
    InDoubt(StoreError),
}

impl Inner {
    /// What a claim found, for the term that it began.
    pub(crate) fn ledger_of(survey: &Survey) -> Ledger {
        let mut checkpoints = survey.checkpoints.iter();
        let newest = checkpoints.next().map(|newest| Arc::new(newest.clone()));
        Ledger {
            older: checkpoints.map(Checkpoint::parent).collect(),
            packs: survey
                .checkpoints
                .iter()
                .map(|found| (found.id.generation, Arc::new(found.manifest.packs.keys().copied().collect())))
                .collect(),
            committed: survey.committed.clone(),
            newest,
            ..Ledger::default()
        }
    }

    pub(crate) fn tail_at(last: Generation) -> tokio::sync::Mutex<Tail> {
        tokio::sync::Mutex::new(Tail { last, unresolved: Vec::new(), stopped: None })
    }

    /// Whether the term is not over, by this process's own clock. A clock that goes back is one on which no time passes.
    pub(crate) fn holds(&self) -> bool {
        let check = Command::Check { resource: (), epoch: self.epoch };
        matches!(self.term.lock().apply(self.clock.now(), check), Outcome::Held { .. })
    }

    /// The term goes on from `from`, which lies before the entry was sent.
    fn extend(&self, from: Moment) {
        let now = self.clock.now();
        let Some(left) = self.ttl.checked_sub(now.saturating_since(from)).filter(|left| !left.is_zero()) else {
            return;
        };
        let renew = Command::Renew { resource: (), epoch: self.epoch, ttl: left };
        let _late_is_seen_at_the_next_check = self.term.lock().apply(now, renew);
    }

    fn end(&self) {
        let _over = self.term.lock().apply(self.clock.now(), Command::Release { resource: (), epoch: self.epoch });
    }

    /// Appends an entry. On `Done` it is durable in the slot that is told, and nothing lies above it.
    pub(crate) async fn append(&self, make: impl Fn() -> Body) -> Result<Written<Generation>, AppendError> {
        let mut tail = self.tail.lock().await;
        for _ in 0..LANDED_MAX {
            match tail.stopped {
                Some(Stop::Fenced(by)) => return Ok(Written::Fenced { by }),
                Some(Stop::Vanished(missing)) => return Err(AppendError::Vanished { missing }),
                Some(Stop::Released) => return Ok(Written::Expired),
                None => {}
            }
            let before = self.clock.now();
            if !self.holds() {
                return Ok(Written::Expired);
            }
            let generation = tail.last.next().ok_or(AppendError::Exhausted)?;
            let entry = Entry {
                job: self.store.job.clone(),
                generation,
                epoch: self.epoch,
                nonce: self.nonce,
                began: self.began,
                ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
                body: make(),
            };
            let sealed = entry.seal()?;
            let digest = Digest::of(&sealed);
            if tail.unresolved.iter().all(|doubt| doubt.digest != digest) {
                if tail.unresolved.len() >= UNRESOLVED_MAX {
                    return Err(AppendError::Unsettled { generation, limit: UNRESOLVED_MAX });
                }
                tail.unresolved.push(self.unresolved(&entry, digest, sealed.len()));
            }
            match self.take(generation, digest, &tail.unresolved, sealed).await? {
                Verdict::Ours => {}
                Verdict::OurEarlier(landed) => {
                    tail.last = generation;
                    let landed = tail.unresolved.swap_remove(landed);
                    self.guard_if(generation, tail.unresolved.len() > 1);
                    tail.unresolved.clear();
                    self.note(&landed);
                    continue;
                }
                Verdict::Foreign(by) => return Ok(self.fence(&mut tail, by)),
                Verdict::NotThere(error) => {
                    // What was in doubt before is in doubt as it was.
                    tail.unresolved.retain(|doubt| doubt.digest != digest);
                    return Err(error);
                }
                Verdict::InDoubt(source) => return Err(AppendError::Indeterminate { generation, source }),
            }
            self.guard_if(generation, tail.unresolved.len() > 1);
            // Retention may have deleted the slot that a later term took. Its newest slot it never deletes.
            let above = generation.0.min(self.began.0) - 1;
            let slots = match self.store.slots(Some(Generation(above))).await {
                Ok(slots) => slots,
                Err(source) => return Err(AppendError::Indeterminate { generation, source }),
            };
            let (overtaken, missing) = (
                slots.last() > Some(&generation),
                [self.began, generation].into_iter().find(|slot| !slots.contains(slot)),
            );
            if overtaken {
                // Left where it is: whether the later term came before it or saw it and goes on from it cannot be told from here.
                // If it is a stray, no recovery takes it for anything and the next collection deletes it.
                let by = match self.store.read_slot(slots[slots.len() - 1]).await {
                    Ok(Read::Entry(slot)) => Some(slot.entry.epoch),
                    _ => None,
                };
                return Ok(self.fence(&mut tail, by));
            }
            if let Some(missing) = missing {
                self.store.delete(&self.store.layout.slot(generation)).await.ok();
                tail.stopped = Some(Stop::Vanished(missing));
                self.end();
                return Err(AppendError::Vanished { missing });
            }
            tail.last = generation;
            for written in std::mem::take(&mut tail.unresolved).iter().filter(|doubt| doubt.digest == digest) {
                self.note(written);
            }
            if matches!(entry.body, Body::Released) {
                tail.stopped = Some(Stop::Released);
                self.end();
            } else {
                self.extend(before);
            }
            return Ok(Written::Done(generation));
        }
        Err(AppendError::Exhausted)
    }

    fn unresolved(&self, entry: &Entry, digest: Digest, bytes: usize) -> Unresolved {
        let checkpoint = match &entry.body {
            Body::Manifest(manifest) => Some(Arc::new(Checkpoint {
                id: CheckpointId {
                    job: entry.job.clone(),
                    epoch: self.epoch,
                    generation: entry.generation,
                    created: manifest.created,
                },
                manifest: (**manifest).clone(),
                digest,
                manifest_bytes: bytes as u64,
            })),
            _ => None,
        };
        let committed = match entry.body {
            Body::Committed { generation } => Some(generation),
            _ => None,
        };
        Unresolved { generation: entry.generation, digest, checkpoint, committed }
    }

    /// Creates the slot and finds out who has it.
    async fn take(
        &self,
        generation: Generation,
        digest: Digest,
        doubts: &[Unresolved],
        sealed: Bytes,
    ) -> Result<Verdict, AppendError> {
        let path = self.store.layout.slot(generation);
        let failed = match self.store.create(&path, sealed.into()).await {
            Ok(Created::Made) => return Ok(Verdict::Ours),
            Ok(Created::Exists) => None,
            Err(error) => Some(error),
        };
        match (self.store.read_slot(generation).await, failed) {
            (Ok(Read::Entry(slot)), _) => Ok(self.whose(&slot, digest, doubts)),
            // Somebody had it and has deleted it since: a later term did, for this one deletes no slot above its last.
            (Ok(Read::Absent), None) => Ok(Verdict::Foreign(None)),
            (Ok(Read::Damaged(damage)), _) => Err(AppendError::Damage(damage)),
            (Ok(Read::Absent), Some(error @ (StoreError::Full { .. } | StoreError::ReadOnly { .. }))) => {
                Ok(Verdict::NotThere(AppendError::Store(error)))
            }
            (Ok(Read::Absent), Some(error @ StoreError::NoConditionalPut(_))) => {
                Ok(Verdict::NotThere(AppendError::Store(error)))
            }
            (Ok(Read::Absent), Some(error)) | (Err(_), Some(error)) | (Err(error), None) => Ok(Verdict::InDoubt(error)),
        }
    }

    fn whose(&self, slot: &Slot, digest: Digest, doubts: &[Unresolved]) -> Verdict {
        let landed = doubts.iter().position(|doubt| doubt.digest == slot.digest);
        match landed {
            Some(_) if slot.digest == digest => Verdict::Ours,
            Some(at) if slot.entry.nonce == self.nonce => Verdict::OurEarlier(at),
            _ => Verdict::Foreign(Some(slot.entry.epoch)),
        }
    }

    fn fence(&self, tail: &mut Tail, by: Option<Epoch>) -> Written<Generation> {
        tail.stopped = Some(Stop::Fenced(by));
        self.end();
        tracing::warn!(job = %self.store.job, epoch = self.epoch.get(), "another writer has the job");
        Written::Fenced { by }
    }

    /// What was given up at this slot may still arrive: the slot stays taken.
    fn guard_if(&self, generation: Generation, given_up: bool) {
        if !given_up {
            return;
        }
        let guarded = &mut self.ledger.lock().guarded;
        guarded.insert(generation);
        if guarded.len() > GUARDED_MAX {
            guarded.pop_first();
        }
    }

    /// An entry is known to be there.
    fn note(&self, written: &Unresolved) {
        let mut ledger = self.ledger.lock();
        if let Some(checkpoint) = &written.checkpoint {
            ledger.older = checkpoint.manifest.parents.clone();
            ledger
                .packs
                .insert(checkpoint.id.generation, Arc::new(checkpoint.manifest.packs.keys().copied().collect()));
            ledger.newest = Some(Arc::clone(checkpoint));
        }
        if let Some(of) = written.committed {
            ledger.committed.insert(of, written.generation);
        }
    }
}

impl Writer {
    /// The term's epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.inner.epoch
    }

    /// Whether the term is not over, as far as this process can tell without asking the store.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.inner.holds()
    }

    /// How long the term lasts from each entry on. Renew it after a third of that.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.inner.ttl
    }

    /// When the term is over unless an entry is written before; `None` if it is.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        let now = self.inner.clock.now();
        self.inner.term.lock().find(now, &()).map(|lease| lease.expires_at)
    }

    /// The newest checkpoint, this writer's or the one that it began from.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Checkpoint>> {
        self.inner.ledger.lock().newest.clone()
    }

    /// Prolongs the term by an entry of its own. Every other entry does so too. Cost: one small object and one listing.
    pub async fn renew(&self) -> Result<Written<()>, AppendError> {
        Ok(self.inner.append(|| Body::Renewal).await?.map(|_| ()))
    }

    /// Notes that the sinks have committed what this checkpoint told them to: a recovery does not do it again. Twice is once.
    pub async fn committed(&self, generation: Generation) -> Result<Written<()>, AppendError> {
        if self.inner.ledger.lock().committed.contains_key(&generation) {
            return Ok(Written::Done(()));
        }
        Ok(self.inner.append(|| Body::Committed { generation }).await?.map(|_| ()))
    }

    /// Ends the term, so that the next one may begin at once.
    pub async fn release(&self) -> Result<Written<()>, AppendError> {
        Ok(self.inner.append(|| Body::Released).await?.map(|_| ()))
    }

    /// Finds out what became of an entry whose writing failed as [`AppendError::Indeterminate`] or whose future was dropped, by taking its
    /// slot. Only then may what it would have committed be aborted.
    pub async fn settle(&self) -> Result<Written<Settled>, AppendError> {
        let doubts = self.inner.tail.lock().await.unresolved.clone();
        let outcome = self.inner.append(|| Body::Renewal).await?;
        let ledger = self.inner.ledger.lock();
        let newest = ledger.newest.as_ref().map(|newest| newest.digest);
        Ok(outcome.map(|_| {
            let there = doubts.iter().find(|doubt| match doubt.committed {
                Some(of) => ledger.committed.contains_key(&of),
                None => Some(doubt.digest) == newest,
            });
            match there.map(|doubt| &doubt.checkpoint) {
                Some(Some(checkpoint)) => Settled::Published(checkpoint.id.clone()),
                Some(None) => Settled::Written,
                None => Settled::NotWritten,
            }
        }))
    }

    /// Publishes a manifest for states that are durable.
    pub(crate) async fn publish_manifest(
        &self,
        draft: Draft,
        states: BTreeMap<tidegate_core::id::Name, crate::manifest::StateRef>,
        packs: BTreeMap<PackId, u64>,
    ) -> Result<Written<CheckpointId>, AppendError> {
        let inner = &self.inner;
        let created = inner.clock.timestamp();
        let parents = {
            let ledger = inner.ledger.lock();
            draft.check(ledger.newest.as_deref())?;
            let known: Vec<Parent> =
                ledger.newest.iter().map(|newest| newest.parent()).chain(ledger.older.iter().cloned()).collect();
            inner.spec.retention.keep(&known, created)
        };
        let Draft { positions, watermark, counts, metadata, pending, savepoint } = draft;
        let manifest = Box::new(Manifest {
            created,
            states,
            packs,
            positions,
            watermark,
            counts,
            metadata,
            pending,
            savepoint,
            parents,
        });
        let outcome = inner.append(|| Body::Manifest(manifest.clone())).await?;
        Ok(outcome.map(|generation| CheckpointId {
            job: inner.store.job.clone(),
            epoch: inner.epoch,
            generation,
            created,
        }))
    }
}
