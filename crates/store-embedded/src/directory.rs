//! The store's folder: who has it open, how it is made, and how much of it was acknowledged. It never opens a database that
//! lost what was acknowledged.
//!
//! `lock` is held by the one process that has the store open; `db` is the database; `creating` is one that is being made;
//! `acknowledged` says up to which group changes were acknowledged as being on stable storage.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::Engine;
use crate::error::{OpenError, ReadError};
use crate::journal;
use crate::state::LogState;

/// Two slots are written in turn, each within a sector, so that one is always whole.
const SLOT_BYTES: u64 = 512;
/// How often a lock that somebody holds is tried, and how long in between.
const LOCK_TRIES: u32 = 50;
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// The folder, locked.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    acknowledged: File,
    acknowledged_group: u64,
    warned: bool,
    /// Held until the store is closed.
    _lock: File,
}

impl Directory {
    /// Locks the folder; makes it and an empty database if there is none.
    pub(crate) fn open(path: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        let fail = |source| OpenError::Io { path: path.into(), source };
        fs::create_dir_all(path).map_err(fail)?;
        let lock = open_file(&path.join("lock")).map_err(fail)?;
        let mut tries = LOCK_TRIES;
        while let Err(error) = lock.try_lock() {
            tries -= 1;
            match error {
                // Who closed it a moment ago may have started a program, which holds the lock until it is running.
                TryLockError::WouldBlock if tries > 0 => std::thread::sleep(LOCK_WAIT),
                TryLockError::WouldBlock => return Err(OpenError::InUse { path: path.into() }),
                TryLockError::Error(source) => return Err(fail(source)),
            }
        }
        let acknowledged_path = path.join("acknowledged");
        let acknowledged = open_file(&acknowledged_path).map_err(fail)?;
        let acknowledged_group = read_acknowledged(&acknowledged, &acknowledged_path)?;
        let directory = Self { path: path.into(), acknowledged, acknowledged_group, warned: false, _lock: lock };
        directory.create(cache_bytes)?;
        Ok(directory)
    }

    /// Makes the database aside and moves it into place, so that a half-made one is never opened.
    fn create(&self, cache_bytes: u64) -> Result<(), OpenError> {
        let fail = |source| OpenError::Io { path: self.path.clone(), source };
        let (creating, database) = (self.path.join("creating"), self.database());
        if creating.exists() {
            fs::remove_dir_all(&creating).map_err(fail)?;
        }
        if database.exists() {
            return Ok(());
        }
        if self.acknowledged_group > 0 {
            return Err(OpenError::Corrupt { path: database, at: None, what: "the database is missing" });
        }
        drop(Engine::open(&creating, cache_bytes)?);
        fs::rename(&creating, &database).map_err(fail)?;
        File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(fail)
    }

    fn database(&self) -> PathBuf {
        self.path.join("db")
    }

    /// Opens the database, if everything that was acknowledged is in it.
    pub(crate) fn open_engine(&self, cache_bytes: u64) -> Result<Engine, OpenError> {
        let database = self.database();
        let fail = |source| OpenError::Io { path: database.clone(), source };
        let mut scans = journal::scan(&database).map_err(fail)?;
        let group = scans.iter().filter_map(|scan| scan.group).max();
        let Some(last) = scans.pop() else { return self.open_checked(cache_bytes) };
        if let Some(damaged) = scans.iter().find(|scan| !scan.clean) {
            // It was synced before the next one was begun: its end cannot be torn.
            return Err(damaged_journal(damaged));
        }
        if last.clean {
            return self.open_checked(cache_bytes);
        }
        let torn = group.is_some_and(|group| group >= self.acknowledged_group);
        let cut = journal::cut(&last).map_err(fail)?;
        tracing::warn!(path = %last.path.display(), at = last.end, "cut a write that was torn before it was acknowledged");
        match self.open_checked(cache_bytes) {
            Err(OpenError::Corrupt { .. }) if !torn => {
                journal::restore(&last, &cut).map_err(fail)?;
                Err(damaged_journal(&last))
            }
            opened => opened,
        }
    }

    fn open_checked(&self, cache_bytes: u64) -> Result<Engine, OpenError> {
        let database = self.database();
        let engine = std::sync::Arc::new(Engine::open(&database, cache_bytes)?);
        let counters = engine.view().counters().map_err(|error| match error {
            ReadError::Damaged(_) => {
                OpenError::Corrupt { path: database.clone(), at: None, what: "the counters are damaged" }
            }
            error => OpenError::Database { path: database.clone(), source: error.into_cause() },
        })?;
        if counters.group < self.acknowledged_group {
            return Err(OpenError::Corrupt { path: database, at: None, what: "acknowledged changes are missing" });
        }
        std::sync::Arc::into_inner(engine).ok_or(OpenError::InUse { path: self.path.clone() })
    }

    /// Notes that a group is on stable storage, before anybody is told so. It is not synced: a crash of the machine may
    /// leave an older number here, which only makes the check at opening weaker, never wrong.
    pub(crate) fn acknowledge(&mut self, group: u64) {
        self.acknowledged_group = group;
        let sealed = LogState::Acknowledged(group).seal();
        let noted = self.acknowledged.write_all_at(&sealed, (group % 2) * SLOT_BYTES);
        if let Some(error) = noted.err().filter(|_| !std::mem::replace(&mut self.warned, true)) {
            tracing::warn!(%error, "what was acknowledged cannot be noted; damage may go unnoticed at the next start");
        }
    }
}

fn damaged_journal(scan: &journal::Scan) -> OpenError {
    OpenError::Corrupt { path: scan.path.clone(), at: Some(scan.end), what: "acknowledged changes cannot be read" }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn read_acknowledged(file: &File, path: &Path) -> Result<u64, OpenError> {
    let fail = |source| OpenError::Io { path: path.into(), source };
    if file.metadata().map_err(fail)?.len() == 0 {
        return Ok(0);
    }
    let mut newest = None;
    for slot in 0..2 {
        let mut bytes = [0; 64];
        let mut count = 0;
        while count < bytes.len() {
            match file.read_at(&mut bytes[count..], slot * SLOT_BYTES + count as u64).map_err(fail)? {
                0 => break,
                more => count += more,
            }
        }
        // The envelope says its own length.
        let sealed = (13..=count).find_map(|end| match LogState::open(&bytes[..end]) {
            Ok(LogState::Acknowledged(group)) => Some(group),
            _ => None,
        });
        newest = newest.max(sealed);
    }
    newest.ok_or(OpenError::Corrupt { path: path.into(), at: Some(0), what: "neither of its numbers can be read" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_acknowledged_group_is_found_although_one_slot_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acknowledged");
        let number = |file: &File| read_acknowledged(file, &path).unwrap();
        let file = open_file(&path).unwrap();
        assert_eq!(number(&file), 0);
        for group in [1, 2, 300, 70_001] {
            file.write_all_at(&LogState::Acknowledged(group).seal(), (group % 2) * SLOT_BYTES).unwrap();
            assert_eq!(number(&file), group);
        }
        file.write_all_at(b"X", SLOT_BYTES + 14).unwrap();
        assert_eq!(number(&file), 300);
        file.write_all_at(b"X", 14).unwrap();
        assert!(matches!(read_acknowledged(&file, &path), Err(OpenError::Corrupt { .. })));
    }
}
