//! `cargo xtask crash`: a server under load is killed at random moments and started again, and what its clients saw is judged. It
//! looks at the server from outside only, by its public contract.

mod check;
mod client;
mod fault;
mod history;
mod plan;
mod report;
mod server;
mod storm;
mod value;
mod wire;
mod workload;

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::workspace;
use client::Client;
use fault::{Disk, Kind};
use history::{Event, NATIVE, Place, Recorder};
use plan::Plan;
use server::{Launch, Server};
use storm::Storm;
use workload::{Actor, Context};

const SERVER_VARIABLE: &str = "TIDEGATE_BIN";
/// Clients look up at least this often; more means that one hangs.
const STOP_BOUND: Duration = Duration::from_secs(60);
/// What is left in a group in the end must be read within this.
const DRAIN_BOUND: Duration = Duration::from_secs(120);
/// The tester's own clients, beyond the numbers of the load.
const PROBE: u32 = 1000;
const FINISH: u32 = 1001;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long the server is killed again and again; reading everything in the end comes on top.
    #[arg(long, default_value_t = 2.0, value_parser = minutes)]
    minutes: f64,
    /// The schedule of kills and the requests follow from it; how they meet does not. Any one unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// What the disk does meanwhile.
    #[arg(long, value_enum, default_value_t = Kind::None)]
    fault: Kind,
    /// Keep the data, the server's log and the history even if nothing is wrong.
    #[arg(long)]
    keep: bool,
    /// The folder to use, which is a small file system: set by the program itself for a full disk.
    #[arg(long, hide = true)]
    disk: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("more than 0".to_owned()) }
}

/// What the pipeline runs, in minutes: with reading everything in the end about two in all.
const PIPELINE: [(Kind, f64); 3] = [(Kind::None, 0.6), (Kind::WriteError, 0.2), (Kind::FullDisk, 0.2)];

/// The bounded runs of the pipeline, one a fault, each with a seed of its own that a failure names.
pub(crate) fn pipeline() -> anyhow::Result<()> {
    for (fault, minutes) in PIPELINE {
        // The pipeline skips nothing.
        if let Some(missing) = fault::missing(fault) {
            anyhow::bail!("crash --fault {fault:?} needs {missing}");
        }
        run(&Arguments { minutes, seed: None, fault, keep: false, disk: None })?;
    }
    Ok(())
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(missing) = fault::missing(arguments.fault) {
        return fault::skip(arguments.fault, missing);
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    if arguments.fault == Kind::FullDisk && arguments.disk.is_none() {
        // Builds here, where the disk is the usual one.
        program()?;
        return in_small_disk(arguments, seed);
    }
    let program = program()?;
    let folder = match &arguments.disk {
        Some(disk) => disk.clone(),
        None => tempfile::Builder::new().prefix("tidegate-crash-").tempdir()?.keep(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("crash: seed {seed}, {} min, fault {:?}, {}", arguments.minutes, arguments.fault, folder.display());
    let sound = runtime.block_on(judge(arguments, seed, program, &folder))?;
    if arguments.disk.is_none() {
        if sound && !arguments.keep {
            fs::remove_dir_all(&folder)?;
        } else {
            println!("kept: {} (data, server.log, history.txt)", folder.display());
        }
    }
    ensure!(sound, "the history breaks the contract; again: cargo xtask crash --seed {seed}");
    Ok(())
}

/// The server: what the environment names, or a release build.
fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(SERVER_VARIABLE) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{SERVER_VARIABLE}: there is no {}", path.display());
        return Ok(path);
    }
    let workspace = workspace::read()?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--release", "-p", "tidegate"]).current_dir(&workspace.root).stdin(Stdio::null());
    let status = command.status().context("running cargo")?;
    ensure!(status.success(), "cargo build --release: {status}");
    Ok(workspace.target.join("release/tidegate"))
}

/// The same run once more, on a small file system that nobody else sees.
fn in_small_disk(arguments: &Arguments, seed: u64) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("tidegate-crash-").tempdir()?;
    let mut words = vec!["crash".to_owned(), "--fault".to_owned(), "full-disk".to_owned()];
    words.extend(["--seed".to_owned(), seed.to_string(), "--minutes".to_owned(), arguments.minutes.to_string()]);
    words.extend(["--disk".to_owned(), folder.path().display().to_string()]);
    words.extend(arguments.keep.then(|| "--keep".to_owned()));
    ensure!(fault::inside(folder.path(), &words)?, "the run on a small disk failed");
    Ok(())
}

