//! The stream of batches: the first copy, then what the feed brings. Work is done while somebody asks for the next batch, and only
//! then. It never gives a batch after an error.

use std::sync::Arc;

use futures::StreamExt;
use tidegate_core::port::{ChangeBatch, ChangeSourceError, ChangeStream, CopyStatus};
use tidegate_core::record::{Change, Operation, Origin};
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::assemble::{Assembler, Nonsense};
use super::copy::{Copier, Piece};
use super::feed::{Feed, Frame};
use super::lsn::Lsn;
use super::open::{Opened, alive};
use super::pgoutput::{Message, decode};
use super::refusal::{lost, unreadable, wire};
use super::state::State;
use super::table::Table;
use super::wire::WireError;
use crate::session::Link;

/// What the copy's records say as their transaction.
const COPY_TRANSACTION: &str = "snapshot";

/// The batches of a stream that was opened.
pub(crate) fn run(shared: Arc<Shared>, opened: Opened) -> ChangeStream {
    let Opened { feed, state, position, unsaid, copier, restarted, link } = opened;
    let first =
        unsaid.then(|| ChangeBatch { position: position.position(), changes: Vec::new(), state: state.encode() });
    let phase = match copier {
        Some(copier) => Phase::Copy(Box::new(Copying { copier, state, restarted })),
        None => Phase::Stream(Box::new(assembler(&shared, state, position))),
    };
    let running = Running { feed, position, first, phase, link, given_at: Instant::now(), shared };
    futures::stream::unfold(Some(running), |running| async {
        let mut running = running?;
        match running.next().await {
            Ok(batch) => Some((Ok(batch), Some(running))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

struct Running {
    feed: Feed,
    /// Where the stream began.
    position: Lsn,
    /// What is given before anything comes.
    first: Option<ChangeBatch>,
    phase: Phase,
    link: Link,
    /// When the last batch was given.
    given_at: Instant,
    shared: Arc<Shared>,
}

enum Phase {
    Copy(Box<Copying>),
    Stream(Box<Assembler>),
}

struct Copying {
    copier: Copier,
    state: State,
    /// Tables whose copied rows are void, which was not said yet.
    restarted: Vec<Arc<Table>>,
}

fn assembler(shared: &Shared, state: State, position: Lsn) -> Assembler {
    Assembler::new(state, position, shared.server.change.transaction_max_bytes)
}

impl Running {
    async fn next(&mut self) -> Result<ChangeBatch, ChangeSourceError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        loop {
            let batch = match &mut self.phase {
                Phase::Copy(_) => self.copy().await?,
                Phase::Stream(assembler) => {
                    let batch = stream(&mut self.feed, assembler, &mut self.link, &self.shared, self.given_at).await;
                    Some(batch.map_err(|error| ended(assembler, error))?)
                }
            };
            if let Some(batch) = batch {
                self.given_at = Instant::now();
                return Ok(batch);
            }
        }
    }

    /// The next batch of the copy. At its end the phase changes, and the batch says so.
    async fn copy(&mut self) -> Result<Option<ChangeBatch>, ChangeSourceError> {
        let Phase::Copy(copying) = &mut self.phase else { return Ok(None) };
        let Copying { copier, state, restarted } = &mut **copying;
        let position = self.position.position();
        let Some(copy) = state.copy.as_mut() else { return Ok(None) };
        if !restarted.is_empty() {
            // All at once: the state says that nothing of them is there.
            let truncate = |table: Arc<Table>| (table.name.clone(), change_of_copy(Operation::Truncate, &table));
            let mut changes: Vec<_> = restarted.drain(..).map(truncate).collect();
            place(&mut changes, copy.start, &mut copy.rows);
            return Ok(Some(ChangeBatch { position, changes, state: state.encode() }));
        }
        let piece = tokio::select! {
            piece = copier.next() => piece.transpose()?,
            // Nothing is taken from the feed yet, so that only its end is of interest here.
            error = self.feed.failed() => return Err(wire(error)),
        };
        let Some(piece) = piece else {
            copy.done = true;
            *self.shared.copy.lock() = CopyStatus::Done;
            let batch = ChangeBatch { position, changes: Vec::new(), state: state.encode() };
            self.phase = Phase::Stream(Box::new(assembler(&self.shared, state.clone(), self.position)));
            return Ok(Some(batch));
        };
        let mut rows = copy.rows;
        copy.note(&piece);
        let Piece { table, changes, .. } = piece;
        let mut changes: Vec<(Box<str>, Change)> =
            changes.into_iter().map(|change| (table.name.clone(), change)).collect();
        place(&mut changes, copy.start, &mut rows);
        if let CopyStatus::Running { tables_done, rows, .. } = &mut *self.shared.copy.lock() {
            *tables_done = copy.tables_done() as u64;
            *rows += changes.len() as u64;
        }
        Ok(Some(ChangeBatch { position, changes, state: state.encode() }))
    }
}

fn change_of_copy(operation: Operation, table: &Table) -> Change {
    Change {
        operation,
        key: None,
        value: "null".into(),
        before: None,
        headers: Some(table.copy_headers()),
        event_time: None,
        source: None,
    }
}

/// Sets the places of records of the copy: all at its start, one after the other over all of its lives.
fn place(changes: &mut [(Box<str>, Change)], start: Lsn, next: &mut u64) {
    let position = start.position();
    for (_, change) in changes {
        change.source = Some(Origin { position: position.clone(), transaction: COPY_TRANSACTION.into(), index: *next });
        *next += 1;
    }
}

/// Why the stream ended.
enum End {
    Wire(WireError),
    Failed(ChangeSourceError),
}

impl From<Nonsense> for End {
    fn from(nonsense: Nonsense) -> Self {
        Self::Failed(unreadable(nonsense))
    }
}

fn ended(assembler: &Assembler, end: End) -> ChangeSourceError {
    match end {
        End::Failed(error) => error,
        End::Wire(WireError::Server(refusal)) if matches!(&*refusal.code, "58P01" | "55000") => {
            lost(assembler.position(), refusal.message)
        }
        End::Wire(error) => wire(error),
    }
}

/// The next batch of the stream. When nothing was given for a while and the server is further on, one without changes.
async fn stream(
    feed: &mut Feed,
    assembler: &mut Assembler,
    link: &mut Link,
    shared: &Shared,
    given_at: Instant,
) -> Result<ChangeBatch, End> {
    let advance_at = given_at + shared.server.change.idle_advance;
    loop {
        let frame = match feed.ready() {
            Some(frame) => frame,
            None => tokio::select! {
                biased;
                frame = feed.next() => frame.map_err(End::Wire)?,
                () = sleep_until(advance_at), if assembler.is_ahead() => return Ok(assembler.advance()),
            },
        };
        let bytes = match frame {
            Frame::Reached(end) => {
                assembler.reached(end);
                if assembler.is_ahead() && Instant::now() >= advance_at {
                    return Ok(assembler.advance());
                }
                continue;
            }
            Frame::Message(bytes) => bytes,
        };
        match decode(&bytes).map_err(|reason| End::Failed(unreadable(reason)))? {
            Message::Relation(relation) => {
                alive(&shared.server, link).await.map_err(End::Failed)?;
                let table = shared.server.describe(link, &relation).await.map_err(End::Failed)?;
                assembler.describe(table);
            }
            message => {
                if let Some(batch) = assembler.take(message)? {
                    return Ok(batch);
                }
            }
        }
    }
}
