//! What the writer is asked, and what it answers. It never does anything.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, CompareAndSwap, Created, Durability, LogSpec, PartitionBounds, StreamId, SwapOutcome,
    Trim,
};
use tidegate_core::position::Partition;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::catalog::StreamState;
use crate::error::WriteError;
use crate::key::ChunkKey;

/// A change.
#[derive(Debug)]
pub(crate) enum Command {
    Create { stream: StreamId, spec: LogSpec },
    Append(AppendBatch),
    Trim { stream: StreamId, trim: Trim },
    Swap { swaps: Vec<CompareAndSwap>, durability: Durability },
    Work(Work),
}

/// A step of maintenance, which looked at the store beforehand and tells the writer what it found.
#[derive(Debug)]
pub(crate) enum Work {
    /// Forget what the retention does not keep.
    Retain { place: Place, due: Bytes },
    /// Remove chunks that lie below the floor.
    Sweep { place: Place, due: Bytes, chunks: Vec<ChunkKey>, done_to: Option<u64> },
    /// Put compacted chunks in the place of others.
    Rewrite { place: Place, put: Vec<(u64, Bytes)>, remove: Vec<u64>, gone: Vec<(u64, u64)> },
    /// A round of compaction is over, or was `postponed` until `again_ms`.
    Compacted { place: Place, due: Bytes, clean_to: u64, again_ms: Option<i64>, postponed: bool },
    /// Remove a part of what a removed stream left.
    Purge { log: u64, chunks: Vec<ChunkKey>, index: Vec<Bytes>, done: bool },
    /// Work of a stream that is gone.
    Forget { due: Bytes },
}

/// A partition of a stream that is in memory.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) stream: Arc<StreamState>,
    pub(crate) partition: Partition,
}

/// What came of a command.
#[derive(Debug)]
pub(crate) enum Answer {
    Created(Created),
    Appended(AppendOutcome),
    Bounds(Vec<PartitionBounds>),
    Swapped(SwapOutcome),
    Worked,
}

/// A command on its way.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) command: Command,
    /// Bytes that it adds at most.
    pub(crate) bytes: u64,
    pub(crate) answer: oneshot::Sender<Result<Answer, WriteError>>,
    /// Its share of the queue's bytes, given back when it is answered.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// What the writer's queue holds.
#[derive(Debug)]
pub(crate) enum Message {
    Job(Job),
    /// Look whether the disk is back.
    Nudge,
    Close,
}

impl Command {
    /// Whether it may be refused for want of space. What frees space is not.
    pub(crate) fn needs_space(&self) -> bool {
        match self {
            Self::Create { .. } | Self::Append(_) => true,
            Self::Swap { swaps, .. } => !swaps.iter().all(|swap| swap.swap == tidegate_core::port::Swap::Delete),
            Self::Trim { .. } => false,
            Self::Work(work) => matches!(work, Work::Rewrite { .. }),
        }
    }
}
