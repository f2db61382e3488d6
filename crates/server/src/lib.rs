#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.
#![allow(clippy::disallowed_methods, reason = "the composition root reads the real clock")]

pub mod audit;
pub mod cli;
pub mod client;
pub mod config;
pub mod demo;
pub mod output;
pub mod serve;
