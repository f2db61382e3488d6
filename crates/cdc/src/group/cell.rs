//! The pieces that a group's state is stored in, so that a commit or a poll writes little: what the group is (with generation and
//! members), where it began, one cell a partition, and one for each 64 offsets that a shared group has records out of. It
//! never decides what they say.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tidegate_core::id::Name;
use tidegate_frame::envelope::Kind;

use super::spec::GroupSpec;
use crate::error::StoreError;
use crate::handle::{seal, unseal};
use crate::key::{self, Incarnation};

/// Offsets that share a cell of a shared group.
pub(crate) const BLOCK_OFFSETS: u64 = 64;

/// One life of a group: a group that is made again has nothing of the one before.
pub(crate) type Life = [u8; 16];

/// A piece of a group's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Cell {
    /// What the group is.
    Main,
    /// Where it began.
    Start,
    /// Where it is in a partition.
    Partition(u32),
    /// What of these offsets of a partition is out: the number is the first offset divided by [`BLOCK_OFFSETS`].
    Block(u32, u64),
}

/// The key of what the group is.
pub(crate) fn main_key(incarnation: Incarnation, group: &Name) -> Bytes {
    key::group(incarnation, group).freeze()
}

/// What the keys of a group's other cells begin with.
pub(crate) fn prefix(incarnation: Incarnation, life: &Life) -> BytesMut {
    let mut key = key::life(incarnation);
    key.put_u8(b'c');
    key.put_slice(life);
    key
}

impl Cell {
    /// Its key. `Main` has one of its own: [`main_key`].
    pub(crate) fn key(self, incarnation: Incarnation, group: &Name, life: &Life) -> Bytes {
        let mut key = prefix(incarnation, life);
        match self {
            Self::Main => return main_key(incarnation, group),
            Self::Start => key.put_u8(b's'),
            Self::Partition(partition) => {
                key.put_u8(b'p');
                key.put_u32(partition);
            }
            Self::Block(partition, block) => {
                key.put_u8(b'b');
                key.put_u32(partition);
                key.put_u64(block);
            }
        }
        key.freeze()
    }

    /// Which cell has a key that ends so, after [`prefix`].
    pub(crate) fn from_rest(rest: &[u8]) -> Option<Self> {
        let (tag, rest) = rest.split_first()?;
        match tag {
            b's' if rest.is_empty() => Some(Self::Start),
            b'p' => Some(Self::Partition(u32::from_be_bytes(rest.try_into().ok()?))),
            b'b' if rest.len() == 12 => {
                let (partition, block) = rest.split_at(4);
                let partition = u32::from_be_bytes(partition.try_into().ok()?);
                Some(Self::Block(partition, u64::from_be_bytes(block.try_into().ok()?)))
            }
            _ => None,
        }
    }

    /// The cell that an offset of a shared group lies in.
    pub(crate) fn block_of(partition: u32, offset: u64) -> Self {
        Self::Block(partition, offset / BLOCK_OFFSETS)
    }
}

/// What a cell holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stored {
    Main(StoredMain),
    /// A partition each.
    Start(Vec<u64>),
    /// Of an ordered group.
    Place(StoredPlace),
    /// Of a shared group: the first offset that was never delivered.
    Lane(u64),
    /// Of a shared group.
    Block(Vec<StoredEntry>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredMain {
    pub(crate) life: Life,
    pub(crate) spec: GroupSpec,
    pub(crate) created_at_ms: i64,
    pub(crate) generation: u64,
    /// The group is being removed: what is left of it is to be cleared away.
    pub(crate) removing: bool,
    pub(crate) members: Vec<StoredMember>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredMember {
    pub(crate) id: Box<str>,
    pub(crate) client: Box<str>,
    pub(crate) last_seen_ms: i64,
    pub(crate) partitions: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredPlace {
    pub(crate) committed: u64,
    pub(crate) delivered: u64,
}

/// A record that was delivered and is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredEntry {
    /// Its offset within the block.
    pub(crate) at: u8,
    pub(crate) count: u32,
    /// The group's generation at its last delivery.
    pub(crate) generation: u64,
    /// Somebody has it, until then; otherwise it is not to be delivered before then.
    pub(crate) held: bool,
    pub(crate) until_ms: i64,
    /// How long that was when it was granted: what is left is never more, whatever the clock says.
    pub(crate) granted_ms: u64,
}

const SCHEMA_VERSION: u16 = 1;

impl Stored {
    pub(crate) fn seal(&self) -> Bytes {
        seal(Kind::Group, SCHEMA_VERSION, self)
    }

    pub(crate) fn unseal(bytes: &[u8]) -> Result<Self, StoreError> {
        unseal(Kind::Group, SCHEMA_VERSION, "a consumer group", bytes)
    }
}

/// What a group's state cannot be, although its checksums hold.
pub(crate) fn corrupt(what: &'static str) -> StoreError {
    StoreError::Corrupt { what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_found_again_by_its_key() {
        let (incarnation, life) = (Incarnation([1; 16]), [2; 16]);
        let group = Name::new("g:1/ü").unwrap();
        let start = prefix(incarnation, &life);
        for cell in [Cell::Start, Cell::Partition(7), Cell::Block(7, u64::MAX / 64)] {
            let key = cell.key(incarnation, &group, &life);
            assert_eq!(Cell::from_rest(key.strip_prefix(&start[..]).unwrap()), Some(cell));
        }
        for bad in [&b""[..], b"x", b"p123", b"b12345", b"s1"] {
            assert_eq!(Cell::from_rest(bad), None);
        }
    }
}
