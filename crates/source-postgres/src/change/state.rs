//! What is stored with every batch, beside its position: whose changes they are, how far the first copy is, how much of a large
//! transaction was stored, and what the tables looked like. Small: it grows with the tables and never with their rows.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::coverage::{Coverage, Interval, Key};
use super::lsn::Lsn;

const VERSION: u8 = 1;

/// The state of a source, as it is stored with a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    version: u8,
    /// The cluster's identifier.
    pub(crate) system: Box<str>,
    pub(crate) timeline: u32,
    pub(crate) slot: Box<str>,
    /// What the tables looked like when we last said so: a hash of their columns, by OID.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) schemas: BTreeMap<u32, u64>,
    /// The first copy; `None` = it is done and every transaction that it saw has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) copy: Option<Copy>,
    /// A transaction of which a part was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) part: Option<Part>,
}

/// How far into a transaction reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// Where its commit record begins.
    #[serde(with = "text")]
    pub(crate) commit: Lsn,
    /// How many of its messages are in the batches up to this one.
    pub(crate) messages: u64,
    /// The place of its next change.
    pub(crate) index: u64,
}

/// The first copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Copy {
    pub(crate) done: bool,
    /// Where the slot begins: the position of every copied row.
    #[serde(with = "text")]
    pub(crate) start: Lsn,
    /// Rows so far.
    pub(crate) rows: u64,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) tables: BTreeMap<u32, TableCopy>,
}

/// How far the copy of one table is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableCopy {
    /// Its files: others after a TRUNCATE or a rewriting ALTER TABLE.
    pub(crate) files: Box<str>,
    /// Its key columns.
    pub(crate) key: Vec<Box<str>>,
    /// Rows of it were given.
    pub(crate) begun: bool,
    pub(crate) covered: Coverage,
}

/// Which transactions a snapshot saw: `pg_current_snapshot()`, and a place in the log behind all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    xmin: u64,
    xmax: u64,
    running: Vec<u64>,
    #[serde(with = "text")]
    pub(crate) until: Lsn,
}

impl Snapshot {
    /// Reads `xmin:xmax:xip,xip`.
    pub(crate) fn parse(text: &str, until: Lsn) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let running: Option<Vec<u64>> =
            parts.next()?.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok()).collect();
        Some(Self { xmin, xmax, running: running?, until })
    }

    /// Whether the snapshot saw a transaction that committed at `commit`. Only the lower half of its number is known: it is of
    /// the age that is nearer to the snapshot's, as in PostgreSQL.
    pub(crate) fn saw(&self, xid: u32, commit: Lsn) -> bool {
        // What committed behind `until` was running, or not begun, when the snapshot was taken.
        if commit >= self.until {
            return false;
        }
        let distance = xid.wrapping_sub(self.xmax as u32).cast_signed();
        let Some(full) = self.xmax.checked_add_signed(i64::from(distance)) else { return true };
        full < self.xmin || (full < self.xmax && !self.running.contains(&full))
    }
}

impl State {
    pub(crate) fn new(system: Box<str>, timeline: u32, slot: Box<str>, copy: Option<Copy>) -> Self {
        Self { version: VERSION, system, timeline, slot, schemas: BTreeMap::new(), copy, part: None }
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes)
            .ok()
            .filter(|state: &Self| state.version == VERSION && state.copy.as_ref().is_none_or(Copy::is_sound))
    }

    pub(crate) fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("numbers, texts and lists of them are JSON").into()
    }
}

impl Copy {
    /// Whether its parts fit together.
    fn is_sound(&self) -> bool {
        self.tables.values().all(|table| {
            let fits = |key: &Option<Key>| key.as_ref().is_none_or(|key| key.len() == table.key.len());
            let sound = |part: &Interval| part.snapshot < self.snapshots.len() && fits(&part.after) && fits(&part.to);
            table.covered.0.iter().all(sound)
        })
    }
}

/// A position as PostgreSQL writes it.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::change::lsn::Lsn;

    pub(super) fn serialize<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Lsn::parse(&text).ok_or_else(|| de::Error::custom("not a position in the write-ahead log"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> State {
        let mut state = State::new("7312".into(), 1, "s".into(), None);
        state.schemas.insert(16_400, u64::MAX);
        state.part = Some(Part { commit: Lsn(0x16_B374), messages: 7, index: 9 });
        state.copy = Some(Copy {
            done: false,
            start: Lsn(77),
            rows: 3,
            snapshots: vec![Snapshot::parse("10:20:11,12", Lsn(99)).unwrap()],
            tables: BTreeMap::from([(
                16_400,
                TableCopy {
                    files: "16400".into(),
                    key: vec!["id".into()],
                    begun: true,
                    covered: Coverage(vec![Interval { after: None, to: Some(vec!["5".into()]), snapshot: 0 }]),
                },
            )]),
        });
        state
    }

    #[test]
    fn a_state_reads_back_and_other_bytes_do_not() {
        let state = state();
        assert_eq!(State::decode(&state.encode()).as_ref(), Some(&state));
        let text = String::from_utf8(state.encode().to_vec()).unwrap();
        assert!(text.len() < 400, "{text}");
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"s\":0", "\"s\":1"),
            ("0/16B374", "0/x"),
            ("[\"5\"]", "[]"),
            ("\"rows\"", "\"row\""),
        ] {
            let other = text.replace(from, to);
            assert_ne!(other, text, "{from}");
            assert_eq!(State::decode(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_snapshot_saw_what_had_committed_when_it_was_taken() {
        let snapshot = Snapshot::parse("4294967290:4294967300:4294967295,4294967298", Lsn(100)).unwrap();
        for (xid, seen) in [
            (4_294_967_289_u32, true),
            (4_294_967_290, true),
            (4_294_967_295, false),
            (1, true),
            (2, false),
            (4, false),
        ] {
            assert_eq!(snapshot.saw(xid, Lsn(50)), seen, "{xid}");
            assert!(!snapshot.saw(xid, Lsn(100)), "{xid}");
        }
        assert!(Snapshot::parse("1:2:", Lsn(0)).is_some());
        for text in ["", "1", "1:2", "1:2:x", "a:2:"] {
            assert_eq!(Snapshot::parse(text, Lsn(0)), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), cut in 0usize..300) {
            let _ = State::decode(&bytes);
            let whole = state().encode();
            let _ = State::decode(&whole[..cut.min(whole.len())]);
        }
    }
}
