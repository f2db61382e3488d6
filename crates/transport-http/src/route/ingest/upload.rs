//! An upload as it goes on: rows gathered into a chunk, the chunk committed, the commit told. What was committed stays, and every end
//! says how much that is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tidegate_cdc::{NewRecord, PublishError, PublishRequest};
use tidegate_core::Principal;
use tidegate_core::id::Name;
use tidegate_core::limit::Settings;
use tidegate_core::position::{Offset, Partition};
use tokio::sync::mpsc;

use super::line::{Line, LineError, Lines, Verify, at_line, parse, text};
use crate::gate::{App, draining, json_problem};
use crate::problem::Problem;
use crate::record::{check_depth, one_line};
use crate::route::change_problem::publish_problem;

/// A chunk is committed when it has this many bytes, however few its rows are.
pub(crate) const CHUNK_MAX_BYTES: usize = 4 * 1024 * 1024;

/// An upload that is going on.
pub(super) struct Upload {
    app: Arc<App>,
    principal: Principal,
    stream: Name,
    settings: Settings,
    lines: Lines,
    verify: Verify,
    hasher: Sha256,
    chunk: Vec<NewRecord>,
    /// The lines that the chunk's rows stood in.
    numbers: Vec<u64>,
    chunk_bytes: usize,
    committed_rows: u64,
    chunks: u64,
    /// Where the first chunk went: the others follow it, so that the rows keep their order.
    place: Option<(Partition, Offset)>,
}

impl Upload {
    pub(super) fn new(
        app: Arc<App>,
        principal: Principal,
        stream: Name,
        settings: Settings,
        lines: Lines,
        verify: Verify,
    ) -> Self {
        Self {
            app,
            principal,
            stream,
            settings,
            lines,
            verify,
            hasher: Sha256::new(),
            chunk: Vec::new(),
            numbers: Vec::new(),
            chunk_bytes: 0,
            committed_rows: 0,
            chunks: 0,
            place: None,
        }
    }

    /// Goes on to the end, and tells it.
    pub(super) async fn run(mut self, answers: mpsc::Sender<Bytes>) {
        let app = Arc::clone(&self.app);
        let left = async {
            app.leaving.cancelled().await;
            let clock = &app.services.clock;
            let settings = app.services.streams.settings().freeze();
            clock.sleep_until(clock.now().after(Duration::from_millis(settings.limits_drain_ms()))).await;
        };
        tokio::pin!(left);
        let last = loop {
            // A commit that was begun is waited for: dropping it would leave open whether it happened.
            let line = tokio::select! {
                biased;
                line = self.lines.next(line_limit(&self.settings)) => line,
                () = &mut left => break self.failed(draining()),
            };
            match self.take(line, &answers).await {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(problem) => break self.failed(problem),
            }
        };
        // Nobody listens: then nobody is told.
        let _ = answers.send(last).await;
    }

    /// Takes a line in; gives the last line of the answer, if it was the end.
    async fn take(
        &mut self,
        line: Result<Option<Bytes>, LineError>,
        answers: &mpsc::Sender<Bytes>,
    ) -> Result<Option<Bytes>, Problem> {
        let number = self.lines.number;
        let named = |problem: Problem| problem.with("line", number);
        let Some(line) = line.map_err(|error| named(self.line_problem(error)))? else {
            return self.end(None).await.map(Some);
        };
        let parsed =
            text(&line).and_then(parse).map_err(|error| json_problem(&at_line(error, number)).with("line", number));
        match parsed? {
            Line::End(hash) => {
                if self.lines.has_more() {
                    let detail = "the end must be the last line";
                    return Err(named(Problem::new(http::StatusCode::BAD_REQUEST, "invalid_field", detail)));
                }
                self.end(Some(hash)).await.map(Some)
            }
            Line::Row(row) => {
                check_depth(row, "row").map_err(|error| named(json_problem(&error)))?;
                let mut record = NewRecord::message(one_line(&line, row));
                record.partition = self.place.map(|(partition, _)| partition);
                if self.verify == Verify::Sha256 {
                    self.hasher.update(&line);
                }
                self.chunk_bytes += line.len();
                self.chunk.push(record);
                self.numbers.push(number);
                let rows = self.settings.stream_chunk_max_rows().min(self.settings.limits_batch_max_records());
                if self.chunk.len() as u64 >= rows
                    || self.chunk_bytes >= CHUNK_MAX_BYTES.min(batch_limit(&self.settings))
                {
                    self.commit().await?;
                    // Where no room is left the next line says all that this one does.
                    let _ = answers.try_send(self.committed());
                }
                Ok(None)
            }
        }
    }

