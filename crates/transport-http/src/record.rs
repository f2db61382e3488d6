//! Records out of a request's body: NDJSON or a JSON array, strict, with every digit kept. It copies no text that is one line
//! already, and says of a record that is wrong in which line or at which place it stands.

use std::fmt;

use bytes::Bytes;
use serde::de::{self, Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tidegate_cdc::NewRecord;
use tidegate_core::Timestamp;
use tidegate_core::position::Partition;
use tidegate_core::record::Operation;

use crate::json::{JsonError, fields, invalid, malformed, place, unsigned};

/// How deep a record's JSON may be nested: what common readers take.
pub(crate) const DEPTH_MAX: usize = 128;

/// The fields of a record.
static FIELDS: [&str; 7] = ["key", "op", "value", "before", "headers", "event_time", "partition"];

/// A record that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordError {
    /// What is wrong with it. Line and column of malformed JSON are those of the whole body.
    pub(crate) error: JsonError,
    /// Its line, from 1, where the body is NDJSON.
    pub(crate) line: Option<usize>,
    /// Its place among the records, from 0.
    pub(crate) index: usize,
}

/// Reads the records of a body. `lines`: the request says that it is NDJSON, so that `[` begins no array of records.
pub(crate) fn records(body: &Bytes, lines: bool) -> Result<Vec<NewRecord>, RecordError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let (line, column) = place(&body[..error.valid_up_to()]);
        let error = JsonError::Malformed { what: "invalid UTF-8".into(), line, column };
        RecordError { error, line: Some(line), index: line - 1 }
    })?;
    if !lines && text.trim_ascii_start().starts_with('[') {
        return array(body, text);
    }
    // A guess that is right for records of one size: one allocation.
    let first = memchr::memchr(b'\n', text.as_bytes()).map_or(text.len(), |at| at + 1).max(1);
    let mut records = Vec::with_capacity((text.len() / first + 1).min(16_384));
    for (line, piece) in Lines::new(text) {
        let record = record(body, piece).map_err(|error| {
            let error = match error {
                JsonError::Malformed { what, line: within, column } => {
                    JsonError::Malformed { what, line: line + within - 1, column }
                }
                other => other,
            };
            RecordError { error, line: Some(line), index: records.len() }
        })?;
        records.push(record);
    }
    Ok(records)
}

/// The lines that are not blank, with their numbers from 1.
struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text, number: 0 }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let end = memchr::memchr(b'\n', self.rest.as_bytes());
            let (line, rest) = end.map_or((self.rest, ""), |end| (&self.rest[..end], &self.rest[end + 1..]));
            self.rest = rest;
            self.number += 1;
            if !line.trim_ascii().is_empty() {
                return Some((self.number, line));
            }
        }
        None
    }
}

fn array(body: &Bytes, text: &str) -> Result<Vec<NewRecord>, RecordError> {
    let mut reader = ArrayReader { body, records: Vec::new(), refused: None };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read = deserializer.deserialize_seq(&mut reader).and_then(|()| deserializer.end());
    let index = reader.records.len();
    match (reader.refused, read) {
        (Some(error), _) => Err(RecordError { error, line: None, index }),
        (None, Err(error)) => Err(RecordError { error: malformed(&error, (1, 0)), line: None, index }),
        (None, Ok(())) => Ok(reader.records),
    }
}

struct ArrayReader<'b> {
    body: &'b Bytes,
    records: Vec<NewRecord>,
    refused: Option<JsonError>,
}

impl<'a> Visitor<'a> for &mut ArrayReader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut seq: S) -> Result<(), S::Error> {
        while let Some(raw) = seq.next_element::<&'a RawValue>()? {
            match record(self.body, raw.get()) {
                Ok(record) => self.records.push(record),
                Err(error) => {
                    self.refused = Some(error);
                    return Err(de::Error::custom("refused"));
                }
            }
        }
        Ok(())
    }
}

/// Reads one record. `text` is a part of `body`.
fn record(body: &Bytes, text: &str) -> Result<NewRecord, JsonError> {
    let [key, op, value, before, headers, event_time, partition] = fields(text, &FIELDS)?;
    RawRecord { key, op, value, before, headers, event_time, partition }.check(body)
}

