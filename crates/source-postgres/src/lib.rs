#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.
#![allow(clippy::disallowed_methods, reason = "floor 4: connections live in real time")]

mod array;
mod catalogue;
mod change;
mod config;
mod describe;
mod error;
mod guard;
mod lookup;
mod parameter;
mod session;
mod shape;
mod snapshot;
mod socket;
mod source;
mod stream;
mod tls;
mod value;

pub use change::{ChangeConfig, PostgresChanges};
pub use config::{ConfigError, LIMITS, PostgresConfig};
pub use source::PostgresSource;
