//! Records and gaps of change streams on their way to a person or a program. A line is written whole or not at all as far as
//! this process can say, and the JSON of a record is the server's own.

use std::io::{self, Write};

use crate::client::change::{GapInfo, record_of};
use crate::client::{Item, printable};

/// Writes records: a compact line for people, or NDJSON.
pub struct RecordOutput<W: Write> {
    to: io::BufWriter<W>,
    json: bool,
    records: u64,
}

impl<W: Write> RecordOutput<W> {
    /// To this place.
    #[must_use]
    pub fn new(to: W, json: bool) -> Self {
        Self { to: io::BufWriter::with_capacity(64 * 1024, to), json, records: 0 }
    }

    /// How many records were written.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// A record or a gap. A gap is said on stderr, or is a line of the NDJSON.
    ///
    /// # Errors
    /// The place takes no more, or what came is no record.
    pub fn item(&mut self, item: &Item) -> io::Result<()> {
        match item {
            Item::Record { json, .. } => self.record(json),
            Item::Gap(gap) => self.gap(gap),
        }
    }

    /// A record.
    ///
    /// # Errors
    /// See [`Self::item`].
    pub fn record(&mut self, json: &str) -> io::Result<()> {
        if self.json {
            writeln!(self.to, "{{\"record\":{json}}}")?;
        } else {
            writeln!(self.to, "{}", record_line(json)?)?;
        }
        self.records += 1;
        Ok(())
    }

    /// A gap.
    ///
    /// # Errors
    /// See [`Self::item`].
    pub fn gap(&mut self, gap: &GapInfo) -> io::Result<()> {
        if self.json {
            let json = serde_json::to_string(gap).expect("a gap of numbers and a text is JSON");
            return writeln!(self.to, "{{\"gap\":{json}}}");
        }
        // In its place: what came before it is seen first.
        self.to.flush()?;
        eprintln!("{}", gap_line(gap));
        Ok(())
    }

    /// Makes everything that was written visible.
    ///
    /// # Errors
    /// The place takes no more.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// `0:105  2026-11-21T10:00:00.000Z  update  "key"  {"value":1}`
fn record_line(json: &str) -> io::Result<String> {
    let record = record_of(json).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    let mut line = format!("{}:{}", record.partition, record.offset);
    for part in
        [record.append_time.unwrap_or("-"), record.op, record.key.map_or("-", |key| key.get()), record.value.get()]
    {
        line.push_str("  ");
        line.push_str(part);
    }
    if let Some(headers) = record.headers.filter(|headers| headers.get() != "{}") {
        line.push_str("  headers=");
        line.push_str(headers.get());
    }
    if let Some(delivery) = record.delivery.filter(|delivery| delivery.count > 1) {
        line.push_str(&format!("  (delivered {} times)", delivery.count));
    }
    Ok(printable(&line))
}

/// A gap in words.
#[must_use]
pub fn gap_line(gap: &GapInfo) -> String {
    let (partition, from, count) = (gap.partition, gap.from, gap.to.saturating_sub(gap.from));
    let last = gap.to.saturating_sub(1);
    let reason = printable(&gap.reason);
    if count == 1 {
        return format!("GAP: partition {partition}: offset {from} is gone ({reason})");
    }
    format!("GAP: partition {partition}: offsets {from} to {last} are gone ({reason}): {count} records")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: bool, record: &str) -> String {
        let mut output = RecordOutput::new(Vec::new(), json);
        output.record(record).unwrap();
        output.flush().unwrap();
        String::from_utf8(output.to.into_inner().unwrap()).unwrap()
    }

    const RECORD: &str = r#"{"partition":2,"offset":18446744073709551614,"op":"update","key":"a","value":{"n":9007199254740993,"d":1.10},"before":null,"headers":{},"event_time":null,"append_time":"2026-11-21T10:00:00.000Z","source":null}"#;

    #[test]
    fn a_record_keeps_every_digit_in_both_forms() {
        assert_eq!(written(true, RECORD), format!("{{\"record\":{RECORD}}}\n"));
        assert_eq!(
            written(false, RECORD),
            "2:18446744073709551614  2026-11-21T10:00:00.000Z  update  \"a\"  {\"n\":9007199254740993,\"d\":1.10}\n"
        );
    }

    #[test]
    fn a_record_without_key_and_with_headers_is_one_line_that_commands_no_terminal() {
        let line = written(
            false,
            "{\"partition\":0,\"offset\":0,\"op\":\"message\",\"value\":\"\u{9b}2J\",\"headers\":{\"a\":\"b\"}}",
        );
        assert_eq!(line, "0:0  -  message  -  \"\u{fffd}2J\"  headers={\"a\":\"b\"}\n");
    }

    #[test]
    fn a_gap_is_a_line_of_the_json_and_says_its_exact_bounds() {
        let gap = GapInfo { partition: 1, from: 5, to: 10, reason: "retention".to_owned() };
        assert_eq!(gap_line(&gap), "GAP: partition 1: offsets 5 to 9 are gone (retention): 5 records");
        let mut output = RecordOutput::new(Vec::new(), true);
        output.gap(&gap).unwrap();
        assert_eq!(
            String::from_utf8(output.to.into_inner().unwrap()).unwrap(),
            "{\"gap\":{\"partition\":1,\"from\":5,\"to\":10,\"reason\":\"retention\"}}\n"
        );
    }
}
