//! Reading. A reader that was overtaken by a write looks again and is given what is there now; it never gets a part of two writes, nor
//! a "not found" for an object that was there all the time.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tidegate_core::port::{CompareAndSwap, Durability, MetaEntry, Revision, Swap, SwapOutcome};

use super::{Core, ObjectService, head_key};
use crate::blob::{self, OpenError};
use crate::error::{GetError, PreconditionFailed, StoreError};
use crate::key;
use crate::object::{Collection, ObjectInfo, ObjectKey, Version};
use crate::stored::{Head, Piece, Place, open_body};
use crate::tier::Condition;

/// Looks at an object that is replaced again and again.
const LOOKS_MAX: usize = 16;

/// A part of an object, as a reader asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// From a byte to the end.
    From(u64),
    /// From the first to the last byte, both included.
    FromTo(u64, u64),
    /// So many last bytes.
    Last(u64),
}

impl ByteRange {
    /// The bytes that it means in an object of this length; `None` = there are none (RFC 9110, section 14.1.2).
    #[must_use]
    pub fn within(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first) => first..length,
            Self::FromTo(first, last) => first..last.saturating_add(1).min(length),
            Self::Last(count) => length.saturating_sub(count)..length,
        };
        (range.start < range.end).then_some(range)
    }
}

/// How an object is read.
#[derive(Debug, Clone, Default)]
pub struct Get {
    /// Which part; `None` = all.
    pub range: Option<ByteRange>,
    /// What must be there; where `if_none_match` does not hold, the answer is [`Got::NotModified`].
    pub condition: Condition,
}

/// What a reader is given.
pub enum Got {
    /// The object.
    Object(Object),
    /// The reader has it already.
    NotModified(ObjectInfo),
}

/// An object, or a part of it.
pub struct Object {
    /// What is known of it.
    pub info: ObjectInfo,
    /// Which of its bytes follow.
    pub range: Range<u64>,
    /// The bytes.
    pub body: ObjectBytes,
}

/// An object's bytes, in pieces of at most a block; those of a small object in one. An error is the end.
pub struct ObjectBytes(Source);

enum Source {
    /// All there are.
    AtHand(Bytes),
    Stream(BoxStream<'static, Result<Bytes, GetError>>),
}

impl ObjectBytes {
    /// All of them, where they are in memory already.
    ///
    /// # Errors
    /// They are not: `self`, unchanged.
    pub fn at_hand(self) -> Result<Bytes, Self> {
        match self.0 {
            Source::AtHand(bytes) => Ok(bytes),
            stream @ Source::Stream(_) => Err(Self(stream)),
        }
    }
}

impl Stream for ObjectBytes {
    type Item = Result<Bytes, GetError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.get_mut().0 {
            Source::AtHand(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::AtHand(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Source::Stream(stream) => stream.as_mut().poll_next(context),
        }
    }
}

impl ObjectService {
    /// What is known of an object. It counts as a use.
    pub async fn head(&self, collection: &Collection, key: &ObjectKey, condition: &Condition) -> Result<Got, GetError> {
        let (head, _) = self.core.live(collection, key).await?;
        if !condition.matches(Some(head.version)) {
            return Err(PreconditionFailed { current: Some(head.version) }.into());
        }
        let unchanged = !condition.none_matches(Some(head.version));
        let info = head.into_info(key.clone());
        if unchanged {
            return Ok(Got::NotModified(info));
        }
        let body = ObjectBytes(Source::AtHand(Bytes::new()));
        Ok(Got::Object(Object { range: 0..info.length, info, body }))
    }

