//! The entries of a job's log, as bytes: sealed in the checked envelope, bound to their job and slot, canonical. It never opens what somebody
//! renamed, copied to another job, cut, lengthened or wrote in another order.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_core::id::{Epoch, Name};
use tidegate_frame::envelope::{self, Kind, SealError};

use crate::error::DamageKind;
use crate::id::{Digest, Generation, Nonce};
use crate::manifest::{Manifest, Parent};

/// The version of the layout of an entry.
pub(crate) const ENTRY_SCHEMA: u16 = 1;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) job: Name,
    pub(crate) generation: Generation,
    pub(crate) epoch: Epoch,
    /// Whose: all entries of one term have one nonce.
    pub(crate) nonce: Nonce,
    /// The slot in which the term began.
    pub(crate) began: Generation,
    /// How long the term lasts from each of its entries on.
    pub(crate) ttl_ms: u64,
    pub(crate) body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// A term begins.
    Term {
        /// Who holds it, for people.
        holder: Name,
        /// The checkpoints that are there at its begin, newest first.
        kept: Vec<Parent>,
    },
    /// The term goes on.
    Renewal,
    /// A checkpoint.
    Manifest(Box<Manifest>),
    /// The sinks have committed what a checkpoint told them to.
    Committed { generation: Generation },
    /// The term ended: the next one may begin at once.
    Released,
}

impl Entry {
    pub(crate) const fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    pub(crate) fn seal(&self) -> Result<Bytes, SealError> {
        envelope::seal(Kind::CheckpointEntry, ENTRY_SCHEMA, self)
    }

    /// Opens the bytes of the slot `generation` of `job`.
    pub(crate) fn open(job: &Name, generation: Generation, sealed: &[u8]) -> Result<Self, DamageKind> {
        let entry: Self =
            envelope::open(Kind::CheckpointEntry, &[ENTRY_SCHEMA], sealed).map_err(DamageKind::Envelope)?;
        if entry.job != *job || entry.generation != generation {
            return Err(DamageKind::Elsewhere { job: entry.job, generation: entry.generation });
        }
        // One content has one form. Bytes with a right checksum in another order were written by no writer of ours.
        if entry.seal().is_ok_and(|canonical| canonical == sealed) { Ok(entry) } else { Err(DamageKind::NotCanonical) }
    }
}

/// An entry as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) entry: Entry,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

impl Slot {
    pub(crate) fn open(job: &Name, generation: Generation, sealed: &[u8]) -> Result<Self, DamageKind> {
        let entry = Entry::open(job, generation, sealed)?;
        Ok(Self { entry, digest: Digest::of(sealed), bytes: sealed.len() as u64 })
    }
}
