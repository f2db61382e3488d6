//! Query-result streams over HTTP: open, resume, cancel, list. The stream's time-outs, its slot and its audit are the query
//! service's; here a request becomes its call and a frame becomes bytes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;
use serde_json::value::RawValue;
use tidegate_core::Principal;
use tidegate_core::id::CursorToken;
use tidegate_core::port::{Parameter, SourceError};
use tidegate_frame::ndjson::RowShape;
use tidegate_frame::prefix::PrefixHash;
use tidegate_query::{CancelError, OpenError, OpenRequest, QueryStream, ResumeError, ResumeRequest};

use super::change_problem::log_fault;
use super::json;
use super::record::NDJSON;
use crate::body::{StreamBody, read_whole};
use crate::encoding::ContentCoding;
use crate::gate::{App, json_problem};
use crate::json::{JsonError, Object, invalid};
use crate::problem::Problem;

pub(super) async fn open(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let settings = app.services.query.settings().freeze();
    let body = read_whole(body, &settings, app.services.clock.as_ref()).await?;
    let request = open_request(&body).map_err(|error| json_problem(&error))?;
    // The bytes that were read are not needed while the stream runs, which may be hours.
    drop(body);
    let stream = app.services.query.open(&principal, request).await.map_err(|error| open_problem(&error))?;
    respond(stream, &head.headers)
}

pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let settings = app.services.query.settings().freeze();
    let body = read_whole(body, &settings, app.services.clock.as_ref()).await?;
    let request = resume_request(&body)?;
    drop(body);
    let stream = app.services.query.resume(&principal, request).await.map_err(|error| resume_problem(&error))?;
    respond(stream, &head.headers)
}

pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    cursor: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    // What is no cursor at all is answered as one that does not exist.
    let not_found = || Problem::of(&CancelError::CursorNotFound);
    let Path(cursor) = cursor.map_err(|_| not_found())?;
    let cursor = CursorToken::parse(&cursor).map_err(|_| not_found())?;
    app.services.query.cancel(&principal, &cursor).await.map_err(|error| Problem::of(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn leases(State(app): State<Arc<App>>, Extension(principal): Extension<Principal>) -> Response {
    json(&json!({"leases": app.services.query.leases(&principal)}))
}

/// A stream as the answer. From here on errors are lines of the stream.
fn respond(stream: QueryStream, headers: &HeaderMap) -> Result<Response, Problem> {
    let coding = ContentCoding::negotiate(headers);
    let body = StreamBody::new(stream, coding).map_err(|error| {
        tracing::error!(%error, "no encoder");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the compressor could not be set up")
    })?;
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, NDJSON);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(super::X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    if let Some(coding) = coding.header() {
        headers.insert(header::CONTENT_ENCODING, coding);
    }
    Ok(response)
}

fn open_request(body: &[u8]) -> Result<OpenRequest, JsonError> {
    let object = Object::parse(body, &["source", "sql", "params", "rows"])?;
    let shape = match object.optional("rows") {
        None => RowShape::default(),
        Some(raw) => match object.text_of(raw, "rows")?.as_str() {
            "object" => RowShape::Object,
            "array" => RowShape::Array,
            _ => return Err(invalid("rows", r#""object" or "array""#, raw)),
        },
    };
    let parameters = match object.optional("params") {
        None => Vec::new(),
        Some(raw) => object
            .items_of(raw, "params")?
            .into_iter()
            .map(|item| parameter(&object, item))
            .collect::<Result<_, _>>()?,
    };
    Ok(OpenRequest { source: object.string("source")?, sql: object.string("sql")?, parameters, shape })
}

/// A parameter's value, without passing a number through a double: what is no `i64` keeps its text.
fn parameter<'a>(object: &Object<'a>, raw: &'a RawValue) -> Result<Parameter, JsonError> {
    let text = raw.get();
    Ok(match text.as_bytes().first() {
        Some(b'n') => Parameter::Null,
        Some(b't') => Parameter::Bool(true),
        Some(b'f') => Parameter::Bool(false),
        Some(b'"') => Parameter::Text(object.text_of(raw, "params")?.into()),
        Some(b'[' | b'{') => Parameter::Json(text.into()),
        _ => match text.parse() {
            // "-0" is no integer: its sign would be lost.
            Ok(integer) if text != "-0" => Parameter::Integer(integer),
            _ => Parameter::Number(text.into()),
        },
    })
}

fn resume_request(body: &[u8]) -> Result<ResumeRequest, Problem> {
    let object = Object::parse(body, &["cursor", "rows", "prefix_hash"]).map_err(resume_shape)?;
    let field = |field: &'static str, expected: &str, error: JsonError| match error {
        // The same words for what is no string and for a string of the wrong form.
        JsonError::InvalidField { found, .. } => {
            JsonError::InvalidField { path: field.into(), expected: expected.into(), found }
        }
        other => other,
    };
    let cursor_form = "the cursor of an open line, 48 hexadecimal digits";
    let hash_form = "the SHA-256 of the rows that are held, 64 hexadecimal digits";
    let cursor = object.string("cursor").map_err(|error| resume_shape(field("cursor", cursor_form, error)))?;
    let cursor = CursorToken::parse(&cursor).map_err(|_| resume_shape(wrong("cursor", cursor_form)))?;
    let rows = object.required("rows").and_then(|raw| crate::json::unsigned(raw, "rows")).map_err(resume_shape)?;
    let hash = object.string("prefix_hash").map_err(|error| resume_shape(field("prefix_hash", hash_form, error)))?;
    let prefix_hash = PrefixHash::parse(&hash).map_err(|_| resume_shape(wrong("prefix_hash", hash_form)))?;
    Ok(ResumeRequest { cursor, rows, prefix_hash })
}

fn wrong(field: &str, expected: &str) -> JsonError {
    JsonError::InvalidField { path: field.into(), expected: expected.into(), found: "another string" }
}

/// A resume whose fields are not what they must be has one code of its own: it must never be taken for "from row 0".
fn resume_shape(error: JsonError) -> Problem {
    match error {
        JsonError::Malformed { .. } | JsonError::UnknownField { .. } => json_problem(&error),
        JsonError::DuplicateField { .. } | JsonError::InvalidField { .. } | JsonError::MissingField { .. } => {
            let problem = Problem::new(StatusCode::BAD_REQUEST, "malformed_resume", error.to_string());
            match error {
                JsonError::DuplicateField { field } => problem.with("field", field.to_string()),
                JsonError::InvalidField { path, .. } => problem.with("field", path.to_string()),
                JsonError::MissingField { field } => problem.with("field", field),
                JsonError::Malformed { .. } | JsonError::UnknownField { .. } => problem,
            }
        }
    }
}

fn open_problem(error: &OpenError) -> Problem {
    let mut problem = with_bound(Problem::of(error), error.bound());
    log_fault(error);
    match error {
        OpenError::Draining(_) => problem = problem.closing(),
        OpenError::SqlTooLarge { limit_bytes, .. } => problem = problem.with("max_bytes", *limit_bytes),
        OpenError::TooManyParameters { limit, given } => {
            problem = problem.with("limit", *limit).with("current", *given);
        }
        OpenError::SourceTimeout { limit_ms } => problem = problem.with("timeout_ms", *limit_ms),
        OpenError::Source(source) => problem = with_source(problem, source),
        _ => {}
    }
    problem
}

fn resume_problem(error: &ResumeError) -> Problem {
    let problem = with_bound(Problem::of(error), error.bound());
    log_fault(error);
    match error {
        ResumeError::Draining(_) => problem.closing(),
        ResumeError::Source(source) => with_source(problem, source),
        _ => problem,
    }
}

fn with_bound(problem: Problem, bound: Option<(u64, u64)>) -> Problem {
    match bound {
        Some((limit, current)) => problem.with("limit", limit).with("current", current),
        None => problem,
    }
}

/// The database's own code and place, where it gave them: what a person needs to mend the statement.
fn with_source(problem: Problem, error: &SourceError) -> Problem {
    match error {
        SourceError::Syntax(refused) | SourceError::Statement(refused) | SourceError::ReadOnly(refused) => {
            let problem = problem.with("native_code", refused.native_code.to_string());
            match refused.position {
                Some(position) => problem.with("position", position),
                None => problem,
            }
        }
        _ => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(params: &str) -> Vec<Parameter> {
        let body = format!(r#"{{"source":"s","sql":"q","params":{params}}}"#);
        open_request(body.as_bytes()).unwrap().parameters
    }

    #[test]
    fn parameters_keep_every_digit() {
        assert_eq!(
            parameters(r#"[null, true, false, 9007199254740993, -9223372036854775808, "a\u00e4", [1, 2], {"a":1}]"#),
            [
                Parameter::Null,
                Parameter::Bool(true),
                Parameter::Bool(false),
                Parameter::Integer(9_007_199_254_740_993),
                Parameter::Integer(i64::MIN),
                Parameter::Text("aä".into()),
                Parameter::Json("[1, 2]".into()),
                Parameter::Json(r#"{"a":1}"#.into()),
            ]
        );
        for number in ["1.5", "1e3", "9223372036854775808", "-0", "0.1000000000000000055511151231257827"] {
            assert_eq!(parameters(&format!("[{number}]")), [Parameter::Number(number.into())]);
        }
    }

    #[test]
    fn a_resume_is_whole_or_refused() {
        let cursor = "ab".repeat(24);
        let hash = "cd".repeat(32);
        let good = format!(r#"{{"cursor":"{cursor}","rows":7,"prefix_hash":"{hash}"}}"#);
        assert_eq!(resume_request(good.as_bytes()).unwrap().rows, 7);
        for bad in [
            "{}".to_owned(),
            "[]".to_owned(),
            good.replace("7", "-7"),
            good.replace("7", "7.0"),
            good.replace("7", "\"7\""),
            good.replace("7", "null"),
            good.replace("7", "7,\"rows\":7"),
            good.replace(&cursor, "ab"),
            good.replace(&hash, "cd"),
            good.replace(&format!("\"{cursor}\""), "1"),
            good.replace("\"prefix_hash\"", "\"cursor\""),
        ] {
            assert_eq!(resume_request(bad.as_bytes()).unwrap_err().code(), "malformed_resume", "{bad}");
        }
        assert_eq!(resume_request(good.replace("rows", "row").as_bytes()).unwrap_err().code(), "unknown_field");
        assert_eq!(resume_request(&good.as_bytes()[1..]).unwrap_err().code(), "malformed_json");
    }
}
