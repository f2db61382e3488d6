//! The routes, put together. What each does lies in the modules below; what all share lies in the gate.

mod change_problem;
mod checkpoint;
pub(crate) mod durable;
mod group;
mod ingest;
mod name;
pub(crate) mod object;
mod operation;
mod query;
mod record;
mod setting;
mod source;
mod stream;

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::{HeaderName, HeaderValue, header};
use serde::Serialize;

use crate::gate::{App, gate};

pub(crate) use group::CLIENT_MAX_BYTES;
pub(crate) use ingest::{CHUNK_MAX_BYTES, OPEN_MAX_BYTES};
pub(crate) use name::check_path;
pub(crate) use record::HEARTBEAT;
pub(crate) use stream::PAGE_MAX;

/// Tells nginx and its like not to collect a stream before they pass it on.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The router of the whole transport.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/streams", get(stream::list))
        .route("/v1/streams/{stream}", get(stream::show).put(stream::create).delete(stream::remove))
        .route("/v1/streams/{stream}/records", get(record::read).post(record::publish))
        .route(
            durable::TEMPLATE,
            get(durable::read)
                .head(durable::show)
                .post(durable::append)
                .put(durable::create)
                .delete(durable::remove)
                .options(durable::preflight),
        )
        .route("/v1/streams/{stream}/groups", get(group::list))
        .route("/v1/streams/{stream}/groups/{group}", get(group::show).put(group::create).delete(group::remove))
        .route("/v1/streams/{stream}/groups/{group}/members", post(group::join))
        .route("/v1/streams/{stream}/groups/{group}/members/{member}", delete(group::leave))
        .route("/v1/streams/{stream}/groups/{group}/members/{member}/heartbeat", post(group::heartbeat))
        .route("/v1/streams/{stream}/groups/{group}/poll", post(group::delivery::poll))
        .route("/v1/streams/{stream}/groups/{group}/commit", post(group::delivery::commit))
        .route("/v1/streams/{stream}/groups/{group}/ack", post(group::delivery::settle))
        .route("/v1/streams/{stream}/groups/{group}/seek", post(group::seek))
        .route(object::COLLECTION, get(object::list).post(object::create))
        .route(
            object::OBJECT,
            get(object::read).head(object::show).put(object::put).post(object::post).delete(object::remove),
        )
        .route(object::BATCH, post(object::batch))
        .route("/v1/ingest/{stream}", post(ingest::ingest))
        .route("/v1/sources", get(source::list))
        .route("/v1/sources/{source}", get(source::show))
        .route("/v1/sources/{source}/acknowledge", post(source::acknowledge))
        .route("/v1/sources/{source}/retry", post(source::retry))
        .route("/v1/checkpoints", get(checkpoint::list))
        .route("/v1/checkpoints/{job}", get(checkpoint::show))
        .route("/v1/query", post(query::open))
        .route("/v1/query/resume", post(query::resume))
        .route("/v1/query/{cursor}", delete(query::cancel))
        .route("/v1/leases", get(query::leases))
        .route("/v1/config", get(setting::show).patch(setting::change))
        .route("/v1/limits", get(setting::limits))
        .route("/v1/version", get(operation::version))
        .route("/healthz", get(operation::health))
        .route("/readyz", get(operation::ready))
        .route("/metrics", get(operation::metrics))
        // Reached only through the gate, which has answered with a problem document before.
        .fallback(async || http::StatusCode::NOT_FOUND)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), gate))
        .with_state(app)
}

/// A JSON answer that no cache keeps: it is the state of now, and of this caller.
fn json(value: &impl Serialize) -> Response {
    let mut bytes = serde_json::to_vec(value).expect("answers are structs and maps with text keys");
    bytes.push(b'\n');
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
