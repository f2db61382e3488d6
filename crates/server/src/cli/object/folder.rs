//! A folder and the keys of its files. A key becomes a path inside the folder or is refused with a reason: nothing that a server says
//! makes a file anywhere else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::resume::UPLOAD_NOTE;

/// The journal's file, at the top of a folder.
pub(super) const JOURNAL: &str = ".tidegate-batch";
/// Where files grow until they are whole, at the top of a folder.
pub(super) const PARTIAL: &str = ".tidegate-batch.partial";

/// A file that goes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// `/` between names, whatever the system writes.
    pub(super) key: String,
    pub(super) path: PathBuf,
}

/// What a walk comes upon: a file, or what cannot go up and why.
pub(super) type Step = Result<Found, (PathBuf, String)>;

/// The files of a folder, those of one folder by name. Links are not followed, so that it ends.
pub(super) struct Walk {
    root: PathBuf,
    /// Still to be looked at; the next stands last.
    open: Vec<(PathBuf, Option<String>)>,
}

impl Walk {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), open: vec![(root.to_owned(), Some(String::new()))] }
    }

    fn enter(&mut self, folder: &Path, key: &str) -> io::Result<()> {
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
        for entry in entries {
            let name = entry.file_name();
            let name = name.to_str();
            if folder == self.root && name.is_some_and(|name| matches!(name, JOURNAL | PARTIAL)) {
                continue;
            }
            if name.is_some_and(|name| name.ends_with(UPLOAD_NOTE)) {
                continue;
            }
            let key = name.map(|name| if key.is_empty() { name.to_owned() } else { format!("{key}/{name}") });
            self.open.push((entry.path(), key));
        }
        Ok(())
    }
}

impl Iterator for Walk {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            let (path, key) = self.open.pop()?;
            let Some(key) = key else { return Some(Err((path, "its name is no UTF-8".to_owned()))) };
            let is_root = key.is_empty();
            let kind = if is_root { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
            match kind {
                Ok(kind) if kind.is_dir() => {
                    if let Err(error) = self.enter(&path, &key) {
                        return Some(Err((path, error.to_string())));
                    }
                }
                Ok(kind) if kind.is_file() && !is_root => return Some(Ok(Found { key, path })),
                Ok(_) => {
                    return Some(Err((path, "it is neither a file nor a folder; links are not followed".to_owned())));
                }
                Err(error) => return Some(Err((path, error.to_string()))),
            }
        }
    }
}

/// The path that a key has in a folder.
pub(super) fn path_of(root: &Path, key: &str) -> Result<PathBuf, &'static str> {
    if key.starts_with('/') {
        return Err("it is an absolute path");
    }
    if key.contains('\\') {
        return Err("it has a backslash");
    }
    if key.chars().any(char::is_control) {
        return Err("it has a control character");
    }
    if cfg!(windows) && key.contains(':') {
        return Err("it has a colon");
    }
    let mut path = root.to_owned();
    for (at, name) in key.split('/').enumerate() {
        match name {
            "" => return Err("a part of it is empty"),
            "." | ".." => return Err("it has `.` or `..` as a part, and would leave the folder"),
            JOURNAL | PARTIAL if at == 0 => return Err("the name is kept for this command's own notes"),
            name => path.push(name),
        }
    }
    Ok(path)
}

/// Makes the folders that lead to a path of [`path_of`]. A link among them is refused: it may lead outside.
pub(super) fn make_way(root: &Path, path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent().and_then(|parent| parent.strip_prefix(root).ok()) else { return Ok(()) };
    let mut folder = root.to_owned();
    for name in parent.components() {
        folder.push(name);
        match fs::create_dir(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&folder)?.is_dir() {
                    return Err(io::Error::other(format!("{} is no folder", folder.display())));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leaves_the_folder() {
        let root = Path::new("r");
        for (key, path) in
            [("a", "r/a"), ("a/b c", "r/a/b c"), ("...", "r/..."), ("a/.tidegate-batch", "r/a/.tidegate-batch")]
        {
            assert_eq!(path_of(root, key).as_deref(), Ok(Path::new(path)));
        }
        for key in [
            "",
            "/a",
            "../x",
            "a/../../x",
            "a/..",
            ".",
            "a//b",
            "a/",
            "C:\\x",
            "..\\x",
            "a\0",
            ".tidegate-batch",
            PARTIAL,
        ] {
            assert!(path_of(root, key).is_err(), "{key:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_folder_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("in"), folder.path().join("out"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        assert!(make_way(&root, &path_of(&root, "link/x").unwrap()).is_err());
        assert!(make_way(&root, &path_of(&root, "a/b/x").unwrap()).is_ok() && root.join("a/b").is_dir());
        let found: Vec<Step> = Walk::new(&root).collect();
        assert!(matches!(found.as_slice(), [Err((path, _))] if path.ends_with("link")), "{found:?}");
    }

    #[test]
    fn a_walk_finds_every_file_and_none_of_the_notes() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("b/c")).unwrap();
        fs::create_dir_all(root.join(PARTIAL)).unwrap();
        for name in ["a", "b/c/d", "b/e", JOURNAL, ".tidegate-batch.partial/x", "a.1234.tidegate-upload"] {
            fs::write(root.join(name), "").unwrap();
        }
        let keys: Vec<String> = Walk::new(root).map(|step| step.unwrap().key).collect();
        assert_eq!(keys, ["a", "b/c/d", "b/e"]);
    }
}
