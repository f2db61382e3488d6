//! `tidegate source`: databases whose changes become streams, at a server. Lists and shows them, and says how one goes on that lost
//! changes. It never decides that by itself.

use clap::{Args, Subcommand};
use serde::Deserialize;

use super::command::{client, name, run as run_command, say, say_json};
use super::stream::read;
use super::{ClientArgs, Exit};
use crate::client::printable;
use crate::output::grid;

/// What can be done with sources of changes.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum SourceCommand {
    /// List the sources whose changes become streams.
    Ls,
    /// Show a source: where it is, what it waits for, and its streams.
    Show {
        /// The source.
        #[arg(value_parser = name)]
        source: String,
    },
    /// Say how a source goes on that lost changes.
    Acknowledge(AcknowledgeArgs),
    /// Try a source at once that waits.
    Retry {
        /// The source.
        #[arg(value_parser = name)]
        source: String,
    },
}

/// `tidegate source acknowledge`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("how").required(true).multiple(false))]
pub struct AcknowledgeArgs {
    /// The source.
    #[arg(value_parser = name)]
    pub source: String,
    /// Copy everything anew: rows that are in the streams come again.
    #[arg(long, group = "how")]
    pub restart_copy: bool,
    /// Go on with what happens from now on: what lies between is in no stream.
    #[arg(long, group = "how")]
    pub go_on_from_current: bool,
}

/// A source as the server describes it. What a later one adds is not asked for.
#[derive(Debug, Deserialize)]
struct SourceInfo {
    name: String,
    kind: String,
    state: String,
    position: Option<String>,
    confirmed: Option<String>,
    lag_bytes: Option<u64>,
    lag_seconds: u64,
    copy: Option<CopyInfo>,
    records: u64,
    #[serde(default)]
    streams: Vec<StreamInfo>,
    last_error: Option<FaultInfo>,
    gap: Option<GapInfo>,
}

#[derive(Debug, Deserialize)]
struct CopyInfo {
    state: String,
    tables_done: Option<u64>,
    tables: Option<u64>,
    rows: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct StreamInfo {
    name: String,
    position: Option<String>,
    spilled_records: u64,
    spilled_bytes: u64,
    refused_because: Option<String>,
}

#[derive(Debug, Deserialize)]
struct FaultInfo {
    code: String,
    message: String,
    at: String,
}

#[derive(Debug, Deserialize)]
struct GapInfo {
    from: String,
    reason: String,
    since: String,
}

#[derive(Debug, Deserialize)]
struct SourceList {
    sources: Vec<SourceInfo>,
}

/// Runs the command.
pub(super) fn run(args: &ClientArgs, command: &SourceCommand) -> Exit {
    run_command(args.json, async {
        let client = client(args, 1)?;
        match command {
            SourceCommand::Ls => {
                let body = client.sources().await?;
                if args.json {
                    return say_json(&body);
                }
                let list: SourceList = read(&body)?;
                let rows = list.sources.iter().map(|source| {
                    vec![
                        source.name.clone(),
                        source.kind.clone(),
                        source.state.clone(),
                        or_dash(source.position.clone()),
                        or_dash(source.lag_bytes),
                        source.lag_seconds.to_string(),
                        source.records.to_string(),
                    ]
                });
                say(&grid(&["source", "kind", "state", "position", "lag bytes", "lag s", "records"], &[4, 5, 6], rows))
            }
            SourceCommand::Show { source } => {
                let body = client.source(source).await?;
                if args.json { say_json(&body) } else { say(&describe(&read(&body)?)) }
            }
            SourceCommand::Acknowledge(how) => {
                let action = if how.restart_copy { "restart_copy" } else { "go_on_from_current" };
                client.acknowledge_source(&how.source, action).await?;
                if args.json { say_json(b"{}") } else { Ok(()) }
            }
            SourceCommand::Retry { source } => {
                client.retry_source(source).await?;
                if args.json { say_json(b"{}") } else { Ok(()) }
            }
        }
    })
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A source for people.
fn describe(info: &SourceInfo) -> String {
    let mut text = format!("source     {} ({})\nstate      {}\n", info.name, info.kind, info.state);
    text.push_str(&format!("position   {}\n", or_dash(info.position.as_ref())));
    text.push_str(&format!("confirmed  {}\n", or_dash(info.confirmed.as_ref())));
    text.push_str(&format!("lag        {} bytes, {} s\n", or_dash(info.lag_bytes), info.lag_seconds));
    if let Some(copy) = &info.copy {
        text.push_str(&format!("copy       {}", copy.state));
        if let (Some(done), Some(tables)) = (copy.tables_done, copy.tables) {
            text.push_str(&format!(", {done} of {tables} tables, {} rows", copy.rows.unwrap_or_default()));
        }
        text.push('\n');
    }
    text.push_str(&format!("records    {}\n", info.records));
    if let Some(gap) = &info.gap {
        text.push_str(&format!("gap        after {}: {} (since {})\n", gap.from, gap.reason, gap.since));
    }
    if let Some(error) = &info.last_error {
        text.push_str(&format!("last error {}: {} ({})\n", error.code, error.message, error.at));
    }
    if !info.streams.is_empty() {
        let streams = info.streams.iter().map(|stream| {
            vec![
                stream.name.clone(),
                or_dash(stream.position.as_ref()),
                stream.spilled_records.to_string(),
                stream.spilled_bytes.to_string(),
                or_dash(stream.refused_because.as_ref()),
            ]
        });
        text.push('\n');
        text.push_str(&grid(&["stream", "position", "waiting", "bytes", "refused because"], &[2, 3], streams));
    }
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_described_with_what_it_waits_for() {
        let info: SourceInfo = serde_json::from_str(
            r#"{"name":"crm","kind":"postgres","state":"gap","position":"0/16B3748","confirmed":null,"lag_bytes":12,"lag_seconds":3,
                "copy":{"state":"running","tables_done":1,"tables":2,"rows":70},"records":9,"epoch":2,"later":true,
                "streams":[{"name":"crm.public.a","position":"0/1","spilled_records":4,"spilled_bytes":99,"refused_because":"stream_removed"}],
                "last_error":{"code":"source_lost","message":"gone","at":"2026-11-21T10:00:00.000Z"},
                "gap":{"from":"0/16B3748","reason":"the slot is gone","since":"2026-11-21T10:00:00.000Z"}}"#,
        )
        .unwrap();
        let text = describe(&info);
        for part in [
            "state      gap",
            "copy       running, 1 of 2 tables, 70 rows",
            "lag        12 bytes, 3 s",
            "gap        after 0/16B3748: the slot is gone",
            "last error source_lost: gone",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.contains(&vec!["crm.public.a", "0/1", "4", "99", "stream_removed"]), "{text}");
    }
}
