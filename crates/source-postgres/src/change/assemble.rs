//! From messages to batches: the transactions of the stream, in commit order, each whole or in parts. A state machine: no I/O, no
//! clock. It never gives a change that the first copy already gave, nor one that was stored before.
//!
//! ```text
//! Begin -> (Relation | Insert | Update | Delete | Truncate)* -> Commit
//!   before the position of the start   the whole transaction is skipped: it is stored
//!   the transaction of `state.part`    its first messages are skipped: they are stored
//!   seen by the snapshot of its row    the change is dropped: the copy has it
//!   more than the bound                what there is goes out as a part, at the position before the transaction
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use tidegate_core::port::ChangeBatch;
use tidegate_core::position::SourcePosition;
use tidegate_core::record::{Change, Operation, Origin};
use tidegate_core::time::Timestamp;

use super::lsn::Lsn;
use super::pgoutput::{Message, Old, Value};
use super::state::{Copy, Part, State};
use super::table::{Table, Unreadable};

/// What a change takes beside its texts, roughly.
const CHANGE_BYTES: usize = 256;
/// From 1970 to 2000, PostgreSQL's year zero.
const EPOCH_MS: i64 = 946_684_800_000;

/// Why the stream makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Nonsense {
    #[error("{0}")]
    Order(&'static str),
    #[error("a change of a table (OID {0}) that was not described")]
    UnknownTable(u32),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// The state machine.
pub(crate) struct Assembler {
    state: State,
    /// `state` as bytes, while it does not change.
    encoded: Option<Bytes>,
    tables: HashMap<u32, Arc<Table>>,
    /// Everything up to here was given or is empty.
    position: Lsn,
    /// The position of the last batch.
    given: Lsn,
    transaction: Option<Transaction>,
    bytes_max: usize,
}

struct Transaction {
    commit: Lsn,
    position: SourcePosition,
    xid: u32,
    number: Box<str>,
    time: Timestamp,
    /// Its messages so far, and how many of them were stored in an earlier life.
    messages: u64,
    skip: u64,
    /// The place of the next change.
    index: u64,
    changes: Vec<(Box<str>, Change)>,
    bytes: usize,
    /// A part of it was given.
    in_parts: bool,
    /// It lies before the start: nothing of it is given.
    stored: bool,
}

impl Assembler {
    /// Goes on after `position`.
    pub(crate) fn new(state: State, position: Lsn, bytes_max: usize) -> Self {
        Self {
            state,
            encoded: None,
            tables: HashMap::new(),
            position,
            given: position,
            transaction: None,
            bytes_max: bytes_max.max(1),
        }
    }

    /// Takes a message other than a description of a table; perhaps it makes a batch full.
    pub(crate) fn take(&mut self, message: Message<'_>) -> Result<Option<ChangeBatch>, Nonsense> {
        match message {
            Message::Begin { commit, time_us, xid } => self.begin(commit, time_us, xid).map(|()| None),
            Message::Commit { commit, end } => self.commit(commit, end),
            Message::Other => Ok(None),
            Message::Relation(_) => Err(Nonsense::Order("a description of a table came another way")),
            change => self.change(change),
        }
    }

    fn begin(&mut self, commit: Lsn, time_us: i64, xid: u32) -> Result<(), Nonsense> {
        if self.transaction.is_some() {
            return Err(Nonsense::Order("a transaction began in a transaction"));
        }
        if let Some(copy) = &self.state.copy
            && copy.done
            && copy.snapshots.iter().all(|snapshot| snapshot.until <= commit)
        {
            self.state.copy = None;
            self.encoded = None;
        }
        let (mut skip, mut index) = (0, 0);
        if let Some(part) = self.state.part {
            if commit == part.commit {
                (skip, index) = (part.messages, part.index);
            } else if commit > part.commit {
                return Err(Nonsense::Order("the transaction that was read in part did not come again"));
            }
        }
        self.transaction = Some(Transaction {
            commit,
            position: commit.position(),
            xid,
            number: xid.to_string().into(),
            time: Timestamp::from_unix_ms(time_us.div_euclid(1000).saturating_add(EPOCH_MS)),
            messages: 0,
            skip,
            index,
            changes: Vec::new(),
            bytes: 0,
            in_parts: skip > 0,
            stored: commit < self.position,
        });
        Ok(())
    }

    fn commit(&mut self, commit: Lsn, end: Lsn) -> Result<Option<ChangeBatch>, Nonsense> {
        let transaction = self.transaction.take().ok_or(Nonsense::Order("a transaction ended that did not begin"))?;
        if transaction.commit != commit || end < commit {
            return Err(Nonsense::Order("a transaction ended as another one"));
        }
        if transaction.stored {
            return Ok(None);
        }
        if transaction.messages < transaction.skip {
            return Err(Nonsense::Order("the transaction that was read in part came again with less"));
        }
        self.position = self.position.max(end);
        if transaction.in_parts {
            self.state.part = None;
            self.encoded = None;
        } else if transaction.changes.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.batch(transaction.changes)))
    }

    /// A table looks like this from now on. That is said before its next change, and not before: the server describes tables of
    /// which it sends none, such as partitions that are published as their root.
    pub(crate) fn describe(&mut self, table: Arc<Table>) {
        self.tables.insert(table.oid, table);
    }

    /// Everything up to here was given.
    pub(crate) fn position(&self) -> Lsn {
        self.position
    }

    fn change(&mut self, message: Message<'_>) -> Result<Option<ChangeBatch>, Nonsense> {
        let Some(open) = self.transaction.as_mut() else {
            return Err(Nonsense::Order("a change came outside of a transaction"));
        };
        open.messages += 1;
        if open.stored || open.messages <= open.skip {
            return Ok(None);
        }
        let table = |oid: u32| self.tables.get(&oid).map(Arc::clone).ok_or(Nonsense::UnknownTable(oid));
        let seen = Seen { copy: self.state.copy.as_ref(), xid: open.xid, commit: open.commit };
        let mut known = Schemas { known: &mut self.state.schemas, encoded: &mut self.encoded };
        match message {
            Message::Insert { relation, new } => {
                let table = table(relation)?;
                let texts = table.key_texts(&new, None)?;
                if !seen.by_copy(&table, &texts)? {
                    let (key, row) = (table.key(&texts)?, table.row(&new, None)?);
                    open.push(&mut known, &table, Operation::Insert, key, (row.json, None), table.headers());
                }
            }
            Message::Update { relation, old, new } => open.update(&mut known, &*table(relation)?, &seen, old, &new)?,
            Message::Delete { relation, old } => {
                let table = table(relation)?;
                let (values, before) = before(&table, &old)?;
                let texts = table.key_texts(values, None)?;
                if !seen.by_copy(&table, &texts)? {
                    let key = table.key(&texts)?;
                    open.push(
                        &mut known,
                        &table,
                        Operation::Delete,
                        key,
                        ("null".into(), Some(before)),
                        table.headers(),
                    );
                }
            }
            Message::Truncate { relations, .. } => {
                for oid in relations {
                    let table = table(oid)?;
                    if !seen.truncate(&table) {
                        open.push(
                            &mut known,
                            &table,
                            Operation::Truncate,
                            None,
                            ("null".into(), None),
                            table.headers(),
                        );
                    }
                }
            }
            _ => {}
        }
        Ok((open.bytes >= self.bytes_max).then(|| self.part()).flatten())
    }

    /// What there is of the open transaction, as a part.
    fn part(&mut self) -> Option<ChangeBatch> {
        let open = self.transaction.as_mut()?;
        self.state.part = Some(Part { commit: open.commit, messages: open.messages, index: open.index });
        self.encoded = None;
        open.in_parts = true;
        open.bytes = 0;
        let changes = std::mem::take(&mut open.changes);
        Some(self.batch(changes))
    }

    fn batch(&mut self, changes: Vec<(Box<str>, Change)>) -> ChangeBatch {
        self.given = self.position;
        let state = self.encoded.get_or_insert_with(|| self.state.encode()).clone();
        ChangeBatch { position: self.position.position(), changes, state }
    }

    /// The server has sent everything that committed before `end`.
    pub(crate) fn reached(&mut self, end: Lsn) {
        if self.transaction.is_none() && self.state.part.is_none() {
            self.position = self.position.max(end);
        }
    }

    /// Whether the position moved on and no batch has said so.
    pub(crate) fn is_ahead(&self) -> bool {
        self.transaction.is_none() && self.position > self.given
    }

    /// A batch without changes that says so.
    pub(crate) fn advance(&mut self) -> ChangeBatch {
        self.batch(Vec::new())
    }
}

