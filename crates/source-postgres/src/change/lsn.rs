//! A place in PostgreSQL's write-ahead log. It never compares texts: `0/9` lies before `0/10`.

use std::fmt;

use tidegate_core::position::SourcePosition;

/// A log sequence number: bytes since the cluster was made. Text form `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Lsn(pub(crate) u64);

impl Lsn {
    /// Reads PostgreSQL's text form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let (high, low) = text.split_once('/')?;
        Some(Self(half(high)? << 32 | half(low)?))
    }

    pub(crate) fn of(position: &SourcePosition) -> Option<Self> {
        Self::parse(&position.0)
    }

    pub(crate) fn position(self) -> SourcePosition {
        SourcePosition(self.to_string().into())
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_position_reads_back(value in any::<u64>()) {
            prop_assert_eq!(Lsn::parse(&Lsn(value).to_string()), Some(Lsn(value)));
        }

        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = Lsn::parse(&text);
        }
    }

    #[test]
    fn other_texts_are_no_positions() {
        for text in ["", "/", "0", "0/", "/0", "0/+1", "0/G", "0/123456789", "0/0/0", " 0/0"] {
            assert_eq!(Lsn::parse(text), None, "{text}");
        }
        assert!(Lsn::parse("0/9") < Lsn::parse("0/10"));
    }
}
