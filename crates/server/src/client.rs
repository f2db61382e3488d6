//! An HTTP client: query streams whose hash is verified and that go on at the exact row when a connection drops; change
//! streams that are published to once and tailed at the exact record; members of consumer groups. It never leaves a row or
//! record out in silence, follows no redirect (a token goes where it was meant to go) and uses no proxy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::config::Secret;

mod admin;
pub(crate) mod call;
pub mod change;
mod document;
mod error;
mod line;
mod member;
pub mod object;
mod producer;
mod run;
#[cfg(test)]
mod scripted;
mod stream;
mod tail;

pub use admin::{Page, Seek};
pub(crate) use document::printable;
pub use document::{Column, EndLine, ErrorLine, OpenLine, Problem};
pub use error::{ClientError, Interruption, SetupError};
pub use line::{LineError, LineReader};
pub use member::{Batch, Committed, Member, Notice, SharedReader};
pub use producer::{Acknowledged, Producer};
pub use run::Item;
pub use stream::{Event, QueryStream, Summary};
pub use tail::{Tail, TailEvent};

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Where the server is.
    pub url: Url,
    /// A bearer token.
    pub token: Option<Secret>,
    /// PEM certificates to trust in place of the system's.
    pub ca: Option<PathBuf>,
    /// How often a stream is taken up again without a row in between.
    pub attempts: usize,
    /// A stream that gives nothing for so long counts as broken.
    pub stall_timeout: Duration,
    /// The wait before the first new attempt; it doubles up to [`Self::backoff_max`], with jitter.
    pub backoff_min: Duration,
    /// The longest wait between attempts.
    pub backoff_max: Duration,
    /// The longest line that is taken from a server, in bytes.
    pub line_max_bytes: usize,
}

impl ClientOptions {
    /// The defaults for a server.
    #[must_use]
    pub fn new(url: Url) -> Self {
        Self {
            url,
            token: None,
            ca: None,
            attempts: 10,
            stall_timeout: Duration::from_secs(300),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            // The largest that `limits.row_max_bytes` may be, and its frame.
            line_max_bytes: 256 * 1024 * 1024 + 1024,
        }
    }
}

/// How rows come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RowShape {
    /// `{"id":1}`
    Object,
    /// `[1]`: columns that share a name stay apart.
    Array,
}

/// A query.
#[derive(Debug, Clone, Serialize)]
pub struct QueryRequest {
    /// The source's name at the server.
    pub source: String,
    /// The statement.
    pub sql: String,
    /// Its parameters, as JSON.
    pub params: Vec<Box<RawValue>>,
    /// How rows come.
    pub rows: RowShape,
}

/// A client of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    authorization: Option<HeaderValue>,
    options: ClientOptions,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

impl Client {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// [`SetupError`] where the URL, the token or the certificates cannot be used.
    pub fn new(options: ClientOptions) -> Result<Self, SetupError> {
        install_crypto();
        let mut base = options.url.clone();
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(SetupError::Url { url: base.to_string() });
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let authorization = match &options.token {
            Some(token) => {
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {}", token.reveal())).map_err(|_| SetupError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            // A peer that vanished without a word is noticed by the system in about half a minute.
            .tcp_keepalive(Duration::from_secs(15))
            .tcp_keepalive_interval(Duration::from_secs(5))
            .tcp_keepalive_retries(3)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(path) = &options.ca {
            builder = builder.tls_certs_only(certificates(path)?);
        } else if base.scheme() == "http" {
            // Without TLS no certificate is looked for: a system that has none is no obstacle.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(SetupError::Http)?;
        Ok(Self { http, base, authorization, options })
    }

    /// Opens a query and reads its first line.
    ///
    /// # Errors
    /// [`ClientError`]; nothing is tried twice, for no row was seen yet.
    pub async fn query(&self, request: &QueryRequest) -> Result<QueryStream, ClientError> {
        QueryStream::open(self.clone(), request).await
    }

    /// Cancels a stream at the server. Idempotent.
    ///
    /// # Errors
    /// [`ClientError`] where the server refuses or does not answer within 2 s.
    pub async fn cancel(&self, cursor: &str) -> Result<(), ClientError> {
        let mut url = self.endpoint("v1/query/");
        // A cursor is hexadecimal; whatever else a server calls one stays one segment of the path.
        url.path_segments_mut()
            .map_err(|()| ClientError::Protocol { what: "a URL without a path" })?
            .pop_if_empty()
            .push(cursor);
        let request = self.authorized(self.http.delete(url)).timeout(CANCEL_TIMEOUT);
        let answer = request.send().await.map_err(ClientError::Unreachable)?;
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(ClientError::Refused(Box::new(document::problem(answer).await)))
        }
    }

    /// Where the server is.
    #[must_use]
    pub fn base(&self) -> &Url {
        &self.base
    }

    fn endpoint(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path()));
        url
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }

    fn post(&self, path: &str, body: String) -> reqwest::RequestBuilder {
        self.authorized(self.http.post(self.endpoint(path)))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/x-ndjson")
            .body(body)
    }
}

fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, SetupError> {
    let refuse = |source| SetupError::Ca { path: path.to_owned(), source };
    let pem = std::fs::read(path).map_err(|why| refuse(why.into()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|why| refuse(why.into()))?;
    if found.is_empty() {
        return Err(refuse("there is no certificate in it".into()));
    }
    Ok(found)
}

/// Makes aws-lc-rs the process's only TLS provider. Idempotent.
pub fn install_crypto() {
    // An error means that one is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

#[cfg(test)]
mod tests;
