//! A query stream that outlives its connections. Invariant: `hasher` has seen exactly the rows that were handed out, so
//! what it says is what a resume asks for, and a row that was cut in its middle was never seen.

use std::time::Duration;

use backon::ExponentialBackoff;
use bytes::Bytes;
use serde::Serialize;
use tidegate_frame::prefix::PrefixHasher;

use super::call::backoff;
use super::document::{self, Document, EndLine, OpenLine, row_of};
use super::error::{ClientError, Interruption};
use super::line::{LineError, LineReader};
use super::{Client, QueryRequest};

/// What comes next.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A row: its whole line, without the line break.
    Row(Bytes),
    /// The connection was lost and the stream goes on at the next row.
    Resumed {
        /// What had happened.
        why: Interruption,
    },
    /// All rows came, and they are the server's.
    End(Summary),
}

/// A stream that came whole.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The end line as it was sent.
    pub line: Bytes,
    /// How many rows.
    pub rows: u64,
    /// SHA-256 over all row lines, in hex; checked.
    pub prefix_hash: String,
    /// How often the stream was taken up again.
    pub resumes: u64,
    /// Bytes that came over the wire, repeated ones too.
    pub bytes: u64,
}

/// A query stream. It goes on by itself over lost connections, as often as needed while rows keep coming.
pub struct QueryStream {
    client: Client,
    first: OpenLine,
    first_line: Bytes,
    cursor: Option<String>,
    reader: Option<LineReader>,
    hasher: PrefixHasher,
    backoff: ExponentialBackoff,
    attempts: usize,
    interruption: Option<Interruption>,
    /// An error line that allows a resume: taken up when the stream's end line has come.
    pending: Option<Box<document::ErrorLine>>,
    resumes: u64,
    bytes_before: u64,
    summary: Option<Summary>,
}

#[derive(Serialize)]
struct ResumeRequest<'a> {
    cursor: &'a str,
    rows: u64,
    prefix_hash: String,
}

/// What an attempt to connect gives.
enum Attempt {
    Open { reader: LineReader, open: Box<OpenLine>, line: Bytes },
    Again(Interruption),
    Never(ClientError),
}

impl QueryStream {
    pub(super) async fn open(client: Client, request: &QueryRequest) -> Result<Self, ClientError> {
        let body = serde_json::to_string(request).expect("a request of strings and checked JSON is JSON");
        let (reader, open, line) = match connect(&client, "v1/query", body).await {
            Attempt::Open { reader, open, line } => (reader, open, line),
            Attempt::Never(error) => return Err(error),
            Attempt::Again(why) => {
                return Err(match why {
                    Interruption::Unreachable(why) | Interruption::Broken(why) => ClientError::Unreachable(why),
                    Interruption::Refused(problem) => ClientError::Refused(problem),
                    source => {
                        ClientError::NotResumable { rows: 0, because: "its first line never came".to_owned(), source }
                    }
                });
            }
        };
        if open.from_row != 0 {
            return Err(ClientError::Protocol { what: "a new stream that does not begin at row 0" });
        }
        Ok(Self {
            backoff: backoff(&client.options),
            cursor: open.cursor.clone(),
            first: *open,
            first_line: line,
            reader: Some(reader),
            hasher: PrefixHasher::new(),
            attempts: 0,
            interruption: None,
            pending: None,
            resumes: 0,
            bytes_before: 0,
            summary: None,
            client,
        })
    }

    /// The first line of the stream.
    #[must_use]
    pub fn open_line(&self) -> &OpenLine {
        &self.first
    }

    /// The bytes of the first line.
    #[must_use]
    pub fn open_bytes(&self) -> &Bytes {
        &self.first_line
    }

