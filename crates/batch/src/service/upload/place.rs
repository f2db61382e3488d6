//! The places of a tenant's open uploads: as many as it may have open, so that the bound cannot be passed however many begin at once. A free
//! one is looked for by chance; all of them are read only where that fails, and seldom where a tenant has none left.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tidegate_core::id::Name;
use tidegate_core::port::MetaRange;
use tidegate_core::time::Moment;

use crate::error::{StoreError, UploadError};
use crate::key;
use crate::service::Core;
use crate::stored::UploadId;

/// Places that are tried before all are read.
const TRIES: usize = 8;
/// How long a tenant that had no place left is not looked at again, unless one of its uploads ends here.
const FULL_FOR: Duration = Duration::from_secs(1);
/// Tenants of which that is remembered.
const FULL_MAX_COUNT: NonZeroUsize = NonZeroUsize::new(1_024).expect("it is not zero");

/// Tenants that have no place left: what each of their attempts would read is as much as all their uploads.
pub(crate) struct Full(Mutex<LruCache<Box<str>, Moment>>);

impl Default for Full {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(FULL_MAX_COUNT)))
    }
}

impl Full {
    fn is(&self, tenant: &Name, now: Moment) -> bool {
        self.0.lock().peek(tenant.as_str()).is_some_and(|until| now < *until)
    }

    fn note(&self, tenant: &Name, now: Moment) {
        self.0.lock().put(tenant.as_str().into(), now.after(FULL_FOR));
    }

    /// One of its uploads has ended.
    pub(crate) fn forget(&self, tenant: &str) {
        self.0.lock().pop(tenant);
    }
}

impl Core {
    /// The name of a new upload, in a place that was free when it was looked at.
    pub(super) async fn free_place(&self, tenant: &Name) -> Result<UploadId, UploadError> {
        let limit = self.spec.upload_max_open;
        if self.full.is(tenant, self.clock.now()) {
            return Err(UploadError::TooMany { limit });
        }
        if let Some(id) = self.place_by_chance(tenant).await? {
            return Ok(id);
        }
        let limit_count = usize::try_from(limit).unwrap_or(usize::MAX);
        let uploads = key::uploads_of(tenant).freeze();
        let open = MetaRange { prefix: uploads.clone(), from: uploads, limit: limit_count };
        let open = self.meta.scan(open).await.map_err(StoreError::from)?;
        if open.len() >= limit_count {
            self.full.note(tenant, self.clock.now());
            return Err(UploadError::TooMany { limit });
        }
        let taken: BTreeSet<u16> = open.iter().filter_map(|entry| key::upload_place(&entry.key)).collect();
        let random = self.draw()?;
        // One of the free ones by chance, so that those who begin at the same time seldom want the same.
        let nth = usize::try_from(number_in(random)).unwrap_or(0) % (limit_count - open.len());
        let place = (0..=u16::MAX).filter(|place| !taken.contains(place)).nth(nth);
        Ok(UploadId::new(place.expect("there are more places than are taken"), random))
    }

    async fn place_by_chance(&self, tenant: &Name) -> Result<Option<UploadId>, UploadError> {
        let limit = self.spec.upload_max_open;
        let Ok(last) = u16::try_from(limit.saturating_sub(1)) else { return Ok(None) };
        if limit == 0 || self.has_beyond(tenant, last).await? {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let random = self.draw()?;
            let place = u16::try_from(u64::from(number_in(random)) % limit).unwrap_or(last);
            let id = UploadId::new(place, random);
            if self.meta.get(&key::upload(tenant, id)).await.map_err(StoreError::from)?.is_none() {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Whether uploads are open in places that there are no more, since the bound was made smaller: then only counting tells.
    async fn has_beyond(&self, tenant: &Name, last: u16) -> Result<bool, UploadError> {
        let Some(first) = last.checked_add(1) else { return Ok(false) };
        let range = MetaRange {
            prefix: key::uploads_of(tenant).freeze(),
            from: key::upload(tenant, UploadId::new(first, [0; 16])),
            limit: 1,
        };
        Ok(!self.meta.scan(range).await.map_err(StoreError::from)?.is_empty())
    }
}

/// A number out of random bits that no place is made of.
fn number_in(random: [u8; 16]) -> u32 {
    let [.., a, b, c, d] = random;
    u32::from_be_bytes([a, b, c, d])
}
