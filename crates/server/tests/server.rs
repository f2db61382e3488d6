//! Black-box tests: the real binary, over real sockets, with real signals.
#![allow(clippy::disallowed_methods, reason = "tests measure their own patience on the system's clock")]
#![allow(clippy::unwrap_used, reason = "a test that finds no answer fails")]

#[path = "server/bad_request.rs"]
mod bad_request;
#[path = "server/bad_resume.rs"]
mod bad_resume;
#[path = "server/bad_source.rs"]
mod bad_source;
#[path = "server/bound.rs"]
mod bound;
#[path = "server/capacity.rs"]
mod capacity;
#[path = "server/checkpoint.rs"]
mod checkpoint;
#[path = "server/command.rs"]
mod command;
#[path = "server/connection.rs"]
mod connection;
#[path = "server/database.rs"]
mod database;
#[path = "server/drain.rs"]
mod drain;
#[path = "server/durable_streams.rs"]
mod durable_streams;
#[path = "server/follow.rs"]
mod follow;
#[path = "server/group.rs"]
mod group;
#[path = "server/http.rs"]
mod http;
#[path = "server/identity.rs"]
mod identity;
#[path = "server/object.rs"]
mod object;
#[path = "server/object_cli.rs"]
mod object_cli;
#[path = "server/object_limit.rs"]
mod object_limit;
#[path = "server/object_s3.rs"]
mod object_s3;
#[path = "server/operation.rs"]
mod operation;
#[path = "server/process.rs"]
mod process;
#[path = "server/publish.rs"]
mod publish;
#[path = "server/reader.rs"]
mod reader;
#[path = "server/resume.rs"]
mod resume;
#[path = "server/source.rs"]
mod source;
#[path = "server/stream.rs"]
mod stream;
#[path = "server/weed.rs"]
mod weed;
