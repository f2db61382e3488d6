//! A query source in memory that follows a script: rows made on demand, gates, faults, pinned data versions, counters. It
//! never reads the SQL; a text selects a script and that is all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_core::id::SnapshotId;
use tidegate_core::port::{
    Catalogue, CatalogueQuery, Column, ColumnType, Description, Dialect, QuerySnapshot, QuerySource, RelationFacts,
    RelationName, RowSink, SinkState, SourceError, Statement, UniqueKey, Volatility,
};
use tokio::sync::watch;

use crate::cell::{OwnedCell, OwnedRow};
use crate::wait::within;

/// Makes the error of a scripted fault: a `SourceError` cannot be cloned.
pub type Fault = Arc<dyn Fn() -> SourceError + Send + Sync>;

type MakeRow = Arc<dyn Fn(u64, u64) -> OwnedRow + Send + Sync>;

/// Holds a source until it is opened. Clones share one gate; it can be closed again.
#[derive(Debug, Clone)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    /// A gate that is shut.
    #[must_use]
    pub fn closed() -> Self {
        Self { open: Arc::new(watch::Sender::new(false)) }
    }

    /// Lets everybody through from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Shuts it again.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Waits until it is open.
    pub async fn pass(&self) {
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

/// What a statement gives.
#[derive(Clone)]
pub struct Script {
    columns: Vec<Column>,
    rows: u64,
    make_row: MakeRow,
    gates: Vec<(u64, Gate)>,
    fail: Option<(u64, Fault)>,
    refuse: Option<Fault>,
}

impl Script {
    /// `rows` rows (any number: they are made one by one), each made from (data version, row number from 0).
    pub fn new(
        columns: Vec<Column>,
        rows: u64,
        make_row: impl Fn(u64, u64) -> OwnedRow + Send + Sync + 'static,
    ) -> Self {
        Self { columns, rows, make_row: Arc::new(make_row), gates: Vec::new(), fail: None, refuse: None }
    }

    /// The table `item(id integer, name text, version integer)`: ids from 1, the name `item <id>`, the data version.
    #[must_use]
    pub fn numbers(rows: u64) -> Self {
        let columns = vec![
            column("id", ColumnType::Integer),
            column("name", ColumnType::Text),
            column("version", ColumnType::Integer),
        ];
        Self::new(columns, rows, |version, row| {
            let id = row + 1;
            vec![
                OwnedCell::Integer(id.cast_signed()),
                OwnedCell::text(&format!("item {id}")),
                OwnedCell::Integer(version.cast_signed()),
            ]
        })
    }

    /// Holds every run before it pushes row `row` (from 0) until the gate is open. Several gates may be set.
    #[must_use]
    pub fn hold_at(mut self, row: u64, gate: &Gate) -> Self {
        self.gates.push((row, gate.clone()));
        self
    }

    /// Ends every run with an error instead of row `row` (from 0); with `row` = the number of rows, after the last.
    #[must_use]
    pub fn fail_at(mut self, row: u64, fault: impl Fn() -> SourceError + Send + Sync + 'static) -> Self {
        self.fail = Some((row, Arc::new(fault)));
        self
    }

    /// Refuses the statement when it is described and when it is run.
    #[must_use]
    pub fn refuse(mut self, fault: impl Fn() -> SourceError + Send + Sync + 'static) -> Self {
        self.refuse = Some(Arc::new(fault));
        self
    }

    /// The rows that a run on this data version gives, whole.
    #[must_use]
    pub fn expected(&self, version: u64) -> Vec<OwnedRow> {
        (0..self.rows).map(|row| (self.make_row)(version, row)).collect()
    }
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("rows", &self.rows).field("columns", &self.columns.len()).finish_non_exhaustive()
    }
}

/// A column that is never NULL and whose native type is the portable one's name.
#[must_use]
pub fn column(name: &str, kind: ColumnType) -> Column {
    Column { name: name.into(), kind, nullable: false, native_type: format!("{kind:?}").to_lowercase().into() }
}

