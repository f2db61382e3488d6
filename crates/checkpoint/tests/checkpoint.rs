//! The promises of checkpoints, over real stores. Nothing in here waits for time to pass.
#![allow(clippy::disallowed_methods, reason = "real processes are waited for on the system's clock")]
#![allow(clippy::unwrap_used, reason = "what a test builds must be there, or the test fails")]

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
