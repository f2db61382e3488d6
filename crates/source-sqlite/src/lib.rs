#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.

mod catalogue;
mod config;
mod describe;
mod error;
mod rows;
mod session;
mod snapshot;
mod source;
mod statement;
mod stop;

pub use config::{JournalMode, LIMITS, SqliteConfig};
pub use source::SqliteSource;
