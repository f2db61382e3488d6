//! The promises of the HTTP wire, kept over real sockets: a server in this process, query streams over a scripted source.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]
#![allow(clippy::disallowed_methods, reason = "tests measure their own patience on the system's clock")]

mod http {
    pub(crate) mod auth;
    pub(crate) mod bad_input;
    pub(crate) mod change;
    pub(crate) mod client;
    pub(crate) mod connection;
    pub(crate) mod durable;
    pub(crate) mod group;
    pub(crate) mod ingest;
    pub(crate) mod object;
    pub(crate) mod object_batch;
    pub(crate) mod object_limit;
    pub(crate) mod operation;
    pub(crate) mod record;
    pub(crate) mod source;
    pub(crate) mod stream;
    pub(crate) mod tail;
    pub(crate) mod tls;
    pub(crate) mod unread;
    pub(crate) mod world;
}
