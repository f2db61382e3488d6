//! Faults of the disk, without touching the real one. A full disk is a small tmpfs in a mount namespace of our own, filled by a
//! ballast file; write errors come from a shim of a few lines of C that is loaded before the C library. Whoever lacks what a
//! fault needs is told by name.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

/// The source of the shim.
const SHIM: &str = include_str!("fault/write_error.c");
/// The variable by which the shim knows the file that switches it.
const SWITCH_VARIABLE: &str = "TIDEGATE_CRASH_FAULT";
/// As everywhere in this project: with it, nothing may be skipped.
const REQUIRE_VARIABLE: &str = "TIDEGATE_REQUIRE_SERVICES";
const DISK_MIB: u32 = 256;

/// What to inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Kills only.
    None,
    /// `write` and `fsync` fail with EIO for a while.
    WriteError,
    /// The file system is full for a while.
    FullDisk,
}

/// A disk that can be made to fail.
#[derive(Debug)]
pub(crate) enum Disk {
    Sound,
    Full { ballast: PathBuf },
    Failing { shim: PathBuf, switch: PathBuf },
}

impl Disk {
    /// Prepares the fault in `folder`, which for a full disk is the small file system.
    pub(crate) fn prepare(kind: Kind, folder: &Path) -> anyhow::Result<Self> {
        Ok(match kind {
            Kind::None => Self::Sound,
            Kind::FullDisk => Self::Full { ballast: folder.join("ballast") },
            Kind::WriteError => {
                let (source, shim) = (folder.join("fault.c"), folder.join("fault.so"));
                fs::write(&source, SHIM)?;
                let mut cc = Command::new("cc");
                cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(&source).arg("-ldl");
                let output = cc.stdin(Stdio::null()).output().context("running cc")?;
                ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
                Self::Failing { shim, switch: folder.join("switch") }
            }
        })
    }

    /// What the server's environment needs.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        match self {
            Self::Failing { shim, switch } => vec![
                ("LD_PRELOAD".to_owned(), shim.display().to_string()),
                (SWITCH_VARIABLE.to_owned(), switch.display().to_string()),
            ],
            Self::Sound | Self::Full { .. } => Vec::new(),
        }
    }

    /// From now on the disk fails; `way` chooses how, where there is a choice.
    pub(crate) fn break_it(&self, way: u32) -> anyhow::Result<&'static str> {
        match self {
            Self::Sound => Ok("nothing"),
            Self::Full { ballast } => {
                let mut file = fs::OpenOptions::new().create(true).append(true).open(ballast)?;
                // Large pieces first, then what is left of a page.
                for size in [1 << 20, 1 << 12, 1] {
                    let piece = vec![0_u8; size];
                    while file.write_all(&piece).is_ok() {}
                }
                Ok("the disk is full")
            }
            Self::Failing { switch, .. } => {
                let (text, what) =
                    [("w", "write fails"), ("s", "fsync fails"), ("t", "write stores a half, then fails")]
                        [way as usize % 3];
                fs::write(switch, text)?;
                Ok(what)
            }
        }
    }

    /// From now on the disk works again.
    pub(crate) fn heal(&self) -> anyhow::Result<()> {
        let file = match self {
            Self::Sound => return Ok(()),
            Self::Full { ballast } => ballast,
            Self::Failing { switch, .. } => switch,
        };
        match fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// What is missing for a fault; `None` = nothing.
pub(crate) fn missing(kind: Kind) -> Option<&'static str> {
    let works = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    match kind {
        Kind::None => None,
        Kind::WriteError if works("cc", &["--version"]) => None,
        Kind::WriteError => Some("a C compiler, `cc`"),
        Kind::FullDisk if works("unshare", &["-m", "--propagation", "private", "true"]) => None,
        Kind::FullDisk => Some("the right to make a mount namespace (`unshare -m`, as root)"),
    }
}

/// Says by name what is skipped, or fails where nothing may be.
pub(crate) fn skip(kind: Kind, missing: &str) -> anyhow::Result<()> {
    if std::env::var_os(REQUIRE_VARIABLE).is_some() {
        bail!("crash --fault {kind:?} needs {missing}, and {REQUIRE_VARIABLE} is set");
    }
    println!("skipped: crash --fault {kind:?}: it needs {missing}");
    Ok(())
}

/// Runs this program again in a mount namespace of its own, in which `folder` is a small file system that vanishes with it.
pub(crate) fn inside(folder: &Path, arguments: &[String]) -> anyhow::Result<bool> {
    let script = format!("mount -t tmpfs -o size={DISK_MIB}m,mode=700 tidegate \"$0\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script]).arg(folder);
    command.arg(std::env::current_exe()?).args(arguments).stdin(Stdio::null());
    Ok(command.status().context("running unshare")?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names the file that `a_record_is_written_and_synced` writes; unset, that test has nothing to do.
    const FILE_VARIABLE: &str = "TIDEGATE_CRASH_TEST_FILE";

    #[test]
    fn a_record_is_written_and_synced() {
        let Some(path) = std::env::var_os(FILE_VARIABLE) else { return };
        let mut file = fs::File::create(path).unwrap();
        file.write_all(b"0123456789").unwrap();
        file.sync_all().unwrap();
    }

    #[test]
    fn the_shim_fails_writes_while_it_is_switched_on() {
        if let Some(missing) = missing(Kind::WriteError) {
            eprintln!("skipped: the_shim_fails_writes_while_it_is_switched_on: it needs {missing}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::prepare(Kind::WriteError, folder.path()).unwrap();
        // This program again, by the standard library that the server writes with, too.
        let write = || {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "crash::fault::tests::a_record_is_written_and_synced"]);
            command.env(FILE_VARIABLE, folder.path().join("file")).envs(disk.environment());
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
        };
        assert!(write());
        for way in 0..3 {
            let how = disk.break_it(way).unwrap();
            assert!(!write(), "{how}");
            disk.heal().unwrap();
            assert!(write(), "after {how}");
        }
    }
}