/// The value, and the value before.
type Values = (Arc<str>, Option<Arc<str>>);

/// What was said of the tables, in the state.
struct Schemas<'a> {
    known: &'a mut BTreeMap<u32, u64>,
    encoded: &'a mut Option<Bytes>,
}

/// Whether the first copy already gave what a transaction did.
struct Seen<'a> {
    copy: Option<&'a Copy>,
    xid: u32,
    commit: Lsn,
}

impl Seen<'_> {
    fn by_copy(&self, table: &Table, key: &[&str]) -> Result<bool, Nonsense> {
        let Some(copy) = self.copy else { return Ok(false) };
        let Some(of_table) = copy.tables.get(&table.oid) else { return Ok(false) };
        // Mostly all snapshots of a table agree, and the key need not be looked for.
        let mut answers =
            of_table.covered.0.iter().map(|part| copy.snapshots[part.snapshot].saw(self.xid, self.commit));
        let Some(first) = answers.next() else { return Ok(false) };
        if answers.all(|answer| answer == first) {
            return Ok(first);
        }
        let names = table.key.iter().map(|at| &table.columns[*at].name);
        if !names.eq(&of_table.key) {
            return Err(Nonsense::Order("the key of a table changed while it was copied"));
        }
        let snapshot = of_table.covered.snapshot_of(&table.order, key);
        Ok(snapshot.is_some_and(|snapshot| copy.snapshots[snapshot].saw(self.xid, self.commit)))
    }

    /// A table that is truncated between two snapshots of its copy is copied anew: all of its snapshots agree.
    fn truncate(&self, table: &Table) -> bool {
        let Some(copy) = self.copy else { return false };
        let parts = copy.tables.get(&table.oid).into_iter().flat_map(|of_table| &of_table.covered.0);
        let mut parts = parts.peekable();
        parts.peek().is_some() && parts.all(|part| copy.snapshots[part.snapshot].saw(self.xid, self.commit))
    }
}

