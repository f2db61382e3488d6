//! How many streams a tenant has, for `limits.stream_max_per_tenant`. Counted once from the store, then kept up by who makes and removes
//! streams; it never lets more in because two come at one moment to an empty count.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;
use tidegate_core::id::Name;
use tidegate_core::port::MetaRange;

use super::{Core, SCAN_PAGE};
use crate::error::{CreateError, StreamError};
use crate::key;

/// Tenants whose counts are kept; beyond it the one that made a stream least lately is counted again.
const TENANTS_MAX: usize = 10_000;

/// The counts.
pub(crate) struct TenantCounts {
    known: Mutex<LruCache<Name, u64>>,
    /// Held by who counts: the first creation of a tenant waits, not each.
    counting: tokio::sync::Mutex<()>,
}

impl Default for TenantCounts {
    fn default() -> Self {
        let tenants = NonZeroUsize::new(TENANTS_MAX).expect("not zero");
        Self { known: Mutex::new(LruCache::new(tenants)), counting: tokio::sync::Mutex::new(()) }
    }
}

impl TenantCounts {
    /// Whether the tenant may have one more. Creations that are under way at the same moment may pass the bound by their number.
    pub(crate) async fn check(&self, core: &Core, tenant: &Name) -> Result<(), CreateError> {
        let limit = core.settings.freeze().limits_stream_max_per_tenant();
        let known = self.known.lock().get(tenant).copied();
        let current = match known {
            Some(current) => current,
            None => {
                let _counting = self.counting.lock().await;
                let known = self.known.lock().get(tenant).copied();
                match known {
                    Some(current) => current,
                    None => {
                        let current = count(core, tenant).await?;
                        self.known.lock().put(tenant.clone(), current);
                        current
                    }
                }
            }
        };
        if current < limit { Ok(()) } else { Err(CreateError::Quota { limit, current }) }
    }

    pub(crate) fn add(&self, tenant: &Name) {
        if let Some(count) = self.known.lock().get_mut(tenant) {
            *count += 1;
        }
    }

    pub(crate) fn subtract(&self, tenant: &Name) {
        if let Some(count) = self.known.lock().get_mut(tenant) {
            *count = count.saturating_sub(1);
        }
    }
}

async fn count(core: &Core, tenant: &Name) -> Result<u64, CreateError> {
    let prefix = key::streams_of(tenant).freeze();
    let mut from = prefix.clone();
    let mut count = 0;
    loop {
        let range = MetaRange { prefix: prefix.clone(), from: from.clone(), limit: SCAN_PAGE };
        let entries = core.meta.scan(range).await.map_err(StreamError::store)?;
        count += entries.len() as u64;
        match entries.last() {
            Some(last) if entries.len() == SCAN_PAGE => {
                let mut next = last.key.to_vec();
                next.push(0);
                from = next.into();
            }
            _ => return Ok(count),
        }
    }
}
