//! Objects: written, read, listed and removed. What is large goes in parts or in pieces that are taken up where they stopped; nothing is
//! held in memory beyond the piece that is on its way, and no byte is taken for another version's.

use std::str::FromStr;

use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH};
use reqwest::{Method, RequestBuilder, Url};
use serde::{Deserialize, Serialize};
use tidegate_batch::{ObjectKey, Scopes};
use tidegate_core::id::Name;

use super::call::{Answer, Patience};
use super::{Client, ClientError};

mod batch;
mod body;
mod read;
mod upload;

pub use batch::{BATCH_MAX_COUNT, Fetched, Insert, Outcomes};
pub use body::{Meter, Piece, sha256};
pub use read::ObjectReader;
pub use upload::{PartInfo, UploadRef};

use body::{Motion, file_body, reader_body};

/// Where objects stand together: `usecase/scopes`, such as `photos/_` or `photos/org=17;project=42`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionName {
    /// What for.
    pub usecase: String,
    /// Of whom; `_` = none.
    pub scopes: String,
}

impl FromStr for CollectionName {
    type Err = String;

    /// The usecase ends at the first `/` after which scopes stand: both may have a `/` in them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        for (at, _) in text.match_indices('/') {
            let (usecase, scopes) = (&text[..at], &text[at + 1..]);
            if Name::new(usecase).is_ok() && !matches!(usecase, "." | "..") && Scopes::parse(scopes).is_ok() {
                return Ok(Self { usecase: usecase.to_owned(), scopes: scopes.to_owned() });
            }
        }
        Err("it must be USECASE/SCOPES, such as photos/_ or photos/org=17;project=42".to_owned())
    }
}

impl std::fmt::Display for CollectionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.usecase, self.scopes)
    }
}

/// Whether a text is a key that a URL's path can carry.
///
/// # Errors
/// In words, why not.
pub fn check_key(text: &str) -> Result<(), String> {
    ObjectKey::new(text).map_err(|error| error.to_string())?;
    if matches!(text, "." | "..") {
        return Err("`.` and `..` are no segments of a URL's path, however they are written".to_owned());
    }
    Ok(())
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Its key.
    pub key: String,
    /// How many bytes it has.
    pub length: u64,
    /// Which write of it, in quotes.
    pub etag: String,
    /// When it was written.
    #[serde(default)]
    pub created: String,
    /// When it will be gone.
    #[serde(default)]
    pub expires: Option<String>,
    /// `hot` or `cold`.
    #[serde(default)]
    pub tier: String,
    /// Its media type.
    #[serde(default)]
    pub content_type: Option<String>,
}

/// A page of a listing.
#[derive(Debug, Deserialize)]
pub struct ObjectPage {
    /// In the order of their keys.
    pub objects: Vec<ObjectInfo>,
    /// There is more after this key.
    #[serde(default)]
    pub next: Option<String>,
}

/// What must be there for a write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum WriteCondition {
    /// Whatever it is.
    #[default]
    Always,
    /// Nothing.
    Absent,
    /// The object with this entity tag.
    Is(String),
}

/// What is said of an object that is written.
#[derive(Debug, Clone, Default)]
pub struct PutSpec {
    /// The media type.
    pub content_type: Option<String>,
    /// The coding that its bytes are in.
    pub content_encoding: Option<String>,
    /// `never`, `ttl:30s`, `tti:1h`.
    pub expires: Option<String>,
    /// The writer's own pairs.
    pub meta: Vec<(String, String)>,
    /// What must be there.
    pub condition: WriteCondition,
}

impl PutSpec {
    fn described(&self, mut request: RequestBuilder) -> RequestBuilder {
        let one = [
            (CONTENT_TYPE.as_str(), &self.content_type),
            (CONTENT_ENCODING.as_str(), &self.content_encoding),
            ("x-tidegate-expires", &self.expires),
        ];
        for (name, value) in one {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        for (name, value) in &self.meta {
            request = request.header(format!("x-tidegate-meta-{name}"), value);
        }
        request
    }

    fn conditional(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.condition {
            WriteCondition::Always => request,
            WriteCondition::Absent => request.header(IF_NONE_MATCH, "*"),
            WriteCondition::Is(tag) if tag.contains('"') || tag == "*" => request.header(IF_MATCH, tag),
            WriteCondition::Is(tag) => request.header(IF_MATCH, format!("\"{tag}\"")),
        }
    }
}

/// An object that was written.
#[derive(Debug, Clone)]
pub struct ObjectWritten {
    /// Nothing was there before.
    pub created: bool,
    /// What is known of it.
    pub info: ObjectInfo,
}

fn written(answer: &Answer) -> Result<ObjectWritten, ClientError> {
    Ok(ObjectWritten { created: answer.status == 201, info: answer.json()? })
}

impl Client {
    fn collection_url(&self, collection: &CollectionName) -> Url {
        self.at(&["v1", "objects", &collection.usecase, &collection.scopes])
    }

