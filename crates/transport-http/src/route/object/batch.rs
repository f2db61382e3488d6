//! `POST /v1/objects:batch/{usecase}/{scopes}`: many operations in one request, answered part by part as their results come, while the
//! request is still being read. It keeps no object whole, and a part that is wrong fails alone.
//!
//! **What waits for whom.** A task of its own reads the request and begins operations; the answer's body only takes what is ready. The
//! results of insert, head and delete are small and at most as many as there are parts: they wait for the client in a queue, and the
//! places of their operations are free at once. A get is begun only when one of as many places as the window has is free, which it holds
//! until the client has taken its last byte; until then it is a key in a queue. So nothing that the client does not take keeps the request
//! from being read: a client may send everything before it reads anything. Small objects are laid out beside each other as text and then
//! need no place, up to 1 MiB that the client has not taken. In memory are at most that, a block (or a small object) for each place of the
//! window, one payload that is being read, and the executor's bytes in flight.

mod input;
mod part;
mod render;
mod reply;
mod run;

use std::sync::{Arc, OnceLock};
use std::task::Poll;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use http_body::Body as _;
use tidegate_batch::{Collection, Limits};
use tidegate_core::Principal;
use tidegate_core::system::OsEntropy;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::admission::{Admission, held_back};
use super::place::{collection, not_named};
use crate::body::ReadsOn;
use crate::gate::App;
use crate::multipart::{BoundaryError, Writer, boundary_of};
use crate::problem::Problem;
use input::Input;
use part::Parts;
use render::{Gone, Renderer};
use reply::ReplyBody;
use run::Objects;

/// Where batches are sent.
pub(crate) const BATCH: &str = "/v1/objects:batch/{usecase}/{scopes}";
const PREFIX: &str = "/v1/objects:batch/";

/// Operations of one batch.
pub(crate) const PART_MAX_COUNT: usize = 1_000;
/// The body of a batch: 1,000 parts of 1 MiB, with their heads.
pub(crate) const BODY_MAX_BYTES: u64 = 1 << 30;
/// The bounds of all batches of the process.
pub(crate) const EXECUTOR: Limits = Limits { permits: 500, window_percent: 10, bytes_in_flight: 64 * 1_024 * 1_024 };

/// What a proxy must know: the answer is a stream.
const X_ACCEL_BUFFERING: http::HeaderName = http::HeaderName::from_static("x-accel-buffering");

pub(in crate::route) async fn batch(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let collection = in_collection(&principal, &head.uri)?;
    let boundary = boundary(&head.headers)?;
    if body.size_hint().lower() > BODY_MAX_BYTES {
        return Err(body_too_large());
    }
    let writer = Writer::new(&OsEntropy).map_err(|error| super::problem::store_problem(&error.into()))?;
    // Before the first byte is asked for: a client that says `Expect: 100-continue` sends nothing in vain.
    let reservation = app
        .executor
        .reserve_for(collection.tenant.as_str())
        .map_err(|error| Problem::of(&error).with("limit", EXECUTOR.permits))?;
    let last = Arc::new(OnceLock::new());
    let admission = Admission::of(&app, &collection);
    let shape = admission.shape(body.size_hint().exact())?;
    let answer_shape = admission.shape_answer();
    let mut parts = Parts::new(&app, principal, admission, shape, body, &boundary, Arc::clone(&last));
    // hyper says `100 Continue` only to those whose answer has not begun.
    parts.begin().await?;
    let (parts, rest) = parts.stream();
    let input = Input::new(parts, reservation.window());
    let mut batch = reservation.run(input, Objects::new(app.services.objects.clone(), collection));
    let content_type = writer.content_type();
    // At most two for each part, what is wrong with the body, and the end: the parts of a batch are bounded.
    let (replies, waiting) = mpsc::unbounded_channel();
    let mut renderer = Renderer::new(writer, replies);
    let task = tokio::spawn(async move {
        let rendered = async move {
            loop {
                let next = match futures::poll!(batch.next()) {
                    Poll::Ready(next) => next,
                    // Nothing is at hand: what is laid out need not wait for more.
                    Poll::Pending => {
                        renderer.flush()?;
                        batch.next().await
                    }
                };
                let Some((tag, result)) = next else { break };
                renderer.part(tag, result)?;
            }
            renderer.flush()?;
            Ok(renderer)
        };
        // Beside each other: a client that sends everything before it reads takes no object before its body was read, and what is
        // left of a body holds nothing of the room for operations.
        let drained = async {
            if let Ok(rest) = rest.await {
                rest.drain().await;
            }
            Ok(())
        };
        let ended = async {
            let (mut renderer, ()) = tokio::try_join!(rendered, drained)?;
            if let Some(problem) = last.get() {
                renderer.problem(problem)?;
            }
            renderer.end()
        };
        if let Err(Gone) = ended.await {
            tracing::debug!("a batch lost its client");
        }
    });
    // Dropping the answer ends the task: nothing more is read or begun, and what was begun runs to its end.
    let mut response = Response::new(Body::new(ReplyBody::new(waiting, AbortOnDropHandle::new(task))));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response.extensions_mut().insert(ReadsOn);
    Ok(held_back(response, answer_shape))
}

fn in_collection(principal: &Principal, uri: &Uri) -> Result<Collection, Problem> {
    let rest = uri.path().strip_prefix(PREFIX).and_then(|rest| rest.split_once('/'));
    let (usecase, scopes) = rest.ok_or_else(not_named)?;
    collection(principal, usecase, scopes)
}

/// The boundary that a request names.
fn boundary(headers: &HeaderMap) -> Result<String, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    boundary_of(content_type).map_err(|error| match error {
        BoundaryError::Type => {
            let detail = "a batch is multipart/mixed or multipart/form-data";
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type_unsupported", detail)
                .with("field", "content-type")
        }
        BoundaryError::Boundary => {
            let detail = "Content-Type: needs a boundary of 1 to 70 characters as RFC 2046 has them";
            Problem::new(StatusCode::BAD_REQUEST, "invalid_field", detail).with("field", "content-type")
        }
    })
}

fn body_too_large() -> Problem {
    let detail = format!("the body of a batch has at most {BODY_MAX_BYTES} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).with("max_bytes", BODY_MAX_BYTES)
}
