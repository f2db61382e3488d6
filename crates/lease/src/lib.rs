#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.

pub mod audit;
pub mod capacity;
pub mod cursor;
pub mod frozen;
pub mod machine;
mod sync;
