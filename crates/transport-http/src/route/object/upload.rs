//! Large objects in parts: begun, sent part by part in any order, completed in one step or given up. Who sends parts needs the right to
//! write and the id, which proves itself.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::request::Parts as Head;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tidegate_batch::service::{NamedPart, PartWritten, UploadToken};
use tidegate_batch::{Collection, ObjectKey, UploadError};

use super::answer::written;
use super::body::incoming;
use super::condition::{Conditions, entity_tag, version};
use super::metadata::{OURS, REPR_DIGEST, digest, metadata};
use super::problem::{nonsense, upload_problem};
use crate::body::read_whole;
use crate::gate::{App, check_coding_of, json_problem};
use crate::json::{Object, unsigned};
use crate::parameter::digits;
use crate::problem::Problem;
use crate::route::json as json_answer;

/// Begins an upload. What the headers say of the object is kept for when it is complete.
pub(super) async fn begin(
    app: &App,
    head: &Head,
    body: Body,
    collection: &Collection,
    key: &ObjectKey,
) -> Result<Response, Problem> {
    let metadata = metadata(&head.headers)?;
    let settings = app.services.streams.settings().freeze();
    let body = read_whole(body, &settings, app.services.clock.as_ref()).await?;
    if !body.is_empty() {
        return Err(nonsense(
            "uploads",
            "an upload begins without a body; parts are PUT with ?upload=<id>&part=<number>",
        ));
    }
    let begun = app.services.objects.begin_upload(collection, key, metadata).await;
    let token = begun.map_err(upload_problem)?;
    let mut response = json_answer(&json!({"upload": token.to_string(), "key": key.as_str()}));
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

pub(super) async fn put_part(
    app: &App,
    head: &Head,
    body: Body,
    collection: &Collection,
    key: &ObjectKey,
    upload: &str,
    part: &str,
) -> Result<Response, Problem> {
    let token = token(upload)?;
    let number = digits(part).ok_or_else(|| nonsense("part", "must be a number from 1"))?;
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    of_the_object(&head.headers)?;
    let digest = digest(&head.headers)?;
    let body = incoming(app, collection, body)?;
    let put = app.services.objects.put_part(collection, key, token, number, digest, body).await;
    let part = put.map_err(upload_problem)?;
    let mut response = json_answer(&shown(&part));
    let tag = HeaderValue::try_from(tag(&part)).expect("hexadecimal digits are a header value");
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// What is said of the whole object with one of its parts would be lost: it is refused instead.
fn of_the_object(headers: &HeaderMap) -> Result<(), Problem> {
    let conditions = [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_UNMODIFIED_SINCE, header::CONTENT_ENCODING];
    let said = |name: &HeaderName| conditions.contains(name) || *name == REPR_DIGEST || name.as_str().starts_with(OURS);
    headers.keys().find(|name| said(name)).map_or(Ok(()), |name| Err(elsewhere(name)))
}

fn elsewhere(name: &HeaderName) -> Problem {
    let detail = format!("{name}: belongs to the object; metadata go with ?uploads, conditions with the completion");
    Problem::new(StatusCode::BAD_REQUEST, "invalid_field", detail).with("field", name.as_str())
}

pub(super) async fn parts(
    app: &App,
    collection: &Collection,
    key: &ObjectKey,
    upload: &str,
) -> Result<Response, Problem> {
    let parts = app.services.objects.parts(collection, key, token(upload)?).await.map_err(upload_problem)?;
    Ok(json_answer(&json!({"upload": upload, "parts": parts.iter().map(shown).collect::<Vec<Value>>()})))
}

pub(super) async fn complete(
    app: &App,
    head: &Head,
    body: Body,
    collection: &Collection,
    key: &ObjectKey,
    upload: &str,
) -> Result<Response, Problem> {
    let token = token(upload)?;
    check_coding_of(&head.headers)?;
    // The object's metadata came when the upload was begun: more of it would be lost.
    if let Some(name) = head.headers.keys().find(|name| **name == REPR_DIGEST || name.as_str().starts_with(OURS)) {
        return Err(elsewhere(name));
    }
    let settings = app.services.streams.settings().freeze();
    let body = read_whole(body, &settings, app.services.clock.as_ref()).await?;
    let named = if body.is_empty() { None } else { Some(named(&body)?) };
    let objects = &app.services.objects;
    let condition = match Conditions::read(&head.headers)?.pinned(objects, collection, key).await {
        Ok(condition) => condition,
        // Who lost the answer asks again with the same conditions, and finds the object that it made itself.
        Err(refused) => {
            let before = objects.completed_upload(collection, key, token).await.map_err(upload_problem)?;
            return before.map(|before| written(&before)).ok_or(refused);
        }
    };
    let completed = objects.complete_upload(collection, key, token, named.as_deref(), &condition).await;
    Ok(written(&completed.map_err(upload_problem)?))
}

pub(super) async fn abort(
    app: &App,
    collection: &Collection,
    key: &ObjectKey,
    upload: &str,
) -> Result<Response, Problem> {
    app.services.objects.abort_upload(collection, key, token(upload)?).await.map_err(upload_problem)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A text that is no id is an id that is not known: which of both, is not told.
fn token(text: &str) -> Result<UploadToken, Problem> {
    UploadToken::parse(text).ok_or_else(|| upload_problem(UploadError::Unknown))
}

fn tag(part: &PartWritten) -> String {
    format!("\"{}\"", part.version)
}

fn shown(part: &PartWritten) -> Value {
    json!({"part": part.number, "etag": tag(part), "length": part.length})
}

/// Reads `{"parts":[{"part":1,"etag":"..."}]}`.
fn named(body: &[u8]) -> Result<Vec<NamedPart>, Problem> {
    let refuse = |error| json_problem(&error);
    let object = Object::parse(body, &["parts"]).map_err(refuse)?;
    let parts = object.required("parts").map_err(refuse)?;
    let mut named = Vec::new();
    for (at, raw) in object.items_of(parts, "parts").map_err(refuse)?.into_iter().enumerate() {
        let path = format!("parts[{at}]");
        let part = object.child(raw, &path, &["part", "etag"]).map_err(refuse)?;
        let number = part.required("part").and_then(|raw| unsigned(raw, &format!("{path}.part"))).map_err(refuse)?;
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let wanted = match part.given("etag") {
            None => None,
            Some(raw) => {
                let path = format!("{path}.etag");
                let text = part.text_of(raw, &path).map_err(refuse)?;
                let tag = entity_tag(&text).filter(|(tag, rest)| !tag.weak && rest.is_empty());
                let found = version(tag.map_or(text.as_str(), |(tag, _)| tag.opaque));
                Some(found.ok_or_else(|| nonsense(&path, "must be a part's etag, as it was answered"))?)
            }
        };
        named.push(NamedPart { number, version: wanted });
    }
    Ok(named)
}
