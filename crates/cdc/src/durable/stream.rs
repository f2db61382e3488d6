//! A stream as a reader of the Durable Streams protocol sees it: what it is, where it ends, what stands in it, and the wait for
//! more. It never changes the stream, but for saying that it is in use.

use std::sync::Arc;

use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::port::ReadBounds;
use tidegate_core::position::{Gap, GapReason, Offset, Partition};
use tidegate_core::principal::Principal;

use super::{DurableError, JSON, MessageKind};
use crate::error::{ReadError, StreamError};
use crate::feed::Selection;
use crate::handle::StreamHandle;
use crate::reader::StreamReader;
use crate::record::Item;
use crate::service::StreamService;
use crate::spec::StreamMeta;

/// A stream that was found. Cheap to clone; it shows the stream as it is when it is asked.
#[derive(Clone)]
pub struct DurableStream {
    streams: StreamService,
    handle: Arc<StreamHandle>,
    /// As it was when it was found: content type and expiry never change.
    meta: Arc<StreamMeta>,
}

impl StreamService {
    /// Finds a stream. `used`: its time to live begins anew.
    pub async fn durable(&self, principal: &Principal, name: &Name, used: bool) -> Result<DurableStream, DurableError> {
        let handle = self.handle(principal, name).await?;
        let meta = handle.meta();
        if meta.partitions != 1 {
            return Err(DurableError::Partitioned { name: name.clone(), partitions: meta.partitions });
        }
        if used {
            handle.touch();
        }
        Ok(DurableStream { streams: self.clone(), handle, meta })
    }
}

impl DurableStream {
    /// Its content type.
    #[must_use]
    pub fn content_type(&self) -> &str {
        self.meta.durable.as_ref().map_or(JSON, |durable| &durable.content_type)
    }

    /// What its messages are.
    #[must_use]
    pub fn kind(&self) -> MessageKind {
        MessageKind::of(self.content_type())
    }

    /// For how many seconds it lives after it was last used.
    #[must_use]
    pub fn ttl_s(&self) -> Option<u64> {
        self.meta.durable.as_ref().and_then(|durable| durable.ttl_s)
    }

    /// Until when it lives.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.meta.durable.as_ref().and_then(|durable| durable.expires_at_ms).map(Timestamp::from_unix_ms)
    }

    /// Whether it takes nothing more. Asked before the tail, it says of that tail whether it is the end.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Tells this stream from another one of the same name, before or after it.
    #[must_use]
    pub fn life(&self) -> u64 {
        let mut bits = [0; 8];
        bits.copy_from_slice(&self.meta.incarnation.0[..8]);
        u64::from_be_bytes(bits)
    }

    /// The offset that the next record gets.
    pub async fn tail(&self) -> Result<Offset, StreamError> {
        self.handle.tail().await
    }

    /// What stands at `from` and after it, within `bounds`, and where to read on. Shares bytes with the log.
    pub async fn read(&self, from: Offset, bounds: ReadBounds) -> Result<(Vec<Item>, Offset), ReadError> {
        self.handle.read(Partition(0), from, bounds).await
    }

    /// The records that are gone where a reader wants to begin, if any are. What compaction took is no loss.
    #[must_use]
    pub fn lost(items: &[Item]) -> Option<Gap> {
        items.iter().find_map(|item| match item {
            Item::Gap(gap) if gap.reason != GapReason::Compaction => Some(*gap),
            Item::Gap(_) | Item::Record(_) => None,
        })
    }

    /// A reader that waits for what comes; it takes one of the slots that `limits.tail_max_global` and
    /// `limits.tail_max_per_principal` bound.
    pub fn follow(&self, principal: &Principal, from: Offset) -> Result<StreamReader, ReadError> {
        let slot = self.streams.core.tail_slot(&principal.owner)?;
        let changed = self.handle.subscribe();
        let selection = Selection::One(Partition(0));
        Ok(StreamReader::new(Arc::clone(&self.handle), selection, vec![from], Some(changed), Some(slot)))
    }

    /// Looks whether the stream was closed or removed by somebody whom this process has not heard of: another server over the same
    /// store. Costs a read of one entry.
    pub async fn look_again(&self) {
        self.streams.core.look_again(&self.handle).await;
    }

    /// The stream is being read from: its time to live begins anew.
    pub fn touch(&self) {
        self.handle.touch();
    }
}

impl std::fmt::Debug for DurableStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DurableStream").field("stream", &self.handle.id).finish_non_exhaustive()
    }
}
