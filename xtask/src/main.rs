//! `cargo xtask`: the project's own commands. It depends on no crate of the product, so that it can judge them all,
//! and it never changes a source file.
#![allow(clippy::disallowed_methods, reason = "a tool for people and CI: it measures real time")]

mod bench;
mod ci;
mod crash;
mod deps;
mod floors;
mod services;
mod tidy;
mod workspace;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every check, as the pipeline does, and end with the count of the tests.
    Ci(ci::Arguments),
    /// Check that dependencies between the workspace's crates point strictly down.
    Floors {
        /// Print the crates and their dependencies instead: as a tree, or as a Mermaid diagram.
        #[arg(long, value_name = "FORM", num_args = 0..=1, default_missing_value = "tree")]
        graph: Option<floors::Form>,
    },
    /// Check the rules of style that no compiler knows.
    Tidy,
    /// Check licences, registries and banned packages of the whole dependency tree.
    Deps,
    /// Install, start and stop the outside servers that some tests need.
    #[command(subcommand)]
    Services(services::Command),
    /// Run the benchmarks; print a table, write JSON and a page with plots.
    Bench(bench::Arguments),
    /// Kill a server under load again and again, and check that it kept every promise.
    Crash(crash::Arguments),
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().command {
        Command::Ci(arguments) => ci::run(&arguments),
        Command::Floors { graph } => floors::run(graph),
        Command::Tidy => tidy::run(),
        Command::Deps => deps::run(),
        Command::Services(command) => services::run(&command),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Crash(arguments) => crash::run(&arguments),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) if error.is::<Reported>() => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// The failure was told already, and something else had to be the last line.
#[derive(Debug)]
struct Reported;

impl std::fmt::Display for Reported {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("failed, as reported")
    }
}

impl std::error::Error for Reported {}

/// Turns a list of findings into one error that shows them all.
fn refuse(what: &str, findings: &[String]) -> anyhow::Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    for finding in findings {
        eprintln!("{finding}");
    }
    anyhow::bail!("{what}: {} finding(s)", findings.len())
}
