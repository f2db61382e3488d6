//! Writers, readers, deleters and uploaders at the same few objects, a server that is killed at any step and started again, and a history
//! that is checked: no orphan, no dual data, nothing that refers to nothing, the last writer wins, and what is read was written whole.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore as _;
use object_store::memory::InMemory;
use parking_lot::Mutex;
use tidegate_batch::blob::{Body, ColdStore};
use tidegate_batch::service::{Get, Got, Put};
use tidegate_batch::{
    Collection, Condition, GetError, Metadata, ObjectKey, ObjectParts, ObjectService, ObjectSpec, PutError, Scopes,
    StoreError, UploadError,
};
use tidegate_core::id::Name;
use tidegate_core::port::{Durability, MetaRange, MetaStore};
use tidegate_testkit::{Fault, FaultyStore, ManualClock, MemoryStore, SeededEntropy};

use crate::world::{Gate, GatedBlobs, GatedMeta, Uploads};

const HOT_MAX_BYTES: u64 = 64;
const OBJECTS: u64 = 3;
const LIVES: u64 = 6;
const ACTORS: u64 = 6;
const OPERATIONS: u64 = 5;

/// What somebody did to an object, by a count of events. An end of `u64::MAX` = nobody knows whether or when.
#[derive(Debug, Clone, Copy)]
struct Done {
    object: u64,
    /// The write's number, or `None` of a deletion.
    wrote: Option<u64>,
    from: u64,
    to: u64,
}

#[derive(Default)]
struct History {
    events: u64,
    done: Vec<Done>,
    in_flight: Vec<Done>,
    writes: u64,
}

impl History {
    fn tick(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    fn begin(&mut self, object: u64, write: bool) -> Done {
        let wrote = write.then(|| {
            self.writes += 1;
            self.writes
        });
        let begun = Done { object, wrote, from: self.tick(), to: u64::MAX };
        self.in_flight.push(begun);
        begun
    }

    /// `Some(true)` = it happened; `Some(false)` = it did not; `None` = nobody knows.
    fn end(&mut self, begun: Done, happened: Option<bool>) {
        let now = self.tick();
        self.in_flight.retain(|other| other.from != begun.from);
        match happened {
            Some(true) => self.done.push(Done { to: now, ..begun }),
            Some(false) => {}
            None => self.done.push(begun),
        }
    }

    /// The server was killed: what was under way may have happened.
    fn crash(&mut self) {
        let lost = std::mem::take(&mut self.in_flight);
        self.done.extend(lost);
    }

    /// Whether an object may have been found in this state by somebody who looked from `from` to `to`.
    fn explains(&self, object: u64, found: Option<u64>, from: u64, to: u64) -> bool {
        let of = |done: &&Done| done.object == object;
        let all = || self.done.iter().chain(&self.in_flight).filter(of);
        // Something that was certainly made between the end of that change and the look hides it.
        let hidden = |end: u64| all().any(|later| later.from > end && later.to < from);
        if found.is_none() && !hidden(0) {
            return true;
        }
        all().any(|done| done.wrote == found && done.from < to && (done.to == u64::MAX || !hidden(done.to)))
    }
}

/// The bytes of a write: every one of them says which it is, and how long it is follows from it.
fn content(write: u64) -> Bytes {
    let length = match write % 4 {
        0 => 8,
        1 => HOT_MAX_BYTES as usize,
        2 => HOT_MAX_BYTES as usize + 8,
        _ => 4_096,
    };
    write.to_be_bytes().repeat(length / 8).into()
}

fn write_of(bytes: &Bytes) -> u64 {
    let (first, _) = bytes.split_first_chunk().expect("no write is shorter");
    let write = u64::from_be_bytes(*first);
    assert_eq!(*bytes, content(write), "a part of a write, or of two");
    write
}

fn body(bytes: Bytes) -> Body<'static> {
    let pieces: Vec<_> = bytes.chunks(40).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    futures::stream::iter(pieces).boxed()
}

fn happened<T>(result: &Result<T, PutError>) -> Option<bool> {
    match result {
        Ok(_) => Some(true),
        Err(PutError::Store(StoreError::Indeterminate(_))) => None,
        Err(_) => Some(false),
    }
}

#[derive(Clone)]
struct Actor {
    objects: ObjectService,
    collection: Collection,
    history: Arc<Mutex<History>>,
    chance: Arc<SeededEntropy>,
}

