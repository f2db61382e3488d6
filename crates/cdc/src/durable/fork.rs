//! Forks: a stream that begins with what another one had up to a place, without copying it. The source counts its forks, and the
//! count changes in the same atomic step as the fork comes or goes. A fork never writes to its source's records.

use std::sync::Arc;

use tidegate_core::port::{AppendRecord, CompareAndSwap, ReadBounds, Revision, StreamId};
use tidegate_core::position::{Offset, Partition};

use super::content::same_type;
use super::{DurableError, DurableMeta, FORK_DEPTH_MAX, Fork, ForkSpec, JSON, MessageKind};
use crate::error::{StoreError, StreamError};
use crate::handle::StreamHandle;
use crate::record::{Item, Record};
use crate::service::StreamService;
use crate::spec::StreamMeta;
use crate::stored;

/// A fork as it is going to be.
pub(super) struct Prepared {
    pub(super) source: Arc<StreamHandle>,
    /// What of the source's meta it inherits: content type, time to live. `fork` is set.
    pub(super) durable: DurableMeta,
    /// The first offset of its own.
    pub(super) start: Offset,
    /// The part of the source's record at `start` that it keeps.
    pub(super) prefix: Option<AppendRecord>,
    /// The source's count goes up with it.
    pub(super) condition: CompareAndSwap,
}

impl StreamService {
    /// Looks the source up and finds the place.
    pub(super) async fn prepare_fork(
        &self,
        id: &StreamId,
        asked: &ForkSpec,
        content_type: Option<&str>,
    ) -> Result<Prepared, DurableError> {
        let source_id = StreamId { tenant: id.tenant.clone(), stream: asked.source.clone() };
        let source = self.core.find(&source_id).await?;
        match self.check_life(&source).await {
            Err(StreamError::Gone { name }) => return Err(DurableError::SourceGone { name }),
            other => other?,
        }
        let (known, revision) = source.known();
        if known.partitions != 1 {
            return Err(DurableError::Partitioned { name: asked.source.clone(), partitions: known.partitions });
        }
        let mut source_meta = (*known).clone();
        let counted = source_meta.durable.get_or_insert_with(|| DurableMeta::new(JSON));
        if let Some(given) = content_type.filter(|given| !same_type(given, &counted.content_type)) {
            let expected = counted.content_type.clone();
            return Err(DurableError::SourceContentType { expected, given: given.into() });
        }
        let depth = counted.fork.as_ref().map_or(0, |fork| fork.depth) + 1;
        if depth > FORK_DEPTH_MAX {
            return Err(DurableError::ForkDepth { limit: FORK_DEPTH_MAX });
        }
        let next = source.tail().await?;
        let offset = asked.offset.unwrap_or(next);
        if offset > next {
            return Err(DurableError::ForkOffset { asked: offset, next });
        }
        if asked.sub_offset > 0 && asked.offset.is_none() {
            return Err(DurableError::ForkOffsetMissing);
        }
        let (start, prefix) = match (asked.sub_offset, counted.kind()) {
            (0, _) => (offset, None),
            (count, MessageKind::Json) => (self.after_records(&source, offset, count).await?, None),
            (count, MessageKind::Text | MessageKind::Binary) => self.after_bytes(&source, offset, count).await?,
        };
        let mut durable = DurableMeta::new(content_type.unwrap_or(&counted.content_type));
        durable.ttl_s = counted.ttl_s;
        durable.expires_at_ms = counted.expires_at_ms;
        durable.fork = Some(Fork {
            source: asked.source.clone(),
            incarnation: known.incarnation,
            offset: offset.0,
            sub_offset: asked.sub_offset,
            depth,
        });
        counted.forks += 1;
        let condition = source.change_at(revision, &source_meta);
        Ok(Prepared { source, durable, start, prefix, condition })
    }

    /// The place `count` records after `offset`, which must all be of one append.
    async fn after_records(&self, source: &StreamHandle, offset: Offset, count: u64) -> Result<Offset, DurableError> {
        let (mut at, mut seen, mut commit) = (offset, 0_u64, None);
        while seen < count {
            let (items, next) = source.read(Partition(0), at, PAGE).await?;
            let before = seen;
            for item in items {
                let Item::Record(record) = item else { continue };
                if seen == count || *commit.get_or_insert(record.commit) != record.commit {
                    break;
                }
                seen += 1;
                at = Offset(record.offset.0 + 1);
            }
            if seen == before || (seen < count && at != next) {
                return Err(DurableError::ForkSubOffset { asked: count, available: seen });
            }
        }
        Ok(at)
    }

    /// The place `count` bytes after `offset`, within its record: what of the record is kept becomes the fork's own first one.
    async fn after_bytes(
        &self,
        source: &StreamHandle,
        offset: Offset,
        count: u64,
    ) -> Result<(Offset, Option<AppendRecord>), DurableError> {
        let (items, _) = source.read(Partition(0), offset, ReadBounds { records: 1, bytes: 1 }).await?;
        let record = items.into_iter().find_map(|item| match item {
            Item::Record(record) if record.offset == offset => Some(record),
            Item::Record(_) | Item::Gap(_) => None,
        });
        let bytes = record.as_ref().and_then(Record::raw);
        let available = bytes.map_or(0, |bytes| bytes.len() as u64);
        let kept = bytes.zip(usize::try_from(count).ok()).and_then(|(bytes, count)| bytes.get(..count));
        match kept {
            None => Err(DurableError::ForkSubOffset { asked: count, available }),
            Some(kept) if kept.len() as u64 == available => Ok((Offset(offset.0 + 1), None)),
            Some(kept) => {
                let prefix = AppendRecord { bytes: stored::raw(kept), key: None, tombstone: false };
                Ok((offset, Some(prefix)))
            }
        }
    }

    /// The source of a stream that is being removed, with what its entry is to be then.
    pub(crate) async fn released_source(
        &self,
        handle: &StreamHandle,
    ) -> Result<Option<(Arc<StreamHandle>, StreamMeta, Revision)>, StoreError> {
        let meta = handle.meta();
        let Some(fork) = meta.durable.as_ref().and_then(|durable| durable.fork.as_ref()) else { return Ok(None) };
        let id = StreamId { tenant: handle.id.tenant.clone(), stream: fork.source.clone() };
        let source = match self.core.find(&id).await {
            Ok(source) => source,
            Err(StreamError::Store(error)) => return Err(error),
            Err(_) => return Ok(None),
        };
        let (known, revision) = source.known();
        let mut meta = (*known).clone();
        match meta.durable.as_mut().filter(|_| known.incarnation == fork.incarnation) {
            Some(durable) => durable.forks = durable.forks.saturating_sub(1),
            None => return Ok(None),
        }
        Ok(Some((source, meta, revision)))
    }
}

const PAGE: ReadBounds = ReadBounds { records: 4_096, bytes: 1024 * 1024 };