    /// Reads an object, or a part of it. Memory: a small object whole, of a large one a block of 256 KiB.
    pub async fn get(&self, collection: &Collection, key: &ObjectKey, get: &Get) -> Result<Got, GetError> {
        let mut before = None;
        for _ in 0..LOOKS_MAX {
            let (head, _) = self.core.live(collection, key).await?;
            if !get.condition.matches(Some(head.version)) {
                return Err(PreconditionFailed { current: Some(head.version) }.into());
            }
            if !get.condition.none_matches(Some(head.version)) {
                return Ok(Got::NotModified(head.into_info(key.clone())));
            }
            let range = match get.range {
                None => 0..head.length,
                Some(range) => range.within(head.length).ok_or(GetError::Range { length: head.length })?,
            };
            let body = match &head.place {
                Place::Hot => self.core.small(collection, key, &head, range.clone()).await?,
                Place::Cold(pieces) => {
                    let whose = (head_key(collection, key), head.version);
                    ObjectService::large(&self.core, whose, pieces, range.clone()).await?
                }
            };
            match body {
                Some(source) => {
                    let body = ObjectBytes(source);
                    return Ok(Got::Object(Object { info: head.into_info(key.clone()), range, body }));
                }
                // The same write twice, and its bytes are not there: nobody replaced it.
                None if before == Some(head.version) => {
                    let what = format!("object {:?} of version {} has no bytes", key.as_str(), head.version);
                    return Err(StoreError::Corrupt { what: what.into() }.into());
                }
                None => before = Some(head.version),
            }
        }
        Err(GetError::Replaced)
    }
}

impl Core {
    /// The head of an object that is there and has not expired; notes the use.
    async fn live(&self, collection: &Collection, key: &ObjectKey) -> Result<(Head, Revision), GetError> {
        let now = self.now();
        let key_of_head = head_key(collection, key);
        let found = self.head(&key_of_head).await?.filter(|(head, _)| !head.is_expired(now));
        let (head, revision) = found.ok_or_else(|| GetError::NotFound { key: key.as_str().into() })?;
        if head.renews(now) {
            let used = Head { used_ms: now.unix_ms(), ..head.clone() };
            let swap = CompareAndSwap { key: key_of_head, expected: Some(revision), swap: Swap::Put(used.seal()) };
            match self.meta.compare_and_swap(vec![swap], Durability::Os).await {
                Ok(SwapOutcome::Swapped(revisions)) => {
                    return Ok((used, revisions.first().copied().unwrap_or(revision)));
                }
                // Somebody else notes it, or writes.
                Ok(SwapOutcome::Mismatch { .. }) => {}
                // A failure is told to those who write.
                Err(error) => tracing::warn!(%error, "the use of an object was not noted"),
            }
        }
        Ok((head, revision))
    }

    /// A small object's bytes; `None` = they are of another write by now.
    async fn small(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        head: &Head,
        range: Range<u64>,
    ) -> Result<Option<Source>, GetError> {
        let entry = self.meta.get(&key::body(collection, key)).await.map_err(StoreError::from)?;
        let Some(MetaEntry { value: Some(sealed), .. }) = entry else { return Ok(None) };
        let (version, payload) = open_body(&sealed)?;
        if version != head.version {
            return Ok(None);
        }
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let Some(_) = payload.get(place(range.start)..place(range.end)) else {
            let what = format!("object {:?} is shorter than its head says", key.as_str());
            return Err(StoreError::Corrupt { what: what.into() }.into());
        };
        let part = payload.slice(place(range.start)..place(range.end));
        Ok(Some(Source::AtHand(part)))
    }
}

impl ObjectService {
    /// A large object's bytes; `None` = the first blob is gone.
    async fn large(
        core: &Arc<Core>,
        whose: (Bytes, Version),
        pieces: &[Piece],
        range: Range<u64>,
    ) -> Result<Option<Source>, GetError> {
        let mut wanted = Vec::new();
        let mut at = 0_u64;
        for piece in pieces {
            let end = at + piece.length;
            let (from, to) = (range.start.max(at), range.end.min(end));
            if from < to {
                wanted.push((piece.clone(), from - at..to - at));
            }
            at = end;
        }
        let mut wanted = wanted.into_iter();
        let Some((piece, part)) = wanted.next() else { return Ok(Some(Source::AtHand(Bytes::new()))) };
        // Opened now, so that one that is gone is found before anything is answered.
        let first = match blob::open(core.cold.store().as_ref(), piece, part).await {
            Ok(first) => first,
            Err(OpenError::Missing) => return Ok(None),
            Err(OpenError::Store(error)) => return Err(error.into()),
        };
        let (core, whose) = (Arc::clone(core), Arc::new(whose));
        let others = stream::iter(wanted.map(Ok)).and_then(move |(piece, part)| {
            let (core, whose) = (Arc::clone(&core), Arc::clone(&whose));
            async move {
                let blob = piece.blob;
                match blob::open(core.cold.store().as_ref(), piece, part).await {
                    Ok(bytes) => Ok(bytes),
                    Err(OpenError::Store(error)) => Err(error.into()),
                    Err(OpenError::Missing) => {
                        let now = core.head(&whose.0).await?.map(|(head, _)| head.version);
                        // The head still says that it is there: nobody replaced it.
                        Err(if now == Some(whose.1) {
                            StoreError::Corrupt { what: format!("blob {blob:?} is not there").into() }.into()
                        } else {
                            GetError::Replaced
                        })
                    }
                }
            }
        });
        Ok(Some(Source::Stream(first.chain(others.try_flatten()).boxed())))
    }
}
