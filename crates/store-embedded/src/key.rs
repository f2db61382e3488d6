//! The keys under which things lie in the database. It never reads or writes.
//!
//! Numbers are big-endian, so that the order of keys is the order of numbers.

use bytes::Bytes;
use tidegate_core::port::StreamId;

/// The counters; also what tells a group's batch in the journal.
pub(crate) const COUNTERS: &[u8] = b"\x00tidegate.counters";

const STREAM: u8 = b'S';
const FLOOR: u8 = b'P';
const DUE: u8 = b'D';
const REMOVED: u8 = b'R';
const META: u8 = b'M';

/// A chunk of records, in the keyspace of records.
pub(crate) type ChunkKey = [u8; 20];

/// One partition of one stream's incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PartitionKey {
    /// The stream's number in the log, never used again.
    pub(crate) log: u64,
    /// The partition.
    pub(crate) partition: u32,
}

impl PartitionKey {
    /// The chunk that begins at `base`.
    pub(crate) fn chunk(self, base: u64) -> ChunkKey {
        let mut key = [0; 20];
        key[..8].copy_from_slice(&self.log.to_be_bytes());
        key[8..12].copy_from_slice(&self.partition.to_be_bytes());
        key[12..].copy_from_slice(&base.to_be_bytes());
        key
    }

    /// The partition's floor, in the index.
    pub(crate) fn floor(self) -> Vec<u8> {
        let mut key = floors(self.log);
        key.extend(self.partition.to_be_bytes());
        key
    }
}

/// The offset at which the chunk under this key begins.
pub(crate) fn chunk_base(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(12..20)?.try_into().ok()?))
}

/// What all chunks of a stream begin with.
pub(crate) fn chunks(log: u64) -> [u8; 8] {
    log.to_be_bytes()
}

/// What all floors of a stream begin with.
pub(crate) fn floors(log: u64) -> Vec<u8> {
    let mut key = vec![FLOOR];
    key.extend(log.to_be_bytes());
    key
}

/// A stream's entry in the catalogue. The tenant's length stands in front, so that no two pairs of names share a key.
pub(crate) fn stream(id: &StreamId) -> Vec<u8> {
    let (tenant, stream) = (id.tenant.as_str().as_bytes(), id.stream.as_str().as_bytes());
    let mut key = Vec::with_capacity(2 + tenant.len() + stream.len());
    key.push(STREAM);
    key.push(u8::try_from(tenant.len()).expect("a name has at most 255 bytes"));
    key.extend(tenant);
    key.extend(stream);
    key
}

/// Work of `kind` for a partition that is due at a time.
pub(crate) fn due(at_ms: i64, kind: u8, partition: PartitionKey) -> Vec<u8> {
    let mut key = due_before(at_ms);
    key.push(kind);
    key.extend(partition.log.to_be_bytes());
    key.extend(partition.partition.to_be_bytes());
    key
}

/// Where work begins that is due at this time: all before it is due earlier.
pub(crate) fn due_before(at_ms: i64) -> Vec<u8> {
    let mut key = vec![DUE];
    // With the sign bit turned over, the order of the bytes is the order of the numbers.
    key.extend((at_ms.cast_unsigned() ^ (1 << 63)).to_be_bytes());
    key
}

/// Where all work begins.
pub(crate) const DUE_START: [u8; 1] = [DUE];

/// The kind and the partition in a key of [`due`].
pub(crate) fn due_parts(key: &[u8]) -> Option<(u8, PartitionKey)> {
    let log = u64::from_be_bytes(key.get(10..18)?.try_into().ok()?);
    let partition = u32::from_be_bytes(key.get(18..22)?.try_into().ok()?);
    Some((*key.get(9)?, PartitionKey { log, partition }))
}

/// A removed stream whose data is not all gone yet.
pub(crate) fn removed(log: u64) -> Vec<u8> {
    let mut key = vec![REMOVED];
    key.extend(log.to_be_bytes());
    key
}

/// Where removed streams begin.
pub(crate) const REMOVED_START: [u8; 1] = [REMOVED];

/// The stream in a key of [`removed`].
pub(crate) fn removed_log(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?))
}

/// A metadata entry: with a byte in front, because the database takes no empty key.
pub(crate) fn meta(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(META);
    out.extend(key);
    out
}

/// The metadata key in a key of [`meta`].
pub(crate) fn meta_key(key: &Bytes) -> Bytes {
    key.slice(1.min(key.len())..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::id::Name;

    #[test]
    fn the_order_of_keys_is_the_order_of_times_and_offsets() {
        let part = PartitionKey { log: 1, partition: 2 };
        assert!(due(-5, 1, part) < due(0, 1, part) && due(0, 9, part) < due(7, 1, part));
        assert!(due_before(i64::MIN) < due(i64::MIN, 0, part) && due(5, 255, part) < due_before(6));
        assert!(part.chunk(255) < part.chunk(256));
        assert_eq!(chunk_base(&part.chunk(77)), Some(77));
        assert_eq!(due_parts(&due(-5, 3, part)), Some((3, part)));
    }

    #[test]
    fn no_two_pairs_of_names_share_a_key() {
        let id = |tenant: &str, stream: &str| StreamId {
            tenant: Name::new(tenant).unwrap(),
            stream: Name::new(stream).unwrap(),
        };
        assert_ne!(stream(&id("a", "bc")), stream(&id("ab", "c")));
    }
}
