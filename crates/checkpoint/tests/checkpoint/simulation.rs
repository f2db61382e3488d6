//! A process of a job is stopped at every one of its writes and deletes, in every way: killed before it, killed after it, asleep before or after it,
//! with its answer lost, with the write refused, with the write delivered long after. Another process goes on meanwhile. In the end every
//! record was output exactly once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tidegate_checkpoint::{AppendError, CheckpointId, Mode, Next, Retention, Settled, Spec, Writer, Written};
use tidegate_core::position::{Offset, Partition};
use tidegate_testkit::block_on;
use tokio::sync::Notify;

use crate::world::{World, draft, name, noise, whole};

const RECORDS: u64 = 12;
const ROUND: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    DieBefore,
    DieAfter,
    SleepBefore,
    SleepAfter,
    LoseAnswer,
    Refuse,
    DeliverLate,
}

const FATES: [Fate; 7] = [
    Fate::DieBefore,
    Fate::DieAfter,
    Fate::SleepBefore,
    Fate::SleepAfter,
    Fate::LoseAnswer,
    Fate::Refuse,
    Fate::DeliverLate,
];

/// One process's view of the store.
#[derive(Debug)]
struct Stepped {
    inner: Arc<InMemory>,
    steps: Mutex<u64>,
    fate: Option<(u64, Fate)>,
    /// Told when the fate struck.
    struck: Notify,
    /// Told when the sleeper is to wake.
    wake: Notify,
    late: Mutex<Vec<(Path, PutPayload, PutOptions)>>,
}

impl Stepped {
    fn new(inner: &Arc<InMemory>, fate: Option<(u64, Fate)>) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            steps: Mutex::new(0),
            fate,
            struck: Notify::new(),
            wake: Notify::new(),
            late: Mutex::default(),
        })
    }

    fn step(&self) -> Option<Fate> {
        let mut steps = self.steps.lock();
        *steps += 1;
        self.fate.filter(|(at, _)| at == &*steps).map(|(_, fate)| fate)
    }

    fn broken() -> object_store::Error {
        object_store::Error::Generic { store: "stepped", source: "the line is dead".into() }
    }

    async fn before(&self, fate: Option<Fate>) {
        match fate {
            Some(Fate::DieBefore) => {
                self.struck.notify_one();
                std::future::pending().await
            }
            Some(Fate::SleepBefore) => {
                self.struck.notify_one();
                self.wake.notified().await;
            }
            _ => {}
        }
    }

    async fn after(&self, fate: Option<Fate>) -> Result<()> {
        match fate {
            Some(Fate::DieAfter) => {
                self.struck.notify_one();
                std::future::pending().await
            }
            Some(Fate::SleepAfter) => {
                self.struck.notify_one();
                self.wake.notified().await;
                Ok(())
            }
            Some(Fate::LoseAnswer) => Err(Self::broken()),
            _ => Ok(()),
        }
    }

    async fn deliver_late(&self) {
        let late = std::mem::take(&mut *self.late.lock());
        for (path, payload, options) in late {
            let _too_late = self.inner.put_opts(&path, payload, options).await;
        }
    }
}

impl fmt::Display for Stepped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stepped")
    }
}