/// A [`QuerySource`] that follows scripts. Clones share one source.
#[derive(Clone)]
pub struct ScriptedSource {
    shared: Arc<Shared>,
}

struct Shared {
    scripts: Mutex<HashMap<String, Script>>,
    default: Script,
    catalogue: Mutex<Catalogue>,
    faults: Mutex<Faults>,
    version: AtomicU64,
    dialect: Dialect,
    counters: watch::Sender<Counters>,
}

struct Faults {
    open: Option<Fault>,
    ping: Option<Fault>,
    max_snapshots: usize,
}

/// What has happened at a source so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Snapshots that were opened.
    pub opened: u64,
    /// Snapshots that were closed or dropped.
    pub closed: u64,
    /// Runs that were started.
    pub runs: u64,
    /// Runs that go on now.
    pub live_runs: u64,
    /// Rows that were pushed, over all runs.
    pub rows: u64,
}

impl ScriptedSource {
    /// A source that follows `script` for every text that no other script was given for. Its catalogue has the table
    /// `item(id, name, version)` with the unique key `id`, and the function `random` as volatile.
    #[must_use]
    pub fn new(script: Script) -> Self {
        Self::with_dialect(script, Dialect::Sqlite)
    }

    /// As [`Self::new`], speaking another dialect.
    #[must_use]
    pub fn with_dialect(script: Script, dialect: Dialect) -> Self {
        let item = RelationFacts {
            is_table: true,
            columns: vec!["id".into(), "name".into(), "version".into()],
            unique_keys: vec![UniqueKey { columns: vec!["id".into()] }],
        };
        let catalogue = Catalogue {
            relations: vec![(RelationName { schema: None, name: "item".into() }, item)],
            functions: vec![("random".into(), Volatility::Volatile), ("lower".into(), Volatility::Immutable)],
        };
        let faults = Faults { open: None, ping: None, max_snapshots: usize::MAX };
        Self {
            shared: Arc::new(Shared {
                scripts: Mutex::default(),
                default: script,
                catalogue: Mutex::new(catalogue),
                faults: Mutex::new(faults),
                version: AtomicU64::new(1),
                dialect,
                counters: watch::Sender::new(Counters::default()),
            }),
        }
    }

    /// Follows `script` for exactly this text from now on.
    pub fn on(&self, sql: &str, script: Script) {
        self.shared.scripts.lock().insert(sql.to_owned(), script);
    }

    /// Adds a relation to the catalogue, or replaces it.
    pub fn set_relation(&self, name: &str, facts: RelationFacts) {
        let name = RelationName { schema: None, name: name.into() };
        let mut catalogue = self.shared.catalogue.lock();
        catalogue.relations.retain(|(known, _)| *known != name);
        catalogue.relations.push((name, facts));
    }

    /// Adds a function to the catalogue, or replaces it.
    pub fn set_function(&self, name: &str, volatility: Volatility) {
        let mut catalogue = self.shared.catalogue.lock();
        catalogue.functions.retain(|(known, _)| &**known != name);
        catalogue.functions.push((name.into(), volatility));
    }

    /// Fails every `open` from now on; `None` heals it.
    pub fn fail_open(&self, fault: Option<Fault>) {
        self.shared.faults.lock().open = fault;
    }

    /// Fails every `ping` from now on; `None` heals it.
    pub fn fail_ping(&self, fault: Option<Fault>) {
        self.shared.faults.lock().ping = fault;
    }

    /// Refuses to open more snapshots at a time than this.
    pub fn set_max_snapshots(&self, limit: usize) {
        self.shared.faults.lock().max_snapshots = limit;
    }

    /// "Commits": snapshots opened from now on see the next data version, those that are open keep theirs.
    pub fn commit(&self) -> u64 {
        self.shared.version.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The data version that a snapshot opened now would see; 1 at the start.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.version.load(Ordering::SeqCst)
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *self.shared.counters.borrow()
    }

