//! Listing a collection in the order of its keys. It reads no object's bytes.

use bytes::{BufMut as _, Bytes};
use tidegate_core::port::MetaRange;

use super::ObjectService;
use crate::error::StoreError;
use crate::key;
use crate::object::{Collection, ObjectInfo, ObjectKey};
use crate::stored::Head;

/// The most objects of a page.
pub const LIST_MAX: usize = 1_000;
/// Entries that are read together at least.
const PAGE_MIN: usize = 256;
/// Entries that one request looks at, expired ones too.
const LOOK_MAX: usize = 4_096;

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// What keys begin with; empty = all.
    pub prefix: String,
    /// The last key that the caller has.
    pub after: Option<ObjectKey>,
    /// How many at most; above [`LIST_MAX`] it is [`LIST_MAX`], and 0 is 1.
    pub limit: usize,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The objects, without those that have expired.
    pub objects: Vec<ObjectInfo>,
    /// There is, or may be, more after this key. A page with a next one may have fewer objects than were asked for.
    pub next: Option<ObjectKey>,
}

impl ObjectService {
    /// A page of a collection's objects. An object that is written or deleted meanwhile is there or not; every other is there once.
    pub async fn list(&self, collection: &Collection, request: &ListRequest) -> Result<Listing, StoreError> {
        let limit = request.limit.clamp(1, LIST_MAX);
        let heads = key::heads(collection);
        let mut prefix = heads.clone();
        prefix.put_slice(request.prefix.as_bytes());
        let prefix = prefix.freeze();
        let mut from: Bytes = prefix.clone();
        if let Some(after) = &request.after {
            let mut past = heads.clone();
            past.put_slice(after.as_str().as_bytes());
            past.put_u8(0);
            from = from.max(past.freeze());
        }
        let now = self.core.now();
        let mut listing = Listing { objects: Vec::new(), next: None };
        let mut looked_at = 0;
        loop {
            // One more than wanted, to know whether there is more; not too few where many have expired.
            let wanted = (limit + 1 - listing.objects.len()).max(PAGE_MIN);
            let range = MetaRange { prefix: prefix.clone(), from: from.clone(), limit: wanted };
            let entries = self.core.meta.scan(range).await?;
            let last = entries.last().map(|entry| entry.key.clone());
            let whole = entries.len() < wanted;
            for entry in entries {
                looked_at += 1;
                let Some(value) = &entry.value else { continue };
                let head = Head::open(value)?;
                let expired = head.is_expired(now);
                if expired && looked_at < LOOK_MAX {
                    continue;
                }
                let name = entry.key.get(heads.len()..).and_then(|name| std::str::from_utf8(name).ok());
                let Some(name) = name.and_then(|name| ObjectKey::new(name).ok()) else {
                    return Err(StoreError::Corrupt { what: "a key of an object is none".into() });
                };
                if looked_at >= LOOK_MAX {
                    // A page may be short, or empty: the caller goes on behind the last one that was looked at.
                    if !expired {
                        listing.objects.push(head.info(name.clone()));
                    }
                    listing.next = Some(name);
                    return Ok(listing);
                }
                if listing.objects.len() == limit {
                    listing.next = listing.objects.last().map(|last| last.key.clone());
                    return Ok(listing);
                }
                listing.objects.push(head.info(name));
            }
            match last {
                Some(last) if !whole => {
                    let mut after = last.to_vec();
                    after.push(0);
                    from = after.into();
                }
                _ => return Ok(listing),
            }
        }
    }
}
