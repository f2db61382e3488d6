//! What an append of the Durable Streams protocol brings along: the writers' sequence and the end of the stream, in the same atomic
//! step; and how much an append may be.

use tidegate_core::limit::Settings;
use tidegate_core::port::{AppendRecord, CompareAndSwap, MetaStore, Swap};
use tidegate_frame::envelope::Kind;

use crate::error::{PublishError, StoreError};
use crate::handle::{Known, StreamHandle, WriterSequence, seal, unseal};
use crate::key;

const WRITER_SEQ_VERSION: u16 = 1;

/// What an append does beside appending.
#[derive(Default)]
pub(crate) struct Extra<'a> {
    /// The stream takes nothing more after it.
    pub(crate) close: bool,
    /// The sequence that the writer gives, and what is known of the last one; its lock is held.
    pub(crate) writer_seq: Option<(&'a str, &'a mut WriterSequence)>,
}

impl Extra<'_> {
    /// Whether the stream's state changes even where no record is appended.
    pub(super) fn changes(&self) -> bool {
        self.close || self.writer_seq.is_some()
    }

    /// Checks the writer's sequence against the last one, and gives the change that stores it.
    pub(super) async fn advance_writer(
        &mut self,
        handle: &StreamHandle,
        meta: &dyn MetaStore,
    ) -> Result<Option<CompareAndSwap>, PublishError> {
        let Some((given, known)) = &mut self.writer_seq else { return Ok(None) };
        let key = key::writer_seq(handle.incarnation());
        let known = match known {
            Some(known) => known,
            None => {
                let entry = meta.get(&key).await.map_err(StoreError::from)?;
                let revision = entry.as_ref().map(|entry| entry.revision);
                let value = entry
                    .and_then(|entry| entry.value)
                    .map(|value| unseal(Kind::WriterSequence, WRITER_SEQ_VERSION, "a writer's sequence", &value))
                    .transpose()?;
                known.insert(Known { value, revision })
            }
        };
        if let Some(last) = known.value.as_ref().filter(|last| last.as_bytes() >= given.as_bytes()) {
            return Err(PublishError::SequenceRegression { last: last.clone(), given: (*given).into() });
        }
        let value = seal(Kind::WriterSequence, WRITER_SEQ_VERSION, given);
        Ok(Some(CompareAndSwap { key, expected: known.revision, swap: Swap::Put(value) }))
    }

    /// What is known of the last sequence is not true any more.
    pub(super) fn forget(&mut self) {
        if let Some((_, known)) = &mut self.writer_seq {
            **known = None;
        }
    }
}

/// Adds up an append against the bounds.
pub(super) struct Sizes {
    index: usize,
    bytes: u64,
    record_max: u64,
    batch_max: u64,
}

impl Sizes {
    pub(super) fn new(settings: &Settings, records: usize) -> Result<Self, PublishError> {
        let limit = settings.limits_batch_max_records();
        if records as u64 > limit {
            return Err(PublishError::TooManyRecords { records: records as u64, limit });
        }
        // What the request's body was bounded by, with room for what each record gets on top.
        let batch_max = settings.limits_batch_max_bytes() + 256 * records as u64;
        Ok(Self { index: 0, bytes: 0, record_max: settings.limits_record_max_bytes(), batch_max })
    }

    pub(super) fn add(&mut self, record: &AppendRecord) -> Result<(), PublishError> {
        let bytes = record.bytes.len() as u64;
        if bytes > self.record_max {
            return Err(PublishError::RecordTooLarge { index: self.index, bytes, limit_bytes: self.record_max });
        }
        self.index += 1;
        self.bytes += bytes;
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), PublishError> {
        if self.bytes > self.batch_max {
            return Err(PublishError::TooManyBytes { bytes: self.bytes, limit_bytes: self.batch_max });
        }
        Ok(())
    }
}
