//! PostgreSQL, for tests and for a person: find it, install it, start one in a folder of its own, stop it. It touches no server that it
//! did not start, and runs none as root.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::system::{apt_install, is_root, output};

/// The account that runs servers when we are root; Debian's package makes it.
const ACCOUNT: &str = "postgres";
const FOLDER_PREFIX: &str = "tidegate-postgres-";
/// The port is found free, then given to the server; between the two somebody else may take it.
const START_ATTEMPTS: u32 = 5;

/// A server that `start` started, as written down in the target folder.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Started {
    folder: PathBuf,
    pub(super) url: String,
}

/// The folder of PostgreSQL's own programs: the newest of Debian's, else that of `initdb` on the path.
fn programs() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            Some((entry.as_ref().ok()?.file_name().to_str()?.parse().ok()?, entry.ok()?.path().join("bin")))
        })
        .filter(|(_, folder)| folder.join("initdb").exists())
        .collect();
    versions.sort();
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        let folder = std::env::split_paths(&path).find(|folder| folder.join("initdb").exists())?;
        folder.join("initdb").canonicalize().ok()?.parent().map(Path::to_path_buf)
    };
    versions.pop().map(|(_, folder)| folder).or_else(on_path)
}

/// Installs it if it is missing.
pub(super) fn install() -> anyhow::Result<()> {
    if programs().is_none() {
        apt_install(&["postgresql"])?;
    }
    let folder = programs().context("apt-get installed postgresql, but there is no initdb")?;
    let version = output(Process::new(folder.join("postgres")).arg("--version"))?;
    if is_root()? {
        account()?;
    }
    println!("services: {} in {}", version.trim(), folder.display());
    Ok(())
}

/// The numbers of the account that runs servers for root.
fn account() -> anyhow::Result<(u32, u32)> {
    let number = |flag: &str| -> anyhow::Result<u32> {
        let text = output(Process::new("id").args([flag, ACCOUNT])).with_context(|| {
            format!("PostgreSQL refuses to run as root, and there is no account `{ACCOUNT}`: make one")
        })?;
        text.trim().parse().context("id printed no number")
    };
    Ok((number("-u")?, number("-g")?))
}

/// Runs a program of PostgreSQL as an account that is not root's, in the folder that it may read.
fn as_account(program: PathBuf, folder: &Path, account: Option<(u32, u32)>) -> Process {
    let mut command = Process::new(program);
    command.current_dir(folder);
    if let Some((user, group)) = account {
        command.uid(user).gid(group);
    }
    command
}

pub(super) fn start(registry: &Path) -> anyhow::Result<(String, Started)> {
    let programs = programs().context("no PostgreSQL here: run `cargo xtask services install`")?;
    let account = if is_root()? { Some(account()?) } else { None };
    let folder = tempfile::Builder::new().prefix(FOLDER_PREFIX).tempdir()?;
    if let Some((user, group)) = account {
        std::os::unix::fs::chown(folder.path(), Some(user), Some(group))?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
    }
    let data = folder.path().join("data");
    let mut initdb = as_account(programs.join("initdb"), folder.path(), account);
    output(initdb.arg("-D").arg(&data).args(["-U", ACCOUNT, "-A", "trust", "-E", "UTF8", "--no-sync"]))?;
    let port = start_on_a_free_port(&programs, folder.path(), &data, account)?;
    let id = folder.path().file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let id = id.trim_start_matches(FOLDER_PREFIX).to_owned();
    let url = format!("postgres://{ACCOUNT}@127.0.0.1:{port}/postgres");
    let started = Started { folder: folder.keep(), url };
    fs::create_dir_all(registry)?;
    fs::write(registry.join(format!("{id}.json")), serde_json::to_vec_pretty(&started)?)?;
    Ok((id, started))
}

fn start_on_a_free_port(
    programs: &Path,
    folder: &Path,
    data: &Path,
    account: Option<(u32, u32)>,
) -> anyhow::Result<u16> {
    let mut last = None;
    for _ in 0..START_ATTEMPTS {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let options = format!("-c listen_addresses=127.0.0.1 -p {port} -k '{}' -c wal_level=logical", folder.display());
        // Its output goes to the log only: the server would keep an inherited pipe open for ever.
        let mut command = as_account(programs.join("pg_ctl"), folder, account);
        command.arg("-D").arg(data).arg("-l").arg(folder.join("log")).args(["-w", "-s", "-o", &options, "start"]);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        if status.success() {
            return Ok(port);
        }
        last = Some(fs::read_to_string(folder.join("log")).unwrap_or_default());
    }
    bail!("PostgreSQL did not start in {START_ATTEMPTS} attempts:\n{}", last.unwrap_or_default())
}

pub(super) fn stop(registry: &Path, id: &str) -> anyhow::Result<()> {
    ensure!(
        id.chars().all(|letter| letter.is_ascii_alphanumeric()),
        "`{id}` is no id: see `cargo xtask services list`"
    );
    let note = registry.join(format!("{id}.json"));
    let text = fs::read(&note).with_context(|| format!("no server `{id}`: see `cargo xtask services list`"))?;
    let started: Started = serde_json::from_slice(&text).with_context(|| format!("reading {}", note.display()))?;
    let name = started.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ensure!(name == format!("{FOLDER_PREFIX}{id}"), "{} names a folder that is not its own", note.display());
    if started.folder.join("data/postmaster.pid").exists() {
        let programs = programs().context("no PostgreSQL here, so there is no pg_ctl to stop it with")?;
        let account = if is_root()? { Some(account()?) } else { None };
        let mut command = as_account(programs.join("pg_ctl"), &started.folder, account);
        output(command.arg("-D").arg(started.folder.join("data")).args(["-m", "fast", "-w", "-s", "stop"]))?;
    }
    if started.folder.exists() {
        fs::remove_dir_all(&started.folder).with_context(|| format!("removing {}", started.folder.display()))?;
    }
    fs::remove_file(&note)?;
    println!("services: stopped {id}");
    Ok(())
}

pub(super) fn list(registry: &Path) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(registry).into_iter().flatten() {
        let path = entry?.path();
        let started: Started =
            serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("reading {}", path.display()))?;
        let id = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        lines.push(format!("{id}  {}", started.url));
    }
    lines.sort();
    if lines.is_empty() {
        println!("services: none started");
    }
    for line in lines {
        println!("{line}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_was_not_started_here_is_not_stopped() {
        let registry = tempfile::tempdir().unwrap();
        for id in ["gone", "../x", "a b", "a/b"] {
            assert!(stop(registry.path(), id).is_err(), "{id}");
        }
    }

    #[test]
    fn an_empty_registry_lists_nothing() {
        let registry = tempfile::tempdir().unwrap();
        assert!(list(registry.path()).is_ok());
        assert!(list(&registry.path().join("missing")).is_ok());
    }

    #[test]
    fn stopping_a_dead_server_clears_its_folder_and_its_note() {
        let registry = tempfile::tempdir().unwrap();
        let folder = registry.path().join(format!("{FOLDER_PREFIX}abc"));
        fs::create_dir(&folder).unwrap();
        let note = |id: &str| registry.path().join(format!("{id}.json"));
        let started = Started { folder: folder.clone(), url: "postgres://x".to_owned() };
        for id in ["abc", "other"] {
            fs::write(note(id), serde_json::to_vec(&started).unwrap()).unwrap();
        }
        assert!(stop(registry.path(), "other").is_err(), "the folder is not its own");
        stop(registry.path(), "abc").unwrap();
        assert!(!folder.exists() && !note("abc").exists() && note("other").exists());
    }
}
