//! A service over a scripted source, and a reader that keeps what it is given. It never reads the system's clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tidegate_core::id::CursorToken;
use tidegate_core::principal::{Owner, Principal};
use tidegate_frame::ndjson::{EndLine, ErrorLine, OpenLine, RowShape};
use tidegate_frame::prefix::PrefixHash;
use tidegate_lease::audit::Auditor;
use tidegate_lease::frozen::SettingsCell;
use tidegate_query::{
    Frame, OpenError, OpenRequest, QueryParts, QueryService, QueryStream, ResumeError, ResumeRequest,
};
use tidegate_testkit::wait::within;
use tidegate_testkit::{ManualClock, MemoryAudit, Script, ScriptedSource, SeededEntropy};

pub(crate) const SQL: &str = "select * from item order by id";

pub(crate) struct World {
    pub(crate) service: QueryService,
    pub(crate) source: ScriptedSource,
    pub(crate) clock: ManualClock,
    pub(crate) audit: MemoryAudit,
    pub(crate) me: Principal,
}

/// What a reader was given.
#[derive(Debug, Default, Clone)]
pub(crate) struct Read {
    pub(crate) open: Option<OpenLine>,
    pub(crate) rows: Vec<u8>,
    pub(crate) error: Option<ErrorLine>,
    pub(crate) end: Option<EndLine>,
}

impl World {
    pub(crate) fn new(script: Script) -> Self {
        let (source, clock, audit) = (ScriptedSource::new(script), ManualClock::new(), MemoryAudit::new());
        let service = QueryService::new(QueryParts {
            sources: BTreeMap::from([("main".to_owned(), Arc::new(source.clone()) as _)]),
            settings: Arc::new(SettingsCell::default()),
            clock: Arc::new(clock.clone()),
            entropy: Arc::new(SeededEntropy::new(7)),
            auditor: Auditor::new(Arc::new(audit.clone()), Arc::new(clock.clone())),
        });
        Self { service, source, clock, audit, me: principal("acme", "alice") }
    }

    pub(crate) fn set(&self, key: &str, value: u64) {
        self.service.settings().patch(&[(key, value)]).unwrap();
    }

    pub(crate) async fn open(&self, who: &Principal) -> Result<QueryStream, OpenError> {
        self.open_sql(who, SQL).await
    }

    pub(crate) async fn open_sql(&self, who: &Principal, sql: &str) -> Result<QueryStream, OpenError> {
        let request =
            OpenRequest { source: "main".into(), sql: sql.into(), parameters: Vec::new(), shape: RowShape::Object };
        self.service.open(who, request).await
    }

    pub(crate) async fn resume(&self, who: &Principal, cursor: &str, held: &[u8]) -> Result<QueryStream, ResumeError> {
        self.resume_claiming(who, cursor, row_count(held), hash_of(held)).await
    }

    pub(crate) async fn resume_claiming(
        &self,
        who: &Principal,
        cursor: &str,
        rows: u64,
        prefix_hash: PrefixHash,
    ) -> Result<QueryStream, ResumeError> {
        let cursor = CursorToken::parse(cursor).unwrap();
        self.service.resume(who, ResumeRequest { cursor, rows, prefix_hash }).await
    }

    /// The whole result as one undisturbed read gives it.
    pub(crate) async fn undisturbed(&self) -> Read {
        let mut stream = self.open(&principal("other", "observer")).await.unwrap();
        read_to_end(&mut stream).await
    }

    pub(crate) async fn until_at_rest(&self) {
        let (source, service, me) = (self.source.clone(), self.service.clone(), self.me.clone());
        tidegate_testkit::wait::until("every snapshot is released", async || {
            source.live_snapshots() == 0 && source.live_runs() == 0 && service.leases(&me).is_empty()
        })
        .await;
    }
}

pub(crate) fn principal(tenant: &str, subject: &str) -> Principal {
    Principal { owner: Owner { tenant: tenant.into(), subject: subject.into() }, ..Principal::anonymous() }
}

impl Read {
    pub(crate) fn cursor(&self) -> String {
        self.open.as_ref().unwrap().cursor.clone().unwrap()
    }

    pub(crate) fn status(&self) -> &'static str {
        use tidegate_frame::ndjson::EndStatus;
        match self.end.as_ref().unwrap().status {
            EndStatus::Complete => "complete",
            EndStatus::Cancelled => "cancelled",
            EndStatus::Failed => "failed",
        }
    }

    pub(crate) fn code(&self) -> &str {
        &self.error.as_ref().unwrap().code
    }

    fn take(&mut self, frame: Frame) {
        assert!(self.end.is_none(), "nothing follows the end");
        match frame {
            Frame::Open(open) => {
                assert!(self.open.is_none() && self.rows.is_empty(), "open comes first, once");
                self.open = Some(open);
            }
            Frame::Rows(rows) => {
                assert!(self.error.is_none() && rows.ends_with(b"\n"));
                self.rows.extend_from_slice(&rows);
            }
            Frame::Error(error) => self.error = Some(error),
            Frame::End(end) => self.end = Some(end),
        }
    }
}

/// Reads until the stream ends.
pub(crate) async fn read_to_end(stream: &mut QueryStream) -> Read {
    let mut read = Read::default();
    while let Some(frame) = within("the next frame", stream.next()).await {
        read.take(frame);
    }
    read
}

/// Reads until at least `rows` rows have come, then keeps exactly that many, as a client that is cut off there.
pub(crate) async fn read_rows(stream: &mut QueryStream, rows: u64) -> Read {
    let mut read = Read::default();
    while read.open.is_none() || row_count(&read.rows) < rows {
        read.take(within("the next frame", stream.next()).await.expect("the stream goes on"));
    }
    read.rows.truncate(prefix_len(&read.rows, rows));
    read
}

pub(crate) fn row_count(rows: &[u8]) -> u64 {
    rows.iter().filter(|byte| **byte == b'\n').count() as u64
}

pub(crate) fn first_rows(rows: &[u8], count: u64) -> Vec<u8> {
    rows[..prefix_len(rows, count)].to_vec()
}

fn prefix_len(rows: &[u8], count: u64) -> usize {
    let mut ends = rows.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    if count == 0 { 0 } else { ends.nth(usize::try_from(count).unwrap() - 1).unwrap() }
}

/// SHA-256 over the row lines without their newlines, by the book.
pub(crate) fn hash_of(rows: &[u8]) -> PrefixHash {
    let mut hash = Sha256::new();
    rows.split(|byte| *byte == b'\n').for_each(|line| hash.update(line));
    PrefixHash::from_bytes(hash.finalize().into())
}
