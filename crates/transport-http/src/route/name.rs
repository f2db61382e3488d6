//! Names in paths. The router has percent-decoded them, so a `/` within one came as `%2F`.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use http::StatusCode;
use percent_encoding::percent_decode_str;
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

/// Refuses a path that is not percent-encoded text. The router takes a `%` without two digits as it stands, so that two paths
/// that mean different things would name one.
pub(crate) fn check_path(path: &str) -> Result<(), Problem> {
    if is_encoded_text(path) { Ok(()) } else { Err(not_text()) }
}

/// Whether each `%` begins an escape, and what all of them stand for is UTF-8.
pub(super) fn is_encoded_text(text: &str) -> bool {
    let mut escapes = text.split('%').skip(1).peekable();
    if escapes.peek().is_none() {
        return true;
    }
    let whole = |rest: &str| {
        let digits = rest.as_bytes().first_chunk::<2>();
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    escapes.all(whole) && percent_decode_str(text).decode_utf8().is_ok()
}

pub(super) fn not_text() -> Problem {
    invalid_name("a name in the path is not percent-encoded UTF-8".to_owned())
}

fn invalid_name(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_name", detail).with("max_bytes", Name::MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_text_only_if_every_escape_is_whole_and_utf_8() {
        for text in ["", "/v1/streams", "/a%2Fb", "%25zz", "%E2%82%ac", "%00", "€"] {
            assert!(is_encoded_text(text), "{text}");
        }
        for broken in ["%", "%2", "a%", "%zz", "%+1", "%%41", "%ff", "%E2%82", "%E2/%82%AC", "%2€"] {
            assert!(!is_encoded_text(broken), "{broken}");
        }
    }
}
