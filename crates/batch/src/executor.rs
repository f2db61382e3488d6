//! The bounded batch executor: many operations at one time, each in a task of its own, with a bound on how many and on the
//! bytes that they hold. It stores nothing, retries nothing, orders nothing, and never waits for a window.
//!
//! The page below tells its states, its rule against deadlock and its bounds.
#![doc = include_str!("../EXECUTOR.md")]

mod batch;
mod error;
mod flight;
mod metric;
mod nesting;
mod operate;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tidegate_core::limit::Limit;
use tidegate_core::time::Clock;
use tokio::sync::{Notify, Semaphore};

use crate::window::Vegas;
use metric::Kinds;
use nesting::Rank;

pub use batch::{Batch, Item, Reservation};
pub use error::{AtCapacity, ItemError, LimitsError};
pub use metric::KIND_MAX_COUNT;
pub use nesting::nested;
pub use operate::{Operate, Unweighed, Work};

/// The most permits that an executor has.
pub const PERMITS_MAX: u32 = 65_536;
/// The most bytes in flight that an executor can allow: a pebibyte.
pub const BYTES_MAX: u64 = 1 << 50;
/// Bytes are counted in at most so many units, of one byte each where the bound is not larger.
const UNITS_MAX: u64 = 1 << 28;

/// The bounds that are built in.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "batch_executor_permits_max_count",
        value: PERMITS_MAX as u64,
        meaning: "The most permits that a batch executor can be given.",
    },
    Limit {
        name: "batch_executor_kinds_max_count",
        value: KIND_MAX_COUNT as u64,
        meaning: "Kinds of operations that a batch executor's metrics tell apart; the rest are counted as `other`.",
    },
];

/// The bounds of one executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many operations of all batches may be in flight or wait with their result to be taken: 1 to [`PERMITS_MAX`].
    pub permits: u32,
    /// What share of the permits that are free one batch reserves, in percent, rounded up: 1 to 100.
    pub window_percent: u8,
    /// How many bytes the operations of all batches may hold together: 1 to [`BYTES_MAX`]. An operation that weighs more by itself is
    /// refused. Counted exactly up to 256 MiB, above in units of bound / 2^28, rounded up.
    pub bytes_in_flight: u64,
}

impl Default for Limits {
    /// 500 permits, a tenth of what is free for one batch, 64 MiB in flight.
    fn default() -> Self {
        Self { permits: 500, window_percent: 10, bytes_in_flight: 64 * 1_024 * 1_024 }
    }
}

impl Limits {
    fn check(self) -> Result<Self, LimitsError> {
        if !(1..=PERMITS_MAX).contains(&self.permits) {
            return Err(LimitsError::Permits { permits: self.permits });
        }
        if !(1..=100).contains(&self.window_percent) {
            return Err(LimitsError::Window { percent: self.window_percent });
        }
        if !(1..=BYTES_MAX).contains(&self.bytes_in_flight) {
            return Err(LimitsError::Bytes { bytes: self.bytes_in_flight });
        }
        Ok(self)
    }

    /// How many bytes one unit of the semaphore stands for.
    fn unit(self) -> u64 {
        self.bytes_in_flight.div_ceil(UNITS_MAX)
    }

    fn units(self) -> u64 {
        self.bytes_in_flight / self.unit()
    }
}

/// What an executor has given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Permits that batches hold.
    pub permits: u32,
    /// Bytes that operations hold, to the unit that [`Limits::bytes_in_flight`] is counted in.
    pub bytes: u64,
}

/// Bounds all batches of a process, or all that go to one store. Clones share the bounds; a clone costs one counter.
///
/// Make an executor that is used within operations of another one after that one: see [`AtCapacity::Nested`].
#[derive(Debug, Clone)]
pub struct Executor {
    core: Arc<Core>,
}

pub(crate) struct Core {
    rank: Rank,
    limits: Limits,
    free: AtomicU32,
    /// How many permits each owner holds, of those who hold some.
    owners: Mutex<HashMap<Arc<str>, u32>>,
    bytes: Semaphore,
    all_free: Notify,
    kinds: Kinds,
    adaptive: Option<Adaptive>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("limits", &self.limits).field("free", &self.free).finish_non_exhaustive()
    }
}

struct Adaptive {
    clock: Arc<dyn Clock>,
    /// What the last batch that ended had learnt; the next one begins with it.
    learnt: Mutex<Vegas>,
}

