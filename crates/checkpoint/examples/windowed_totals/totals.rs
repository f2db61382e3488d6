//! The job: a source that can be read again from anywhere, an operator that adds up, a sink that commits in two phases into SQLite. It never
//! writes a total twice: the table would refuse it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use object_store::local::LocalFileSystem;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, params};
use tidegate_checkpoint::coordinator::Schedule;
pub(crate) use tidegate_checkpoint::runtime::{Cause, Ended};
use tidegate_checkpoint::runtime::{
    Operator, ProcessorSpec, Records, Source, Sourced, TwoPhaseSink, WatermarkSpec, run as process,
};
use tidegate_checkpoint::{CheckpointParts, Checkpoints, KeyedState, Mode, Next, Spec};
use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::position::{Offset, Partition};
use tidegate_core::system::{OsEntropy, SystemClock};

/// A window's length in milliseconds.
const WINDOW_MS: i64 = 1_000;
/// From one record of a partition to the next.
const STEP_MS: i64 = 10;
const KEYS: u64 = 5;
const PARTITIONS: u32 = 2;

/// How a run goes.
pub(crate) struct Plan {
    /// Records of each partition.
    pub(crate) records: u64,
    /// Before each record.
    pub(crate) pause: Duration,
    /// Of the term.
    pub(crate) ttl: Duration,
    /// Between checkpoints.
    pub(crate) interval: Duration,
}

/// A change stream: each record is a function of its offset.
struct Generated {
    records: u64,
    pause: Duration,
}

#[async_trait]
impl Source for Generated {
    type Record = u64;

    fn name(&self) -> Name {
        name("orders")
    }

    fn partitions(&self) -> Vec<Partition> {
        (0..PARTITIONS).map(Partition).collect()
    }

    async fn open(&mut self, partition: Partition, next: Option<Next>) -> Result<Records<u64>, Cause> {
        let from = match next {
            Some(Next::Offset(Offset(next))) => next,
            Some(Next::Source(_)) => return Err("this source knows offsets".into()),
            None => 0,
        };
        let pause = self.pause;
        let records = futures::stream::iter(from..self.records).then(move |offset| async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            Ok(Sourced {
                next: Next::Offset(Offset(offset + 1)),
                time: Timestamp::from_unix_ms(time_of(offset)),
                key: Bytes::copy_from_slice(&[key_of(partition, offset)]),
                record: offset,
            })
        });
        Ok(records.boxed())
    }
}

fn time_of(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX / STEP_MS) * STEP_MS
}

fn key_of(partition: Partition, offset: u64) -> u8 {
    ((offset * 7 + u64::from(partition.0)) % KEYS) as u8
}

/// A window's begin, a key, the sum.
pub(crate) type Total = (i64, u8, u64);

/// Adds up; puts a window out when the watermark has passed its end.
#[derive(Default)]
struct Totals {
    /// The end of the last window that was put out: only to look through the state no more often than needed.
    closed: Option<i64>,
}

impl Operator<u64> for Totals {
    type Output = Total;

    fn name(&self) -> Name {
        name("totals")
    }

    fn record(&mut self, state: &mut KeyedState, record: &Sourced<u64>, _: &mut Vec<Total>) -> Result<(), Cause> {
        let window = record.time.unix_ms().div_euclid(WINDOW_MS) * WINDOW_MS;
        let key: Bytes = [&window.to_be_bytes()[..], &record.key].concat().into();
        let before = match state.get(&key) {
            Some(sum) => u64::from_le_bytes(sum[..].try_into()?),
            None => 0,
        };
        state.insert(key, Bytes::copy_from_slice(&(before + record.record).to_le_bytes()))?;
        Ok(())
    }

    fn watermark(&mut self, state: &mut KeyedState, watermark: Timestamp, out: &mut Vec<Total>) -> Result<(), Cause> {
        let closed = watermark.unix_ms().div_euclid(WINDOW_MS);
        if self.closed.replace(closed) == Some(closed) {
            return Ok(());
        }
        let mut due: Vec<Total> = Vec::new();
        for (key, sum) in state.iter() {
            let window = i64::from_be_bytes(key[..8].try_into()?);
            if window.saturating_add(WINDOW_MS) <= watermark.unix_ms() {
                due.push((window, key[8], u64::from_le_bytes(sum[..].try_into()?)));
            }
        }
        due.sort_unstable();
        for (window, key, _) in &due {
            state.remove(&[&window.to_be_bytes()[..], &[*key]].concat());
        }
        out.extend(due);
        Ok(())
    }
}

/// Totals in SQLite. What is not committed lies in a table of its own, under the number of the process that wrote it and the token that
/// would commit it.
struct Sqlite {
    connection: Arc<Mutex<Connection>>,
    writer: i64,
}

impl Sqlite {
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Cause> {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || {
            let mut connection = connection.lock();
            let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok::<_, rusqlite::Error>(value)
        });
        Ok(done.await??)
    }
}

fn open(folder: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(folder.join("totals.db"))?;
    connection.busy_timeout(Duration::from_secs(30))?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         CREATE TABLE IF NOT EXISTS totals(window_ms INTEGER, key INTEGER, total INTEGER, PRIMARY KEY (window_ms, key));
         CREATE TABLE IF NOT EXISTS writers(id INTEGER PRIMARY KEY AUTOINCREMENT);
         CREATE TABLE IF NOT EXISTS tokens(id INTEGER PRIMARY KEY AUTOINCREMENT, writer INTEGER, committed INTEGER);
         CREATE TABLE IF NOT EXISTS staged(writer INTEGER, token INTEGER, window_ms INTEGER, key INTEGER, total INTEGER);",
    )?;
    Ok(connection)
}

