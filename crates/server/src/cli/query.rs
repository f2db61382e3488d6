//! `tidegate query`: a query stream from a server to a terminal, a pipe or a file. Ctrl-C cancels it at the server too.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde_json::value::RawValue;

use super::{ClientArgs, Exit, QueryArgs, report};
use crate::client::{Client, ClientError, ClientOptions, Event, QueryRequest, QueryStream, SetupError, Summary};
use crate::output::{Format, Output, OutputError, output};
use crate::serve::Signals;

/// Why a query command failed.
#[derive(Debug, thiserror::Error)]
enum QueryError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the file {} cannot be written", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the runtime cannot be started")]
    Runtime(#[source] io::Error),
}

impl QueryError {
    fn exit(&self) -> Exit {
        match self {
            Self::Setup(_) => Exit::Usage,
            Self::Client(error) => error.exit(),
            Self::Output(_) | Self::File { .. } | Self::Runtime(_) => Exit::Failed,
        }
    }

    fn code(&self) -> Option<&str> {
        match self {
            Self::Client(error) => error.code(),
            _ => None,
        }
    }
}

/// Runs the command.
pub fn run(client: &ClientArgs, args: &QueryArgs) -> Exit {
    // Two threads: an output that blocks must not keep the interrupt from being heard.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(query(client, args)),
        Err(why) => Err(QueryError::Runtime(why)),
    };
    match result {
        Ok(()) => Exit::Ok,
        Err(QueryError::Output(error)) if error.is_closed_pipe() => Exit::Ok,
        Err(error) => {
            report::failure(&error, error.code(), client.json);
            error.exit()
        }
    }
}

/// A parameter: JSON where it is JSON, a text otherwise.
fn parameter(text: &str) -> Box<RawValue> {
    let quoted = || serde_json::value::to_raw_value(text).expect("a string is JSON");
    RawValue::from_string(text.to_owned()).unwrap_or_else(|_| quoted())
}

async fn query(common: &ClientArgs, args: &QueryArgs) -> Result<(), QueryError> {
    let to_terminal = args.output.is_none() && io::stdout().is_terminal();
    let format = args.format.unwrap_or(if to_terminal && !common.json { Format::Table } else { Format::Ndjson });
    let client = Client::new(ClientOptions {
        token: common.token.as_ref().map(|token| token.0.clone()),
        ca: common.ca.clone(),
        attempts: args.retries,
        stall_timeout: Duration::from_millis(args.stall_timeout_ms),
        ..ClientOptions::new(common.url.clone())
    })?;
    let request = QueryRequest {
        source: args.source.clone(),
        sql: args.sql.clone(),
        params: args.params.iter().map(|text| parameter(text)).collect(),
        rows: format.shape(),
    };

    let cursor: Arc<Mutex<Option<String>>> = Arc::default();
    // Heard from here on, before there is anything to cancel.
    let signals = Signals::new().map_err(QueryError::Runtime)?;
    tokio::spawn(interrupted(client.clone(), Arc::clone(&cursor), signals));

    let mut stream = client.query(&request).await?;
    *cursor.lock() = stream.cursor().map(str::to_owned);
    let target = Target::open(args.output.as_deref())?;
    let width = if to_terminal { terminal_width() } else { None };
    let mut sink = output(format, common.json, target.writer()?, width);
    let progress = Progress::new(!args.quiet && !common.json && !to_terminal && io::stderr().is_terminal());

    let result = copy(&mut stream, sink.as_mut(), &cursor, args.limit, &progress).await;
    progress.finish();
    // The rest of a stream that is not wanted any more is cancelled, so that its slot at the server is free at once.
    let held = cursor.lock().take();
    if unwanted(&result)
        && let Some(held) = held
    {
        // Without an answer the server notices by itself; the outcome is what counts.
        let _ = client.cancel(&held).await;
    }
    drop(sink);
    let summary = result?;
    target.keep()?;
    if to_terminal && format == Format::Table && !args.quiet {
        let rows = summary.as_ref().map_or(stream.rows(), |summary| summary.rows);
        let resumed = match stream.resumes() {
            0 => String::new(),
            times => format!(", resumed {times} times"),
        };
        eprintln!("({} rows{resumed})", HumanCount(rows));
    }
    Ok(())
}

