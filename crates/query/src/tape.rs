//! What a stream remembers of the rows that it sent: the hash of all of them, and the last ones themselves within a byte
//! bound. Pure: it reads no source, no clock, and never makes up a row.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tidegate_frame::chunk::Chunk;
use tidegate_frame::prefix::{PrefixHash, PrefixHasher};

/// What a kept chunk costs beyond its bytes, so that many small chunks are bounded too.
const CHUNK_OVERHEAD_BYTES: u64 = 256;

/// What all tapes together may keep. A tape that would exceed it forgets its own oldest rows, never another's.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    used: AtomicU64,
    limit: AtomicU64,
}

impl Budget {
    pub(crate) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit.load(Ordering::Relaxed)
    }
}

/// The rows sent so far. Invariants: `kept` is contiguous and ends at row `tail.rows()`; its cost is at most the bound; a
/// hasher stands before each kept chunk.
#[derive(Debug)]
pub(crate) struct Tape {
    kept: VecDeque<Kept>,
    kept_bytes: u64,
    keep_bytes: u64,
    budget: Arc<Budget>,
    tail: PrefixHasher,
    /// The most rows that any reader was sent: the tail, unless a resume went back.
    sent: u64,
}

#[derive(Debug)]
struct Kept {
    before: PrefixHasher,
    chunk: Chunk,
}

/// Where a claimed prefix ends.
#[derive(Debug)]
pub(crate) enum Located {
    /// Here: the rows after it are kept, or it is the tail.
    Here(PrefixHasher),
    /// The rows were sent and are no longer kept: only running the query again can tell.
    NotKept,
    /// There is no such prefix.
    Mismatch,
}

impl Tape {
    pub(crate) fn new(keep_bytes: u64, budget: Arc<Budget>) -> Self {
        Self { kept: VecDeque::new(), kept_bytes: 0, keep_bytes, budget, tail: PrefixHasher::new(), sent: 0 }
    }

    /// The state after the last row sent.
    pub(crate) fn tail(&self) -> &PrefixHasher {
        &self.tail
    }

    /// The first row that is kept; the tail if none is.
    pub(crate) fn earliest(&self) -> u64 {
        self.kept.front().map_or(self.tail.rows(), |kept| kept.chunk.first_row)
    }

    /// Bytes kept, overhead included.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// Takes the next rows of the result, which begin at the tail, and forgets the oldest beyond the bound.
    pub(crate) fn push(&mut self, chunk: Chunk) {
        debug_assert_eq!(chunk.first_row, self.tail.rows(), "chunks are contiguous");
        let before = self.tail.clone();
        self.tail.lines(&chunk.bytes);
        self.sent = self.sent.max(self.tail.rows());
        self.kept_bytes += cost(&chunk);
        self.budget.used.fetch_add(cost(&chunk), Ordering::Relaxed);
        self.kept.push_back(Kept { before, chunk });
        while (self.kept_bytes > self.keep_bytes || self.budget.is_exceeded())
            && let Some(oldest) = self.kept.pop_front()
        {
            self.kept_bytes -= cost(&oldest.chunk);
            self.budget.used.fetch_sub(cost(&oldest.chunk), Ordering::Relaxed);
        }
    }

    /// Forgets all that is kept and goes on after a prefix that was read again.
    pub(crate) fn restart(&mut self, tail: PrefixHasher) {
        self.forget();
        self.sent = self.sent.max(tail.rows());
        self.tail = tail;
    }

    fn forget(&mut self) {
        self.kept.clear();
        self.budget.used.fetch_sub(self.kept_bytes, Ordering::Relaxed);
        self.kept_bytes = 0;
    }

    /// Where the prefix of `rows` rows with this hash ends.
    pub(crate) fn locate(&self, rows: u64, hash: &PrefixHash) -> Located {
        if rows > self.sent {
            // A reader cannot hold rows that were never sent.
            return Located::Mismatch;
        }
        let found = match rows {
            0 if *hash != PrefixHasher::new().digest() => return Located::Mismatch,
            0 if self.earliest() == 0 => Some(PrefixHasher::new()),
            _ if rows == self.tail.rows() => Some(self.tail.clone()),
            _ if rows > self.tail.rows() => None,
            _ => self.kept_chunk(rows).and_then(|kept| kept.hasher_at(rows)),
        };
        match found {
            None => Located::NotKept,
            Some(hasher) if hasher.digest() == *hash => Located::Here(hasher),
            Some(_) => Located::Mismatch,
        }
    }