    /// The last lines: checks, commits the rest, and says so. `told`: the end line's hash; without an end line the body just ended.
    async fn end(&mut self, told: Option<Option<String>>) -> Result<Bytes, Problem> {
        let refused = |code, detail: &str| Problem::new(http::StatusCode::BAD_REQUEST, code, detail);
        let integrity = match (self.verify, told) {
            (Verify::None, None | Some(None)) => "unchecked",
            (Verify::None, Some(Some(_))) => {
                return Err(refused("invalid_field", "end.sha256 is given, and open.verify is not \"sha256\""));
            }
            (Verify::Sha256, None | Some(None)) => {
                return Err(refused(
                    "end_missing",
                    "the rows were to be checked, and their end line with its sha256 did not come",
                ));
            }
            (Verify::Sha256, Some(Some(expected))) => {
                let actual = hex(&self.hasher.clone().finalize());
                if !expected.eq_ignore_ascii_case(&actual) {
                    return Err(refused("integrity_failed", "the rows that came are not those that were sent")
                        .with("expected", expected)
                        .with("actual", actual));
                }
                "ok"
            }
        };
        if !self.chunk.is_empty() {
            self.commit().await?;
        }
        let mut lines = Vec::new();
        if self.chunks > 0 {
            lines.extend_from_slice(&self.committed());
        }
        let end = json!({"end": {"rows": self.committed_rows, "chunks": self.chunks, "integrity": integrity}});
        push_line(&mut lines, &end);
        Ok(lines.into())
    }

    async fn commit(&mut self) -> Result<(), Problem> {
        let records = std::mem::take(&mut self.chunk);
        self.chunk_bytes = 0;
        let rows = records.len() as u64;
        let numbers = std::mem::take(&mut self.numbers);
        let request = PublishRequest { records, producer: None };
        let published = self.app.services.streams.publish(&self.principal, &self.stream, request).await;
        let published = published.map_err(|error| match &error {
            // The place in the chunk says nothing to who knows lines.
            PublishError::RecordTooLarge { index, .. } => match numbers.get(*index) {
                Some(number) => publish_problem(&error).with("line", *number),
                None => publish_problem(&error),
            },
            _ => publish_problem(&error),
        })?;
        if let Some(range) = published.appended.last() {
            self.place = Some((range.partition, range.next));
        }
        self.committed_rows += rows;
        self.chunks += 1;
        Ok(())
    }

    /// `{"committed":...}`: all that is there so far.
    fn committed(&self) -> Bytes {
        let next: Map<String, Value> =
            self.place.iter().map(|(partition, next)| (partition.0.to_string(), next.0.into())).collect();
        let mut line = Vec::new();
        push_line(&mut line, &json!({"committed": {"rows": self.committed_rows, "next": next}}));
        line.into()
    }

    fn failed(&self, problem: Problem) -> Bytes {
        let mut error = problem.members().clone();
        error.insert("code".into(), problem.code().into());
        error.insert("message".into(), problem.detail().into());
        error.insert("retry".into(), problem.advice().into());
        error.insert("committed_rows".into(), self.committed_rows.into());
        let mut line = Vec::new();
        push_line(&mut line, &json!({"error": error}));
        line.into()
    }

    fn line_problem(&self, error: LineError) -> Problem {
        match error {
            LineError::Body(error) => error.into(),
            LineError::TooLong { limit_bytes } => Problem::new(
                http::StatusCode::PAYLOAD_TOO_LARGE,
                "record_too_large",
                format!("the line has more than {limit_bytes} bytes (limits.record_max_bytes)"),
            )
            .with("max_bytes", limit_bytes),
        }
    }
}

/// A row as a line: the row and what is around it. Together with the bytes of a chunk it bounds what an upload holds.
fn line_limit(settings: &Settings) -> usize {
    usize::try_from(settings.limits_record_max_bytes()).unwrap_or(usize::MAX)
}

fn batch_limit(settings: &Settings) -> usize {
    usize::try_from(settings.limits_batch_max_bytes()).unwrap_or(usize::MAX)
}

fn push_line(out: &mut Vec<u8>, line: &Value) {
    serde_json::to_writer(&mut *out, line).expect("a JSON value is serialisable, and memory takes it");
    out.push(b'\n');
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut hex, byte| {
        use std::fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
