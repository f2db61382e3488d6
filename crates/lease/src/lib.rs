#![doc = include_str!("../README.md")]

pub mod audit;
pub mod capacity;
pub mod cursor;
pub mod frozen;
pub mod machine;
mod sync;
