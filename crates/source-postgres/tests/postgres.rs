//! The source against a real server: one server a test binary, one database a test. Skipped, by name, where PostgreSQL is
//! not installed. It never uses a server that it did not start.

#![allow(clippy::disallowed_methods, reason = "tests measure their own patience on the system's clock")]

#[path = "postgres/catalogue.rs"]
mod catalogue;
#[path = "postgres/change.rs"]
mod change;
#[path = "postgres/failure.rs"]
mod failure;
#[path = "postgres/pinned.rs"]
mod pinned;
#[path = "postgres/tls.rs"]
mod tls;
#[path = "postgres/values.rs"]
mod values;
#[path = "postgres/world.rs"]
mod world;

tidegate_testkit::query_source_suite!(world::PostgresWorld);
