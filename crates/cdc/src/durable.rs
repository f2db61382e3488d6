//! Streams of the Durable Streams protocol 1.0: what such a stream is beside being a stream. It never keeps records of its own:
//! the log is the same, and so are producers, readers and groups.

mod append;
pub mod content;
mod create;
mod error;
mod fork;
mod life;
mod render;
mod stream;

use serde::{Deserialize, Serialize};
use tidegate_core::id::Name;

pub use append::{DurableAppend, DurableAppended};
pub use content::MessageKind;
pub use create::{DurableCreated, DurableSpec, ForkSpec};
pub use error::{ContentError, DurableError};
pub use stream::DurableStream;

pub(crate) use life::Access;
pub(crate) use render::event;

use crate::key::Incarnation;

/// The content type of a stream that was made without one.
pub const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";
/// What a stream that the change-stream API made looks like here.
pub(crate) const JSON: &str = "application/json";
/// The most bytes of a writer's sequence (`Stream-Seq`).
pub const WRITER_SEQ_MAX_BYTES: usize = 1_024;
/// How long a chain of forks may be: reading the oldest record of the last one walks it.
pub const FORK_DEPTH_MAX: u32 = 64;

/// What is stored of a stream that the Durable Streams protocol made, or that others were forked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DurableMeta {
    /// Its content type, as its creator wrote it.
    pub(crate) content_type: Box<str>,
    /// It is gone when nothing was read or appended for this long, in seconds.
    pub(crate) ttl_s: Option<u64>,
    /// It is gone from this time on.
    pub(crate) expires_at_ms: Option<i64>,
    /// It takes no more records.
    pub(crate) closed: bool,
    /// Where it was forked from: what lies before the stream's own start is read there.
    pub(crate) fork: Option<Fork>,
    /// How many streams were forked from it and are still there.
    pub(crate) forks: u32,
    /// It was deleted while others were forked from it: its name is taken, its data is kept for them.
    pub(crate) soft_deleted: bool,
}

/// Where a stream was forked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fork {
    /// The stream.
    pub(crate) source: Name,
    /// Which life of it.
    pub(crate) incarnation: Incarnation,
    /// Up to where.
    pub(crate) offset: u64,
    /// How much of what follows there: records of a JSON stream, bytes of the next record of any other.
    pub(crate) sub_offset: u64,
    /// How many sources it has, the source's own counted.
    pub(crate) depth: u32,
}

impl DurableMeta {
    pub(crate) fn new(content_type: &str) -> Self {
        Self {
            content_type: content_type.into(),
            ttl_s: None,
            expires_at_ms: None,
            closed: false,
            fork: None,
            forks: 0,
            soft_deleted: false,
        }
    }

    pub(crate) fn kind(&self) -> MessageKind {
        MessageKind::of(&self.content_type)
    }

    /// Whether messages are text, so that they can be shown as such.
    pub(crate) fn is_text(&self) -> bool {
        self.kind() == MessageKind::Text
    }
}