/// The whole run; whether the history is sound.
async fn judge(arguments: &Arguments, seed: u64, program: PathBuf, folder: &Path) -> anyhow::Result<bool> {
    let disk = Disk::prepare(arguments.fault, folder)?;
    // Found free now, so that clients find the server where it was; nobody else takes it that fast.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    // On a small disk the log would take the space that the data needs.
    let log = if arguments.disk.is_some() { "/dev/null".into() } else { folder.join("server.log") };
    let launch = Launch { program, data: folder.join("data"), address, log, environment: disk.environment() };
    let recorder = Recorder::new();
    let faults = arguments.fault != Kind::None;
    let context = Context::new(address, recorder.clone(), Plan::new(), faults, seed);
    let begin = Instant::now();
    let interrupted = Arc::clone(&context);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.stop();
        }
    });
    let end = begin + Duration::from_secs_f64(arguments.minutes * 60.0);
    let broke = rage(&launch, &context, &disk, seed, end).await.err();
    if let Some(error) = &broke {
        println!("crash: the run broke off: {error:#}");
    }
    let mut history = context.plan.history();
    history.entries = recorder.take();
    let found = check::check(&history);
    print!("{}", report::figures(&history, &context.refusals()));
    print!("{}", report::violations(&history, &found));
    println!("crash: seed {seed}: {} violation(s) in {:.0} s", found.len(), begin.elapsed().as_secs_f64());
    let sound = found.is_empty() && broke.is_none();
    if (!sound || arguments.keep) && arguments.disk.is_none() {
        let mut file = std::io::BufWriter::new(fs::File::create(folder.join("history.txt"))?);
        for (index, entry) in history.entries.iter().enumerate() {
            writeln!(file, "#{index} {} {}..{} {:?}", entry.client, entry.start, entry.end, entry.event)?;
        }
        file.flush()?;
    }
    Ok(sound)
}

/// Sets up, rages, and reads everything in the end.
async fn rage(launch: &Launch, context: &Arc<Context>, disk: &Disk, seed: u64, end: Instant) -> anyhow::Result<()> {
    let mut server = launch.start(&context.recorder)?;
    server.ready().await?;
    context.plan.create(&mut Client::new(context.address)).await?;
    let mut tasks = workload::start(context);
    let random = fastrand::Rng::with_seed(seed);
    let mut storm = Storm { launch, context, disk, random, probe: Actor::new(PROBE, context), end };
    let result = storm.rage(server).await;
    disk.heal()?;
    context.stop();
    let stopped = tokio::time::timeout(STOP_BOUND, async {
        while let Some(task) = tasks.join_next().await {
            task.context("a client panicked")?;
        }
        anyhow::Ok(())
    });
    let stopped = stopped.await;
    let server = result?;
    match stopped {
        Ok(result) => result?,
        Err(_) => bail!("a client did not come back within {} s", STOP_BOUND.as_secs()),
    }
    finish(launch, context, server).await
}

/// Drains the groups, restarts in order, and reads everything.
async fn finish(launch: &Launch, context: &Arc<Context>, server: Server) -> anyhow::Result<()> {
    let mut actor = Actor::new(FINISH, context);
    for group in &context.plan.groups {
        let done = if group.shared {
            workload::drain_shared(&mut actor, group, DRAIN_BOUND).await
        } else {
            workload::drain_ordered(&mut actor, group, DRAIN_BOUND).await
        };
        if !done {
            let what = format!("`{}` was not read to its end within {} s", group.name, DRAIN_BOUND.as_secs());
            actor.note(actor.now(), Event::Unexpected { operation: "drain", what });
        }
    }
    server.terminate(None).await?;
    let mut server = launch.start(&context.recorder)?;
    server.ready().await?;
    for group in context.plan.groups.iter().filter(|group| !group.shared) {
        workload::positions(&mut actor, group).await;
    }
    for stream in &context.plan.streams {
        for partition in 0..stream.partitions {
            let start = actor.now();
            if let Some(read) = workload::read_all(&mut actor, stream, partition).await {
                actor.note(start, Event::Final { read, via: NATIVE });
            }
        }
        if stream.durable.is_some() {
            let start = actor.now();
            let place = Place { stream: stream.index, partition: 0 };
            match workload::read_durable(&mut actor, stream).await {
                Some(read) => actor.note(start, Event::Final { read, via: "/ds" }),
                None => {
                    let what = format!("{place:?} could not be read by /ds in the end");
                    actor.note(start, Event::Unexpected { operation: "read, /ds", what });
                }
            }
        }
    }
    for group in context.plan.groups.iter().filter(|group| group.dead_letter) {
        let start = actor.now();
        if let Some(ids) = workload::dead_letters(&mut actor).await {
            actor.note(start, Event::DeadLetters { group: group.index, ids });
        }
    }
    server.terminate(None).await
}
