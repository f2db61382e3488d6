//! Checkpoints of stream processors, to be looked at. Nothing here changes one.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use tidegate_checkpoint::Generation;
use tidegate_core::{ErrorKind, Failure as _};

use super::json;
use super::name::{Parts, name, named};
use crate::checkpoint::{CheckpointListError, PAGE_DEFAULT, PAGE_MAX, checkpoints, jobs};
use crate::gate::App;
use crate::parameter::Parameters;
use crate::problem::Problem;

pub(super) async fn list(
    State(app): State<Arc<App>>,
    parameters: Option<Extension<Parameters>>,
) -> Result<Response, Problem> {
    let parameters = parameters.map(|Extension(parameters)| parameters).unwrap_or_default();
    let limit = parameters.integer("limit", PAGE_DEFAULT, 1, PAGE_MAX)?;
    let after = parameters.get("after").map(|after| named(after.to_owned())).transpose()?;
    let page = jobs(&app.services.checkpoints, after.as_ref(), limit).await.map_err(|error| problem(&error))?;
    Ok(json(&page))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    path: Parts<String>,
    parameters: Option<Extension<Parameters>>,
) -> Result<Response, Problem> {
    let job = app.services.checkpoints.job(&name(path)?);
    let parameters = parameters.map(|Extension(parameters)| parameters).unwrap_or_default();
    let limit = parameters.integer("limit", PAGE_DEFAULT, 1, PAGE_MAX)?;
    let before = match parameters.get("before") {
        Some(_) => Some(Generation(parameters.integer("before", 0, 0, u64::MAX)?)),
        None => None,
    };
    let page = checkpoints(&job, before, limit).await.map_err(|error| problem(&error))?;
    Ok(json(&page))
}

fn problem(error: &CheckpointListError) -> Problem {
    if matches!(error.kind(), ErrorKind::Internal | ErrorKind::Unavailable) {
        tracing::error!(%error, code = error.code(), "the store of checkpoints failed");
    }
    Problem::of(error)
}
