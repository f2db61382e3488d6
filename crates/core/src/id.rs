//! Identifiers: what names a lease, a cursor, a snapshot, an epoch and a user's thing. It never makes one up without
//! [`Entropy`]: a failure of the randomness is an error, never a guessable id.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::port::{Entropy, EntropyUnavailable};

/// A lease's public handle: 128 random bits, 32 hex digits on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId([u8; 16]);

impl LeaseId {
    /// Draws a new id. Fails when the operating system gives no randomness.
    pub fn draw(entropy: &dyn Entropy) -> Result<Self, EntropyUnavailable> {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The id with these bits.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bits.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId({self})")
    }
}

impl Serialize for LeaseId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A cursor: 192 random bits, 48 hex digits on the wire. It is a secret: whoever holds it (and is its owner) can
/// resume, so `Debug` does not show it and comparison takes the same time for every input.
#[derive(Clone, Copy)]
pub struct CursorToken([u8; 24]);

/// Text that is not a cursor: not 48 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is 48 hexadecimal digits")]
pub struct MalformedCursor;

impl CursorToken {
    /// Draws a new token. Fails when the operating system gives no randomness.
    pub fn draw(entropy: &dyn Entropy) -> Result<Self, EntropyUnavailable> {
        let mut bytes = [0; 24];
        entropy.fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Reads the wire form: 48 hex digits, either case.
    pub fn parse(text: &str) -> Result<Self, MalformedCursor> {
        let mut bytes = [0; 24];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| MalformedCursor)?;
        Ok(Self(bytes))
    }

    /// The wire form. Take care where it goes: it is a bearer secret.
    #[must_use]
    pub fn reveal(&self) -> String {
        hex::encode(self.0)
    }

    /// Its bits.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 24] {
        &self.0
    }
}

impl PartialEq for CursorToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for CursorToken {}

impl fmt::Debug for CursorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CursorToken(..)")
    }
}

/// A fencing epoch. A holder with a lower epoch than the resource's is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch of the first holder.
    pub const FIRST: Self = Self(1);

    /// The epoch with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch after this one; `None` after 2^64 - 1, so that an epoch never comes back.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

/// What a source calls a pinned snapshot. Opaque: two equal ids mean the same snapshot of the same source, nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(Box<str>);

impl SnapshotId {
    /// The id with this text.
    #[must_use]
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that a user gave to something: 1 to 255 bytes of UTF-8 without control characters. Every other character,
/// `/` and `:` too, is legal and comes back as it was given. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Name(Arc<str>);

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// It is empty.
    #[error("a name has at least 1 byte")]
    Empty,
    /// It is longer than [`Name::MAX_BYTES`].
    #[error("a name has at most {max} bytes, this one has {bytes}", max = Name::MAX_BYTES)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// It has a control character.
    #[error("a name has no control characters, this one has U+{code_point:04X} at byte {at}")]
    ControlCharacter {
        /// Which one.
        code_point: u32,
        /// Where.
        at: usize,
    },
}

impl Name {
    /// The most bytes that a name may have.
    pub const MAX_BYTES: usize = 255;

    /// Checks a text.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, InvalidName> {
        let text = text.into();
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(InvalidName::TooLong { bytes: text.len() });
        }
        if let Some((at, c)) = text.char_indices().find(|(_, c)| c.is_control()) {
            return Err(InvalidName::ControlCharacter { code_point: u32::from(c), at });
        }
        Ok(Self(text.into()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As its text, quoted: it stands in messages for people.
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct NoEntropy;
    impl Entropy for NoEntropy {
        fn fill(&self, _: &mut [u8]) -> Result<(), EntropyUnavailable> {
            Err(EntropyUnavailable::new("none"))
        }
    }

    #[test]
    fn without_randomness_there_is_no_id_rather_than_a_guessable_one() {
        assert!(LeaseId::draw(&NoEntropy).is_err());
        assert!(CursorToken::draw(&NoEntropy).is_err());
    }

    #[test]
    fn a_cursor_is_exactly_48_hex_digits_and_debug_hides_it() {
        let text = "0123456789abcdef0123456789abcdef0123456789abcdef";
        let token = CursorToken::parse(text).unwrap();
        assert_eq!(token.reveal(), text);
        assert!(!format!("{token:?}").contains("0123"));
        for bad in ["", "0", &text[..47], &format!("{text}0"), &text.replace('0', "g")] {
            assert_eq!(CursorToken::parse(bad), Err(MalformedCursor));
        }
    }

    #[test]
    fn an_epoch_never_wraps() {
        assert_eq!(Epoch::new(u64::MAX).next(), None);
        assert_eq!(Epoch::FIRST.next(), Some(Epoch::new(2)));
    }

    proptest! {
        #[test]
        fn a_name_round_trips_or_is_refused(text in any::<String>()) {
            match Name::new(text.clone()) {
                Ok(name) => prop_assert_eq!(name.as_str(), text.as_str()),
                Err(_) => prop_assert!(text.is_empty() || text.len() > 255 || text.chars().any(char::is_control)),
            }
        }
    }
}
