//! `cargo xtask bench`: runs the benchmarks, gathers what they measured, prints a table and writes JSON and a page. Numbers
//! are compared within one run only; nothing is kept or compared between machines.

mod measure;
mod page;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use cargo_metadata::TargetKind;

use crate::services;
use crate::workspace::{self, Workspace};
use measure::{Measure, with_ratios};

const PACKAGE: &str = "tidegate-benches";
const SERVER_VARIABLE: &str = "TIDEGATE_BIN";
/// A clock of the file system may be this coarse: a result this much older than the run's begin still belongs to it.
const CLOCK_COARSENESS: Duration = Duration::from_secs(2);
/// Where the peers' programs are; without it the benchmarks measure none.
const PEERS_VARIABLE: &str = "TIDEGATE_BENCH_PEERS";
const DURABLE_STREAMS: &str = "durable-streams 0.1.5 (wal, its default)";
const NATS: &str = "NATS JetStream (file storage, sync always)";
const REDIS: &str = "Redis streams (appendfsync always)";
/// Peers that are measured beside us, by area. The bare loop is part of the benchmarks themselves.
const PEERS: [(&str, &[&str]); 5] = [
    ("append", &[DURABLE_STREAMS, NATS, REDIS]),
    ("tail", &[DURABLE_STREAMS, NATS, REDIS]),
    ("catchup", &[DURABLE_STREAMS]),
    ("fanout", &[DURABLE_STREAMS]),
    ("recovery", &[DURABLE_STREAMS]),
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run this area only: one bench target, such as `encode` or `query`.
    #[arg(long)]
    area: Option<String>,
    /// Measure the other systems of the area too, where there are any; `cargo xtask services install --peers` gets them.
    #[arg(long)]
    peers: bool,
    /// Run nothing; report what the last run left behind.
    #[arg(long)]
    report: bool,
}

/// A program of the package of benchmarks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Area {
    name: String,
    /// A `[[bench]]` target, run by `cargo bench`; otherwise a `[[bin]]`, run by `cargo run --release`.
    bench: bool,
    /// It runs the server's release build: its source names the variable that says where that is.
    server: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let workspace = workspace::read()?;
    let areas = choose(areas()?, arguments.area.as_deref())?;
    if arguments.peers {
        for area in &areas {
            println!("{}", peers_line(&area.name));
        }
    }
    let peers = services::peers::folder(&workspace.target);
    let peers = Some(peers.as_path()).filter(|_| arguments.peers);
    let folder = workspace.target.join("bench");
    fs::create_dir_all(&folder)?;
    let mut since = SystemTime::UNIX_EPOCH;
    if !arguments.report {
        if let Some(peers) = peers {
            services::peers::require(peers)?;
        }
        for path in measure::line_files(&folder)? {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        since = SystemTime::now().checked_sub(CLOCK_COARSENESS).unwrap_or(since);
        if areas.iter().any(|area| area.server) {
            cargo(&workspace, &["build", "--release"], &folder, peers)?;
        }
        for area in &areas {
            let name = area.name.as_str();
            let mut words = if area.bench {
                vec!["bench", "-p", PACKAGE, "--bench", name]
            } else {
                vec!["run", "--release", "-p", PACKAGE, "--bin", name]
            };
            if peers.is_some() {
                words.extend(["--features", "peers"]);
            }
            cargo(&workspace, &words, &folder, peers)?;
        }
    }
    let mut measures = measure::criterion(&workspace.target.join("criterion"), since)?;
    measures.extend(measure::lines(&folder)?);
    if measures.is_empty() {
        bail!("the benchmarks left no results in {}", workspace.target.display());
    }
    let measures = with_ratios(measures);
    print!("{}", measure::table(&measures));
    write(&folder, &measures)
}

/// Runs cargo; the benchmarks learn by the environment where their lines belong, where
/// the server is, and where the peers are if they are to be measured.
fn cargo(workspace: &Workspace, words: &[&str], folder: &Path, peers: Option<&Path>) -> anyhow::Result<()> {
    println!("\n=== cargo {}", words.join(" "));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(&workspace.root).stdin(Stdio::null()).env("TIDEGATE_BENCH_DIR", folder);
    command.env(SERVER_VARIABLE, workspace.target.join("release/tidegate"));
    match peers {
        Some(peers) => command.env(PEERS_VARIABLE, peers),
        None => command.env_remove(PEERS_VARIABLE),
    };
    let status = command.status().context("running cargo")?;
    ensure!(status.success(), "cargo {}: {status}", words.join(" "));
    Ok(())
}

fn write(folder: &Path, measures: &[Measure]) -> anyhow::Result<()> {
    let json = folder.join("bench.json");
    fs::write(&json, serde_json::to_vec_pretty(measures)?)?;
    let page = folder.join("index.html");
    fs::write(&page, page::html(measures))?;
    println!("\nwritten: {} and {}", json.display(), page.display());
    Ok(())
}

fn areas() -> anyhow::Result<Vec<Area>> {
    let metadata = workspace::metadata(false)?;
    let package = metadata.packages.iter().find(|package| package.name.as_str() == PACKAGE);
    let package = package.with_context(|| format!("no package {PACKAGE} in the workspace"))?;
    let mut areas = Vec::new();
    for target in &package.targets {
        let bench = target.kind.contains(&TargetKind::Bench);
        if bench || target.kind.contains(&TargetKind::Bin) {
            let source =
                fs::read_to_string(&target.src_path).with_context(|| format!("reading {}", target.src_path))?;
            areas.push(Area { name: target.name.clone(), bench, server: source.contains(SERVER_VARIABLE) });
        }
    }
    Ok(areas)
}

fn choose(areas: Vec<Area>, wanted: Option<&str>) -> anyhow::Result<Vec<Area>> {
    let names: Vec<String> = areas.iter().map(|area| area.name.clone()).collect();
    let chosen: Vec<Area> = areas.into_iter().filter(|area| wanted.is_none_or(|wanted| area.name == wanted)).collect();
    match wanted {
        Some(wanted) if chosen.is_empty() => bail!("no area `{wanted}`; there are: {}", names.join(", ")),
        _ if chosen.is_empty() => bail!("{PACKAGE} has no benchmarks yet"),
        _ => Ok(chosen),
    }
}

fn peers_line(area: &str) -> String {
    match PEERS.iter().find(|(of, _)| *of == area) {
        Some((_, peers)) => format!("peers of {area}: {}", peers.join(", ")),
        None => format!("peers of {area}: none; the bare loop that it is compared with is always measured"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> Vec<Area> {
        let area = |name: &str, bench| Area { name: name.to_owned(), bench, server: !bench };
        vec![area("encode", true), area("end-to-end", false)]
    }

    #[test]
    fn one_area_or_all_are_run_and_an_unknown_one_is_refused() {
        assert_eq!(choose(both(), None).unwrap(), both());
        assert_eq!(choose(both(), Some("encode")).unwrap(), both()[..1]);
        let error = choose(both(), Some("nope")).unwrap_err().to_string();
        assert!(error.contains("nope") && error.contains("encode, end-to-end"), "{error}");
        assert!(choose(Vec::new(), None).is_err());
    }

    #[test]
    fn an_area_without_peers_says_so() {
        assert!(peers_line("encode").contains("none"));
        assert!(peers_line("append").contains("NATS") && peers_line("append").contains("Redis"));
    }
}
