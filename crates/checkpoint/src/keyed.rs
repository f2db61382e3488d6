//! The state of a keyed operator, and snapshots of it that cost what changed. A snapshot takes no copy of the state, and a save never writes what
//! the last checkpoint has, except one part in [`BUCKETS`] at a time.
//!
//! Keys lie in [`BUCKETS`] by their checksum. A bucket is saved as segments: each a list of keys with their new values, applied in order. When a bucket's
//! later segments are long beside its first one, it is written anew: one bucket for each save, so that a save is never much more than
//! its changes; and each bucket whose later segments are twice as long as what they say.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use tidegate_core::id::Name;

use crate::error::{AppendError, DamageKind, ReadError};
use crate::id::Generation;
use crate::manifest::{Segment, StateRef};
use crate::read::StateReader;
use crate::save::Save;

/// Into how many parts the keys fall.
pub const BUCKETS: u32 = 64;
/// Bytes that a key, and that a value may have.
pub const ITEM_MAX_BYTES: usize = 64 * 1_024 * 1_024;
/// Segments of one bucket; with more it is written anew.
pub const SEGMENTS_MAX: usize = 128;
/// Segments that are read at the same time, in order: a state of many small ones is not read at the pace of one request after the other.
const SEGMENTS_IN_FLIGHT: usize = 8;
/// The form of the segments: see [`StateRef::form`].
pub(crate) const FORM: u8 = 1;
/// The length that stands for "there is no such key any more".
const REMOVED: u32 = u32::MAX;

type Entries = BTreeMap<Bytes, Bytes>;

/// Keys and values, and which of them changed since the last checkpoint.
#[derive(Debug, Clone)]
pub struct KeyedState {
    buckets: Vec<Bucket>,
    /// The checkpoint that has everything but what is marked as changed.
    since: Option<Generation>,
}

#[derive(Debug, Clone, Default)]
struct Bucket {
    /// Shared with snapshots: copied when it is changed while one is being saved.
    entries: Arc<Entries>,
    bytes: u64,
    /// Changed since the last snapshot.
    dirty: BTreeSet<Bytes>,
    /// Changed before it and after the last checkpoint.
    waiting: Arc<BTreeSet<Bytes>>,
}

/// A state as it was at one moment.
#[derive(Debug, Clone)]
pub struct KeyedSnapshot {
    buckets: Vec<BucketSnapshot>,
    since: Option<Generation>,
}

#[derive(Debug, Clone)]
struct BucketSnapshot {
    entries: Arc<Entries>,
    bytes: u64,
    changed: Arc<BTreeSet<Bytes>>,
}

/// A key or a value has more bytes than it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes: a key and a value have at most {ITEM_MAX_BYTES}")]
pub struct ItemTooLarge {
    /// How many.
    pub bytes: usize,
}

impl Default for KeyedState {
    fn default() -> Self {
        Self::new()
    }
}

fn bucket_of(key: &[u8]) -> usize {
    (crc32c::crc32c(key) % BUCKETS) as usize
}

fn size(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len() + 8) as u64
}

