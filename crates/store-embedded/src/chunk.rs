//! A chunk: consecutive records of one partition as they lie on disk, and as they are read without copying one. It never
//! gives a record of which any bit has changed, or that lies under a wrong key, and never panics on foreign bytes.
//!
//! The payload of the checked envelope (kind `Batch`, schema version 1), in varints (LEB128): stream number, partition,
//! base, span (how many offsets it covers), bytes of all records ever appended before it, bytes ever appended in it, count
//! of runs, count of records, flags (1 = offsets are sparse, 2 = records have keys); then each run: span, commit, time
//! (zigzag, milliseconds); each record: length x 2 + tombstone, with flag 2 the key's length + 1 (0 = no key), with flag 1
//! how many offsets are missing before it; then all keys, then all records' bytes. An append is one run; compaction joins
//! chunks and leaves offsets out.

use bytes::Bytes;
use tidegate_frame::envelope::{self, HEADER_BYTES, Kind};

use crate::key::PartitionKey;

const SCHEMA: u16 = 1;
const SPARSE: u64 = 1;
const KEYED: u64 = 2;

/// Records beyond this many bytes go into the next chunk, so that reading a few of them does not mean summing up many.
pub(crate) const CHUNK_TARGET_BYTES: usize = 256 * 1024;
/// Records beyond this many go into the next chunk.
pub(crate) const CHUNK_MAX_RECORDS: usize = 4_096;

/// The bytes are not the chunk that should lie there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    #[error(transparent)]
    Envelope(#[from] envelope::OpenError),
    #[error("the chunk's layout is broken")]
    Layout,
    #[error("the chunk belongs elsewhere")]
    Misplaced,
}

/// Offsets that were appended together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The offset after its last.
    pub(crate) end: u64,
    pub(crate) commit: u64,
    pub(crate) time_ms: i64,
}

/// A record's place in its chunk. Small: a chunk has up to some thousands, made anew each time that it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) offset: u64,
    /// Where its bytes lie among all records' bytes.
    at: u32,
    len: u32,
    /// Where its key lies among all keys.
    key_at: u32,
    /// Its key's length + 1; 0 = it has no key.
    key: u32,
    pub(crate) tombstone: bool,
}

impl Slot {
    /// The record's length.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.len)
    }
}

/// A chunk that was read and checked.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    value: Bytes,
    pub(crate) base: u64,
    /// The offset after the last that it covers, whether or not a record is there.
    pub(crate) end: u64,
    /// Bytes of all records ever appended to the partition before this chunk.
    pub(crate) bytes_before: u64,
    /// Bytes of the records that were appended where this chunk lies, gone ones too.
    pub(crate) bytes_ever: u64,
    pub(crate) runs: Vec<Run>,
    pub(crate) slots: Vec<Slot>,
    /// Where the keys begin in the stored value, and where the records.
    keys_at: usize,
    data_at: usize,
}

impl Chunk {
    /// Checks and takes apart what lies under the key of `base`. Cost: one pass over the bytes to sum up, none to copy.
    pub(crate) fn open(partition: PartitionKey, base: u64, value: Bytes) -> Result<Self, Damage> {
        let payload = envelope::open_bytes(Kind::Batch, &[SCHEMA], &value)?;
        let mut reader = Varints { left: payload };
        let place = (reader.number()?, reader.number()?, reader.number()?);
        if place != (partition.log, u64::from(partition.partition), base) {
            return Err(Damage::Misplaced);
        }
        let end = base.checked_add(reader.number()?).ok_or(Damage::Layout)?;
        let (bytes_before, bytes_ever) = (reader.number()?, reader.number()?);
        let (run_count, record_count) = (reader.count()?, reader.count()?);
        let flags = reader.number()?;
        let mut runs = Vec::with_capacity(run_count);
        let mut at = base;
        for _ in 0..run_count {
            at = at.checked_add(reader.number()?).ok_or(Damage::Layout)?;
            runs.push(Run { end: at, commit: reader.number()?, time_ms: unzigzag(reader.number()?) });
        }
        if at != end {
            return Err(Damage::Layout);
        }
        let mut slots = Vec::with_capacity(record_count);
        let (mut keys_len, mut data_len, mut at) = (0_u32, 0_u32, base);
        for _ in 0..record_count {
            let tagged = reader.number()?;
            let len = u32::try_from(tagged >> 1).map_err(|_| Damage::Layout)?;
            let key = if flags & KEYED == 0 { 0 } else { reader.number()? };
            let key = u32::try_from(key).map_err(|_| Damage::Layout)?;
            let missing = if flags & SPARSE == 0 { 0 } else { reader.number()? };
            let offset = at.checked_add(missing).filter(|offset| *offset < end).ok_or(Damage::Layout)?;
            at = offset + 1;
            slots.push(Slot { offset, at: data_len, len, key_at: keys_len, key, tombstone: tagged & 1 == 1 });
            keys_len = keys_len.checked_add(key.saturating_sub(1)).ok_or(Damage::Layout)?;
            data_len = data_len.checked_add(len).ok_or(Damage::Layout)?;
        }
        let (keys_len, data_len) = (keys_len as usize, data_len as usize);
        if keys_len.checked_add(data_len) != Some(reader.left.len()) {
            return Err(Damage::Layout);
        }
        let keys_at = HEADER_BYTES + payload.len() - reader.left.len();
        Ok(Self { base, end, bytes_before, bytes_ever, runs, slots, keys_at, data_at: keys_at + keys_len, value })
    }

