//! How long a stream lives: until a time that stands fixed, or for a time after it was last used. When that was is kept in
//! memory and written now and then, so that a read does not cost a write; a crash makes a stream live a little longer, never
//! shorter. What has expired is gone for every caller at once; its data is removed by whoever notices first, or by the sweep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_core::id::Name;
use tidegate_core::port::{CompareAndSwap, Durability, MetaRange, Revision, StreamId, Swap, SwapOutcome};
use tidegate_frame::envelope::Kind;

use super::DurableMeta;
use crate::error::{StoreError, StreamError};
use crate::handle::{StreamHandle, seal, unseal};
use crate::key;
use crate::service::StreamService;
use crate::spec::StreamMeta;

/// Nothing is known yet.
const UNKNOWN: i64 = i64::MIN;
/// The last use is written at most this often, or ten times in the time to live.
const WRITE_INTERVAL_MIN_MS: i64 = 1_000;

/// When a stream was last used.
#[derive(Debug)]
pub(crate) struct Access {
    last_ms: AtomicI64,
    written_ms: AtomicI64,
    writing: AtomicBool,
    revision: Mutex<Option<Revision>>,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            last_ms: AtomicI64::new(UNKNOWN),
            written_ms: AtomicI64::new(UNKNOWN),
            writing: AtomicBool::new(false),
            revision: Mutex::new(None),
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct StoredAccess {
    ms: i64,
}

const ACCESS_VERSION: u16 = 1;

fn write_interval_ms(ttl_s: u64) -> i64 {
    i64::try_from(ttl_s.saturating_mul(100)).unwrap_or(i64::MAX).max(WRITE_INTERVAL_MIN_MS)
}

fn deadline(last_ms: i64, ttl_s: u64) -> i64 {
    last_ms.saturating_add(i64::try_from(ttl_s.saturating_mul(1_000)).unwrap_or(i64::MAX))
}

impl StreamHandle {
    /// The stream is being used: its time to live begins anew. Costs a clock's reading where it has one, nothing otherwise.
    pub(crate) fn touch(self: &Arc<Self>) {
        let meta = self.meta();
        let Some(ttl_s) = meta.durable.as_ref().and_then(|durable| durable.ttl_s) else { return };
        let now = self.core.clock.timestamp().unix_ms();
        let access = &self.access;
        access.last_ms.fetch_max(now, Ordering::AcqRel);
        let written = access.written_ms.load(Ordering::Acquire).max(meta.created_at_ms);
        if now.saturating_sub(written) < write_interval_ms(ttl_s) || access.writing.swap(true, Ordering::AcqRel) {
            return;
        }
        let handle = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = handle.write_access().await {
                // The time is still known here, and written with the next use.
                tracing::warn!(%error, "when a stream was last used was not written");
            }
            handle.access.writing.store(false, Ordering::Release);
        });
    }

    async fn write_access(&self) -> Result<(), StoreError> {
        let ms = self.access.last_ms.load(Ordering::Acquire);
        let put = CompareAndSwap {
            key: key::access(self.incarnation()),
            expected: *self.access.revision.lock(),
            swap: Swap::Put(seal(Kind::StreamUse, ACCESS_VERSION, &StoredAccess { ms })),
        };
        // With the stream's own entry as a condition: nothing is left behind of a stream that is removed meanwhile.
        let swaps = vec![put, self.unchanged()];
        match self.core.meta.compare_and_swap(swaps, Durability::Os).await? {
            SwapOutcome::Swapped(revisions) => {
                *self.access.revision.lock() = revisions.first().copied();
                self.access.written_ms.fetch_max(ms, Ordering::AcqRel);
            }
            SwapOutcome::Mismatch { index: 0, .. } => {
                self.read_access().await?;
            }
            SwapOutcome::Mismatch { .. } => {}
        }
        Ok(())
    }

    /// What is stored of the last use; `None` where nothing is.
    async fn read_access(&self) -> Result<Option<i64>, StoreError> {
        let Some(entry) = self.core.meta.get(&key::access(self.incarnation())).await? else { return Ok(None) };
        let Some(value) = &entry.value else { return Ok(None) };
        let stored: StoredAccess = unseal(Kind::StreamUse, ACCESS_VERSION, "a stream's last use", value)?;
        *self.access.revision.lock() = Some(entry.revision);
        self.access.written_ms.fetch_max(stored.ms, Ordering::AcqRel);
        Ok(Some(stored.ms))
    }

    /// Whether the stream's time is over.
    pub(crate) async fn is_expired(&self, meta: &StreamMeta, durable: &DurableMeta) -> Result<bool, StoreError> {
        if durable.expires_at_ms.is_none() && durable.ttl_s.is_none() {
            return Ok(false);
        }
        let now = self.core.clock.timestamp().unix_ms();
        if durable.expires_at_ms.is_some_and(|at| now >= at) {
            return Ok(true);
        }
        let Some(ttl_s) = durable.ttl_s else { return Ok(false) };
        let known = self.access.last_ms.load(Ordering::Acquire).max(meta.created_at_ms);
        if now < deadline(known, ttl_s) {
            return Ok(false);
        }
        // What is stored may be newer: of before a restart, or of another server over the same store. Up to the interval may be
        // missing there.
        let in_memory = self.access.last_ms.load(Ordering::Acquire) != UNKNOWN;
        let before = *self.access.revision.lock();
        let Some(stored) = self.read_access().await? else { return Ok(true) };
        let newer = *self.access.revision.lock() != before;
        if in_memory && !newer {
            return Ok(true);
        }
        let last = stored.saturating_add(write_interval_ms(ttl_s));
        Ok(now >= deadline(last, ttl_s))
    }
}

