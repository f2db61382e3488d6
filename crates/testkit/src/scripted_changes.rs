//! A source of changes that gives what a test wrote down, fails where it says, and checks how it is used. It never gives a change that
//! was not scripted, and panics where it is told that more is durable than was given.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tidegate_core::Timestamp;
use tidegate_core::port::{
    ChangeBatch, ChangeSource, ChangeSourceError, ChangeSourceStatus, ChangeStream, CopyStatus, Resume,
};
use tidegate_core::position::SourcePosition;
use tidegate_core::record::{Change, Operation, Origin};
use tokio::sync::watch;

/// A [`ChangeSource`] by script: a copy of some rows, then transactions over several tables, the large ones in parts. Clones share
/// one script, as connections to one database do.
///
/// A position is a number in decimal: 0 is the copy, n the n-th transaction. A resume's state is how many parts of the next transaction
/// (or of the copy) were given. Opened again, it repeats the last whole transactions, as a source may that was not told that they are
/// durable.
#[derive(Debug, Clone)]
pub struct ScriptedChanges {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    changed: watch::Sender<u64>,
}

/// A part: changes with their tables.
type Part = Vec<(Box<str>, Change)>;

#[derive(Debug, Default)]
struct Script {
    /// Entry 0 is the copy.
    transactions: Vec<Vec<Part>>,
    confirmed: u64,
    highest_given: u64,
    confirms: Vec<u64>,
    opened: u64,
    fail_open: VecDeque<ChangeSourceError>,
    /// After so many batches, this.
    fail_after: VecDeque<(u64, ChangeSourceError)>,
    lost: Option<Box<str>>,
    was_lost: bool,
}

/// A change of one row: `table`, its key and its value.
#[must_use]
pub fn scripted_change(table: &str, key: &str, value: &str) -> (Box<str>, Change) {
    let change = Change {
        operation: Operation::Update,
        key: Some(key.into()),
        value: value.into(),
        before: None,
        headers: None,
        event_time: Some(Timestamp::from_unix_ms(1_767_225_600_000)),
        source: None,
    };
    (table.into(), change)
}

impl ScriptedChanges {
    /// A source with nothing but a copy of these rows, in parts.
    #[must_use]
    pub fn new(copy: Vec<Vec<(Box<str>, Change)>>) -> Self {
        let source = Self { shared: Arc::new(Shared { script: Mutex::default(), changed: watch::Sender::new(0) }) };
        source.commit_in_parts(copy);
        source
    }

    /// Another transaction.
    pub fn commit(&self, changes: Vec<(Box<str>, Change)>) {
        self.commit_in_parts(vec![changes]);
    }

    /// Another transaction that comes in parts.
    pub fn commit_in_parts(&self, parts: Vec<Vec<(Box<str>, Change)>>) {
        let mut script = self.shared.script.lock();
        let position = script.transactions.len();
        let mut parts = parts;
        for (index, (_, change)) in (0..).zip(parts.iter_mut().flatten()) {
            let transaction = position.to_string().into();
            change.source = Some(Origin { position: SourcePosition(position.to_string().into()), transaction, index });
        }
        script.transactions.push(parts);
        drop(script);
        self.shared.changed.send_modify(|changes| *changes += 1);
    }

    /// The next attempt to open it fails so.
    pub fn fail_open(&self, error: ChangeSourceError) {
        self.shared.script.lock().fail_open.push_back(error);
    }

    /// The stream that is opened next (each further call: the one after it) fails after so many batches.
    pub fn fail_after(&self, batches: u64, error: ChangeSourceError) {
        self.shared.script.lock().fail_after.push_back((batches, error));
    }

    /// Whoever goes on from a position is told that it is lost; `None` = no more.
    pub fn lose(&self, reason: Option<&str>) {
        {
            let mut script = self.shared.script.lock();
            script.was_lost |= reason.is_some();
            script.lost = reason.map(Into::into);
        }
        self.shared.changed.send_modify(|changes| *changes += 1);
    }

    /// Ends the stream that is open, as a connection that is cut does.
    pub fn cut(&self) {
        self.shared.script.lock().opened += 1;
        self.shared.changed.send_modify(|changes| *changes += 1);
    }

    /// What was confirmed, in order.
    #[must_use]
    pub fn confirms(&self) -> Vec<u64> {
        self.shared.script.lock().confirms.clone()
    }

    /// How often it was opened, or cut.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.shared.script.lock().opened
    }

    /// All changes of one table in their order.
    #[must_use]
    pub fn changes_of(&self, table: &str) -> Vec<Change> {
        let script = self.shared.script.lock();
        let all = script.transactions.iter().flatten().flatten().filter(|(of, _)| **of == *table);
        all.map(|(_, change)| change.clone()).collect()
    }
}

fn number(position: &SourcePosition) -> Option<u64> {
    position.0.parse().ok()
}

/// Where a stream is: in which transaction, at which part, and how many batches it gave.
struct Reading {
    source: ScriptedChanges,
    generation: u64,
    transaction: usize,
    part: usize,
    given: u64,
    fail: Option<(u64, ChangeSourceError)>,
    repeats: VecDeque<ChangeBatch>,
    ended: bool,
}

