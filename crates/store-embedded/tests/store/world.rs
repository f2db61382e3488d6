//! A store in a folder of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::time::Clock as _;
use tidegate_store_embedded::{EmbeddedConfig, EmbeddedStore};
use tidegate_testkit::{ManualClock, StoreWorld};

/// A configuration whose maintenance runs only by hand.
pub(crate) fn config(path: &Path, clock: &ManualClock) -> EmbeddedConfig {
    let mut config = EmbeddedConfig::new(path, Arc::new(clock.clone()));
    config.maintenance_interval = Duration::ZERO;
    config
}

/// Everything that is due, to the end.
pub(crate) async fn maintain(store: &EmbeddedStore, clock: &ManualClock) {
    let (store, now) = (store.clone(), clock.timestamp());
    let done = tokio::task::spawn_blocking(move || while store.maintain(now).unwrap().more {});
    done.await.unwrap();
}

pub(crate) struct Embedded {
    store: Arc<EmbeddedStore>,
    clock: ManualClock,
    folder: tempfile::TempDir,
}

#[async_trait]
impl StoreWorld for Embedded {
    type Store = EmbeddedStore;

    async fn fresh() -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let store = Arc::new(EmbeddedStore::open(config(folder.path(), &clock)).unwrap());
        Self { store, clock, folder }
    }

    fn store(&self) -> Arc<EmbeddedStore> {
        Arc::clone(&self.store)
    }

    fn clock(&self) -> ManualClock {
        self.clock.clone()
    }

    async fn maintain(&self) {
        maintain(&self.store, &self.clock).await;
    }

    async fn reopen(self) -> Self {
        let Self { store, clock, folder } = self;
        store.close();
        drop(store);
        let store = Arc::new(EmbeddedStore::open(config(folder.path(), &clock)).unwrap());
        Self { store, clock, folder }
    }
}
