//! The first copy: every row of the published tables as of one snapshot, in ranges of keys, by a few workers. It can be cut at any
//! moment: what is left is copied in a later snapshot, and the state says which keys were copied in which. It never gives a
//! row twice, and never claims a range before its rows were given.
//!
//! A table that was truncated or rewritten since its copy began is copied anew, after a `Truncate`: then all of its rows are of one
//! snapshot again, and it is known for each later TRUNCATE whether the copy saw it.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use parking_lot::Mutex;
use tidegate_core::port::ChangeSourceError;
use tidegate_core::record::{Change, Operation};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;

use super::coverage::{Coverage, Interval, Key};
use super::lsn::Lsn;
use super::refusal::{driver, setup, unavailable, unreadable};
use super::rows;
use super::server::{Published, Server, files, get};
use super::state::{Copy, Snapshot, TableCopy};
use super::table::Table;
use crate::session::Link;

/// Bytes of JSON in a piece, roughly.
const PIECE_BYTES: usize = 1024 * 1024;
/// A range of keys is at least this large.
const RANGE_BYTES: i64 = 4 * 1024 * 1024;
/// Ranges of a table for each worker, so that none is idle long while another finishes.
const RANGES_A_WORKER: usize = 4;

/// Rows of one table.
pub(crate) struct Piece {
    pub(crate) table: Arc<Table>,
    /// Which keys they are, all of them; `None` = a table without a key, and not all of it.
    pub(crate) covers: Option<(Option<Key>, Option<Key>)>,
    /// Their places in the source are not set yet.
    pub(crate) changes: Vec<Change>,
}

/// A running copy. Dropped, it ends.
pub(crate) struct Copier {
    pieces: mpsc::Receiver<Result<Piece, ChangeSourceError>>,
    _workers: JoinSet<()>,
}

impl Copier {
    /// The next rows; `None` = all were given.
    pub(crate) async fn next(&mut self) -> Option<Result<Piece, ChangeSourceError>> {
        self.pieces.recv().await
    }
}

/// A connection that is closed at once when it is dropped: what runs on it is of no use any more.
struct Abandoned(Link);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// What is to be done, in a snapshot that is held.
pub(crate) struct Plan {
    leader: Abandoned,
    snapshot: String,
    jobs: VecDeque<Job>,
    /// The tables, all of them locked.
    pub(crate) published: Vec<Published>,
    /// Tables whose copied rows are void.
    pub(crate) restarted: Vec<Arc<Table>>,
}

/// A range of keys of a table.
struct Job {
    table: Arc<Table>,
    columns: String,
    source: String,
    conditions: Vec<String>,
    after: Option<Key>,
    to: Option<Key>,
}

