//! Writes a multipart body. The boundary is drawn at random, so that no part holds it but by a chance of one in 2^128, and is made of
//! letters and digits alone, so that it never needs quotes.

use std::fmt::Write as _;

use bytes::{BufMut as _, BytesMut};
use http::HeaderValue;
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

    /// The delimiter before a part. Its [fields](Self::field) follow, then [`end_head`](Self::end_head).
    pub(crate) fn begin_part(&self, out: &mut BytesMut) {
        out.put_slice(b"--");
        out.put_slice(self.boundary.as_bytes());
        out.put_slice(b"\r\n");
    }

    /// A field of the head. One whose value cannot stand in a head is left out, so that no value begins another field.
    pub(crate) fn field(&self, out: &mut BytesMut, name: &str, value: &[u8]) {
        if !value.iter().all(|byte| (*byte >= b' ' && *byte != 0x7f) || *byte == b'\t') {
            return;
        }
        out.put_slice(name.as_bytes());
        out.put_slice(b": ");
        out.put_slice(value);
        out.put_slice(b"\r\n");
    }

    /// What follows the fields. The part's bytes come next, then [`end_part`](Self::end_part).
    pub(crate) fn end_head(&self, out: &mut BytesMut) {
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
