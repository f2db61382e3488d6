//! The shapes of the answers, written from the public contract alone. An answer that has another shape is an error with its text,
//! never a guess.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::history::{Gap, Range, Seen};
use super::value;

#[derive(Deserialize)]
struct Problem {
    code: String,
}

/// The code of a problem document.
pub(crate) fn code(text: &str) -> Option<String> {
    serde_json::from_str::<Problem>(text).ok().map(|problem| problem.code)
}

/// Reads an answer, or says what it was.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    let short: String = text.chars().take(200).collect();
    serde_json::from_str(text).map_err(|error| format!("{error}: {short}"))
}

#[derive(Debug, Deserialize)]
pub(crate) struct Appended {
    pub count: u64,
    pub appended: Vec<AppendedRange>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct AppendedRange {
    pub partition: u32,
    pub base: u64,
    pub next: u64,
}

impl Appended {
    pub(crate) fn ranges(&self) -> Vec<Range> {
        let range = |one: &AppendedRange| Range { partition: one.partition, base: one.base, next: one.next };
        self.appended.iter().map(range).collect()
    }
}

/// A record as every reader gets it.
#[derive(Debug, Deserialize)]
pub(crate) struct Record {
    pub partition: u32,
    pub offset: u64,
    pub value: Box<RawValue>,
    /// In a shared group only.
    pub delivery: Option<Delivery>,
}

impl Record {
    pub(crate) fn seen(&self) -> Seen {
        Seen { offset: self.offset, id: value::id(self.value.get()) }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Delivery {
    #[serde(deserialize_with = "any_text")]
    pub id: String,
}

/// A delivery's id is opaque: a text or a number.
fn any_text<'de, D: serde::Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(match serde_json::Value::deserialize(input)? {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    })
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct GapLine {
    pub partition: u32,
    pub from: u64,
    pub to: u64,
    pub reason: String,
}

impl GapLine {
    pub(crate) fn gap(&self) -> Gap {
        Gap { from: self.from, to: self.to, reason: self.reason.clone() }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Next {
    pub partition: u32,
    pub offset: u64,
}

/// A line of `GET .../records`.
#[derive(Debug, Deserialize)]
pub(crate) struct Line {
    pub record: Option<Record>,
    pub gap: Option<GapLine>,
    pub next: Option<Next>,
    pub error: Option<Box<RawValue>>,
}

/// How `page` begins to say that the answer broke off with an error line.
pub(crate) const ERROR_LINE: &str = "error line";

/// A page of one partition.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub seen: Vec<Seen>,
    pub gaps: Vec<Gap>,
    pub next: Option<u64>,
}

/// Reads the lines of one partition's page.
pub(crate) fn page(text: &str, partition: u32) -> Result<Page, String> {
    let mut page = Page::default();
    for line in text.lines() {
        if page.next.is_some() {
            return Err(format!("a line after `next`: {line}"));
        }
        match parse::<Line>(line)? {
            Line { record: Some(record), .. } if record.partition == partition => page.seen.push(record.seen()),
            Line { gap: Some(gap), .. } if gap.partition == partition => page.gaps.push(gap.gap()),
            Line { next: Some(next), .. } if next.partition == partition => page.next = Some(next.offset),
            Line { error: Some(error), .. } => return Err(format!("{ERROR_LINE}: {error}")),
            _ => return Err(format!("a line of another partition, or of no known kind: {line}")),
        }
    }
    Ok(page)
}

/// What a join or a heartbeat answers.
#[derive(Debug, Deserialize)]
pub(crate) struct Membership {
    pub member: Option<String>,
    pub generation: u64,
    pub partitions: Vec<u32>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Polled {
    pub records: Vec<Record>,
    #[serde(default)]
    pub gaps: Vec<GapLine>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Committed {
    pub committed: BTreeMap<u32, u64>,
}

/// `GET` of a group.
#[derive(Debug, Deserialize)]
pub(crate) struct Group {
    pub positions: Vec<Position>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Position {
    pub partition: u32,
    /// Absent or null before the first commit.
    pub committed: Option<u64>,
    pub next: u64,
}

/// What `ack` answers.
#[derive(Debug, Deserialize)]
pub(crate) struct Settled {
    /// Deliveries that were no longer held: nothing was done about them.
    #[serde(deserialize_with = "any_texts")]
    pub unknown: Vec<String>,
}

fn any_texts<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    let text = |value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(Vec::<serde_json::Value>::deserialize(input)?.into_iter().map(text).collect())
}

/// An event of a tail.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    pub event: String,
    pub id: String,
    pub data: String,
}

/// Cuts server-sent events out of the pieces in which they come.
#[derive(Debug, Default)]
pub(crate) struct Events {
    rest: Vec<u8>,
    open: ServerEvent,
}

impl Events {
    /// Takes a piece; gives the events that it completed.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<ServerEvent> {
        self.rest.extend_from_slice(piece);
        let mut events = Vec::new();
        let mut begin = 0;
        while let Some(length) = self.rest[begin..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.rest[begin..begin + length]).into_owned();
            begin += length + 1;
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                let event = std::mem::take(&mut self.open);
                if !event.data.is_empty() {
                    events.push(event);
                }
            } else if let Some((field, text)) = line.split_once(':') {
                let text = text.strip_prefix(' ').unwrap_or(text);
                match field {
                    "event" => text.clone_into(&mut self.open.event),
                    "id" => text.clone_into(&mut self.open.id),
                    "data" => self.open.data.push_str(text),
                    _ => {}
                }
            }
        }
        self.rest.drain(..begin);
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_and_a_line_of_another_partition_is_refused() {
        let value = value::text(5);
        let line = format!("{{\"record\":{{\"partition\":1,\"offset\":3,\"op\":\"message\",\"value\":{value}}}}}");
        let text = format!(
            "{{\"gap\":{{\"partition\":1,\"from\":0,\"to\":3,\"reason\":\"retention\"}}}}\n{line}\n{{\"next\":{{\"partition\":1,\"offset\":4}}}}\n"
        );
        let read = page(&text, 1).unwrap();
        assert_eq!(read.seen, [Seen { offset: 3, id: Some(5) }]);
        assert_eq!((read.gaps[0].to, read.next), (3, Some(4)));
        assert!(page(&text, 0).is_err());
        assert!(page("{\"next\":{\"partition\":1,\"offset\":4}}\n{}\n", 1).is_err());
        assert!(page("{\"row\":1}\n", 1).is_err());
    }

    #[test]
    fn events_are_cut_wherever_the_pieces_end() {
        let text = b": comment\n\nevent: record\nid: 1:7\ndata: {\"a\":1}\n\nid: 1:8\r\ndata: x\ndata: y\r\n\r\n";
        for size in 1..text.len() {
            let mut events = Events::default();
            let got: Vec<ServerEvent> = text.chunks(size).flat_map(|piece| events.push(piece)).collect();
            assert_eq!(got.len(), 2, "{size}");
            assert_eq!(got[0], ServerEvent { event: "record".into(), id: "1:7".into(), data: "{\"a\":1}".into() });
            assert_eq!((got[1].id.as_str(), got[1].data.as_str()), ("1:8", "xy"));
        }
    }

    #[test]
    fn a_delivery_may_be_a_text_or_a_number() {
        for (text, id) in [("{\"id\":\"a\"}", "a"), ("{\"id\":7}", "7")] {
            assert_eq!(parse::<Delivery>(text).unwrap().id, id);
        }
        assert!(parse::<Group>("{}").unwrap_err().contains("positions"));
    }
}