impl Actor {
    async fn act(self) {
        for _ in 0..OPERATIONS {
            let object = self.chance.below(OBJECTS);
            match self.chance.below(10) {
                0..4 => self.write(object).await,
                4 => self.upload(object).await,
                5 => self.delete(object).await,
                _ => self.read(object).await,
            }
        }
    }

    async fn write(&self, object: u64) {
        let begun = self.history.lock().begin(object, true);
        let bytes = content(begun.wrote.unwrap());
        let (collection, key) = (&self.collection, key(object));
        let put = self.objects.put(collection, &key, Put::default(), body(bytes));
        let happened = if self.chance.below(6) == 0 {
            // The caller goes away.
            let patience = async {
                for _ in 0..self.chance.below(40) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                put = put => happened(&put),
                () = patience => None,
            }
        } else {
            happened(&put.await)
        };
        self.history.lock().end(begun, happened);
    }

    async fn delete(&self, object: u64) {
        let begun = self.history.lock().begin(object, false);
        let deleted = self.objects.delete(&self.collection, &key(object), &Condition::default()).await;
        // Where there was nothing, it hides nothing that was written before either.
        self.history.lock().end(begun, happened(&deleted));
    }

    async fn upload(&self, object: u64) {
        let (collection, key) = (&self.collection, &key(object));
        let Ok(token) = self.objects.begin_upload(collection, key, Metadata::default()).await else { return };
        let begun = self.history.lock().begin(object, true);
        let bytes = content(begun.wrote.unwrap());
        let (first, second) = (bytes.slice(..bytes.len() / 2), bytes.slice(bytes.len() / 2..));
        let uploaded = async {
            // Out of order, and one of them twice.
            for (number, part) in [(2, &second), (1, &second), (1, &first)] {
                self.objects.put_part(collection, key, token, number, None, body(part.clone())).await?;
            }
            if self.chance.below(4) == 0 {
                self.objects.abort_upload(collection, key, token).await?;
                return Err(UploadError::Unknown);
            }
            self.objects.complete_upload(collection, key, token, None, &Condition::default()).await
        };
        let happened = match uploaded.await {
            Ok(_) => Some(true),
            Err(UploadError::Put(PutError::Store(StoreError::Indeterminate(_)))) => None,
            Err(_) => Some(false),
        };
        self.history.lock().end(begun, happened);
    }

    async fn read(&self, object: u64) {
        let from = self.history.lock().tick();
        let found = read(&self.objects, &self.collection, object).await;
        let history = &mut *self.history.lock();
        let to = history.tick();
        if let Some(found) = found {
            assert!(
                history.explains(object, found, from, to),
                "object {object} was {found:?} from {from} to {to}: {:#?}",
                history.done
            );
        }
    }
}

/// The write that is there; `None` = the object was replaced while it was read.
async fn read(objects: &ObjectService, collection: &Collection, object: u64) -> Option<Option<u64>> {
    match objects.get(collection, &key(object), &Get::default()).await {
        Ok(Got::Object(found)) => {
            let pieces: Result<Vec<Bytes>, GetError> = found.body.try_collect().await;
            match pieces {
                Ok(pieces) => {
                    let bytes = Bytes::from(pieces.concat());
                    assert_eq!(bytes.len() as u64, found.info.length);
                    Some(Some(write_of(&bytes)))
                }
                Err(error) => unknown(object, &error),
            }
        }
        Ok(Got::NotModified(_)) => unreachable!("nothing was made a condition"),
        Err(GetError::NotFound { .. }) => Some(None),
        Err(error) => unknown(object, &error),
    }
}

/// A reading that tells nothing, as it may; damage it may never tell.
fn unknown(object: u64, error: &GetError) -> Option<Option<u64>> {
    match error {
        GetError::Replaced | GetError::Store(StoreError::Unavailable(_)) => None,
        error => panic!("object {object}: {error}"),
    }
}

fn key(object: u64) -> ObjectKey {
    ObjectKey::new(&format!("../{object}")).unwrap()
}

fn collection() -> Collection {
    let name = |text| Name::new(text).unwrap();
    Collection { tenant: name("acme"), usecase: name("files"), scopes: Scopes::parse("org=17").unwrap() }
}

