#![doc = include_str!("../README.md")]
#![allow(clippy::disallowed_methods, reason = "the composition root reads the real clock")]

pub mod config;
