//! One store, one clock, and as many processes as a test wants. It never shares anything between them but the store.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tidegate_checkpoint::{
    CheckpointId, CheckpointParts, Checkpoints, ClaimOutcome, Draft, Job, Mode, Next, Recovery, Spec, Writer, Written,
};
use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::position::{Offset, Partition};
use tidegate_testkit::{ManualClock, SeededEntropy};

pub(crate) const TTL: Duration = Duration::from_secs(30);

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Bytes that repeat nowhere.
pub(crate) fn noise(seed: u64, bytes: usize) -> Bytes {
    use tidegate_core::port::Entropy as _;
    let mut noise = vec![0; bytes];
    SeededEntropy::new(seed).fill(&mut noise).unwrap();
    noise.into()
}

pub(crate) struct World {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) spec: Spec,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::on(Arc::new(InMemory::new()))
    }

    pub(crate) fn on(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, clock: Arc::new(ManualClock::new()), spec: Spec::default() }
    }

    /// The job as a process sees it whose randomness begins at `seed`.
    pub(crate) fn job(&self, seed: u64) -> Job {
        self.job_of("totals", seed)
    }

    pub(crate) fn job_of(&self, job: &str, seed: u64) -> Job {
        let parts = CheckpointParts {
            store: Arc::clone(&self.store),
            root: "root".into(),
            clock: self.clock.clone(),
            entropy: Arc::new(SeededEntropy::new(seed)),
            spec: self.spec.clone(),
        };
        Checkpoints::new(parts).job(&name(job))
    }

    pub(crate) async fn claim(&self, seed: u64, mode: Mode) -> (Writer, Recovery) {
        match self.job(seed).claim(&name("me"), TTL, mode).await.unwrap() {
            ClaimOutcome::Claimed { writer, recovery } => (writer, *recovery),
            ClaimOutcome::HeldBy { epoch, .. } => panic!("held by epoch {}", epoch.get()),
        }
    }

    /// The paths and sizes of all objects.
    pub(crate) async fn objects(&self) -> Vec<(String, u64)> {
        use futures::TryStreamExt as _;
        let listed: Vec<_> = self.store.list(None).try_collect().await.unwrap();
        let mut objects: Vec<_> = listed.iter().map(|object| (object.location.to_string(), object.size)).collect();
        objects.sort();
        objects
    }

    pub(crate) async fn bytes(&self, path: &str) -> Vec<u8> {
        use object_store::ObjectStoreExt as _;
        self.store.get(&path.into()).await.unwrap().bytes().await.unwrap().to_vec()
    }

    pub(crate) async fn overwrite(&self, path: &str, bytes: Vec<u8>) {
        use object_store::ObjectStoreExt as _;
        self.store.put(&path.into(), bytes.into()).await.unwrap();
    }

    pub(crate) async fn delete(&self, path: &str) {
        use object_store::ObjectStoreExt as _;
        self.store.delete(&path.into()).await.unwrap();
    }
}

pub(crate) fn draft(next: u64, watermark_ms: i64) -> Draft {
    let mut draft = Draft { watermark: Some(Timestamp::from_unix_ms(watermark_ms)), ..Draft::default() };
    draft.positions.entry(name("orders")).or_default().insert(Partition(0), Next::Offset(Offset(next)));
    draft
}

pub(crate) fn whole(bytes: Bytes) -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    futures::stream::iter([Ok(bytes)])
}

/// Saves one state and publishes it.
pub(crate) async fn save(writer: &Writer, state: Bytes, draft: Draft) -> Written<CheckpointId> {
    let mut save = writer.begin().await.unwrap();
    save.state(name("sums"), whole(state)).await.unwrap();
    save.publish(draft).await.unwrap()
}

pub(crate) async fn saved(writer: &Writer, state: Bytes, draft: Draft) -> CheckpointId {
    match save(writer, state, draft).await {
        Written::Done(id) => id,
        other => panic!("{other:?}"),
    }
}
