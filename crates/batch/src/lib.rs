#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.

pub mod blob;
pub mod error;
pub mod executor;
mod key;
pub mod object;
pub mod operation;
pub mod policy;
pub mod service;
mod stored;
pub mod tier;
pub mod window;

pub use error::{GetError, PreconditionFailed, PutError, StoreError, UploadError};
pub use executor::{AtCapacity, Batch, Executor, ItemError, Limits, Operate, Reservation, Unweighed, Work};
pub use object::{Collection, Expiry, Metadata, ObjectInfo, ObjectKey, Scopes, Tier, Version};
pub use operation::{Operation, OperationKind};
pub use service::{ObjectParts, ObjectService, ObjectSpec};
pub use stored::BLOCK_BYTES;
pub use tier::{Condition, Versions};
