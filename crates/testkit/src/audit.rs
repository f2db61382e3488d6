//! Audit trails for tests. They never write anywhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_core::port::{AuditRecord, AuditSink, AuditUnavailable};
use tokio::sync::watch;

use crate::wait::within;

/// Keeps every record. Clones share one trail.
#[derive(Debug, Clone)]
pub struct MemoryAudit {
    records: Arc<watch::Sender<Vec<AuditRecord>>>,
}

impl MemoryAudit {
    /// An empty trail.
    #[must_use]
    pub fn new() -> Self {
        Self { records: Arc::new(watch::Sender::new(Vec::new())) }
    }

    /// All records, in order.
    #[must_use]
    pub fn records(&self) -> Vec<AuditRecord> {
        self.records.borrow().clone()
    }

    /// The events' names, in order.
    #[must_use]
    pub fn events(&self) -> Vec<&'static str> {
        self.records.borrow().iter().map(|record| record.event).collect()
    }

    /// Waits for the first record of this event.
    ///
    /// # Panics
    /// When none comes within the patience of a test.
    pub async fn wait_for(&self, event: &str) -> AuditRecord {
        let find = |records: &Vec<AuditRecord>| records.iter().find(|record| record.event == event).cloned();
        let mut records = self.records.subscribe();
        let there = records.wait_for(|records| find(records).is_some());
        let records = within(event, there).await.expect("the trail holds the sender");
        find(&records).expect("waited for it")
    }
}

impl Default for MemoryAudit {
    fn default() -> Self {
        Self::new()
    }
}

impl AuditSink for MemoryAudit {
    fn record(&self, record: &AuditRecord) -> Result<(), AuditUnavailable> {
        self.records.send_modify(|records| records.push(record.clone()));
        Ok(())
    }
}

/// Takes nothing and counts what it did not take.
#[derive(Debug, Default)]
pub struct FailingAudit {
    refused: AtomicU64,
}

impl FailingAudit {
    /// How many records it was offered.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }
}

impl AuditSink for FailingAudit {
    fn record(&self, _: &AuditRecord) -> Result<(), AuditUnavailable> {
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(AuditUnavailable::new("this test's audit trail takes nothing"))
    }
}
