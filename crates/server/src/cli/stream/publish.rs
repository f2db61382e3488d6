//! `tidegate stream publish`: values, files and pipes into a stream. A batch whose answer was lost is sent again and taken once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use tidegate_core::system::OsEntropy;

use super::super::ClientArgs;
use super::super::command::{CommandError, Interrupt, bytes, client, name, records};
use super::input::{End, Frame, Handover, LineKind, Lines, Size, json_or_text};
use crate::client::change::AppendedRange;
use crate::client::{Acknowledged, ClientError, Producer};

/// `tidegate stream publish`.
#[derive(Debug, Clone, Args)]
pub struct PublishArgs {
    /// The stream.
    #[arg(value_parser = name)]
    pub stream: String,
    /// The value: JSON where it is JSON (5, null, true, "5", {"a":1}), a text otherwise. `-` or nothing = lines of stdin.
    #[arg(allow_hyphen_values = true, conflicts_with = "file")]
    pub value: Option<String>,
    /// Lines of this file.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Each line is a JSON value; otherwise it is a record: {"key":...,"op":...,"value":...,"headers":{...}}.
    #[arg(long, conflicts_with = "lines")]
    pub values: bool,
    /// Each line is a text.
    #[arg(long)]
    pub lines: bool,
    /// The key of every value: JSON where it is JSON, a text otherwise.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub key: Option<String>,
    /// The partition of every value [default: by the key, else by turns].
    #[arg(long, value_name = "NUMBER")]
    pub partition: Option<u32>,
    /// A header of every value, a text. May be given again.
    #[arg(long = "header", value_name = "NAME=TEXT", value_parser = header)]
    pub headers: Vec<(String, String)>,
    /// What happened.
    #[arg(long, value_enum)]
    pub op: Option<Op>,
    /// When it happened, such as 2026-11-21T10:00:00.000Z.
    #[arg(long, value_name = "TIME")]
    pub event_time: Option<String>,
    /// At most so many records a request.
    #[arg(long, default_value_t = 1_000, value_name = "RECORDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub batch_records: u64,
    /// About so many bytes a request; a single record may be larger.
    #[arg(long, default_value = "1MiB", value_name = "BYTES", value_parser = bytes)]
    pub batch_bytes: u64,
    /// How often a request is sent again when no answer comes.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Op {
    /// It was added.
    Insert,
    /// It was changed.
    Update,
    /// It was removed.
    Delete,
    /// All rows were removed.
    Truncate,
    /// Nothing: a message that stands for itself.
    Message,
}

impl Op {
    const fn word(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Message => "message",
        }
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it must be NAME=TEXT".to_owned()),
    }
}

impl PublishArgs {
    fn frame(&self) -> Frame {
        Frame {
            key: self.key.as_deref().map(json_or_text),
            op: self.op.map(Op::word),
            headers: self.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect(),
            event_time: self.event_time.clone(),
            partition: self.partition,
        }
    }

    fn has_frame(&self) -> bool {
        self.key.is_some()
            || self.op.is_some()
            || !self.headers.is_empty()
            || self.event_time.is_some()
            || self.partition.is_some()
    }

    fn kind(&self) -> LineKind {
        match (self.values, self.lines) {
            (true, _) => LineKind::Value,
            (_, true) => LineKind::Text,
            _ => LineKind::Record,
        }
    }

    fn size(&self) -> Size {
        let bound = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Size { records: bound(self.batch_records), bytes: bound(self.batch_bytes) }
    }
}

/// Runs the command.
pub(super) async fn run(common: &ClientArgs, args: &PublishArgs) -> Result<(), CommandError> {
    let mut interrupt = Interrupt::listen()?;
    let mut producer = Producer::new(client(common, args.retries)?, args.stream.as_str(), &OsEntropy)
        .map_err(CommandError::Entropy)?;
    let mut report = Report::new(common.json);
    if let Some(value) = args.value.as_deref().filter(|value| *value != "-") {
        if args.values || args.lines {
            return Err(CommandError::Usage("--values and --lines say what lines are; VALUE is a value by itself"));
        }
        let value: Box<RawValue> = json_or_text(value);
        let body = Bytes::from(args.frame().record(&value) + "\n");
        let done = tokio::select! {
            done = producer.publish(&body, 1) => done?,
            () = interrupt.heard() => return Err(CommandError::Interrupted),
        };
        report.add(&done)?;
        return report.end();
    }
    if args.kind() == LineKind::Record && args.has_frame() {
        return Err(CommandError::Usage(
            "records say their own key, op, headers, time and partition; with --values or --lines the flags do",
        ));
    }
    let handover = read(args)?;
    let published = send(&mut producer, &handover, &mut report, &mut interrupt).await;
    let told = report.end();
    if published.is_err() && !common.json {
        eprintln!("{} published before", records(report.records));
    }
    published.and(told)
}

