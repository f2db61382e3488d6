//! The port to the audit trail. A failing sink never ends what it reports on: the caller counts the loss and goes on.

use serde::Serialize;

use crate::time::Timestamp;

/// One line of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRecord {
    /// When.
    pub at: Timestamp,
    /// What: a stable name such as `stream.opened`.
    pub event: &'static str,
    /// Whose tenant; absent if the caller is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<std::sync::Arc<str>>,
    /// Who; absent if the caller is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<std::sync::Arc<str>>,
    /// The event's own fields, in order. Never a token, a cursor or a row.
    #[serde(flatten, serialize_with = "as_map")]
    pub fields: Vec<(&'static str, AuditValue)>,
}

/// A value in an audit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AuditValue {
    /// A text.
    Text(Box<str>),
    /// A count, in the unit that the field's name ends with.
    Count(u64),
    /// Yes or no.
    Flag(bool),
}

fn as_map<S: serde::Serializer>(fields: &[(&'static str, AuditValue)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|(name, value)| (name, value)))
}

/// Where audit records go.
pub trait AuditSink: Send + Sync + 'static {
    /// Takes one record. Must not block: a sink that writes to a disk queues, bounded, and says so when it is full.
    fn record(&self, record: &AuditRecord) -> Result<(), AuditUnavailable>;
}

/// The record was not taken. The caller counts it in `tidegate_audit_dropped_total` and goes on.
#[derive(Debug, thiserror::Error)]
#[error("the audit trail did not take a record")]
pub struct AuditUnavailable {
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl AuditUnavailable {
    /// With the cause.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()) }
    }

    /// The sink's queue is full.
    #[must_use]
    pub fn full() -> Self {
        Self { source: None }
    }
}
