//! Streams and groups: what a client creates, lists, shows, moves and removes. Each is one request, tried once; the answer's
//! bytes are the server's own.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder};
use serde::Serialize;

use super::call::{Answer, Fault};
use super::change::{GroupSpec, Positions, StreamInfo, StreamSpec};
use super::document::ItemLine;
use super::run::{Item, Run};
use super::{Client, ClientError};

/// Where a group goes.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Seek {
    /// Every partition: `earliest`, `latest` or a time.
    To {
        /// Which.
        to: String,
    },
    /// Some partitions to their offsets.
    Positions {
        /// By partition.
        positions: Positions,
    },
}

/// A page of a partition.
#[derive(Debug)]
pub struct Page {
    /// Records and gaps, in order.
    pub items: Vec<Item>,
    /// The offset to read on from.
    pub next: u64,
}

fn json(request: RequestBuilder, body: &impl Serialize) -> RequestBuilder {
    let body = serde_json::to_vec(body).expect("a request of strings and numbers is JSON");
    request.header(CONTENT_TYPE, "application/json").body(body)
}

impl Client {
    /// All streams: the server's own bytes.
    ///
    /// # Errors
    /// [`ClientError`]; nothing is tried twice. The same holds for all of these.
    pub async fn streams(&self, after: Option<&str>) -> Result<Bytes, ClientError> {
        self.list(&["v1", "streams"], after).await
    }

    /// A stream: the server's own bytes.
    pub async fn stream(&self, stream: &str) -> Result<Bytes, ClientError> {
        Ok(self.once(self.to(Method::GET, &["v1", "streams", stream])).await?.body)
    }

    /// A stream, read.
    pub async fn stream_info(&self, stream: &str) -> Result<StreamInfo, ClientError> {
        serde_json::from_slice(&self.stream(stream).await?).map_err(ClientError::Answer)
    }

    /// Creates a stream; says whether it is new, with the server's words.
    pub async fn create_stream(&self, stream: &str, spec: &StreamSpec) -> Result<(bool, Bytes), ClientError> {
        let answer = self.once(json(self.to(Method::PUT, &["v1", "streams", stream]), spec)).await?;
        Ok((answer.status == 201, answer.body))
    }

    /// Removes a stream with all that is in it.
    pub async fn remove_stream(&self, stream: &str) -> Result<(), ClientError> {
        self.once(self.to(Method::DELETE, &["v1", "streams", stream])).await.map(drop)
    }

    /// The sources whose changes become streams: the server's own bytes.
    pub async fn sources(&self) -> Result<Bytes, ClientError> {
        Ok(self.once(self.to(Method::GET, &["v1", "sources"])).await?.body)
    }

    /// One of them: the server's own bytes.
    pub async fn source(&self, source: &str) -> Result<Bytes, ClientError> {
        Ok(self.once(self.to(Method::GET, &["v1", "sources", source])).await?.body)
    }

    /// Says how a source goes on that lost changes.
    pub async fn acknowledge_source(&self, source: &str, action: &str) -> Result<(), ClientError> {
        let request = self.to(Method::POST, &["v1", "sources", source, "acknowledge"]);
        self.once(json(request, &serde_json::json!({"action": action}))).await.map(drop)
    }

    /// Has a source tried at once that waits.
    pub async fn retry_source(&self, source: &str) -> Result<(), ClientError> {
        self.once(self.to(Method::POST, &["v1", "sources", source, "retry"])).await.map(drop)
    }

    /// The jobs that have checkpoints, after `after`: the server's own bytes.
    pub async fn checkpoint_jobs(&self, after: Option<&str>, limit: u64) -> Result<Bytes, ClientError> {
        let mut url = self.at(&["v1", "checkpoints"]);
        url.query_pairs_mut().append_pair("limit", &limit.to_string());
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        Ok(self.once(self.authorized(self.http.get(url))).await?.body)
    }

