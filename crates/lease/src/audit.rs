//! The audit events and the way to the sink. An event has no place for a cursor, a token or a row, and emitting one
//! never fails, never blocks and never ends what it reports on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};
use tidegate_core::Clock;
use tidegate_core::id::{Epoch, LeaseId, SnapshotId};
use tidegate_core::port::{AuditRecord, AuditSink, AuditValue};
use tidegate_core::principal::Owner;

#[cfg(all(test, not(loom)))]
mod tests;

/// Counts the records that no sink took.
pub const DROPPED_TOTAL: &str = "tidegate_audit_dropped_total";

/// The longest list of rules whose text stands in the trail; of a longer one the number of rules and the SHA-256 do, and that it is
/// left out.
pub const RULES_MAX_BYTES: usize = 16 * 1_024;

/// Why a stream was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// It was read to its end.
    Complete,
    /// Its owner cancelled it.
    Cancelled,
    /// The source or the server failed.
    Failed,
    /// The connection was lost.
    ReaderGone,
    /// The reader took nothing for too long.
    ReaderStalled,
    /// A later reader fenced this one.
    TakenOver,
    /// Its snapshot is no longer pinned.
    SnapshotExpired,
    /// It was refused because a capacity is used up.
    CapacityRefused,
    /// The reader's prefix, or the body's hash, is not what it should be.
    IntegrityFailed,
    /// The server is going away.
    Draining,
}

impl CloseReason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Complete,
        Self::Cancelled,
        Self::Failed,
        Self::ReaderGone,
        Self::ReaderStalled,
        Self::TakenOver,
        Self::SnapshotExpired,
        Self::CapacityRefused,
        Self::IntegrityFailed,
        Self::Draining,
    ];

    /// Its stable name, in the audit trail and as a label of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::ReaderGone => "reader_gone",
            Self::ReaderStalled => "reader_stalled",
            Self::TakenOver => "taken_over",
            Self::SnapshotExpired => "snapshot_expired",
            Self::CapacityRefused => "capacity_refused",
            Self::IntegrityFailed => "integrity_failed",
            Self::Draining => "draining",
        }
    }
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuditEvent {
    /// `stream.opened`: a stream began, or went on.
    StreamOpened {
        /// Its lease's public handle.
        lease: LeaseId,
        /// The snapshot that it reads.
        snapshot: SnapshotId,
        /// The SHA-256 of the statement, never its text: that may hold what rows hold.
        query_hash: [u8; 32],
        /// The source's configured name.
        source: Arc<str>,
        /// The row from which it is read; above 0 for a resume.
        from_row: u64,
    },
    /// `stream.closed`: a stream ended or paused, or was refused.
    StreamClosed {
        /// Its lease's public handle; `None` if it was refused before it had one.
        lease: Option<LeaseId>,
        /// Why.
        reason: CloseReason,
        /// Rows that were sent this time.
        rows: u64,
        /// Bytes that were sent this time.
        bytes: u64,
        /// The row from which it was read.
        from_row: u64,
        /// How long it was open.
        duration_ms: u64,
    },
    /// `stream.token_expired_during_lease`: the caller's token expired while its stream ran. The stream goes on.
    TokenExpiredDuringLease {
        /// The stream's lease.
        lease: LeaseId,
    },
    /// `lease.fenced`: a later holder took over.
    LeaseFenced {
        /// Which lease.
        lease: LeaseId,
        /// The epoch that lost its right.
        epoch: Epoch,
    },
    /// `lease.expired`: nobody renewed it in time.
    LeaseExpired {
        /// Which lease.
        lease: LeaseId,
        /// The epoch that lost its right.
        epoch: Epoch,
    },
    /// `auth.refused`: a caller was turned away.
    AuthRefused {
        /// The stable code of the refusal.
        code: &'static str,
    },
    /// `config.changed`: a setting has another value.
    ConfigChanged {
        /// Which.
        key: &'static str,
        /// Its value before.
        from: u64,
        /// Its value now.
        to: u64,
    },
    /// `config.changed` too: a list of rules is another.
    RulesChanged {
        /// Which.
        key: &'static str,
        /// How many rules there were.
        from: u64,
        /// How many there are.
        to: u64,
        /// What they were before, as text; told up to [`RULES_MAX_BYTES`], its SHA-256 always.
        before: Box<str>,
        /// What they are now; the same is told of them.
        rules: Box<str>,
    },
}

