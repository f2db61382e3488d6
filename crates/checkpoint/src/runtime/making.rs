//! One checkpoint, made while records go on: what the sink has is made ready, the state is saved, the manifest published. It holds the sink
//! until then, and never leaves it open whether the manifest is there while the term lasts.

use std::sync::Arc;

use futures::future::BoxFuture;
use tidegate_core::Moment;
use tidegate_core::id::Name;
use tidegate_core::time::Clock;

use super::port::{RunError, TwoPhaseSink};
use crate::coordinator::Attempt;
use crate::error::AppendError;
use crate::id::{CheckpointId, Generation};
use crate::keyed::KeyedSnapshot;
use crate::manifest::Draft;
use crate::writer::{Settled, Writer, Written};

/// A checkpoint under way.
pub(super) struct Making<O, K> {
    pub(super) writer: Writer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) deadline: Moment,
    pub(super) sink: K,
    pub(super) sink_name: Name,
    pub(super) outputs: Vec<O>,
    pub(super) operator: Name,
}

pub(super) type Made = Written<(CheckpointId, Option<Vec<u8>>)>;

impl<O, K: TwoPhaseSink<O>> Making<O, K> {
    pub(super) async fn run(mut self, draft: Draft, snapshot: KeyedSnapshot) -> Attempted<K> {
        let result = self.make(draft, snapshot).await;
        Attempted { sink: self.sink, result }
    }

    async fn make(&mut self, mut draft: Draft, snapshot: KeyedSnapshot) -> Result<Made, RunError> {
        if !self.outputs.is_empty() {
            self.sink.write(std::mem::take(&mut self.outputs)).await.map_err(RunError::Sink)?;
        }
        let token = self.sink.pre_commit().await.map_err(RunError::Sink)?;
        draft.pending.extend(token.clone().map(|token| (self.sink_name.clone(), token)));
        let publish = async {
            let mut save = self.writer.begin().await?;
            save.keyed(self.operator.clone(), snapshot).await?;
            save.publish(draft).await
        };
        let published = tokio::select! {
            published = publish => match published {
                Err(error @ AppendError::Indeterminate { .. }) => Err(Some(error)),
                decided => Ok(decided?),
            },
            () = self.clock.sleep_until(self.deadline) => Err(None),
        };
        match published {
            Ok(published) => Ok(published.map(|id| (id, token))),
            Err(doubt) => Self::settle(self.writer.clone(), Arc::clone(&self.clock), doubt, token).await,
        }
    }

    /// Whether it was published must be known before anything else is pre-committed: it is asked for as long as the term lasts.
    async fn settle(
        writer: Writer,
        clock: Arc<dyn Clock>,
        mut doubt: Option<AppendError>,
        token: Option<Vec<u8>>,
    ) -> Result<Made, RunError> {
        while writer.holds() {
            match writer.settle().await {
                Ok(Written::Done(Settled::Published(id))) => return Ok(Written::Done((id, token))),
                Ok(Written::Done(_)) => return Err(RunError::NotPublished(doubt)),
                Ok(Written::Fenced { by }) => return Ok(Written::Fenced { by }),
                Ok(Written::Expired) => break,
                Err(error) => doubt = Some(error),
            }
            clock.sleep_until(clock.now().after(writer.ttl() / 16)).await;
        }
        Ok(Written::Expired)
    }
}

/// What a checkpoint under way gives back: the sink, and what became of it.
pub(super) struct Attempted<K> {
    pub(super) sink: K,
    pub(super) result: Result<Made, RunError>,
}

pub(super) enum Work<K> {
    Saving(Attempt, BoxFuture<'static, Attempted<K>>),
    Committing(Generation, Vec<u8>, BoxFuture<'static, (K, Result<(), RunError>)>),
}

/// What came of the work.
pub(super) enum Done<K> {
    Saved(Attempt, Attempted<K>),
    Committed(Generation, Vec<u8>, (K, Result<(), RunError>)),
}

/// The end of the work under way; never, if there is none. Dropped before it, the work is where it was.
pub(super) async fn worked<K>(work: &mut Option<Work<K>>) -> Done<K> {
    let done = match work {
        Some(Work::Saving(attempt, saving)) => Done::Saved(*attempt, saving.as_mut().await),
        Some(Work::Committing(generation, token, committing)) => {
            let done = committing.as_mut().await;
            Done::Committed(*generation, std::mem::take(token), done)
        }
        None => std::future::pending().await,
    };
    *work = None;
    done
}

pub(super) async fn pending<T>(work: &mut Option<BoxFuture<'static, T>>) -> T {
    match work {
        Some(work) => work.as_mut().await,
        None => std::future::pending().await,
    }
}
