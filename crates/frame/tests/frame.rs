//! The promises of this crate's README, each against its public API.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

#[path = "frame/chunks.rs"]
mod chunks;
#[path = "frame/documents.rs"]
mod documents;
#[path = "frame/envelopes.rs"]
mod envelopes;
#[path = "frame/prefixes.rs"]
mod prefixes;
#[path = "frame/rows.rs"]
mod rows;
