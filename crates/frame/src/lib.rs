#![doc = include_str!("../README.md")]

pub mod chunk;
pub mod envelope;
pub mod ndjson;
pub mod prefix;
