//! What a run is made of: the streams, the groups, and how they are created. Fixed, so that runs can be compared; names have
//! characters that paths, keys and queries like to trip over.

use serde_json::json;

use super::client::{Answer, Ask, Client, Failed, segment};
use super::history::{GroupFact, History, StreamFact};

/// Created by `/v1/streams`, four partitions each.
pub(crate) const PARTITIONS: u32 = 4;
const NATIVE_STREAMS: [&str; 3] = ["orders:eu/1 50%", "лог 😀+&?#=", "plain"];
const KEPT_STREAM: &str = "kept\\last\"300\"";
pub(crate) const KEEP_RECORDS: u64 = 300;
/// Created by Durable Streams: its path, as it stands in a URL, and its name.
const DURABLE_PATH: &str = "ds/one%3A%20%25";
const DURABLE_NAME: &str = "ds/one: %";
const DEAD_STREAM: &str = "dead/letters";
/// Short, so that members and deliveries expire between two kills.
pub(crate) const SESSION_MS: u64 = 2000;
pub(crate) const ACK_TIMEOUT_MS: u64 = 2000;
const FEW_DELIVERIES: u32 = 3;
const MANY_DELIVERIES: u32 = 100;

/// A stream of the plan.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub index: u16,
    pub name: String,
    pub partitions: u32,
    pub keep_records: Option<u64>,
    /// Its URL by Durable Streams, where it was made by them.
    pub durable: Option<String>,
}

/// A group of the plan.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub index: u16,
    pub name: String,
    pub stream: u16,
    pub shared: bool,
    pub dead_letter: bool,
    /// How many clients work in it.
    pub clients: u32,
}

/// Streams and groups by their index in the history.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub streams: Vec<Stream>,
    pub groups: Vec<Group>,
}

impl Stream {
    /// The stream's path of API section 2.
    pub(crate) fn path(&self) -> String {
        format!("/v1/streams/{}", segment(&self.name))
    }
}

impl Plan {
    pub(crate) fn new() -> Self {
        let mut streams: Vec<Stream> = NATIVE_STREAMS
            .iter()
            .map(|name| (*name, PARTITIONS, None, None))
            .chain([(KEPT_STREAM, 1, Some(KEEP_RECORDS), None), (DURABLE_NAME, 1, None, Some(DURABLE_PATH))])
            .map(|(name, partitions, keep_records, durable)| Stream {
                index: 0,
                name: name.to_owned(),
                partitions,
                keep_records,
                durable: durable.map(|path| format!("/ds/v1/stream/{path}")),
            })
            .collect();
        (0..).zip(&mut streams).for_each(|(index, stream)| stream.index = index);
        let group = |index, name: &str, stream, shared, dead_letter, clients| Group {
            index,
            name: name.to_owned(),
            stream,
            shared,
            dead_letter,
            clients,
        };
        let groups = vec![
            group(0, "ordered: a/b", 0, false, false, 4),
            group(1, "ordered 2 😀", 1, false, false, 2),
            group(2, "shared%2F", 1, true, false, 3),
            group(3, "shared, dying", 2, true, true, 3),
        ];
        Self { streams, groups }
    }

    /// The group's path.
    pub(crate) fn group_path(&self, group: &Group) -> String {
        format!("{}/groups/{}", self.streams[usize::from(group.stream)].path(), segment(&group.name))
    }

    /// Where dead letters go, as a path.
    pub(crate) fn dead_path() -> String {
        format!("/v1/streams/{}", segment(DEAD_STREAM))
    }

    /// A history without operations.
    pub(crate) fn history(&self) -> History {
        let stream = |one: &Stream| StreamFact {
            name: one.name.clone(),
            partitions: one.partitions,
            keep_records: one.keep_records,
        };
        let group = |one: &Group| GroupFact {
            name: one.name.clone(),
            stream: one.stream,
            shared: one.shared,
            ack_timeout_us: ACK_TIMEOUT_MS * 1000,
        };
        History {
            streams: self.streams.iter().map(stream).collect(),
            groups: self.groups.iter().map(group).collect(),
            entries: Vec::new(),
        }
    }

    /// What creates everything; each may be sent again.
    fn setup(&self) -> Vec<Ask> {
        let mut asks = Vec::new();
        for stream in &self.streams {
            asks.push(match (&stream.durable, stream.keep_records) {
                (Some(path), _) => Ask::put(path.clone(), ""),
                (None, Some(keep)) => {
                    let spec = json!({"partitions": stream.partitions, "retention": {"records": keep}});
                    Ask::put(stream.path(), spec.to_string())
                }
                (None, None) => Ask::put(stream.path(), json!({"partitions": stream.partitions}).to_string()),
            });
        }
        asks.push(Ask::put(Self::dead_path(), json!({"partitions": 1}).to_string()));
        for group in &self.groups {
            let mut spec = json!({"mode": if group.shared { "shared" } else { "ordered" }, "start": "earliest"});
            if group.shared {
                spec["ack_timeout_ms"] = json!(ACK_TIMEOUT_MS);
                spec["max_deliveries"] = json!(if group.dead_letter { FEW_DELIVERIES } else { MANY_DELIVERIES });
            } else {
                spec["session_ms"] = json!(SESSION_MS);
            }
            if group.dead_letter {
                spec["dead_letter"] = json!(DEAD_STREAM);
            }
            asks.push(Ask::put(self.group_path(group), spec.to_string()));
        }
        asks
    }

    /// Creates everything. The server is not killed meanwhile.
    pub(crate) async fn create(&self, client: &mut Client) -> anyhow::Result<()> {
        for ask in self.setup() {
            let path = ask.path.clone();
            let answer: Result<Answer, Failed> = client.ask(ask).await;
            match answer {
                Ok(answer) if answer.ok() => {}
                Ok(answer) => anyhow::bail!("creating {path}: {}", answer.told()),
                Err(failed) => anyhow::bail!("creating {path}: {failed:?}"),
            }
        }
        Ok(())
    }
}
