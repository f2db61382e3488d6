//! Streams of the Durable Streams protocol 1.0: what such a stream is beside being a stream. It never keeps records of its own:
//! the log is the same.

use serde::{Deserialize, Serialize};
use tidegate_core::id::Name;

/// What is stored of a stream that the Durable Streams protocol made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DurableMeta {
    /// Its content type.
    pub(crate) content_type: Box<str>,
    /// Where it was forked from: what lies before the stream's own start is read there.
    pub(crate) fork: Option<Fork>,
    /// It was deleted while others were forked from it: its name is taken, its data is kept for them.
    pub(crate) soft_deleted: bool,
}

/// Where a stream was forked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fork {
    /// The stream.
    pub(crate) source: Name,
}

impl DurableMeta {
    /// Whether messages are text, so that they can be shown as such.
    pub(crate) fn is_text(&self) -> bool {
        self.content_type.starts_with("text/")
    }
}
