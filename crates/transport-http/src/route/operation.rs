//! Health, readiness, metrics, version. They tell nothing of any caller's data.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use tidegate_cdc::Readiness;
use tidegate_core::{Failure as _, Retry};

use super::json;
use crate::gate::{App, draining};
use crate::problem::Problem;

pub(super) async fn health() -> Response {
    json(&json!({"status": "ok"}))
}

pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    if app.is_draining() {
        return Err(draining());
    }
    if app.services.recovering.load(Ordering::Acquire) {
        let detail = "what an earlier process left half done is being cleared away";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "recovering", detail)
            .with_retry(Retry::After(Duration::from_secs(1))));
    }
    let storage = app.services.streams.ready().await.map_err(|error| {
        tracing::warn!(%error, "not ready");
        Problem::of(&error).with_status(StatusCode::SERVICE_UNAVAILABLE)
    })?;
    // A full disk is no reason to take the server away: reads go on, and so does what makes room.
    let storage = if storage == Readiness::Full { "full" } else { "ok" };
    match app.services.query.ready().await {
        Ok(()) => {
            let mut document = json!({"status": "ready", "storage": storage});
            // A source of changes that needs a person is told, and is no reason to take the server away: everything else works.
            let waiting = app.services.sources.states().into_iter().filter(|(_, state)| state.needs_a_person());
            let waiting: serde_json::Map<_, _> =
                waiting.map(|(name, state)| (name.to_string(), state.name().into())).collect();
            if !waiting.is_empty() {
                document["sources"] = waiting.into();
            }
            Ok(json(&document))
        }
        Err(not_ready) => {
            // The cause's code says what kind of trouble it is; its words may name hosts, and this route is open.
            let cause = not_ready.cause.as_ref().map_or("source_timeout", |cause| cause.code());
            tracing::warn!(source = %not_ready.name, cause, "not ready");
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "source_unavailable", not_ready.to_string())
                .with_retry(Retry::After(Duration::from_secs(1)))
                .with("source", not_ready.name.to_string())
                .with("cause", cause))
        }
    }
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut response = app.services.metrics.render().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) async fn version() -> Response {
    json(&json!({"name": "tidegate", "version": env!("CARGO_PKG_VERSION"), "api": "v1"}))
}
