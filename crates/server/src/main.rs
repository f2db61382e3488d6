//! The binary `tidegate`: reads the command line and hands over. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use tidegate::cli::{Cli, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    run(Cli::parse()).into()
}
