//! `[objects]`: where objects lie. It opens nothing: whether a directory can be used is found when the server starts.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::Objects;
use super::read::{Node, Section};

/// Where in the data directory large objects lie unless told otherwise.
const DEFAULT_FOLDER: &str = "objects";
const DEFAULT_HOT_MAX_BYTES: u64 = 1024 * 1024;

/// The section as it was written.
pub(super) struct Written {
    cold: Option<PathBuf>,
    hot_max_bytes: u64,
}

impl Written {
    /// With what was not written.
    pub(super) fn under(self, data_dir: &Path) -> Objects {
        let cold = self.cold.unwrap_or_else(|| data_dir.join(DEFAULT_FOLDER));
        Objects { cold, hot_max_bytes: self.hot_max_bytes }
    }
}

pub(super) fn read(root: &Section<'_>) -> Option<Written> {
    let Some(node) = root.get("objects") else {
        return Some(Written { cold: None, hot_max_bytes: DEFAULT_HOT_MAX_BYTES });
    };
    let section = node.section()?;
    let cold = match section.get("cold") {
        Some(node) => directory(&node).map(Some),
        None => Some(None),
    };
    let hot_max_bytes = match section.get("hot_max_bytes") {
        Some(node) => node.integer().filter(|bytes| {
            let fits = *bytes <= Objects::HOT_MAX_BYTES;
            if !fits {
                node.refuse(format!("is {bytes}, it must be from 0 to {}", Objects::HOT_MAX_BYTES));
            }
            fits
        }),
        None => Some(DEFAULT_HOT_MAX_BYTES),
    };
    section.finish();
    Some(Written { cold: cold?, hot_max_bytes: hot_max_bytes? })
}

/// The directory of a `file://` URL (RFC 8089): an absolute path, percent-encoded, on this machine.
fn directory(node: &Node<'_>) -> Option<PathBuf> {
    let url = node.line()?;
    if url.starts_with("s3://") {
        node.refuse("s3:// is not in this version: large objects lie in a local directory, file:///...");
        return None;
    }
    let path = url.strip_prefix("file://").filter(|path| path.starts_with('/'));
    let path = path.and_then(|path| percent_decode_str(path).decode_utf8().ok());
    match path {
        Some(path) if !path.chars().any(char::is_control) => Some(PathBuf::from(path.as_ref())),
        _ => {
            node.refuse("must be file:// and the absolute path of a directory: file:///var/lib/tidegate/objects");
            None
        }
    }
}
