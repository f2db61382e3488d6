//! The database: one fjall database with three keyspaces, and views of it. It never decides what is written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::config::{BlockSizePolicy, RestartIntervalPolicy};
use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, Readable, Snapshot};
use tidegate_core::port::Revision;
use tidegate_frame::envelope::{self, Kind};

use crate::chunk::Chunk;
use crate::error::{OpenError, ReadError, is_damage};
use crate::key::{self, PartitionKey};
use crate::state::{Counters, Floor, LogState, StreamEntry};

const META_SCHEMA: u16 = 1;
const MIB: u64 = 1024 * 1024;

/// The open database.
pub(crate) struct Engine {
    db: Database,
    pub(crate) records: Keyspace,
    pub(crate) meta: Keyspace,
    pub(crate) index: Keyspace,
}

/// What a group wants written, by keyspace; `None` = removed.
#[derive(Default)]
pub(crate) struct Writes {
    pub(crate) records: std::collections::BTreeMap<[u8; 20], Option<Bytes>>,
    pub(crate) index: std::collections::BTreeMap<Vec<u8>, Option<Bytes>>,
    pub(crate) meta: Vec<(Bytes, Option<Bytes>)>,
}

impl Engine {
    /// Opens or makes the database. The caller holds the folder's lock.
    pub(crate) fn open(path: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        // The database asserts on some damaged bytes: a panic there is an answer too.
        let opened = catch_unwind(AssertUnwindSafe(|| Self::open_unguarded(path, cache_bytes)));
        match opened {
            Ok(Ok(engine)) => Ok(engine),
            Ok(Err(fjall::Error::Locked)) => Err(OpenError::InUse { path: path.into() }),
            Ok(Err(fjall::Error::InvalidVersion(_))) => Err(OpenError::UnknownFormat { path: path.into() }),
            Ok(Err(fjall::Error::Io(source))) if !is_damage(&source) => {
                Err(OpenError::Io { path: path.into(), source })
            }
            Ok(Err(error)) => match ReadError::from(error) {
                ReadError::Disk(source) => Err(OpenError::Database { path: path.into(), source }),
                ReadError::Damaged(cause) => {
                    tracing::error!(path = %path.display(), cause, "the database is damaged");
                    Err(OpenError::Corrupt { path: path.into(), at: None, what: "the database refuses what it reads" })
                }
                ReadError::Absent(absent) => Err(OpenError::Database { path: path.into(), source: Box::new(absent) }),
            },
            Err(_) => {
                Err(OpenError::Corrupt { path: path.into(), at: None, what: "the database gives up on what it reads" })
            }
        }
    }

