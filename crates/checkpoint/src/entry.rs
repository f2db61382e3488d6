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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::id::PackId;
    use crate::manifest::{ChunkList, ChunkRef, Next, Segment, StateRef};
    use tidegate_core::Timestamp;
    use tidegate_core::position::{Offset, Partition, SourcePosition};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn entry(body: Body) -> Entry {
        Entry {
            job: name("totals"),
            generation: Generation(300),
            epoch: Epoch::new(7),
            nonce: Nonce::default(),
            began: Generation(299),
            ttl_ms: 30_000,
            body,
        }
    }

    fn parent() -> Parent {
        Parent {
            generation: Generation(290),
            epoch: Epoch::new(6),
            digest: Digest::of(b"parent"),
            created: Timestamp::from_unix_ms(-1),
            savepoint: Some(name("before")),
        }
    }

    fn manifest() -> Manifest {
        let pack = PackId { epoch: Epoch::new(7), generation: Generation(300), serial: 2 };
        let chunk = ChunkRef { digest: Digest::of(b"chunk"), sum: u64::MAX - 1, pack, offset: 70_000, length: 5 };
        // Beyond 32 bits: nothing is cut to fit.
        let length = (5 << 32) + 1;
        let segment = Segment { length, digest: Digest::of(b"segment"), chunks: ChunkList::Inline(vec![chunk]) };
        let listed = ChunkList::Indexed { count: u64::MAX, parts: vec![chunk] };
        let other = Segment { length: 0, digest: Digest::of(b""), chunks: listed };
        Manifest {
            created: Timestamp::from_unix_ms(1_795_255_200_007),
            states: BTreeMap::from([(name("sums"), StateRef { form: 1, segments: vec![(0, segment), (63, other)] })]),
            packs: BTreeMap::from([(pack, length)]),
            positions: BTreeMap::from([(
                name("orders"),
                BTreeMap::from([
                    (Partition(0), Next::Offset(Offset(17))),
                    (Partition(9), Next::Source(SourcePosition("0/16B3748".into()))),
                ]),
            )]),
            watermark: Some(Timestamp::from_unix_ms(1_795_255_200_000)),
            counts: BTreeMap::from([(name("records"), u64::MAX)]),
            metadata: BTreeMap::from([(name("version"), "7".into())]),
            pending: BTreeMap::from([(name("sqlite"), vec![1, 2, 3])]),
            savepoint: None,
            parents: vec![parent()],
        }
    }

    fn bodies() -> [Body; 5] {
        [
            Body::Term { holder: name("me"), kept: vec![parent()] },
            Body::Renewal,
            Body::Manifest(Box::new(manifest())),
            Body::Committed { generation: Generation(290) },
            Body::Released,
        ]
    }

    #[test]
    fn the_bytes_are_the_same_in_every_release() {
        let sealed: Vec<_> = bodies().into_iter().map(|body| entry(body).seal().unwrap()).collect();
        assert_eq!(
            hex::encode(&sealed[1]),
            "5444475401140001002200000006746f74616c73fb2c010700000000000000000000000000000000fb2b01fb307501016993cc"
        );
        let digests: Vec<_> = sealed.iter().map(|sealed| Digest::of(sealed).to_string()[..16].to_owned()).collect();
        let pinned =
            ["a5f06d74dd048f7e", "35c43ef1a148fe7c", "661b61fa842b1f29", "1acd4c4097df9618", "572c0304fe9935bf"];
        assert_eq!(digests, pinned);
    }

    #[test]
    fn every_entry_reads_back_as_it_was_and_nowhere_else() {
        for body in bodies() {
            let entry = entry(body);
            let sealed = entry.seal().unwrap();
            assert_eq!(Entry::open(&name("totals"), Generation(300), &sealed).unwrap(), entry);
            for (job, generation) in [("other", 300), ("totals", 301)] {
                let elsewhere = Entry::open(&name(job), Generation(generation), &sealed);
                assert!(matches!(elsewhere, Err(DamageKind::Elsewhere { .. })));
            }
        }
    }

    #[test]
    fn bytes_in_another_order_are_refused_even_with_a_right_checksum() {
        let mut wrong = manifest();
        wrong.counts.insert(name("second"), 1);
        let sealed = entry(Body::Manifest(Box::new(wrong))).seal().unwrap();
        let mut swapped = sealed.to_vec();
        let (a, b) = (b"\x07records\xfd\xff\xff\xff\xff\xff\xff\xff\xff".as_slice(), b"\x06second\x01".as_slice());
        let whole = [a, b].concat();
        let at = swapped.windows(whole.len()).position(|window| window == whole).unwrap();
        swapped[at..at + whole.len()].copy_from_slice(&[b, a].concat());
        let end = swapped.len() - envelope::CHECKSUM_BYTES;
        let sum = crc32c::crc32c(&swapped[..end]).to_le_bytes();
        swapped[end..].copy_from_slice(&sum);
        assert!(matches!(Entry::open(&name("totals"), Generation(300), &swapped), Err(DamageKind::NotCanonical)));
    }
}
