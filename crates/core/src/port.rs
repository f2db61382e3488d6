//! The ports: what the domains ask of stores, sources and the system. Object-safe, at most six methods each. No
//! implementation lives here; each passes its port's suite in `tidegate-testkit`.

mod audit;
mod change;
mod entropy;
mod log;
mod meta;
mod query;

pub use audit::{AuditRecord, AuditSink, AuditUnavailable, AuditValue};
pub use change::{ChangeBatch, ChangeSource, ChangeSourceError, ChangeSourceStatus, ChangeStream, CopyStatus, Resume};
pub use entropy::{Entropy, EntropyUnavailable};
pub use log::{
    AppendBatch, AppendOutcome, AppendRecord, AppendedRange, ChangeLog, Commit, Compaction, Created, LogError, LogRead,
    LogReadItem, LogSpec, LogWatch, PartitionAppend, PartitionBounds, ReadBounds, Retention, StreamAppend, StreamId,
    Trim,
};
pub use meta::{
    CompareAndSwap, Durability, MetaEntry, MetaError, MetaRange, MetaStore, MetaWatch, Revision, Swap, SwapOutcome,
};
pub use query::{
    Catalogue, CatalogueQuery, Cause, Cell, CellWriter, Column, ColumnType, Description, Dialect, Parameter,
    QuerySnapshot, QuerySource, RelationFacts, RelationName, RowAbandoned, RowSink, SinkError, SinkState, SourceError,
    Statement, StatementRefused, UniqueKey, Volatility,
};
