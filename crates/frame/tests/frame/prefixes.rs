//! The prefix hash: however the rows are cut.

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tidegate_frame::prefix::{MalformedPrefixHash, PrefixHash, PrefixHasher};

fn rows() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let byte = any::<u8>().prop_map(|byte| if byte == b'\n' { b' ' } else { byte });
    prop::collection::vec(prop::collection::vec(byte, 0..150), 0..30)
}

fn sha256(rows: &[Vec<u8>]) -> PrefixHash {
    PrefixHash::from_bytes(Sha256::digest(rows.concat()).into())
}

proptest! {
    #[test]
    fn any_way_of_cutting_gives_the_hash_of_the_rows_put_together(
        rows in rows(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let mut by_line = PrefixHasher::new();
        rows.iter().for_each(|row| by_line.line(row));

        let stream: Vec<u8> = rows.iter().flat_map(|row| row.iter().copied().chain([b'\n'])).collect();
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).chain([0, stream.len()]).collect();
        at.sort_unstable();
        let mut by_piece = PrefixHasher::new();
        at.windows(2).for_each(|piece| by_piece.lines(&stream[piece[0]..piece[1]]));

        prop_assert_eq!(by_line.digest(), sha256(&rows));
        prop_assert_eq!(by_piece.digest(), by_line.digest());
        prop_assert_eq!((by_piece.rows(), by_line.rows()), (rows.len() as u64, rows.len() as u64));
    }

    #[test]
    fn a_clone_at_a_verified_prefix_goes_on_as_if_it_had_seen_everything(rows in rows(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(rows.len() + 1);
        let mut first = PrefixHasher::new();
        rows[..cut].iter().for_each(|row| first.line(row));
        prop_assert_eq!(first.digest(), sha256(&rows[..cut]));
        let mut resumed = first.clone();
        rows[cut..].iter().for_each(|row| resumed.line(row));
        prop_assert_eq!(resumed.digest(), sha256(&rows));
        prop_assert_eq!(resumed.rows(), rows.len() as u64);
        prop_assert_eq!(first.digest(), sha256(&rows[..cut]), "the first hasher stays where it was");
    }

    #[test]
    fn a_hash_reads_back_from_its_64_digits(bytes in any::<[u8; 32]>(), flip in 0_usize..256) {
        let hash = PrefixHash::from_bytes(bytes);
        prop_assert_eq!(PrefixHash::parse(&hash.to_string()), Ok(hash));
        prop_assert_eq!(hash.to_string().to_uppercase().parse(), Ok(hash));
        prop_assert_eq!(serde_json::to_string(&hash).unwrap(), format!("\"{hash}\""));
        let mut other = bytes;
        other[flip / 8] ^= 1 << (flip % 8);
        prop_assert_ne!(PrefixHash::from_bytes(other), hash);
    }
}

#[test]
fn what_is_not_64_hex_digits_is_no_hash() {
    let good = "0123456789abcdef".repeat(4);
    assert!(PrefixHash::parse(&good).is_ok());
    for bad in ["", "0", &good[..63], &format!("{good}0"), &good.replace('0', "g"), &good.replace("01", "é")] {
        assert_eq!(PrefixHash::parse(bad), Err(MalformedPrefixHash), "{bad}");
    }
}
