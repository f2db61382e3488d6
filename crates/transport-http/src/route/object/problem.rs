//! What goes wrong with an object, as problem documents. It adds what a client needs to go on: bounds, the version that is there.

use http::{HeaderValue, StatusCode, header};
use tidegate_batch::error::{GetError, PreconditionFailed, PutError, StoreError, UploadError};

use crate::body::BodyError;
use crate::problem::Problem;

pub(super) fn store_problem(error: &StoreError) -> Problem {
    if matches!(error, StoreError::Corrupt { .. }) {
        tracing::error!(%error, "an object is damaged");
    }
    Problem::of(error)
}

pub(super) fn put_problem(error: PutError) -> Problem {
    let problem = Problem::of(&error);
    match error {
        PutError::Precondition(failed) => precondition_problem(failed),
        PutError::Metadata { limit_bytes, .. } => problem.with("max_bytes", limit_bytes),
        PutError::TooLarge { limit_bytes } => problem.with("max_bytes", limit_bytes),
        PutError::Body(cause) => cause.downcast_ref::<BodyError>().map_or(problem, |error| (*error).into()),
        PutError::Store(error) => store_problem(&error),
        _ => problem,
    }
}

pub(super) fn get_problem(error: GetError) -> Problem {
    let problem = Problem::of(&error);
    match error {
        GetError::Range { length } => {
            let value = HeaderValue::try_from(format!("bytes */{length}")).expect("digits are a header value");
            problem.with("length", length).with_header(header::CONTENT_RANGE, value)
        }
        GetError::Precondition(failed) => precondition_problem(failed),
        GetError::Store(error) => store_problem(&error),
        _ => problem,
    }
}

pub(super) fn upload_problem(error: UploadError) -> Problem {
    let problem = Problem::of(&error);
    match error {
        UploadError::Number { number, limit } => problem.with("part", number).with("max", limit),
        UploadError::Missing { number } | UploadError::Order { number } | UploadError::Replaced { number } => {
            problem.with("part", number)
        }
        UploadError::TooMany { limit } => problem.with("limit", limit),
        UploadError::Put(error) => put_problem(error),
        _ => problem,
    }
}

pub(super) fn precondition_problem(failed: PreconditionFailed) -> Problem {
    let problem = Problem::of(&PutError::from(failed)).with_status(StatusCode::PRECONDITION_FAILED);
    match failed.current {
        None => problem,
        Some(version) => {
            let tag = HeaderValue::try_from(format!("\"{version}\"")).expect("hexadecimal digits are a header value");
            problem.with_header(header::ETAG, tag)
        }
    }
}

/// Parameters that do not go together.
pub(super) fn nonsense(field: &str, detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_field", format!("{field}: {detail}")).with("field", field)
}
