#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.
#![allow(
    clippy::disallowed_methods,
    reason = "floor 4: the writer's and the timer's threads wait and measure by themselves"
)]

mod catalog;
mod chunk;
mod command;
mod compact;
mod config;
mod directory;
mod engine;
mod error;
mod group;
mod journal;
mod key;
mod log;
mod maintain;
mod meta;
mod meta_cache;
mod metric;
mod shared;
mod state;
mod store;
mod writer;

pub use config::{EmbeddedConfig, LIMITS, SpaceProbe, WriteHook, WriteStep};
pub use error::{Absent, Malformed, OpenError};
pub use maintain::Maintained;
pub use shared::Health;
pub use store::EmbeddedStore;
