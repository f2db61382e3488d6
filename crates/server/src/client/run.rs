//! The order of a partition as a reader must see it: every offset once, in a record or in a gap. It hands out nothing twice and
//! lets nothing be left out.

use serde::Deserialize;

use super::ClientError;
use super::change::GapInfo;

/// How far a partition was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) partition: u32,
    /// The offset that comes next.
    pub(super) next: u64,
}

/// What is read from a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A record, as the JSON that the server sent.
    Record {
        /// Of which partition.
        partition: u32,
        /// Its place.
        offset: u64,
        /// The record.
        json: String,
    },
    /// Records are gone.
    Gap(GapInfo),
}

/// Where a record is; the rest of it is not looked at.
#[derive(Deserialize)]
struct Place {
    partition: u32,
    offset: u64,
}

impl Run {
    /// Takes a record, or nothing if it was taken before.
    pub(super) fn record(&mut self, json: &str) -> Result<Option<Item>, ClientError> {
        let place: Place = serde_json::from_str(json).map_err(ClientError::Answer)?;
        if place.partition != self.partition {
            return Err(ClientError::Protocol { what: "a record of another partition" });
        }
        if place.offset > self.next {
            return Err(self.skipped(place.offset));
        }
        if place.offset < self.next {
            return Ok(None);
        }
        self.next = place.offset.checked_add(1).ok_or(ClientError::Protocol { what: "a record beyond all offsets" })?;
        Ok(Some(Item::Record { partition: place.partition, offset: place.offset, json: json.to_owned() }))
    }

    /// Takes a gap, or nothing if it lies in what was taken before.
    pub(super) fn gap(&mut self, mut gap: GapInfo) -> Result<Option<Item>, ClientError> {
        if gap.partition != self.partition {
            return Err(ClientError::Protocol { what: "a gap of another partition" });
        }
        if gap.from > self.next {
            return Err(self.skipped(gap.from));
        }
        if gap.to <= self.next {
            return Ok(None);
        }
        // What was handed out already is no gap.
        gap.from = self.next;
        self.next = gap.to;
        Ok(Some(Item::Gap(gap)))
    }

    fn skipped(&self, found: u64) -> ClientError {
        ClientError::Skipped { partition: self.partition, expected: self.next, found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(from: u64, to: u64) -> GapInfo {
        GapInfo { partition: 3, from, to, reason: "retention".to_owned() }
    }

    fn record(offset: u64) -> String {
        format!(r#"{{"partition":3,"offset":{offset},"op":"insert","value":9007199254740993}}"#)
    }

    #[test]
    fn every_offset_is_taken_once_in_a_record_or_in_a_gap() {
        let mut run = Run { partition: 3, next: 5 };
        assert_eq!(run.gap(gap(0, 7)).unwrap(), Some(Item::Gap(gap(5, 7))), "what was before is no gap of this reader");
        let json = record(7);
        assert_eq!(run.record(&json).unwrap(), Some(Item::Record { partition: 3, offset: 7, json: json.clone() }));
        assert_eq!(run.record(&json).unwrap(), None, "a repetition");
        assert_eq!(run.gap(gap(5, 8)).unwrap(), None);
        assert_eq!(run.next, 8);
    }

    #[test]
    fn what_is_left_out_in_silence_is_an_error() {
        let mut run = Run { partition: 3, next: 5 };
        let error = run.record(&record(6)).unwrap_err();
        assert!(matches!(error, ClientError::Skipped { partition: 3, expected: 5, found: 6 }), "{error}");
        assert!(matches!(run.gap(gap(6, 9)), Err(ClientError::Skipped { found: 6, .. })));
        assert!(matches!(run.record(r#"{"partition":0,"offset":5}"#), Err(ClientError::Protocol { .. })));
        assert!(matches!(run.record(&record(u64::MAX)), Err(ClientError::Skipped { .. })));
        assert_eq!(run.next, 5, "what is refused moves nothing");
    }
}
