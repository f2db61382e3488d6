//! What the client commands share: the client, the runtime, how they fail and how they are interrupted. Nothing here asks a
//! server anything.

use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use super::{ClientArgs, Exit, report};
use crate::client::{Client, ClientError, ClientOptions, Problem, SetupError};
use crate::serve::Signals;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What was sent without an answer can be sent once only.
    #[error("{0}; it was sent once, for it is a pipe or has no key: see what is there before it is sent again")]
    Once(#[source] ClientError),
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
    #[error("{} cannot be read", path.display())]
    Input { path: PathBuf, source: io::Error },
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// The input has a line that is no record.
    #[error("line {line}: {what}")]
    Line { line: u64, what: String },
    /// The server refused a batch.
    #[error("{}: {problem}", refused(*first, *last, *line))]
    Batch { first: u64, last: u64, line: Option<u64>, problem: Box<Problem> },
    #[error("the system gives no randomness for a producer's id")]
    Entropy(#[source] tidegate_core::port::EntropyUnavailable),
    #[error("the runtime cannot be started")]
    Runtime(#[source] io::Error),
    #[error("{0}")]
    Usage(&'static str),
    #[error("{0}")]
    Argument(String),
    /// What is there is not what it must be.
    #[error("{0}")]
    Precondition(String),
    /// A key that would name a file outside its folder, or none.
    #[error("the key names no file here: {0}")]
    Key(&'static str),
    #[error("{failed} of {items} failed")]
    Items { failed: u64, items: u64 },
    #[error("partition {partition} is not there; the stream has {partitions}")]
    NoPartition { partition: u32, partitions: usize },
    /// What was done on a store of checkpoints that was opened here.
    #[error(transparent)]
    Checkpoint(Box<super::checkpoint::Failed>),
    #[error("interrupted")]
    Interrupted,
}

impl From<super::checkpoint::Failed> for CommandError {
    fn from(failed: super::checkpoint::Failed) -> Self {
        Self::Checkpoint(Box::new(failed))
    }
}

impl CommandError {
    fn exit(&self) -> Exit {
        match self {
            Self::Setup(_) | Self::Usage(_) | Self::Argument(_) => Exit::Usage,
            Self::Client(error) | Self::Once(error) => error.exit(),
            Self::Batch { problem, .. } => ClientError::Refused(problem.clone()).exit(),
            Self::NoPartition { .. } => Exit::NotFound,
            Self::Checkpoint(error) => error.exit(),
            Self::Interrupted => Exit::Interrupted,
            Self::Output(_)
            | Self::Input { .. }
            | Self::Write { .. }
            | Self::Line { .. }
            | Self::Precondition(_)
            | Self::Key(_)
            | Self::Items { .. }
            | Self::Entropy(_)
            | Self::Runtime(_) => Exit::Failed,
        }
    }

    /// For what is not sent again by itself. A refusal says all there is to say.
    pub(super) fn once(error: ClientError) -> Self {
        match error {
            error @ (ClientError::Refused(_) | ClientError::Source(_)) => Self::Client(error),
            error => Self::Once(error),
        }
    }

    /// The HTTP status of the server's refusal, where it is one.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Client(ClientError::Refused(problem)) => Some(problem.status),
            _ => None,
        }
    }

    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Client(error) | Self::Once(error) => error.code(),
            Self::Batch { problem, .. } => Some(&problem.code),
            Self::Line { .. } => Some("malformed_line"),
            Self::Precondition(_) => Some("precondition_failed"),
            Self::Key(_) => Some("unsafe_key"),
            Self::Checkpoint(error) => Some(error.code()),
            _ => None,
        }
    }
}

/// Which lines the server refused.
fn refused(first: u64, last: u64, line: Option<u64>) -> String {
    match line {
        Some(line) if first < last => format!("line {line} was refused, and lines {first} to {last} with it"),
        Some(line) => format!("line {line} was refused"),
        None if first < last => format!("lines {first} to {last} were refused"),
        None => format!("line {first} was refused"),
    }
}

/// Runs a command to its exit code. A reader of its output who goes away is no failure.
pub(super) fn run(json: bool, command: impl Future<Output = Result<(), CommandError>>) -> Exit {
    // Two threads: an output that blocks must not keep the interrupt from being heard, nor a heartbeat from being sent.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(command);
            runtime.shutdown_background();
            result
        }
        Err(why) => Err(CommandError::Runtime(why)),
    };
    match result {
        Ok(()) => Exit::Ok,
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(CommandError::Interrupted) => Exit::Interrupted,
        Err(error) => {
            report::failure(&error, error.code(), json);
            error.exit()
        }
    }
}

