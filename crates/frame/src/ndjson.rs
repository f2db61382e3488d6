//! NDJSON as it goes over the wire: row lines, and the documents around them. It never builds a value tree, never reads a
//! clock, and never puts a line break inside a line.
//!
//! The wire rule (how each cell looks) stands in this crate's README.

mod document;
mod row;
mod schema;

pub use document::{EndLine, EndStatus, ErrorLine, OpenLine};
pub use row::{DuplicateColumn, EncodeError, RowEncoder};
pub use schema::schema_fingerprint;

use serde::{Deserialize, Serialize};

/// How a row lies in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowShape {
    /// `{"row":{"id":1,"name":"a"}}`: each cell under its column's name. Every name must be unique.
    #[default]
    Object,
    /// `{"row":[1,"a"]}`: the cells in the order of the columns.
    Array,
}