    /// Runs that go on now.
    #[must_use]
    pub fn live_runs(&self) -> u64 {
        self.counters().live_runs
    }

    /// Snapshots that are open now.
    #[must_use]
    pub fn live_snapshots(&self) -> u64 {
        let counters = self.counters();
        counters.opened - counters.closed
    }

    /// Waits until what has happened so far satisfies `condition`.
    ///
    /// # Panics
    /// When that does not happen within the patience of a test.
    pub async fn wait_for(&self, what: &str, condition: impl FnMut(&Counters) -> bool) -> Counters {
        let mut counters = self.shared.counters.subscribe();
        *within(what, counters.wait_for(condition)).await.expect("the source holds the sender")
    }
}

impl std::fmt::Debug for ScriptedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedSource").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

impl Shared {
    fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.counters.send_modify(change);
    }

    fn script(&self, statement: &Statement) -> Result<Script, SourceError> {
        let script = self.scripts.lock().get(&*statement.sql).cloned().unwrap_or_else(|| self.default.clone());
        match &script.refuse {
            Some(fault) => Err(fault()),
            None => Ok(script),
        }
    }
}

#[async_trait]
impl QuerySource for ScriptedSource {
    fn dialect(&self) -> Dialect {
        self.shared.dialect
    }

    async fn open(&self) -> Result<Arc<dyn QuerySnapshot>, SourceError> {
        let (fault, limit) = {
            let faults = self.shared.faults.lock();
            (faults.open.clone(), faults.max_snapshots)
        };
        if let Some(fault) = fault {
            return Err(fault());
        }
        let mut number = None;
        self.shared.count(|counters| {
            if counters.opened - counters.closed < limit as u64 {
                counters.opened += 1;
                number = Some(counters.opened);
            }
        });
        let number = number.ok_or(SourceError::ConnectionsExhausted { limit })?;
        Ok(Arc::new(ScriptedSnapshot {
            id: SnapshotId::new(format!("scripted:{number}")),
            version: self.version(),
            shared: Arc::clone(&self.shared),
            closed: watch::Sender::new(false),
            running: tokio::sync::Mutex::new(()),
        }))
    }

    async fn ping(&self) -> Result<(), SourceError> {
        let fault = self.shared.faults.lock().ping.clone();
        fault.map_or(Ok(()), |fault| Err(fault()))
    }
}

struct ScriptedSnapshot {
    id: SnapshotId,
    version: u64,
    shared: Arc<Shared>,
    closed: watch::Sender<bool>,
    running: tokio::sync::Mutex<()>,
}

impl ScriptedSnapshot {
    fn end(&self) {
        if !self.closed.send_replace(true) {
            self.shared.count(|counters| counters.closed += 1);
        }
    }

    fn check_open(&self) -> Result<(), SourceError> {
        if *self.closed.borrow() { Err(SourceError::SnapshotLost(None)) } else { Ok(()) }
    }

    async fn run(&self, script: &Script, mut sink: Box<dyn RowSink>) -> Result<(), SourceError> {
        for row in 0..=script.rows {
            for (_, gate) in script.gates.iter().filter(|(at, _)| *at == row) {
                gate.pass().await;
            }
            if let Some((_, fault)) = script.fail.as_ref().filter(|(at, _)| *at == row) {
                return Err(fault());
            }
            if row == script.rows {
                break;
            }
            let cells = (script.make_row)(self.version, row);
            let state = sink.push(&mut |writer| {
                cells.iter().for_each(|cell| writer.cell(cell.borrow()));
                Ok(())
            })?;
            self.shared.count(|counters| counters.rows += 1);
            if state == SinkState::Full {
                sink.ready().await?;
            }
            if row % 64 == 63 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}

impl Drop for ScriptedSnapshot {
    fn drop(&mut self) {
        self.end();
    }
}

/// Counts a run for as long as its future lives.
struct LiveRun<'a>(&'a Shared);

impl Drop for LiveRun<'_> {
    fn drop(&mut self) {
        self.0.count(|counters| counters.live_runs -= 1);
    }
}

