//! The port to a database that answers queries: open a snapshot, describe, stream rows from it.
//!
//! Rows go from the source into a [`RowSink`] cell by cell, so that a row is encoded once, on the thread that reads
//! it, without a value tree in between. The sink says when it is full; the source then waits in [`RowSink::ready`].
//! That wait is the whole of back-pressure: a source never buffers beyond one fetch.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;

use crate::failure::{ErrorKind, Failure, Retry};
use crate::id::SnapshotId;

/// A database that can be queried.
#[async_trait]
pub trait QuerySource: Send + Sync + 'static {
    /// The SQL that it speaks.
    fn dialect(&self) -> Dialect;

    /// Pins a snapshot of what is committed now. Each call gives one of its own, on a connection of its own, bounded by
    /// the source's connection limit ([`SourceError::ConnectionsExhausted`] beyond it).
    async fn open(&self) -> Result<Arc<dyn QuerySnapshot>, SourceError>;

    /// Whether the database answers now.
    async fn ping(&self) -> Result<(), SourceError>;
}

/// A pinned, read-only view: what commits after it was opened is never seen through it. Released by [`close`] or when the
/// last reference is dropped, whatever was going on.
///
/// [`close`]: QuerySnapshot::close
#[async_trait]
pub trait QuerySnapshot: Send + Sync + 'static {
    /// The source's name for it.
    fn id(&self) -> &SnapshotId;

    /// Checks a statement without running it: exactly one, read-only, its parameters bindable; gives its columns.
    async fn describe(&self, statement: &Statement) -> Result<Description, SourceError>;

    /// Facts about relations and functions, as this snapshot sees them. What is not known is absent from the answer.
    async fn catalogue(&self, query: &CatalogueQuery) -> Result<Catalogue, SourceError>;

    /// Runs the statement from its first row and pushes every row into `sink`, in order; returns when all are pushed.
    ///
    /// One run at a time: a call waits for an earlier run to have stopped. Dropping the future stops the run soon (a
    /// blocked step is interrupted) and leaves the snapshot pinned and usable, so the same statement can be run
    /// again and gives the same rows. Never blocks the async runtime.
    async fn stream(&self, statement: &Statement, sink: Box<dyn RowSink>) -> Result<(), SourceError>;

    /// Ends the snapshot and gives its connection back. Idempotent. A run that is going on ends with
    /// [`SourceError::SnapshotLost`] or [`SinkError::Closed`].
    async fn close(&self);
}

/// The SQL that a source speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// SQLite's.
    Sqlite,
    /// PostgreSQL's.
    Postgres,
}

/// A statement with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// The text. Parameters are `?` or `?1` (SQLite), `$1` (PostgreSQL).
    pub sql: Arc<str>,
    /// The parameters, in order.
    pub parameters: Vec<Parameter>,
}

/// A parameter's value, as it came over the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// NULL.
    Null,
    /// A boolean (SQLite: 0 or 1).
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// A number that is no `i64`, as its exact text.
    Number(Box<str>),
    /// A text.
    Text(Box<str>),
    /// A JSON array or object, as text.
    Json(Box<str>),
}

/// What a statement will give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its columns, in order; at least one.
    pub columns: Vec<Column>,
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Column {
    /// Its name; two columns may share one.
    pub name: Box<str>,
    /// How its cells look in JSON.
    #[serde(rename = "type")]
    pub kind: ColumnType,
    /// `false` only where the database promises that no cell is NULL.
    pub nullable: bool,
    /// The database's own name of the type; empty where it has none.
    pub native_type: Box<str>,
}

/// The portable type of a column: it says how to read the column's cells.
///
/// | type | cell in JSON |
/// |---|---|
/// | `boolean` | `true`, `false` |
/// | `integer` | a number with all its digits, also above 2^53 |
/// | `real` | the shortest number that reads back the same; `"NaN"`, `"Infinity"`, `"-Infinity"` as strings |
/// | `numeric` | a string with the exact digits |
/// | `text`, `uuid`, `date`, `time`, `timestamp`, `timestamptz`, `interval` | a string (dates and times in ISO 8601) |
/// | `blob` | a string in base64 (RFC 4648, padded) |
/// | `json`, `array` | the JSON value itself |
/// | `any` | each cell by its own storage class (an expression in SQLite) |
/// | `other` | a string: the database's own text form |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the table above says what each means")]
pub enum ColumnType {
    Boolean,
    Integer,
    Real,
    Numeric,
    Text,
    Blob,
    Json,
    Array,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Uuid,
    Any,
    Other,
}

