//! The command line: what can be said, and what each command answers with. It refuses what this version cannot do by name; it
//! takes nothing in silence.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use reqwest::Url;

use crate::config::{Flags, Secret, SourceSpec};
use crate::output::Format;

mod checkpoint;
mod command;
mod config_check;
mod group;
mod object;
mod query;
mod report;
mod source;
mod stream;
mod top;

pub use checkpoint::{CheckpointCommand, StoreArgs};
pub use group::{ConsumeArgs, CreateGroupArgs, GroupCommand, GroupSpecArgs, SeekArgs};
pub use object::{BatchCommand, DownArgs, GetArgs, ListArgs, ObjectCommand, PutArgs, RemoveArgs, TransferArgs, UpArgs};
pub use query::run as run_query;
pub(crate) use report::failure as report_error;
pub use source::{AcknowledgeArgs, SourceCommand};
pub use stream::{CreateArgs, PublishArgs, StreamCommand, TailArgs};
pub use top::TopArgs;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// All is done.
    Ok,
    /// Something failed.
    Failed,
    /// The command line was wrong.
    Usage,
    /// What was asked for is not there (any more).
    NotFound,
    /// The server refused: capacity or rights.
    Refused,
    /// The user interrupted.
    Interrupted,
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Refused => 4,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Streams out of data systems that can be stopped anywhere and go on at the exact record.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What is asked of every client command.
    #[command(flatten)]
    pub client: ClientArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 refused (capacity, rights), 130 interrupted.";

/// Where a client's server is, and how its answers are shown.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// The server.
    #[arg(long, global = true, env = "TIDEGATE_URL", default_value = "http://127.0.0.1:7070", value_name = "URL")]
    pub url: Url,
    /// A bearer token.
    #[arg(long, global = true, env = "TIDEGATE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<TokenArg>,
    /// Trust these certificates (PEM) in place of the system's.
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Print machine-readable output, errors too.
    #[arg(long, global = true)]
    pub json: bool,
}

/// A token on the command line; `Debug` hides it.
#[derive(Debug, Clone)]
pub struct TokenArg(pub Secret);

impl std::str::FromStr for TokenArg {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Secret::new(text)))
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Run the server.
    Serve(ServeArgs),
    /// Tell the whole story on real data and a real server, then keep serving.
    Demo(DemoArgs),
    /// Run a query at a server and print its rows. Goes on by itself when the connection drops.
    Query(QueryArgs),
    /// Change streams: list, create, show, remove, publish to and tail them.
    Stream {
        /// What to do.
        #[command(subcommand)]
        command: StreamCommand,
    },
    /// Consumer groups: list, create, show, remove, move and read in them.
    Group {
        /// What to do.
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Databases whose changes become streams: list and show them, and say how one goes on that lost changes.
    Source {
        /// What to do.
        #[command(subcommand)]
        command: SourceCommand,
    },
    /// Checkpoints of stream processors: list, show, verify and remove them.
    Checkpoint {
        /// What to do.
        #[command(subcommand)]
        command: CheckpointCommand,
    },
    /// Objects: write, read, remove and list them, folders at once.
    Object {
        /// What to do.
        #[command(subcommand)]
        command: ObjectCommand,
    },
    /// Watch streams and groups live: rates, members, lag.
    Top(TopArgs),
    /// Look into configurations.
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a completion script.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// What can be done with configurations.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum ConfigCommand {
    /// Say what is wrong with a configuration, with line and key; the environment counts too.
    Check {
        /// The file.
        file: PathBuf,
        /// As for `serve`.
        #[arg(long)]
        insecure: bool,
    },
}

/// `tidegate serve`.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// The configuration file [default: tidegate.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the server keeps what is its own [default: ./tidegate-data].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where to listen for HTTP; port 0 = any free one [default: 127.0.0.1:7070].
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<String>,
    /// Not in this version.
    #[arg(long, value_name = "ADDRESS", hide = true)]
    pub grpc: Option<String>,
    /// Not in this version.
    #[arg(long, value_name = "ADDRESS", hide = true)]
    pub pg: Option<String>,
    /// A database: NAME=sqlite:PATH or NAME=postgres://USER@HOST/DATABASE. May be given again.
    #[arg(long = "source", value_name = "NAME=URL")]
    pub sources: Vec<SourceSpec>,
    /// When a write counts as done: fsync or os [default: fsync].
    #[arg(long, value_name = "WHEN")]
    pub durability: Option<String>,
    /// Any other key of the configuration, such as stream.chunk.max_rows=10. May be given again.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Listen on a non-loopback address without a section auth.
    #[arg(long)]
    pub insecure: bool,
    /// How the log on stderr looks.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl ServeArgs {
    /// The flags as the configuration's last layer.
    #[must_use]
    pub fn flags(&self) -> Flags {
        let mut flags = Flags { insecure: self.insecure, ..Flags::default() };
        for (key, value) in &self.set {
            flags.set("--set", key, value.as_str());
        }
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        for (name, key, value) in [
            ("--data-dir", "data_dir", self.data_dir.as_ref().map(text)),
            ("--http", "listen.http", self.http.clone()),
            ("--grpc", "listen.grpc", self.grpc.clone()),
            ("--pg", "listen.pg", self.pg.clone()),
            ("--durability", "durability", self.durability.clone()),
        ] {
            if let Some(value) = value {
                flags.set(name, key, value);
            }
        }
        for source in &self.sources {
            flags.source(source.clone());
        }
        flags
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `tidegate demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Where to listen for HTTP; port 0 = any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub http: std::net::SocketAddr,
    /// End after the story instead of serving on.
    #[arg(long)]
    pub exit: bool,
    /// Keep the demo's data here instead of in a temporary folder that goes away.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// `tidegate query`.
#[derive(Debug, Clone, Args)]
pub struct QueryArgs {
    /// The statement.
    pub sql: String,
    /// The source at the server.
    #[arg(long, default_value = "main", value_name = "NAME")]
    pub source: String,
    /// A parameter, in order: JSON where it is JSON (5, null, true, "5"), a text otherwise. May be given again.
    #[arg(long = "param", value_name = "VALUE", allow_hyphen_values = true)]
    pub params: Vec<String>,
    /// How rows are printed [default: table on a terminal, ndjson otherwise].
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Write to this file (through FILE.partial, renamed when all rows are there).
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Stop after so many rows and cancel the rest.
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<u64>,
    /// How often a broken stream is taken up again without a row in between.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
    /// A stream that gives nothing for so long counts as broken.
    #[arg(long, default_value_t = 300_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub stall_timeout_ms: u64,
    /// Show no progress.
    #[arg(long, short)]
    pub quiet: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it must be KEY=VALUE".to_owned()),
    }
}

/// Runs what the command line says and gives the exit code.
#[must_use]
pub fn run(cli: Cli) -> Exit {
    let json = cli.client.json;
    match cli.command {
        Command::Serve(args) => crate::serve::run(&args),
        Command::Demo(args) => crate::demo::run(&args, json),
        Command::Query(args) => query::run(&cli.client, &args),
        Command::Stream { command } => stream::run(&cli.client, &command),
        Command::Group { command } => group::run(&cli.client, &command),
        Command::Source { command } => source::run(&cli.client, &command),
        Command::Checkpoint { command } => checkpoint::run(&cli.client, &command),
        Command::Object { command } => object::run(&cli.client, &command),
        Command::Top(args) => top::run(&cli.client, &args),
        Command::Config { command: ConfigCommand::Check { file, insecure } } => {
            config_check::run(&file, insecure, json)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut std::io::stdout());
            Exit::Ok
        }
    }
}

#[cfg(test)]
mod tests;