struct World {
    seed: u64,
    clock: ManualClock,
    meta: Arc<FaultyStore<MemoryStore>>,
    blobs: Arc<InMemory>,
    uploads: Uploads,
    history: Arc<Mutex<History>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let clock = ManualClock::new();
        let meta = FaultyStore::new(MemoryStore::new(Arc::new(clock.clone())), seed);
        Self { seed, clock, meta, blobs: Arc::new(InMemory::new()), uploads: Arc::default(), history: Arc::default() }
    }

    /// What goes wrong in this world besides the kills.
    fn break_storage(&self) {
        let plan = self.meta.plan();
        match self.seed % 5 {
            1 => plan.fail_with_probability(0.05, Fault::Indeterminate { applied: true }),
            2 => plan.fail_with_probability(0.05, Fault::Indeterminate { applied: false }),
            3 => {
                plan.fail_with_probability(0.02, Fault::Indeterminate { applied: true });
                plan.fail_with_probability(0.02, Fault::Indeterminate { applied: false });
                plan.fail_with_probability(0.02, Fault::Unavailable);
                plan.fail_reads_with_probability(0.02);
            }
            _ => {}
        }
    }

    /// Some worlds have a bucket, some a plain store; in some a large object lies in several blobs.
    fn cold(&self, gate: &Arc<Gate>) -> ColdStore {
        let (store, uploads) = (Arc::clone(&self.blobs), Arc::clone(&self.uploads));
        let blobs = Arc::new(GatedBlobs { store, uploads, gate: Arc::clone(gate) });
        let cold = if self.seed % 4 < 2 { ColdStore::with_uploads(blobs) } else { blobs.into() };
        if self.seed.is_multiple_of(3) { cold.with_blob_max_bytes(1_500) } else { cold }
    }

    fn open(&self, life: u64, gate: &Arc<Gate>) -> ObjectService {
        let mut spec = ObjectSpec::default();
        spec.hot_max_bytes = HOT_MAX_BYTES;
        // Some worlds keep what was replaced for a while, some do not.
        spec.grace = Duration::from_secs(self.seed % 2 * 60);
        ObjectService::new(ObjectParts {
            meta: Arc::new(GatedMeta { store: Arc::clone(&self.meta) as Arc<dyn MetaStore>, gate: Arc::clone(gate) }),
            cold: self.cold(gate),
            clock: Arc::new(self.clock.clone()),
            entropy: Arc::new(SeededEntropy::new(self.seed ^ (life << 32) ^ 7)),
            durability: Durability::Fsync,
            spec,
        })
        .unwrap()
    }

    /// One life of the server, that ends at a step. `true` = it came to its end before that.
    fn live(&self, life: u64, steps: i64) -> bool {
        self.break_storage();
        let gate = if self.seed % 5 == 4 {
            Gate::failing(self.seed ^ life, steps)
        } else {
            Gate::new(self.seed ^ life, steps)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let whole = runtime.block_on(async {
            let objects = self.open(life, &gate);
            let work = async {
                // Storage may fail it: then somebody tries again later.
                let _ = objects.recover().await;
                let mut tasks = tokio::task::JoinSet::new();
                for actor in 0..ACTORS {
                    let chance = Arc::new(SeededEntropy::new(self.seed.wrapping_mul(31) ^ (life << 8) ^ actor));
                    let history = Arc::clone(&self.history);
                    let actor = Actor { objects: objects.clone(), collection: collection(), history, chance };
                    tasks.spawn(actor.act());
                }
                let sweeping = objects.clone();
                let sweeps = tokio::spawn(async move {
                    let mut place = Default::default();
                    loop {
                        let _ = sweeping.sweep(&mut place).await;
                        tokio::task::yield_now().await;
                    }
                });
                while let Some(acted) = tasks.join_next().await {
                    acted.unwrap();
                }
                sweeps.abort();
                let _ = sweeps.await;
            };
            tokio::select! {
                () = work => true,
                () = gate.stopped.notified() => false,
            }
        });
        // The server is gone with everything that it was about to do.
        drop(runtime);
        self.meta.plan().heal();
        self.history.lock().crash();
        whole
    }

    /// After the last life: everything is finished, and nothing is left over.
    fn check(&self) {
        self.meta.plan().heal();
        let gate = Gate::new(self.seed, i64::MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let objects = self.open(LIVES + 1, &gate);
            objects.recover().await.unwrap();
            // Beyond the grace, and beyond every upload's time.
            self.clock.advance(Duration::from_secs(8 * 24 * 3_600));
            let mut place = Default::default();
            for _ in 0..3 {
                let swept = objects.sweep(&mut place).await.unwrap();
                assert_eq!(swept.failed, 0);
            }
            let mut bodies = 0;
            for object in 0..OBJECTS {
                let (from, to) = {
                    let mut history = self.history.lock();
                    (history.tick(), history.tick() + 1)
                };
                let found = read(&objects, &collection(), object).await.expect("nobody writes");
                assert!(
                    self.history.lock().explains(object, found, from, to),
                    "seed {}: object {object} is {found:?}: {:#?}",
                    self.seed,
                    self.history.lock().done
                );
                let Some(_) = found else { continue };
                let Ok(Got::Object(found)) = objects.head(&collection(), &key(object), &Condition::default()).await
                else {
                    panic!("it is there")
                };
                if found.info.tier == tidegate_batch::Tier::Hot {
                    bodies += 1;
                }
            }
            let count = |prefix: &'static [u8]| {
                let meta = Arc::clone(&self.meta);
                async move {
                    let prefix = Bytes::from_static(prefix);
                    meta.scan(MetaRange { prefix: prefix.clone(), from: prefix, limit: 10_000 }).await.unwrap().len()
                }
            };
            assert_eq!(count(b"oi\0").await, 0, "seed {}: intents are left", self.seed);
            assert_eq!(count(b"ou\0").await, 0, "seed {}: uploads are left", self.seed);
            assert_eq!(count(b"op\0").await, 0, "seed {}: parts are left", self.seed);
            assert_eq!(count(b"oc\0").await, 0, "seed {}: answers of completions are left", self.seed);
            assert_eq!(count(b"ob\0").await, bodies, "seed {}: small bytes that nobody has", self.seed);
            // With everything deleted, nothing at all may be left.
            for object in 0..OBJECTS {
                objects.delete(&collection(), &key(object), &Condition::default()).await.unwrap();
            }
            self.clock.advance(Duration::from_secs(120));
            objects.sweep(&mut place).await.unwrap();
            objects.sweep(&mut place).await.unwrap();
            assert_eq!(self.blobs.list(None).count().await, 0, "seed {}: orphans", self.seed);
            // One that holds nothing was begun, and its name reached nobody.
            let holding = self.uploads.lock().values().filter(|parts| **parts > 0).count();
            assert_eq!(holding, 0, "seed {}: uploads that hold parts", self.seed);
            for prefix in [&b"oh\0"[..], b"ob\0", b"oi\0"] {
                assert_eq!(count(prefix).await, 0, "seed {}", self.seed);
            }
        });
    }
}