impl Transaction {
    /// Adds a change; before it what its table looks like, where that is new.
    fn push(
        &mut self,
        known: &mut Schemas<'_>,
        table: &Table,
        operation: Operation,
        key: Option<Arc<str>>,
        values: Values,
        headers: Arc<str>,
    ) {
        if known.known.get(&table.oid) != Some(&table.version) {
            known.known.insert(table.oid, table.version);
            *known.encoded = None;
            self.add(table, Operation::Message, None, (table.description(), None), table.headers());
        }
        self.add(table, operation, key, values, headers);
    }

    fn add(
        &mut self,
        table: &Table,
        operation: Operation,
        key: Option<Arc<str>>,
        (value, before): Values,
        headers: Arc<str>,
    ) {
        self.bytes += CHANGE_BYTES
            + value.len()
            + key.as_ref().map_or(0, |key| key.len())
            + before.as_ref().map_or(0, |before| before.len());
        let source = Origin { position: self.position.clone(), transaction: self.number.clone(), index: self.index };
        self.index += 1;
        let change = Change {
            operation,
            key,
            value,
            before,
            headers: Some(headers),
            event_time: Some(self.time),
            source: Some(source),
        };
        self.changes.push((table.name.clone(), change));
    }

    /// An update is one change; one that gives the row another key is two, each under its own key.
    fn update(
        &mut self,
        known: &mut Schemas<'_>,
        table: &Table,
        seen: &Seen<'_>,
        old: Option<Old<'_>>,
        new: &[Value<'_>],
    ) -> Result<(), Nonsense> {
        let Some(old) = old else {
            let texts = table.key_texts(new, None)?;
            if !seen.by_copy(table, &texts)? {
                let (key, row) = (table.key(&texts)?, table.row(new, None)?);
                let headers = table.headers_with(&row.unchanged, None);
                self.push(known, table, Operation::Update, key, (row.json, None), headers);
            }
            return Ok(());
        };
        let (values, before_json) = before(table, &old)?;
        let whole = matches!(old, Old::Row(_)).then_some(values);
        let (texts, old_texts) = (table.key_texts(new, Some(values))?, table.key_texts(values, None)?);
        let (key, row) = (table.key(&texts)?, table.row(new, whole)?);
        if texts == old_texts {
            if !seen.by_copy(table, &texts)? {
                let headers = table.headers_with(&row.unchanged, None);
                self.push(known, table, Operation::Update, key, (row.json, whole.map(|_| before_json)), headers);
            }
            return Ok(());
        }
        let old_key = table.key(&old_texts)?;
        let headers = table.headers_with(&row.unchanged, old_key.as_deref());
        if !seen.by_copy(table, &old_texts)? {
            self.push(known, table, Operation::Delete, old_key, ("null".into(), Some(before_json)), table.headers());
        }
        if !seen.by_copy(table, &texts)? {
            self.push(known, table, Operation::Insert, key, (row.json, None), headers);
        }
        Ok(())
    }
}

/// The old values, and their JSON: the whole row, or the key alone.
fn before<'o, 'a>(table: &Table, old: &'o Old<'a>) -> Result<(&'o [Value<'a>], Arc<str>), Nonsense> {
    match old {
        Old::Row(values) => Ok((values, table.row(values, None)?.json)),
        Old::Key(values) => {
            let key = table.key(&table.key_texts(values, None)?)?;
            Ok((values, key.unwrap_or_else(|| "null".into())))
        }
    }
}

#[cfg(test)]
mod tests;
