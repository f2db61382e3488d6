//! The outside servers and programs that some tests need: install them, and start or stop one for a person. For tests: PostgreSQL,
//! SeaweedFS for S3, and Node with npm for the Durable Streams suite; for `bench --peers`, only when asked, what we are measured beside.

pub(crate) mod peers;
mod postgres;
mod seaweedfs;
mod system;

use std::path::Path;

use anyhow::Context as _;

use crate::workspace;
use system::{apt_install, on_path, version};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Install what is missing, with apt-get (as root, or by sudo) and pip. Quick when nothing is.
    Install {
        /// Also the systems that `bench --peers` measures: NATS (pip), Redis (apt-get), durable-streams (cargo).
        #[arg(long)]
        peers: bool,
    },
    /// Start PostgreSQL in a temporary folder on a free port of 127.0.0.1; print its id and its URL.
    Start,
    /// Stop the server with this id and remove its folder.
    Stop {
        /// What `start` printed, or `list` shows.
        id: String,
    },
    /// List the servers that `start` started.
    List,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let target = workspace::read()?.target;
    let registry = target.join("services");
    match command {
        Command::Install { peers } => install(&target, *peers),
        Command::Start => {
            let (id, started) = postgres::start(&registry)?;
            println!("{}", started.url);
            println!("stop it: cargo xtask services stop {id}");
            Ok(())
        }
        Command::Stop { id } => postgres::stop(&registry, id),
        Command::List => postgres::list(&registry),
    }
}

fn install(target: &Path, with_peers: bool) -> anyhow::Result<()> {
    postgres::install()?;
    seaweedfs::install(target)?;
    install_node()?;
    if with_peers {
        peers::install(target)?;
    }
    Ok(())
}

/// The suite of Durable Streams is a package of npm.
fn install_node() -> anyhow::Result<()> {
    let missing: Vec<&str> = ["node", "npm"]
        .into_iter()
        .filter(|program| on_path(program).is_none())
        .map(|program| if program == "node" { "nodejs" } else { program })
        .collect();
    if !missing.is_empty() {
        apt_install(&missing)?;
    }
    for program in ["node", "npm"] {
        let path =
            on_path(program).with_context(|| format!("apt-get installed {missing:?}, but there is no {program}"))?;
        println!("services: {program} {} in {}", version(&path)?, path.display());
    }
    Ok(())
}
