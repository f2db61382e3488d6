//! Sources of changes: where each one is, what it waits for, and how it goes on after a loss. It tells no record.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use tidegate_cdc::source::{GapAction, SourceRequestError, SourceStatus};
use tidegate_core::port::CopyStatus;
use tidegate_core::{Failure as _, Principal};

use super::json;
use super::name::{Parts, name};
use crate::body::read_whole;
use crate::gate::{App, json_problem};
use crate::json::{JsonError, Object, invalid};
use crate::problem::Problem;

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, Problem> {
    let sources: Vec<Value> = app.services.sources.list(&principal).iter().map(document).collect();
    Ok(json(&json!({"sources": sources})))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
) -> Result<Response, Problem> {
    let source = name(path)?;
    let status = app.services.sources.show(&principal, &source).map_err(|error| problem(&error))?;
    Ok(json(&document(&status)))
}

/// How to go on after a loss.
pub(super) async fn acknowledge(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
    request: Request,
) -> Result<StatusCode, Problem> {
    let source = name(path)?;
    let settings = app.services.streams.settings().freeze();
    let body = read_whole(request.into_body(), &settings, app.services.clock.as_ref()).await?;
    let action = action(&body).map_err(|error| json_problem(&error))?;
    app.services.sources.acknowledge(&principal, &source, action).await.map_err(|error| problem(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tries a source at once that waits.
pub(super) async fn retry(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
) -> Result<StatusCode, Problem> {
    let source = name(path)?;
    app.services.sources.retry(&principal, &source).await.map_err(|error| problem(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

fn action(body: &[u8]) -> Result<GapAction, JsonError> {
    let object = Object::parse(body, &["action"])?;
    let raw = object.required("action")?;
    match object.text_of(raw, "action")?.as_str() {
        "restart_copy" => Ok(GapAction::RestartCopy),
        "go_on_from_current" => Ok(GapAction::GoOnFromCurrent),
        _ => Err(invalid("action", r#""restart_copy" or "go_on_from_current""#, raw)),
    }
}

fn problem(error: &SourceRequestError) -> Problem {
    if error.kind() == tidegate_core::ErrorKind::Internal {
        tracing::error!(%error, code = error.code(), "a source of changes failed");
    }
    Problem::of(error)
}

fn document(status: &SourceStatus) -> Value {
    let streams: Vec<Value> = status
        .streams
        .iter()
        .map(|stream| {
            json!({
                "name": stream.name,
                "position": stream.position,
                "spilled_records": stream.spilled_records,
                "spilled_bytes": stream.spilled_bytes,
                "refused_because": stream.refused_because,
            })
        })
        .collect();
    let copy = status.copy.as_ref().map(|copy| match copy {
        CopyStatus::Waiting => json!({"state": "waiting"}),
        CopyStatus::Running { tables_done, tables, rows } => {
            json!({"state": "running", "tables_done": tables_done, "tables": tables, "rows": rows})
        }
        CopyStatus::Done => json!({"state": "done"}),
    });
    json!({
        "name": status.name,
        "kind": status.kind,
        "state": status.state.name(),
        "position": status.position,
        "confirmed": status.confirmed,
        "lag_bytes": status.lag_bytes,
        "lag_seconds": status.lag_seconds,
        "copy": copy,
        "records": status.records,
        "epoch": status.epoch,
        "streams": streams,
        "last_error": status.last_error.as_ref().map(|error| {
            json!({"code": error.code, "message": error.message, "at": error.at})
        }),
        "gap": status.gap.as_ref().map(|gap| {
            json!({"from": gap.from, "reason": gap.reason, "since": gap.since})
        }),
    })
}
