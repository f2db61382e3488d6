//! `tidegate group`: consumer groups at a server. Lists, shows, creates, removes and moves; reading in one is beside it.

use clap::{Args, Subcommand};

use super::command::{CommandError, client, duration_ms, name, position, run as run_command, say, say_json};
use super::stream::read;
use super::{ClientArgs, Exit};
use crate::client::change::{GroupInfo, GroupList, GroupSpec, PositionInfo};
use crate::client::{Client, Seek};
use crate::output::grid;

mod consume;

pub use consume::ConsumeArgs;

/// What can be done with groups.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum GroupCommand {
    /// List a stream's groups. Of a long name both ends are shown; --json has it whole.
    Ls {
        /// The stream.
        #[arg(value_parser = name)]
        stream: String,
    },
    /// Create a group. One that is there already and equal is no failure.
    Create(CreateGroupArgs),
    /// Show a group: its members, and where it stands.
    Show {
        /// The stream.
        #[arg(value_parser = name)]
        stream: String,
        /// The group.
        #[arg(value_parser = name)]
        group: String,
    },
    /// Remove a group with its positions.
    Rm {
        /// The stream.
        #[arg(value_parser = name)]
        stream: String,
        /// The group.
        #[arg(value_parser = name)]
        group: String,
    },
    /// Move a group to another place.
    Seek(SeekArgs),
    /// Read in a group, as a member of it, until interrupted. A record is committed after it was written out.
    Consume(ConsumeArgs),
}

/// `tidegate group create`.
#[derive(Debug, Clone, Args)]
pub struct CreateGroupArgs {
    /// The stream.
    #[arg(value_parser = name)]
    pub stream: String,
    /// The group.
    #[arg(value_parser = name)]
    pub group: String,
    /// What it is.
    #[command(flatten)]
    pub spec: GroupSpecArgs,
}

/// What a new group is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct GroupSpecArgs {
    /// How members share the work.
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Where it begins.
    #[arg(long, value_enum)]
    pub start: Option<Start>,
    /// A member that is silent for so long is gone: 1500ms, 10s.
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub session: Option<u64>,
    /// In a shared group: what is not acknowledged in this time is delivered again.
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub ack_timeout: Option<u64>,
    /// In a shared group: how often a record is delivered before it goes to the dead letters.
    #[arg(long, value_name = "TIMES")]
    pub max_deliveries: Option<u64>,
    /// In a shared group: the stream of the dead letters.
    #[arg(long, value_name = "STREAM", value_parser = name)]
    pub dead_letter: Option<String>,
    /// What happens where records are gone.
    #[arg(long, value_enum)]
    pub on_gap: Option<OnGap>,
}

/// How members share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Each partition belongs to one member, in order.
    Ordered,
    /// Each record goes to anyone and is acknowledged by itself.
    Shared,
}

/// Where a group begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Start {
    /// At the first record that is still there.
    Earliest,
    /// At the next record that comes.
    Latest,
}

/// What happens where records are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnGap {
    /// The gap is reported and reading goes on after it.
    Report,
    /// Reading stops until the group is moved.
    Stop,
}

impl GroupSpecArgs {
    fn spec(&self) -> GroupSpec {
        GroupSpec {
            mode: self.mode.map(|mode| match mode {
                Mode::Ordered => "ordered",
                Mode::Shared => "shared",
            }),
            start: self.start.map(|start| match start {
                Start::Earliest => "earliest",
                Start::Latest => "latest",
            }),
            session_ms: self.session,
            ack_timeout_ms: self.ack_timeout,
            max_deliveries: self.max_deliveries,
            dead_letter: self.dead_letter.clone(),
            on_gap: self.on_gap.map(|on_gap| match on_gap {
                OnGap::Report => "report",
                OnGap::Stop => "stop",
            }),
        }
    }
}

/// `tidegate group seek`.
#[derive(Debug, Clone, Args)]
pub struct SeekArgs {
    /// The stream.
    #[arg(value_parser = name)]
    pub stream: String,
    /// The group.
    #[arg(value_parser = name)]
    pub group: String,
    /// Every partition: earliest, latest, or the first record appended at or after a time such as 2026-11-21T10:00:00.000Z.
    #[arg(long, value_name = "PLACE", conflicts_with = "partitions", required_unless_present = "partitions")]
    pub to: Option<String>,
    /// A partition to the offset of the record to read next. May be given again.
    #[arg(long = "partition", value_name = "PARTITION=OFFSET", value_parser = position)]
    pub partitions: Vec<(u32, u64)>,
}

