//! A store around another one that fails, waits and wakes for nothing as a test tells it. It never makes up data: what
//! it answers without an error comes from the store inside.

mod plan;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tidegate_core::port::{
    AppendBatch, AppendOutcome, Cause, ChangeLog, CompareAndSwap, Created, Durability, LogError, LogRead, LogSpec,
    LogWatch, MetaEntry, MetaError, MetaRange, MetaStore, MetaWatch, PartitionBounds, ReadBounds, StreamId,
    SwapOutcome, Trim,
};
use tidegate_core::position::{Offset, Partition};

pub use plan::{Call, Fault, FaultPlan};

/// A [`ChangeLog`] and a [`MetaStore`] around another one, with faults by plan: deterministic for the same seed and the same
/// order of calls.
pub struct FaultyStore<S> {
    inner: Arc<S>,
    plan: FaultPlan,
}

/// The cause of every error that a [`FaultyStore`] makes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fault by plan: {fault:?}")]
pub struct Injected {
    /// Which.
    pub fault: Fault,
}

impl<S> FaultyStore<S> {
    /// A store without faults at first. The seed is for [`FaultPlan::fail_with_probability`].
    pub fn new(inner: Arc<S>, seed: u64) -> Arc<Self> {
        Arc::new(Self { inner, plan: FaultPlan::new(seed) })
    }

    /// The handle on what goes wrong.
    pub fn plan(&self) -> &FaultPlan {
        &self.plan
    }

    /// The store inside.
    pub fn inner(&self) -> &Arc<S> {
        &self.inner
    }

    /// One call: waits while it is held, fails as planned, or happens.
    async fn call<T, E: Faulty>(&self, call: Call, happen: impl Future<Output = Result<T, E>> + Send) -> Result<T, E> {
        self.plan.pass(call).await;
        let answer = match self.plan.draw(call) {
            None => happen.await,
            Some(fault @ Fault::Indeterminate { applied: true }) => happen.await.and(Err(E::from_fault(fault))),
            Some(fault) => Err(E::from_fault(fault)),
        };
        self.plan.pass_answer(call).await;
        answer
    }
}

/// An error that can be made up.
trait Faulty {
    fn from_fault(fault: Fault) -> Self;
}

fn cause(fault: Fault) -> Cause {
    Injected { fault }.into()
}

impl Faulty for LogError {
    fn from_fault(fault: Fault) -> Self {
        match fault {
            Fault::Unavailable => Self::Unavailable(cause(fault)),
            Fault::Indeterminate { .. } => Self::Indeterminate(cause(fault)),
            Fault::Full => Self::Full,
        }
    }
}

impl Faulty for MetaError {
    fn from_fault(fault: Fault) -> Self {
        match fault {
            Fault::Unavailable => Self::Unavailable(cause(fault)),
            Fault::Indeterminate { .. } => Self::Indeterminate(cause(fault)),
            Fault::Full => Self::Full,
        }
    }
}

#[async_trait]
impl<S: ChangeLog> ChangeLog for FaultyStore<S> {
    async fn create(&self, stream: &StreamId, spec: &LogSpec) -> Result<Created, LogError> {
        self.call(Call::Create, self.inner.create(stream, spec)).await
    }

    async fn append(&self, batch: AppendBatch) -> Result<AppendOutcome, LogError> {
        self.call(Call::Append, self.inner.append(batch)).await
    }

    async fn read(
        &self,
        stream: &StreamId,
        partition: Partition,
        from: Offset,
        bounds: ReadBounds,
    ) -> Result<LogRead, LogError> {
        self.call(Call::Read, self.inner.read(stream, partition, from, bounds)).await
    }

    async fn bounds(&self, stream: &StreamId) -> Result<Vec<PartitionBounds>, LogError> {
        self.call(Call::Bounds, self.inner.bounds(stream)).await
    }

    async fn trim(&self, stream: &StreamId, trim: Trim) -> Result<Vec<PartitionBounds>, LogError> {
        self.call(Call::Trim, self.inner.trim(stream, trim)).await
    }

    async fn watch(&self, stream: &StreamId) -> Result<LogWatch, LogError> {
        let watch = self.call(Call::WatchLog, self.inner.watch(stream)).await?;
        let (inner, stream) = (Arc::clone(&self.inner), stream.clone());
        Ok(woken_for_nothing(watch, &self.plan, move || {
            let (inner, stream) = (Arc::clone(&inner), stream.clone());
            async move { inner.bounds(&stream).await.unwrap_or_default() }
        }))
    }
}

#[async_trait]
impl<S: MetaStore> MetaStore for FaultyStore<S> {
    async fn get(&self, key: &[u8]) -> Result<Option<MetaEntry>, MetaError> {
        self.call(Call::Get, self.inner.get(key)).await
    }

    async fn scan(&self, range: MetaRange) -> Result<Vec<MetaEntry>, MetaError> {
        self.call(Call::Scan, self.inner.scan(range)).await
    }

    async fn compare_and_swap(
        &self,
        swaps: Vec<CompareAndSwap>,
        durability: Durability,
    ) -> Result<SwapOutcome, MetaError> {
        self.call(Call::Swap, self.inner.compare_and_swap(swaps, durability)).await
    }

    async fn watch(&self, prefix: Bytes) -> Result<MetaWatch, MetaError> {
        let watch = self.call(Call::WatchMeta, self.inner.watch(prefix.clone())).await?;
        let inner = Arc::clone(&self.inner);
        Ok(woken_for_nothing(watch, &self.plan, move || {
            let (inner, prefix) = (Arc::clone(&inner), prefix.clone());
            let range = MetaRange { from: prefix.clone(), prefix, limit: 1 };
            async move { inner.scan(range).await.unwrap_or_default() }
        }))
    }
}

/// A watch that gives what is there now (`look`) again where the plan says so. It ends with the true one.
fn woken_for_nothing<T, L>(
    watch: futures::stream::BoxStream<'static, T>,
    plan: &FaultPlan,
    look: impl Fn() -> L + Send + 'static,
) -> futures::stream::BoxStream<'static, T>
where
    T: Send + 'static,
    L: Future<Output = Vec<T>> + Send,
{
    let start = (watch, plan.wakes(), look, false, Vec::new());
    futures::stream::unfold(start, |(mut watch, mut wakes, look, mut again, mut extra)| async move {
        loop {
            if let Some(item) = extra.pop() {
                return Some((item, (watch, wakes, look, again, extra)));
            }
            if std::mem::take(&mut again) {
                extra = look().await;
                continue;
            }
            tokio::select! {
                // The true watch first: its end must not be put off by wakes for nothing.
                biased;
                item = watch.next() => {
                    let item = item?;
                    again = wakes.borrow().always;
                    return Some((item, (watch, wakes, look, again, extra)));
                }
                Ok(()) = wakes.changed() => again = true,
            }
        }
    })
    .boxed()
}

impl<S> std::fmt::Debug for FaultyStore<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultyStore").field("plan", &self.plan).finish_non_exhaustive()
    }
}
