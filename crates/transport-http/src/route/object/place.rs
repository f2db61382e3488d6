//! What a path names: a collection, and an object in it. The path is read as it was sent: nothing in it is normalised, so `a//b`, `..`
//! and a trailing `/` are parts of a key like any other text.

use http::{StatusCode, Uri};
use percent_encoding::percent_decode_str;
use tidegate_batch::object::{PATH_MAX_BYTES, PathError};
use tidegate_batch::{Collection, ObjectKey, Scopes};
use tidegate_core::Principal;
use tidegate_core::id::Name;

use crate::problem::Problem;
use crate::route::name::{named, not_text};

const PREFIX: &str = "/v1/objects/";

/// The collection of `/v1/objects/{usecase}/{scopes}`.
pub(super) fn in_collection(principal: &Principal, uri: &Uri) -> Result<Collection, Problem> {
    let mut parts = rest(uri).splitn(2, '/');
    collection(principal, parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// The object of `/v1/objects/{usecase}/{scopes}/{*key}`.
pub(super) fn object(principal: &Principal, uri: &Uri) -> Result<(Collection, ObjectKey), Problem> {
    let mut parts = rest(uri).splitn(3, '/');
    let collection = collection(principal, parts.next().unwrap_or_default(), parts.next().unwrap_or_default())?;
    let key = key_of(&decoded(parts.next().unwrap_or_default())?)?;
    Ok((collection, key))
}

/// The collection that two parts of a path name, still percent-encoded.
pub(super) fn collection(principal: &Principal, usecase: &str, scopes: &str) -> Result<Collection, Problem> {
    let tenant = Name::new(&*principal.owner.tenant).map_err(|_| not_named())?;
    let scopes = Scopes::parse(&decoded(scopes)?).map_err(|error| path_problem(&error))?;
    Ok(Collection { tenant, usecase: named(decoded(usecase)?)?, scopes })
}

/// A key out of text that is decoded already.
pub(super) fn key_of(text: &str) -> Result<ObjectKey, Problem> {
    ObjectKey::new(text).map_err(|error| path_problem(&error))
}

/// What a name that is none is answered with.
pub(super) fn path_problem(error: &PathError) -> Problem {
    Problem::of(error).with("max_bytes", PATH_MAX_BYTES)
}

pub(super) fn not_named() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_name", "the path names no object")
}

fn rest(uri: &Uri) -> &str {
    // The router has matched the prefix.
    uri.path().strip_prefix(PREFIX).unwrap_or_default()
}

fn decoded(part: &str) -> Result<String, Problem> {
    // The gate has looked at the path as a whole; each part must be text by itself too.
    percent_decode_str(part).decode_utf8().map(|text| text.into_owned()).map_err(|_| not_text())
}
