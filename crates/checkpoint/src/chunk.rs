//! Where a state is cut, and what its pieces are called. A cut depends on the bytes around it and on nothing else, so that an insertion shifts
//! the pieces behind it and changes one or two. It never cuts a chunk longer than [`CHUNK_MAX_BYTES`].

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::{FastCDC, Normalization};

use crate::id::Digest;

/// The shortest chunk, the last one of a segment excepted.
pub(crate) const CHUNK_MIN_BYTES: usize = 16 * 1_024;
/// What chunks are long on average.
pub(crate) const CHUNK_AVERAGE_BYTES: usize = 64 * 1_024;
/// The longest chunk.
pub(crate) const CHUNK_MAX_BYTES: usize = 256 * 1_024;

/// Cuts what it is given up to where a further cut needs more bytes, which are left over unless this is the end.
///
/// FastCDC (Xia et al. 2020), from the crate `fastcdc`: cut points of one version are the same for ever, which the format vectors pin;
/// other ones would cost space and not correctness.
pub(crate) fn cut(bytes: &Bytes, end: bool, chunks: &mut Vec<Bytes>) -> Bytes {
    let cutter =
        FastCDC::with_level(bytes, CHUNK_MIN_BYTES, CHUNK_AVERAGE_BYTES, CHUNK_MAX_BYTES, Normalization::Level1);
    let mut from = 0;
    while from < bytes.len() {
        let left = bytes.len() - from;
        if left < CHUNK_MAX_BYTES && !end {
            break;
        }
        let (_, to) = cutter.cut(from, left);
        if to <= from {
            break;
        }
        chunks.push(bytes.slice(from..to));
        from = to;
    }
    bytes.slice(from..)
}

/// Puts what is left over in front of what follows. Copies at most [`CHUNK_MAX_BYTES`] and the following piece.
pub(crate) fn join(left: &Bytes, next: Bytes) -> Bytes {
    if left.is_empty() {
        return next;
    }
    let mut joined = BytesMut::with_capacity(left.len() + next.len());
    joined.extend_from_slice(left);
    joined.extend_from_slice(&next);
    joined.freeze()
}

/// A chunk with what it is called and what it is compared with.
#[derive(Debug)]
pub(crate) struct Summed {
    pub(crate) digest: Digest,
    pub(crate) sum: u64,
    pub(crate) bytes: Bytes,
}

impl Summed {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { digest: Digest::of(&bytes), sum: sum(&bytes), bytes }
    }
}

/// The sum that a recovery compares: XXH3-64 (Collet 2019).
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// The chunks with their digests.
pub(crate) fn digest(chunks: Vec<Bytes>) -> Vec<Summed> {
    chunks.into_iter().map(Summed::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use tidegate_core::port::Entropy as _;
    use tidegate_testkit::SeededEntropy;

    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; bytes];
        SeededEntropy::new(seed).fill(&mut noise).unwrap();
        noise
    }

    fn cut_all(state: &[u8], piece: usize) -> Vec<Bytes> {
        let (mut chunks, mut left) = (Vec::new(), Bytes::new());
        for piece in state.chunks(piece) {
            left = cut(&join(&left, Bytes::copy_from_slice(piece)), false, &mut chunks);
        }
        let rest = cut(&left, true, &mut chunks);
        assert!(rest.is_empty());
        chunks
    }

    #[test]
    fn the_cuts_do_not_depend_on_the_pieces_that_a_state_comes_in() {
        let state = noise(1, 3_000_000);
        let whole = cut_all(&state, usize::MAX);
        assert_eq!(whole.concat(), state);
        for piece in [100_000, 262_144, 1_000_000] {
            assert_eq!(cut_all(&state, piece), whole);
        }
        assert!(whole.iter().all(|chunk| chunk.len() <= CHUNK_MAX_BYTES));
    }

    #[test]
    fn the_cuts_are_the_same_in_every_release() {
        let lengths: Vec<_> = cut_all(&noise(7, 500_000), usize::MAX).iter().map(Bytes::len).collect();
        assert_eq!(lengths, [31_171, 38_807, 128_500, 79_518, 159_009, 45_867, 17_128]);
    }

    #[test]
    fn an_insertion_changes_two_chunks_at_most() {
        let state = noise(2, 4_000_000);
        let mut longer = state.clone();
        longer.splice(1_000_000..1_000_000, [1, 2, 3]);
        let known: HashSet<_> = digest(cut_all(&state, usize::MAX)).into_iter().map(|chunk| chunk.digest).collect();
        let fresh =
            digest(cut_all(&longer, usize::MAX)).into_iter().filter(|chunk| !known.contains(&chunk.digest)).count();
        assert!((1..=2).contains(&fresh), "{fresh}");
    }
}
