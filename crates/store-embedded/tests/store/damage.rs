//! A bit of a stored file has changed: it is named, never a wrong record, never silence.

use std::path::Path;

use bytes::Bytes;
use tidegate_core::port::{ChangeLog as _, CompareAndSwap, Durability, LogError, MetaError, MetaStore as _, Swap};
use tidegate_store_embedded::{EmbeddedStore, OpenError};
use tidegate_testkit::{ManualClock, block_on};

use super::world::{append, config, copy, files, open, read_all, record, spec, stream};

/// A small generator, so that records cannot be mistaken for one another and positions are the same in every run.
fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    });
    bytes.take(len).collect()
}

/// Makes a store with so many records of so many bytes and closes it.
async fn make(path: &Path, records: u64, len: usize) {
    let store = open(path);
    store.create(&stream("s"), &spec()).await.unwrap();
    for number in 0..records {
        append(&store, &stream("s"), vec![record(noise(number + 1, len))]).await;
    }
    let put = CompareAndSwap { key: Bytes::from_static(b"key"), expected: None, swap: Swap::Put(noise(0, 100)) };
    store.compare_and_swap(vec![put], Durability::Fsync).await.unwrap();
    store.close();
}

/// Whether damage was named (`true`), or everything is there as it was.
async fn is_named(path: &Path, records: u64, len: usize) -> bool {
    let store = match EmbeddedStore::open(config(path, &ManualClock::new())) {
        Ok(store) => store,
        Err(OpenError::Corrupt { path: named, .. } | OpenError::UnknownFormat { path: named }) => {
            assert!(named.starts_with(path), "{named:?}");
            return true;
        }
        Err(other) => panic!("damage is not {other:?}"),
    };
    let mut named = false;
    match read_all(&store, &stream("s"), 0).await {
        Ok((found, gaps)) => {
            assert!(gaps.is_empty(), "damage is not a gap");
            assert_eq!(found.len() as u64, records, "records are silently gone");
            assert!(found.iter().all(|(offset, bytes)| *bytes == noise(offset + 1, len)), "a wrong record");
        }
        Err(LogError::Corrupt { stream: of, offset, .. }) => {
            assert!(of == stream("s") && offset.0 <= records);
            named = true;
        }
        Err(other) => panic!("damage is not {other:?}"),
    }
    match store.get(b"key").await {
        Ok(entry) => assert_eq!(entry.and_then(|entry| entry.value), Some(noise(0, 100)), "a wrong value"),
        Err(MetaError::Corrupt { .. }) => named = true,
        Err(other) => panic!("damage is not {other:?}"),
    }
    store.close();
    named
}

fn flip(file: &Path, bit: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

/// Flips one bit of one file in a copy, for bits all over it, and counts how often that was named.
async fn flips(folder: &Path, file: &Path, used: u64, bits: u64, records: u64, len: usize) -> u64 {
    let mut named = 0;
    for number in 0..bits {
        let copied = tempfile::tempdir().unwrap();
        copy(folder, copied.path());
        // Spread over the file, each time another bit of the byte.
        let bit = (used * number / bits) * 8 + number % 8;
        flip(&copied.path().join(file.strip_prefix(folder).unwrap()), bit);
        let found = is_named(copied.path(), records, len).await;
        named += u64::from(found);
    }
    named
}

#[test]
fn a_bit_flipped_in_the_journal_is_named_and_nothing_acknowledged_is_cut() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), 6, 300).await;
        let journal = files(folder.path()).into_iter().find(|path| path.extension().is_some_and(|end| end == "jnl"));
        let journal = journal.unwrap();
        let whole = std::fs::read(&journal).unwrap();
        let used = whole.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
        // A journal of 64 MiB of which almost all is zeros need not be copied whole.
        std::fs::File::options().write(true).open(&journal).unwrap().set_len(used + 4_096).unwrap();
        assert_eq!(flips(folder.path(), &journal, used, 160, 6, 300).await, 160, "each bit counts");
        // What was refused is still all there.
        let copied = tempfile::tempdir().unwrap();
        copy(folder.path(), copied.path());
        let there = copied.path().join(journal.strip_prefix(folder.path()).unwrap());
        flip(&there, used * 4);
        for _ in 0..2 {
            let refused = EmbeddedStore::open(config(copied.path(), &ManualClock::new()));
            let Err(OpenError::Corrupt { path, at: Some(_), .. }) = refused else { panic!("{refused:?}") };
            assert_eq!(path, there);
        }
        flip(&there, used * 4);
        assert!(!is_named(copied.path(), 6, 300).await);
    });
}

#[test]
fn a_bit_flipped_in_any_other_file_is_named_or_harmless() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        // More than a memtable, so that tables and blob files are there.
        let (records, len) = (45, 1024 * 1024);
        make(folder.path(), records, len).await;
        // A second opening writes what is left to be written.
        assert!(!is_named(folder.path(), records, len).await);
        let mut named = 0;
        for file in files(folder.path()) {
            let used = std::fs::metadata(&file).unwrap().len();
            if used > 0 && file.extension().is_none_or(|end| end != "jnl") {
                named += flips(folder.path(), &file, used, 3, records, len).await;
            }
        }
        assert!(named > 10, "{named}");
    });
}
