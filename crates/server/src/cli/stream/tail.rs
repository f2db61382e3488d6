//! `tidegate stream tail`: a stream's records on stdout, followed over lost connections at the exact record. It prints none
//! twice and leaves none out in silence.

use std::io;

use clap::Args;
use futures::FutureExt;
use futures::stream::{self, BoxStream, SelectAll, StreamExt};

use super::super::ClientArgs;
use super::super::command::{CommandError, Interrupt, client, name};
use crate::client::change::{PartitionInfo, StreamInfo};
use crate::client::{Client, ClientError, Tail, TailEvent};
use crate::output::RecordOutput;

/// `tidegate stream tail`.
#[derive(Debug, Clone, Args)]
pub struct TailArgs {
    /// The stream.
    #[arg(value_parser = name)]
    pub stream: String,
    /// Where to begin: earliest, latest or an offset, which holds for every partition [default: latest; with --no-follow
    /// earliest].
    #[arg(long, value_name = "PLACE")]
    pub from: Option<From>,
    /// Only this partition.
    #[arg(long, value_name = "NUMBER")]
    pub partition: Option<u32>,
    /// Stop after so many records.
    #[arg(short = 'n', long, value_name = "RECORDS")]
    pub count: Option<u64>,
    /// Stop at what is the end now.
    #[arg(long)]
    pub no_follow: bool,
    /// How often a broken connection is taken up again without a record in between.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
}

/// Where a tail begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At the first record that is still there.
    Earliest,
    /// At the next record that comes.
    Latest,
    /// At this offset; what is gone from there on is a gap.
    Offset(u64),
}

impl std::str::FromStr for From {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => text.parse().map(Self::Offset).map_err(|_| "it must be earliest, latest or an offset (0 to 2^64 - 1)"),
        }
    }
}

impl TailArgs {
    /// Where it begins in a partition.
    fn start(&self, bounds: &PartitionInfo) -> u64 {
        self.from.unwrap_or(if self.no_follow { From::Earliest } else { From::Latest }).offset(bounds)
    }
}

impl From {
    fn offset(self, bounds: &PartitionInfo) -> u64 {
        match self {
            Self::Earliest => bounds.earliest,
            Self::Latest => bounds.next,
            Self::Offset(offset) => offset,
        }
    }
}

/// Partitions that are followed at one time: each has a connection of its own, so that each goes on by itself.
const FOLLOWED_MAX: usize = 1_024;
/// Records a page, where nothing is followed.
const PAGE_RECORDS: u64 = 1_000;

/// Runs the command.
pub(super) async fn run(common: &ClientArgs, args: &TailArgs) -> Result<(), CommandError> {
    let mut interrupt = Interrupt::listen()?;
    let client = client(common, args.retries)?;
    let info: StreamInfo = client.stream_info(&args.stream).await?;
    let partitions: Vec<PartitionInfo> = match args.partition {
        None => info.partitions.clone(),
        Some(number) => info.partitions.iter().filter(|bounds| bounds.partition == number).copied().collect(),
    };
    if let (Some(partition), true) = (args.partition, partitions.is_empty()) {
        return Err(CommandError::NoPartition { partition, partitions: info.partitions.len() });
    }
    if partitions.len() > FOLLOWED_MAX {
        return Err(CommandError::Usage(
            "more than 1024 partitions cannot be followed at once: choose one by --partition",
        ));
    }
    let mut output = RecordOutput::new(io::stdout(), common.json);
    let limit = args.count.unwrap_or(u64::MAX);
    let printed = {
        let print = async {
            if args.no_follow {
                print_once(&client, args, &partitions, limit, &mut output).await
            } else {
                follow(common, &client, args, &partitions, limit, &mut output).await
            }
        };
        tokio::select! {
            printed = print => printed,
            () = interrupt.heard() => Err(CommandError::Interrupted),
        }
    };
    output.flush()?;
    printed
}

/// Everything up to what the end is now, partition by partition.
async fn print_once(
    client: &Client,
    args: &TailArgs,
    partitions: &[PartitionInfo],
    limit: u64,
    output: &mut RecordOutput<io::Stdout>,
) -> Result<(), CommandError> {
    for bounds in partitions {
        let mut next = args.start(bounds);
        // An offset beyond the tail is asked for once, so that the server says so.
        while next != bounds.next && output.records() < limit {
            let count = PAGE_RECORDS.min(limit - output.records()).min(bounds.next.saturating_sub(next).max(1));
            let page = client.read(&args.stream, bounds.partition, next, count).await?;
            for item in &page.items {
                output.item(item)?;
            }
            if page.next == next {
                break;
            }
            next = page.next;
        }
    }
    Ok(())
}

type Events = BoxStream<'static, Result<TailEvent, ClientError>>;

/// The events of a tail, up to its first error.
fn events(tail: Tail) -> Events {
    stream::unfold(Some(tail), async |tail| {
        let mut tail = tail?;
        match tail.next().await {
            Ok(event) => Some((Ok(event), Some(tail))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

async fn follow(
    common: &ClientArgs,
    client: &Client,
    args: &TailArgs,
    partitions: &[PartitionInfo],
    limit: u64,
    output: &mut RecordOutput<io::Stdout>,
) -> Result<(), CommandError> {
    let mut all: SelectAll<Events> = partitions
        .iter()
        .map(|bounds| events(Tail::new(client.clone(), args.stream.as_str(), bounds.partition, args.start(bounds))))
        .collect();
    while output.records() < limit {
        let event = match all.next().now_or_never() {
            Some(event) => event,
            // Nothing more is at hand: what was printed is seen before the wait.
            None => {
                output.flush()?;
                all.next().await
            }
        };
        match event {
            Some(Ok(TailEvent::Item(item))) => output.item(&item)?,
            Some(Ok(TailEvent::Resumed { partition, next, why })) => {
                if !common.json {
                    eprintln!("resumed partition {partition} at offset {next}: {why}");
                }
            }
            Some(Err(error)) => return Err(error.into()),
            None => break,
        }
    }
    Ok(())
}
