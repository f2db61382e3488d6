//! `.tidegate-batch`: what of a folder is done, a line a file, so that a second run does what is left. A line that is cut or of another place
//! counts for nothing; the file itself is looked at again before a line is believed.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::folder::JOURNAL;

/// A file that is at both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Which way, which server, which collection.
    at: String,
    pub(super) key: String,
    pub(super) length: u64,
    pub(super) modified_ns: u64,
    pub(super) etag: String,
}

/// The journal of one folder and place.
pub(super) struct Journal {
    at: String,
    done: HashMap<String, Entry>,
    file: Mutex<File>,
}

impl Journal {
    /// Reads it and opens it for more. What is done with other places stays in it.
    pub(super) fn open(folder: &Path, at: String) -> io::Result<Self> {
        let path = folder.join(JOURNAL);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut done = HashMap::new();
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(entry) = serde_json::from_slice::<Entry>(line) else { continue };
            if entry.at == at {
                done.insert(entry.key.clone(), entry);
            }
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if !text.is_empty() && !text.ends_with(b"\n") {
            file.write_all(b"\n")?;
        }
        Ok(Self { at, done, file: Mutex::new(file) })
    }

    /// What is known of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.done.get(key)
    }

    /// Notes that a file is at both ends.
    pub(super) fn note(&self, key: &str, length: u64, modified_ns: u64, etag: &str) -> io::Result<()> {
        let entry = Entry { at: self.at.clone(), key: key.to_owned(), length, modified_ns, etag: etag.to_owned() };
        let mut line = serde_json::to_vec(&entry).expect("strings and numbers are JSON");
        line.push(b'\n');
        self.file.lock().write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_believed_line_by_line_and_only_for_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), "here".to_owned()).unwrap();
        journal.note("a\nb", 1, 2, "\"e\"").unwrap();
        journal.note("c", 1, 2, "\"old\"").unwrap();
        journal.note("c", 3, 4, "\"new\"").unwrap();
        let mut file = OpenOptions::new().append(true).open(folder.path().join(JOURNAL)).unwrap();
        file.write_all(b"{\"at\":\"here\",\"key\":\"cut").unwrap();
        let journal = Journal::open(folder.path(), "here".to_owned()).unwrap();
        journal.note("d", 5, 6, "\"d\"").unwrap();
        let journal = Journal::open(folder.path(), "here".to_owned()).unwrap();
        assert_eq!(journal.get("a\nb").unwrap().etag, "\"e\"");
        assert_eq!((journal.get("c").unwrap().length, journal.get("d").unwrap().length), (3, 5));
        assert!(journal.get("cut").is_none());
        assert!(Journal::open(folder.path(), "there".to_owned()).unwrap().get("c").is_none());
    }
}