impl KeyedState {
    /// Without keys.
    #[must_use]
    pub fn new() -> Self {
        Self { buckets: vec![Bucket::default(); BUCKETS as usize], since: None }
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Bytes> {
        self.buckets[bucket_of(key)].entries.get(key)
    }

    /// Gives a key a value; the old one is told. Cost: O(log n), and a copy of a bucket's table the first time after a snapshot that is still
    /// being saved.
    pub fn insert(&mut self, key: Bytes, value: Bytes) -> Result<Option<Bytes>, ItemTooLarge> {
        let bytes = key.len().max(value.len());
        if bytes > ITEM_MAX_BYTES {
            return Err(ItemTooLarge { bytes });
        }
        let bucket = &mut self.buckets[bucket_of(&key)];
        bucket.bytes += size(&key, &value);
        bucket.dirty.insert(key.clone());
        let old = Arc::make_mut(&mut bucket.entries).insert(key.clone(), value);
        if let Some(old) = &old {
            bucket.bytes -= size(&key, old);
        }
        Ok(old)
    }

    /// Takes a key away; its value is told.
    pub fn remove(&mut self, key: &[u8]) -> Option<Bytes> {
        let bucket = &mut self.buckets[bucket_of(key)];
        let (key, old) = Arc::make_mut(&mut bucket.entries).remove_entry(key)?;
        bucket.bytes -= size(&key, &old);
        bucket.dirty.insert(key);
        Some(old)
    }

    /// All keys with their values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.buckets.iter().flat_map(|bucket| bucket.entries.iter())
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.entries.len()).sum()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The state as it is now. Cost: O(number of keys that changed), no value is copied.
    pub fn snapshot(&mut self) -> KeyedSnapshot {
        let buckets = self.buckets.iter_mut().map(|bucket| {
            let dirty = std::mem::take(&mut bucket.dirty);
            if !dirty.is_empty() {
                // What a snapshot took that was not confirmed has not been saved for certain: the next one takes it again.
                Arc::make_mut(&mut bucket.waiting).extend(dirty);
            }
            BucketSnapshot {
                entries: Arc::clone(&bucket.entries),
                bytes: bucket.bytes,
                changed: Arc::clone(&bucket.waiting),
            }
        });
        KeyedSnapshot { buckets: buckets.collect(), since: self.since }
    }

    /// The last snapshot was published as this checkpoint: the next one holds what changed since. To be called only for the last one; for
    /// one that failed nothing is called.
    pub fn confirm(&mut self, generation: Generation) {
        for bucket in &mut self.buckets {
            bucket.waiting = Arc::default();
        }
        self.since = Some(generation);
    }

    /// Reads a state back from the checkpoint of this generation. All of it is in memory then.
    pub async fn load(reader: &StateReader, generation: Generation) -> Result<Self, ReadError> {
        let folder = &reader.chunks.folder();
        let inconsistent = |what| ReadError::from(DamageKind::Inconsistent(what).at(folder));
        if reader.state.form != FORM {
            return Err(inconsistent("the state is not a keyed one"));
        }
        let mut state = Self { since: Some(generation), ..Self::new() };
        let segments = futures::stream::iter(reader.state.segments.clone()).map(|(number, segment)| {
            let pieces = reader.chunks.segment(segment);
            async move { Ok::<_, ReadError>((number, pieces.try_collect::<Vec<Bytes>>().await?)) }
        });
        let mut segments = segments.buffered(SEGMENTS_IN_FLIGHT);
        while let Some((number, pieces)) = segments.try_next().await? {
            let bucket = state
                .buckets
                .get_mut(number as usize)
                .ok_or_else(|| inconsistent("a segment is in a bucket that there is not"))?;
            let entries = Arc::make_mut(&mut bucket.entries);
            let mut left = BytesMut::new();
            for piece in pieces {
                left.extend_from_slice(&piece);
                while let Some((key, value)) = take_item(&mut left) {
                    match value {
                        Some(value) => drop(entries.insert(key, value)),
                        None => drop(entries.remove(&key)),
                    }
                }
            }
            if !left.is_empty() {
                return Err(inconsistent("a segment ends within a key"));
            }
        }
        for bucket in &mut state.buckets {
            bucket.bytes = bucket.entries.iter().map(|(key, value)| size(key, value)).sum();
        }
        Ok(state)
    }
}

/// One key with its value, or with nothing: key length `u32`, value length `u32` (all ones: removed), key, value; little-endian.
fn put_item(into: &mut BytesMut, key: &[u8], value: Option<&Bytes>) {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("it is at most ITEM_MAX_BYTES");
    into.put_u32_le(length(key));
    into.put_u32_le(value.map_or(REMOVED, |value| length(value)));
    into.put_slice(key);
    into.put_slice(value.map_or(&[], |value| value));
}

