#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.

mod error;
mod feed;
mod leased;
mod pipe;
mod reader;
mod request;
mod service;
mod statement;
mod stream;
mod tape;

pub use error::{CancelError, Draining, LeasesExhausted, OpenError, ResumeError, SourceNotReady};
pub use request::{LeaseInfo, OpenRequest, ResumeRequest};
pub use service::{QueryParts, QueryService};
pub use statement::NotResumable;
pub use stream::{Frame, QueryStream};