/// A record's fields as they stand in the body.
struct RawRecord<'a> {
    key: Option<&'a RawValue>,
    op: Option<&'a RawValue>,
    value: Option<&'a RawValue>,
    before: Option<&'a RawValue>,
    headers: Option<&'a RawValue>,
    event_time: Option<&'a RawValue>,
    partition: Option<&'a RawValue>,
}

impl RawRecord<'_> {
    /// What the fields say. `null` says what leaving the field out says, except as the value.
    fn check(&self, body: &Bytes) -> Result<NewRecord, JsonError> {
        let value = self.value.ok_or(JsonError::MissingField { field: "value" })?;
        for (field, raw) in
            [("key", self.key), ("value", Some(value)), ("before", self.before), ("headers", self.headers)]
        {
            if let Some(raw) = raw {
                check_depth(raw, field)?;
            }
        }
        let headers = given(self.headers);
        if let Some(raw) = headers
            && !raw.get().starts_with('{')
        {
            return Err(invalid("headers", "an object", raw));
        }
        Ok(NewRecord {
            operation: given(self.op).map_or(Ok(Operation::Message), operation)?,
            key: given(self.key).map(|raw| one_line(body, raw)),
            value: one_line(body, value),
            before: given(self.before).map(|raw| one_line(body, raw)),
            headers: headers.map(|raw| one_line(body, raw)),
            event_time: given(self.event_time).map(event_time).transpose()?,
            partition: given(self.partition).map(partition).transpose()?,
            collection: headers.and_then(collection),
            source: None,
        })
    }
}

fn given(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

/// The text on one line: a part of the body where it is so already.
pub(crate) fn one_line(body: &Bytes, raw: &RawValue) -> Bytes {
    let text = raw.get().as_bytes();
    if text.iter().any(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')) {
        return NewRecord::compacted(raw);
    }
    body.slice_ref(text)
}

fn operation(raw: &RawValue) -> Result<Operation, JsonError> {
    let parsed: Option<String>;
    let name = match raw.get().as_bytes() {
        [b'"', name @ .., b'"'] if !name.contains(&b'\\') => std::str::from_utf8(name).ok(),
        _ => {
            parsed = serde_json::from_str(raw.get()).ok();
            parsed.as_deref()
        }
    };
    Ok(match name {
        Some("insert") => Operation::Insert,
        Some("update") => Operation::Update,
        Some("delete") => Operation::Delete,
        Some("truncate") => Operation::Truncate,
        Some("message") => Operation::Message,
        _ => return Err(invalid("op", r#""insert", "update", "delete", "truncate" or "message""#, raw)),
    })
}

fn event_time(raw: &RawValue) -> Result<Timestamp, JsonError> {
    let text: Option<String> = serde_json::from_str(raw.get()).ok();
    text.and_then(|text| Timestamp::parse(&text).ok())
        .ok_or_else(|| invalid("event_time", "an RFC 3339 time such as \"2026-11-21T10:00:00.000Z\"", raw))
}

fn partition(raw: &RawValue) -> Result<Partition, JsonError> {
    let number = unsigned(raw, "partition").ok().and_then(|number| u32::try_from(number).ok());
    number.map(Partition).ok_or_else(|| invalid("partition", "an integer from 0 to 4294967295", raw))
}

/// The collection that a record is of: its header of that name, if it is a string.
fn collection(headers: &RawValue) -> Option<Box<str>> {
    #[derive(serde::Deserialize)]
    struct Collection<'a> {
        #[serde(borrow)]
        collection: Option<&'a RawValue>,
    }
    memchr::memmem::find(headers.get().as_bytes(), b"collection")?;
    // Where the header stands twice it says nothing.
    let found: Collection<'_> = serde_json::from_str(headers.get()).ok()?;
    serde_json::from_str(found.collection?.get()).ok()
}

/// Refuses what is nested too deep: whoever reads the record parses it, often by recursion.
pub(crate) fn check_depth(raw: &RawValue, field: &str) -> Result<(), JsonError> {
    let text = raw.get().as_bytes();
    // Each level has two brackets: most records are too short to be too deep.
    if text.len() <= 2 * DEPTH_MAX {
        return Ok(());
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(invalid(field, &format!("nested at most {DEPTH_MAX} deep"), raw));
                }
            }
            b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
