//! What can go wrong for a client, and the exit code that each stands for.

use std::path::PathBuf;
use std::time::Duration;

use super::document::{ErrorLine, Problem, printable};
use super::line::LineError;
use crate::cli::Exit;

/// A client could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The URL is of no kind that is spoken here.
    #[error("{url:?} is not the URL of a server; it begins with http:// or https://")]
    Url {
        /// What was given.
        url: String,
    },
    /// The token has characters that no header takes.
    #[error("the token has characters that no HTTP header takes (a line break at its end?)")]
    Token,
    /// The certificates cannot be read.
    #[error("the certificates in {} cannot be used", path.display())]
    Ca {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The HTTP library refused.
    #[error("the HTTP client cannot be set up")]
    Http(#[source] reqwest::Error),
}

/// Why a connection that was a stream is one no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Interruption {
    /// It broke.
    #[error("the connection broke")]
    Broken(#[source] reqwest::Error),
    /// It ended before the stream's end line.
    #[error("the connection ended in the middle of the stream")]
    Ended,
    /// Nothing came for too long.
    #[error("nothing came for {} s", .0.as_secs_f64())]
    Stalled(Duration),
    /// The server ended it and says that it can go on.
    #[error("the server ended the stream: {}: {}", .0.code, printable(&.0.message))]
    Server(Box<ErrorLine>),
    /// The server refused to go on for now.
    #[error("the server refused for now: {0}")]
    Refused(Box<Problem>),
    /// The server could not be reached.
    #[error("the server cannot be reached")]
    Unreachable(#[source] reqwest::Error),
}

/// Why a query gave no result, or not the whole of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server could not be reached.
    #[error("the server cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The server answered with a problem.
    #[error("the server refused: {0}")]
    Refused(Box<Problem>),
    /// The server ended the stream with an error.
    #[error("the stream failed after {rows} rows: {}: {}", error.code, printable(&error.message))]
    Failed {
        /// How many rows came.
        rows: u64,
        /// The server's words.
        error: Box<ErrorLine>,
    },
    /// Somebody cancelled the stream.
    #[error("the stream was cancelled after {rows} rows")]
    Cancelled {
        /// How many rows came.
        rows: u64,
    },
    /// The connection is gone and the stream cannot be resumed.
    #[error("the stream was cut after {rows} rows and cannot be resumed: {because}")]
    NotResumable {
        /// How many rows came.
        rows: u64,
        /// Why not.
        because: String,
        /// What cut it.
        source: Interruption,
    },
    /// The connection is gone and every attempt to go on failed.
    #[error("the stream was cut after {rows} rows and could not be taken up again in {attempts} attempts")]
    GaveUp {
        /// How many rows came.
        rows: u64,
        /// How often it was tried.
        attempts: usize,
        /// What the last attempt met.
        source: Interruption,
    },
    /// A resume was refused for good.
    #[error("the stream was cut after {rows} rows and the server does not go on: {problem}")]
    ResumeRefused {
        /// How many rows came.
        rows: u64,
        /// The server's words.
        problem: Box<Problem>,
    },
    /// The rows that came are not the rows that the server sent.
    #[error(
        "the rows are not what the server sent: it counts {expected_rows} rows with hash {expected_hash}, here are {rows} with {hash}"
    )]
    Integrity {
        /// How many rows came.
        rows: u64,
        /// Their hash.
        hash: String,
        /// How many there should be.
        expected_rows: u64,
        /// The hash that they should have.
        expected_hash: String,
    },
    /// The server does not speak the protocol.
    #[error("the server does not speak the protocol: it sent {what}")]
    Protocol {
        /// What it did.
        what: &'static str,
    },
    /// No answer came, however often it was asked for.
    #[error("no answer came in {attempts} attempts")]
    NotAnswered {
        /// How often it was tried.
        attempts: usize,
        /// What the last attempt met.
        source: Interruption,
    },
    /// An answer is not what the protocol says.
    #[error("the server's answer cannot be read")]
    Answer(#[source] serde_json::Error),
    /// The server left records out and said nothing.
    #[error("partition {partition}: the server went on at offset {found} where {expected} was next, and named no gap")]
    Skipped {
        /// Of which partition.
        partition: u32,
        /// The offset that was next.
        expected: u64,
        /// The offset that came.
        found: u64,
    },
    /// What was to be sent cannot be read.
    #[error("what is to be sent cannot be read")]
    Source(#[source] std::io::Error),
    /// A line cannot be taken.
    #[error("the server sent a line that cannot be taken")]
    Line(#[source] LineError),
}

impl ClientError {
    /// The exit code of a command that ends with this.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Refused(problem) | Self::ResumeRefused { problem, .. } => match problem.status {
                404 | 410 => Exit::NotFound,
                401 | 403 | 429 | 503 => Exit::Refused,
                _ => Exit::Failed,
            },
            Self::GaveUp { source: Interruption::Refused(_), .. }
            | Self::NotAnswered { source: Interruption::Refused(_), .. } => Exit::Refused,
            _ => Exit::Failed,
        }
    }

    /// The server's stable code, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(problem) | Self::ResumeRefused { problem, .. } => Some(&problem.code),
            Self::Failed { error, .. } => Some(&error.code),
            _ => None,
        }
    }
}
