//! Consumer groups: made, shown, removed, moved; members that join, live and leave. What is polled, committed and
//! acknowledged lies in [`delivery`]. It decides nothing: who holds what is the group service's.

pub(super) mod delivery;
mod request;

use std::sync::Arc;

use axum::extract::{Extension, Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tidegate_cdc::group::{CreatedGroup, GroupDescription, GroupMode, GroupStart, OnGap};
use tidegate_core::Principal;

use super::change_problem::group_problem;
use super::json;
use super::name::{Parts, name, named, not_text, two_names};
use super::stream::{PAGE_DEFAULT, PAGE_MAX};
use crate::body::read_whole;
use crate::gate::{App, json_problem};
use crate::parameter::Parameters;
use crate::problem::Problem;

pub(crate) use request::CLIENT_MAX_BYTES;

/// A group's routes have small bodies, read whole.
async fn body(app: &App, request: Request) -> Result<Bytes, Problem> {
    let settings = app.services.streams.settings().freeze();
    Ok(read_whole(request.into_body(), &settings, app.services.clock.as_ref()).await?)
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (stream, group) = two_names(path)?;
    let body = body(&app, request).await?;
    let spec = request::spec(&body)?;
    let groups = &app.services.groups;
    let created = groups.create(&principal, &stream, &group, &spec).await.map_err(|error| group_problem(&error))?;
    let described = groups.describe(&principal, &stream, &group).await.map_err(|error| group_problem(&error))?;
    let mut response = json(&document(&described));
    if created == CreatedGroup::New {
        *response.status_mut() = StatusCode::CREATED;
    }
    Ok(response)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String)>,
) -> Result<Response, Problem> {
    let (stream, group) = two_names(path)?;
    let described = app.services.groups.describe(&principal, &stream, &group).await;
    Ok(json(&document(&described.map_err(|error| group_problem(&error))?)))
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
    parameters: Option<Extension<Parameters>>,
) -> Result<Response, Problem> {
    let stream = name(path)?;
    let parameters = parameters.map(|Extension(parameters)| parameters).unwrap_or_default();
    let limit = usize::try_from(parameters.integer("limit", PAGE_DEFAULT, 1, PAGE_MAX)?).expect("at most PAGE_MAX");
    let after = parameters.get("after").map(|after| named(after.to_owned())).transpose()?;
    let listed = app.services.groups.list(&principal, &stream, after.as_ref(), limit + 1).await;
    let mut found = listed.map_err(|error| group_problem(&error))?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = more.then(|| found.last().map(|last| last.name.to_string())).flatten();
    let groups: Vec<Value> = found.iter().map(document).collect();
    Ok(json(&json!({"groups": groups, "next": next})))
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (stream, group) = two_names(path)?;
    app.services.groups.delete(&principal, &stream, &group).await.map_err(|error| group_problem(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn seek(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (stream, group) = two_names(path)?;
    let to = request::seek(&body(&app, request).await?).map_err(|error| json_problem(&error))?;
    let moved = app.services.groups.seek(&principal, &stream, &group, to).await;
    Ok(json(&json!({"committed": moved.map_err(|error| group_problem(&error))?})))
}

pub(super) async fn join(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (stream, group) = two_names(path)?;
    let client = request::client(&body(&app, request).await?)?;
    let joined = app.services.groups.join(&principal, &stream, &group, &client).await;
    let joined = joined.map_err(|error| group_problem(&error))?;
    let mut response = json(&json!({
        "member": joined.member,
        "generation": joined.generation,
        "partitions": joined.partitions,
        "session_ms": joined.session_ms,
    }));
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

pub(super) async fn heartbeat(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let Path((stream, group, member)) = path.map_err(|_| not_text())?;
    let (stream, group) = (named(stream)?, named(group)?);
    let generation = request::generation(&body(&app, request).await?).map_err(|error| json_problem(&error))?;
    let held = app.services.groups.heartbeat(&principal, &stream, &group, &member, generation).await;
    let held = held.map_err(|error| group_problem(&error))?;
    Ok(json(&json!({"generation": held.generation, "partitions": held.partitions})))
}

pub(super) async fn leave(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    let Path((stream, group, member)) = path.map_err(|_| not_text())?;
    let (stream, group) = (named(stream)?, named(group)?);
    app.services.groups.leave(&principal, &stream, &group, &member).await.map_err(|error| group_problem(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// A group as answers show it.
fn document(group: &GroupDescription) -> Value {
    let spec = &group.spec;
    let members: Vec<Value> = group
        .members
        .iter()
        .map(|member| {
            json!({
                "member": member.member,
                "client": member.client,
                "partitions": member.partitions,
                "last_seen": member.last_seen,
            })
        })
        .collect();
    let positions: Vec<Value> = group
        .positions
        .iter()
        .map(|position| {
            json!({
                "partition": position.partition,
                "committed": position.committed,
                "next": position.next,
                "earliest": position.earliest,
                "lag": position.lag,
            })
        })
        .collect();
    let mut document = json!({
        "name": group.name,
        "mode": match spec.mode { GroupMode::Ordered => "ordered", GroupMode::Shared => "shared" },
        "start": match spec.start { GroupStart::Earliest => "earliest", GroupStart::Latest => "latest" },
        "session_ms": spec.session_ms,
        "ack_timeout_ms": spec.ack_timeout_ms,
        "max_deliveries": spec.max_deliveries,
        "dead_letter": spec.dead_letter,
        "on_gap": match spec.on_gap { OnGap::Report => "report", OnGap::Stop => "stop" },
        "generation": group.generation,
        "members": members,
        "positions": positions,
    });
    if let Some(in_flight) = group.in_flight {
        document["in_flight"] = in_flight.into();
    }
    document
}
