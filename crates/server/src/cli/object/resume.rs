//! What stays beside a file while a transfer is under way, so that the same command goes on after an interruption. A note that cannot be
//! read, or is of something else, is as good as none.

use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::client::object::CollectionName;

/// How the notes of uploads end; `object batch up` leaves such files out.
pub(super) const UPLOAD_NOTE: &str = ".tidegate-upload";

/// Which object at which server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) url: String,
    pub(super) collection: CollectionName,
    pub(super) key: String,
}

impl Place {
    /// A name for it that any file system takes.
    pub(super) fn short(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.url, &self.collection.usecase, &self.collection.scopes, &self.key] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hex::encode(&hash.finalize()[..8])
    }
}

/// What is uploaded: a file that changed since is another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Uploading {
    pub(super) place: Place,
    pub(super) length: u64,
    pub(super) modified_ns: u64,
    pub(super) part_bytes: u64,
    /// What was said of the object when the upload began.
    pub(super) described: String,
}

/// An upload that is open at the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct UploadNote {
    pub(super) uploading: Uploading,
    pub(super) upload: String,
}

impl UploadNote {
    /// Where the note of this upload of this file stands.
    pub(super) fn path(file: &Path, place: &Place) -> PathBuf {
        beside(file, &format!(".{}{UPLOAD_NOTE}", place.short()))
    }

    pub(super) fn read(path: &Path, uploading: &Uploading) -> Option<Self> {
        read::<Self>(path).filter(|note| note.uploading == *uploading)
    }
}

/// A file of which the first bytes are here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DownloadNote {
    pub(super) place: Place,
    pub(super) etag: String,
    pub(super) length: u64,
}

/// A file's name with something behind it.
pub(super) fn beside(file: &Path, more: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(more);
    name.into()
}

/// When a file was changed, in ns since 1970; 0 where the system does not say.
pub(super) fn modified_ns(metadata: &std::fs::Metadata) -> u64 {
    let since = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}

/// Reads a note; `None` = there is none that can be read.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Writes a note aside and gives it its name.
pub(super) fn write(path: &Path, note: &impl Serialize) -> io::Result<()> {
    let aside = beside(path, ".new");
    std::fs::write(&aside, serde_json::to_vec(note).expect("strings and numbers are JSON"))?;
    std::fs::rename(aside, path)
}
