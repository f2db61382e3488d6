//! `cargo xtask ci`: every check one after the other, each with a heading and its time, until the first that fails. The
//! README's own test command is the last; the last line is its count. It reads no standard input.

mod count;

use std::io::{BufRead as _, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::workspace::{self, Workspace};
use crate::{Reported, crash, deps, floors, tidy};
use count::Count;

/// The demo tells its story in seconds; a demo that hangs must not hang the pipeline.
const DEMO_BOUND: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run this step only; may be given several times. `--list` shows their names.
    #[arg(long = "step", value_name = "NAME")]
    steps: Vec<String>,
    /// List the steps and do nothing.
    #[arg(long)]
    list: bool,
}

struct Step {
    name: &'static str,
    /// What a person would type.
    shown: &'static str,
    run: fn(&Workspace) -> anyhow::Result<()>,
}

const STEPS: [Step; 12] = [
    Step { name: "fmt", shown: "cargo fmt --all --check", run: |w| cargo(w, &["fmt", "--all", "--check"]) },
    Step { name: "floors", shown: "cargo xtask floors", run: |_| floors::run(None) },
    Step { name: "tidy", shown: "cargo xtask tidy", run: |_| tidy::run() },
    Step { name: "deps", shown: "cargo xtask deps", run: |_| deps::run() },
    Step {
        name: "clippy",
        shown: "cargo clippy --workspace --all-targets -- -D warnings",
        run: |w| cargo(w, &["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    },
    Step { name: "doc", shown: "RUSTDOCFLAGS=\"-D warnings\" cargo doc --workspace --no-deps", run: doc },
    Step {
        name: "loom",
        shown: "RUSTFLAGS=\"--cfg loom\" cargo test -p tidegate-lease --release --lib loom --target-dir target/loom",
        run: loom,
    },
    Step { name: "release", shown: "cargo build --release", run: |w| cargo(w, &["build", "--locked", "--release"]) },
    Step { name: "crash", shown: "cargo xtask crash, two minutes with every fault", run: |_| crash::pipeline() },
    Step { name: "demo", shown: "cargo run --release -- demo --exit", run: demo },
    Step {
        name: "bench",
        shown: "cargo bench --no-run -p tidegate-benches",
        run: |w| cargo(w, &["bench", "--locked", "--no-run", "-p", "tidegate-benches"]),
    },
    Step { name: "test", shown: "TIDEGATE_REQUIRE_SERVICES=1 cargo test --workspace", run: test },
];

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.list {
        for step in &STEPS {
            println!("{:8} {}", step.name, step.shown);
        }
        return Ok(());
    }
    if let Some(unknown) = arguments.steps.iter().find(|name| STEPS.iter().all(|step| step.name != name.as_str())) {
        bail!("no step `{unknown}`: see `cargo xtask ci --list`");
    }
    let workspace = workspace::read()?;
    let chosen: Vec<&Step> = STEPS
        .iter()
        .filter(|step| arguments.steps.is_empty() || arguments.steps.iter().any(|name| name == step.name))
        .collect();
    let begin = Instant::now();
    for (index, step) in chosen.iter().enumerate() {
        println!("\n=== {}/{} {}: {}", index + 1, chosen.len(), step.name, step.shown);
        let since = Instant::now();
        (step.run)(&workspace).map_err(|error| match error.is::<Reported>() {
            true => error,
            false => error.context(format!("step `{}` failed: {}", step.name, step.shown)),
        })?;
        // The tests' count stays the last line.
        if step.name != "test" {
            println!(
                "--- {}: ok in {:.1} s, {:.0} s in all",
                step.name,
                since.elapsed().as_secs_f64(),
                begin.elapsed().as_secs_f64()
            );
        }
    }
    Ok(())
}

/// The cargo that runs us, in the workspace's root, without standard input. The rest of the environment is inherited, so
/// that CARGO_TERM_COLOR, CARGO_TARGET_DIR and the like keep their meaning.
fn cargo_command(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(&workspace.root).stdin(Stdio::null());
    // Set by the `cargo run` that we are: they would tell a build script of the child that it is ours.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

fn cargo(workspace: &Workspace, arguments: &[&str]) -> anyhow::Result<()> {
    succeed(cargo_command(workspace, arguments).status().context("running cargo")?)
}

fn succeed(status: ExitStatus) -> anyhow::Result<()> {
    if status.success() { Ok(()) } else { bail!("{status}") }
}

/// Adds to a variable of flags what the caller's environment may hold already.
fn with_flags(command: &mut Command, variable: &str, flags: &str) {
    let flags = match std::env::var(variable) {
        Ok(before) if !before.is_empty() => format!("{before} {flags}"),
        _ => flags.to_owned(),
    };
    command.env(variable, flags);
}

fn doc(workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = cargo_command(workspace, &["doc", "--locked", "--workspace", "--no-deps"]);
    with_flags(&mut command, "RUSTDOCFLAGS", "-D warnings");
    succeed(command.status().context("running cargo")?)
}

/// The model check of the capacity slot, in a target folder of its own: its flag would rebuild everything in the other.
fn loom(workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = cargo_command(
        workspace,
        &["test", "--locked", "-p", "tidegate-lease", "--release", "--lib", "loom", "--target-dir"],
    );
    command.arg(workspace.target.join("loom"));
    with_flags(&mut command, "RUSTFLAGS", "--cfg loom");
    let (status, count) = counted(command, &mut std::io::stdout())?;
    succeed(status)?;
    if count.passed == 0 {
        bail!("no test has `loom` in its name: the capacity slot is not checked");
    }
    Ok(())
}

fn demo(workspace: &Workspace) -> anyhow::Result<()> {
    let mut child = cargo_command(workspace, &["run", "--locked", "--release", "--", "demo", "--exit"])
        .spawn()
        .context("running cargo")?;
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return succeed(status);
        }
        if begin.elapsed() > DEMO_BOUND {
            child.kill()?;
            child.wait()?;
            bail!("it did not end within {} s", DEMO_BOUND.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The README's test command, with the count of all its programs as the last line.
fn test(workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = cargo_command(workspace, &["test", "--workspace"]);
    command.env("TIDEGATE_REQUIRE_SERVICES", "1");
    let (status, mut count) = counted(command, &mut std::io::stdout())?;
    if !status.success() && count.failed == 0 {
        // It did not compile, or a test program died before it could count.
        count.failed = 1;
    }
    let problem = match (status.success(), count.skipped) {
        (false, _) => Some(status.to_string()),
        (true, 1..) => Some(format!("{} test(s) skipped, and none may be", count.skipped)),
        (true, 0) => None,
    };
    if let Some(problem) = &problem {
        eprintln!("error: step `test` failed: {problem}");
    }
    println!("\n{count}");
    if problem.is_some() { Err(Reported.into()) } else { Ok(()) }
}

/// Runs a test command, passes its output through and sums what its programs count.
fn counted(mut command: Command, out: &mut impl Write) -> anyhow::Result<(ExitStatus, Count)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("running cargo")?;
    let pipe = child.stdout.take().context("the child has an output")?;
    let mut count = Count::default();
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)?;
        out.flush()?;
        count.read(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok((child.wait()?, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_names_of_their_own_and_the_tests_come_last() {
        let mut names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        assert_eq!(names.last(), Some(&"test"));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STEPS.len());
    }

    #[test]
    fn an_unknown_step_is_refused_before_anything_runs() {
        let error = run(&Arguments { steps: vec!["tidy".to_owned(), "nope".to_owned()], list: false }).unwrap_err();
        assert!(error.to_string().contains("nope"));
    }

    #[test]
    fn output_is_counted_and_the_exit_status_kept() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out'; exit 3",
        ]);
        let mut out = Vec::new();
        let (status, count) = counted(command, &mut out).unwrap();
        assert!(out.starts_with(b"test result: FAILED"));
        assert_eq!((status.code(), count.passed, count.failed), (Some(3), 2, 1));
        assert!(succeed(status).is_err());
    }
}
