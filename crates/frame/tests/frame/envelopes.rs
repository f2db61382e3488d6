//! The envelope: nothing that was changed is opened, and its bytes are pinned.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tidegate_core::Failure as _;
use tidegate_frame::envelope::{self, CHECKSUM_BYTES, HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, OpenError, SealError};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Shape {
    Unit,
    Pair(u64, i32),
    Named { text: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Thing {
    id: u64,
    name: Option<String>,
    flags: Vec<bool>,
    shape: Shape,
    map: BTreeMap<u16, String>,
}

fn thing() -> impl Strategy<Value = Thing> {
    let shape = prop_oneof![
        Just(Shape::Unit),
        (any::<u64>(), any::<i32>()).prop_map(|(a, b)| Shape::Pair(a, b)),
        ".{0,8}".prop_map(|text| Shape::Named { text }),
    ];
    let flags = prop::collection::vec(any::<bool>(), 0..5);
    (any::<u64>(), prop::option::of(".{0,8}"), flags, shape, prop::collection::btree_map(any::<u16>(), ".{0,4}", 0..3))
        .prop_map(|(id, name, flags, shape, map)| Thing { id, name, flags, shape, map })
}

fn open(sealed: &[u8]) -> Result<Thing, OpenError> {
    envelope::open(Kind::Probe, &[1, 7], sealed)
}

/// An envelope with a right checksum around any header fields and payload.
fn wrap(kind: u16, schema_version: u16, payload: &[u8]) -> Vec<u8> {
    let mut sealed = b"TDGT\x01".to_vec();
    sealed.extend(kind.to_le_bytes());
    sealed.extend(schema_version.to_le_bytes());
    sealed.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    sealed.extend(payload);
    sealed.extend(crc32c::crc32c(&sealed).to_le_bytes());
    sealed
}

proptest! {
    #[test]
    fn what_was_sealed_is_opened(thing in thing()) {
        prop_assert_eq!(open(&envelope::seal(Kind::Probe, 7, &thing).unwrap()).unwrap(), thing);
    }

    #[test]
    fn every_single_bit_flip_every_truncation_and_every_trailing_byte_is_refused(thing in thing()) {
        let sealed = envelope::seal(Kind::Probe, 7, &thing).unwrap().to_vec();
        let mut flipped = sealed.clone();
        for bit in 0..sealed.len() * 8 {
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open(&flipped).is_err(), "bit {} flipped", bit);
            flipped[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..sealed.len() {
            prop_assert!(open(&sealed[..length]).is_err(), "cut to {}", length);
            prop_assert!(open(&sealed[length + 1..]).is_err(), "the first {} cut off", length + 1);
        }
        for byte in 0..=u8::MAX {
            let longer = [&sealed[..], &[byte]].concat();
            prop_assert!(matches!(open(&longer), Err(OpenError::LengthMismatch { .. })), "byte {} added", byte);
        }
    }

    #[test]
    fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(open(&bytes).is_err());
        prop_assert!(envelope::open::<Vec<String>>(Kind::Cursor, &[1], &bytes).is_err());
    }

    #[test]
    fn a_foreign_payload_with_a_right_checksum_never_panics_and_is_used_up_exactly(
        payload in prop::collection::vec(prop_oneof![any::<u8>(), 0_u8..4, 250_u8..], 0..100),
    ) {
        let sealed = wrap(1, 7, &payload);
        if let Ok(thing) = open(&sealed) {
            let again = envelope::seal(Kind::Probe, 7, &thing).unwrap();
            prop_assert_eq!(open(&again).unwrap(), thing);
        }
        let _ = envelope::open::<Vec<String>>(Kind::Probe, &[7], &sealed);
        let _ = envelope::open::<BTreeMap<u64, Vec<Option<char>>>>(Kind::Probe, &[7], &sealed);
    }

    #[test]
    fn a_changed_envelope_never_panics(
        thing in thing(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let sealed = envelope::seal(Kind::Probe, 7, &thing).unwrap().to_vec();
        let mut changed = sealed.clone();
        for (at, byte) in changes {
            let at = at.index(changed.len());
            changed[at] = byte;
        }
        prop_assert_eq!(open(&changed).is_ok(), changed == sealed);
    }
}

#[test]
fn each_reason_has_its_own_error() {
    let payload = |thing: &Thing| {
        let sealed = envelope::seal(Kind::Probe, 7, thing).unwrap();
        sealed[HEADER_BYTES..sealed.len() - CHECKSUM_BYTES].to_vec()
    };
    let thing = Thing { id: 300, name: None, flags: vec![true], shape: Shape::Unit, map: BTreeMap::new() };
    let good = payload(&thing);
    assert_eq!(open(&wrap(1, 7, &good)).unwrap(), thing);

    let mut future = wrap(1, 7, &good);
    future[4] = 2;
    let mut magic = wrap(1, 7, &good);
    magic[0] = b't';
    let mut damaged = wrap(1, 7, &good);
    damaged[HEADER_BYTES] ^= 1;
    let mut large = wrap(1, 7, &good);
    large[9..13].copy_from_slice(&(u32::try_from(MAX_PAYLOAD_BYTES).unwrap() + 1).to_le_bytes());
    let longer = [&good[..], &[0]].concat();
    let whole = wrap(1, 7, &good);
    for (bytes, code) in [
        (&whole[..HEADER_BYTES + CHECKSUM_BYTES - 1], "envelope_too_short"),
        (&magic[..], "envelope_bad_magic"),
        (&future, "envelope_unknown_version"),
        (&large, "envelope_too_large"),
        (&whole[..whole.len() - 1], "envelope_length_mismatch"),
        (&damaged, "envelope_checksum_mismatch"),
        (&wrap(2, 7, &good), "envelope_wrong_kind"),
        (&wrap(1, 8, &good), "envelope_unknown_schema_version"),
        (&wrap(1, 7, &good[..good.len() - 1]), "envelope_malformed"),
        (&wrap(1, 7, &longer), "envelope_trailing_payload"),
    ] {
        assert_eq!(open(bytes).unwrap_err().code(), code);
    }
}

#[test]
fn a_payload_that_announces_more_than_there_is_allocates_nothing_like_it() {
    // A byte string of 2^60 bytes, as bincode writes its length.
    let payload = [&[253_u8][..], &(1_u64 << 60).to_le_bytes()].concat();
    assert!(matches!(envelope::open::<String>(Kind::Probe, &[1], &wrap(1, 1, &payload)), Err(OpenError::Malformed(_))));
}

#[test]
fn what_is_too_large_is_not_sealed() {
    let huge = vec![0_u8; MAX_PAYLOAD_BYTES];
    assert!(matches!(
        envelope::seal(Kind::Probe, 1, &huge),
        Err(SealError::TooLarge { limit_bytes: MAX_PAYLOAD_BYTES })
    ));
    struct Refuses;
    impl Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }
    assert!(matches!(envelope::seal(Kind::Probe, 1, &Refuses), Err(SealError::Unencodable(_))));
}

#[test]
fn no_two_kinds_share_a_number() {
    let numbers: Vec<u16> = Kind::ALL.iter().map(|kind| kind.number()).collect();
    assert!(numbers.is_sorted_by(|left, right| left < right), "{numbers:?}");
}

#[test]
fn the_bytes_are_the_same_in_every_release() {
    let thing = Thing {
        id: 300,
        name: Some("tide".into()),
        flags: vec![true, false],
        shape: Shape::Pair(u64::MAX, -2),
        map: BTreeMap::from([(7, "é".into())]),
    };
    let pinned = "5444475401010007001c000000fb2c0101047469646502010001fdffffffffffffffff03010702c3a9fd19452d";
    assert_eq!(hex::encode(envelope::seal(Kind::Probe, 7, &thing).unwrap()), pinned);
    assert_eq!(open(&hex::decode(pinned).unwrap()).unwrap(), thing);
}

#[test]
fn a_payload_of_bytes_lies_in_the_same_envelope_and_is_given_back_uncopied() {
    let sealed = envelope::seal_bytes(Kind::Batch, 1, &[b"ti", b"", b"de"]).unwrap();
    let pinned = "5444475401080001000400000074696465db116019";
    assert_eq!(hex::encode(&sealed), pinned);
    assert_eq!(sealed[..], wrap(8, 1, b"tide"));
    let payload = envelope::open_bytes(Kind::Batch, &[1], &sealed).unwrap();
    assert_eq!(payload, b"tide");
    assert_eq!(payload.as_ptr(), sealed[HEADER_BYTES..].as_ptr());
    let text = envelope::seal(Kind::Probe, 7, &()).unwrap();
    assert_eq!(envelope::open_bytes(Kind::Probe, &[7], &text).unwrap(), b"");
}

#[test]
fn bytes_of_which_any_bit_has_changed_are_not_opened() {
    let sealed = envelope::seal_bytes(Kind::Metadata, 3, &[b"value"]).unwrap().to_vec();
    for bit in 0..sealed.len() * 8 {
        let mut flipped = sealed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(envelope::open_bytes(Kind::Metadata, &[3], &flipped).is_err(), "bit {bit} flipped");
    }
    assert!(matches!(envelope::open_bytes(Kind::Metadata, &[4], &sealed), Err(OpenError::UnknownSchemaVersion { .. })));
    assert!(matches!(envelope::open_bytes(Kind::Batch, &[3], &sealed), Err(OpenError::WrongKind { .. })));
    let huge = vec![0; MAX_PAYLOAD_BYTES];
    assert!(matches!(envelope::seal_bytes(Kind::Probe, 1, &[&huge, b"1"]), Err(SealError::TooLarge { .. })));
}