impl Executor {
    /// An executor whose batches use the whole of their reservation.
    ///
    /// # Errors
    /// A limit is out of its range.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        Self::build(limits, None)
    }

    /// An executor whose batches use as much of their reservation as does not make the store slower, found from the latency of
    /// operations: see [`Vegas`]. What one batch learns the next one begins with, so that one executor should go to one store.
    ///
    /// # Errors
    /// A limit is out of its range.
    pub fn adaptive(limits: Limits, clock: Arc<dyn Clock>) -> Result<Self, LimitsError> {
        let learnt = Mutex::new(Vegas::new(limits.permits));
        Self::build(limits, Some(Adaptive { clock, learnt }))
    }

    fn build(limits: Limits, adaptive: Option<Adaptive>) -> Result<Self, LimitsError> {
        let limits = limits.check()?;
        metric::describe();
        let units = usize::try_from(limits.units()).expect("at most 2^28 units");
        let core = Core {
            rank: Rank::next(),
            limits,
            free: AtomicU32::new(limits.permits),
            owners: Mutex::default(),
            bytes: Semaphore::new(units),
            all_free: Notify::new(),
            kinds: Kinds::default(),
            adaptive,
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// Its bounds.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.core.limits
    }

    /// What is given out at this moment.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let limits = self.core.limits;
        let free = u64::try_from(self.core.bytes.available_permits()).unwrap_or(u64::MAX);
        Usage {
            permits: limits.permits - self.core.free.load(Ordering::Acquire),
            bytes: limits.units().saturating_sub(free) * limits.unit(),
        }
    }

    /// Reserves the window of one batch: the share of the permits that are free now, rounded up. At once, all or nothing: it never
    /// waits and reads nothing.
    ///
    /// # Errors
    /// No permit is free, or it is asked for where waiting could wait for ever.
    pub fn reserve(&self) -> Result<Reservation, AtCapacity> {
        self.reserve_at_most(u32::MAX)
    }

    /// The same, but at most so many (at least one): for a batch of which it is known that it is small.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn reserve_at_most(&self, operations: u32) -> Result<Reservation, AtCapacity> {
        let permits = self.take(operations.max(1))?;
        Ok(Reservation::new(Held::new(Arc::clone(&self.core), permits, None)))
    }

    /// The same for a batch of this owner, all of whose batches hold at most as many permits as they leave free, rounded up: half of all,
    /// where nobody else has any. So one owner's batches, however slow, never keep another's from beginning.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve); and the owner has its share.
    pub fn reserve_for(&self, owner: &str) -> Result<Reservation, AtCapacity> {
        let mut owners = self.core.owners.lock();
        let held = owners.get(owner).copied().unwrap_or(0);
        // What others take or give back meanwhile does not count.
        let left = self.core.free.load(Ordering::Acquire).saturating_sub(held).div_ceil(2);
        if left == 0 && held > 0 {
            metric::refused("owner");
            return Err(AtCapacity::Share { permits: held });
        }
        let permits = self.take(left.max(1))?;
        let owner: Arc<str> = match owners.get_key_value(owner) {
            Some((owner, _)) => Arc::clone(owner),
            None => owner.into(),
        };
        *owners.entry(Arc::clone(&owner)).or_default() += permits;
        drop(owners);
        Ok(Reservation::new(Held::new(Arc::clone(&self.core), permits, Some(owner))))
    }

    /// Takes the share of one batch from the permits that are free.
    fn take(&self, operations: u32) -> Result<u32, AtCapacity> {
        if !self.core.rank.may_wait() {
            metric::refused("nested");
            return Err(AtCapacity::Nested);
        }
        let percent = u64::from(self.core.limits.window_percent);
        let share = |free: u32| {
            let share = (u64::from(free) * percent).div_ceil(100);
            u32::try_from(share).unwrap_or(u32::MAX).min(operations)
        };
        let taken = self
            .core
            .free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| (free > 0).then(|| free - share(free)));
        taken.map(share).map_err(|_| {
            metric::refused("permits");
            AtCapacity::InUse { permits: self.core.limits.permits }
        })
    }

    /// Waits until no permit is in use: no batch is read and every operation that was begun has ended. For a shutdown that lets
    /// operations end; new batches can begin meanwhile and are waited for too.
    pub async fn at_rest(&self) {
        loop {
            let mut all_free = std::pin::pin!(self.core.all_free.notified());
            // Enlisted before it is looked at: a release in between is not missed.
            all_free.as_mut().enable();
            if self.core.free.load(Ordering::Acquire) == self.core.limits.permits {
                return;
            }
            all_free.await;
        }
    }
}

/// Permits that are out. They go back when this is dropped, and only then.
struct Held {
    core: Arc<Core>,
    permits: u32,
    /// On whose account they are.
    owner: Option<Arc<str>>,
}

impl Held {
    fn new(core: Arc<Core>, permits: u32, owner: Option<Arc<str>>) -> Self {
        metric::permits(f64::from(permits));
        Self { core, permits, owner }
    }

    fn permits(&self) -> u32 {
        self.permits
    }

    fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The adaptive window for these permits.
    fn window(&self) -> Option<Vegas> {
        let adaptive = self.core.adaptive.as_ref()?;
        Some(adaptive.learnt.lock().clone().with_max(self.permits))
    }

    fn learn(&self, window: Vegas) {
        if let Some(adaptive) = &self.core.adaptive {
            *adaptive.learnt.lock() = window;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        metric::permits(-f64::from(self.permits));
        if let Some(owner) = &self.owner {
            let mut owners = self.core.owners.lock();
            if let Some(held) = owners.get_mut(owner) {
                *held = held.saturating_sub(self.permits);
                if *held == 0 {
                    owners.remove(owner);
                }
            }
        }
        let free = self.core.free.fetch_add(self.permits, Ordering::AcqRel) + self.permits;
        if free == self.core.limits.permits {
            self.core.all_free.notify_waiters();
        }
    }
}
