#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.
