//! The suites' own trial: the store in memory, and the same behind a decorator without faults.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::time::Clock;

use super::StoreWorld;
use crate::clock::ManualClock;
use crate::faulty_store::FaultyStore;
use crate::memory_store::MemoryStore;

pub(super) struct MemoryWorld {
    store: Arc<MemoryStore>,
    clock: ManualClock,
}

#[async_trait]
impl StoreWorld for MemoryWorld {
    type Store = MemoryStore;

    const CASES: u32 = 256;

    async fn fresh() -> Self {
        let clock = ManualClock::new();
        Self { store: MemoryStore::new(Arc::new(clock.clone())), clock }
    }

    fn store(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.store)
    }

    fn clock(&self) -> ManualClock {
        self.clock.clone()
    }

    async fn maintain(&self) {
        self.store.maintain(self.clock.timestamp());
    }
}

/// A decorator that injects nothing but wakes for nothing.
struct DecoratedWorld {
    inside: MemoryWorld,
    store: Arc<FaultyStore<MemoryStore>>,
}

#[async_trait]
impl StoreWorld for DecoratedWorld {
    type Store = FaultyStore<MemoryStore>;

    async fn fresh() -> Self {
        let inside = MemoryWorld::fresh().await;
        let store = FaultyStore::new(inside.store(), 1);
        store.plan().wake_twice(true);
        Self { inside, store }
    }

    fn store(&self) -> Arc<FaultyStore<MemoryStore>> {
        Arc::clone(&self.store)
    }

    fn clock(&self) -> ManualClock {
        self.inside.clock()
    }

    async fn maintain(&self) {
        self.inside.maintain().await;
    }
}

mod log_in_memory {
    crate::change_log_suite!(super::MemoryWorld);
}

mod meta_in_memory {
    crate::meta_store_suite!(super::MemoryWorld);
}

mod log_decorated {
    crate::change_log_suite!(super::DecoratedWorld);
}

mod meta_decorated {
    crate::meta_store_suite!(super::DecoratedWorld);
}

mod faults {
    crate::fault_suite!(super::MemoryWorld);
}
