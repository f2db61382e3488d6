//! What an object is called, what is known of it, and how long it lives. It stores nothing, and reads no clock.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_core::id::Name;
use tidegate_core::time::Timestamp;

/// The longest scopes and the longest key, in bytes.
pub const PATH_MAX_BYTES: usize = 1_024;
/// The most scopes that a collection has.
pub const SCOPE_MAX_COUNT: usize = 16;
/// The most bytes of one object's metadata: names, values, content type and coding.
pub const METADATA_MAX_BYTES: usize = 8 * 1_024;
/// The longest time to live or to idle: ten years.
pub const LIFE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Why a text names no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Nothing, or more than [`PATH_MAX_BYTES`].
    #[error("{what} has {bytes} bytes, it must have 1 to {PATH_MAX_BYTES}")]
    Length {
        /// Which part.
        what: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// A control character.
    #[error("{what} has a control character at byte {at}")]
    Control {
        /// Which part.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// Scopes are `name=value` with semicolons between them, or `_`.
    #[error("scopes are `name=value` with semicolons between, at most {SCOPE_MAX_COUNT}, or `_` for none")]
    Scopes,
    /// One name stands in the scopes twice.
    #[error("a scope stands there twice")]
    ScopeTwice,
}

fn checked(what: &'static str, text: &str) -> Result<Arc<str>, PathError> {
    if text.is_empty() || text.len() > PATH_MAX_BYTES {
        return Err(PathError::Length { what, bytes: text.len() });
    }
    match text.char_indices().find(|(_, character)| character.is_control()) {
        Some((at, _)) => Err(PathError::Control { what, at }),
        None => Ok(text.into()),
    }
}

/// The scopes of a collection: ordered `name=value` pairs, or none. Two that differ in order are different.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scopes(Arc<str>);

impl Scopes {
    /// Reads `org=17;project=42`, or `_`.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let text = checked("the scopes", text)?;
        if &*text == "_" {
            return Ok(Self(text));
        }
        let mut names = Vec::new();
        for scope in text.split(';') {
            let (name, value) = scope.split_once('=').ok_or(PathError::Scopes)?;
            if name.is_empty() || value.is_empty() || names.len() == SCOPE_MAX_COUNT {
                return Err(PathError::Scopes);
            }
            if names.contains(&name) {
                return Err(PathError::ScopeTwice);
            }
            names.push(name);
        }
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where objects stand together: a tenant's usecase and scopes. Two collections share nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Collection {
    /// Whose. From a token and nothing else.
    pub tenant: Name,
    /// What for.
    pub usecase: Name,
    /// Of whom.
    pub scopes: Scopes,
}

/// An object's key: 1 to [`PATH_MAX_BYTES`] bytes of UTF-8 without control characters. It never becomes a path of a file
/// system: `..` and `/etc/passwd` are keys like any other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(Arc<str>);

impl ObjectKey {
    /// Checks a key.
    pub fn new(text: &str) -> Result<Self, PathError> {
        checked("the key", text).map(Self)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How long an object lives. Afterwards it is absent for everybody at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Expiry {
    /// Until it is deleted.
    #[default]
    Never,
    /// So long after it was written.
    TimeToLive(Duration),
    /// So long after it was last read or written. A reading that comes less than a quarter of that time (a day at most) after the
    /// last one that was noted is not noted.
    TimeToIdle(Duration),
}

/// The text is no expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an expiry is `never`, `ttl:30s` or `tti:1h`, with s, m, h or d, more than nothing and at most ten years")]
pub struct ExpiryError;

impl Expiry {
    /// Reads `never`, `ttl:30s`, `tti:1h`; units `s`, `m`, `h`, `d`.
    pub fn parse(text: &str) -> Result<Self, ExpiryError> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let (kind, time) = text.split_once(':').ok_or(ExpiryError)?;
        let unit = time.chars().last().ok_or(ExpiryError)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(ExpiryError),
        };
        let digits = &time[..time.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ExpiryError);
        }
        let count: u64 = digits.parse().map_err(|_| ExpiryError)?;
        let time = Duration::from_secs(count.checked_mul(seconds).ok_or(ExpiryError)?);
        if time.is_zero() || time > LIFE_MAX {
            return Err(ExpiryError);
        }
        match kind {
            "ttl" => Ok(Self::TimeToLive(time)),
            "tti" => Ok(Self::TimeToIdle(time)),
            _ => Err(ExpiryError),
        }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::TimeToLive(time) => write!(f, "ttl:{}s", time.as_secs()),
            Self::TimeToIdle(time) => write!(f, "tti:{}s", time.as_secs()),
        }
    }
}