#[async_trait]
impl ObjectStore for Stepped {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let fate = self.step();
        self.before(fate).await;
        match fate {
            Some(Fate::Refuse) => return Err(Self::broken()),
            Some(Fate::DeliverLate) => {
                self.late.lock().push((location.clone(), payload, opts));
                return Err(Self::broken());
            }
            _ => {}
        }
        let put = self.inner.put_opts(location, payload, opts).await;
        self.after(fate).await?;
        put
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        // The trait wants a stream that borrows nothing; deletions of one object are all that is asked for here.
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The same view, with deletions that are steps too.
#[derive(Debug)]
struct Shared(Arc<Stepped>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Shared {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.0.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = Arc::clone(&self.0);
        let delete = move |location: Result<Path>| {
            let store = Arc::clone(&store);
            async move {
                let location = location?;
                let fate = store.step();
                store.before(fate).await;
                if let Some(Fate::Refuse | Fate::DeliverLate) = fate {
                    return Err(Stepped::broken());
                }
                store.inner.delete(&location).await?;
                store.after(fate).await?;
                Ok(location)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

/// The system that the sink writes to: tokens that were committed, each once.
#[derive(Debug, Default)]
struct Outside {
    committed: Mutex<BTreeMap<Vec<u8>, (u64, u64)>>,
}

impl Outside {
    fn commit(&self, token: &[u8]) {
        let text = std::str::from_utf8(token).unwrap();
        let mut numbers = text.split('-').map(|number| number.parse().unwrap());
        let (_, from, to) = (numbers.next(), numbers.next().unwrap(), numbers.next().unwrap());
        self.committed.lock().insert(token.to_vec(), (from, to));
    }

    fn assert_once(&self, what: &str) {
        let mut ranges: Vec<_> = self.committed.lock().values().copied().collect();
        ranges.sort_unstable();
        let mut next = 0;
        for (from, to) in ranges {
            assert_eq!(from, next, "{what}: {:?}", self.committed.lock());
            next = to;
        }
        assert_eq!(next, RECORDS, "{what}");
    }
}

fn state_at(position: u64) -> bytes::Bytes {
    noise(position, 200)
}

fn world_on(store: Arc<Stepped>) -> World {
    let mut world = World::on(Arc::new(Shared(store)));
    world.spec = Spec { retention: Retention { keep_last: 2, ..Retention::default() }, ..Spec::default() };
    world
}

enum Round {
    Published(CheckpointId),
    Again,
    Over,
}

async fn round(writer: &Writer, position: u64, next: u64, token: &[u8]) -> Round {
    let Ok(mut save) = writer.begin().await else { return Round::Again };
    if save.state(name("sums"), whole(state_at(next))).await.is_err() {
        return Round::Again;
    }
    let mut told = draft(next, i64::try_from(position).unwrap());
    told.pending.insert(name("sink"), token.to_vec());
    let mut outcome = save.publish(told).await;
    for _ in 0..5 {
        match outcome {
            Ok(Written::Done(id)) => return Round::Published(id),
            Ok(Written::Fenced { .. } | Written::Expired) => return Round::Over,
            Err(AppendError::Indeterminate { .. }) => match writer.settle().await {
                Ok(Written::Done(Settled::Published(id))) => return Round::Published(id),
                Ok(Written::Done(_)) => return Round::Again,
                Ok(Written::Fenced { .. } | Written::Expired) => return Round::Over,
                Err(error) => outcome = Err(error),
            },
            Err(_) => return Round::Again,
        }
    }
    Round::Over
}

/// A whole life of a process: claim, recover, commit again, go on to the end. `at` is awaited before each round.
async fn live(world: &World, seed: u64, outside: &Outside, at: impl AsyncFn(u64)) {
    let mut claimed = None;
    for attempt in 0..4 {
        match world.job(seed * 100 + attempt).claim(&name("p"), crate::world::TTL, Mode::Force).await {
            Ok(tidegate_checkpoint::ClaimOutcome::Claimed { writer, recovery }) => {
                claimed = Some((writer, recovery));
                break;
            }
            Ok(tidegate_checkpoint::ClaimOutcome::HeldBy { .. }) => return,
            Err(_) => {}
        }
    }
    let Some((writer, mut recovery)) = claimed else { return };
    let mut position = 0;
    if let Some(found) = recovery.newest_whole().await.unwrap() {
        assert!(recovery.rejected.is_empty(), "{:?}", recovery.rejected);
        for token in found.recommit.values() {
            outside.commit(token);
        }
        let Next::Offset(Offset(next)) = found.positions()[&name("orders")][&Partition(0)] else { panic!() };
        assert_eq!(found.state("sums").unwrap().read(200).await.unwrap(), state_at(next));
        position = next;
        if !matches!(writer.committed(found.checkpoint.id.generation).await, Ok(Written::Done(()))) {
            // Not noted: it will be committed again, which changes nothing.
        }
    }
    let mut attempts = 0;
    while position < RECORDS {
        at(position).await;
        attempts += 1;
        assert!(attempts < 50, "it goes round and round");
        let next = position + ROUND;
        let token = format!("{}-{position}-{next}", writer.epoch().get());
        match round(&writer, position, next, token.as_bytes()).await {
            Round::Published(id) => {
                outside.commit(token.as_bytes());
                position = next;
                if let Ok(Written::Fenced { .. } | Written::Expired) = writer.committed(id.generation).await {
                    return;
                }
                let _again_later = writer.collect().await;
            }
            Round::Again => {}
            Round::Over => return,
        }
    }
    let _ = writer.release().await;
}

/// How many writes and deletes an undisturbed life takes.
async fn steps_of_a_life() -> u64 {
    let store = Stepped::new(&Arc::new(InMemory::new()), None);
    let outside = Outside::default();
    live(&world_on(Arc::clone(&store)), 1, &outside, async |_| {}).await;
    outside.assert_once("undisturbed");
    *store.steps.lock()
}

async fn one(step: u64, fate: Fate, wakes_at: u64, lives_before: bool) {
    let what = format!("step {step}, {fate:?}, the other one at {wakes_at}, {lives_before}");
    let inner = Arc::new(InMemory::new());
    let outside = Arc::new(Outside::default());
    if lives_before {
        // So that the first process begins with a checkpoint and what it must commit again.
        let fates = Some((4, Fate::DieAfter));
        let store = Stepped::new(&inner, fates);
        let world = world_on(Arc::clone(&store));
        tokio::select! {
            () = live(&world, 7, &outside, async |_| {}) => {}
            () = store.struck.notified() => {}
        }
    }
    let store = Stepped::new(&inner, Some((step, fate)));
    let mut first = {
        let (store, outside) = (Arc::clone(&store), Arc::clone(&outside));
        tokio::spawn(async move { live(&world_on(store), 1, &outside, async |_| {}).await })
    };
    let finished = tokio::select! {
        done = &mut first => { done.unwrap(); true }
        () = store.struck.notified() => false,
    };
    let zombie = Mutex::new((!finished).then_some(first));
    let wake = async || {
        store.deliver_late().await;
        let zombie = zombie.lock().take();
        match (zombie, fate) {
            (Some(zombie), Fate::SleepBefore | Fate::SleepAfter) => {
                store.wake.notify_one();
                tidegate_testkit::within("the zombie's end", zombie).await.unwrap();
            }
            (Some(dead), _) => dead.abort(),
            (None, _) => {}
        }
    };
    let second = world_on(Stepped::new(&inner, None));
    live(&second, 2, &outside, async |position| {
        if position >= wakes_at {
            wake().await;
        }
    })
    .await;
    wake().await;
    // Whoever comes last finds the end, whole, and nothing that is not needed stays.
    live(&second, 3, &outside, async |_| {}).await;
    outside.assert_once(&what);
    let (writer, mut recovery) = second.claim(999, Mode::Force).await;
    let found = recovery.newest_whole().await.unwrap().unwrap();
    assert!(recovery.rejected.is_empty(), "{what}: {:?}", recovery.rejected);
    assert_eq!(found.positions()[&name("orders")][&Partition(0)], Next::Offset(Offset(RECORDS)), "{what}");
    drop(found);
    let _ = writer.collect().await.unwrap();
    let kept = 1 + writer.newest().unwrap().manifest.parents.len();
    let objects = second.objects().await;
    let packs = objects.iter().filter(|(path, _)| path.contains("/packs/")).count();
    assert!(packs <= kept, "{what}: {objects:?}");
    assert!(objects.len() <= packs + 2 * kept + 2, "{what}: {objects:?}");
}

#[test]
fn a_process_that_is_stopped_at_any_step_in_any_way_loses_and_repeats_nothing() {
    block_on(async {
        let steps = steps_of_a_life().await;
        assert!(steps >= 20, "{steps}");
        for fate in FATES {
            for step in 1..=steps {
                for wakes_at in [0, ROUND, RECORDS] {
                    one(step, fate, wakes_at, step % 2 == 0).await;
                }
            }
        }
    });
}
