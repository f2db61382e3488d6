//! What a write or a deletion changes in the metadata store, in one atomic step, so that a crash before or after it leaves no blob to
//! which nobody refers and no head that refers to nothing:
//!
//! - the head takes the place of the one that was read, or the step does not happen;
//! - the intent of the new blob goes, so from then on the head alone keeps the blob;
//! - each blob of the old head gets an intent as garbage, so somebody will delete it;
//! - the old small bytes go, or the new ones take their place.
//!
//! Pure: it reads and writes nothing.

use bytes::Bytes;
use tidegate_core::port::{CompareAndSwap, Revision, Swap};

use crate::key;
use crate::object::Version;
use crate::stored::{Head, Intent, Place, seal_body};

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Current {
    /// The head, also one that has expired.
    pub(crate) head: Option<(Head, Revision)>,
    /// The revision of the small bytes, where the head says that there are any.
    pub(crate) body: Option<Revision>,
}

/// What shall be there.
#[derive(Debug, Clone)]
pub(crate) struct New {
    pub(crate) head: Head,
    /// The bytes of a small object.
    pub(crate) payload: Option<Bytes>,
}

/// The step. What is `along` comes last.
pub(crate) fn replace(
    head_key: &Bytes,
    current: &Current,
    new: Option<&New>,
    garbage_from_ms: i64,
    along: &[CompareAndSwap],
) -> Vec<CompareAndSwap> {
    let mut swaps = Vec::with_capacity(2 + along.len());
    let put_or_delete = |value: Option<Bytes>| value.map_or(Swap::Delete, Swap::Put);
    swaps.push(CompareAndSwap {
        key: head_key.clone(),
        expected: current.head.as_ref().map(|(_, revision)| *revision),
        swap: put_or_delete(new.map(|new| new.head.seal())),
    });
    let payload = new.and_then(|new| Some(seal_body(new.head.version, new.payload.as_ref()?)));
    if current.body.is_some() || payload.is_some() {
        swaps.push(CompareAndSwap {
            key: key::body_of(head_key),
            expected: current.body,
            swap: put_or_delete(payload),
        });
    }
    if let Some((Head { place: Place::Cold(pieces), .. }, _)) = &current.head {
        swaps.extend(pieces.iter().map(|piece| CompareAndSwap {
            key: key::intent(piece.blob),
            expected: None,
            swap: Swap::Put(Intent::Garbage { from_ms: garbage_from_ms }.seal()),
        }));
    }
    swaps.extend_from_slice(along);
    swaps
}

/// Conditions on the version that is there, as HTTP has them (RFC 9110, section 13).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Condition {
    /// One of these must be there.
    pub if_match: Option<Versions>,
    /// None of these may be there.
    pub if_none_match: Option<Versions>,
}

/// Versions that a condition names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Versions {
    /// Whatever it is.
    Any,
    /// One of these; those that are no version of ours match nothing and are left out.
    OneOf(Vec<Version>),
}

impl Versions {
    fn has(&self, current: Option<Version>) -> bool {
        match self {
            Self::Any => current.is_some(),
            Self::OneOf(versions) => current.is_some_and(|current| versions.contains(&current)),
        }
    }
}

impl Condition {
    /// That nothing is there.
    #[must_use]
    pub const fn absent() -> Self {
        Self { if_match: None, if_none_match: Some(Versions::Any) }
    }

    /// That this version is there.
    #[must_use]
    pub fn is(version: Version) -> Self {
        Self { if_match: Some(Versions::OneOf(vec![version])), if_none_match: None }
    }

    /// Whether `if_match` holds.
    #[must_use]
    pub fn matches(&self, current: Option<Version>) -> bool {
        self.if_match.as_ref().is_none_or(|wanted| wanted.has(current))
    }

    /// Whether `if_none_match` holds.
    #[must_use]
    pub fn none_matches(&self, current: Option<Version>) -> bool {
        self.if_none_match.as_ref().is_none_or(|unwanted| !unwanted.has(current))
    }
}
