//! The cursors: what each stands for, whose it is, and, for a while, how it ended. It never keeps a token (only its
//! SHA-256), and never tells a stranger's cursor from one that does not exist.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tidegate_core::id::CursorToken;
use tidegate_core::principal::Owner;
use tidegate_core::{ErrorKind, Failure, Moment};

#[cfg(all(test, not(loom)))]
mod tests;

/// How much a table keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CursorBounds {
    /// Cursors that live at one time.
    pub live_max: usize,
    /// Ended cursors that are remembered at one time; beyond it the one that ended first is forgotten. 0 = none.
    pub tombstone_max: usize,
    /// How long an ended cursor is remembered. The first [`CursorTable::sweep`] or [`CursorTable::end`] after it
    /// forgets it.
    pub keep: Duration,
}

impl Default for CursorBounds {
    /// 65,536 that live, 65,536 that ended (some 8 MiB), for 10 minutes.
    fn default() -> Self {
        Self { live_max: 65_536, tombstone_max: 65_536, keep: Duration::from_secs(600) }
    }
}

/// How a cursor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CursorEnd {
    /// Its owner cancelled it.
    Cancelled,
    /// Nobody used it in time, or its snapshot is gone.
    Expired,
    /// Its stream came to its end, and nothing is left to resume.
    Released,
}

/// What a table knows of a token, as far as the one who asks may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// It lives, and this is what it stands for.
    Live(T),
    /// It has ended, and not long ago.
    Ended(CursorEnd),
    /// It does not exist, is forgotten, or is somebody else's: one answer for all.
    NotFound,
}

/// What a cursor is known by inside: the SHA-256 of its token. No secret: the token cannot be had from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CursorKey([u8; 32]);

impl CursorKey {
    /// The key of a token.
    #[must_use]
    pub fn of(token: &CursorToken) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

/// A cursor was not taken in. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CursorRefused {
    /// [`CursorBounds::live_max`] cursors live.
    #[error("{limit} cursors live")]
    Full {
        /// The bound.
        limit: usize,
    },
    /// The table knows this token, living or ended. With 192 random bits that does not happen: the randomness is
    /// broken.
    #[error("a cursor was drawn twice")]
    Taken,
}

impl Failure for CursorRefused {
    fn code(&self) -> &'static str {
        match self {
            Self::Full { .. } => "cursor_capacity_exhausted",
            Self::Taken => "cursor_drawn_twice",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::Taken => ErrorKind::Internal,
        }
    }
}

/// What an owner is compared by: of one length, so that a comparison takes the same time for every owner.
type OwnerDigest = [u8; 32];

/// The table. Every call costs O(1), a sweep that for each cursor that it forgets.
///
/// A look-up does the same for a token that is unknown and for one that is a stranger's: two hashes, one probe of the
/// map, two constant-time comparisons. What the probe's time could tell is about the SHA-256 of a token under a
/// randomly keyed hash, so nobody can feel their way to a token byte by byte.
#[derive(Debug)]
pub struct CursorTable<T> {
    bounds: CursorBounds,
    cursors: HashMap<CursorKey, Cursor<T>>,
    /// Ended cursors in the order in which they ended, with the time from which each is forgotten.
    tombstones: VecDeque<(Moment, CursorKey)>,
}

#[derive(Debug)]
struct Cursor<T> {
    owner: OwnerDigest,
    state: State<T>,
}

#[derive(Debug)]
enum State<T> {
    Live(T),
    Ended(CursorEnd),
}

impl<T: Clone> CursorTable<T> {
    /// An empty table.
    #[must_use]
    pub fn new(bounds: CursorBounds) -> Self {
        Self { bounds, cursors: HashMap::new(), tombstones: VecDeque::new() }
    }

