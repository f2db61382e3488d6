//! Collection by reference: slots that retention let go of, packs that nothing kept refers to, notes of readers whose time is over. It never
//! deletes the newest slot, the term's first, the last complete checkpoint, a savepoint, what somebody reads or what is being written;
//! a crash between any two of its steps leaves more to collect and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::entry::Body;
use crate::error::{AppendError, Damage, StoreError};
use crate::id::{Generation, PackId};
use crate::log::Read;
use crate::pin::{Note, READERS_MAX};
use crate::writer::{Writer, Written};

/// What a collection deleted.
#[derive(Debug, Default)]
pub struct Collected {
    /// Slots.
    pub slots: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of these packs.
    pub bytes: u64,
    /// Notes of readers that had been honoured for their time.
    pub readers: u64,
    /// What could not be read and may refer to anything: while there is any, no pack is deleted. Verify these, and remove them.
    pub held_back: Vec<Damage>,
}

impl Writer {
    /// Deletes what is no longer needed. To be called after a checkpoint, or now and then. Stops, with what it did so far, when
    /// the term is over. Cost: three listings, one request for each object that is deleted.
    ///
    /// A collector that wakes up after its term is harmless: what it takes for garbage was let go of by a checkpoint that is there, and
    /// no later term refers to it as long as recovery falls back by less than [`Retention::keep_last`](crate::Retention::keep_last).
    pub async fn collect(&self) -> Result<Written<Collected>, AppendError> {
        let mut collected = Collected::default();
        if !self.collect_slots(&mut collected).await? {
            return Ok(Written::Expired);
        }
        // Only now: a reader looks for its slot after it left its note.
        let mut live = self.read_by_others(&mut collected).await?;
        let there = self.inner.store.packs().await?;
        live.extend(self.in_doubt().await);
        let (known, missing) = self.kept_packs();
        live.extend(known);
        for generation in missing {
            live.extend(self.packs_of_slot(generation, &mut collected).await?);
        }
        if !collected.held_back.is_empty() {
            return Ok(Written::Done(collected));
        }
        for (pack, bytes) in there {
            // Later terms' packs are theirs; what this term is writing, and what was published since the list was made, is looked at now.
            let spare = pack.epoch <= self.inner.epoch && !live.contains(&pack) && !self.is_ours(pack);
            if !spare {
                continue;
            }
            if !self.inner.holds() {
                return Ok(Written::Expired);
            }
            self.inner.store.delete(&self.inner.store.layout.pack(pack)).await?;
            collected.packs += 1;
            collected.bytes += bytes;
        }
        Ok(Written::Done(collected))
    }

    /// False = the term is over.
    async fn collect_slots(&self, collected: &mut Collected) -> Result<bool, AppendError> {
        let inner = &self.inner;
        let last = inner.tail.lock().await.last;
        // What lies above is not known yet, or a later term's.
        let slots: BTreeSet<Generation> =
            inner.store.slots(None).await?.into_iter().filter(|slot| *slot <= last).collect();
        let keep = {
            let mut ledger = inner.ledger.lock();
            // Somebody removed it: its packs are not needed for its sake.
            ledger.older.retain(|parent| slots.contains(&parent.generation));
            let mut keep = BTreeSet::from([last, inner.began]);
            keep.extend(ledger.newest.iter().map(|newest| newest.id.generation));
            keep.extend(ledger.older.iter().map(|parent| parent.generation));
            keep.extend(ledger.pins.keys());
            let committed: Vec<_> =
                ledger.committed.iter().filter(|(of, _)| keep.contains(of)).map(|(_, slot)| *slot).collect();
            keep.extend(committed);
            keep.extend(&ledger.guarded);
            ledger.committed.retain(|of, _| keep.contains(of));
            ledger.packs.retain(|generation, _| keep.contains(generation));
            keep
        };
        for slot in slots.difference(&keep) {
            if !inner.holds() {
                return Ok(false);
            }
            inner.store.delete(&inner.store.layout.slot(*slot)).await?;
            collected.slots += 1;
        }
        Ok(true)
    }

    /// The packs that readers of other processes have noted.
    async fn read_by_others(&self, collected: &mut Collected) -> Result<BTreeSet<PackId>, StoreError> {
        let inner = &self.inner;
        let mut live = BTreeSet::new();
        let now = inner.clock.now();
        let names = inner.store.readers().await?;
        let since: BTreeMap<String, _> = {
            let mut ledger = inner.ledger.lock();
            let known = std::mem::take(&mut ledger.readers);
            // More than there may be can only come from many readers at one time: the names beyond are honoured, and not timed.
            ledger.readers = names
                .iter()
                .take(2 * READERS_MAX)
                .map(|name| (name.clone(), known.get(name).copied().unwrap_or(now)))
                .collect();
            ledger.readers.clone()
        };
        for name in names {
            let path = inner.store.layout.reader(&name);
            let seen = since.get(&name).copied().unwrap_or(now);
            if now.saturating_since(seen) >= inner.spec.reader_ttl && inner.holds() {
                inner.store.delete(&path).await?;
                collected.readers += 1;
                continue;
            }
            let Some(sealed) = inner.store.get(&path).await? else { continue };
            match Note::open(&sealed) {
                Some(note) if note.job == inner.store.job => live.extend(note.packs),
                _ => collected
                    .held_back
                    .push(crate::error::DamageKind::Inconsistent("it is no note of a reader").at(&path)),
            }
        }
        Ok(live)
    }

    /// The packs of manifests that may yet turn out to be published.
    async fn in_doubt(&self) -> BTreeSet<PackId> {
        let tail = self.inner.tail.lock().await;
        tail.doubtful().flat_map(|checkpoint| checkpoint.manifest.packs.keys().copied()).collect()
    }

    /// The packs of what is kept, as far as they are known, and the kept generations whose are not.
    fn kept_packs(&self) -> (BTreeSet<PackId>, Vec<Generation>) {
        let ledger = self.inner.ledger.lock();
        let newest = ledger.newest.iter().map(|newest| newest.id.generation);
        let kept = newest.chain(ledger.older.iter().map(|parent| parent.generation)).chain(ledger.pins.keys().copied());
        let (mut packs, mut missing) = (BTreeSet::new(), Vec::new());
        for generation in kept {
            match ledger.packs.get(&generation) {
                Some(known) => packs.extend(known.iter().copied()),
                None => missing.push(generation),
            }
        }
        (packs, missing)
    }

    async fn packs_of_slot(&self, of: Generation, collected: &mut Collected) -> Result<Vec<PackId>, StoreError> {
        Ok(match self.inner.store.read_slot(of).await? {
            Read::Absent => Vec::new(),
            Read::Damaged(damage) => {
                collected.held_back.push(damage);
                Vec::new()
            }
            Read::Entry(slot) => match slot.entry.body {
                Body::Manifest(manifest) => {
                    let packs: BTreeSet<PackId> = manifest.packs.into_keys().collect();
                    self.inner.ledger.lock().packs.insert(of, Arc::new(packs.clone()));
                    packs.into_iter().collect()
                }
                _ => Vec::new(),
            },
        })
    }

    fn is_ours(&self, pack: PackId) -> bool {
        let ledger = self.inner.ledger.lock();
        ledger.writing.contains(&pack)
            || ledger.newest.as_ref().is_some_and(|newest| newest.manifest.packs.contains_key(&pack))
    }
}
