#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.

pub mod chunk;
pub mod envelope;
pub mod ndjson;
pub mod prefix;