    /// Takes a cursor in, and gives the key by which [`Self::end_key`] can end it.
    pub fn insert(&mut self, token: &CursorToken, owner: &Owner, value: T) -> Result<CursorKey, CursorRefused> {
        let key = CursorKey::of(token);
        if self.live() >= self.bounds.live_max {
            return Err(CursorRefused::Full { limit: self.bounds.live_max });
        }
        match self.cursors.entry(key) {
            MapEntry::Occupied(_) => Err(CursorRefused::Taken),
            MapEntry::Vacant(place) => {
                place.insert(Cursor { owner: digest_of(owner), state: State::Live(value) });
                Ok(key)
            }
        }
    }

    /// What this token stands for, if it is this owner's.
    #[must_use]
    pub fn find(&self, token: &CursorToken, owner: &Owner) -> Found<T> {
        let key = CursorKey::of(token);
        let asker = digest_of(owner);
        let (known, found_key, found_owner, state) = match self.cursors.get_key_value(&key) {
            Some((found, cursor)) => (Choice::from(1), &found.0, &cursor.owner, Some(&cursor.state)),
            None => (Choice::from(0), &NOTHING, &NOTHING, None),
        };
        let granted = known & found_key.ct_eq(&key.0) & found_owner.ct_eq(&asker);
        match state {
            Some(State::Live(value)) if bool::from(granted) => Found::Live(value.clone()),
            Some(State::Ended(end)) if bool::from(granted) => Found::Ended(*end),
            _ => Found::NotFound,
        }
    }

    /// Ends a cursor and gives what it stood for. `None` if it has ended before (the first end stays) or is not
    /// known. It does not ask whose it is: look it up first where that matters.
    pub fn end(&mut self, token: &CursorToken, end: CursorEnd, now: Moment) -> Option<T> {
        self.end_key(&CursorKey::of(token), end, now)
    }

    /// As [`Self::end`], by the key that [`Self::insert`] gave: for who must not keep the token.
    pub fn end_key(&mut self, key: &CursorKey, end: CursorEnd, now: Moment) -> Option<T> {
        let cursor = self.cursors.get_mut(key)?;
        if let State::Ended(_) = cursor.state {
            return None;
        }
        let State::Live(value) = std::mem::replace(&mut cursor.state, State::Ended(end)) else {
            return None;
        };
        // A clock that went back must not make the queue unordered: what ended later is forgotten no earlier.
        let latest = self.tombstones.back().map_or(Moment::ORIGIN, |(until, _)| *until);
        self.tombstones.push_back((now.after(self.bounds.keep).max(latest), *key));
        // At most two a call, so that the work stays bounded and the queue shrinks even if nobody sweeps.
        for _ in 0..2 {
            if self.tombstones.len() > self.bounds.tombstone_max
                || self.tombstones.front().is_some_and(|(until, _)| *until <= now)
            {
                self.forget_oldest();
            }
        }
        Some(value)
    }

    /// Forgets the ended cursors whose time is up, at most [`Self::SWEEP_MAX`] of them; gives how many it forgot.
    pub fn sweep(&mut self, now: Moment) -> usize {
        let mut forgotten = 0;
        while forgotten < Self::SWEEP_MAX && self.tombstones.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
            forgotten += 1;
        }
        forgotten
    }

    /// How many ended cursors one sweep forgets at most.
    pub const SWEEP_MAX: usize = 1_024;

    /// How many cursors live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.cursors.len() - self.tombstones.len()
    }

    /// How many ended cursors are remembered.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.tombstones.pop_front() {
            self.cursors.remove(&key);
        }
    }
}

/// Stands in for the key and the owner that an unknown token does not have.
const NOTHING: [u8; 32] = [0; 32];

fn digest_of(owner: &Owner) -> OwnerDigest {
    let mut hash = Sha256::new();
    // The length first: no two owners give the same bytes.
    hash.update((owner.tenant.len() as u64).to_be_bytes());
    hash.update(owner.tenant.as_bytes());
    hash.update(owner.subject.as_bytes());
    hash.finalize().into()
}
