//! Changes out of a real server: neither lost nor repeated, whatever is cut.

#[path = "change/resume.rs"]
mod resume;
#[path = "change/stream.rs"]
mod stream;
#[path = "change/world.rs"]
mod world;
