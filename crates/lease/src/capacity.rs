//! Capacity: how many things may be in use at one time, in all and by one owner. Taking one gives a [`Slot`]; the
//! slot's drop gives it back. It never waits, never queues, and never takes back what was given.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::limit::Settings;
use tidegate_core::principal::Owner;
use tidegate_core::{ErrorKind, Failure, Retry};

use crate::sync::Mutex;

#[cfg(all(test, loom))]
mod loom;
#[cfg(all(test, not(loom)))]
mod tests;

/// How many slots there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapacityBounds {
    /// In use at one time, by all owners together. 0 = none.
    pub global: u64,
    /// In use at one time by one owner. Where it is above `global`, `global` is what bounds.
    pub per_owner: u64,
}

impl CapacityBounds {
    /// The bounds of streams that are being read: `stream.max_global` and `stream.max_per_principal`.
    #[must_use]
    pub const fn of_streams(settings: &Settings) -> Self {
        Self { global: settings.stream_max_global(), per_owner: settings.stream_max_per_principal() }
    }

    /// The bounds of pinned snapshots: `limits.lease_max_global` and `limits.lease_max_per_principal`.
    #[must_use]
    pub const fn of_leases(settings: &Settings) -> Self {
        Self { global: settings.limits_lease_max_global(), per_owner: settings.limits_lease_max_per_principal() }
    }
}

/// Which bound was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CapacityScope {
    /// That of all owners together.
    Global,
    /// That of the one owner.
    Owner,
}

impl fmt::Display for CapacityScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "all callers together",
            Self::Owner => "this caller",
        })
    }
}

/// All slots are in use. Nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{current} of {limit} streams of {scope} are open")]
pub struct CapacityExhausted {
    /// Which bound was met. Where both were, the owner's is told: it is what the caller can do something about, and it
    /// says nothing about others.
    pub scope: CapacityScope,
    /// The bound.
    pub limit: u64,
    /// What was in use. Above `limit` after the bound was lowered.
    pub current: u64,
}

impl Failure for CapacityExhausted {
    fn code(&self) -> &'static str {
        match self.scope {
            CapacityScope::Global => "stream_capacity_exhausted",
            CapacityScope::Owner => "principal_stream_quota_exhausted",
        }
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Exhausted
    }

    fn retry(&self) -> Retry {
        Retry::After(Duration::from_secs(1))
    }
}

/// The counters. Share it by `Arc`; every slot holds one.
///
/// One lock covers both counters, so they can never disagree; it is held for one hash lookup and never across an await.
#[derive(Debug)]
pub struct Capacity {
    counters: Mutex<Counters>,
}

#[derive(Debug)]
struct Counters {
    bounds: CapacityBounds,
    in_use: u64,
    /// Only owners with at least one slot.
    by_owner: HashMap<Owner, u64>,
}

impl Capacity {
    /// A capacity with nothing in use.
    #[must_use]
    pub fn new(bounds: CapacityBounds) -> Arc<Self> {
        Arc::new(Self { counters: Mutex::new(Counters { bounds, in_use: 0, by_owner: HashMap::new() }) })
    }

    /// Changes the bounds for whoever comes next. What is taken stays taken: after lowering, more may be in use than
    /// the bound until enough slots were dropped.
    pub fn set_bounds(&self, bounds: CapacityBounds) {
        self.counters.lock().bounds = bounds;
    }

    /// The present bounds.
    #[must_use]
    pub fn bounds(&self) -> CapacityBounds {
        self.counters.lock().bounds
    }

    /// Takes a slot for this owner, or says which bound was met. It never waits for one.
    pub fn try_acquire(self: &Arc<Self>, owner: &Owner) -> Result<Slot, CapacityExhausted> {
        let mut counters = self.counters.lock();
        let Counters { bounds, in_use, by_owner } = &mut *counters;
        let own = by_owner.get(owner).copied().unwrap_or(0);
        if own >= bounds.per_owner {
            return Err(CapacityExhausted { scope: CapacityScope::Owner, limit: bounds.per_owner, current: own });
        }
        if *in_use >= bounds.global {
            return Err(CapacityExhausted { scope: CapacityScope::Global, limit: bounds.global, current: *in_use });
        }
        // The map first: it allocates, and if that unwinds no counter has moved.
        by_owner.insert(owner.clone(), own + 1);
        *in_use += 1;
        drop(counters);
        Ok(Slot { capacity: Arc::clone(self), owner: owner.clone() })
    }

    /// How many slots are in use.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.counters.lock().in_use
    }

    /// How many slots this owner uses.
    #[must_use]
    pub fn in_use_by(&self, owner: &Owner) -> u64 {
        self.counters.lock().by_owner.get(owner).copied().unwrap_or(0)
    }

    /// How many owners use a slot: the size of the per-owner map, which never exceeds [`Self::in_use`].
    #[must_use]
    pub fn owners(&self) -> usize {
        self.counters.lock().by_owner.len()
    }
}

/// One unit of a [`Capacity`], in use until it is dropped, on whichever way that happens: a return, a panic, or a
/// future that is dropped half-way.
#[derive(Debug)]
#[must_use = "dropping the slot gives it back at once"]
pub struct Slot {
    capacity: Arc<Capacity>,
    owner: Owner,
}

impl Slot {
    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counters = self.capacity.counters.lock();
        // Saturating, because a panic here could abort; the tests prove that neither is ever zero at this place.
        counters.in_use = counters.in_use.saturating_sub(1);
        if let Entry::Occupied(mut own) = counters.by_owner.entry(self.owner.clone()) {
            if *own.get() <= 1 {
                own.remove();
            } else {
                *own.get_mut() -= 1;
            }
        }
    }
}
