//! One look at a server: its streams, and the groups of those that are looked at closely. Bounded: so many streams, so many
//! groups, so many questions at a time.

use std::collections::BTreeMap;
use std::time::Instant;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::super::stream::read;
use crate::client::change::{GroupInfo, GroupList, StreamInfo, StreamList};
use crate::client::{Client, ClientError};
use crate::output::grid;

/// Streams of a look; the rest is counted.
const STREAMS_MAX: usize = 1_000;
/// Streams whose groups are asked for in a look.
const CLOSE_MAX: usize = 32;
/// Groups of a stream that are shown.
const GROUPS_MAX: usize = 64;
/// Questions at a time.
const AT_A_TIME: usize = 8;

/// A look.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) streams: Vec<StreamRow>,
    /// Streams that are there and not in it.
    pub(super) more: bool,
}

/// A stream in a look.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamRow {
    pub(super) name: String,
    pub(super) partitions: u64,
    /// Records that were ever appended, in all partitions.
    pub(super) appended: u64,
    pub(super) bytes: u64,
    /// Records a second since the look before.
    pub(super) rate: Option<f64>,
    /// `None` = not asked for in this look.
    pub(super) groups: Option<Vec<GroupInfo>>,
}

impl StreamRow {
    fn new(info: &StreamInfo) -> Self {
        Self {
            name: info.name.clone(),
            partitions: info.partitions.len() as u64,
            appended: info.sum(|partition| partition.next),
            bytes: info.sum(|partition| partition.bytes),
            rate: None,
            groups: None,
        }
    }

    /// The lag of all its groups.
    pub(super) fn lag(&self) -> Option<u64> {
        Some(self.groups.as_ref()?.iter().fold(0, |sum, group| sum.saturating_add(group.lag())))
    }
}

impl Sample {
    /// Looks at all streams, or at one; and closely at those that are `wanted`, or at the first ones.
    pub(super) async fn take(client: &Client, only: Option<&str>, wanted: &[String]) -> Result<Self, ClientError> {
        let (infos, more) = match only {
            Some(stream) => (vec![client.stream_info(stream).await?], false),
            None => streams(client).await?,
        };
        let mut rows: Vec<StreamRow> = infos.iter().map(StreamRow::new).collect();
        let close: Vec<usize> = if wanted.is_empty() {
            (0..rows.len().min(CLOSE_MAX)).collect()
        } else {
            (0..rows.len()).filter(|at| wanted.contains(&rows[*at].name)).take(CLOSE_MAX).collect()
        };
        let looked: Vec<(usize, Vec<GroupInfo>)> = stream::iter(close)
            .map(|at| {
                let name = rows[at].name.clone();
                async move { Ok::<_, ClientError>((at, groups(client, &name).await?)) }
            })
            .buffered(AT_A_TIME)
            // A stream that was removed between two questions is none any more.
            .filter_map(async |looked| match looked {
                Err(ClientError::Refused(problem)) if problem.status == 404 => None,
                looked => Some(looked),
            })
            .try_collect()
            .await?;
        for (at, groups) in looked {
            rows[at].groups = Some(groups);
        }
        Ok(Self { at: Instant::now(), streams: rows, more })
    }

    /// The look as one JSON document.
    pub(super) fn json(&self) -> Value {
        let group = |group: &GroupInfo| {
            json!({
                "group": group.name,
                "mode": group.mode,
                "generation": group.generation,
                "members": group.members.iter().map(|member| json!({
                    "member": member.member, "client": member.client, "partitions": member.partitions,
                })).collect::<Vec<_>>(),
                "lag": group.lag(),
            })
        };
        let streams: Vec<Value> = self
            .streams
            .iter()
            .map(|row| {
                json!({
                    "stream": row.name,
                    "partitions": row.partitions,
                    "appended": row.appended,
                    "bytes": row.bytes,
                    "groups": row.groups.as_ref().map(|groups| groups.iter().map(group).collect::<Vec<_>>()),
                })
            })
            .collect();
        json!({ "streams": streams, "more": self.more })
    }