    /// The cursor as it is now.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// How many rows were handed out.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.hasher.rows()
    }

    /// The hash of the rows that were handed out, in hex.
    #[must_use]
    pub fn prefix_hash(&self) -> String {
        self.hasher.digest().to_string()
    }

    /// How often the stream was taken up again.
    #[must_use]
    pub fn resumes(&self) -> u64 {
        self.resumes
    }

    /// Bytes that came over the wire.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes_before + self.reader.as_ref().map_or(0, LineReader::received_bytes)
    }

    /// Whether the next event is here already, so that nothing need be flushed before it is asked for.
    pub fn has_buffered(&mut self) -> bool {
        self.reader.as_mut().is_some_and(LineReader::has_line)
    }

    /// Drops the connection, as a failing network would. The next call of [`Self::next`] takes the stream up again.
    pub fn cut(&mut self) {
        self.interrupt(Interruption::Ended);
    }

    /// The next event. After [`Event::End`] it gives the same end again. Safe to drop and call again: no row is lost.
    ///
    /// # Errors
    /// [`ClientError`]: the stream is over and incomplete.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        if let Some(summary) = &self.summary {
            return Ok(Event::End(summary.clone()));
        }
        loop {
            if self.reader.is_none() {
                return self.take_up().await;
            }
            match self.read().await {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads one line; `None` = look again.
    async fn read(&mut self) -> Result<Option<Event>, ClientError> {
        let stall = self.client.options.stall_timeout;
        let Some(reader) = self.reader.as_mut() else { return Ok(None) };
        // A timer is only worth its cost where there is something to wait for.
        let next = match reader.buffered() {
            Some(line) => Ok(Ok(Some(line))),
            None => tokio::time::timeout(stall, reader.next()).await,
        };
        let line = match next {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => {
                let why = self.pending.take().map_or(Interruption::Ended, Interruption::Server);
                self.interrupt(why);
                return Ok(None);
            }
            Ok(Err(LineError::Broken(why))) => {
                self.interrupt(Interruption::Broken(why));
                return Ok(None);
            }
            Ok(Err(error)) => return Err(ClientError::Line(error)),
            Err(_) => {
                self.interrupt(Interruption::Stalled(stall));
                return Ok(None);
            }
        };
        if row_of(&line).is_some() {
            self.hasher.line(&line);
            if self.attempts > 0 {
                self.attempts = 0;
                self.backoff = backoff(&self.client.options);
            }
            return Ok(Some(Event::Row(line)));
        }
        match serde_json::from_slice::<Document>(&line) {
            Ok(Document::Open(_)) => Err(ClientError::Protocol { what: "a second open line" }),
            Ok(Document::Error(error)) if error.is_retryable() && self.cursor.is_some() => {
                self.pending = Some(Box::new(error));
                Ok(None)
            }
            Ok(Document::Error(error)) => Err(ClientError::Failed { rows: self.rows(), error: Box::new(error) }),
            Ok(Document::End(end)) => self.end(&end, line),
            Err(_) => Err(ClientError::Protocol { what: "a line that is no document of a query stream" }),
        }
    }

    fn end(&mut self, end: &EndLine, line: Bytes) -> Result<Option<Event>, ClientError> {
        if let Some(error) = self.pending.take() {
            self.interrupt(Interruption::Server(error));
            return Ok(None);
        }
        let rows = self.rows();
        match end.status.as_str() {
            "complete" => {}
            "cancelled" => return Err(ClientError::Cancelled { rows }),
            _ => return Err(ClientError::Protocol { what: "a failed stream without an error line" }),
        }
        let hash = self.prefix_hash();
        if end.rows != rows || !end.prefix_hash.eq_ignore_ascii_case(&hash) {
            return Err(ClientError::Integrity {
                rows,
                hash,
                expected_rows: end.rows,
                expected_hash: document::printable(&end.prefix_hash),
            });
        }
        let summary = Summary { line, rows, prefix_hash: hash, resumes: self.resumes, bytes: self.bytes() };
        self.summary = Some(summary.clone());
        Ok(Some(Event::End(summary)))
    }

    fn interrupt(&mut self, why: Interruption) {
        if let Some(reader) = self.reader.take() {
            self.bytes_before += reader.received_bytes();
        }
        self.interruption = Some(why);
    }

    /// Connects again until the stream goes on or it is plain that it will not.
    async fn take_up(&mut self) -> Result<Event, ClientError> {
        let rows = self.rows();
        loop {
            let why = self.interruption.take().unwrap_or(Interruption::Ended);
            let Some(cursor) = self.cursor.clone() else {
                let because = self.first.not_resumable_because.clone();
                let because = document::printable(because.as_deref().unwrap_or("the server gave no cursor"));
                return Err(ClientError::NotResumable { rows, because, source: why });
            };
            let Some(wait) = self.backoff.next().filter(|_| self.attempts < self.client.options.attempts) else {
                return Err(ClientError::GaveUp { rows, attempts: self.attempts, source: why });
            };
            let asked = match &why {
                Interruption::Server(error) => error.retry_after_ms,
                Interruption::Refused(problem) => problem.retry_after_ms,
                _ => None,
            };
            // Kept until the attempt has an outcome, so that a dropped call forgets nothing.
            self.interruption = Some(why);
            let asked = Duration::from_millis(asked.unwrap_or(0)).min(self.client.options.backoff_max);
            // The first attempt is made at once: most often only the connection is gone.
            let wait = if self.attempts == 0 { asked } else { wait.max(asked) };
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }

            let request = ResumeRequest { cursor: &cursor, rows, prefix_hash: self.prefix_hash() };
            let body = serde_json::to_string(&request).expect("a request of strings and numbers is JSON");
            let attempt = connect(&self.client, "v1/query/resume", body).await;
            self.attempts += 1;
            match attempt {
                Attempt::Open { reader, open, .. } => {
                    if open.from_row != rows {
                        return Err(ClientError::Protocol { what: "a resumed stream that begins at another row" });
                    }
                    if open.schema != self.first.schema {
                        return Err(ClientError::Protocol { what: "a resumed stream with other columns" });
                    }
                    self.cursor = open.cursor.or(Some(cursor));
                    self.reader = Some(reader);
                    self.resumes += 1;
                    let why = self.interruption.take().unwrap_or(Interruption::Ended);
                    return Ok(Event::Resumed { why });
                }
                Attempt::Again(why) => self.interruption = Some(why),
                Attempt::Never(ClientError::Refused(problem)) => {
                    return Err(ClientError::ResumeRefused { rows, problem });
                }
                Attempt::Never(error) => return Err(error),
            }
        }
    }
}

