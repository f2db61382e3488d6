//! The record of a change stream. It never interprets a value: keys, values and headers are the JSON text that came in.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::position::SourcePosition;
use crate::time::Timestamp;

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// It was added.
    Insert,
    /// It was changed.
    Update,
    /// It was removed.
    Delete,
    /// All rows were removed.
    Truncate,
    /// Nothing: a message that stands for itself.
    Message,
}

/// A change, before the log gave it a place. JSON texts are shared, so a fan-out copies none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub operation: Operation,
    /// The key as JSON text; `None` = no key.
    pub key: Option<Arc<str>>,
    /// The value as JSON text.
    pub value: Arc<str>,
    /// The value before, as JSON text, where the source knows it.
    pub before: Option<Arc<str>>,
    /// Headers as a JSON object's text.
    pub headers: Option<Arc<str>>,
    /// When it happened, by the source's clock.
    pub event_time: Option<Timestamp>,
    /// Where in the source it stands.
    pub source: Option<Origin>,
}

/// Where a change stands in its source: all changes of one transaction share `position` and differ in `index`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The source's own position.
    pub position: SourcePosition,
    /// The source's transaction.
    pub transaction: Box<str>,
    /// The place in that transaction, from 0.
    pub index: u64,
}