/// Holds the snapshot `imported`, or one of now, and plans what `copy` lacks. `copy` is told the snapshot, `schemas` what the
/// tables look like.
pub(crate) async fn plan(
    server: &Server,
    imported: Option<&str>,
    copy: &mut Copy,
    schemas: &mut BTreeMap<u32, u64>,
) -> Result<Plan, ChangeSourceError> {
    let link = server.link().await?;
    let facts = server.facts(&link).await?;
    let published = server.published(&link, &facts).await?;
    let leader = Abandoned(server.link().await?);
    let import =
        imported.map_or_else(String::new, |name| format!("; SET TRANSACTION SNAPSHOT '{}'", name.replace('\'', "''")));
    let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{import}");
    leader.0.client.batch_execute(&begin).await.map_err(driver)?;
    if !published.is_empty() {
        // Before the snapshot is taken: PostgreSQL does not hide a TRUNCATE from older snapshots.
        leader.0.client.batch_execute(&lock(&published)).await.map_err(driver)?;
    }
    // The leader's first look takes its snapshot. Anybody else's might wait for a TRUNCATE that waits for the leader.
    let locked = server.published(&leader.0, &facts).await?;
    if files(&published) != files(&locked) {
        return Err(unavailable("a table was made, dropped or truncated at the moment that the copy began"));
    }
    let row = leader
        .0
        .client
        .query_one("select pg_catalog.pg_current_snapshot()::pg_catalog.text, pg_catalog.pg_export_snapshot()", &[])
        .await
        .map_err(driver)?;
    let (seen, snapshot): (String, String) = (get(&row, 0)?, get(&row, 1)?);
    let until = server.facts(&link).await?.log_end;
    let snapshot_of_copy = Snapshot::parse(&seen, until).ok_or_else(|| unreadable("a snapshot cannot be read"))?;

    let mut plan = Plan { leader, snapshot, jobs: VecDeque::new(), restarted: Vec::new(), published: Vec::new() };
    copy.tables.retain(|oid, _| published.iter().any(|of| of.oid == *oid));
    for of in &published {
        let (table, ordered) = server.table(&link, of).await?;
        let table = Arc::new(table);
        let key: Vec<Box<str>> = table.key.iter().map(|at| table.columns[*at].name.clone()).collect();
        if let Some(known) = copy.tables.get(&of.oid) {
            let done = known.covered.gaps().is_empty();
            let void = *known.files != *of.files || known.key != key || (key.is_empty() && !done && known.begun);
            if void {
                if known.begun {
                    plan.restarted.push(Arc::clone(&table));
                }
                copy.tables.remove(&of.oid);
            }
        }
        schemas.insert(of.oid, table.version);
        let known = copy.tables.entry(of.oid).or_insert_with(|| TableCopy {
            files: of.files.as_str().into(),
            key,
            begun: false,
            covered: Coverage::default(),
        });
        for (after, to) in known.covered.gaps() {
            plan.add(server, of, &table, ordered, after, to).await?;
        }
    }
    copy.drop_unused_snapshots();
    copy.snapshots.push(snapshot_of_copy);
    plan.published = published;
    Ok(plan)
}

impl Plan {
    /// Adds what lies between two keys, in ranges where an index gives it in order and it is large.
    async fn add(
        &mut self,
        server: &Server,
        of: &Published,
        table: &Arc<Table>,
        ordered: bool,
        after: Option<Key>,
        to: Option<Key>,
    ) -> Result<(), ChangeSourceError> {
        let columns = table.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ");
        let job = |after: Option<Key>, to: Option<Key>| Job {
            table: Arc::clone(table),
            columns: columns.clone(),
            source: of.from(),
            conditions: of.filter.iter().map(|filter| format!("({filter})")).collect(),
            after,
            to,
        };
        let whole = job(after.clone(), to.clone());
        let workers = server.change.copy_workers;
        let size = "select coalesce(pg_catalog.pg_relation_size($1::pg_catalog.oid), 0)";
        let bytes: i64 = get(&self.leader.0.client.query_one(size, &[&of.oid]).await.map_err(driver)?, 0)?;
        let ranges = (RANGES_A_WORKER * workers).min(usize::try_from(bytes / RANGE_BYTES).unwrap_or(0));
        if workers == 1 || ranges < 2 || !ordered || table.key.is_empty() {
            self.jobs.push_back(whole);
            return Ok(());
        }
        let mut from = after;
        for bound in whole.sample(&self.leader.0, bytes, ranges).await? {
            self.jobs.push_back(job(from.replace(bound.clone()), Some(bound)));
        }
        self.jobs.push_back(job(from, to));
        Ok(())
    }

