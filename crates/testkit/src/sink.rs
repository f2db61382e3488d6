//! A sink that keeps rows and shows how it was treated. It never forgets that somebody pushed beyond its capacity.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_core::port::{Cell, CellWriter, RowAbandoned, RowSink, SinkError, SinkState};
use tokio::sync::watch;

use crate::cell::OwnedRow;
use crate::wait::within;

/// A sink that holds up to `capacity` rows (and one more a push that ignores `Full`), with the handle of its reader.
#[must_use]
pub fn collect_sink(capacity: usize) -> (CollectSink, CollectHandle) {
    collect_sink_with(capacity, u64::MAX)
}

/// As [`collect_sink`], with a bound on the bytes of a row, beyond which it is [`SinkError::RowTooLarge`].
#[must_use]
pub fn collect_sink_with(capacity: usize, row_max_bytes: u64) -> (CollectSink, CollectHandle) {
    let shared = Arc::new(Shared {
        rows: Mutex::new(Vec::new()),
        state: watch::Sender::new(State::default()),
        capacity,
        row_max_bytes,
    });
    (CollectSink { shared: Arc::clone(&shared) }, CollectHandle { shared })
}

#[derive(Debug)]
struct Shared {
    rows: Mutex<Vec<OwnedRow>>,
    state: watch::Sender<State>,
    capacity: usize,
    row_max_bytes: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    held: usize,
    pushed: u64,
    overfull: u64,
    most_held: usize,
    closed: bool,
    sink_gone: bool,
}

/// The source's side.
#[derive(Debug)]
pub struct CollectSink {
    shared: Arc<Shared>,
}

/// The reader's side. When it is dropped, the sink is closed.
#[derive(Debug)]
pub struct CollectHandle {
    shared: Arc<Shared>,
}

struct Collect(OwnedRow);

impl CellWriter for Collect {
    fn cell(&mut self, cell: Cell<'_>) {
        self.0.push(cell.into());
    }
}

#[async_trait]
impl RowSink for CollectSink {
    fn push(
        &mut self,
        fill: &mut dyn FnMut(&mut dyn CellWriter) -> Result<(), RowAbandoned>,
    ) -> Result<SinkState, SinkError> {
        let State { closed, pushed, .. } = *self.shared.state.borrow();
        if closed {
            return Err(SinkError::Closed);
        }
        let mut row = Collect(OwnedRow::new());
        fill(&mut row).map_err(|RowAbandoned| SinkError::Abandoned)?;
        if row.0.iter().map(|cell| cell.len_bytes() as u64).sum::<u64>() > self.shared.row_max_bytes {
            return Err(SinkError::RowTooLarge { row: pushed, limit_bytes: self.shared.row_max_bytes });
        }
        let mut rows = self.shared.rows.lock();
        rows.push(row.0);
        let held = rows.len();
        self.shared.state.send_modify(|state| {
            state.overfull += u64::from(held > self.shared.capacity);
            state.held = held;
            state.most_held = state.most_held.max(held);
            state.pushed += 1;
        });
        Ok(if held >= self.shared.capacity { SinkState::Full } else { SinkState::Ready })
    }

    async fn ready(&mut self) -> Result<(), SinkError> {
        let mut state = self.shared.state.subscribe();
        let capacity = self.shared.capacity;
        let now = state.wait_for(|state| state.closed || state.held < capacity).await.map_err(|_| SinkError::Closed)?;
        if now.closed { Err(SinkError::Closed) } else { Ok(()) }
    }
}

impl Drop for CollectSink {
    fn drop(&mut self) {
        self.shared.state.send_modify(|state| state.sink_gone = true);
    }
}

impl CollectHandle {
    /// Takes all rows that are held, in order; makes room.
    #[must_use]
    pub fn drain(&self) -> Vec<OwnedRow> {
        let mut rows = self.shared.rows.lock();
        let drained = std::mem::take(&mut *rows);
        self.shared.state.send_modify(|state| state.held = 0);
        drained
    }

