//! What browsers want to see on every answer: who may use the routes from a page of elsewhere, and which headers it may see. Rights
//! come from the token alone, which no browser sends by itself, so every page may ask.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const ALLOW_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS");
const ALLOW_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, if-none-match, stream-seq, stream-ttl, stream-expires-at, stream-closed, \
     stream-forked-from, stream-fork-offset, stream-fork-sub-offset, producer-id, producer-epoch, producer-seq, \
     x-request-id",
);
const EXPOSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "stream-next-offset, stream-up-to-date, stream-closed, stream-cursor, stream-ttl, stream-expires-at, \
     stream-sse-data-encoding, producer-epoch, producer-seq, producer-expected-seq, producer-received-seq, etag, \
     location, retry-after, x-request-id",
);
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");

/// What the answer to a request has to say to a browser.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Browser {
    preflight: bool,
    /// It comes from a page, or a cache may hand the answer to one.
    shared: bool,
}

impl Browser {
    pub(crate) fn of(method: &Method, headers: &HeaderMap) -> Self {
        let shared = *method == Method::GET || headers.contains_key(header::ORIGIN);
        Self { preflight: *method == Method::OPTIONS, shared }
    }

    pub(crate) fn tell(self, headers: &mut HeaderMap) {
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
        if self.shared {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSE_HEADERS);
        }
        if self.preflight {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, ALLOW_METHODS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOW_HEADERS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        }
    }
}