    /// The look as a table.
    pub(super) fn table(&self) -> String {
        let mut rows = Vec::new();
        for row in &self.streams {
            let cells = |group: [String; 4]| {
                let mut cells =
                    vec![row.name.clone(), row.partitions.to_string(), row.appended.to_string(), row.bytes.to_string()];
                cells.extend(group);
                cells
            };
            let groups = row.groups.as_deref().unwrap_or_default();
            if groups.is_empty() {
                rows.push(cells(["-".to_owned(), "-".to_owned(), "-".to_owned(), "-".to_owned()]));
            }
            for group in groups {
                rows.push(cells([
                    group.name.clone(),
                    group.mode.clone(),
                    group.members.len().to_string(),
                    group.lag().to_string(),
                ]));
            }
        }
        let mut text = grid(
            &["stream", "partitions", "appended", "bytes", "group", "mode", "members", "lag"],
            &[1, 2, 3, 6, 7],
            rows,
        );
        if self.more {
            text.push_str(&format!("\n(and more: the first {STREAMS_MAX} streams are shown)"));
        }
        text
    }
}

async fn streams(client: &Client) -> Result<(Vec<StreamInfo>, bool), ClientError> {
    let mut infos = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page: StreamList = read(&client.streams(after.as_deref()).await?)?;
        let empty = page.streams.is_empty();
        infos.extend(page.streams);
        after = page.next;
        if infos.len() > STREAMS_MAX || after.is_none() || empty {
            let more = infos.len() > STREAMS_MAX || after.is_some();
            infos.truncate(STREAMS_MAX);
            return Ok((infos, more));
        }
    }
}

async fn groups(client: &Client, stream: &str) -> Result<Vec<GroupInfo>, ClientError> {
    let page: GroupList = read(&client.groups(stream, None).await?)?;
    let mut groups = page.groups;
    groups.truncate(GROUPS_MAX);
    for group in &mut groups {
        // A list that names groups only is asked about each.
        if group.positions.is_empty() {
            let name = std::mem::take(&mut group.name);
            *group = read(&client.group(stream, &name).await?)?;
            if group.name.is_empty() {
                group.name = name;
            }
        }
    }
    Ok(groups)
}

/// The look before, which a rate needs.
#[derive(Debug, Default)]
pub(super) struct Rates {
    at: Option<Instant>,
    appended: BTreeMap<String, u64>,
}

impl Rates {
    /// The same look with its rates.
    pub(super) fn of(&mut self, mut sample: Sample) -> Sample {
        let seconds = self.at.map(|at| sample.at.saturating_duration_since(at).as_secs_f64());
        for row in &mut sample.streams {
            let before = self.appended.get(&row.name).filter(|before| **before <= row.appended);
            if let (Some(before), Some(seconds)) = (before, seconds.filter(|seconds| *seconds > 0.0)) {
                #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
                let records = (row.appended - before) as f64;
                row.rate = Some(records / seconds);
            }
        }
        self.at = Some(sample.at);
        self.appended = sample.streams.iter().map(|row| (row.name.clone(), row.appended)).collect();
        sample
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_of_two_looks_and_a_stream_made_anew_has_none() {
        let row = |name: &str, appended| StreamRow { name: name.to_owned(), appended, ..StreamRow::default() };
        let begun = Instant::now();
        let look = |ms, streams| Sample { at: begun + Duration::from_millis(ms), streams, more: false };
        let mut rates = Rates::default();
        let first = rates.of(look(0, vec![row("a", 10), row("b", 5)]));
        assert!(first.streams.iter().all(|row| row.rate.is_none()));
        let second = rates.of(look(500, vec![row("a", 20), row("b", 2), row("c", 9)]));
        let found: Vec<Option<f64>> = second.streams.iter().map(|row| row.rate).collect();
        assert_eq!(found, [Some(20.0), None, None]);
        let third = rates.of(look(1500, vec![row("b", 2)]));
        assert_eq!(third.streams[0].rate, Some(0.0));
    }
}