impl AuditEvent {
    /// Its stable name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::StreamOpened { .. } => "stream.opened",
            Self::StreamClosed { .. } => "stream.closed",
            Self::TokenExpiredDuringLease { .. } => "stream.token_expired_during_lease",
            Self::LeaseFenced { .. } => "lease.fenced",
            Self::LeaseExpired { .. } => "lease.expired",
            Self::AuthRefused { .. } => "auth.refused",
            Self::ConfigChanged { .. } | Self::RulesChanged { .. } => "config.changed",
        }
    }

    fn into_fields(self) -> Vec<(&'static str, AuditValue)> {
        let text = |text: &str| AuditValue::Text(text.into());
        let handle = |lease: LeaseId| AuditValue::Text(lease.to_string().into_boxed_str());
        let count = AuditValue::Count;
        match self {
            Self::StreamOpened { lease, snapshot, query_hash, source, from_row } => vec![
                ("lease", handle(lease)),
                ("snapshot", text(snapshot.as_str())),
                ("query_hash", AuditValue::Text(hex::encode(query_hash).into_boxed_str())),
                ("source", text(&source)),
                ("from_row", count(from_row)),
            ],
            Self::StreamClosed { lease, reason, rows, bytes, from_row, duration_ms } => {
                let mut fields = Vec::with_capacity(6);
                fields.extend(lease.map(|lease| ("lease", handle(lease))));
                fields.extend([
                    ("reason", text(reason.as_str())),
                    ("rows", count(rows)),
                    ("bytes", count(bytes)),
                    ("from_row", count(from_row)),
                    ("duration_ms", count(duration_ms)),
                ]);
                fields
            }
            Self::TokenExpiredDuringLease { lease } => vec![("lease", handle(lease))],
            Self::LeaseFenced { lease, epoch } | Self::LeaseExpired { lease, epoch } => {
                vec![("lease", handle(lease)), ("epoch", count(epoch.get()))]
            }
            Self::AuthRefused { code } => vec![("code", text(code))],
            Self::ConfigChanged { key, from, to } => {
                vec![("key", text(key)), ("from", count(from)), ("to", count(to))]
            }
            Self::RulesChanged { key, from, to, before, rules } => {
                let hash = |rules: &str| text(&hex::encode(Sha256::digest(rules)));
                let mut fields = vec![
                    ("key", text(key)),
                    ("from_rules", count(from)),
                    ("to_rules", count(to)),
                    ("rules_before_sha256", hash(&before)),
                    ("rules_sha256", hash(&rules)),
                ];
                let (before, rules) = (("rules_before", before), ("rules", rules));
                let omitted = [&before, &rules].into_iter().any(|(_, rules)| rules.len() > RULES_MAX_BYTES);
                let told = [before, rules].into_iter().filter(|(_, rules)| rules.len() <= RULES_MAX_BYTES);
                fields.extend(told.map(|(name, rules)| (name, AuditValue::Text(rules))));
                if omitted {
                    fields.push(("rules_omitted", AuditValue::Flag(true)));
                }
                fields
            }
        }
    }
}

/// Sends events to a sink. Cheap to clone; the clones count together.
#[derive(Clone)]
pub struct Auditor {
    shared: Arc<Shared>,
}

struct Shared {
    sink: Arc<dyn AuditSink>,
    clock: Arc<dyn Clock>,
    dropped: AtomicU64,
}

impl std::fmt::Debug for Auditor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auditor").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

impl Auditor {
    /// Events go to this sink, with the time of this clock.
    #[must_use]
    pub fn new(sink: Arc<dyn AuditSink>, clock: Arc<dyn Clock>) -> Self {
        // The counter is there from the start, so that a rate over it has a zero to begin with.
        metrics::counter!(DROPPED_TOTAL).increment(0);
        Self { shared: Arc::new(Shared { sink, clock, dropped: AtomicU64::new(0) }) }
    }

    /// Reports an event. A sink that fails or panics costs this record and nothing else: it is counted, and the caller
    /// goes on. It blocks no longer than the sink, which must not.
    pub fn emit(&self, owner: Option<&Owner>, event: AuditEvent) {
        let Shared { sink, clock, dropped } = &*self.shared;
        let taken = catch_unwind(AssertUnwindSafe(|| {
            sink.record(&AuditRecord {
                at: clock.timestamp(),
                event: event.name(),
                tenant: owner.map(|owner| Arc::clone(&owner.tenant)),
                subject: owner.map(|owner| Arc::clone(&owner.subject)),
                fields: event.into_fields(),
            })
        }));
        if !matches!(taken, Ok(Ok(()))) {
            dropped.fetch_add(1, Ordering::Relaxed);
            metrics::counter!(DROPPED_TOTAL).increment(1);
        }
    }

    /// How many records no sink took, over all clones.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}
