#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.
#![allow(clippy::disallowed_methods, reason = "tests measure their own patience on the system's clock")]

pub mod audit;
pub mod cell;
pub mod clock;
pub mod entropy;
pub mod fault_proxy;
pub mod faulty_blobs;
pub mod faulty_store;
pub mod memory_store;
pub mod postgres;
pub mod query_source_suite;
pub mod scripted;
pub mod scripted_changes;
pub mod sink;
pub mod store_suite;
pub mod wait;

pub use audit::{FailingAudit, MemoryAudit};
pub use cell::{OwnedCell, OwnedRow};
pub use clock::ManualClock;
pub use entropy::{NoEntropy, SeededEntropy};
pub use fault_proxy::FaultProxy;
pub use faulty_blobs::{BlobCall, BlobPlan, FaultyBlobs};
pub use faulty_store::{Call, Fault, FaultPlan, FaultyStore};
pub use memory_store::MemoryStore;
pub use postgres::PostgresServer;
pub use query_source_suite::QuerySourceWorld;
pub use scripted::{Gate, Script, ScriptedSource};
pub use scripted_changes::{ScriptedChanges, scripted_change};
pub use sink::{CollectHandle, CollectSink, collect_sink};
pub use store_suite::StoreWorld;
pub use wait::{block_on, block_on_threads, within};
