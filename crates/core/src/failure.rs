//! What went wrong, in a form that every transport can map. It never decides how a failure looks on a wire.

use std::time::Duration;

/// What a failure says about the request, independent of any transport.
///
/// Deliberately exhaustive: a transport maps every kind without a `_` arm, so that a new kind cannot be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is malformed or asks for what can never be done (HTTP 400).
    Invalid,
    /// The caller is not known (HTTP 401).
    Unauthenticated,
    /// The caller is known and may not (HTTP 403).
    Forbidden,
    /// There is no such thing, or the caller may not know of it (HTTP 404).
    NotFound,
    /// The request contradicts the present state (HTTP 409).
    Conflict,
    /// The thing was here and is gone for good (HTTP 410).
    Gone,
    /// The request is larger than a bound (HTTP 413).
    TooLarge,
    /// A position is outside the range that exists (HTTP 416).
    OutOfRange,
    /// The request is well-formed and breaks a rule of the domain (HTTP 422).
    Unprocessable,
    /// A capacity is used up for now (HTTP 429).
    Exhausted,
    /// The server is at fault (HTTP 500).
    Internal,
    /// What the server depends on does not answer, or the server is going away (HTTP 503).
    Unavailable,
    /// It took too long (HTTP 504; 408 where the client was slow).
    Timeout,
}

/// Whether the same request can succeed if it is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Never: the request must change first.
    Never,
    /// At once: the failure was a lost race.
    Now,
    /// After about this long.
    After(Duration),
}

/// A typed error that every transport can report in the same words.
pub trait Failure: std::error::Error {
    /// The stable code, snake_case, the same on every transport and in every release.
    fn code(&self) -> &'static str;
    /// What the failure says about the request.
    fn kind(&self) -> ErrorKind;
    /// Whether to try again. By default it follows from the kind.
    fn retry(&self) -> Retry {
        match self.kind() {
            ErrorKind::Exhausted => Retry::After(Duration::from_secs(1)),
            ErrorKind::Unavailable | ErrorKind::Timeout => Retry::After(Duration::from_millis(500)),
            ErrorKind::Invalid
            | ErrorKind::Unauthenticated
            | ErrorKind::Forbidden
            | ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::Gone
            | ErrorKind::TooLarge
            | ErrorKind::OutOfRange
            | ErrorKind::Unprocessable
            | ErrorKind::Internal => Retry::Never,
        }
    }
}
