//! The machine's own commands: apt-get, and others whose output or success is wanted. It asks no question: standard input is closed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// Installs Debian packages with what they need, as root or by sudo.
pub(super) fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
    apt_get(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = if is_root()? {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        sudo
    };
    println!("services: apt-get {}", arguments.join(" "));
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let status = command.status().context("running apt-get (as root, or by sudo); or install it yourself")?;
    ensure!(status.success(), "apt-get {}: {status}; or install it yourself", arguments.join(" "));
    Ok(())
}

pub(super) fn is_root() -> anyhow::Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Where a program is on the path.
pub(super) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|program| program.is_file())
}

/// What a command prints; an error if it fails.
pub(super) fn output(command: &mut Command) -> anyhow::Result<String> {
    let result = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(result.status.success(), "{command:?}: {}", String::from_utf8_lossy(&result.stderr).trim());
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// Runs a command whose output a person may watch.
pub(super) fn succeed(command: &mut Command, shown: &str) -> anyhow::Result<()> {
    println!("services: {shown}");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("running {shown}"))?;
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

/// The first line of `program --version`.
pub(super) fn version(program: &Path) -> anyhow::Result<String> {
    let text = output(Command::new(program).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_on_the_path_or_not_at_all() {
        assert!(on_path("sh").is_some_and(|path| path.is_absolute()));
        assert!(on_path("no-program-has-this-name").is_none());
        assert!(output(&mut Command::new("false")).is_err());
    }
}