    /// The kept rows from `row` to the end of its chunk, and the state after them; `None` at the tail or where nothing
    /// is kept.
    pub(crate) fn read(&self, row: u64) -> Option<(Bytes, PrefixHasher)> {
        let index = self.index_of(row)?;
        let kept = self.kept.get(index)?;
        let after = self.kept.get(index + 1).map_or(&self.tail, |next| &next.before);
        Some((kept.chunk.bytes.slice(kept.chunk.split_at_row(row)?..), after.clone()))
    }

    fn kept_chunk(&self, row: u64) -> Option<&Kept> {
        self.index_of(row).and_then(|index| self.kept.get(index))
    }

    /// The kept chunk that holds `row`.
    fn index_of(&self, row: u64) -> Option<usize> {
        if row >= self.tail.rows() {
            return None;
        }
        self.kept.partition_point(|kept| kept.chunk.first_row <= row).checked_sub(1)
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Kept {
    fn hasher_at(&self, row: u64) -> Option<PrefixHasher> {
        let mut hasher = self.before.clone();
        hasher.lines(&self.chunk.bytes[..self.chunk.split_at_row(row)?]);
        Some(hasher)
    }
}

fn cost(chunk: &Chunk) -> u64 {
    chunk.bytes.len() as u64 + CHUNK_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidegate_frame::chunk::FlushCause;

    fn chunk(first_row: u64, lines: &[String]) -> Chunk {
        let bytes = lines.iter().map(|line| format!("{line}\n")).collect::<String>().into();
        Chunk { first_row, rows: u32::try_from(lines.len()).unwrap(), bytes, cause: FlushCause::Rows }
    }

    fn hash(lines: &[String]) -> PrefixHasher {
        let mut hasher = PrefixHasher::new();
        lines.iter().for_each(|line| hasher.line(line.as_bytes()));
        hasher
    }

    proptest! {
        /// Against the plain list of all lines: every prefix is found, not kept, or refused, as it should be.
        #[test]
        fn a_prefix_is_found_exactly_if_it_was_sent_with_that_hash(
            chunks in proptest::collection::vec(proptest::collection::vec("[a-z]{0,40}", 1..6), 0..20),
            keep in 0u64..4_000,
        ) {
            let budget = Arc::new(Budget::default());
            budget.set_limit(keep.max(2_000));
            let mut tape = Tape::new(keep, Arc::clone(&budget));
            let mut all: Vec<String> = Vec::new();
            for lines in &chunks {
                tape.push(chunk(all.len() as u64, lines));
                all.extend(lines.iter().cloned());
                prop_assert!(tape.kept_bytes() <= keep);
            }
            let wrong = hash(&["no such line".to_owned()]).digest();
            for rows in 0..=all.len() {
                let right = hash(&all[..rows]).digest();
                let row = rows as u64;
                match tape.locate(row, &right) {
                    Located::Here(hasher) => {
                        prop_assert_eq!(hasher.rows(), row);
                        // What is read on from here is the rest, byte for byte.
                        let (mut at, mut rest) = (row, Vec::new());
                        while let Some((bytes, after)) = tape.read(at) {
                            rest.extend_from_slice(&bytes);
                            at = after.rows();
                        }
                        let expected: String = all[rows..].iter().map(|line| format!("{line}\n")).collect();
                        prop_assert_eq!(String::from_utf8(rest).unwrap(), expected);
                    }
                    Located::NotKept => prop_assert!(row < tape.earliest()),
                    Located::Mismatch => prop_assert!(false, "a true prefix was refused"),
                }
                prop_assert!(!matches!(tape.locate(row, &wrong), Located::Here(_)));
            }
            prop_assert!(matches!(tape.locate(all.len() as u64 + 1, &wrong), Located::Mismatch));
            // A resume that went back forgets what is kept, and not how much was sent.
            tape.restart(PrefixHasher::new());
            prop_assert_eq!(budget.used.load(Ordering::Relaxed), 0);
            for rows in 1..=all.len() {
                prop_assert!(matches!(tape.locate(rows as u64, &hash(&all[..rows]).digest()), Located::NotKept));
            }
        }
    }

    #[test]
    fn all_tapes_together_keep_no_more_than_the_budget_and_none_takes_anothers() {
        let budget = Arc::new(Budget::default());
        budget.set_limit(10_000);
        let line = ["x".repeat(1_000)];
        let mut tapes: Vec<Tape> = (0..4).map(|_| Tape::new(u64::MAX, Arc::clone(&budget))).collect();
        for row in 0..5 {
            tapes[0].push(chunk(row, &line));
        }
        let first = tapes[0].kept_bytes();
        for row in 0..20 {
            tapes.iter_mut().skip(1).for_each(|tape| tape.push(chunk(row, &line)));
        }
        assert!(tapes.iter().map(Tape::kept_bytes).sum::<u64>() <= 10_000);
        assert_eq!(tapes[0].kept_bytes(), first);
        drop(tapes);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