fn position(transaction: usize) -> SourcePosition {
    SourcePosition(transaction.to_string().into())
}

impl Reading {
    async fn next(&mut self) -> Option<Result<ChangeBatch, ChangeSourceError>> {
        let mut changed = self.source.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            {
                let mut script = self.source.shared.script.lock();
                if self.ended {
                    return None;
                }
                if script.opened != self.generation {
                    self.ended = true;
                    return Some(Err(ChangeSourceError::Unavailable("the connection was cut".into())));
                }
                if self.fail.as_ref().is_some_and(|(after, _)| self.given >= *after)
                    && let Some((_, error)) = self.fail.take()
                {
                    self.ended = true;
                    return Some(Err(error));
                }
                if let Some(batch) = self.repeats.pop_front() {
                    return Some(Ok(batch));
                }
                let at = self.transaction;
                if let Some(parts) = script.transactions.get(at) {
                    let (count, last) = (parts.len(), self.part + 1 >= parts.len());
                    let changes = parts.get(self.part).cloned().unwrap_or_default();
                    self.part += 1;
                    let before = position(at.saturating_sub(1));
                    let batch = if last {
                        (self.transaction, self.part) = (at + 1, 0);
                        script.highest_given = script.highest_given.max(at as u64);
                        ChangeBatch { position: position(at), changes, state: Bytes::from_static(b"0") }
                    } else {
                        // The copy's parts have no position before them: its number is minus one part of it.
                        let state = if at == 0 { format!("c{}", self.part) } else { self.part.to_string() };
                        ChangeBatch { position: before, changes, state: state.into() }
                    };
                    debug_assert!(count > 0);
                    self.given += 1;
                    return Some(Ok(batch));
                }
            }
            if changed.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[async_trait]
impl ChangeSource for ScriptedChanges {
    async fn changes(&self, from: Option<Resume>) -> Result<ChangeStream, ChangeSourceError> {
        let mut script = self.shared.script.lock();
        if let Some(error) = script.fail_open.pop_front() {
            return Err(error);
        }
        if let (Some(reason), Some(from)) = (&script.lost, &from) {
            return Err(ChangeSourceError::Lost { from: from.position.clone(), reason: reason.clone() });
        }
        let unreadable = || ChangeSourceError::Unreadable("not a position of this source".into());
        let mut repeats = VecDeque::new();
        let (transaction, part) = match &from {
            // A new copy is a new beginning: nothing of before is confirmed.
            None => {
                script.confirmed = 0;
                (0, 0)
            }
            Some(Resume { position: at, state }) => {
                let at = usize::try_from(number(at).ok_or_else(unreadable)?).map_err(|_| unreadable())?;
                let text = std::str::from_utf8(state).map_err(|_| unreadable())?;
                let parsed = |text: &str| text.parse::<usize>().map_err(|_| unreadable());
                match text.strip_prefix('c') {
                    Some(parts) => (0, parsed(parts)?),
                    None => {
                        // What was not confirmed may come again, up to what is stored.
                        for again in usize::try_from(script.confirmed).unwrap_or(usize::MAX)..at {
                            let changes = script.transactions[again].iter().flatten().cloned().collect();
                            let state = Bytes::from_static(b"0");
                            repeats.push_back(ChangeBatch { position: position(again), changes, state });
                        }
                        (at + 1, if text.is_empty() { 0 } else { parsed(text)? })
                    }
                }
            }
        };
        script.opened += 1;
        let fail = script.fail_after.pop_front();
        let generation = script.opened;
        drop(script);
        let source = self.clone();
        let reading = Reading { source, generation, transaction, part, given: 0, fail, repeats, ended: false };
        let stream = futures::stream::unfold(reading, |mut reading| async move {
            let item = reading.next().await?;
            Some((item, reading))
        });
        Ok(stream.boxed())
    }

    async fn confirm(&self, position: &SourcePosition) -> Result<(), ChangeSourceError> {
        let at = number(position).expect("what is confirmed is a position of this source");
        let mut script = self.shared.script.lock();
        assert!(at <= script.highest_given, "more is confirmed than was given: {at}");
        assert!(at >= script.confirmed, "what is confirmed never goes back: {at} after {}", script.confirmed);
        script.confirmed = at;
        script.confirms.push(at);
        Ok(())
    }

    fn compare(&self, left: &SourcePosition, right: &SourcePosition) -> Option<Ordering> {
        Some(number(left)?.cmp(&number(right)?))
    }

    async fn status(&self) -> Result<ChangeSourceStatus, ChangeSourceError> {
        let mut script = self.shared.script.lock();
        let last = script.transactions.len().saturating_sub(1);
        if script.was_lost {
            // After a loss one may be told to go on here, without what lies before.
            script.highest_given = script.highest_given.max(last as u64);
        }
        let lag_bytes = (last as u64).saturating_sub(script.confirmed);
        Ok(ChangeSourceStatus { position: position(last), lag_bytes, copy: CopyStatus::Done })
    }
}
