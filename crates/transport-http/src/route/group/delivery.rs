//! What a group's consumers do all day: poll, commit, acknowledge. Reading never commits.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut as _, Bytes};
use http::{HeaderValue, header};
use serde_json::json;
use tidegate_cdc::group::Polled;
use tidegate_cdc::record::write_gap;
use tidegate_core::Principal;

use super::{body, request};
use crate::gate::{App, json_problem};
use crate::problem::Problem;
use crate::route::change_problem::group_problem;
use crate::route::json;
use crate::route::name::{Parts, two_names};

pub(in crate::route) async fn poll(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (stream, group) = two_names(path)?;
    let body = body(&app, request).await?;
    let mut request = request::poll(&body, &app.services.streams.settings().freeze())?;
    let groups = &app.services.groups;
    let polled = if request.wait_ms == 0 {
        groups.poll(&principal, &stream, &group, request).await
    } else {
        tokio::select! {
            biased;
            polled = groups.poll(&principal, &stream, &group, request.clone()) => polled,
            () = app.leaving.cancelled() => {
                // The server leaves: what is there is the answer.
                request.wait_ms = 0;
                groups.poll(&principal, &stream, &group, request).await
            }
        }
    };
    Ok(answer(&polled.map_err(|error| group_problem(&error))?))
}

/// Written by hand, so that records are what every other reader gets, byte for byte.
fn answer(polled: &Polled) -> Response {
    let size: u64 = polled.records.iter().map(|polled| polled.record.bytes() + 256).sum();
    let mut out = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 128);
    out.put_slice(b"{\"records\":[");
    for (place, polled) in polled.records.iter().enumerate() {
        if place > 0 {
            out.put_u8(b',');
        }
        polled.record.write_json(&mut out, polled.delivery.as_ref());
    }
    out.put_slice(b"],\"gaps\":[");
    for (place, gap) in polled.gaps.iter().enumerate() {
        if place > 0 {
            out.put_u8(b',');
        }
        write_gap(&mut out, gap);
    }
    out.put_slice(b"],\"delivered\":");
    serde_json::to_writer(&mut out, &polled.delivered).expect("a map of numbers is JSON");
    out.put_slice(b",\"generation\":");
    out.put_slice(itoa::Buffer::new().format(polled.generation).as_bytes());
    out.put_slice(b"}\n");
    let mut response = Bytes::from(out).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(in crate::route) async fn commit(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (stream, group) = two_names(path)?;
    let body = body(&app, request).await?;
    let (member, positions) = request::commit(&body).map_err(|error| json_problem(&error))?;
    let committed = app.services.groups.commit(&principal, &stream, &group, member, positions).await;
    Ok(json(&json!({"committed": committed.map_err(|error| group_problem(&error))?})))
}

pub(in crate::route) async fn settle(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (stream, group) = two_names(path)?;
    let body = body(&app, request).await?;
    let request = request::settle(&body).map_err(|error| json_problem(&error))?;
    let settled = app.services.groups.settle(&principal, &stream, &group, request).await;
    let settled = settled.map_err(|error| group_problem(&error))?;
    Ok(json(&json!({
        "acked": settled.acked,
        "nacked": settled.nacked,
        "extended": settled.extended,
        "unknown": settled.unknown,
    })))
}