    /// The checkpoints of a job below generation `before`, newest first: the server's own bytes.
    pub async fn checkpoints(&self, job: &str, before: Option<u64>, limit: u64) -> Result<Bytes, ClientError> {
        let mut url = self.at(&["v1", "checkpoints", job]);
        url.query_pairs_mut().append_pair("limit", &limit.to_string());
        if let Some(before) = before {
            url.query_pairs_mut().append_pair("before", &before.to_string());
        }
        Ok(self.once(self.authorized(self.http.get(url))).await?.body)
    }

    /// A stream's groups: the server's own bytes.
    pub async fn groups(&self, stream: &str, after: Option<&str>) -> Result<Bytes, ClientError> {
        self.list(&["v1", "streams", stream, "groups"], after).await
    }

    /// A group: the server's own bytes.
    pub async fn group(&self, stream: &str, group: &str) -> Result<Bytes, ClientError> {
        Ok(self.once(self.group_request(Method::GET, stream, group, &[])).await?.body)
    }

    /// Creates a group; says whether it is new, with the server's words.
    pub async fn create_group(
        &self,
        stream: &str,
        group: &str,
        spec: &GroupSpec,
    ) -> Result<(bool, Bytes), ClientError> {
        let answer = self.once(json(self.group_request(Method::PUT, stream, group, &[]), spec)).await?;
        Ok((answer.status == 201, answer.body))
    }

    /// Removes a group with its positions.
    pub async fn remove_group(&self, stream: &str, group: &str) -> Result<(), ClientError> {
        self.once(self.group_request(Method::DELETE, stream, group, &[])).await.map(drop)
    }

    /// Moves a group: the server's own words.
    pub async fn seek(&self, stream: &str, group: &str, to: &Seek) -> Result<Bytes, ClientError> {
        Ok(self.once(json(self.group_request(Method::POST, stream, group, &["seek"]), to)).await?.body)
    }

    /// Reads a partition from an offset on, at most so many records.
    pub async fn read(&self, stream: &str, partition: u32, from: u64, limit: u64) -> Result<Page, ClientError> {
        let mut url = self.at(&["v1", "streams", stream, "records"]);
        url.query_pairs_mut()
            .append_pair("partition", &partition.to_string())
            .append_pair("from", &from.to_string())
            .append_pair("limit", &limit.to_string());
        let answer = self.once(self.authorized(self.http.get(url))).await?;
        let mut run = Run { partition, next: from };
        let (mut items, mut end) = (Vec::new(), None);
        for line in answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line).map_err(ClientError::Answer)? {
                ItemLine::Record(record) => items.extend(run.record(record.get())?),
                ItemLine::Gap(gap) => items.extend(run.gap(gap)?),
                ItemLine::Next(next) => end = Some(next.offset),
                ItemLine::Error(error) => return Err(ClientError::Failed { rows: items.len() as u64, error }),
            }
        }
        match end {
            Some(next) if next == run.next => Ok(Page { items, next }),
            Some(found) => Err(ClientError::Skipped { partition, expected: run.next, found }),
            None => Err(ClientError::Protocol { what: "a page of records without its last line" }),
        }
    }

    async fn list(&self, path: &[&str], after: Option<&str>) -> Result<Bytes, ClientError> {
        let mut url = self.at(path);
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        Ok(self.once(self.authorized(self.http.get(url))).await?.body)
    }

    pub(super) fn group_request(&self, method: Method, stream: &str, group: &str, more: &[&str]) -> RequestBuilder {
        self.to(method, &[&["v1", "streams", stream, "groups", group], more].concat())
    }

    /// A POST to something of a group.
    pub(super) async fn group_post(
        &self,
        (stream, group): (&str, &str),
        more: &[&str],
        body: &impl Serialize,
        wait: Duration,
    ) -> Result<Answer, Fault> {
        self.ask(json(self.group_request(Method::POST, stream, group, more), body), wait).await
    }
}