    /// Lets the workers take the snapshot; from then on nothing else needs to hold it. The leader is one of them. Another one
    /// that does not get its locks at once is left out: it would wait for somebody who waits for the leader.
    pub(crate) async fn start(self, server: &Arc<Server>) -> Result<Copier, ChangeSourceError> {
        let mut links = vec![self.leader];
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'; {} NOWAIT",
            self.snapshot.replace('\'', "''"),
            lock(&self.published)
        );
        for _ in 1..server.change.copy_workers.min(self.jobs.len()) {
            let link = Abandoned(server.link().await?);
            match link.0.client.batch_execute(&begin).await {
                Ok(()) => links.push(link),
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => break,
                Err(error) => return Err(driver(error)),
            }
        }
        let (sender, pieces) = mpsc::channel(links.len());
        let jobs = Arc::new(Mutex::new(self.jobs));
        let mut workers = JoinSet::new();
        for link in links {
            let (jobs, sender, server) = (Arc::clone(&jobs), sender.clone(), Arc::clone(server));
            workers.spawn(async move {
                loop {
                    let job = jobs.lock().pop_front();
                    let Some(job) = job else { return };
                    if let Err(error) = job.run(&link.0, &server, &sender).await {
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                }
            });
        }
        Ok(Copier { pieces, _workers: workers })
    }
}

/// Keeps TRUNCATE and ALTER TABLE away.
fn lock(tables: &[Published]) -> String {
    let names: Vec<String> = tables.iter().map(Published::quoted).collect();
    format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "))
}

impl Job {
    /// The key's columns as they are ordered, and the type of a bound of each.
    fn ordering(&self) -> Vec<(String, &'static str)> {
        let expression = |at: &usize| {
            let column = &self.table.columns[*at];
            let name = quoted(&column.name);
            match column.type_oid {
                20 => (name, "int8"),
                21 => (name, "int2"),
                23 => (name, "int4"),
                26 => (name, "oid"),
                2950 => (name, "uuid"),
                25 | 1043 => (format!("{name} COLLATE \"C\""), "text"),
                // The text that the stream will have, too: a cast to text is another one for some types.
                _ => (format!("pg_catalog.format('%s', {name}) COLLATE \"C\""), "text"),
            }
        };
        self.table.key.iter().map(expression).collect()
    }

    /// The rows of the range.
    fn rows(&self, source: &str) -> String {
        let ordering = self.ordering();
        let list = ordering.iter().map(|(expression, _)| expression.as_str()).collect::<Vec<_>>().join(", ");
        let bound = |key: &Key| {
            let literal = |(text, (_, name)): (&str, &(String, &str))| {
                format!("'{}'::pg_catalog.{name}", text.replace('\'', "''"))
            };
            key.iter().map(|text| &**text).zip(&ordering).map(literal).collect::<Vec<_>>().join(", ")
        };
        let mut conditions = self.conditions.clone();
        conditions.extend(self.after.as_ref().map(|after| format!("ROW({list}) > ROW({})", bound(after))));
        conditions.extend(self.to.as_ref().map(|to| format!("ROW({list}) <= ROW({})", bound(to))));
        let mut query = format!("FROM {source}");
        if !conditions.is_empty() {
            query.push_str(" WHERE ");
            query.push_str(&conditions.join(" AND "));
        }
        if !list.is_empty() {
            query.push_str(" ORDER BY ");
            query.push_str(&list);
        }
        query
    }

    /// Keys that cut the range into about equal parts, from a sample of its blocks.
    async fn sample(&self, link: &Link, bytes: i64, ranges: usize) -> Result<Vec<Key>, ChangeSourceError> {
        let percent = (2e7 / bytes.max(1) as f64).clamp(0.0001, 100.0);
        let key = |at: &usize| format!("pg_catalog.format('%s', {})", quoted(&self.table.columns[*at].name));
        let keys = self.table.key.iter().map(key).collect::<Vec<_>>().join(", ");
        let rows = self.rows(&format!("{} TABLESAMPLE SYSTEM ({percent:.4})", self.source));
        let sample = link.client.query(&format!("SELECT ARRAY[{keys}] {rows}"), &[]).await.map_err(driver)?;
        let mut bounds: Vec<Key> = Vec::new();
        for part in 1..ranges {
            let Some(row) = sample.get(sample.len() * part / ranges) else { break };
            let bound: Key = get::<Vec<String>>(row, 0)?.into_iter().map(Into::into).collect();
            if bounds.last() != Some(&bound) && self.to.as_ref() != Some(&bound) {
                bounds.push(bound);
            }
        }
        Ok(bounds)
    }

