//! Reading an object to its end, whatever becomes of the connection: what is missing is asked for by range, of the same write of the
//! object and no other. It never gives bytes of two writes, and never fewer than were announced.

use std::ops::Range;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH, RANGE};
use reqwest::{Response, Url};

use super::super::call::{Fault, Patience, accepted};
use super::super::error::Interruption;
use super::super::{Client, ClientError};
use super::CollectionName;

/// An object, or a range of one, that is being read.
pub struct ObjectReader {
    client: Client,
    url: Url,
    response: Option<Response>,
    etag: String,
    /// What is still to come, in the object's bytes.
    left: Range<u64>,
    /// How long the object is.
    length: u64,
    patience: Patience,
    resumes: u64,
}

impl Client {
    /// Opens an object. `range` is what stands behind `bytes=`: `0-99`, `100-`, `-50`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn read_object(
        &self,
        collection: &CollectionName,
        key: &str,
        range: Option<&str>,
    ) -> Result<ObjectReader, ClientError> {
        let url = self.object_url(collection, key);
        ObjectReader::open(self.clone(), url, range, None).await
    }

    /// Goes on with an object of which the first bytes are here already.
    ///
    /// # Errors
    /// [`ClientError`]; 412 = what is there now is another write of it.
    pub async fn read_object_from(
        &self,
        collection: &CollectionName,
        key: &str,
        from: u64,
        etag: &str,
    ) -> Result<ObjectReader, ClientError> {
        let url = self.object_url(collection, key);
        let reader = ObjectReader::open(self.clone(), url, Some(&format!("{from}-")), Some(etag)).await?;
        if reader.left.start == from {
            Ok(reader)
        } else {
            Err(ClientError::Protocol { what: "another range than was asked for" })
        }
    }
}

impl ObjectReader {
    async fn open(client: Client, url: Url, range: Option<&str>, etag: Option<&str>) -> Result<Self, ClientError> {
        let mut patience = Patience::new(&client);
        let response = loop {
            match ask(&client, &url, range, etag).await {
                Ok(response) => break response,
                Err(fault) => drop(patience.wait(fault).await?),
            }
        };
        patience.renew();
        let (left, length) = extent(&response)?;
        let etag = text(&response, ETAG).unwrap_or_default().to_owned();
        Ok(Self { client, url, response: Some(response), etag, left, length, patience, resumes: 0 })
    }

    /// Which write of the object it is.
    #[must_use]
    pub fn etag(&self) -> &str {
        &self.etag
    }

    /// How long the whole object is, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How many bytes are still to come.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left.end - self.left.start
    }

    /// How often it was taken up again.
    #[must_use]
    pub fn resumes(&self) -> u64 {
        self.resumes
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError`]; 412 = the object was replaced, and what is left of this write of it cannot be had.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if self.left.is_empty() {
                return Ok(None);
            }
            match self.piece().await {
                Ok(piece) => {
                    let room = usize::try_from(self.left()).unwrap_or(usize::MAX);
                    if piece.len() > room {
                        return Err(ClientError::Protocol { what: "more bytes than it announced" });
                    }
                    self.left.start += piece.len() as u64;
                    self.patience.renew();
                    return Ok(Some(piece));
                }
                Err(fault) => {
                    self.response = None;
                    self.patience.wait(fault).await?;
                }
            }
        }
    }

    async fn piece(&mut self) -> Result<Bytes, Fault> {
        let patience = self.client.options.stall_timeout;
        if self.response.is_none() {
            if self.etag.is_empty() {
                return Err(Fault::Never(ClientError::Protocol { what: "an object without its entity tag" }));
            }
            let range = format!("{}-{}", self.left.start, self.left.end - 1);
            let response = ask(&self.client, &self.url, Some(&range), Some(&self.etag)).await?;
            if extent(&response)? != (self.left.clone(), self.length) {
                return Err(Fault::Never(ClientError::Protocol { what: "another range than was asked for" }));
            }
            self.resumes += 1;
            self.response = Some(response);
        }
        let response = self.response.as_mut().expect("there is one by now");
        match tokio::time::timeout(patience, response.chunk()).await {
            Ok(Ok(Some(piece))) => Ok(piece),
            Ok(Ok(None)) => Err(Fault::Again(Interruption::Ended)),
            Ok(Err(why)) => Err(Fault::Again(Interruption::Broken(why))),
            Err(_) => Err(Fault::Again(Interruption::Stalled(patience))),
        }
    }
}

async fn ask(client: &Client, url: &Url, range: Option<&str>, etag: Option<&str>) -> Result<Response, Fault> {
    let mut request = client.authorized(client.http.get(url.clone()));
    if let Some(range) = range {
        request = request.header(RANGE, format!("bytes={range}"));
    }
    if let Some(etag) = etag {
        request = request.header(IF_MATCH, etag);
    }
    let patience = client.options.stall_timeout;
    match tokio::time::timeout(patience, request.send()).await {
        Ok(Ok(response)) => accepted(response).await,
        Ok(Err(why)) => Err(Fault::Again(Interruption::Unreachable(why))),
        Err(_) => Err(Fault::Again(Interruption::Stalled(patience))),
    }
}

fn text(response: &Response, name: reqwest::header::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// Which bytes come, and how long the whole object is.
fn extent(response: &Response) -> Result<(Range<u64>, u64), ClientError> {
    let found = if response.status().as_u16() == 206 {
        text(response, CONTENT_RANGE).and_then(content_range)
    } else {
        text(response, CONTENT_LENGTH).and_then(|length| length.parse().ok()).map(|length| (0..length, length))
    };
    found.ok_or(ClientError::Protocol { what: "an object without its length" })
}

/// Reads `bytes 0-99/200`.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, length) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, length) = (first.parse().ok()?, last.parse::<u64>().ok()?, length.parse().ok()?);
    (first <= last && last < length).then(|| (first..last + 1, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_believed_only_where_it_lies_within_the_object() {
        assert_eq!(content_range("bytes 0-99/200"), Some((0..100, 200)));
        assert_eq!(content_range("bytes 199-199/200"), Some((199..200, 200)));
        for wrong in ["bytes 0-200/200", "bytes 5-4/200", "bytes */200", "bytes 0-99/*", "0-99/200", "bytes 0-99"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
