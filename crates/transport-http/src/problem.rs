//! Problem documents (RFC 9457): the one form in which an error leaves this transport. It never puts an error's causes
//! into an answer: those are for the log.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value};
use tidegate_core::{ErrorKind, Failure, Retry};

/// The media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error on its way to the client.
///
/// ```
/// use tidegate_transport_http::problem::Problem;
///
/// let problem = Problem::new(http::StatusCode::NOT_FOUND, "not_found", "there is no route /v2").with("path", "/v2");
/// let document: serde_json::Value = serde_json::from_slice(&problem.document()).unwrap();
/// assert_eq!(document["code"], "not_found");
/// assert_eq!(document["status"], 404);
/// assert_eq!(document["retry"], "never");
/// assert_eq!(document["path"], "/v2");
/// ```
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry: Retry,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
    closes: bool,
}

/// The members that every document has: an extension never takes their place.
const RESERVED: [&str; 7] = ["type", "title", "status", "code", "detail", "retry", "retry_after_ms"];

impl Problem {
    /// A problem of this transport's own making, not worth a second try.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            retry: Retry::Never,
            members: Map::new(),
            headers: Vec::new(),
            closes: false,
        }
    }

    /// The problem that a domain's failure is.
    #[must_use]
    pub fn of<F: Failure + ?Sized>(failure: &F) -> Self {
        let mut problem = Self::new(status_of(failure.kind()), failure.code(), failure.to_string());
        problem.retry = failure.retry();
        problem
    }

    /// The same with another status, where HTTP has a better one than the kind's.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// The same with another advice on trying again.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The same with an extension member. The standard members keep their meaning: a name of theirs is ignored.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        debug_assert!(!RESERVED.contains(&name), "{name} is a standard member");
        if !RESERVED.contains(&name) {
            self.members.insert(name.to_owned(), value.into());
        }
        self
    }

    /// The same with a header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The same, and the connection is of no use afterwards (HTTP/1: `Connection: close`).
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// Its stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Its HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What happened, in words.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether to try again: `never`, `now` or `after`.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self.retry {
            Retry::Never => "never",
            Retry::Now => "now",
            Retry::After(_) => "after",
        }
    }

    /// Its extension members.
    #[must_use]
    pub fn members(&self) -> &Map<String, Value> {
        &self.members
    }

    /// The document's bytes.
    #[must_use]
    pub fn document(&self) -> Vec<u8> {
        let mut document = Map::new();
        document.insert("type".into(), format!("urn:tidegate:problem:{}", self.code).into());
        document.insert("title".into(), title_of(self.code).into());
        document.insert("status".into(), self.status.as_u16().into());
        document.insert("code".into(), self.code.into());
        document.insert("detail".into(), self.detail.clone().into());
        document.insert("retry".into(), self.advice().into());
        if let Retry::After(wait) = self.retry {
            document.insert("retry_after_ms".into(), u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).into());
        }
        for (name, value) in &self.members {
            document.insert(name.clone(), value.clone());
        }
        let mut bytes = serde_json::to_vec(&Value::Object(document)).expect("a JSON value is serialisable");
        bytes.push(b'\n');
        bytes
    }
}

/// Marks an answer after which an HTTP/1 connection must be closed. Taken off before the answer is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CloseAfter;

/// The code of the problem in an answer, for the log and the metrics. Taken off before the answer is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProblemCode(pub(crate) &'static str);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.document()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Retry::After(wait) = self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        if self.closes {
            response.extensions_mut().insert(CloseAfter);
        }
        response.extensions_mut().insert(ProblemCode(self.code));
        response
    }
}

/// `Retry-After` has whole seconds: rounded up, so that nobody comes back too early, and at least one.
fn whole_seconds(wait: Duration) -> u64 {
    let whole = wait.as_secs();
    if wait.subsec_nanos() == 0 { whole.max(1) } else { whole.saturating_add(1) }
}

/// The HTTP status of a kind of failure.
#[must_use]
pub fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Gone => StatusCode::GONE,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::OutOfRange => StatusCode::RANGE_NOT_SATISFIABLE,
        ErrorKind::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// RFC 9457 wants one title a type: the code in words.
fn title_of(code: &str) -> String {
    let mut title = code.replace('_', " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_never_told_to_come_back_too_early() {
        for (ms, seconds) in [(0, 1), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (59_500, 60)] {
            assert_eq!(whole_seconds(Duration::from_millis(ms)), seconds, "{ms} ms");
        }
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn retry_after_stands_in_the_document_and_in_the_header() {
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "stream_capacity_exhausted", "full")
            .with_retry(Retry::After(Duration::from_millis(1_500)))
            .with("limit", 256);
        let document: Value = serde_json::from_slice(&problem.document()).unwrap();
        assert_eq!(document["retry"], "after");
        assert_eq!(document["retry_after_ms"], 1_500);
        assert_eq!(document["limit"], 256);
        assert_eq!(document["title"], "Stream capacity exhausted");
        assert_eq!(document["type"], "urn:tidegate:problem:stream_capacity_exhausted");
        let response = problem.into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
    }
}
