//! `[objects]`: where objects lie. It opens nothing: whether a directory or a bucket can be used is found when the server starts.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::read::{Node, Section};
use super::{Cold, Objects, s3};

/// Where in the data directory large objects lie unless told otherwise.
const DEFAULT_FOLDER: &str = "objects";
const DEFAULT_HOT_MAX_BYTES: u64 = 1024 * 1024;

/// The section as it was written.
pub(super) struct Written {
    cold: Option<Cold>,
    hot_max_bytes: u64,
}

impl Written {
    /// With what was not written.
    pub(super) fn under(self, data_dir: &Path) -> Objects {
        let cold = self.cold.unwrap_or_else(|| Cold::Directory(data_dir.join(DEFAULT_FOLDER)));
        Objects { cold, hot_max_bytes: self.hot_max_bytes }
    }
}

pub(super) fn read(root: &Section<'_>) -> Option<Written> {
    let Some(node) = root.get("objects") else {
        return Some(Written { cold: None, hot_max_bytes: DEFAULT_HOT_MAX_BYTES });
    };
    let section = node.section()?;
    let cold = match section.get("cold") {
        Some(node) => place(&node, &section).map(Some),
        None => Some(None),
    };
    if section.get("s3").is_some() && !matches!(cold, None | Some(Some(Cold::S3(_)))) {
        section.refuse_key("s3", "has an effect only with cold = \"s3://bucket/prefix\"");
    }
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

/// Where something lies: a directory, or a bucket with what the table `s3` of the same section says of it.
pub(super) fn place(node: &Node<'_>, section: &Section<'_>) -> Option<Cold> {
    let url = node.line()?;
    if !url.starts_with("s3://") {
        return directory(node, &url).map(Cold::Directory);
    }
    let bucket = s3::bucket(node, &url);
    let settings = match section.get("s3") {
        Some(node) => Some(node.section()?),
        None => None,
    };
    s3::read(settings, bucket?).map(|s3| Cold::S3(Box::new(s3)))
}

/// The directory of a `file://` URL (RFC 8089): an absolute path, percent-encoded, on this machine.
fn directory(node: &Node<'_>, url: &str) -> Option<PathBuf> {
    let path = directory_of(url);
    if path.is_none() {
        node.refuse("must be s3://bucket/prefix, or file:// and the absolute path of a directory: file:///var/lib/tidegate/objects");
    }
    path
}

/// The directory of a `file://` URL; `None` for anything else.
pub(crate) fn directory_of(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("file://").filter(|path| path.starts_with('/'))?;
    let path = percent_decode_str(path).decode_utf8().ok()?;
    (!path.chars().any(char::is_control)).then(|| PathBuf::from(path.as_ref()))
}
