//! Objects and batches, from outside.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]
#![allow(clippy::disallowed_methods, reason = "tests wait on tokio's paused time")]

#[path = "batch/bound.rs"]
mod bound;
#[path = "batch/late.rs"]
mod late;
#[path = "batch/object.rs"]
mod object;
#[path = "batch/simulation.rs"]
mod simulation;
#[path = "batch/upload.rs"]
mod upload;
#[path = "batch/world.rs"]
mod world;

mod batch {
    pub(crate) mod executor;
}
