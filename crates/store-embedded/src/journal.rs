//! A look at the database's journals before it opens them. The database takes the first thing in a journal that it cannot
//! read for the torn end and cuts everything after it; this tells a torn end, which was never acknowledged, from damage
//! in the middle, which must not be cut. It follows the format of fjall 3 and never changes a journal but to cut a torn end.
//!
//! A batch: 1, count of items (u32), sequence number (u64); each item: 2, value type, compression, keyspace (u64), length
//! of the key (u16), of the value (u32), of the value as stored (u32), key, value; 3, XXH3 of all items (u64), `FJL` 3. All
//! numbers are little-endian. After the last batch lie zeros.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::key;
use crate::state::LogState;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";
const READ_BYTES: usize = 256 * 1024;

/// What a journal holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) path: PathBuf,
    /// Where the last whole batch ends.
    pub(crate) end: u64,
    /// Whether nothing but zeros follows.
    pub(crate) clean: bool,
    /// The last group in it.
    pub(crate) group: Option<u64>,
}

/// Looks through all journals of a database, the one being written last.
pub(crate) fn scan(database: &Path) -> io::Result<Vec<Scan>> {
    let mut numbered = Vec::new();
    for entry in std::fs::read_dir(database)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jnl"));
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            numbered.push((number, path));
        }
    }
    numbered.sort();
    numbered.into_iter().map(|(_, path)| scan_file(path)).collect()
}

fn scan_file(path: PathBuf) -> io::Result<Scan> {
    let file = File::open(&path)?;
    let left = file.metadata()?.len();
    let mut reader = Counted { inner: BufReader::with_capacity(READ_BYTES, file), left, hash: Xxh3::new() };
    let (mut end, mut group) = (0, None);
    let mut scratch = Vec::new();
    while let Some(found) = batch(&mut reader, &mut scratch)? {
        end = left - reader.left;
        group = found.or(group);
    }
    let clean = only_zeros(reader.inner.get_ref(), end)?;
    Ok(Scan { path, end, clean, group })
}

/// Reads one batch; `None` = there is no whole one. Gives the group that it holds.
fn batch(reader: &mut Counted, scratch: &mut Vec<u8>) -> io::Result<Option<Option<u64>>> {
    let Some([START]) = reader.array()? else { return Ok(None) };
    let Some(count) = reader.array()?.map(u32::from_le_bytes) else { return Ok(None) };
    let Some([..]) = reader.array::<8>()? else { return Ok(None) };
    reader.hash = Xxh3::new();
    let mut group = None;
    for _ in 0..count {
        match reader.array()? {
            Some([ITEM]) => {}
            Some([CLEAR]) if reader.array::<8>()?.is_some() => continue,
            _ => return Ok(None),
        }
        let Some([_, 0]) = reader.array()? else { return Ok(None) };
        let Some([..]) = reader.array::<8>()? else { return Ok(None) };
        let Some(key_len) = reader.array()?.map(u16::from_le_bytes) else { return Ok(None) };
        let Some(value_len) = reader.array()?.map(u32::from_le_bytes) else { return Ok(None) };
        if reader.array()?.map(u32::from_le_bytes) != Some(value_len) {
            return Ok(None);
        }
        let key_len = usize::from(key_len);
        // Bounded by what the file has left, so that a damaged length allocates nothing like it.
        let Some(bytes) = reader.take(key_len as u64 + u64::from(value_len), scratch)? else { return Ok(None) };
        if &bytes[..key_len] == key::COUNTERS {
            let Ok(LogState::Counters(counters)) = LogState::open(&bytes[key_len..]) else { return Ok(None) };
            group = Some(counters.group);
        }
    }
    let expected = reader.hash.digest();
    let whole = reader.array()? == Some([END])
        && reader.array()?.map(u64::from_le_bytes) == Some(expected)
        && reader.array()? == Some(TRAILER);
    Ok(whole.then_some(group))
}

/// Whether nothing but zeros lies from `at` on. What was never written (a journal is made longer than it is) is not read.
fn only_zeros(mut file: &File, mut at: u64) -> io::Result<bool> {
    let (zeros, mut buffer) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    loop {
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => at = data,
            Err(rustix::io::Errno::NXIO) => return Ok(true),
            // The file system does not say where there is nothing.
            Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        file.seek(SeekFrom::Start(at))?;
        match file.read(&mut buffer)? {
            0 => return Ok(true),
            count if buffer[..count] != zeros[..count] => return Ok(false),
            count => at += count as u64,
        }
    }
}

/// Cuts a journal, and gives what was cut, so that it can be put back.
pub(crate) fn cut(scan: &Scan) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).write(true).open(&scan.path)?;
    file.seek(SeekFrom::Start(scan.end))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    file.set_len(scan.end)?;
    file.sync_all()?;
    Ok(tail)
}

/// Puts back what was cut.
pub(crate) fn restore(scan: &Scan, tail: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(&scan.path)?;
    file.seek(SeekFrom::Start(scan.end))?;
    file.write_all(tail)?;
    file.sync_all()
}

/// Reads and sums up, never beyond the file's length at the start.
struct Counted {
    inner: BufReader<File>,
    left: u64,
    hash: Xxh3,
}

impl Counted {
    fn array<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        if self.left < N as u64 {
            return Ok(None);
        }
        self.inner.read_exact(&mut bytes)?;
        self.left -= N as u64;
        self.hash.update(&bytes);
        Ok(Some(bytes))
    }

    fn take<'a>(&mut self, len: u64, scratch: &'a mut Vec<u8>) -> io::Result<Option<&'a [u8]>> {
        let (true, Ok(wanted)) = (len <= self.left, usize::try_from(len)) else { return Ok(None) };
        scratch.resize(wanted, 0);
        self.inner.read_exact(scratch)?;
        self.left -= len;
        self.hash.update(scratch);
        Ok(Some(scratch))
    }
}