    async fn run(
        mut self,
        link: &Link,
        server: &Server,
        sender: &mpsc::Sender<Result<Piece, ChangeSourceError>>,
    ) -> Result<(), ChangeSourceError> {
        let statement = format!("COPY (SELECT {} {}) TO STDOUT", self.columns, self.rows(&self.source));
        let row_bytes_max = usize::try_from(server.postgres.max_row_bytes.get()).unwrap_or(usize::MAX);
        let mut lines = pin!(link.client.copy_out(&statement).await.map_err(driver)?);
        let (mut changes, mut bytes) = (Vec::new(), 0);
        while let Some(line) = lines.next().await {
            let line = line.map_err(driver)?;
            if line.len() > row_bytes_max {
                let problem =
                    format!("a row of {} has {} bytes: raise the source's max_row_bytes", self.table.name, line.len());
                return Err(setup("change_too_large", problem));
            }
            let cells = rows::cells(&line).map_err(unreadable)?;
            let values = if self.table.columns.is_empty() { Vec::new() } else { rows::values(&cells) };
            let row = self.table.row(&values, None).map_err(unreadable)?;
            let texts = self.table.key_texts(&values, None).map_err(unreadable)?;
            let key = self.table.key(&texts).map_err(unreadable)?;
            bytes += row.json.len();
            changes.push(Change {
                operation: Operation::Insert,
                key,
                value: row.json,
                before: None,
                headers: Some(self.table.copy_headers()),
                event_time: None,
                source: None,
            });
            if changes.len() >= server.change.copy_rows || bytes >= PIECE_BYTES {
                let covers = (!texts.is_empty()).then(|| {
                    let to: Key = texts.iter().map(|text| (*text).into()).collect();
                    (self.after.replace(to.clone()), Some(to))
                });
                let piece = Piece { table: Arc::clone(&self.table), covers, changes: std::mem::take(&mut changes) };
                bytes = 0;
                if sender.send(Ok(piece)).await.is_err() {
                    return Ok(());
                }
            }
        }
        if self.after.is_some() && self.after == self.to {
            return Ok(());
        }
        let piece = Piece { table: self.table, covers: Some((self.after, self.to)), changes };
        let _ = sender.send(Ok(piece)).await;
        Ok(())
    }
}

impl Copy {
    /// A copy of which nothing is there.
    pub(crate) fn new(start: Lsn) -> Self {
        Self { done: false, start, rows: 0, snapshots: Vec::new(), tables: BTreeMap::new() }
    }

    /// Notes rows that were given, in the snapshot that is held now.
    pub(crate) fn note(&mut self, piece: &Piece) {
        self.rows += piece.changes.len() as u64;
        let Some(snapshot) = self.snapshots.len().checked_sub(1) else { return };
        let Some(of_table) = self.tables.get_mut(&piece.table.oid) else { return };
        of_table.begun |= !piece.changes.is_empty();
        if let Some((after, to)) = piece.covers.clone() {
            of_table.covered.add(&piece.table.order, Interval { after, to, snapshot });
        }
    }

    /// How many tables are done.
    pub(crate) fn tables_done(&self) -> usize {
        self.tables.values().filter(|table| table.covered.gaps().is_empty()).count()
    }

    /// Snapshots at the end that no row was copied in: those of copies that were cut at once.
    fn drop_unused_snapshots(&mut self) {
        let used = self.tables.values().flat_map(|table| &table.covered.0).map(|part| part.snapshot + 1).max();
        self.snapshots.truncate(used.unwrap_or(0));
    }
}

fn quoted(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}