fn take_item(from: &mut BytesMut) -> Option<(Bytes, Option<Bytes>)> {
    let (key, rest) = from.split_first_chunk::<4>()?;
    let (value, _) = rest.split_first_chunk::<4>()?;
    let (key, value) = (u32::from_le_bytes(*key) as usize, u32::from_le_bytes(*value));
    let value = (value != REMOVED).then_some(value as usize);
    if from.len() < 8 + key + value.unwrap_or(0) {
        return None;
    }
    let _lengths = from.split_to(8);
    // Copied, so that a small value does not hold on to the whole piece that it came in.
    let key = Bytes::copy_from_slice(&from.split_to(key));
    let value = value.map(|value| Bytes::copy_from_slice(&from.split_to(value)));
    Some((key, value))
}

impl BucketSnapshot {
    fn all(&self) -> BytesMut {
        let mut bytes = BytesMut::with_capacity(usize::try_from(self.bytes).unwrap_or(0));
        self.entries.iter().for_each(|(key, value)| put_item(&mut bytes, key, Some(value)));
        bytes
    }

    fn changes(&self) -> BytesMut {
        let mut bytes = BytesMut::new();
        self.changed.iter().for_each(|key| put_item(&mut bytes, key, self.entries.get(key)));
        bytes
    }
}

impl Save {
    /// Takes the state of a keyed operator: what changed since the last checkpoint, if this save shares with that one, and one bucket
    /// whole; else all of it. Holds one bucket in memory besides the packs on their way.
    pub async fn keyed(&mut self, name: Name, snapshot: KeyedSnapshot) -> Result<(), AppendError> {
        let base = self.base().filter(|base| Some(base.id.generation) == snapshot.since);
        let base = base.and_then(|base| base.manifest.states.get(&name)).filter(|state| state.form == FORM);
        let mut old: BTreeMap<u32, Vec<Segment>> = BTreeMap::new();
        for (bucket, segment) in base.iter().flat_map(|state| &state.segments) {
            old.entry(*bucket).or_default().push(segment.clone());
        }
        let shared = base.is_some();
        let anew = due(&old, &snapshot);
        let mut segments = Vec::new();
        for (number, bucket) in (0..BUCKETS).zip(snapshot.buckets) {
            let kept = old.remove(&number).unwrap_or_default();
            let whole = !shared || anew.contains(&number);
            let items = async {
                let make = move || if whole { bucket.all() } else { bucket.changes() };
                crate::save::run(make).await.freeze()
            };
            let items = items.await;
            if !whole {
                segments.extend(kept.iter().map(|segment| (number, self.reuse(segment))));
            }
            if !items.is_empty() {
                let items = futures::stream::iter([Ok::<_, Infallible>(items)]);
                segments.push((number, self.segment(&name, items).await?));
            }
        }
        self.put(name, StateRef { form: FORM, segments })
    }
}

/// The buckets that are written anew: the one whose segments are longest beside its content, if they are half as long again; and those
/// whose segments are three times as long, or too many.
fn due(old: &BTreeMap<u32, Vec<Segment>>, snapshot: &KeyedSnapshot) -> BTreeSet<u32> {
    let mut due = BTreeSet::new();
    let mut longest: Option<(u64, u32)> = None;
    for (number, segments) in old {
        let content = snapshot.buckets.get(*number as usize).map_or(0, |bucket| bucket.bytes).max(1);
        let length: u64 = segments.iter().map(|segment| segment.length).sum();
        let percent = length.saturating_mul(100) / content;
        if percent >= 300 || segments.len() >= SEGMENTS_MAX {
            due.insert(*number);
        } else if percent >= 150 && longest.is_none_or(|(most, _)| percent > most) {
            longest = Some((percent, *number));
        }
    }
    due.extend(longest.map(|(_, number)| number));
    due
}
