//! Making a stream, with its first content and its place in the source in one atomic step. The same request again is answered
//! like the first; it never changes a stream that is there.

use bytes::Bytes;
use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::port::AppendRecord;
use tidegate_core::position::Offset;
use tidegate_core::principal::Principal;

use super::content::{self, same_type};
use super::{DEFAULT_CONTENT_TYPE, DurableError, DurableMeta, JSON, MessageKind};
use crate::error::{StoreError, StreamError};
use crate::record::NewRecord;
use crate::service::{ATTEMPTS_MAX, StreamService, draw};
use crate::spec::{StreamMeta, StreamSpec};
use crate::stored;

/// What a stream is to be.
#[derive(Debug, Clone, Default)]
pub struct DurableSpec {
    /// Its content type; `None` = the source's, or [`DEFAULT_CONTENT_TYPE`].
    pub content_type: Option<Box<str>>,
    /// It is gone when nothing was read or appended for this long, in seconds.
    pub ttl_s: Option<u64>,
    /// It is gone from this time on.
    pub expires_at: Option<Timestamp>,
    /// It takes nothing more after its first content.
    pub closed: bool,
    /// Where to fork it from.
    pub fork: Option<ForkSpec>,
    /// Its first content; empty = none.
    pub body: Bytes,
}

/// Where to fork from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkSpec {
    /// The stream.
    pub source: Name,
    /// Up to where; `None` = everything that is there.
    pub offset: Option<Offset>,
    /// How much more of the append that follows there: records of a JSON stream, bytes of any other.
    pub sub_offset: u64,
}

/// What became of a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurableCreated {
    /// It is new; otherwise the same one was there.
    pub new: bool,
    /// Its content type.
    pub content_type: Box<str>,
    /// The offset that the next record gets.
    pub next: Offset,
    /// It takes nothing more.
    pub closed: bool,
}

impl StreamService {
    /// Creates a stream of the Durable Streams protocol, durable when answered.
    pub async fn create_durable(
        &self,
        principal: &Principal,
        name: &Name,
        spec: &DurableSpec,
    ) -> Result<DurableCreated, DurableError> {
        if let Some(content_type) = &spec.content_type {
            content::check(content_type)?;
        }
        let id = Self::id(&principal.owner, name)?;
        for _ in 0..ATTEMPTS_MAX {
            match self.core.load(&id).await? {
                Some((meta, revision)) if meta.removing => {
                    // What a crash left of a removal.
                    self.clear_away(&id, &meta, Some(revision)).await?;
                }
                Some(_) => match self.existing(principal, name, spec).await {
                    // Expired, or removed between the two looks.
                    Err(DurableError::Stream(StreamError::NotFound { .. })) => {}
                    Err(DurableError::Stream(StreamError::Gone { name })) => {
                        let difference = "it was removed, and streams that were forked from it keep its name";
                        return Err(DurableError::Exists { name, difference });
                    }
                    other => return other,
                },
                None => {
                    let prepared = match &spec.fork {
                        Some(fork) => Some(self.prepare_fork(&id, fork, spec.content_type.as_deref()).await?),
                        None => None,
                    };
                    let (mut durable, start, prefix, condition, source) = match prepared {
                        Some(fork) => (fork.durable, fork.start, fork.prefix, Some(fork.condition), Some(fork.source)),
                        None => {
                            let content_type = spec.content_type.as_deref().unwrap_or(DEFAULT_CONTENT_TYPE);
                            (DurableMeta::new(content_type), Offset::ZERO, None, None, None)
                        }
                    };
                    if spec.ttl_s.is_some() || spec.expires_at.is_some() {
                        durable.ttl_s = spec.ttl_s;
                        durable.expires_at_ms = spec.expires_at.map(Timestamp::unix_ms);
                    }
                    durable.closed = spec.closed;
                    let mut records: Vec<AppendRecord> = prefix.into_iter().collect();
                    records.extend(self.messages(durable.kind(), &spec.body)?);
                    let next = Offset(start.0 + records.len() as u64);
                    let content_type = durable.content_type.clone();
                    let incarnation = draw(self.core.entropy.as_ref())?;
                    let now = self.core.clock.timestamp();
                    let mut meta = StreamMeta::new(&StreamSpec::default(), incarnation, now, 0);
                    meta.start = start.0;
                    meta.durable = Some(durable);
                    let made = self.establish(&id, &meta, condition.into_iter().collect(), records).await?;
                    if let Some(source) = source {
                        // Its count went up, or it was something else that changed: either way it is looked at anew.
                        self.core.look_again(&source).await;
                    }
                    if made {
                        return Ok(DurableCreated { new: true, content_type, next, closed: spec.closed });
                    }
                }
            }
        }
        Err(StoreError::Contended.into())
    }

    /// The answer where a stream of that name is there.
    async fn existing(
        &self,
        principal: &Principal,
        name: &Name,
        spec: &DurableSpec,
    ) -> Result<DurableCreated, DurableError> {
        let handle = self.handle(principal, name).await?;
        let meta = handle.meta();
        if meta.partitions != 1 {
            return Err(DurableError::Partitioned { name: name.clone(), partitions: meta.partitions });
        }
        let of_changes = DurableMeta::new(JSON);
        let there = meta.durable.as_ref().unwrap_or(&of_changes);
        if let Some(difference) = difference(there, spec) {
            return Err(DurableError::Exists { name: name.clone(), difference });
        }
        let next = handle.tail().await?;
        Ok(DurableCreated { new: false, content_type: there.content_type.clone(), next, closed: there.closed })
    }

    /// A body's messages as the log takes them.
    pub(super) fn messages(&self, kind: MessageKind, body: &Bytes) -> Result<Vec<AppendRecord>, DurableError> {
        if body.is_empty() {
            return Ok(Vec::new());
        }
        let records = match kind {
            MessageKind::Json => content::json_values(body)?
                .into_iter()
                .map(|value| NewRecord::message(value).to_append(false))
                .collect(),
            MessageKind::Text | MessageKind::Binary => {
                vec![AppendRecord { bytes: stored::raw(body), key: None, tombstone: false }]
            }
        };
        self.check_sizes(&records)?;
        Ok(records)
    }
}

/// What parts a stream that is there from the one that is asked for.
fn difference(there: &DurableMeta, asked: &DurableSpec) -> Option<&'static str> {
    let inherits = asked.fork.is_some();
    let content_type = match &asked.content_type {
        Some(asked) => same_type(asked, &there.content_type),
        None => inherits || same_type(DEFAULT_CONTENT_TYPE, &there.content_type),
    };
    if !content_type {
        return Some("its content type is another");
    }
    match (&there.fork, &asked.fork) {
        (None, None) => {}
        (Some(there), Some(asked)) => {
            let offset = asked.offset.is_none_or(|offset| offset.0 == there.offset);
            if there.source != asked.source || !offset || there.sub_offset != asked.sub_offset {
                return Some("it was forked from another place");
            }
        }
        (Some(_), None) => return Some("it is a fork"),
        (None, Some(_)) => return Some("it is no fork"),
    }
    let given = asked.ttl_s.is_some() || asked.expires_at.is_some();
    let same_expiry = there.ttl_s == asked.ttl_s && there.expires_at_ms == asked.expires_at.map(Timestamp::unix_ms);
    if !same_expiry && (given || !inherits) {
        return Some("its expiry is another");
    }
    if there.closed != asked.closed {
        return Some(if there.closed { "it is closed" } else { "it is open" });
    }
    None
}
