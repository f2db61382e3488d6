//! Objects over HTTP: written and read as streams, with ranges, conditions and metadata; listed; uploaded in parts. It keeps no
//! object's bytes beyond the piece that is on its way.

mod admission;
mod answer;
mod batch;
mod body;
mod condition;
mod metadata;
mod place;
mod problem;
mod range;
mod upload;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts as Head;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tidegate_batch::error::GetError;
use tidegate_batch::policy::Access;
use tidegate_batch::service::{Get, Got, LIST_MAX, ListRequest, Put};
use tidegate_batch::{Collection, Condition, ObjectKey};
use tidegate_core::Principal;

use super::json as json_answer;
use crate::gate::App;
use crate::parameter::Parameters;
use crate::problem::Problem;
use admission::{Moves, in_collection, object, shaped};
use answer::{describe, not_modified, object_answer, shown, written};
use body::incoming;
use condition::Conditions;
use metadata::{digest, metadata};
use place::key_of;
use problem::{get_problem, nonsense, put_problem, store_problem};
use range::{IfRange, asked_range};

pub(super) use batch::batch;
pub(crate) use batch::{BATCH, BODY_MAX_BYTES, EXECUTOR, PART_MAX_COUNT};
pub(crate) use body::MIN_BYTES_A_SECOND;

/// A collection of objects.
pub(crate) const COLLECTION: &str = "/v1/objects/{usecase}/{scopes}";
/// An object.
pub(crate) const OBJECT: &str = "/v1/objects/{usecase}/{scopes}/{*key}";

type Asked = Option<Extension<Parameters>>;

fn parameters(asked: Asked) -> Parameters {
    asked.map(|Extension(parameters)| parameters).unwrap_or_default()
}

/// `POST` to a collection: an object under a key that the server makes.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let collection = in_collection(&app, &principal, &head.uri, Access::Write, Moves::with(&body))?;
    let key = app.services.objects.make_key().map_err(|error| store_problem(&error))?;
    let location = format!("{}/{key}", head.uri.path());
    let mut response = store(&app, &head, body, &collection, &key).await?;
    let location = HeaderValue::try_from(location).map_err(|_| place::not_named())?;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// `PUT`: an object, or a part of an upload.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    asked: Asked,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let (collection, key) = object(&app, &principal, &head.uri, Access::Write, Moves::with(&body))?;
    let asked = parameters(asked);
    match (asked.get("upload"), asked.get("part")) {
        (None, None) => store(&app, &head, body, &collection, &key).await,
        (Some(upload), Some(part)) => upload::put_part(&app, &head, body, &collection, &key, upload, part).await,
        (Some(_), None) => Err(nonsense("part", "a part of an upload needs both: upload=<id>&part=<number>")),
        (None, Some(_)) => Err(nonsense("upload", "a part of an upload needs both: upload=<id>&part=<number>")),
    }
}

/// `POST` to an object: begins an upload in parts, or completes one.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    asked: Asked,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let (collection, key) = object(&app, &principal, &head.uri, Access::Write, Moves::Nothing)?;
    let asked = parameters(asked);
    match (asked.get("uploads"), asked.get("upload")) {
        (Some(""), None) => upload::begin(&app, &head, body, &collection, &key).await,
        (None, Some(upload)) => upload::complete(&app, &head, body, &collection, &key, upload).await,
        (None, None) => {
            Err(nonsense("uploads", "POST to an object begins an upload (?uploads) or completes one (?upload=<id>)"))
        }
        (Some(_), None) => Err(nonsense("uploads", "uploads has no value")),
        (Some(_), Some(_)) => Err(nonsense("uploads", "uploads and upload exclude each other")),
    }
}

/// `GET`: an object, a part of one, or the parts of an upload.
pub(super) async fn read(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    asked: Asked,
    head: Head,
) -> Result<Response, Problem> {
    let upload = upload_of(&parameters(asked));
    let (collection, key) = object(&app, &principal, &head.uri, reads_or_uploads(&upload), Moves::Body)?;
    if let Some(upload) = upload? {
        return upload::parts(&app, &collection, &key, &upload).await;
    }
    let conditions = Conditions::read(&head.headers)?;
    let objects = &app.services.objects;
    let mut get = Get { range: asked_range(&head.headers), condition: conditions.condition.clone() };
    let mut got = objects.get(&collection, &key, &get).await;
    if get.range.is_some()
        && let Some(wanted) = IfRange::read(&head.headers)
    {
        let current = match &got {
            Ok(Got::Object(object)) => Some(object.info.version),
            Err(GetError::Range { .. }) => version_now(&app, &collection, &key).await?,
            _ => None,
        };
        // What the reader has a part of is not there any more: it needs the whole.
        if current.is_some_and(|current| !wanted.is(current)) {
            get.range = None;
            got = objects.get(&collection, &key, &get).await;
        }
    }
    match got {
        Ok(Got::Object(object)) => match conditions.by_time(&object.info)? {
            Some(response) => Ok(response),
            None => Ok(shaped(&app, &collection, object_answer(object, get.range.is_some()))),
        },
        Ok(Got::NotModified(info)) => {
            conditions.unmodified(&info)?;
            Ok(not_modified(&info))
        }
        Err(error @ GetError::Range { .. }) => {
            // A condition that does not hold comes before a range that cannot be had.
            if conditions.has_times()
                && let Ok(Got::Object(object)) = objects.head(&collection, &key, &Condition::default()).await
                && let Some(response) = conditions.by_time(&object.info)?
            {
                return Ok(response);
            }
            Err(get_problem(error))
        }
        Err(error) => Err(get_problem(error)),
    }
}

