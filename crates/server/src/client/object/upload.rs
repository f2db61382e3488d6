//! Large objects in parts: begun, sent part by part in any order, completed in one step. What an interruption leaves is asked from the
//! server, never guessed.

use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde::{Deserialize, Serialize};

use super::super::call::Patience;
use super::super::{Client, ClientError};
use super::body::{Meter, Motion, Piece, content_digest, file_body};
use super::{CollectionName, ObjectWritten, PutSpec, written};

/// An upload in parts that is open at a server.
#[derive(Debug, Clone, Copy)]
pub struct UploadRef<'a> {
    /// Where the object will stand.
    pub collection: &'a CollectionName,
    /// Its key.
    pub key: &'a str,
    /// The id that the server gave.
    pub id: &'a str,
}

/// A part that the server has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Its number, from 1.
    pub part: u32,
    /// Which write of it.
    pub etag: String,
    /// How many bytes it has.
    pub length: u64,
}

#[derive(Deserialize)]
struct Begun {
    upload: String,
}

#[derive(Deserialize)]
struct Parts {
    parts: Vec<PartInfo>,
}

#[derive(Serialize)]
struct NamedPart<'a> {
    part: u32,
    etag: &'a str,
}

#[derive(Serialize)]
struct Completion<'a> {
    parts: Vec<NamedPart<'a>>,
}

impl Client {
    /// Begins an upload; gives its id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn begin_upload(
        &self,
        collection: &CollectionName,
        key: &str,
        spec: &PutSpec,
    ) -> Result<String, ClientError> {
        let mut url = self.object_url(collection, key);
        url.set_query(Some("uploads"));
        // One whose answer is lost is begun twice: the server clears away the other.
        let answer = self.persist(|| spec.described(self.authorized(self.http.post(url.clone())))).await?;
        Ok(answer.json::<Begun>()?.upload)
    }

    /// The parts that the server has; `None` = it knows no such upload (any more).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn upload_parts(&self, upload: UploadRef<'_>) -> Result<Option<Vec<PartInfo>>, ClientError> {
        let url = self.upload_url(upload, None);
        match self.persist(|| self.authorized(self.http.get(url.clone()))).await {
            Ok(answer) => Ok(Some(answer.json::<Parts>()?.parts)),
            Err(ClientError::Refused(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a part with its digest, again and again until it is answered.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_part(
        &self,
        upload: UploadRef<'_>,
        number: u32,
        piece: &Piece,
        meter: &Meter,
    ) -> Result<PartInfo, ClientError> {
        let digest = content_digest(&piece.sha256().await.map_err(ClientError::Source)?);
        let url = self.upload_url(upload, Some(number));
        let mut patience = Patience::new(self);
        loop {
            let motion = Motion::new(meter);
            let body = file_body(piece, &motion).await.map_err(ClientError::Source)?;
            let request = self
                .authorized(self.http.request(Method::PUT, url.clone()))
                .header("content-digest", &digest)
                .header(CONTENT_LENGTH, piece.length)
                .body(body);
            match self.ask_moving(request, &motion).await {
                Ok(answer) => return answer.json(),
                Err(fault) => {
                    motion.take_back();
                    patience.wait(fault).await?;
                }
            }
        }
    }

    /// Makes the object out of these parts. Only what certainly did not happen is tried again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn complete_upload(
        &self,
        upload: UploadRef<'_>,
        parts: &[PartInfo],
        spec: &PutSpec,
    ) -> Result<ObjectWritten, ClientError> {
        let parts = parts.iter().map(|part| NamedPart { part: part.part, etag: &part.etag }).collect();
        let body = serde_json::to_vec(&Completion { parts }).expect("numbers and strings are JSON");
        let url = self.upload_url(upload, None);
        let mut patience = Patience::new(self);
        loop {
            let request = self.authorized(self.http.post(url.clone())).header(CONTENT_TYPE, "application/json");
            match self.ask(spec.conditional(request).body(body.clone()), std::time::Duration::ZERO).await {
                Ok(answer) => return written(&answer),
                Err(fault) if fault.is_refusal() => drop(patience.wait(fault).await?),
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// Gives an upload up; its parts are discarded.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn abort_upload(&self, upload: UploadRef<'_>) -> Result<(), ClientError> {
        self.once(self.authorized(self.http.delete(self.upload_url(upload, None)))).await.map(drop)
    }

    fn upload_url(&self, upload: UploadRef<'_>, part: Option<u32>) -> reqwest::Url {
        let mut url = self.object_url(upload.collection, upload.key);
        url.query_pairs_mut().append_pair("upload", upload.id);
        if let Some(part) = part {
            url.query_pairs_mut().append_pair("part", &part.to_string());
        }
        url
    }
}