/// One cell, borrowed from the source's own buffer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    /// NULL.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// A double; NaN and the infinities too.
    Real(f64),
    /// The text of a finite number, already valid JSON, to be written digit by digit.
    Number(&'a str),
    /// A text.
    Text(&'a str),
    /// A text whose bytes are not UTF-8. It is not dropped or repaired: it is written as `{"text_base64":"..."}`.
    InvalidText(&'a [u8]),
    /// Bytes.
    Blob(&'a [u8]),
    /// Valid JSON text, without line breaks outside of strings.
    Json(&'a str),
}

/// Takes the cells of one row, in the order of the columns.
pub trait CellWriter {
    /// Writes the next cell. Too many cells, and too many bytes, are noticed at the end of the row.
    fn cell(&mut self, cell: Cell<'_>);
}

/// The source could not finish a row that it began; the sink takes the row back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowAbandoned;

/// Where a source puts its rows. Implemented by a domain, not by stores.
#[async_trait]
pub trait RowSink: Send {
    /// Adds one row: calls `fill` once, with a writer for the row's cells. The row is added whole or not at all.
    /// Does not wait: it may be called even when the last answer was [`SinkState::Full`], but a source should then call
    /// [`ready`](Self::ready) first.
    fn push(
        &mut self,
        fill: &mut dyn FnMut(&mut dyn CellWriter) -> Result<(), RowAbandoned>,
    ) -> Result<SinkState, SinkError>;

    /// Waits until there is room. A source on a thread of its own may wait with `futures::executor::block_on`.
    async fn ready(&mut self) -> Result<(), SinkError>;
}

/// Whether a sink has room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkState {
    /// Go on.
    Ready,
    /// Wait in [`RowSink::ready`] first.
    Full,
}

/// Why a sink took no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// Nobody will read any more.
    #[error("nobody reads the rows any more")]
    Closed,
    /// The row is larger than a row may be.
    #[error(
        "row {row} is larger than a row may be ({limit_bytes} bytes); select fewer or shorter columns, or raise limits.row_max_bytes"
    )]
    RowTooLarge {
        /// Its number in the result, from 0.
        row: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// `fill` did not write one cell a column.
    #[error("a row has {expected} cells, the source wrote {written}")]
    WrongCellCount {
        /// How many columns there are.
        expected: usize,
        /// How many cells were written.
        written: usize,
    },
    /// `fill` gave up; the source knows why.
    #[error("the source gave a row up")]
    Abandoned,
}

/// The name of a relation as a statement wrote it, unquoted, case folded by the dialect's rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelationName {
    /// The schema, where the statement named one.
    pub schema: Option<Box<str>>,
    /// The relation.
    pub name: Box<str>,
}

/// What to look up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogueQuery {
    /// Relations by name.
    pub relations: Vec<RelationName>,
    /// Functions by name, lower case, without schema.
    pub functions: Vec<Box<str>>,
}

/// Facts for [`CatalogueQuery`]; what was not found is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// Relations that were found.
    pub relations: Vec<(RelationName, RelationFacts)>,
    /// Functions that were found, with the worst volatility among the overloads.
    pub functions: Vec<(Box<str>, Volatility)>,
}

/// What is known of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationFacts {
    /// `false` for a view, a foreign table, a virtual table, a table function.
    pub is_table: bool,
    /// Its columns' names, in order.
    pub columns: Vec<Box<str>>,
    /// Its unique keys, the primary key first.
    pub unique_keys: Vec<UniqueKey>,
}

/// Columns of which no two rows share the values, none of them NULL, and whose equality is the same as the equality under
/// ORDER BY (no collation that sees two different values as equal).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueKey {
    /// The columns' names. For SQLite, `rowid` is a name too where it is not shadowed.
    pub columns: Vec<Box<str>>,
}

/// Whether a function gives the same answer for the same arguments on the same snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Volatility {
    /// Always.
    Immutable,
    /// Within one snapshot.
    Stable,
    /// It does not.
    Volatile,
}

