//! Appending and closing. What closes a stream is decided in the same atomic step as its last records, so nothing comes after
//! them; a repetition is answered like the first time, before anything else is looked at.

use bytes::Bytes;
use tidegate_core::id::Name;
use tidegate_core::position::Offset;
use tidegate_core::principal::Principal;

use super::content::same_type;
use super::{DurableError, JSON, MessageKind};
use crate::error::PublishError;
use crate::producer::ProducerStamp;
use crate::service::{Extra, StreamService};

/// What to append.
#[derive(Debug, Clone, Default)]
pub struct DurableAppend {
    /// The content type of the body.
    pub content_type: Option<Box<str>>,
    /// The content; empty only where the stream is closed by it.
    pub body: Bytes,
    /// The stream takes nothing more after it.
    pub close: bool,
    /// With it a repetition appends nothing.
    pub producer: Option<ProducerStamp>,
    /// The writers' own order (`Stream-Seq`): compared byte by byte, it must be above the last one of the stream.
    pub writer_seq: Option<Box<str>>,
}

/// What came of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurableAppended {
    /// The offset that the next record gets.
    pub next: Offset,
    /// It was a repetition: nothing was appended now.
    pub duplicate: bool,
    /// The producer's highest sequence, of an append with one.
    pub producer_seq: Option<u64>,
    /// The stream takes nothing more.
    pub closed: bool,
}

impl StreamService {
    /// Appends to a stream, closes it, or both; durable when answered.
    pub async fn append_durable(
        &self,
        principal: &Principal,
        name: &Name,
        request: DurableAppend,
    ) -> Result<DurableAppended, DurableError> {
        let handle = self.handle(principal, name).await?;
        let DurableAppend { content_type, body, close, producer, writer_seq } = request;
        let meta = handle.meta();
        if meta.partitions != 1 {
            return Err(DurableError::Partitioned { name: name.clone(), partitions: meta.partitions });
        }
        let records = if body.is_empty() {
            if !close {
                return Err(DurableError::EmptyBody);
            }
            Vec::new()
        } else {
            let expected = meta.durable.as_ref().map_or(JSON, |durable| &durable.content_type);
            let given = content_type.ok_or(DurableError::ContentTypeMissing)?;
            if !same_type(&given, expected) {
                return Err(PublishError::ContentType { expected: expected.into(), given }.into());
            }
            let records = self.messages(MessageKind::of(expected), &body)?;
            if records.is_empty() {
                return Err(DurableError::EmptyArray);
            }
            records
        };
        let published = if let Some(given) = writer_seq {
            let mut known = handle.writer_seq.lock().await;
            self.append_records(&handle, records, producer, Extra { close, writer_seq: Some((&given, &mut known)) })
                .await
        } else {
            self.append_records(&handle, records, producer, Extra { close, writer_seq: None }).await
        }?;
        handle.touch();
        let next = match published.appended.first() {
            Some(range) if !published.duplicate => range.next,
            _ => handle.tail().await?,
        };
        let closed = close && !published.duplicate || handle.is_closed();
        Ok(DurableAppended { next, duplicate: published.duplicate, producer_seq: published.producer_seq, closed })
    }
}
