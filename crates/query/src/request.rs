//! What a caller asks of the service and is told of its leases. Plain data.

use serde::Serialize;
use tidegate_core::Timestamp;
use tidegate_core::id::{CursorToken, LeaseId, SnapshotId};
use tidegate_core::port::Parameter;
use tidegate_frame::ndjson::RowShape;
use tidegate_frame::prefix::PrefixHash;

/// A query to be streamed.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenRequest {
    /// The source's name.
    pub source: String,
    /// One statement that reads.
    pub sql: String,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
    /// How a row looks.
    pub shape: RowShape,
}

/// A stream to go on with: the caller holds rows 0 up to `rows`, and their hash.
#[derive(Debug, Clone)]
pub struct ResumeRequest {
    /// From the open line.
    pub cursor: CursorToken,
    /// How many rows the caller holds.
    pub rows: u64,
    /// SHA-256 over those rows' lines, each without its newline.
    pub prefix_hash: PrefixHash,
}

/// One of the caller's leases. Never its cursor: that is a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseInfo {
    /// Its handle.
    pub lease: LeaseId,
    /// The source.
    pub source: String,
    /// The pinned snapshot.
    pub snapshot: SnapshotId,
    /// Whether somebody reads it now.
    pub reading: bool,
    /// Whether it can be resumed.
    pub resumable: bool,
    /// The epoch of its present or last reader.
    pub epoch: u64,
    /// Rows handed to readers so far.
    pub rows: u64,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// How long the snapshot stays pinned if nobody reads from now on.
    pub expires_in_ms: u64,
}
