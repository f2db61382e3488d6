//! Which partition a record goes to. Records of one key always go to the same one, however they are grouped into requests.

use tidegate_core::position::Partition;

/// The partition of a key (JSON text) among `partitions`: CRC-32C of its bytes, spread by multiplication rather than by
/// remainder. Part of the stored contract: another rule would move keys.
#[must_use]
pub fn partition_of_key(key: &[u8], partitions: u32) -> Partition {
    // CRC alone leaves similar keys in similar places: a finaliser (murmur3's) spreads them.
    let mut hash = crc32c::crc32c(key);
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^= hash >> 16;
    let place = (u64::from(hash) * u64::from(partitions.max(1))) >> 32;
    Partition(u32::try_from(place).expect("below `partitions`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_evenly_and_stay_where_they_are() {
        let mut counts = [0_u32; 7];
        for number in 0..70_000 {
            counts[partition_of_key(number.to_string().as_bytes(), 7).0 as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_000..11_000).contains(count)), "{counts:?}");
        // Pinned: a change of the rule would move keys of streams that exist.
        let pinned: Vec<u32> =
            [&b"1"[..], b"\"1\"", b"\"alice\"", b"[1,2]"].iter().map(|key| partition_of_key(key, 16).0).collect();
        assert_eq!(pinned, PINNED);
    }

    const PINNED: [u32; 4] = [5, 11, 11, 3];
}
