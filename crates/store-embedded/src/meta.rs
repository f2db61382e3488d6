//! The metadata port on the store. It never loses a change of which a watcher must hear.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tidegate_core::port::{
    CompareAndSwap, Durability, MetaEntry, MetaError, MetaRange, MetaStore, MetaWatch, SwapOutcome,
};

use crate::command::{Answer, Command};
use crate::engine::MetaValue;
use crate::error::ReadError;
use crate::log::{check_swap, put_bytes};
use crate::meta_cache::Next;
use crate::store::EmbeddedStore;

/// Entries that are read at a time when a watcher's prefix is read anew.
const PAGE: usize = 256;

#[async_trait]
impl MetaStore for EmbeddedStore {
    async fn get(&self, key: &[u8]) -> Result<Option<MetaEntry>, MetaError> {
        let key = Bytes::copy_from_slice(key);
        if let Some(value) = self.inner.shared.cached_meta(&key) {
            return Ok(Some(entry(key, value)));
        }
        let asked = key.clone();
        let read = self.read_blocking(move |shared| shared.meta(&asked)).await;
        Ok(read.map_err(|error| failed(key.len(), error))?.map(|value| entry(key, value)))
    }

    async fn scan(&self, range: MetaRange) -> Result<Vec<MetaEntry>, MetaError> {
        let found = self.read_blocking(move |shared| {
            let view = shared.view()?;
            Ok::<_, ReadError>(view.meta_scan(&range.prefix, &range.from, range.limit))
        });
        let found = found.await.map_err(|error| failed(0, error))?;
        let found = found.map_err(|(key_bytes, error)| failed(key_bytes, error))?;
        Ok(found.into_iter().map(|(key, value)| entry(key, value)).collect())
    }

    async fn compare_and_swap(
        &self,
        swaps: Vec<CompareAndSwap>,
        durability: Durability,
    ) -> Result<SwapOutcome, MetaError> {
        let mut bytes = 256;
        for swap in &swaps {
            check_swap(&swap.key, &swap.swap, 0).map_err(|what| MetaError::Unavailable(Box::new(what)))?;
            bytes += swap.key.len() as u64 + put_bytes(&swap.swap, 0);
        }
        match self.inner.queue.ask(Command::Swap { swaps, durability }, bytes).await? {
            Answer::Swapped(outcome) => Ok(outcome),
            other => Err(MetaError::Indeterminate(format!("the writer answered something else: {other:?}").into())),
        }
    }

    async fn watch(&self, prefix: Bytes) -> Result<MetaWatch, MetaError> {
        let waiting = self.inner.shared.watchers.watch(prefix);
        let start = (Arc::downgrade(&self.inner), waiting, VecDeque::<MetaEntry>::new(), None::<Bytes>);
        let watch = futures::stream::unfold(start, |(store, waiting, mut read, mut from)| async move {
            loop {
                if let Some(entry) = read.pop_front() {
                    return Some((entry, (store, waiting, read, from)));
                }
                if let Some(next) = from.take() {
                    // More changed than was kept: the prefix is read anew, a page at a time.
                    let range = MetaRange { prefix: waiting.prefix().clone(), from: next.clone(), limit: PAGE };
                    let page = EmbeddedStore { inner: store.upgrade()? }.scan(range).await.ok()?;
                    if let Some(last) = page.last().filter(|_| page.len() == PAGE) {
                        // The first key after it.
                        from = Some([&last.key[..], &[0]].concat().into());
                    }
                    read.extend(page);
                    continue;
                }
                match waiting.next().await {
                    Next::Entry(entry) => return Some((entry, (store, waiting, read, from))),
                    Next::Overflow => from = Some(waiting.prefix().clone()),
                    Next::End => return None,
                }
            }
        });
        Ok(watch.boxed())
    }
}

fn entry(key: Bytes, MetaValue { revision, value }: MetaValue) -> MetaEntry {
    MetaEntry { key, value: Some(value), revision }
}

fn failed(key_bytes: usize, error: ReadError) -> MetaError {
    match error {
        ReadError::Damaged(cause) => {
            tracing::error!(key_bytes, cause, "a stored metadata value is damaged");
            MetaError::Corrupt { key_bytes }
        }
        error => MetaError::Unavailable(error.into_cause()),
    }
}