#[async_trait]
impl TwoPhaseSink<Total> for Sqlite {
    fn name(&self) -> Name {
        name("sqlite")
    }

    async fn write(&mut self, outputs: Vec<Total>) -> Result<(), Cause> {
        let writer = self.writer;
        self.with(move |transaction| {
            let mut insert = transaction.prepare("INSERT INTO staged VALUES (?1, NULL, ?2, ?3, ?4)")?;
            for (window, key, total) in &outputs {
                insert.execute(params![writer, window, key, *total as i64])?;
            }
            Ok(())
        })
        .await
    }

    async fn pre_commit(&mut self) -> Result<Option<Vec<u8>>, Cause> {
        let writer = self.writer;
        self.with(move |transaction| {
            transaction.execute("INSERT INTO tokens(writer, committed) VALUES (?1, 0)", [writer])?;
            let token = transaction.last_insert_rowid();
            let rows = transaction.execute("UPDATE staged SET token = ?1 WHERE writer = ?2", [token, writer])?;
            Ok((rows > 0).then(|| token.to_le_bytes().to_vec()))
        })
        .await
    }

    async fn commit(&mut self, token: &[u8]) -> Result<(), Cause> {
        let token = i64::from_le_bytes(token.try_into()?);
        self.with(move |transaction| {
            let committed: Option<bool> = transaction
                .query_row("SELECT committed FROM tokens WHERE id = ?1", [token], |row| row.get(0))
                .optional()?;
            match committed {
                None => Err(rusqlite::Error::QueryReturnedNoRows),
                Some(true) => Ok(()),
                Some(false) => {
                    transaction.execute(
                        "INSERT INTO totals SELECT window_ms, key, total FROM staged WHERE token = ?1",
                        [token],
                    )?;
                    transaction.execute("DELETE FROM staged WHERE token = ?1", [token])?;
                    transaction.execute("UPDATE tokens SET committed = 1 WHERE id = ?1", [token])?;
                    Ok(())
                }
            }
        })
        .await
    }

    async fn abort_others(&mut self, keep: Option<&[u8]>) -> Result<(), Cause> {
        let keep = keep.map(<[u8; 8]>::try_from).transpose()?.map(i64::from_le_bytes);
        self.with(move |transaction| {
            transaction.execute("DELETE FROM staged WHERE token IS NOT ?1 OR token IS NULL", [keep])?;
            Ok(())
        })
        .await
    }
}

/// Runs the job in a folder until its source ends or somebody takes over.
pub(crate) async fn run(folder: &Path, plan: &Plan, holder: &str) -> Result<Ended, Cause> {
    std::fs::create_dir_all(folder.join("checkpoints"))?;
    let store = LocalFileSystem::new_with_prefix(folder.join("checkpoints"))?.with_fsync(true);
    let checkpoints = Checkpoints::new(CheckpointParts {
        store: Arc::new(store),
        root: object_store::path::Path::default(),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(OsEntropy),
        spec: Spec::default(),
    });
    let connection = open(folder)?;
    connection.execute("INSERT INTO writers DEFAULT VALUES", [])?;
    let writer = connection.last_insert_rowid();
    let sink = Sqlite { connection: Arc::new(Mutex::new(connection)), writer };
    let spec = ProcessorSpec {
        holder: Name::new(holder)?,
        ttl: plan.ttl,
        mode: Mode::Wait { at_most: Duration::from_secs(600) },
        schedule: Schedule { interval: plan.interval, min_pause: Duration::ZERO, ..Schedule::default() },
        // Two generated partitions may run apart by as much as they like: none is ever idle.
        watermark: WatermarkSpec { idle_after: Duration::from_secs(3_600), ..WatermarkSpec::default() },
    };
    let source = Generated { records: plan.records, pause: plan.pause };
    let job = checkpoints.job(&name("windowed-totals"));
    Ok(process(&job, spec, source, Totals::default(), sink, std::future::pending()).await?)
}

/// What everybody sees in the folder.
pub(crate) fn read(folder: &Path) -> Result<Vec<Total>, Cause> {
    let connection = open(folder)?;
    let mut rows = connection.prepare("SELECT window_ms, key, total FROM totals ORDER BY window_ms, key")?;
    let totals = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)? as u64)))?;
    Ok(totals.collect::<Result<_, _>>()?)
}

/// What everybody must see in the end.
#[allow(dead_code, reason = "the test asks for it")]
pub(crate) fn expected(records: u64) -> Vec<Total> {
    let mut totals = std::collections::BTreeMap::new();
    for partition in 0..PARTITIONS {
        for offset in 0..records {
            let window = time_of(offset).div_euclid(WINDOW_MS) * WINDOW_MS;
            *totals.entry((window, key_of(Partition(partition), offset))).or_default() += offset;
        }
    }
    totals.into_iter().map(|((window, key), total)| (window, key, total)).collect()
}

fn name(text: &'static str) -> Name {
    Name::new(text).expect("it is a name")
}
