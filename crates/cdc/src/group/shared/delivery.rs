//! The name of one delivery of one record: what is acknowledged. It never says more than that: a later delivery of the same
//! record has another name, and so has one after a seek or of another life of the group.

use std::fmt;

use crate::group::cell::Life;

/// One delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeliveryId {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) count: u32,
    /// The group's generation at the delivery.
    pub(crate) generation: u64,
    /// Random bits of the group's life.
    pub(crate) nonce: u64,
}

/// The random bits that the ids of a group's life carry.
pub(crate) fn nonce(life: &Life) -> u64 {
    life.iter().take(8).fold(0, |bits, byte| (bits << 8) | u64::from(*byte))
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, offset, count, generation, nonce } = self;
        write!(f, "{partition:x}-{offset:x}-{count:x}-{generation:x}-{nonce:016x}")
    }
}

impl DeliveryId {
    /// Reads an id; `None` where the text is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let id = Self {
            partition: u32::try_from(number(parts.next()?)?).ok()?,
            offset: number(parts.next()?)?,
            count: u32::try_from(number(parts.next()?)?).ok()?,
            generation: number(parts.next()?)?,
            nonce: number(parts.next()?)?,
        };
        parts.next().is_none().then_some(id)
    }
}

/// A number as it is written: lower-case hexadecimal digits, at most 16.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (digits && (1..=16).contains(&text.len())).then(|| u64::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_is_read_back_as_it_was_written(
            partition: u32, offset: u64, count: u32, generation: u64, nonce: u64,
        ) {
            let id = DeliveryId { partition, offset, count, generation, nonce };
            prop_assert_eq!(DeliveryId::parse(&id.to_string()), Some(id));
        }

        #[test]
        fn foreign_text_is_no_id_and_no_panic(text in ".{0,80}") {
            let _ = DeliveryId::parse(&text);
        }
    }

    #[test]
    fn near_misses_are_no_ids() {
        for bad in
            ["", "-", "0-0-0-0", "0-0-0-0-0-0", "+1-0-0-0-0", "0-0-0-0-", "0-10000000000000000-0-0-0", "A-0-0-0-0"]
        {
            assert_eq!(DeliveryId::parse(bad), None, "{bad}");
        }
    }
}