/// Sends a request and reads the open line.
async fn connect(client: &Client, path: &str, body: String) -> Attempt {
    let stall = client.options.stall_timeout;
    let stalled = || Attempt::Again(Interruption::Stalled(stall));
    let answer = match tokio::time::timeout(stall, client.post(path, body).send()).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => return Attempt::Again(Interruption::Unreachable(why)),
        Err(_) => return stalled(),
    };
    if answer.status() != reqwest::StatusCode::OK {
        let Ok(problem) = tokio::time::timeout(stall, document::problem(answer)).await else { return stalled() };
        let problem = Box::new(problem);
        return if problem.is_retryable() {
            Attempt::Again(Interruption::Refused(problem))
        } else {
            Attempt::Never(ClientError::Refused(problem))
        };
    }
    let mut reader = LineReader::new(answer, client.options.line_max_bytes);
    let line = match tokio::time::timeout(stall, reader.next()).await {
        Ok(Ok(Some(line))) => line,
        Ok(Ok(None)) => return Attempt::Again(Interruption::Ended),
        Ok(Err(LineError::Broken(why))) => return Attempt::Again(Interruption::Broken(why)),
        Ok(Err(error)) => return Attempt::Never(ClientError::Line(error)),
        Err(_) => return stalled(),
    };
    match serde_json::from_slice::<Document>(&line) {
        Ok(Document::Open(open)) => Attempt::Open { reader, open: Box::new(open), line },
        _ => Attempt::Never(ClientError::Protocol { what: "a stream without an open line" }),
    }
}
