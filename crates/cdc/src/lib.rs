#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.

pub mod durable;
pub mod error;
mod feed;
pub mod group;
mod handle;
mod key;
mod late;
mod merge;
pub mod partition;
pub mod producer;
mod reader;
pub mod record;
pub mod render;
mod service;
pub mod source;
mod spec;
mod stored;

pub use error::{CreateError, PublishError, ReadError, StoreError, StreamError};
pub use feed::{Segment, Selection};
pub use producer::ProducerStamp;
pub use reader::StreamReader;
pub use record::{DeliveryStamp, Item, NewRecord, RawForm, Record};
pub use service::{
    CreatedStream, LIMITS, LateRecord, PublishRequest, Published, ReadFrom, Readiness, StreamDescription, StreamParts,
    StreamService,
};
pub use spec::{LatePolicy, StreamSpec};
