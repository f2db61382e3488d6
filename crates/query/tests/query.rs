//! The promises of query streams, kept over a scripted source, on a clock that moves only when it is told to.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod query {
    pub(crate) mod bounds;
    pub(crate) mod ending;
    pub(crate) mod faults;
    pub(crate) mod resume;
    pub(crate) mod world;
}