/// Starts the thread that reads lines.
fn read(args: &PublishArgs) -> Result<std::sync::Arc<Handover>, CommandError> {
    let handover = Handover::new(args.size());
    let (filler, kind, frame) = (std::sync::Arc::clone(&handover), args.kind(), args.frame());
    match &args.file {
        Some(path) => {
            let file = File::open(path).map_err(|source| CommandError::Input { path: path.clone(), source })?;
            std::thread::spawn(move || filler.fill(BufReader::with_capacity(64 * 1024, file), kind, &frame));
        }
        None => {
            if io::stdin().is_terminal() {
                eprintln!("reading lines from the terminal; Ctrl-D ends them");
            }
            std::thread::spawn(move || filler.fill(io::stdin().lock(), kind, &frame));
        }
    }
    Ok(handover)
}

async fn send(
    producer: &mut Producer,
    handover: &Handover,
    report: &mut Report,
    interrupt: &mut Interrupt,
) -> Result<(), CommandError> {
    loop {
        let next = tokio::select! {
            next = handover.next() => next,
            () = interrupt.heard() => return Err(CommandError::Interrupted),
        };
        let lines = match next {
            Ok(lines) => lines,
            Err(End::Whole) => return Ok(()),
            Err(End::Line { line, what }) => return Err(CommandError::Line { line, what }),
            Err(End::Io(error)) => return Err(CommandError::Input { path: "the input".into(), source: error }),
        };
        // A batch on its way is waited for: only its answer says whether it is there.
        match producer.publish(&lines.body, lines.numbers.len() as u64).await {
            Ok(done) => report.add(&done)?,
            Err(ClientError::Refused(problem)) => return Err(refused(&lines, problem)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn refused(lines: &Lines, problem: Box<crate::client::Problem>) -> CommandError {
    let line = problem.index().and_then(|index| lines.numbers.get(index)).copied();
    let (first, last) = (lines.numbers.first().copied().unwrap_or(1), lines.numbers.last().copied().unwrap_or(1));
    CommandError::Batch { first, last, line, problem }
}

/// What is said of a batch.
#[derive(Serialize)]
struct Document<'a> {
    count: u64,
    appended: &'a Option<Vec<AppendedRange>>,
    late: u64,
    attempts: u64,
}

/// Says where records came to lie: for people one line a run of offsets, as JSON one document a batch.
struct Report {
    json: bool,
    runs: BTreeMap<u32, AppendedRange>,
    records: u64,
}

impl Report {
    fn new(json: bool) -> Self {
        Self { json, runs: BTreeMap::new(), records: 0 }
    }

    fn add(&mut self, done: &Acknowledged) -> Result<(), CommandError> {
        self.records += done.count;
        if self.json {
            let Acknowledged { count, late, ranges, attempts } = done;
            let document =
                serde_json::to_string(&Document { count: *count, appended: ranges, late: *late, attempts: *attempts });
            let document = document.expect("a document of numbers is JSON");
            writeln!(io::stdout(), "{document}")?;
            return Ok(());
        }
        if done.late > 0 {
            eprintln!("{} came too late and left out (the stream drops what is late)", records(done.late));
        }
        let Some(ranges) = &done.ranges else {
            writeln!(io::stdout(), "{} that the server had already", records(done.count))?;
            return Ok(());
        };
        for range in ranges {
            match self.runs.get_mut(&range.partition) {
                Some(run) if run.next == range.base => run.next = range.next,
                Some(run) => {
                    let before = std::mem::replace(run, *range);
                    line(&before)?;
                }
                None => {
                    self.runs.insert(range.partition, *range);
                }
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), CommandError> {
        for run in std::mem::take(&mut self.runs).into_values() {
            line(&run)?;
        }
        Ok(io::stdout().flush()?)
    }
}

/// `partition 0: offsets 5 to 7 (3 records)`
fn line(range: &AppendedRange) -> io::Result<()> {
    let AppendedRange { partition, base, next } = *range;
    match next.saturating_sub(base) {
        1 => writeln!(io::stdout(), "partition {partition}: offset {base}"),
        count => writeln!(
            io::stdout(),
            "partition {partition}: offsets {base} to {} ({count} records)",
            next.saturating_sub(1)
        ),
    }
}
