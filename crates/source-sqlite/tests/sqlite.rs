//! The source against real files: the port's suite, and what only SQLite has.
#![allow(clippy::unwrap_used, reason = "the functions that tests share are tests too")]

#[path = "sqlite/catalogue.rs"]
mod catalogue;
#[path = "sqlite/faults.rs"]
mod faults;
#[path = "sqlite/guard.rs"]
mod guard;
#[path = "sqlite/journal.rs"]
mod journal;
#[path = "sqlite/types.rs"]
mod types;
#[path = "sqlite/world.rs"]
mod world;

tidegate_testkit::query_source_suite!(world::SqliteWorld);
