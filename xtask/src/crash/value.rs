//! The value of a record, which follows from its id alone: so the history need not keep it, and a reader can tell at once
//! whether the bytes are those that were sent. No randomness.

use std::fmt::Write as _;

/// Beyond 2^53, so that a number that went through a float shows.
const BIG: u64 = 9_007_199_254_740_993;
/// The longest usual padding, in characters; one record in `LONG_EVERY` has `LONG`.
const USUAL: u64 = 200;
const LONG: usize = 6000;
const LONG_EVERY: u64 = 53;

/// The JSON text of a record: compact, its keys sorted, so that a server that parses and prints it gives the same bytes.
pub(crate) fn text(id: u64) -> String {
    let mixed = mix(id);
    let length = if mixed.is_multiple_of(LONG_EVERY) { LONG } else { (mixed % USUAL) as usize };
    let mut out = String::with_capacity(length + 80);
    let _ = write!(out, "{{\"big\":{},\"id\":{id},\"pad\":\"", BIG.wrapping_add(id));
    let mut state = mixed;
    let letters = ['a', 'b', 'ß', '%', ':', '/', '😀', ' ', '0', '}'];
    for _ in 0..length {
        state = mix(state);
        out.push(letters[(state % letters.len() as u64) as usize]);
    }
    out.push_str("\"}");
    out
}

/// The id of a value that is, byte for byte, what `text` makes.
pub(crate) fn id(value: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Id {
        id: u64,
    }
    let id = serde_json::from_str::<Id>(value).ok()?.id;
    (text(id) == value).then_some(id)
}

/// SplitMix64's finaliser: neighbours give unlike numbers.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_again_and_a_changed_one_is_not() {
        for number in [0, 1, 7 << 32, u64::MAX] {
            let sent = text(number);
            assert_eq!(id(&sent), Some(number));
            assert_eq!(id(&sent.replace("\"pad\":\"", "\"pad\":\"x")), None);
            let printed = serde_json::from_str::<serde_json::Value>(&sent).unwrap().to_string();
            assert_eq!(printed, sent, "parsing and printing keeps the bytes");
        }
        assert_eq!(id("7"), None);
    }
}