/// How many seeds; `TIDEGATE_SIM_SEEDS` for more.
fn seeds() -> u64 {
    std::env::var("TIDEGATE_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(300)
}

#[test]
fn whatever_step_the_server_is_killed_at_no_orphan_no_dual_data_no_dangling_redirect_and_the_last_writer_wins() {
    let mut killed = 0;
    for seed in 0..seeds() {
        let world = World::new(seed);
        let chance = SeededEntropy::new(seed);
        for life in 1..=LIVES {
            let steps = i64::try_from(chance.below(400)).unwrap();
            if !world.live(life, steps) {
                killed += 1;
            }
        }
        world.check();
    }
    assert!(killed > seeds(), "hardly any life was cut short");
}

#[test]
fn a_single_write_of_each_kind_can_be_killed_between_every_two_of_its_steps() {
    for writes in 0..4 {
        let mut steps = 0;
        loop {
            let world = World::new(2 * writes);
            // Numbers decide which kind of write it is, and over which kind.
            world.history.lock().writes = writes;
            let whole = one_write(&world, 1, i64::MAX);
            assert!(whole);
            let whole = one_write(&world, 2, steps);
            world.check();
            if whole {
                break;
            }
            steps += 1;
            assert!(steps < 1_000, "a write has not so many steps");
        }
        assert!(steps >= 3, "a write has more steps than {steps}");
    }
}

fn one_write(world: &World, life: u64, steps: i64) -> bool {
    let gate = Gate::new(world.seed, steps);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let whole = runtime.block_on(async {
        let objects = world.open(life, &gate);
        let chance = Arc::new(SeededEntropy::new(1));
        let history = Arc::clone(&world.history);
        let actor = Actor { objects, collection: collection(), history, chance };
        tokio::select! {
            () = actor.write(0) => true,
            () = gate.stopped.notified() => false,
        }
    });
    drop(runtime);
    world.history.lock().crash();
    whole
}
