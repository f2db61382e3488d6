//! One run of a statement: fetches of bounded size from its cursor, each row pushed while it arrives. Rows of a fetch are
//! never collected: while the sink is full nothing is read, and TCP holds the server back.

use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::StreamExt;
use tidegate_core::port::{RowAbandoned, RowSink, SinkError, SinkState, SourceError};
use tokio::sync::watch;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::error::Prefix;
use crate::session::Session;
use crate::shape::Shape;
use crate::value::{Scratch, write_cell};

/// What a fetch should hold.
const FETCH_BYTES: usize = 256 * 1024;
const FETCH_ROWS_MAX: usize = 10_000;
/// A fetch grows at most by this factor: the first rows may be smaller than those that follow.
const FETCH_GROWTH: usize = 8;
/// The server sends the rows of a fetch when it has 8 KiB of them or all: so a fetch should not take longer than this to
/// compute, or the rows of a slow query would come late.
const FETCH_TIME: Duration = Duration::from_millis(20);

/// Runs `session.prepared`, whose cursor is at its first row, to the end.
pub(crate) async fn run(
    session: &mut Session,
    mut sink: Box<dyn RowSink>,
    closed: &mut watch::Receiver<bool>,
) -> Result<(), SourceError> {
    let prepared = session.prepared.as_mut().ok_or(SourceError::Internal(None))?;
    prepared.cursor_is_fresh = false;
    let shapes = std::sync::Arc::clone(&prepared.shapes);
    let mut scratch = Scratch::default();
    let mut row = 0_u64;
    let mut count = 1;
    loop {
        if *closed.borrow() {
            return Err(SourceError::SnapshotLost(None));
        }
        let fetched = fetch(session, count, &shapes, &mut scratch, &mut row, &mut *sink, closed).await?;
        if fetched.rows < count {
            return Ok(());
        }
        count = next_count(&fetched);
    }
}

struct Fetched {
    rows: usize,
    bytes: usize,
    waited: Duration,
}

/// How many rows the next fetch asks for.
fn next_count(last: &Fetched) -> usize {
    let by_bytes = last.rows.saturating_mul(FETCH_BYTES) / last.bytes.max(1);
    let by_time = if last.waited > FETCH_TIME {
        let share = FETCH_TIME.as_secs_f64() / last.waited.as_secs_f64();
        // Less than `rows`, and not below 0: the cast loses only the fraction.
        (last.rows as f64 * share) as usize
    } else {
        last.rows.saturating_mul(FETCH_GROWTH)
    };
    by_bytes.min(by_time).clamp(1, FETCH_ROWS_MAX)
}

async fn fetch(
    session: &mut Session,
    count: usize,
    shapes: &[Shape],
    scratch: &mut Scratch,
    row_number: &mut u64,
    sink: &mut dyn RowSink,
    closed: &mut watch::Receiver<bool>,
) -> Result<Fetched, SourceError> {
    let mut fetched = Fetched { rows: 0, bytes: 0, waited: Duration::ZERO };
    session.sent();
    let answers = session.link().client.simple_query_raw(&format!("FETCH FORWARD {count} FROM tidegate_rows")).await;
    let mut answers = pin!(answers.map_err(|error| session.failure(error, Prefix::NONE))?);
    loop {
        let answer = match futures::poll!(answers.next()) {
            Poll::Ready(answer) => answer,
            Poll::Pending => {
                let since = Instant::now();
                let answer = tokio::select! {
                    answer = answers.next() => answer,
                    _ = closed.wait_for(|closed| *closed) => return Err(SourceError::SnapshotLost(None)),
                };
                fetched.waited += since.elapsed();
                answer
            }
        };
        match answer {
            None => break,
            Some(Ok(SimpleQueryMessage::Row(row))) => {
                fetched.rows += 1;
                let state = push(sink, &row, shapes, scratch, *row_number, &mut fetched.bytes)?;
                *row_number += 1;
                if state == SinkState::Full {
                    tokio::select! {
                        ready = sink.ready() => ready?,
                        _ = closed.wait_for(|closed| *closed) => return Err(SourceError::SnapshotLost(None)),
                    }
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                let bound = &session.link().bound;
                if bound.take_exceeded() {
                    return Err(SinkError::RowTooLarge { row: *row_number, limit_bytes: bound.limit_bytes() }.into());
                }
                if error.as_db_error().is_some() || session.link().client.is_closed() {
                    session.answered();
                }
                return Err(session.failure(error, crate::describe::DECLARE_PREFIX));
            }
        }
    }
    session.answered();
    Ok(fetched)
}

fn push(
    sink: &mut dyn RowSink,
    row: &SimpleQueryRow,
    shapes: &[Shape],
    scratch: &mut Scratch,
    row_number: u64,
    bytes: &mut usize,
) -> Result<SinkState, SourceError> {
    let mut unreadable = None;
    let pushed = sink.push(&mut |out| {
        for (column, shape) in shapes.iter().enumerate() {
            let written = match row.try_get(column) {
                Ok(text) => {
                    *bytes += text.map_or(0, str::len);
                    write_cell(out, shape, text, scratch)
                }
                // The server checks that too (22021); this is for one that does not.
                Err(_) => Err("its bytes are not UTF-8"),
            };
            if let Err(reason) = written {
                unreadable = Some(SourceError::Unreadable { column, row: row_number, reason: reason.into() });
                return Err(RowAbandoned);
            }
        }
        Ok(())
    });
    match (pushed, unreadable) {
        (_, Some(unreadable)) => Err(unreadable),
        (pushed, None) => Ok(pushed?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rows: usize, bytes: usize, waited_ms: u64) -> usize {
        next_count(&Fetched { rows, bytes, waited: Duration::from_millis(waited_ms) })
    }

    #[test]
    fn a_fetch_grows_towards_its_bytes_and_shrinks_where_rows_come_slowly() {
        assert_eq!(count(1, 10, 0), 8, "at most eight times the last");
        assert_eq!(count(4_096, 40_960, 0), 10_000, "never more than the bound");
        assert_eq!(count(64, 64 * 4_096, 0), 64, "as many as fill 256 KiB");
        assert_eq!(count(64, 64 * 1_048_576, 0), 1, "large rows one by one");
        assert_eq!(count(100, 1_000, 200), 10, "slow rows in smaller fetches");
        assert_eq!(count(1, 8, 1_000), 1);
        assert_eq!(count(1, 0, 0), 8, "rows without a byte");
    }
}
