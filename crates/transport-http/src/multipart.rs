//! Multipart bodies (RFC 2046, section 5.1), read as they arrive and written as they come to be. It knows no part's meaning, and keeps
//! no more than one head and the beginning of what may be a delimiter.
//!
//! Reading is our own because each part must be able to fail alone and memory must be bounded: of the crates that read such bodies as
//! they come, multer 3.1 takes in all that the connection has before it looks at it, bounds no head, ends with the first head that is
//! not well-formed, and takes a part without a head for a part of the next.

mod read;
mod write;

pub(crate) use read::{
    BoundaryError, Event, HEAD_MAX_BYTES, HEAD_MAX_COUNT, HeadError, NotMultipart, PartHead, Reader, boundary_of,
};
pub(crate) use write::Writer;

#[cfg(test)]
mod tests;
