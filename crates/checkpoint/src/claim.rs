//! How a term begins: at once where the last one was released, else after nobody wrote for as long as that one lasts, by the claimant's own
//! clock; no two machines' clocks are compared. Being wrong about the time costs the holder its term, never two writers: the log's next slot is the judge.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_core::id::{Epoch, Name};
use tidegate_core::port::Entropy;
use tidegate_core::principal::Owner;
use tidegate_core::time::Clock;
use tidegate_lease::machine::{Command, LeaseMachine, MachineBounds, Outcome};

use crate::Spec;
use crate::entry::{Body, Entry};
use crate::error::ClaimError;
use crate::id::{Digest, Generation, Nonce};
use crate::log::{Created, JobStore, Read};
use crate::survey::{Survey, survey};
use crate::writer::{Inner, Writer};

/// The shortest and the longest that a term may last between two entries; what is asked for beyond them is cut to them.
pub const TTL_MIN: Duration = Duration::from_millis(10);
/// See [`TTL_MIN`].
pub const TTL_MAX: Duration = Duration::from_secs(3_600);
/// Races for one slot that a claim loses before it says who has it.
const RACES_MAX: usize = 64;

/// How to get a term that somebody else may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only if nobody holds it.
    IfFree,
    /// When nobody has written for as long as the term lasts; waits for that, at most so long in all.
    Wait {
        /// At most.
        at_most: Duration,
    },
    /// Now, whoever holds it. For an operator who knows that the holder is gone; a holder that is not is fenced.
    Force,
}

/// What a claim found.
pub(crate) enum Claimed {
    Writer(Writer, Survey),
    HeldBy { epoch: Epoch, holder: Option<Name>, ttl: Duration },
}

/// What is at the end of a log.
enum End {
    Free,
    Held { last: Generation, ttl: Duration, epoch: Epoch, began: Option<Generation> },
}

pub(crate) struct Claim<'a> {
    pub(crate) store: &'a JobStore,
    pub(crate) clock: &'a Arc<dyn Clock>,
    pub(crate) entropy: &'a dyn Entropy,
    pub(crate) spec: &'a Spec,
    pub(crate) holder: &'a Name,
    pub(crate) ttl: Duration,
}