/// Runs the command.
pub(super) fn run(args: &ClientArgs, command: &GroupCommand) -> Exit {
    run_command(args.json, async {
        match command {
            GroupCommand::Consume(consume) => consume::run(args, consume).await,
            GroupCommand::Ls { stream } => list(&client(args, 1)?, stream, args.json).await,
            GroupCommand::Create(create) => {
                let client = client(args, 1)?;
                let (new, body) = client.create_group(&create.stream, &create.group, &create.spec.spec()).await?;
                if args.json {
                    return say_json(&body);
                }
                let what = if new { "created" } else { "there already, and equal:" };
                say(&format!("{what} {} on {}", create.group, create.stream))
            }
            GroupCommand::Show { stream, group } => show(&client(args, 1)?, stream, group, args.json).await,
            GroupCommand::Rm { stream, group } => {
                client(args, 1)?.remove_group(stream, group).await?;
                if args.json { say_json(b"{}") } else { say(&format!("removed {group} of {stream}")) }
            }
            GroupCommand::Seek(seek) => move_group(args, seek).await,
        }
    })
}

/// Pages that a list is read in at most.
const PAGES_MAX: usize = 1_000;

async fn list(client: &Client, stream: &str, json: bool) -> Result<(), CommandError> {
    let mut after: Option<String> = None;
    let mut rows = Vec::new();
    for _ in 0..PAGES_MAX {
        let body = client.groups(stream, after.as_deref()).await?;
        if json {
            say_json(&body)?;
        }
        let page: GroupList = read(&body)?;
        rows.extend(page.groups.iter().map(|group| {
            vec![
                group.name.clone(),
                group.mode.clone(),
                group.generation.to_string(),
                group.members.len().to_string(),
                group.lag().to_string(),
            ]
        }));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if json { Ok(()) } else { say(&grid(&["group", "mode", "generation", "members", "lag"], &[2, 3, 4], rows)) }
}

async fn show(client: &Client, stream: &str, group: &str, json: bool) -> Result<(), CommandError> {
    let body = client.group(stream, group).await?;
    if json {
        return say_json(&body);
    }
    say(&describe(&read(&body)?))
}

async fn move_group(args: &ClientArgs, seek: &SeekArgs) -> Result<(), CommandError> {
    let client = client(args, 1)?;
    let to = match &seek.to {
        Some(to) => Seek::To { to: to.clone() },
        None => Seek::Positions { positions: seek.partitions.iter().copied().collect() },
    };
    let body = client.seek(&seek.stream, &seek.group, &to).await?;
    if args.json {
        return say_json(if body.is_empty() { b"{}" } else { &body });
    }
    let info: GroupInfo = read(&client.group(&seek.stream, &seek.group).await?)?;
    say(&describe(&info))
}

/// A group for people.
fn describe(info: &GroupInfo) -> String {
    let offset = |offset: Option<u64>| offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
    let mut text = format!("group       {}\nmode        {}\n", info.name, info.mode);
    if !info.is_shared() {
        text.push_str(&format!("generation  {}\n", info.generation));
    }
    text.push_str(&format!("lag         {}\n\n", info.lag()));
    let owner = |position: &PositionInfo| {
        let mut owners = info.members.iter().filter(|member| member.partitions.contains(&position.partition));
        owners.next().map_or_else(|| "-".to_owned(), |member| member.client.clone())
    };
    let positions = info.positions.iter().map(|position| {
        vec![
            position.partition.to_string(),
            offset(position.earliest),
            offset(position.committed),
            offset(position.next),
            offset(position.lag),
            owner(position),
        ]
    });
    text.push_str(&grid(&["partition", "earliest", "committed", "next", "lag", "member"], &[0, 1, 2, 3, 4], positions));
    if !info.members.is_empty() {
        let members = info.members.iter().map(|member| {
            let partitions: Vec<String> = member.partitions.iter().map(u32::to_string).collect();
            vec![
                member.client.clone(),
                member.member.clone(),
                partitions.join(","),
                member.last_seen.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        });
        text.push_str("\n\n");
        text.push_str(&grid(&["client", "member", "partitions", "last seen"], &[], members));
    }
    crate::client::printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_described_with_its_owners_and_its_whole_lag() {
        let info: GroupInfo = serde_json::from_str(
            r#"{"name":"g","mode":"ordered","generation":7,"members":[{"member":"m1","client":"one","partitions":[0,1],"last_seen":"2026-11-21T10:00:00.000Z"}],
                "positions":[{"partition":0,"committed":5,"next":9,"earliest":0,"lag":4},{"partition":2,"committed":0,"next":18446744073709551615,"earliest":0,"lag":18446744073709551615}],"later":{}}"#,
        )
        .unwrap();
        let text = describe(&info);
        assert!(text.contains("lag         18446744073709551615"), "a sum that cannot be said is not wrapped: {text}");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.contains(&vec!["0", "0", "5", "9", "4", "one"]), "{text}");
        assert!(lines.contains(&vec!["2", "0", "0", "18446744073709551615", "18446744073709551615", "-"]), "{text}");
        assert!(lines.contains(&vec!["one", "m1", "0,1", "2026-11-21T10:00:00.000Z"]), "{text}");
    }
}
