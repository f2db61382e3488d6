//! [`QuerySnapshot`] over one session: one call at a time, and an end that interrupts whatever runs.

use async_trait::async_trait;
use tidegate_core::id::SnapshotId;
use tidegate_core::port::{Catalogue, CatalogueQuery, Description, QuerySnapshot, RowSink, SourceError, Statement};
use tokio::sync::{Mutex, watch};

use crate::session::{Operation, Session};
use crate::{catalogue, describe, stream};

/// A pinned snapshot of the database. See the crate's page for what it promises.
pub(crate) struct PostgresSnapshot {
    id: SnapshotId,
    /// `None` once it was closed or its connection was lost.
    session: Mutex<Option<Session>>,
    closed: watch::Sender<bool>,
}

impl PostgresSnapshot {
    pub(crate) fn new(session: Session, id: SnapshotId) -> Self {
        Self { id, session: Mutex::new(Some(session)), closed: watch::Sender::new(false) }
    }

    /// Runs one call on the session. When the call reports that the snapshot is gone, the session is given up.
    async fn with_session<T>(
        &self,
        call: impl AsyncFnOnce(&mut Session, &mut watch::Receiver<bool>) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let mut closed = self.closed.subscribe();
        let mut guard = self.session.lock().await;
        let session = guard.as_mut().ok_or(SourceError::SnapshotLost(None))?;
        let answer = {
            let operation = Operation(session);
            call(operation.0, &mut closed).await
        };
        if let Err(SourceError::SnapshotLost(_)) = &answer {
            guard.take();
        }
        answer
    }
}

#[async_trait]
impl QuerySnapshot for PostgresSnapshot {
    fn id(&self) -> &SnapshotId {
        &self.id
    }

    async fn describe(&self, statement: &Statement) -> Result<Description, SourceError> {
        self.with_session(async |session, closed| {
            tokio::select! {
                prepared = describe::prepare(session, statement) => prepared?,
                _ = closed.wait_for(|closed| *closed) => return Err(SourceError::SnapshotLost(None)),
            }
            session.prepared.as_ref().map(describe::Prepared::description).ok_or(SourceError::Internal(None))
        })
        .await
    }

    async fn catalogue(&self, query: &CatalogueQuery) -> Result<Catalogue, SourceError> {
        self.with_session(async |session, closed| {
            tokio::select! {
                found = catalogue::look_up(session, query) => found,
                _ = closed.wait_for(|closed| *closed) => Err(SourceError::SnapshotLost(None)),
            }
        })
        .await
    }

    async fn stream(&self, statement: &Statement, sink: Box<dyn RowSink>) -> Result<(), SourceError> {
        self.with_session(async |session, closed| {
            tokio::select! {
                prepared = describe::prepare(session, statement) => prepared?,
                _ = closed.wait_for(|closed| *closed) => return Err(SourceError::SnapshotLost(None)),
            }
            stream::run(session, sink, closed).await
        })
        .await
    }

    async fn close(&self) {
        self.closed.send_replace(true);
        self.session.lock().await.take();
    }
}
