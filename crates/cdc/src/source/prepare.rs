//! Batches of a source on their way into the log: encoded once, gathered while the append before them is being made durable. It never
//! takes a batch apart: all of it is in one append.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use tidegate_core::Timestamp;
use tidegate_core::port::{AppendRecord, ChangeBatch, PartitionAppend, Resume};
use tidegate_core::position::Partition;
use tidegate_core::record::{Change, Operation};

use crate::partition::partition_of_key;
use crate::stored::{self, Fields};

/// When no further batch is gathered into one append.
pub(crate) const GATHER_MAX_RECORDS: u64 = 16_384;
/// The same, in bytes of encoded records. One batch may be larger: it is then alone.
pub(crate) const GATHER_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// A record, encoded, before it is known where it goes.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    key: Option<Key>,
    tombstone: bool,
}

#[derive(Debug, Clone)]
enum Key {
    Given(Arc<str>),
    Stored(Bytes),
}

impl Key {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Given(text) => text.as_bytes(),
            Self::Stored(bytes) => bytes,
        }
    }
}

impl Encoded {
    fn new(change: Change) -> Self {
        let key = change.key.filter(|key| &**key != "null");
        let bytes = stored::change(&Fields {
            operation: change.operation,
            key: key.as_ref().map(|key| key.as_bytes()),
            value: change.value.as_bytes(),
            before: change.before.as_ref().map(|text| text.as_bytes()),
            headers: change.headers.as_ref().map(|text| text.as_bytes()),
            event_time: change.event_time,
            source: change.source.as_ref(),
        });
        let tombstone = change.operation == Operation::Delete || &*change.value == "null";
        Self { bytes, key: key.map(Key::Given), tombstone }
    }

    /// How it lies in the log of what a stream refused: whether it is a tombstone, then the record.
    pub(crate) fn to_spill(&self) -> AppendRecord {
        let mut bytes = BytesMut::with_capacity(1 + self.bytes.len());
        bytes.put_u8(u8::from(self.tombstone));
        bytes.put_slice(&self.bytes);
        AppendRecord { bytes: bytes.freeze(), key: None, tombstone: false }
    }

    /// Out of that log again; `None` where it is not one.
    pub(crate) fn from_spill(mut bytes: Bytes) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        let tombstone = bytes.split_to(1)[0] == 1;
        let key = match stored::open(bytes.clone()).ok()? {
            stored::Stored::Change(change) => Some(change.shared_key()).filter(|key| !key.is_empty()),
            stored::Stored::Raw(_) => None,
        };
        Some(Self { bytes, key: key.map(Key::Stored), tombstone })
    }

    fn place(&self, partitions: u32, compacted: bool) -> (Partition, AppendRecord) {
        // Without a key there is no order but that of all: they stay together.
        let partition = self.key.as_ref().map_or(Partition(0), |key| partition_of_key(key.as_bytes(), partitions));
        let key = self.key.as_ref().filter(|_| compacted).map(|key| {
            // As every record of a stream that carries one collection has it: the collection's name is empty.
            let mut whole = BytesMut::with_capacity(1 + key.as_bytes().len());
            whole.put_u8(0);
            whole.put_slice(key.as_bytes());
            whole.freeze()
        });
        (partition, AppendRecord { bytes: self.bytes.clone(), key, tombstone: self.tombstone })
    }
}

/// Records with the partitions of a stream that they go to.
pub(crate) fn place(
    records: &[Encoded],
    partitions: u32,
    compacted: bool,
    append_time: Timestamp,
) -> Vec<PartitionAppend> {
    let mut placed: Vec<Option<Vec<AppendRecord>>> = vec![None; partitions as usize];
    for record in records {
        let (partition, record) = record.place(partitions, compacted);
        if let Some(slot) = placed.get_mut(partition.0 as usize) {
            slot.get_or_insert_default().push(record);
        }
    }
    let placed = (0..partitions).zip(placed).filter_map(|(number, records)| {
        Some(PartitionAppend { partition: Partition(number), expected_next: None, records: records?, append_time })
    });
    placed.collect()
}

/// The records of one stream.
#[derive(Debug)]
pub(crate) struct TablePart {
    pub(crate) table: Box<str>,
    pub(crate) records: Vec<Encoded>,
    pub(crate) bytes: u64,
}

/// What goes into one append.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) parts: Vec<TablePart>,
    places: HashMap<Box<str>, usize>,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// What the last of the batches says of itself; `None` = there is none.
    pub(crate) resume: Option<Resume>,
    /// The latest time that a change says of itself.
    pub(crate) event_time: Option<Timestamp>,
}

impl Prepared {
    /// Whether another batch may come in.
    pub(crate) fn has_room(&self) -> bool {
        self.records < GATHER_MAX_RECORDS && self.bytes < GATHER_MAX_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.resume.is_none()
    }

    pub(crate) fn add(&mut self, batch: ChangeBatch) {
        let ChangeBatch { position, changes, state } = batch;
        for (table, change) in changes {
            self.event_time = self.event_time.max(change.event_time);
            let record = Encoded::new(change);
            let bytes = record.bytes.len() as u64;
            let place = match self.places.get(&table) {
                Some(place) => *place,
                None => {
                    self.places.insert(table.clone(), self.parts.len());
                    self.parts.push(TablePart { table, records: Vec::new(), bytes: 0 });
                    self.parts.len() - 1
                }
            };
            let part = &mut self.parts[place];
            part.records.push(record);
            part.bytes += bytes;
            self.records += 1;
            self.bytes += bytes;
        }
        self.resume = Some(Resume { position, state });
    }
}
