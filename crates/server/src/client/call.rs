//! One request and its whole answer, and what is tried again when none comes. It repeats nothing by itself: whoever asks for
//! persistence says so, because a request may have happened although its answer never came.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Url};
use serde::de::DeserializeOwned;

use super::document::{self, Problem};
use super::error::{ClientError, Interruption};
use super::{Client, ClientOptions, LineError};

/// What stands in a path segment as it is; the rest is percent-encoded, `/` and `%` too.
pub(super) const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It may come when it is asked for again. What was asked for may have happened.
    Again(Interruption),
    /// It will not.
    Never(ClientError),
}

impl Fault {
    /// Whether the server said that it did nothing, so that the request certainly did not happen.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Again(Interruption::Refused(_)) | Self::Never(ClientError::Refused(_)))
    }

    /// The server's words, where it had some.
    pub(super) fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Again(Interruption::Refused(problem)) | Self::Never(ClientError::Refused(problem)) => Some(problem),
            _ => None,
        }
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        Self::Never(error)
    }
}

/// For those who try once.
impl From<Fault> for ClientError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Again(Interruption::Unreachable(why) | Interruption::Broken(why)) => Self::Unreachable(why),
            Fault::Again(Interruption::Refused(problem)) => Self::Refused(problem),
            Fault::Again(source) => Self::NotAnswered { attempts: 1, source },
            Fault::Never(error) => error,
        }
    }
}

/// Attempts with growing pauses between them, counted anew after each success.
pub(crate) struct Patience {
    options: ClientOptions,
    backoff: ExponentialBackoff,
    attempts: usize,
}

impl Patience {
    pub(crate) fn new(client: &Client) -> Self {
        Self { backoff: backoff(&client.options), options: client.options.clone(), attempts: 0 }
    }

    /// Something went well: what fails next is the first failure.
    pub(crate) fn renew(&mut self) {
        if self.attempts > 0 {
            self.attempts = 0;
            self.backoff = backoff(&self.options);
        }
    }

    /// Waits before the next attempt, or gives up.
    ///
    /// # Errors
    /// The error to end with, where no attempt is left or none can help.
    pub(crate) async fn wait(&mut self, fault: Fault) -> Result<Interruption, ClientError> {
        let why = match fault {
            Fault::Again(why) => why,
            Fault::Never(error) => return Err(error),
        };
        let Some(wait) = self.backoff.next().filter(|_| self.attempts < self.options.attempts) else {
            return Err(ClientError::NotAnswered { attempts: self.attempts + 1, source: why });
        };
        let asked = match &why {
            Interruption::Refused(problem) => problem.retry_after_ms,
            Interruption::Server(error) => error.retry_after_ms,
            _ => None,
        };
        let asked = Duration::from_millis(asked.unwrap_or(0)).min(self.options.backoff_max);
        // The first attempt is made at once: most often only the connection is gone.
        let wait = if self.attempts == 0 { asked } else { wait.max(asked) };
        self.attempts += 1;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(why)
    }
}

pub(super) fn backoff(options: &ClientOptions) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(options.backoff_min)
        .with_max_delay(options.backoff_max)
        .with_factor(2.0)
        .with_max_times(options.attempts)
        .with_jitter()
        .build()
}

/// An answer of status 2xx.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The document in it.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(ClientError::Answer)
    }
}

impl Client {
    /// The URL of a path whose segments are names.
    pub(crate) fn at(&self, segments: &[&str]) -> Url {
        let path: Vec<String> =
            segments.iter().map(|segment| utf8_percent_encode(segment, SEGMENT).to_string()).collect();
        self.endpoint(&path.join("/"))
    }

    /// A request to a path whose segments are names.
    pub(crate) fn to(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        self.authorized(self.http.request(method, self.at(segments)))
    }

    /// Sends a request and reads its answer whole, in at most the stall time-out and what the request asks to wait.
    pub(crate) async fn ask(&self, request: RequestBuilder, wait: Duration) -> Result<Answer, Fault> {
        let patience = self.options.stall_timeout.saturating_add(wait);
        match tokio::time::timeout(patience, self.ask_without_end(request)).await {
            Ok(answered) => answered,
            Err(_) => Err(Fault::Again(Interruption::Stalled(patience))),
        }
    }

    /// The same, with nothing that ends it.
    pub(super) async fn ask_without_end(&self, request: RequestBuilder) -> Result<Answer, Fault> {
        let mut answer =
            accepted(request.send().await.map_err(|why| Fault::Again(Interruption::Unreachable(why)))?).await?;
        let status = answer.status().as_u16();
        let headers = std::mem::take(answer.headers_mut());
        let limit_bytes = self.options.line_max_bytes;
        let mut body = BytesMut::new();
        while let Some(piece) = answer.chunk().await.map_err(|why| Fault::Again(Interruption::Broken(why)))? {
            if body.len() + piece.len() > limit_bytes {
                return Err(Fault::Never(ClientError::Line(LineError::TooLong { limit_bytes })));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }

    /// Asks once.
    pub(crate) async fn once(&self, request: RequestBuilder) -> Result<Answer, ClientError> {
        Ok(self.ask(request, Duration::ZERO).await?)
    }
}

/// An answer of status 2xx, or why it is another one.
pub(super) async fn accepted(answer: reqwest::Response) -> Result<reqwest::Response, Fault> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let problem = Box::new(document::problem(answer).await);
    Err(if problem.is_retryable() {
        Fault::Again(Interruption::Refused(problem))
    } else {
        Fault::Never(ClientError::Refused(problem))
    })
}