/// Whether the server may still hold what nobody here will read.
fn unwanted(result: &Result<Option<Summary>, QueryError>) -> bool {
    match result {
        Ok(summary) => summary.is_none(),
        Err(QueryError::Client(error)) => {
            matches!(error, ClientError::Integrity { .. } | ClientError::Protocol { .. } | ClientError::Line(_))
        }
        Err(_) => true,
    }
}

/// Copies rows until the end (the summary) or the limit (nothing).
async fn copy(
    stream: &mut QueryStream,
    sink: &mut dyn Output,
    cursor: &Mutex<Option<String>>,
    limit: Option<u64>,
    progress: &Progress,
) -> Result<Option<Summary>, QueryError> {
    sink.open(stream.open_line(), stream.open_bytes())?;
    loop {
        if limit.is_some_and(|limit| stream.rows() >= limit) {
            sink.end(None)?;
            return Ok(None);
        }
        if !stream.has_buffered() {
            sink.pause()?;
            progress.show(stream);
        }
        match stream.next().await? {
            Event::Row(line) => sink.row(&line)?,
            Event::Resumed { why } => {
                *cursor.lock() = stream.cursor().map(str::to_owned);
                progress.note(&format!("resumed at row {}: {why}", HumanCount(stream.rows())));
            }
            Event::End(summary) => {
                sink.end(Some(&summary))?;
                return Ok(Some(summary));
            }
        }
    }
}

/// On Ctrl-C or SIGTERM: cancels at the server and ends the process, whatever the rest of it waits for. A second one does
/// not wait for the server's answer.
async fn interrupted(client: Client, cursor: Arc<Mutex<Option<String>>>, mut signals: Signals) {
    signals.next().await;
    let held = cursor.lock().take();
    if let Some(held) = held {
        tokio::select! {
            // Without an answer the server notices by itself that nobody reads.
            _ = client.cancel(&held) => {}
            () = signals.next() => {}
        }
    }
    std::process::exit(i32::from(Exit::Interrupted.code()));
}

fn terminal_width() -> Option<u16> {
    // A terminal that does not know its size says 0.
    comfy_table::Table::new().width().filter(|width| *width >= 20)
}

/// Where rows go: stdout, a file that gets its name when it is whole, or something that is no regular file.
enum Target {
    Stdout,
    Direct(PathBuf),
    Partial { partial: PathBuf, path: PathBuf },
}

impl Target {
    fn open(path: Option<&Path>) -> Result<Self, QueryError> {
        let Some(path) = path else { return Ok(Self::Stdout) };
        // A device or a named pipe cannot be renamed over.
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Ok(Self::Direct(path.to_owned()));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        Ok(Self::Partial { partial: partial.into(), path: path.to_owned() })
    }

    fn writer(&self) -> Result<Box<dyn Write + Send>, QueryError> {
        let (path, opened) = match self {
            Self::Stdout => return Ok(Box::new(io::stdout())),
            Self::Direct(path) => (path, File::options().write(true).open(path)),
            Self::Partial { partial, .. } => (partial, File::create(partial)),
        };
        match opened {
            Ok(file) => Ok(Box::new(file)),
            Err(source) => Err(QueryError::File { path: path.clone(), source }),
        }
    }

    fn keep(self) -> Result<(), QueryError> {
        match self {
            Self::Stdout | Self::Direct(_) => Ok(()),
            Self::Partial { partial, path } => {
                std::fs::rename(&partial, &path).map_err(|source| QueryError::File { path, source })
            }
        }
    }
}

/// A line on stderr: rows, rows a second, bytes, resumes.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(shown: bool) -> Self {
        if !shown {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
        let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self(Some(bar))
    }

    fn show(&self, stream: &QueryStream) {
        if let Some(bar) = &self.0 {
            let (rows, elapsed) = (stream.rows(), bar.elapsed().as_millis().max(1));
            let rate = u64::try_from(u128::from(rows) * 1000 / elapsed).unwrap_or(u64::MAX);
            bar.set_message(format!(
                "{} rows  {} rows/s  {}  {} resumes",
                HumanCount(rows),
                HumanCount(rate),
                HumanBytes(stream.bytes()),
                stream.resumes()
            ));
            bar.tick();
        }
    }

    fn note(&self, text: &str) {
        if let Some(bar) = &self.0 {
            bar.println(text);
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
