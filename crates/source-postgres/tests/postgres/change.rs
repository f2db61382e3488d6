//! Changes out of a real server: neither lost nor repeated, whatever is cut. Statements that a test waits for
//! must not hold up the tasks of a connection: every test has threads.

#[path = "change/kind.rs"]
mod kind;
#[path = "change/patience.rs"]
mod patience;
#[path = "change/refusal.rs"]
mod refusal;
#[path = "change/resume.rs"]
mod resume;
#[path = "change/secure.rs"]
mod secure;
#[path = "change/stream.rs"]
mod stream;
#[path = "change/world.rs"]
mod world;
