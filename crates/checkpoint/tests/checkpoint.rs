//! The promises of checkpoints, over real stores. Nothing in here waits for time to pass.
#![allow(clippy::disallowed_methods, reason = "tests")]

#[path = "checkpoint/world.rs"]
mod world;

#[path = "checkpoint/damage.rs"]
mod damage;
#[path = "checkpoint/keyed.rs"]
mod keyed;
#[path = "checkpoint/process.rs"]
mod process;
#[path = "checkpoint/publish.rs"]
mod publish;
#[path = "checkpoint/retention.rs"]
mod retention;
#[path = "checkpoint/runtime.rs"]
mod runtime;
#[path = "checkpoint/simulation.rs"]
mod simulation;
#[path = "checkpoint/suite.rs"]
mod suite;
#[path = "checkpoint/term.rs"]
mod term;
#[path = "../examples/windowed_totals/totals.rs"]
mod totals;
