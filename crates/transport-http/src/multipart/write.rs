//! Writes a multipart body. The boundary is drawn at random, so that no part holds it but by a chance of one in 2^128, and is made of
//! letters and digits alone, so that it never needs quotes.

use std::fmt::Write as _;

use bytes::{BufMut as _, BytesMut};
use http::{HeaderMap, HeaderValue};
use tidegate_core::port::{Entropy, EntropyUnavailable};

/// Writes the heads of parts and what stands between them.
pub(crate) struct Writer {
    boundary: String,
}

impl Writer {
    pub(crate) fn new(entropy: &dyn Entropy) -> Result<Self, EntropyUnavailable> {
        let mut random = [0; 16];
        entropy.fill(&mut random)?;
        let mut boundary = String::from("tidegate");
        for byte in random {
            let _ = write!(boundary, "{byte:02x}");
        }
        Ok(Self { boundary })
    }

    /// The body's media type.
    pub(crate) fn content_type(&self) -> HeaderValue {
        let text = format!("multipart/mixed; boundary={}", self.boundary);
        HeaderValue::try_from(text).expect("letters and digits are a header value")
    }

    /// The delimiter before a part, and its head. The part's bytes follow, then [`end_part`](Self::end_part).
    pub(crate) fn begin_part(&self, out: &mut BytesMut, head: &HeaderMap) {
        out.put_slice(b"--");
        out.put_slice(self.boundary.as_bytes());
        out.put_slice(b"\r\n");
        for (name, value) in head {
            out.put_slice(name.as_str().as_bytes());
            out.put_slice(b": ");
            out.put_slice(value.as_bytes());
            out.put_slice(b"\r\n");
        }
        out.put_slice(b"\r\n");
    }

    /// What follows a part's bytes.
    pub(crate) fn end_part(&self, out: &mut BytesMut) {
        out.put_slice(b"\r\n");
    }

    /// The last delimiter.
    pub(crate) fn end(&self, out: &mut BytesMut) {
        out.put_slice(b"--");
        out.put_slice(self.boundary.as_bytes());
        out.put_slice(b"--\r\n");
    }
}