/// What a writer says of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Metadata {
    /// The media type.
    pub content_type: Option<Box<str>>,
    /// The coding that the bytes are in; never undone here.
    pub content_encoding: Option<Box<str>>,
    /// How long it lives.
    pub expiry: Expiry,
    /// The writer's own pairs.
    pub custom: BTreeMap<Box<str>, Box<str>>,
}

impl Metadata {
    /// Its size against [`METADATA_MAX_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let custom = self.custom.iter().map(|(name, value)| name.len() + value.len());
        text(&self.content_type) + text(&self.content_encoding) + custom.sum::<usize>()
    }
}

/// Where an object's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// In the metadata store.
    Hot,
    /// In the blob store.
    Cold,
}

impl Tier {
    /// `hot` or `cold`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
        }
    }
}

/// One write of one object: 128 random bits. Two writes never share one, so it serves as a strong entity tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub [u8; 16]);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

/// What is known of an object without reading its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: ObjectKey,
    /// What its writer said.
    pub metadata: Metadata,
    /// When it was written.
    pub created: Timestamp,
    /// When it will be gone, unless it is used.
    pub expires: Option<Timestamp>,
    /// How many bytes it has.
    pub length: u64,
    /// Where they lie.
    pub tier: Tier,
    /// Which write it is.
    pub version: Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_read_as_it_is_written_and_nothing_else_is_taken() {
        for text in ["never", "ttl:30s", "tti:3600s"] {
            assert_eq!(Expiry::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Expiry::parse("tti:1h"), Expiry::parse("tti:60m"));
        for text in [
            "",
            "ttl",
            "ttl:",
            "ttl:s",
            "ttl:0s",
            "ttl:-1s",
            "ttl:1",
            "ttl:1y",
            "TTL:1s",
            "ttl:+1s",
            "ttl:1.5h",
            "ttl:999999999999999999d",
            "ttl:é",
        ] {
            assert_eq!(Expiry::parse(text), Err(ExpiryError), "{text}");
        }
    }

    #[test]
    fn scopes_are_ordered_pairs_or_none() {
        for text in ["_", "org=17", "org=17;project=42", "a=b=c"] {
            assert_eq!(Scopes::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "org", "=1", "a=", "a=1;", ";a=1", "a=1;a=2", "a=\u{7}"] {
            assert!(Scopes::parse(text).is_err(), "{text}");
        }
        assert_ne!(Scopes::parse("a=1;b=2"), Scopes::parse("b=2;a=1"));
    }

    #[test]
    fn every_odd_key_is_a_key_unless_it_has_a_control_character_or_is_too_long() {
        for key in ["..", "/etc/passwd", "a//b/", "%2e", "😀", " ", "C:\\x", "a\u{202e}b"] {
            assert_eq!(ObjectKey::new(key).unwrap().as_str(), key);
        }
        assert_eq!(ObjectKey::new("a\0"), Err(PathError::Control { what: "the key", at: 1 }));
        assert!(ObjectKey::new(&"x".repeat(PATH_MAX_BYTES)).is_ok());
        assert!(ObjectKey::new(&"x".repeat(PATH_MAX_BYTES + 1)).is_err() && ObjectKey::new("").is_err());
    }
}