/// The database's own refusal of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementRefused {
    /// The database's own code: SQLSTATE (PostgreSQL) or the extended result code's name (SQLite).
    pub native_code: Box<str>,
    /// The database's own words.
    pub message: Box<str>,
    /// Where in the statement, in characters from 1, where the database says so.
    pub position: Option<u32>,
}

impl std::fmt::Display for StatementRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}", self.message, self.native_code)?;
        match self.position {
            Some(position) => write!(f, ", at character {position})"),
            None => f.write_str(")"),
        }
    }
}

/// The cause below a [`SourceError`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a source did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The statement does not parse.
    #[error("the statement does not parse: {0}")]
    Syntax(StatementRefused),
    /// The statement parses and the database refuses it: no such table, wrong types, division by zero, ...
    #[error("the database refused the statement: {0}")]
    Statement(StatementRefused),
    /// The statement would write, or change the session.
    #[error("only statements that read are allowed: {0}")]
    ReadOnly(StatementRefused),
    /// There is more than one statement.
    #[error("one statement at a time; split the text at the semicolon and send each on its own")]
    MultipleStatements,
    /// There is no statement.
    #[error("the text has no statement")]
    Empty,
    /// The number of parameters is wrong.
    #[error("the statement takes {expected} parameters, {given} were given")]
    ParameterCount {
        /// How many it takes.
        expected: usize,
        /// How many came.
        given: usize,
    },
    /// A parameter cannot be bound.
    #[error("parameter {index} (counted from 1) cannot be bound: {reason}")]
    Parameter {
        /// Which, from 1.
        index: usize,
        /// Why, in words.
        reason: Box<str>,
    },
    /// All connections that the source may hold are in use.
    #[error("all {limit} connections to the source are held by open snapshots")]
    ConnectionsExhausted {
        /// How many there may be.
        limit: usize,
    },
    /// The database does not answer.
    #[error("the database is not reachable")]
    Unavailable(#[source] Cause),
    /// The database's files are damaged or are no database.
    #[error("the database is damaged or is no database")]
    Corrupt(#[source] Cause),
    /// The snapshot is gone: its connection broke or it was closed.
    #[error("the snapshot is gone: its connection to the database ended")]
    SnapshotLost(#[source] Option<Cause>),
    /// The sink took no more.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// A value came that this version cannot read. The row is not skipped: the stream ends here.
    #[error("column {column} of row {row} cannot be read: {reason}")]
    Unreadable {
        /// Which column, from 0.
        column: usize,
        /// Which row, from 0.
        row: u64,
        /// Why, in words.
        reason: Box<str>,
    },
    /// The source's own thread or task ended without an answer: a bug.
    #[error("the source stopped without an answer")]
    Internal(#[source] Option<Cause>),
}

impl Failure for SourceError {
    fn code(&self) -> &'static str {
        match self {
            Self::Syntax(_) => "syntax_error",
            Self::Statement(_) => "statement_refused",
            Self::ReadOnly(_) => "read_only",
            Self::MultipleStatements => "multiple_statements",
            Self::Empty => "empty_statement",
            Self::ParameterCount { .. } => "parameter_count",
            Self::Parameter { .. } => "invalid_parameter",
            Self::ConnectionsExhausted { .. } => "source_connections_exhausted",
            Self::Unavailable(_) => "source_unavailable",
            Self::Corrupt(_) => "source_corrupt",
            Self::SnapshotLost(_) => "snapshot_lost",
            Self::Sink(SinkError::RowTooLarge { .. }) => "row_too_large",
            Self::Sink(_) | Self::Internal(_) => "internal",
            Self::Unreadable { .. } => "value_unreadable",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Syntax(_)
            | Self::Statement(_)
            | Self::ReadOnly(_)
            | Self::MultipleStatements
            | Self::Empty
            | Self::ParameterCount { .. }
            | Self::Parameter { .. } => ErrorKind::Invalid,
            Self::ConnectionsExhausted { .. } => ErrorKind::Exhausted,
            Self::Unavailable(_) | Self::SnapshotLost(_) => ErrorKind::Unavailable,
            Self::Sink(SinkError::RowTooLarge { .. }) => ErrorKind::TooLarge,
            Self::Corrupt(_) | Self::Sink(_) | Self::Unreadable { .. } | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    fn retry(&self) -> Retry {
        match self.kind() {
            ErrorKind::Exhausted | ErrorKind::Unavailable => Retry::After(std::time::Duration::from_secs(1)),
            _ => Retry::Never,
        }
    }
}
