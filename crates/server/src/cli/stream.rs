//! `tidegate stream`: change streams at a server. Lists, shows, creates and removes; publishing and tailing are beside it.

use clap::{Args, Subcommand};
use serde::Deserialize;

use super::command::{CommandError, bytes, client, duration_ms, name, run as run_command, say, say_json};
use super::{ClientArgs, Exit};
use crate::client::change::{RetentionSpec, StreamInfo, StreamList, StreamSpec};
use crate::client::{Client, ClientError};
use crate::output::grid;

mod input;
mod publish;
mod tail;

pub use publish::PublishArgs;
pub use tail::TailArgs;

/// What can be done with streams.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum StreamCommand {
    /// List the streams. Of a long name both ends are shown; --json has it whole.
    Ls,
    /// Create a stream. One that is there already and equal is no failure.
    Create(CreateArgs),
    /// Show a stream: what it is, and the bounds of its partitions.
    Show {
        /// The stream.
        #[arg(value_parser = name)]
        stream: String,
    },
    /// Remove a stream with all its records and groups.
    Rm {
        /// The stream.
        #[arg(value_parser = name)]
        stream: String,
    },
    /// Publish records. Each is there once, whatever becomes of the connection.
    Publish(PublishArgs),
    /// Print a stream's records and follow it. Goes on at the exact record when the connection drops.
    Tail(TailArgs),
}

/// `tidegate stream create`.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// The stream.
    #[arg(value_parser = name)]
    pub stream: String,
    /// How many partitions: as many members of an ordered group can share the work.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub partitions: Option<u32>,
    /// Keep at most so many records a partition.
    #[arg(long, value_name = "RECORDS")]
    pub retention_records: Option<u64>,
    /// Keep records for so long: 90s, 15m, 1h, 7d.
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub retention_age: Option<u64>,
    /// Keep at most so many bytes a partition: 1048576, 64MiB.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub retention_bytes: Option<u64>,
    /// Keep only the newest record of each key.
    #[arg(long, value_enum)]
    pub compaction: Option<Compaction>,
    /// What becomes of a record that is older than the watermark.
    #[arg(long, value_enum)]
    pub late: Option<Late>,
    /// In words, what the stream is.
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
}

/// Whether a later record of a key takes the place of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compaction {
    /// Every record stays.
    None,
    /// The newest of each key stays.
    Key,
}

/// What becomes of late records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Late {
    /// They are taken.
    Allow,
    /// They are left out, and counted.
    Drop,
}

impl CreateArgs {
    fn spec(&self) -> StreamSpec {
        let retention =
            RetentionSpec { records: self.retention_records, age_ms: self.retention_age, bytes: self.retention_bytes };
        StreamSpec {
            partitions: self.partitions,
            retention: Some(retention).filter(|retention| *retention != RetentionSpec::default()),
            compaction: self.compaction.map(|compaction| match compaction {
                Compaction::None => "none",
                Compaction::Key => "key",
            }),
            late: self.late.map(|late| match late {
                Late::Allow => "allow",
                Late::Drop => "drop",
            }),
            description: self.description.clone(),
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &ClientArgs, command: &StreamCommand) -> Exit {
    run_command(args.json, async {
        match command {
            StreamCommand::Publish(publish) => publish::run(args, publish).await,
            StreamCommand::Tail(tail) => tail::run(args, tail).await,
            StreamCommand::Ls => list(&client(args, 1)?, args.json).await,
            StreamCommand::Create(create) => {
                let (new, body) = client(args, 1)?.create_stream(&create.stream, &create.spec()).await?;
                if args.json {
                    return say_json(&body);
                }
                say(&format!("{} {}", if new { "created" } else { "there already, and equal:" }, create.stream))
            }
            StreamCommand::Show { stream } => show(&client(args, 1)?, stream, args.json).await,
            StreamCommand::Rm { stream } => {
                client(args, 1)?.remove_stream(stream).await?;
                if args.json { say_json(b"{}") } else { say(&format!("removed {stream}")) }
            }
        }
    })
}

/// Pages that a list is read in at most.
const PAGES_MAX: usize = 1_000;

async fn list(client: &Client, json: bool) -> Result<(), CommandError> {
    let mut after: Option<String> = None;
    let mut rows = Vec::new();
    for _ in 0..PAGES_MAX {
        let body = client.streams(after.as_deref()).await?;
        if json {
            say_json(&body)?;
        }
        let page: StreamList = read(&body)?;
        rows.extend(page.streams.iter().map(|stream| {
            vec![
                stream.name.clone(),
                stream.partitions.len().to_string(),
                stream.sum(|partition| partition.next.saturating_sub(partition.earliest)).to_string(),
                stream.sum(|partition| partition.bytes).to_string(),
                stream.compaction.clone().unwrap_or_default(),
                stream.description.clone().unwrap_or_default(),
            ]
        }));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if json {
        return Ok(());
    }
    say(&grid(&["stream", "partitions", "offsets kept", "bytes", "compaction", "description"], &[1, 2, 3], rows))
}

async fn show(client: &Client, stream: &str, json: bool) -> Result<(), CommandError> {
    let body = client.stream(stream).await?;
    if json {
        return say_json(&body);
    }
    let info: StreamInfo = read(&body)?;
    let mut facts = vec![format!("stream       {}", info.name), format!("partitions   {}", info.partitions.len())];
    let retention = info.retention.unwrap_or_default();
    let kept: Vec<String> = [
        retention.records.map(|records| format!("{records} records")),
        retention.bytes.map(|bytes| format!("{bytes} bytes")),
        retention.age_ms.map(|age| format!("{age} ms")),
    ]
    .into_iter()
    .flatten()
    .collect();
    facts.push(format!("retention    {}", if kept.is_empty() { "none".to_owned() } else { kept.join(", ") }));
    for (what, value) in [("compaction", &info.compaction), ("late", &info.late), ("description", &info.description)] {
        if let Some(value) = value {
            facts.push(format!("{what:<12} {}", crate::client::printable(value)));
        }
    }
    let rows = info.partitions.iter().map(|bounds| {
        vec![
            bounds.partition.to_string(),
            bounds.earliest.to_string(),
            bounds.next.to_string(),
            bounds.bytes.to_string(),
        ]
    });
    say(&format!("{}\n\n{}", facts.join("\n"), grid(&["partition", "earliest", "next", "bytes"], &[0, 1, 2, 3], rows)))
}

/// A document of the server's.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(ClientError::Answer)
}