impl StreamService {
    /// Lets through what lives; what has expired is removed, and gone for the caller already.
    pub(crate) async fn check_life(&self, handle: &Arc<StreamHandle>) -> Result<(), StreamError> {
        let meta = handle.meta();
        let Some(durable) = &meta.durable else { return Ok(()) };
        if durable.soft_deleted {
            return Err(StreamError::Gone { name: handle.id.stream.clone() });
        }
        if !handle.is_expired(&meta, durable).await? {
            return Ok(());
        }
        let kept = durable.forks > 0;
        match self.remove(handle).await {
            Ok(()) | Err(StreamError::NotFound { .. }) => {}
            Err(error) => tracing::warn!(%error, "an expired stream was not removed yet"),
        }
        let name = handle.id.stream.clone();
        Err(if kept { StreamError::Gone { name } } else { StreamError::NotFound { name } })
    }

    /// Looks at up to `limit` streams of all tenants, in the order of their keys, and removes those that expired, whose removal
    /// a crash broke off, or that were kept for forks which are gone. `from` is what the last call gave; `None` begins anew, and is
    /// given back at the end. Meant to be called every second or so.
    pub async fn sweep(&self, from: Option<Bytes>, limit: usize) -> Result<Option<Bytes>, StoreError> {
        let prefix = key::all_streams();
        let range = MetaRange { prefix: prefix.clone(), from: from.unwrap_or_else(|| prefix.clone()), limit };
        let entries = self.core.meta.scan(range).await?;
        let whole = entries.len() == limit;
        let mut next = None;
        for entry in entries {
            next = Some(&entry).filter(|_| whole).map(|entry| {
                let mut after = entry.key.to_vec();
                after.push(0);
                Bytes::from(after)
            });
            let Some(value) = &entry.value else { continue };
            let Some(id) = stream_id(&entry.key) else { continue };
            let opened = unseal(Kind::Stream, StreamMeta::SCHEMA_VERSION, "a stream's description", value);
            let meta: StreamMeta = match opened {
                Ok(meta) => meta,
                Err(error) => {
                    // Whoever asks for it is told; the others must not live for ever because of it.
                    tracing::error!(%error, stream = %id.stream, "a stream cannot be looked at");
                    continue;
                }
            };
            if meta.removing {
                self.clear_away(&id, &meta, Some(entry.revision)).await?;
                continue;
            }
            let Some(durable) = &meta.durable else { continue };
            let mortal = durable.ttl_s.is_some() || durable.expires_at_ms.is_some();
            let orphaned = durable.soft_deleted && durable.forks == 0;
            if !(mortal && !durable.soft_deleted || orphaned) {
                continue;
            }
            let outcome = match self.core.find(&id).await {
                Ok(handle) if orphaned => self.remove(&handle).await,
                Ok(handle) => self.check_life(&handle).await,
                Err(error) => Err(error),
            };
            if let Err(StreamError::Store(error)) = outcome {
                return Err(error);
            }
        }
        Ok(next)
    }
}

/// The identity in a stream's key.
fn stream_id(key: &[u8]) -> Option<StreamId> {
    let rest = key.strip_prefix(key::all_streams().as_ref())?;
    let at = rest.iter().position(|byte| *byte == 0)?;
    let name = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|text| Name::new(text).ok());
    Some(StreamId { tenant: name(&rest[..at])?, stream: name(&rest[at + 1..])? })
}