    fn open_unguarded(path: &Path, cache_bytes: u64) -> fjall::Result<Self> {
        let db = Database::builder(path)
            .cache_size(cache_bytes)
            // Two sealed journals at most are read again after a crash, and the one that was being written.
            .max_journaling_size(64 * MIB)
            .worker_threads(2)
            .open()?;
        // Batches of small records lie in the tree, so that one range scan reads them; large ones lie in blob files, so
        // that the tree's own compaction does not write them again and again.
        let records = db.keyspace("records", || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(32 * MIB)
                .data_block_size_policy(BlockSizePolicy::all(16 * 1024))
                .data_block_restart_interval_policy(RestartIntervalPolicy::all(4))
                .with_kv_separation(Some(KvSeparationOptions::default().separation_threshold(16 * 1024)))
        })?;
        let meta = db.keyspace("meta", || KeyspaceCreateOptions::default().max_memtable_size(16 * MIB))?;
        let index = db.keyspace("index", || KeyspaceCreateOptions::default().max_memtable_size(16 * MIB))?;
        Ok(Self { db, records, meta, index })
    }

    /// Whether a write would be refused because an earlier one, or a background job, failed.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.db.persist(PersistMode::Buffer).is_err()
    }

    /// Whether the background jobs are so far behind that a write would wait for them inside the database, where nothing
    /// ends the wait if they fail.
    pub(crate) fn is_behind(&self) -> bool {
        [&self.records, &self.meta, &self.index]
            .iter()
            .any(|keyspace| keyspace.sealed_memtable_count() > 1 || keyspace.l0_table_count() >= 16)
    }

    /// Writes all in one atomic step and makes it durable, then shows it to new views. One fsync, or none.
    ///
    /// The database persists the journal before it applies a batch, so nobody ever reads what is not durable as asked.
    pub(crate) fn commit(&self, writes: Writes, fsync: bool) -> fjall::Result<()> {
        let count = writes.records.len() + writes.index.len() + writes.meta.len();
        let mode = if fsync { PersistMode::SyncData } else { PersistMode::Buffer };
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.db.clone(), count).durability(Some(mode));
        for (key, value) in writes.records {
            match value {
                Some(value) => batch.insert(&self.records, key, value),
                None => batch.remove(&self.records, key),
            }
        }
        for (key, value) in writes.index {
            match value {
                Some(value) => batch.insert(&self.index, key, value),
                None => batch.remove(&self.index, key),
            }
        }
        for (key, value) in writes.meta {
            match value {
                Some(value) => batch.insert(&self.meta, key::meta(&key), value),
                None => batch.remove(&self.meta, key::meta(&key)),
            }
        }
        batch.commit()
    }

    /// Writes all that was read back from the journal into tables of their own and waits for it. After an fsync that
    /// failed the kernel may hold pages of the journal for clean that never reached the disk; tables are written anew.
    pub(crate) fn settle(&self, patience: Duration) -> Result<(), ReadError> {
        let deadline = Instant::now() + patience;
        for keyspace in [&self.records, &self.meta, &self.index] {
            keyspace.rotate_memtable()?;
        }
        for keyspace in [&self.records, &self.meta, &self.index] {
            while keyspace.sealed_memtable_count() > 0 {
                if self.is_poisoned() || Instant::now() > deadline {
                    return Err(ReadError::Disk("the database does not write its tables".into()));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// What is there now.
    pub(crate) fn view(self: &Arc<Self>) -> View {
        View { snapshot: self.db.snapshot(), engine: Arc::clone(self) }
    }
}

/// The database as it was after some group.
pub(crate) struct View {
    snapshot: Snapshot,
    pub(crate) engine: Arc<Engine>,
}

/// A key of the index, and what lies under it.
pub(crate) type Indexed = (Bytes, Result<LogState, ReadError>);

/// A metadata value with its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetaValue {
    pub(crate) revision: Revision,
    pub(crate) value: Bytes,
}

impl MetaValue {
    pub(crate) fn seal(&self) -> Bytes {
        envelope::seal_bytes(Kind::Metadata, META_SCHEMA, &[&self.revision.0.to_le_bytes(), &self.value])
            .expect("a metadata value is smaller than an envelope may be")
    }

    pub(crate) fn open(sealed: &Bytes) -> Result<Self, ReadError> {
        let payload = envelope::open_bytes(Kind::Metadata, &[META_SCHEMA], sealed).map_err(ReadError::damaged)?;
        let (revision, value) =
            payload.split_first_chunk().ok_or_else(|| ReadError::damaged("the value has no revision"))?;
        Ok(Self { revision: Revision(u64::from_le_bytes(*revision)), value: sealed.slice_ref(value) })
    }
}

impl View {
    fn index(&self, key: &[u8]) -> Result<Option<LogState>, ReadError> {
        let Some(sealed) = self.snapshot.get(&self.engine.index, key)? else { return Ok(None) };
        LogState::open(&sealed).map(Some).map_err(ReadError::damaged)
    }

    /// The counters; zeros in a new store.
    pub(crate) fn counters(&self) -> Result<Counters, ReadError> {
        match self.index(key::COUNTERS)? {
            None => Ok(Counters::default()),
            Some(LogState::Counters(counters)) => Ok(counters),
            Some(_) => Err(ReadError::damaged("no counters lie where they should")),
        }
    }

    /// A stream's entry.
    pub(crate) fn stream(&self, key: &[u8]) -> Result<Option<StreamEntry>, ReadError> {
        match self.index(key)? {
            None => Ok(None),
            Some(LogState::Stream(entry)) => Ok(Some(entry)),
            Some(_) => Err(ReadError::damaged("no stream lies where it should")),
        }
    }

    /// A partition's floor.
    pub(crate) fn floor(&self, partition: PartitionKey) -> Result<Option<Floor>, ReadError> {
        match self.index(&partition.floor())? {
            None => Ok(None),
            Some(LogState::Floor(floor)) => Ok(Some(floor)),
            Some(_) => Err(ReadError::damaged("no floor lies where it should")),
        }
    }

    /// Keys and values of the index in a range, in order. A value that is damaged stands there as such.
    pub(crate) fn index_range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Indexed>, ReadError> {
        let mut found = Vec::new();
        for guard in self.snapshot.range(&self.engine.index, from..to).take(limit) {
            let (key, value) = guard.into_inner()?;
            found.push((key.into(), LogState::open(&value).map_err(ReadError::damaged)));
        }
        Ok(found)
    }

    /// Keys of the index that begin like this, in order.
    pub(crate) fn index_keys(&self, prefix: &[u8], limit: usize) -> Result<Vec<Bytes>, ReadError> {
        let keys = self.snapshot.prefix(&self.engine.index, prefix).take(limit);
        keys.map(|guard| Ok(guard.key()?.into())).collect()
    }

    /// Keys of chunks from `from` up to, and not including, `to`; values are not read.
    pub(crate) fn chunk_keys(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, ReadError> {
        let keys: Box<dyn Iterator<Item = Guard>> = match to {
            Some(to) if from >= to => return Ok(Vec::new()),
            Some(to) => Box::new(self.snapshot.range(&self.engine.records, from..to)),
            None => Box::new(self.snapshot.prefix(&self.engine.records, from)),
        };
        keys.take(limit).map(|guard| Ok(guard.key()?.into())).collect()
    }

    /// The base and the stored bytes of the last chunk that begins at or before `offset`.
    pub(crate) fn chunk_before(&self, partition: PartitionKey, offset: u64) -> Result<Option<(u64, Bytes)>, ReadError> {
        let range = partition.chunk(0)..=partition.chunk(offset);
        let Some(guard) = self.snapshot.range(&self.engine.records, range).next_back() else { return Ok(None) };
        based(guard).map(Some)
    }

    /// Chunks that begin in a range of offsets, in order, as they are stored.
    pub(crate) fn chunks(
        &self,
        partition: PartitionKey,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = Result<(u64, Bytes), ReadError>> + use<> {
        // An empty range must not be asked for: the database takes it for a mistake.
        let range = partition.chunk(from)..partition.chunk(to.max(from));
        let chunks = (from < to).then(|| self.snapshot.range(&self.engine.records, range));
        chunks.into_iter().flatten().map(based)
    }

    /// A metadata entry.
    pub(crate) fn meta(&self, key: &[u8]) -> Result<Option<MetaValue>, ReadError> {
        let sealed = self.snapshot.get(&self.engine.meta, key::meta(key))?;
        sealed.map(|sealed| MetaValue::open(&sealed.into())).transpose()
    }

    /// Metadata entries from `from` on while their key begins with `prefix`. The error says which key it was.
    pub(crate) fn meta_scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, MetaValue)>, (usize, ReadError)> {
        let from = key::meta(from.max(prefix));
        let prefix = key::meta(prefix);
        let mut found = Vec::new();
        for guard in self.snapshot.range(&self.engine.meta, from..).take(limit) {
            let (key, value) = guard.into_inner().map_err(|error| (prefix.len(), error.into()))?;
            if !key.starts_with(&prefix) {
                break;
            }
            let key = key::meta_key(&key.into());
            let value = MetaValue::open(&value.into()).map_err(|error| (key.len(), error))?;
            found.push((key, value));
        }
        Ok(found)
    }
}

fn based(guard: Guard) -> Result<(u64, Bytes), ReadError> {
    let (key, value) = guard.into_inner()?;
    let base = key::chunk_base(&key).ok_or_else(|| ReadError::damaged("a chunk's key is too short"))?;
    Ok((base, value.into()))
}

/// Opens a chunk that was found in the database.
pub(crate) fn open_chunk(partition: PartitionKey, base: u64, value: Bytes) -> Result<Chunk, ReadError> {
    Chunk::open(partition, base, value).map_err(ReadError::damaged)
}
