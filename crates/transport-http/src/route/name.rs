//! Names in paths. The router has percent-decoded them, so a `/` within one came as `%2F`.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use http::StatusCode;
use tidegate_core::id::Name;

use crate::problem::Problem;

/// The parts of a path that a handler asks for.
pub(super) type Parts<T> = Result<Path<T>, PathRejection>;

/// The one name in a path.
pub(super) fn name(path: Parts<String>) -> Result<Name, Problem> {
    named(path.map_err(|_| not_text())?.0)
}

/// The two names in a path.
pub(super) fn two_names(path: Parts<(String, String)>) -> Result<(Name, Name), Problem> {
    let (first, second) = path.map_err(|_| not_text())?.0;
    Ok((named(first)?, named(second)?))
}

/// A name from a path or a query string.
pub(super) fn named(text: String) -> Result<Name, Problem> {
    Name::new(text).map_err(|error| invalid_name(error.to_string()))
}

pub(super) fn not_text() -> Problem {
    invalid_name("a name in the path is not percent-encoded UTF-8".to_owned())
}

fn invalid_name(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_name", detail).with("max_bytes", Name::MAX_BYTES)
}
