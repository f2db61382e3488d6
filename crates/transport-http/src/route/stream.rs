//! Change streams themselves: made, shown, listed, removed.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};
use tidegate_cdc::{CreatedStream, LatePolicy, StreamDescription, StreamSpec};
use tidegate_core::Principal;
use tidegate_core::id::Name;
use tidegate_core::port::Retention;

use super::change_problem::{create_problem, stream_problem};
use super::json;
use super::name::{Parts, name, named};
use crate::body::read_whole;
use crate::gate::{App, json_problem};
use crate::json::{JsonError, Object, invalid, unsigned_of};
use crate::parameter::Parameters;
use crate::problem::Problem;

/// Streams or groups in one answer, unless told otherwise, and the most.
pub(super) const PAGE_DEFAULT: u64 = 100;
pub(crate) const PAGE_MAX: u64 = 1_000;

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
    request: Request,
) -> Result<Response, Problem> {
    let stream = name(path)?;
    let streams = &app.services.streams;
    let settings = streams.settings().freeze();
    let body = read_whole(request.into_body(), &settings, app.services.clock.as_ref()).await?;
    let spec = spec(&body, settings.limits_partition_max()).map_err(|error| json_problem(&error))?;
    let created = streams.create(&principal, &stream, &spec).await.map_err(|error| create_problem(&error))?;
    let description = streams.describe(&principal, &stream).await.map_err(|error| stream_problem(&error))?;
    let mut response = json(&document(&description));
    if created == CreatedStream::New {
        *response.status_mut() = StatusCode::CREATED;
    }
    Ok(response)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
) -> Result<Response, Problem> {
    let stream = name(path)?;
    let described = app.services.streams.describe(&principal, &stream).await;
    Ok(json(&document(&described.map_err(|error| stream_problem(&error))?)))
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
) -> Result<StatusCode, Problem> {
    let stream = name(path)?;
    app.services.streams.delete(&principal, &stream).await.map_err(|error| stream_problem(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    parameters: Option<Extension<Parameters>>,
) -> Result<Response, Problem> {
    let parameters = parameters.map(|Extension(parameters)| parameters).unwrap_or_default();
    let limit = parameters.integer("limit", PAGE_DEFAULT, 1, PAGE_MAX)?;
    let limit = usize::try_from(limit).expect("at most PAGE_MAX");
    let prefix = parameters.get("prefix").unwrap_or_default();
    let after = parameters.get("after").map(|after| named(after.to_owned())).transpose()?;
    // Names are listed in the order of their bytes: all with the prefix lie together, and nothing before it is looked at.
    let (mut found, more) = page_with_prefix(&app, &principal, after, prefix, limit).await?;
    let next = more.then(|| found.last().map(|last| last.name.to_string())).flatten();
    let streams: Vec<Value> = found.drain(..).map(|described| document(&described)).collect();
    Ok(json(&json!({"streams": streams, "next": next})))
}

/// A page of the streams whose names begin with `prefix`, and whether there are more.
async fn page_with_prefix(
    app: &App,
    principal: &Principal,
    mut after: Option<Name>,
    prefix: &str,
    limit: usize,
) -> Result<(Vec<StreamDescription>, bool), Problem> {
    let list = async |after: Option<&Name>, limit| {
        app.services.streams.list(principal, after, limit).await.map_err(|error| stream_problem(&error))
    };
    let mut found = Vec::new();
    // The stream that is called as the prefix is asked for by itself, so that the rest can begin after it.
    if let Ok(exact) = Name::new(prefix)
        && after.as_ref().is_none_or(|after| after.as_str() < prefix)
    {
        match app.services.streams.describe(principal, &exact).await {
            Ok(described) => found.push(described),
            Err(tidegate_cdc::StreamError::NotFound { .. } | tidegate_cdc::StreamError::Gone { .. }) => {}
            Err(error) => return Err(stream_problem(&error)),
        }
        after = Some(exact);
    }
    let asked = limit + 1 - found.len();
    let rest = list(after.as_ref(), asked).await?;
    found.extend(rest.into_iter().take_while(|described| described.name.as_str().starts_with(prefix)));
    let more = found.len() > limit;
    found.truncate(limit);
    Ok((found, more))
}

fn spec(body: &[u8], partition_max: u64) -> Result<StreamSpec, JsonError> {
    let mut spec = StreamSpec::default();
    if body.trim_ascii().is_empty() {
        return Ok(spec);
    }
    let object = Object::parse(body, &["partitions", "retention", "compaction", "late", "description"])?;
    if let Some(raw) = object.optional("partitions") {
        let given = unsigned_of(raw, "partitions", 1, partition_max)?;
        // What does not fit is beyond every bound, which the service names.
        spec.partitions = u32::try_from(given).unwrap_or(u32::MAX);
    }
    if let Some(raw) = object.given("retention") {
        spec.retention = retention(&object.child(raw, "retention", &["records", "age_ms", "bytes"])?)?;
    }
    if let Some(raw) = object.optional("compaction") {
        spec.compact_by_key = match object.text_of(raw, "compaction")?.as_str() {
            "none" => false,
            "key" => true,
            _ => return Err(invalid("compaction", r#""none" or "key""#, raw)),
        };
    }
    if let Some(raw) = object.optional("late") {
        spec.late = match object.text_of(raw, "late")?.as_str() {
            "allow" => LatePolicy::Allow,
            "drop" => LatePolicy::Drop,
            _ => return Err(invalid("late", r#""allow" or "drop""#, raw)),
        };
    }
    if let Some(raw) = object.given("description") {
        spec.description = Some(object.text_of(raw, "description")?.into());
    }
    Ok(spec)
}

fn retention(object: &Object<'_>) -> Result<Retention, JsonError> {
    let bound =
        |field: &str, path: &str| object.given(field).map(|raw| unsigned_of(raw, path, 1, u64::MAX)).transpose();
    Ok(Retention {
        records: bound("records", "retention.records")?,
        age_ms: bound("age_ms", "retention.age_ms")?,
        bytes: bound("bytes", "retention.bytes")?,
    })
}

/// A stream as answers show it.
fn document(stream: &StreamDescription) -> Value {
    let watermarks = stream.watermarks.as_deref().unwrap_or_default();
    let partitions: Vec<Value> = stream
        .partitions
        .iter()
        .enumerate()
        .map(|(place, bounds)| {
            let mut partition = json!({
                "partition": bounds.partition.0,
                "earliest": bounds.earliest.0,
                "next": bounds.next.0,
                "bytes": bounds.bytes,
            });
            if stream.watermarks.is_some() {
                partition["watermark"] = json!(watermarks.get(place).copied().flatten());
            }
            partition
        })
        .collect();
    let Retention { records, age_ms, bytes } = stream.spec.retention;
    let mut document = Map::new();
    document.insert("name".into(), json!(stream.name));
    document.insert("partitions".into(), partitions.into());
    document.insert("retention".into(), json!({"records": records, "age_ms": age_ms, "bytes": bytes}));
    document.insert("compaction".into(), if stream.spec.compact_by_key { "key" } else { "none" }.into());
    document.insert("late".into(), json!(stream.spec.late));
    document.insert("description".into(), json!(stream.spec.description));
    document.insert("created_at".into(), json!(stream.created_at));
    if let Some(content_type) = &stream.content_type {
        document.insert("content_type".into(), content_type.to_string().into());
    }
    Value::Object(document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Failure as _;

    fn spec(body: &[u8]) -> Result<StreamSpec, JsonError> {
        super::spec(body, 1_024)
    }

    #[test]
    fn a_body_says_what_a_stream_is_and_an_empty_one_what_all_are() {
        assert_eq!(spec(b" \n").unwrap(), StreamSpec::default());
        assert_eq!(spec(b"{}").unwrap(), StreamSpec::default());
        let whole = spec(
            br#"{"partitions":4,"retention":{"records":1,"age_ms":null,"bytes":3},"compaction":"key","late":"drop","description":"d"}"#,
        )
        .unwrap();
        assert_eq!(whole.partitions, 4);
        assert_eq!(whole.retention, Retention { records: Some(1), age_ms: None, bytes: Some(3) });
        assert!(whole.compact_by_key && whole.late == LatePolicy::Drop);
        assert_eq!(whole.description.as_deref(), Some("d"));
        assert_eq!(spec(br#"{"retention":null,"description":null}"#).unwrap(), StreamSpec::default());
    }

    #[test]
    fn what_a_body_says_wrongly_is_named() {
        for (body, code) in [
            (r#"{"partition":4}"#, "unknown_field"),
            (r#"{"retention":{"hours":4}}"#, "unknown_field"),
            (r#"{"retention":{"bytes":1,"bytes":2}}"#, "duplicate_field"),
            (r#"{"retention":4}"#, "invalid_field"),
            (r#"{"retention":{"bytes":-1}}"#, "invalid_field"),
            (r#"{"partitions":"4"}"#, "invalid_field"),
            (r#"{"partitions":-4}"#, "invalid_field"),
            (r#"{"compaction":"keys"}"#, "invalid_field"),
            (r#"{"compaction":true}"#, "invalid_field"),
            (r#"{"late":"recompute"}"#, "invalid_field"),
            (r#"{"description":4}"#, "invalid_field"),
            ("[]", "invalid_field"),
            ("{", "malformed_json"),
        ] {
            assert_eq!(spec(body.as_bytes()).unwrap_err().code(), code, "{body}");
        }
    }
    #[test]
    fn what_is_no_integer_is_told_the_bounds_that_hold() {
        for (body, bounds) in [
            (r#"{"partitions":-1}"#, "an integer from 1 to 1024, it is a negative number"),
            (r#"{"partitions":1e3}"#, "an integer from 1 to 1024, it is a number with a fraction or an exponent"),
            (r#"{"retention":{"bytes":"1"}}"#, "an integer from 1 to 18446744073709551615, it is a string"),
        ] {
            let told = spec(body.as_bytes()).unwrap_err().to_string();
            assert!(told.ends_with(bounds), "{body}: {told}");
        }
    }
}