#[async_trait]
impl QuerySnapshot for ScriptedSnapshot {
    fn id(&self) -> &SnapshotId {
        &self.id
    }

    async fn describe(&self, statement: &Statement) -> Result<Description, SourceError> {
        self.check_open()?;
        Ok(Description { columns: self.shared.script(statement)?.columns })
    }

    async fn catalogue(&self, query: &CatalogueQuery) -> Result<Catalogue, SourceError> {
        self.check_open()?;
        let known = self.shared.catalogue.lock().clone();
        Ok(Catalogue {
            relations: known.relations.into_iter().filter(|(name, _)| query.relations.contains(name)).collect(),
            functions: known.functions.into_iter().filter(|(name, _)| query.functions.contains(name)).collect(),
        })
    }

    async fn stream(&self, statement: &Statement, sink: Box<dyn RowSink>) -> Result<(), SourceError> {
        let _one_at_a_time = self.running.lock().await;
        self.check_open()?;
        let script = self.shared.script(statement)?;
        self.shared.count(|counters| {
            counters.runs += 1;
            counters.live_runs += 1;
        });
        let _live = LiveRun(&self.shared);
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(SourceError::SnapshotLost(None)),
            outcome = self.run(&script, sink) => outcome,
        }
    }

    async fn close(&self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::collect_sink;
    use crate::wait::block_on;

    fn statement(sql: &str) -> Statement {
        Statement { sql: sql.into(), parameters: Vec::new() }
    }

    #[test]
    fn a_snapshot_keeps_the_version_that_it_opened_with() {
        block_on(async {
            let script = Script::numbers(3);
            let source = ScriptedSource::new(script.clone());
            let old = source.open().await.unwrap();
            source.commit();
            let new = source.open().await.unwrap();
            for (snapshot, version) in [(&old, 1), (&new, 2), (&old, 1)] {
                let (sink, rows) = collect_sink(10);
                snapshot.stream(&statement("x"), Box::new(sink)).await.unwrap();
                assert_eq!(rows.drain(), script.expected(version));
            }
            old.close().await;
            old.close().await;
            drop(new);
            assert_eq!(source.live_snapshots(), 0);
            assert_eq!(source.counters().runs, 3);
        });
    }

    #[test]
    fn a_fault_comes_at_its_row_and_nowhere_else() {
        block_on(async {
            let source = ScriptedSource::new(Script::numbers(3));
            source.on("bad", Script::numbers(3).fail_at(2, || SourceError::SnapshotLost(None)));
            let snapshot = source.open().await.unwrap();
            let (sink, rows) = collect_sink(10);
            let outcome = snapshot.stream(&statement("bad"), Box::new(sink)).await;
            assert!(matches!(outcome, Err(SourceError::SnapshotLost(None))));
            assert_eq!(rows.pushed(), 2);
            let (sink, rows) = collect_sink(10);
            snapshot.stream(&statement("good"), Box::new(sink)).await.unwrap();
            assert_eq!(rows.pushed(), 3);
        });
    }

    #[test]
    fn a_dropped_run_is_counted_as_ended_and_the_next_one_may_start() {
        block_on(async {
            let gate = Gate::closed();
            let source = ScriptedSource::new(Script::numbers(3).hold_at(1, &gate));
            let snapshot = source.open().await.unwrap();
            let (sink, rows) = collect_sink(10);
            let statement = statement("x");
            let mut run = snapshot.stream(&statement, Box::new(sink));
            assert!(futures::poll!(&mut run).is_pending());
            assert_eq!((rows.pushed(), source.live_runs()), (1, 1));
            drop(run);
            assert_eq!(source.live_runs(), 0);
            gate.open();
            let (sink, rows) = collect_sink(10);
            snapshot.stream(&statement, Box::new(sink)).await.unwrap();
            assert_eq!(rows.pushed(), 3);
        });
    }
}
