//! The load: producers, readers and group members, each a task with a connection and a seeded generator of its own. They go on
//! whatever the server does, and write down what they saw.

mod durable;
mod idempotent;
mod ordered;
mod plain;
mod reader;
mod shared;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::client::{Answer, Ask, Client, Failed};
use super::history::{Event, Micros, Recorder};
use super::plan::Plan;
use reader::Follow;

/// After an error a client waits this long at most, so that it neither spins nor sleeps through a life of the server.
const PAUSE_MS: u64 = 30;
/// Of answers that must not be, this many of a kind go into the history; all are counted.
const NOTED_OF_A_KIND: u64 = 3;
const PLAIN_PRODUCERS: u32 = 5;
const IDEMPOTENT_PRODUCERS: u32 = 4;
const DURABLE_PRODUCERS: u32 = 2;

/// Counted answers that were no success: (operation, status, code).
pub(crate) type Refusals = BTreeMap<(&'static str, u16, String), u64>;

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Context {
    pub address: SocketAddr,
    pub recorder: Recorder,
    pub plan: Plan,
    /// Faults are injected: the server may say that it cannot write.
    pub faults: bool,
    pub seed: u64,
    stop: AtomicBool,
    refusals: Mutex<Refusals>,
}

impl Context {
    pub(crate) fn new(address: SocketAddr, recorder: Recorder, plan: Plan, faults: bool, seed: u64) -> Arc<Self> {
        let (stop, refusals) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self { address, recorder, plan, faults, seed, stop, refusals })
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn refusals(&self) -> Refusals {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A client with its number, its generator and its connection.
pub(crate) struct Actor {
    pub id: u32,
    pub context: Arc<Context>,
    pub client: Client,
    pub random: fastrand::Rng,
    records: u32,
}

impl Actor {
    pub(crate) fn new(id: u32, context: &Arc<Context>) -> Self {
        let seed = context.seed ^ u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            id,
            context: Arc::clone(context),
            client: Client::new(context.address),
            random: fastrand::Rng::with_seed(seed),
            records: 0,
        }
    }

    /// The id of a new record, never used before.
    fn record(&mut self) -> u64 {
        self.records += 1;
        (u64::from(self.id) << 32) | u64::from(self.records)
    }

    pub(crate) fn now(&self) -> Micros {
        self.context.recorder.now()
    }

    pub(crate) fn note(&self, start: Micros, event: Event) {
        self.context.recorder.note(self.id, start, event);
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.u32(0..100) < percent
    }

    async fn pause(&mut self) {
        let ms = self.random.u64(1..=PAUSE_MS);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    async fn think(&mut self, ms: u64) {
        let us = self.random.u64(0..=ms * 1000);
        tokio::time::sleep(Duration::from_micros(us)).await;
    }

    /// Asks; counts what was refused, and notes what a well-formed request must not be answered. `expected` are statuses
    /// that are part of the game.
    async fn ask(&mut self, operation: &'static str, expected: &[u16], ask: Ask) -> Result<Answer, Failed> {
        let start = self.now();
        let result = self.client.ask(ask).await;
        if let Ok(answer) = &result
            && !answer.ok()
        {
            let key = (operation, answer.status, answer.code());
            let count = {
                let mut refusals = self.context.refusals.lock().unwrap_or_else(PoisonError::into_inner);
                let count = refusals.entry(key).or_default();
                *count += 1;
                *count
            };
            let usual = matches!(answer.status, 429 | 503) || (self.context.faults && answer.status >= 500);
            if !usual && !expected.contains(&answer.status) && count <= NOTED_OF_A_KIND {
                self.note(start, Event::Unexpected { operation, what: answer.told() });
            }
        }
        if result.is_err() || result.as_ref().is_ok_and(|answer| matches!(answer.status, 429 | 500..)) {
            self.pause().await;
        }
        result
    }

    /// An answer of a success that has not the shape of the contract.
    fn misshapen(&self, operation: &'static str, start: Micros, what: String) {
        self.note(start, Event::Unexpected { operation, what });
    }
}

/// Starts everybody.
pub(crate) fn start(context: &Arc<Context>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    // 0 is the server's own.
    let mut last = 0;
    let mut actor = || {
        last += 1;
        Actor::new(last, context)
    };
    for _ in 0..PLAIN_PRODUCERS {
        tasks.spawn(plain::run(actor()));
    }
    for _ in 0..IDEMPOTENT_PRODUCERS {
        tasks.spawn(idempotent::run(actor()));
    }
    for _ in 0..DURABLE_PRODUCERS {
        tasks.spawn(durable::produce(actor()));
    }
    tasks.spawn(durable::read(actor()));
    for stream in &context.plan.streams {
        tasks.spawn(reader::tail(actor(), stream.clone(), Follow::One));
        if stream.partitions > 1 {
            tasks.spawn(reader::tail(actor(), stream.clone(), Follow::All));
        }
        tasks.spawn(reader::pages(actor(), stream.clone()));
    }
    for group in &context.plan.groups {
        for _ in 0..group.clients {
            if group.shared {
                tasks.spawn(shared::run(actor(), group.clone()));
            } else {
                tasks.spawn(ordered::run(actor(), group.clone()));
            }
        }
    }
    tasks.spawn(ordered::watch(actor()));
    tasks
}

pub(crate) use durable::read_all as read_durable;
pub(crate) use ordered::{drain as drain_ordered, positions};
pub(crate) use plain::append_one;
pub(crate) use reader::{dead_letters, read_all};
pub(crate) use shared::drain as drain_shared;
