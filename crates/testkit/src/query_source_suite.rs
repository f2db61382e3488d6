//! The promises of the port `QuerySource`, one function each. Every source runs all of them; no source-specific case is
//! here, and no promise waits for a time to pass.

mod run;
#[cfg(test)]
mod scripted_world;
mod snapshot;
mod statement;

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::port::{Parameter, QuerySnapshot, QuerySource, SourceError, Statement};

use crate::cell::{OwnedCell, OwnedRow};
use crate::sink::collect_sink;
use crate::wait::within;

pub use run::*;
pub use snapshot::*;
pub use statement::*;

/// A fresh database of one kind with one known table, and the kind's own spellings.
///
/// The table is `item(id integer primary key, name text not null, n integer)` (64 bits) with the rows 1 to `rows`:
/// `id`, `'item <id>'`, `id * 10`; for every `id` that 7 divides `n` is NULL.
#[async_trait]
pub trait QuerySourceWorld: Sized + Send + Sync + 'static {
    /// How many snapshots [`Self::source`] may hold at a time; at least 2.
    const MAX_SNAPSHOTS: usize;

    /// A statement that reads, gives no row for at least a minute, and no error.
    const ENDLESS: &'static str;

    /// Statements that would write, or change the session or its transaction, each refused as read-only.
    const WRITES: &'static [&'static str];

    /// How the parameter with this number (from 1) is spelled.
    fn parameter(number: usize) -> String;

    /// Makes the database; `None` when this machine has no server of the kind (the world says so itself, by name).
    async fn fresh(rows: u64) -> Option<Self>;

    /// The source of this database; the same one for every call.
    fn source(&self) -> Arc<dyn QuerySource>;

    /// Runs a statement outside of the source and commits it.
    async fn write(&self, sql: &str);
}

/// Makes one test a promise. The world's type is the argument; nothing needs to be imported.
#[macro_export]
macro_rules! query_source_suite {
    ($world:ty) => {
        $crate::query_source_suite! { @tests $world,
            rows_come_whole_and_in_order
            what_commits_after_open_is_never_seen
            two_snapshots_are_independent
            a_snapshot_outlives_a_change_of_the_table
            a_full_sink_stops_the_source
            a_dropped_run_stops_and_the_next_run_gives_the_same_rows
            a_dropped_run_stops_even_before_its_first_row
            runs_on_one_snapshot_take_turns
            a_closed_reader_ends_the_run
            a_row_that_is_too_large_ends_the_run
            a_running_query_does_not_block_the_runtime
            close_is_idempotent_and_ends_the_snapshot
            close_ends_a_run_that_goes_on
            connections_are_bounded_and_given_back
            a_dropped_snapshot_gives_its_connection_back
            a_source_answers_a_ping
            a_statement_that_writes_is_refused_and_nothing_is_written
            several_statements_are_refused
            a_text_without_a_statement_is_refused
            a_syntax_error_is_told_from_a_refusal
            an_unknown_table_is_refused
            the_number_of_parameters_is_checked
            parameters_are_bound_as_data
            describe_gives_the_columns_without_running
            a_column_name_given_twice_gives_two_cells
            a_refused_statement_leaves_the_snapshot_usable
        }
    };
    (@tests $world:ty, $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                $crate::block_on($crate::query_source_suite::$promise::<$world>());
            }
        )*
    };
}

/// A statement without parameters.
#[must_use]
pub fn statement(sql: &str) -> Statement {
    Statement { sql: sql.into(), parameters: Vec::new() }
}

/// A statement with parameters.
#[must_use]
pub fn statement_with(sql: &str, parameters: Vec<Parameter>) -> Statement {
    Statement { sql: sql.into(), parameters }
}

/// The row of the table `item` with this id, as a fresh database has it.
#[must_use]
pub fn item(id: i64) -> OwnedRow {
    let n = if id % 7 == 0 { OwnedCell::Null } else { OwnedCell::Integer(id * 10) };
    vec![OwnedCell::Integer(id), OwnedCell::text(&format!("item {id}")), n]
}

/// All rows of a fresh table `item`.
#[must_use]
pub fn items(rows: i64) -> Vec<OwnedRow> {
    (1..=rows).map(item).collect()
}

/// The statement that reads them.
pub const ALL: &str = "select id, name, n from item order by id";

/// All rows of a statement; for results that fit into memory.
pub async fn rows(snapshot: &dyn QuerySnapshot, statement: &Statement) -> Result<Vec<OwnedRow>, SourceError> {
    let (sink, handle) = collect_sink(usize::MAX);
    within("a run", snapshot.stream(statement, Box::new(sink))).await?;
    Ok(handle.drain())
}

async fn open(source: &dyn QuerySource) -> Arc<dyn QuerySnapshot> {
    within("a snapshot", source.open()).await.expect("a fresh source opens a snapshot")
}

async fn all(snapshot: &dyn QuerySnapshot) -> Vec<OwnedRow> {
    rows(snapshot, &statement(ALL)).await.expect("the table can be read")
}

/// What a statement is refused with, the same when it is described and when it is run.
async fn refusal(snapshot: &dyn QuerySnapshot, statement: &Statement) -> SourceError {
    let described = within("a description", snapshot.describe(statement)).await;
    let Err(run) = rows(snapshot, statement).await else { panic!("was run: {}", statement.sql) };
    let Err(described) = described else { panic!("was described, then refused with {run}: {}", statement.sql) };
    assert_eq!(
        std::mem::discriminant(&described),
        std::mem::discriminant(&run),
        "described: {described}; run: {run}: {}",
        statement.sql
    );
    run
}

/// Makes the world, or ends the promise early on a machine that cannot.
macro_rules! fresh {
    ($world:ty, $rows:expr) => {
        match <$world>::fresh($rows).await {
            Some(world) => world,
            None => return,
        }
    };
}
use fresh;