    fn object_url(&self, collection: &CollectionName, key: &str) -> Url {
        self.at(&["v1", "objects", &collection.usecase, &collection.scopes, key])
    }

    /// Asks until there is an answer, for what may be done twice.
    async fn persist(&self, request: impl Fn() -> RequestBuilder) -> Result<Answer, ClientError> {
        let mut patience = Patience::new(self);
        loop {
            match self.ask(request(), std::time::Duration::ZERO).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => drop(patience.wait(fault).await?),
            }
        }
    }

    /// A page of a collection.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn objects(
        &self,
        collection: &CollectionName,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<ObjectPage, ClientError> {
        let mut url = self.collection_url(collection);
        if !prefix.is_empty() {
            url.query_pairs_mut().append_pair("prefix", prefix);
        }
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        self.persist(|| self.authorized(self.http.get(url.clone()))).await?.json()
    }

    /// The length and the entity tag of an object; `None` = there is none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn object_head(
        &self,
        collection: &CollectionName,
        key: &str,
    ) -> Result<Option<(u64, String)>, ClientError> {
        let url = self.object_url(collection, key);
        match self.persist(|| self.authorized(self.http.head(url.clone()))).await {
            Ok(answer) => {
                let text = |name| answer.headers.get(name).and_then(|value| value.to_str().ok());
                let length = text(CONTENT_LENGTH).and_then(|text| text.parse().ok());
                let tag = text(reqwest::header::ETAG);
                match (length, tag) {
                    (Some(length), Some(tag)) => Ok(Some((length, tag.to_owned()))),
                    _ => Err(ClientError::Protocol { what: "an object without its length or its entity tag" }),
                }
            }
            Err(ClientError::Refused(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_object(&self, collection: &CollectionName, key: &str) -> Result<(), ClientError> {
        let url = self.object_url(collection, key);
        self.persist(|| self.authorized(self.http.delete(url.clone()))).await.map(drop)
    }

    /// Writes a piece of a file as an object, with its digest. It is sent again when no answer comes, unless that could do harm: with a
    /// condition, or without a key, only what certainly did not happen is tried again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_object(
        &self,
        collection: &CollectionName,
        key: Option<&str>,
        piece: &Piece,
        spec: &PutSpec,
        meter: &Meter,
    ) -> Result<ObjectWritten, ClientError> {
        let digest = body::content_digest(&piece.sha256().await.map_err(ClientError::Source)?);
        let repeatable = key.is_some() && spec.condition == WriteCondition::Always;
        let mut patience = Patience::new(self);
        loop {
            let motion = Motion::new(meter);
            let request = self.put_request(collection, key, spec).header("content-digest", &digest);
            let body = file_body(piece, &motion).await.map_err(ClientError::Source)?;
            let request = request.header(CONTENT_LENGTH, piece.length).body(body);
            match self.ask_moving(request, &motion).await {
                Ok(answer) => return written(&answer),
                Err(fault) if repeatable || fault.is_refusal() => {
                    motion.take_back();
                    patience.wait(fault).await?;
                }
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// Writes what a reader gives, to its end, as an object. Tried once: what was read is gone.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_object_from(
        &self,
        collection: &CollectionName,
        key: Option<&str>,
        reader: impl tokio::io::AsyncRead + Send + Unpin + 'static,
        spec: &PutSpec,
        meter: &Meter,
    ) -> Result<ObjectWritten, ClientError> {
        let motion = Motion::new(meter);
        let request = self.put_request(collection, key, spec).body(reader_body(reader, &motion));
        written(&self.ask_moving(request, &motion).await?)
    }

    fn put_request(&self, collection: &CollectionName, key: Option<&str>, spec: &PutSpec) -> RequestBuilder {
        let request = match key {
            Some(key) => self.http.request(Method::PUT, self.object_url(collection, key)),
            None => self.http.request(Method::POST, self.collection_url(collection)),
        };
        spec.conditional(spec.described(self.authorized(request)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_is_a_usecase_and_scopes_whatever_slashes_they_have() {
        for (text, usecase, scopes) in [
            ("photos/_", "photos", "_"),
            ("photos/org=17;project=42", "photos", "org=17;project=42"),
            ("a/b/_", "a/b", "_"),
            ("photos/org=a/b", "photos", "org=a/b"),
        ] {
            let read: CollectionName = text.parse().unwrap();
            assert_eq!((read.usecase.as_str(), read.scopes.as_str()), (usecase, scopes), "{text}");
            assert_eq!(read.to_string(), text);
        }
        for wrong in ["", "photos", "photos/", "/_", "photos/org", "../_"] {
            assert!(wrong.parse::<CollectionName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_any_text_but_the_two_that_a_url_swallows() {
        for right in ["a", "../x", "a//b/", "/etc/passwd", "%2e", "💧", "a b"] {
            assert_eq!(check_key(right), Ok(()), "{right}");
        }
        for wrong in ["", ".", "..", "a\nb"] {
            assert!(check_key(wrong).is_err(), "{wrong:?}");
        }
    }
}
