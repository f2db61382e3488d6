//! What a log says, read newest first: whose term it is, which checkpoints are valid, which are damaged. It never believes a slot because
//! it is there: a stray that a zombie left behind is told from a checkpoint.
//!
//! **Which checkpoints are valid.** Somebody who slept may create a slot that retention has deleted. It is never the newest slot, since
//! that one is never deleted. So the newest slot says which term it is (its nonce) and where that began. A manifest of that term is valid
//! until, going down, the first valid manifest is met; from there on only what that one names as its parents, by digest. If the term
//! has none, what the term's first entry names.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _};

use crate::entry::{Body, Entry, Slot};
use crate::error::{Damage, DamageKind, StoreError};
use crate::id::{Digest, Generation};
use crate::log::{IN_FLIGHT, JobStore, Read};
use crate::manifest::{Checkpoint, Parent};

/// A log, as far down as it was read.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// The newest slot, readable or not; `None` for a log that is empty.
    pub(crate) last: Option<Generation>,
    /// The newest entry that is readable, without its manifest.
    pub(crate) head: Option<Head>,
    /// Slots above it that are damaged.
    pub(crate) damaged_above: u64,
    /// Valid checkpoints, newest first.
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// What is damaged.
    pub(crate) rejected: Vec<Rejected>,
    /// Generation -> the slot that says that its commit is done.
    pub(crate) committed: BTreeMap<Generation, Generation>,
}

/// The newest entry, without what it carries.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) entry: Entry,
    pub(crate) holder: Option<tidegate_core::id::Name>,
}

/// A slot that could have been a checkpoint and is not used.
#[derive(Debug)]
pub struct Rejected {
    /// Which slot.
    pub generation: Generation,
    /// Whether the sinks had committed it: what they wrote then is not in an older state, so a recovery from one writes it again.
    pub committed: bool,
    /// What is wrong.
    pub damage: Damage,
}

/// Which manifests may follow, going down.
enum Allowed {
    /// Those of the newest term, above its begin.
    OfTerm,
    /// Those that were named, by digest.
    Named(BTreeMap<Generation, Digest>),
    /// The term's first entry is damaged and it has no manifest: nobody can say. All are taken, since losing all is worse.
    Unproved,
}

impl Allowed {
    fn named(parents: &[Parent]) -> Self {
        Self::Named(parents.iter().map(|parent| (parent.generation, parent.digest)).collect())
    }
}

/// Reads a log. `wanted` valid checkpoints are enough, those in `skip` not counted; `usize::MAX` reads all of it.
pub(crate) async fn survey(store: &JobStore, wanted: usize, skip: &BTreeSet<Generation>) -> Result<Survey, StoreError> {
    let slots = store.slots(None).await?;
    let mut survey = Survey { last: slots.last().copied(), ..Survey::default() };
    let mut allowed = Allowed::OfTerm;
    let mut began_read = false;
    let mut found = 0;
    let mut entries = futures::stream::iter(slots.into_iter().rev())
        .map(|slot| async move { Ok::<_, StoreError>((slot, store.read_slot(slot).await?)) })
        .buffered(IN_FLIGHT);
    while let Some((generation, read)) = entries.try_next().await? {
        if let Allowed::OfTerm = allowed
            && let Some(head) = &survey.head
            && generation < head.entry.began
        {
            // The term's first entry was passed without being read: it is damaged or gone.
            allowed = Allowed::Unproved;
        }
        let slot = match read {
            // Deleted since it was listed: it was not kept.
            Read::Absent => continue,
            Read::Damaged(damage) => {
                survey.damaged_above += u64::from(survey.head.is_none());
                survey.reject(generation, damage);
                continue;
            }
            Read::Entry(slot) => *slot,
        };
        let Slot { entry, digest, bytes } = slot;
        if survey.head.is_none() {
            survey.head = Some(Head { entry: Entry { body: Body::Renewal, ..entry.clone() }, holder: None });
            if matches!(entry.body, Body::Released)
                && let Some(head) = &mut survey.head
            {
                head.entry.body = Body::Released;
            }
        }
        let head = survey.head.as_mut().expect("it was just set");
        match entry.body {
            Body::Term { holder, kept } if entry.nonce == head.entry.nonce => {
                head.holder = Some(holder);
                began_read = true;
                if let Allowed::OfTerm = allowed {
                    allowed = Allowed::named(&kept);
                }
            }
            Body::Committed { generation: of } => drop(survey.committed.insert(of, generation)),
            Body::Manifest(manifest) => {
                match &allowed {
                    Allowed::OfTerm if entry.nonce != head.entry.nonce => continue,
                    Allowed::Named(named) => match named.get(&generation) {
                        None => continue,
                        Some(expected) if *expected != digest => {
                            let kind = DamageKind::NotTheParent { expected: *expected, actual: digest };
                            survey.reject(generation, kind.at(&store.layout.slot(generation)));
                            continue;
                        }
                        Some(_) => {}
                    },
                    Allowed::OfTerm | Allowed::Unproved => {}
                }
                if !matches!(allowed, Allowed::Named(_)) {
                    allowed = Allowed::named(&manifest.parents);
                }
                survey.checkpoints.push(Checkpoint {
                    id: crate::id::CheckpointId {
                        job: entry.job,
                        epoch: entry.epoch,
                        generation,
                        created: manifest.created,
                    },
                    manifest: *manifest,
                    digest,
                    manifest_bytes: bytes,
                });
                found += usize::from(!skip.contains(&generation));
            }
            Body::Term { .. } | Body::Renewal | Body::Released => {}
        }
        if found >= wanted && began_read {
            break;
        }
    }
    for rejected in &mut survey.rejected {
        rejected.committed = survey.committed.contains_key(&rejected.generation);
    }
    Ok(survey)
}

impl Survey {
    fn reject(&mut self, generation: Generation, damage: Damage) {
        self.rejected.push(Rejected { generation, committed: false, damage });
    }

    /// The valid checkpoints, as their successor will name them, newest first.
    pub(crate) fn kept(&self) -> Vec<Parent> {
        self.checkpoints.iter().map(Checkpoint::parent).collect()
    }
}
