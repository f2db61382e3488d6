//! What a request's headers say of an object that is written: its type and coding, how long it lives, its writer's own pairs, the
//! digest that its bytes must have. It decodes no content.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tidegate_batch::{Expiry, Metadata};

use crate::problem::Problem;

pub(super) const EXPIRES: HeaderName = HeaderName::from_static("x-tidegate-expires");
/// What the names of a writer's own pairs begin with.
pub(super) const CUSTOM: &str = "x-tidegate-meta-";
/// Headers of this name are ours: one that is not known is a mistake.
pub(super) const OURS: &str = "x-tidegate-";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
/// Of the whole object: where the bytes are all of it, they are what it is said of.
pub(super) const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// Reads the metadata.
pub(super) fn metadata(headers: &HeaderMap) -> Result<Metadata, Problem> {
    let mut metadata = Metadata {
        content_type: one(headers, &header::CONTENT_TYPE)?.map(Into::into),
        content_encoding: codings(headers)?.map(Into::into),
        ..Metadata::default()
    };
    if let Some(text) = one(headers, &EXPIRES)? {
        metadata.expiry = Expiry::parse(text).map_err(|error| refused(&EXPIRES, &error.to_string()))?;
    }
    for name in headers.keys().filter(|name| name.as_str().starts_with(OURS) && **name != EXPIRES) {
        let custom = name.as_str().strip_prefix(CUSTOM).filter(|custom| !custom.is_empty());
        let Some(custom) = custom else {
            let detail = format!("{name} is not known; a writer's own pairs are {CUSTOM}<name>");
            return Err(Problem::new(StatusCode::BAD_REQUEST, "unknown_field", detail).with("field", name.as_str()));
        };
        let text = one(headers, name)?.unwrap_or_default();
        metadata.custom.insert(custom.into(), text.into());
    }
    Ok(metadata)
}

/// The SHA-256 that the bytes must have: `Content-Digest` and `Repr-Digest` (RFC 9530), which mean the same of a whole object. A request
/// whose bytes are a part of an object's is refused: it would be taken for the whole (RFC 9110, section 14.5).
pub(super) fn digest(headers: &HeaderMap) -> Result<Option<[u8; 32]>, Problem> {
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(refused(&header::CONTENT_RANGE, "an object is written whole; large ones go by ?uploads in parts"));
    }
    let mut found: Option<[u8; 32]> = None;
    let mut given = false;
    let both = [&CONTENT_DIGEST, &REPR_DIGEST];
    for (name, value) in both.into_iter().flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)))
    {
        let mut known = false;
        for member in text(name, value)?.split(',').map(str::trim_ascii) {
            given = true;
            let (algorithm, digest) = member.split_once('=').ok_or_else(not_a_digest)?;
            if algorithm != "sha-256" {
                continue;
            }
            let digest =
                digest.strip_prefix(':').and_then(|digest| digest.strip_suffix(':')).ok_or_else(not_a_digest)?;
            let bytes = STANDARD.decode(digest).map_err(|_| not_a_digest())?;
            let digest = bytes.try_into().map_err(|_| not_a_digest())?;
            // Both headers may say it, if they say the same.
            let other = found.replace(digest).is_some_and(|other| other != digest);
            if std::mem::replace(&mut known, true) || other {
                return Err(not_a_digest());
            }
        }
    }
    // Nobody would compare it, and the client would think that somebody did.
    if given && found.is_none() { Err(not_a_digest()) } else { Ok(found) }
}

fn not_a_digest() -> Problem {
    refused(&CONTENT_DIGEST, "must have one sha-256=:<base64 of 32 bytes>:")
}

/// A coding may be told in several fields, which mean one list.
fn codings(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut all = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        all.push(text(&header::CONTENT_ENCODING, value)?);
    }
    Ok((!all.is_empty()).then(|| all.join(", ")))
}

/// The text of a header that may be there once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let detail = format!("{name} stands there twice");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "duplicate_field", detail).with("field", name.as_str()));
    }
    text(name, value).map(Some)
}

fn text<'a>(name: &HeaderName, value: &'a HeaderValue) -> Result<&'a str, Problem> {
    std::str::from_utf8(value.as_bytes()).map_err(|_| refused(name, "must be UTF-8"))
}

fn refused(name: &HeaderName, detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_field", format!("{name}: {detail}")).with("field", name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_an_object_is_not_taken_for_the_whole() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_static("bytes 100-199/200"));
        assert_eq!(digest(&headers).unwrap_err().code(), "invalid_field");
    }

    #[test]
    fn the_digest_of_the_object_is_that_of_the_bytes() {
        let read = |content: Option<u8>, object: u8| {
            let value = |byte| HeaderValue::try_from(format!("sha-256=:{}:", STANDARD.encode([byte; 32]))).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert(REPR_DIGEST, value(object));
            content.map(|byte| headers.insert(CONTENT_DIGEST, value(byte)));
            digest(&headers).map_err(|problem| problem.code())
        };
        assert_eq!(read(None, 7), Ok(Some([7; 32])));
        assert_eq!(read(Some(7), 7), Ok(Some([7; 32])));
        assert_eq!(read(Some(8), 7), Err("invalid_field"));
    }

    #[test]
    fn a_digest_is_one_sha_256_or_it_is_refused() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_DIGEST, HeaderValue::from_str(text).unwrap());
            digest(&headers).map_err(|problem| problem.code())
        };
        let seven = STANDARD.encode([7; 32]);
        assert_eq!(read(&format!("sha-256=:{seven}:")), Ok(Some([7; 32])));
        assert_eq!(read(&format!("sha-512=:AAAA:, sha-256=:{seven}:")), Ok(Some([7; 32])));
        assert_eq!(digest(&HeaderMap::new()).unwrap(), None);
        let twice = format!("sha-256=:{seven}:, sha-256=:{seven}:");
        for bad in
            ["", "sha-256", "sha-256=:AAAA:", "sha-256=abc", "sha-512=:AAAA:", "SHA-256=:AAAA:", &twice, "sha-256=:!:"]
        {
            assert_eq!(read(bad), Err("invalid_field"), "{bad}");
        }
    }
}