impl Claim<'_> {
    pub(crate) async fn run(self, mode: Mode) -> Result<Claimed, ClaimError> {
        let nonce = Nonce::draw(self.entropy)?;
        let started = self.clock.now();
        let mut watched: Option<(Generation, tidegate_core::Moment)> = None;
        let mut races = 0;
        loop {
            let end = self.end().await?;
            let now = self.clock.now();
            if let (End::Held { last, ttl, epoch, began }, false) = (&end, mode == Mode::Force) {
                let since = match watched {
                    Some((seen, since)) if seen == *last => since,
                    _ => watched.insert((*last, now)).1,
                };
                // An eighth more, since no two clocks run alike.
                let over = since.after(*ttl).after(*ttl / 8);
                if now < over {
                    let gives_up = match mode {
                        Mode::Wait { at_most } => started.after(at_most),
                        Mode::IfFree | Mode::Force => now,
                    };
                    if now >= gives_up {
                        let holder = self.holder_of(*began).await?;
                        return Ok(Claimed::HeldBy { epoch: *epoch, holder, ttl: *ttl });
                    }
                    let look_again = now.after((*ttl / 8).max(Duration::from_millis(1)));
                    self.clock.sleep_until(over.min(gives_up).min(look_again)).await;
                    continue;
                }
            }
            if let Some(claimed) = self.try_at(nonce, &end).await? {
                return Ok(claimed);
            }
            races += 1;
            if races >= RACES_MAX {
                let (epoch, ttl, began) = match end {
                    End::Held { epoch, ttl, began, .. } => (epoch, ttl, began),
                    End::Free => (Epoch::FIRST, self.ttl, None),
                };
                let holder = self.holder_of(began).await?;
                return Ok(Claimed::HeldBy { epoch, holder, ttl });
            }
        }
    }

    async fn end(&self) -> Result<End, ClaimError> {
        loop {
            let Some(last) = self.store.slots(None).await?.last().copied() else { return Ok(End::Free) };
            return Ok(match self.store.read_slot(last).await? {
                // The newest slot is deleted only after a newer one was written.
                Read::Absent => continue,
                Read::Entry(slot) if slot.entry.body == Body::Released => End::Free,
                Read::Entry(slot) => {
                    let Entry { epoch, began, .. } = slot.entry;
                    End::Held { last, ttl: slot.entry.ttl().clamp(TTL_MIN, TTL_MAX), epoch, began: Some(began) }
                }
                // Whose it is cannot be read: watched for as long as our own term lasts.
                Read::Damaged(_) => End::Held { last, ttl: self.ttl, epoch: Epoch::FIRST, began: None },
            });
        }
    }

    async fn holder_of(&self, began: Option<Generation>) -> Result<Option<Name>, ClaimError> {
        let Some(began) = began else { return Ok(None) };
        Ok(match self.store.read_slot(began).await? {
            Read::Entry(slot) => match slot.entry.body {
                Body::Term { holder, .. } => Some(holder),
                _ => None,
            },
            _ => None,
        })
    }

    /// Takes the next slot, if the log still ends where it did.
    async fn try_at(&self, nonce: Nonce, end: &End) -> Result<Option<Claimed>, ClaimError> {
        let survey = survey(self.store, usize::MAX, &std::collections::BTreeSet::new()).await?;
        let moved = match end {
            End::Held { last, .. } => survey.last != Some(*last),
            End::Free => survey.head.as_ref().is_some_and(|head| head.entry.body != Body::Released),
        };
        if moved {
            return Ok(None);
        }
        let began = match survey.last {
            Some(last) => last.next().ok_or(ClaimError::Exhausted)?,
            None => Generation::FIRST,
        };
        // Each damaged slot above may have been a term.
        let floor = survey.head.as_ref().map_or(0, |head| head.entry.epoch.get());
        let floor = floor.checked_add(survey.damaged_above).ok_or(ClaimError::Exhausted)?;
        let mut term = LeaseMachine::above(MachineBounds::default(), Epoch::new(floor));
        let owner = Owner { tenant: self.store.job.as_str().into(), subject: self.holder.as_str().into() };
        // From before the entry is sent: what it takes to arrive is not ours.
        let acquire = Command::Acquire { resource: (), holder: owner, ttl: self.ttl };
        let Outcome::Acquired { epoch, .. } = term.apply(self.clock.now(), acquire) else {
            return Err(ClaimError::Exhausted);
        };
        let entry = Entry {
            job: self.store.job.clone(),
            generation: began,
            epoch,
            nonce,
            began,
            ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
            body: Body::Term { holder: self.holder.clone(), kept: survey.kept() },
        };
        let sealed = entry.seal()?;
        let digest = Digest::of(&sealed);
        let path = self.store.layout.slot(began);
        match self.store.create(&path, sealed.into()).await {
            Ok(Created::Made) => {}
            // Another one took it, or it is ours and the answer was lost.
            Ok(Created::Exists) => match self.store.read_slot(began).await? {
                Read::Entry(slot) if slot.digest == digest => {}
                _ => return Ok(None),
            },
            Err(error) => match self.store.read_slot(began).await? {
                Read::Entry(slot) if slot.digest == digest => {}
                _ => return Err(error.into()),
            },
        }
        // Retention may have deleted what somebody wrote there meanwhile; what is newest it never deletes.
        if self.store.slots(Some(began)).await?.last().is_some() {
            self.store.delete(&path).await?;
            return Ok(None);
        }
        let inner = Inner {
            ledger: Mutex::new(Inner::ledger_of(&survey)),
            store: self.store.clone(),
            clock: Arc::clone(self.clock),
            spec: self.spec.clone(),
            epoch,
            nonce,
            began,
            ttl: self.ttl,
            term: Mutex::new(term),
            tail: Inner::tail_at(began),
        };
        tracing::info!(job = %self.store.job, epoch = epoch.get(), slot = began.0, "a term began");
        Ok(Some(Claimed::Writer(Writer { inner: Arc::new(inner) }, survey)))
    }
}
