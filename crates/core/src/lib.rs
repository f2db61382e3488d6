#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.

pub mod failure;
pub mod id;
pub mod limit;
pub mod port;
pub mod position;
pub mod principal;
pub mod record;
#[cfg(feature = "system")]
pub mod system;
pub mod time;

pub use failure::{ErrorKind, Failure, Retry};
pub use principal::{Principal, Scope, ScopeSet};
pub use time::{Clock, Moment, Timestamp};