    /// A record's bytes: a part of the stored value, not a copy.
    pub(crate) fn bytes(&self, slot: &Slot) -> Bytes {
        let at = self.data_at + slot.at as usize;
        self.value.slice(at..at + slot.len as usize)
    }

    /// A record's key.
    pub(crate) fn key(&self, slot: &Slot) -> Option<Bytes> {
        let len = slot.key.checked_sub(1)? as usize;
        let at = self.keys_at + slot.key_at as usize;
        Some(self.value.slice(at..at + len))
    }

    /// The run in which an offset of this chunk lies.
    pub(crate) fn run(&self, offset: u64) -> Run {
        let at = self.runs.partition_point(|run| run.end <= offset);
        self.runs.get(at).or(self.runs.last()).copied().unwrap_or(Run { end: self.end, commit: 0, time_ms: 0 })
    }

    /// The time of the newest append in it.
    pub(crate) fn last_time_ms(&self) -> i64 {
        self.runs.last().map_or(i64::MIN, |run| run.time_ms)
    }

    /// The bytes of its records.
    pub(crate) fn data_len(&self) -> u64 {
        self.slots.last().map_or(0, |slot| u64::from(slot.at) + slot.len())
    }

    /// The size of the stored value.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.value.len()
    }
}

/// A record to lay into a chunk.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
    pub(crate) key: Option<Bytes>,
    pub(crate) tombstone: bool,
}

/// A chunk that is being put together.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) partition: PartitionKey,
    pub(crate) base: u64,
    pub(crate) end: u64,
    pub(crate) bytes_before: u64,
    pub(crate) bytes_ever: u64,
    pub(crate) runs: Vec<Run>,
    pub(crate) records: Vec<Record>,
}

impl Builder {
    /// The stored value.
    ///
    /// # Panics
    /// If it is larger than an envelope may be: who appends bounds a record and a chunk far below that.
    pub(crate) fn seal(&self) -> Bytes {
        let sparse = self.records.len() as u64 != self.end - self.base;
        let keyed = self.records.iter().any(|record| record.key.is_some());
        let mut head = Vec::with_capacity(64 + self.records.len() * 4);
        for number in [
            self.partition.log,
            u64::from(self.partition.partition),
            self.base,
            self.end - self.base,
            self.bytes_before,
            self.bytes_ever,
            self.runs.len() as u64,
            self.records.len() as u64,
            (u64::from(sparse) * SPARSE) | (u64::from(keyed) * KEYED),
        ] {
            put_varint(&mut head, number);
        }
        let mut at = self.base;
        for run in &self.runs {
            put_varint(&mut head, run.end - at);
            put_varint(&mut head, run.commit);
            put_varint(&mut head, zigzag(run.time_ms));
            at = run.end;
        }
        let mut at = self.base;
        for record in &self.records {
            put_varint(&mut head, ((record.bytes.len() as u64) << 1) | u64::from(record.tombstone));
            if keyed {
                put_varint(&mut head, record.key.as_ref().map_or(0, |key| key.len() as u64 + 1));
            }
            if sparse {
                put_varint(&mut head, record.offset - at);
            }
            at = record.offset + 1;
        }
        let mut pieces: Vec<&[u8]> = Vec::with_capacity(1 + 2 * self.records.len());
        pieces.push(&head);
        pieces.extend(self.records.iter().filter_map(|record| record.key.as_deref()));
        pieces.extend(self.records.iter().map(|record| &record.bytes[..]));
        envelope::seal_bytes(Kind::Batch, SCHEMA, &pieces).expect("a chunk is smaller than an envelope may be")
    }
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

struct Varints<'a> {
    left: &'a [u8],
}