/// `HEAD`: what is known of an object.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    asked: Asked,
    head: Head,
) -> Result<Response, Problem> {
    let upload = upload_of(&parameters(asked));
    let (collection, key) = object(&app, &principal, &head.uri, reads_or_uploads(&upload), Moves::Nothing)?;
    if let Some(upload) = upload? {
        return upload::parts(&app, &collection, &key, &upload).await;
    }
    let conditions = Conditions::read(&head.headers)?;
    match app.services.objects.head(&collection, &key, &conditions.condition).await.map_err(get_problem)? {
        Got::NotModified(info) => {
            conditions.unmodified(&info)?;
            Ok(not_modified(&info))
        }
        Got::Object(object) => match conditions.by_time(&object.info)? {
            Some(response) => Ok(response),
            None => {
                let mut response = Response::new(Body::empty());
                describe(response.headers_mut(), &object.info);
                response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(object.info.length));
                Ok(response)
            }
        },
    }
}

/// `DELETE`: an object, or an upload.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    asked: Asked,
    head: Head,
) -> Result<Response, Problem> {
    let asked = parameters(asked);
    let upload = asked.get("upload");
    let access = if upload.is_some() { Access::Write } else { Access::Delete };
    let (collection, key) = object(&app, &principal, &head.uri, access, Moves::Nothing)?;
    if let Some(upload) = upload {
        return upload::abort(&app, &collection, &key, upload).await;
    }
    let condition = Conditions::read(&head.headers)?.pinned(&app.services.objects, &collection, &key).await?;
    let deleted = app.services.objects.delete(&collection, &key, &condition).await;
    deleted.map_err(put_problem)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET` on a collection: a page of what is there.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    asked: Asked,
    head: Head,
) -> Result<Response, Problem> {
    let collection = in_collection(&app, &principal, &head.uri, Access::Read, Moves::Body)?;
    let asked = parameters(asked);
    let prefix = asked.get("prefix").filter(|prefix| !prefix.is_empty()).map(key_of).transpose()?;
    let request = ListRequest {
        prefix: prefix.map(|prefix| prefix.as_str().to_owned()).unwrap_or_default(),
        // None yet, of which some say so with nothing.
        after: asked.get("after").filter(|after| !after.is_empty()).map(key_of).transpose()?,
        limit: usize::try_from(asked.integer("limit", LIST_MAX as u64, 1, LIST_MAX as u64)?).unwrap_or(LIST_MAX),
    };
    let listing = app.services.objects.list(&collection, &request).await.map_err(|error| store_problem(&error))?;
    let objects: Vec<Value> = listing.objects.iter().map(shown).collect();
    let answer = json_answer(&json!({"objects": objects, "next": listing.next.map(|key| key.as_str().to_owned())}));
    Ok(shaped(&app, &collection, answer))
}

/// Writes an object from a request's body.
async fn store(
    app: &App,
    head: &Head,
    body: Body,
    collection: &Collection,
    key: &ObjectKey,
) -> Result<Response, Problem> {
    let objects = &app.services.objects;
    let put = Put {
        metadata: metadata(&head.headers)?,
        sha256: digest(&head.headers)?,
        condition: Conditions::read(&head.headers)?.pinned(objects, collection, key).await?,
    };
    let stored = objects.put(collection, key, put, incoming(app, collection, body)?).await;
    Ok(written(&stored.map_err(put_problem)?))
}

/// What a reader does: an upload's parts are its writer's.
fn reads_or_uploads(upload: &Result<Option<String>, Problem>) -> Access {
    if matches!(upload, Ok(Some(_))) { Access::Write } else { Access::Read }
}

/// The upload that a reader asks for; with a signed address there is none.
fn upload_of(asked: &Parameters) -> Result<Option<String>, Problem> {
    let upload = asked.get("upload");
    let signed = ["expires", "key_id", "signature"].into_iter().find(|name| asked.get(name).is_some());
    match (upload, signed) {
        (Some(_), Some(name)) => Err(nonsense(name, "an upload's parts are not shown at a signed address")),
        (None, Some(name)) if asked.get("signature").is_none() => {
            Err(nonsense(name, "belongs to a signed address, which needs expires, key_id and signature"))
        }
        (upload, _) => Ok(upload.map(str::to_owned)),
    }
}

/// Which version is there.
async fn version_now(
    app: &App,
    collection: &Collection,
    key: &ObjectKey,
) -> Result<Option<tidegate_batch::Version>, Problem> {
    match app.services.objects.head(collection, key, &Condition::default()).await {
        Ok(Got::Object(object)) => Ok(Some(object.info.version)),
        Ok(Got::NotModified(info)) => Ok(Some(info.version)),
        Err(error) => Err(get_problem(error)),
    }
}