/// How long a server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client that the common flags describe.
pub(super) fn client(args: &ClientArgs, attempts: usize) -> Result<Client, SetupError> {
    Client::new(ClientOptions {
        token: args.token.as_ref().map(|token| token.0.clone()),
        ca: args.ca.clone(),
        stall_timeout: PATIENCE,
        attempts,
        ..ClientOptions::new(args.url.clone())
    })
}

/// Prints a text and a line break, and what was printed before.
pub(super) fn say(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end_matches('\n'))?;
    Ok(out.flush()?)
}

/// Prints a server's own JSON.
pub(super) fn say_json(bytes: &[u8]) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes.trim_ascii_end())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// A command that is told to stop has so long to end in good order.
const GRACE: Duration = Duration::from_secs(5);
/// A second signal so soon after the first is the first.
const ECHO: Duration = Duration::from_millis(250);

/// Whether the user interrupted. After the first Ctrl-C or SIGTERM a command has 5 s to end in good order; a second one ends
/// the process at once.
pub(super) struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// Listens from here on; must be called in a tokio runtime.
    pub(super) fn listen() -> Result<Self, CommandError> {
        let mut signals = Signals::new().map_err(CommandError::Runtime)?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            signals.next().await;
            sender.send_replace(true);
            // One interrupt may come twice: to the process, and to its group.
            let _ = tokio::time::timeout(ECHO, async {
                loop {
                    signals.next().await;
                }
            })
            .await;
            tokio::select! {
                () = tokio::time::sleep(GRACE) => {}
                () = signals.next() => {}
            }
            std::process::exit(i32::from(Exit::Interrupted.code()));
        });
        Ok(Self(receiver))
    }

    /// Waits for the interrupt.
    pub(super) async fn heard(&mut self) {
        // The sender lives as long as the process.
        let _ = self.0.wait_for(|heard| *heard).await;
    }

    /// Whether it was heard.
    pub(super) fn is_heard(&self) -> bool {
        *self.0.borrow()
    }
}

/// `1 record`, `2 records`
pub(super) fn records(count: u64) -> String {
    if count == 1 { "1 record".to_owned() } else { format!("{count} records") }
}

/// A name of a stream or group: 1 to 255 bytes without control characters.
pub(super) fn name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > tidegate_core::id::Name::MAX_BYTES || text.chars().any(char::is_control) {
        return Err("a name has 1 to 255 bytes and no control characters".to_owned());
    }
    if matches!(text, "." | "..") {
        return Err("`.` and `..` are no segments of a URL's path, however they are written".to_owned());
    }
    Ok(text.to_owned())
}

/// A time such as `90s`, in ms.
pub(super) fn duration_ms(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    amount(text, &UNITS).ok_or_else(|| "it must be a number with a unit: 500ms, 90s, 15m, 1h, 7d".to_owned())
}

/// A number of bytes such as `64MiB`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];
    text.parse()
        .ok()
        .or_else(|| amount(text, &UNITS))
        .ok_or_else(|| "it must be a number of bytes: 1048576, 64KiB, 10MiB, 2GiB".to_owned())
}

fn amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(*unit)
}

/// `PARTITION=OFFSET`
pub(super) fn position(text: &str) -> Result<(u32, u64), String> {
    let parts =
        text.split_once('=').and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    parts.ok_or_else(|| "it must be PARTITION=OFFSET, such as 0=105".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_units_and_nothing_overflows() {
        assert_eq!(duration_ms("500ms"), Ok(500));
        assert_eq!(duration_ms("90s"), Ok(90_000));
        assert_eq!(duration_ms("7d"), Ok(604_800_000));
        for wrong in ["", "5", "s", "-1s", "+1s", "1.5h", "1 h", "99999999999999999999d", "18446744073709551615h"] {
            assert!(duration_ms(wrong).is_err(), "{wrong}");
        }
        assert_eq!(bytes("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        for wrong in ["", "MiB", "-1", "1MB", "99999999999GiB", "1e3"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(position("3=18446744073709551615"), Ok((3, u64::MAX)));
        assert!(position("3").is_err() && position("a=1").is_err() && position("1=-1").is_err());
    }

    #[test]
    fn names_are_what_the_server_takes() {
        for right in ["a/b", "a:b", "%2F", "💧", "a b", "...", &"x".repeat(255)] {
            assert_eq!(name(right).as_deref(), Ok(right));
        }
        for wrong in ["", ".", "..", "a\nb", &"x".repeat(256)] {
            assert!(name(wrong).is_err(), "{wrong:?}");
        }
    }
}