impl Varints<'_> {
    #[inline]
    fn number(&mut self) -> Result<u64, Damage> {
        // Most lengths take one byte or two.
        match *self.left {
            [byte, ref left @ ..] if byte < 0x80 => {
                self.left = left;
                Ok(u64::from(byte))
            }
            [low, high, ref left @ ..] if high < 0x80 => {
                self.left = left;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            _ => self.long_number(),
        }
    }

    fn long_number(&mut self) -> Result<u64, Damage> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, left) = self.left.split_first().ok_or(Damage::Layout)?;
            self.left = left;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Damage::Layout);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Damage::Layout)
    }

    /// A count of things of which each has at least one byte here, so that nothing is allocated beyond what is there.
    fn count(&mut self) -> Result<usize, Damage> {
        let count = usize::try_from(self.number()?).map_err(|_| Damage::Layout)?;
        if count <= self.left.len() { Ok(count) } else { Err(Damage::Layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PART: PartitionKey = PartitionKey { log: 3, partition: 1 };
    const PINNED: &str = "544447540108000100230000000301ac0205e8070902030302070903098ea4e3d8bf6804020001000203\
                          01006b6162636622f31b";

    fn builder() -> Builder {
        let record = |offset, text: &'static str, key: Option<&'static str>, tombstone| Record {
            offset,
            bytes: Bytes::from_static(text.as_bytes()),
            key: key.map(|key| Bytes::from_static(key.as_bytes())),
            tombstone,
        };
        Builder {
            partition: PART,
            base: 300,
            end: 305,
            bytes_before: 1_000,
            bytes_ever: 9,
            runs: vec![
                Run { end: 302, commit: 7, time_ms: -5 },
                Run { end: 305, commit: 9, time_ms: 1_795_255_200_007 },
            ],
            records: vec![
                record(300, "ab", Some("k"), false),
                record(303, "", None, true),
                record(304, "c", Some(""), true),
            ],
        }
    }

    #[test]
    fn a_chunk_s_bytes_are_the_same_in_every_release() {
        let sealed = builder().seal();
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, PINNED);
        let opened = Chunk::open(PART, 300, sealed).unwrap();
        assert_eq!((opened.end, opened.bytes_before, opened.bytes_ever), (305, 1_000, 9));
        assert_eq!(opened.runs, builder().runs);
    }

    #[test]
    fn records_keys_and_places_come_back_without_a_copy() {
        let sealed = builder().seal();
        let chunk = Chunk::open(PART, 300, sealed.clone()).unwrap();
        let found: Vec<_> =
            chunk.slots.iter().map(|slot| (slot.offset, chunk.bytes(slot), chunk.key(slot), slot.tombstone)).collect();
        let expected: Vec<_> = builder()
            .records
            .into_iter()
            .map(|record| (record.offset, record.bytes, record.key, record.tombstone))
            .collect();
        assert_eq!(found, expected);
        assert!(sealed.as_ptr_range().contains(&found[0].1.as_ptr()));
        assert_eq!((chunk.run(301).commit, chunk.run(302).commit), (7, 9));
    }

    #[test]
    fn a_chunk_under_a_wrong_key_or_with_a_changed_bit_is_refused() {
        let sealed = builder().seal();
        assert!(matches!(Chunk::open(PART, 301, sealed.clone()), Err(Damage::Misplaced)));
        let elsewhere = PartitionKey { partition: 2, ..PART };
        assert!(matches!(Chunk::open(elsewhere, 300, sealed.clone()), Err(Damage::Misplaced)));
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Chunk::open(PART, 300, flipped.into()).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn a_foreign_payload_with_a_right_checksum_never_panics(payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = vec![3, 1, 5];
            bytes.extend(payload);
            let sealed = envelope::seal_bytes(Kind::Batch, SCHEMA, &[&bytes]).unwrap();
            let _ = Chunk::open(PART, 5, sealed);
        }

        #[test]
        fn numbers_come_back(number in any::<u64>(), signed in any::<i64>()) {
            let mut out = Vec::new();
            put_varint(&mut out, number);
            prop_assert_eq!(Varints { left: &out }.number().unwrap(), number);
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }
    }
}