    /// Says that nobody will read any more.
    pub fn close(&self) {
        self.shared.state.send_modify(|state| state.closed = true);
    }

    /// How many rows were ever taken.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.shared.state.borrow().pushed
    }

    /// How many pushes came although the sink was full.
    #[must_use]
    pub fn overfull_pushes(&self) -> u64 {
        self.shared.state.borrow().overfull
    }

    /// The most rows that were held at a time.
    #[must_use]
    pub fn most_held(&self) -> usize {
        self.shared.state.borrow().most_held
    }

    /// Whether the source has let its side go.
    #[must_use]
    pub fn sink_gone(&self) -> bool {
        self.shared.state.borrow().sink_gone
    }

    /// Waits until `count` rows were ever taken.
    ///
    /// # Panics
    /// When they do not come within the patience of a test.
    pub async fn wait_for_pushed(&self, count: u64) {
        self.wait("rows in the sink", |state| state.pushed >= count).await;
    }

    /// Waits until the sink is full.
    ///
    /// # Panics
    /// When that does not happen within the patience of a test.
    pub async fn wait_until_full(&self) {
        let capacity = self.shared.capacity;
        self.wait("a full sink", |state| state.held >= capacity).await;
    }

    /// Waits until the source has let its side go.
    ///
    /// # Panics
    /// When that does not happen within the patience of a test.
    pub async fn wait_for_sink_gone(&self) {
        self.wait("the source to let the sink go", |state| state.sink_gone).await;
    }

    /// Waits for a row or the end: `Some` rows (never none), or `None` when the source's side is gone and all is drained.
    ///
    /// # Panics
    /// When neither comes within the patience of a test.
    pub async fn next_rows(&self) -> Option<Vec<OwnedRow>> {
        self.wait("a row or the end", |state| state.held > 0 || state.sink_gone).await;
        let rows = self.drain();
        if rows.is_empty() { None } else { Some(rows) }
    }

    async fn wait(&self, what: &str, condition: impl FnMut(&State) -> bool) {
        let mut state = self.shared.state.subscribe();
        let _ = within(what, state.wait_for(condition)).await.expect("the handle holds the sender");
    }
}

impl Drop for CollectHandle {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::block_on;

    fn push(sink: &mut CollectSink, value: i64) -> Result<SinkState, SinkError> {
        sink.push(&mut |row| {
            row.cell(Cell::Integer(value));
            Ok(())
        })
    }

    #[test]
    fn a_full_sink_waits_for_room_and_counts_who_does_not() {
        block_on(async {
            let (mut sink, rows) = collect_sink(2);
            assert_eq!(push(&mut sink, 1), Ok(SinkState::Ready));
            assert_eq!(push(&mut sink, 2), Ok(SinkState::Full));
            assert!(futures::poll!(sink.ready()).is_pending());
            assert_eq!(push(&mut sink, 3), Ok(SinkState::Full));
            assert_eq!(rows.overfull_pushes(), 1);
            assert_eq!(rows.drain().len(), 3);
            assert_eq!(sink.ready().await, Ok(()));
        });
    }

    #[test]
    fn without_a_reader_the_sink_is_closed() {
        block_on(async {
            let (mut sink, rows) = collect_sink(1);
            push(&mut sink, 1).unwrap();
            drop(rows);
            assert_eq!(sink.ready().await, Err(SinkError::Closed));
            assert_eq!(push(&mut sink, 2), Err(SinkError::Closed));
        });
    }

    #[test]
    fn an_abandoned_and_a_too_large_row_are_not_kept() {
        let (mut sink, rows) = collect_sink_with(9, 7);
        assert_eq!(sink.push(&mut |_| Err(RowAbandoned)), Err(SinkError::Abandoned));
        assert_eq!(push(&mut sink, 1), Err(SinkError::RowTooLarge { row: 0, limit_bytes: 7 }));
        assert_eq!(rows.pushed(), 0);
    }
}
