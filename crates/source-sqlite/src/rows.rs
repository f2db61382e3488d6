//! The loop that steps a statement and pushes its rows. It never holds more than SQLite's own current row.

use std::sync::Arc;

use futures::executor::block_on;
use futures::future::{Either, select};
use rusqlite::types::ValueRef;
use tidegate_core::port::{Cell, RowAbandoned, RowSink, SinkError, SinkState, SourceError, Statement};

use crate::error::at_run;
use crate::session::Session;
use crate::statement::{bind, denied, prepare};
use crate::stop::Stop;

/// Runs the statement from its first row. Blocks its thread: in SQLite, and while the sink is full.
pub(crate) fn run(
    session: &Session,
    statement: &Statement,
    sink: &mut dyn RowSink,
    stop: &Arc<Stop>,
) -> Result<(), SourceError> {
    let mut prepared = prepare(session, &statement.sql)?.prepared;
    bind(&mut prepared, &statement.parameters)?;
    let columns = prepared.column_count();
    let mut rows = prepared.raw_query();
    let mut pushed = 0;
    loop {
        // Looked at before the first step too: a run that nobody waits for any more does not begin.
        if stop.is_set() {
            return Err(SourceError::SnapshotLost(None));
        }
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(()),
            Err(_) if stop.is_set() => return Err(SourceError::SnapshotLost(None)),
            Err(error) => {
                let denied = denied(session, &error, &statement.sql);
                return Err(denied.unwrap_or_else(|| at_run(error, &statement.sql, pushed, session.max_value_bytes)));
            }
        };
        let state = sink.push(&mut |writer| {
            for column in 0..columns {
                writer.cell(cell(row.get_ref(column).map_err(|_| RowAbandoned)?));
            }
            Ok(())
        });
        match state {
            Ok(SinkState::Ready) => {}
            Ok(SinkState::Full) => wait(sink, stop)?,
            Err(SinkError::Abandoned) => {
                let reason = "SQLite gave fewer columns than it told".into();
                return Err(SourceError::Unreadable { column: 0, row: pushed, reason });
            }
            Err(error) => return Err(error.into()),
        }
        pushed += 1;
    }
}

/// Parks the thread until there is room or the run is stopped.
fn wait(sink: &mut dyn RowSink, stop: &Stop) -> Result<(), SourceError> {
    let stopped = std::pin::pin!(stop.wait());
    match block_on(select(sink.ready(), stopped)) {
        Either::Left((ready, _)) => Ok(ready?),
        Either::Right(_) => Err(SourceError::SnapshotLost(None)),
    }
}

fn cell(value: ValueRef<'_>) -> Cell<'_> {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(value) => Cell::Integer(value),
        ValueRef::Real(value) => Cell::Real(value),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Cell::Text(text),
            Err(_) => Cell::InvalidText(bytes),
        },
        ValueRef::Blob(bytes) => Cell::Blob(bytes),
    }
}
