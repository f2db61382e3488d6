//! `tidegate object batch`: a folder up, a list of keys down, many at a time. One that fails holds up none and is told with its reason; a
//! second run does what is left.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Args, Subcommand};

use super::super::command::{CommandError, Interrupt, bytes, say};
use super::super::{ClientArgs, report};
use super::folder::JOURNAL;
use super::journal::Journal;
use super::progress::Progress;
use crate::client::object::CollectionName;
use crate::client::{Client, printable};

mod down;
mod up;

/// Which way.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum BatchCommand {
    /// Every file of a folder and of the folders in it; the key is the path in the folder, with `/`.
    Up(UpArgs),
    /// Objects into a folder: those of a list, or all whose keys have a prefix.
    Down(DownArgs),
}

/// What both ways share.
#[derive(Debug, Clone, Args)]
pub struct TransferArgs {
    /// How many large objects (over 1 MiB) are on their way at one time; small ones go many in a request.
    #[arg(long, default_value_t = 16, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=256))]
    pub at_once: u64,
    /// How often a request is sent again when no answer comes.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
    /// Show no progress.
    #[arg(long, short)]
    pub quiet: bool,
}

/// `tidegate object batch up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// The collection.
    pub collection: CollectionName,
    /// The folder. What is done is noted in FOLDER/.tidegate-batch.
    pub folder: PathBuf,
    /// A larger file goes in parts of this size.
    #[arg(long, default_value = "64MiB", value_name = "BYTES", value_parser = bytes)]
    pub part_size: u64,
    /// How.
    #[command(flatten)]
    pub transfer: TransferArgs,
}

/// `tidegate object batch down`.
#[derive(Debug, Clone, Args)]
pub struct DownArgs {
    /// The collection.
    pub collection: CollectionName,
    /// A file of keys, one a line; `-` = stdin.
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    pub list: Option<PathBuf>,
    /// All objects whose keys begin with this, in place of a list.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prefix: Option<String>,
    /// Into this folder. What is done is noted in FOLDER/.tidegate-batch.
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
    /// How.
    #[command(flatten)]
    pub transfer: TransferArgs,
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Skipped,
}

/// Counts what became of objects, and tells it as it comes.
struct Tally {
    json: bool,
    progress: Progress,
    done: AtomicU64,
    skipped: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    fn new(json: bool, progress: Progress) -> Self {
        let [done, skipped, failed] = std::array::from_fn(|_| AtomicU64::new(0));
        Self { json, progress, done, skipped, failed }
    }

    fn tell(&self, key: &str, result: Result<Outcome, CommandError>) -> Result<(), CommandError> {
        self.progress.add(1);
        let (word, failure) = match result {
            Ok(Outcome::Done) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                ("done", None)
            }
            Ok(Outcome::Skipped) => {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                ("skipped", None)
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                ("failed", Some((report::words(&error), error.code().map(str::to_owned))))
            }
        };
        if self.json {
            let line = match failure {
                None => serde_json::json!({ "key": key, "status": word }),
                Some((message, code)) => {
                    serde_json::json!({ "key": key, "status": word, "code": code, "message": message })
                }
            };
            writeln!(io::stdout(), "{line}")?;
        } else if let Some((message, _)) = failure {
            self.progress.note(&format!("failed: {}: {}", printable(key), message.replace('\n', " ")));
        }
        Ok(())
    }

    /// The last line, and how it ends.
    fn end(&self, way: &str) -> Result<(), CommandError> {
        self.progress.finish();
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let (done, skipped, failed) = (count(&self.done), count(&self.skipped), count(&self.failed));
        if self.json {
            say(&serde_json::json!({ "end": { "done": done, "skipped": skipped, "failed": failed } }).to_string())?;
        } else {
            say(&format!("{done} {way}, {skipped} there already, {failed} failed"))?;
        }
        match failed {
            0 => Ok(()),
            failed => Err(CommandError::Items { failed, items: done + skipped + failed }),
        }
    }
}

/// Runs the command.
pub(super) async fn run(common: &ClientArgs, command: &BatchCommand) -> Result<(), CommandError> {
    let mut interrupt = Interrupt::listen()?;
    let running = async {
        match command {
            BatchCommand::Up(args) => up::run(common, args).await,
            BatchCommand::Down(args) => down::run(common, args).await,
        }
    };
    tokio::select! {
        ran = running => ran,
        () = interrupt.heard() => {
            eprintln!("interrupted; the same command does what is left");
            Err(CommandError::Interrupted)
        }
    }
}

fn journal(client: &Client, way: &str, collection: &CollectionName, folder: &Path) -> Result<Journal, CommandError> {
    let at = format!("{way} {} {collection}", client.base());
    Journal::open(folder, at).map_err(|source| CommandError::Write { path: folder.join(JOURNAL), source })
}

fn shown(common: &ClientArgs, args: &TransferArgs) -> bool {
    !args.quiet && !common.json
}

fn at_once(args: &TransferArgs) -> usize {
    usize::try_from(args.at_once).unwrap_or(usize::MAX)
}
