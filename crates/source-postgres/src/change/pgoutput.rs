//! The messages of PostgreSQL's `pgoutput` plug-in, protocol version 1: bytes in, borrowed values out. It never panics, never
//! allocates by a length that the bytes claim, and refuses a message with a byte too few or too many.
//!
//! The format: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.

use super::lsn::Lsn;

/// Why bytes are no message, in words.
pub(crate) type Malformed = &'static str;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// A transaction begins: where its commit record begins, when it was committed, and its number.
    Begin {
        commit: Lsn,
        time_us: i64,
        xid: u32,
    },
    /// The transaction is over: where its commit record ends.
    Commit {
        commit: Lsn,
        end: Lsn,
    },
    /// What the tuples of a table look like from now on.
    Relation(Relation<'a>),
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: Old<'a>,
    },
    Truncate {
        relations: Vec<u32>,
        cascade: bool,
        restart_identity: bool,
    },
    /// Where the transaction came from, what a type is called, a message of an application: nothing that we use.
    Other,
}

/// The old values of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Old<'a> {
    /// The columns of the replica identity; the others are NULL.
    Key(Tuple<'a>),
    /// The whole row.
    Row(Tuple<'a>),
}

/// The values of a row in the order of its table's columns.
pub(crate) type Tuple<'a> = Vec<Value<'a>>;

/// One value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Null,
    /// It was stored out of line and not changed: the server does not send it.
    Unchanged,
    Text(&'a str),
}

/// A table as pgoutput describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation<'a> {
    pub(crate) oid: u32,
    /// Empty for `pg_catalog`.
    pub(crate) schema: &'a str,
    pub(crate) name: &'a str,
    /// `d` default, `n` nothing, `f` full, `i` an index.
    pub(crate) identity: u8,
    pub(crate) columns: Vec<RelationColumn<'a>>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelationColumn<'a> {
    /// Whether it belongs to the replica identity.
    pub(crate) key: bool,
    pub(crate) name: &'a str,
    pub(crate) type_oid: u32,
    pub(crate) modifier: i32,
}

/// Reads a message.
pub(crate) fn decode(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut rest = Bytes(bytes);
    let message = match rest.byte()? {
        b'B' => Message::Begin { commit: Lsn(rest.u64()?), time_us: rest.i64()?, xid: rest.u32()? },
        b'C' => {
            rest.byte()?;
            let message = Message::Commit { commit: Lsn(rest.u64()?), end: Lsn(rest.u64()?) };
            rest.i64()?;
            message
        }
        b'R' => Message::Relation(relation(&mut rest)?),
        b'I' => {
            let relation = rest.u32()?;
            rest.expect(b'N')?;
            Message::Insert { relation, new: tuple(&mut rest)? }
        }
        b'U' => {
            let relation = rest.u32()?;
            let old = match rest.byte()? {
                b'N' => None,
                kind => {
                    let old = old(kind, &mut rest)?;
                    rest.expect(b'N')?;
                    Some(old)
                }
            };
            Message::Update { relation, old, new: tuple(&mut rest)? }
        }
        b'D' => {
            let relation = rest.u32()?;
            let kind = rest.byte()?;
            Message::Delete { relation, old: old(kind, &mut rest)? }
        }
        b'T' => {
            let count = rest.u32()?;
            let options = rest.byte()?;
            let mut relations = Vec::new();
            for _ in 0..count {
                relations.push(rest.u32()?);
            }
            Message::Truncate { relations, cascade: options & 1 != 0, restart_identity: options & 2 != 0 }
        }
        b'O' | b'Y' | b'M' => return Ok(Message::Other),
        _ => return Err("a message of a kind that protocol version 1 does not have"),
    };
    if rest.0.is_empty() { Ok(message) } else { Err("a message goes on behind its end") }
}

fn relation<'a>(rest: &mut Bytes<'a>) -> Result<Relation<'a>, Malformed> {
    let (oid, schema, name, identity) = (rest.u32()?, rest.text_to_nul()?, rest.text_to_nul()?, rest.byte()?);
    let count = rest.u16()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        columns.push(RelationColumn {
            key: rest.byte()? & 1 != 0,
            name: rest.text_to_nul()?,
            type_oid: rest.u32()?,
            modifier: rest.u32()?.cast_signed(),
        });
    }
    Ok(Relation { oid, schema, name, identity, columns })
}

fn old<'a>(kind: u8, rest: &mut Bytes<'a>) -> Result<Old<'a>, Malformed> {
    match kind {
        b'K' => Ok(Old::Key(tuple(rest)?)),
        b'O' => Ok(Old::Row(tuple(rest)?)),
        _ => Err("old values that are neither a key nor a row"),
    }
}

fn tuple<'a>(rest: &mut Bytes<'a>) -> Result<Tuple<'a>, Malformed> {
    let count = usize::from(rest.u16()?);
    // A column takes a byte at least: more cannot come, whatever the count says.
    let mut values = Vec::with_capacity(count.min(rest.0.len()));
    for _ in 0..count {
        values.push(match rest.byte()? {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            b't' => {
                let length = usize::try_from(rest.u32()?).map_err(|_| CUT)?;
                Value::Text(str::from_utf8(rest.take(length)?).map_err(|_| NOT_UTF_8)?)
            }
            _ => return Err("a value that is neither NULL, unchanged nor text"),
        });
    }
    Ok(values)
}

const CUT: Malformed = "a message ends before its end";
const NOT_UTF_8: Malformed = "a text is not UTF-8";

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Malformed> {
        if self.byte()? == wanted { Ok(()) } else { Err("the new values of a row are missing") }
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    fn text_to_nul(&mut self) -> Result<&'a str, Malformed> {
        let length = self.0.iter().position(|byte| *byte == 0).ok_or(CUT)?;
        let text = self.take(length)?;
        self.byte()?;
        str::from_utf8(text).map_err(|_| NOT_UTF_8)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Writer(Vec<u8>);

    impl Writer {
        fn tag(mut self, tag: u8) -> Self {
            self.0.push(tag);
            self
        }
        fn u16(mut self, value: usize) -> Self {
            self.0.extend(u16::try_from(value).unwrap().to_be_bytes());
            self
        }
        fn u32(mut self, value: u32) -> Self {
            self.0.extend(value.to_be_bytes());
            self
        }
        fn u64(mut self, value: u64) -> Self {
            self.0.extend(value.to_be_bytes());
            self
        }
        fn text(mut self, text: &str) -> Self {
            self.0.extend(text.as_bytes());
            self.tag(0)
        }
        fn tuple(self, values: &[Value<'_>]) -> Self {
            values.iter().fold(self.u16(values.len()), |mut writer, value| match value {
                Value::Null => writer.tag(b'n'),
                Value::Unchanged => writer.tag(b'u'),
                Value::Text(text) => {
                    writer = writer.tag(b't').u32(u32::try_from(text.len()).unwrap());
                    writer.0.extend(text.as_bytes());
                    writer
                }
            })
        }
    }

    fn encode(message: &Message<'_>) -> Vec<u8> {
        let writer = Writer::default();
        let old = |writer: Writer, old: &Old<'_>| match old {
            Old::Key(tuple) => writer.tag(b'K').tuple(tuple),
            Old::Row(tuple) => writer.tag(b'O').tuple(tuple),
        };
        match message {
            Message::Begin { commit, time_us, xid } => {
                writer.tag(b'B').u64(commit.0).u64(time_us.cast_unsigned()).u32(*xid)
            }
            Message::Commit { commit, end } => writer.tag(b'C').tag(0).u64(commit.0).u64(end.0).u64(7),
            Message::Relation(relation) => relation.columns.iter().fold(
                writer
                    .tag(b'R')
                    .u32(relation.oid)
                    .text(relation.schema)
                    .text(relation.name)
                    .tag(relation.identity)
                    .u16(relation.columns.len()),
                |writer, column| {
                    let writer = writer.tag(u8::from(column.key)).text(column.name);
                    writer.u32(column.type_oid).u32(column.modifier.cast_unsigned())
                },
            ),
            Message::Insert { relation, new } => writer.tag(b'I').u32(*relation).tag(b'N').tuple(new),
            Message::Update { relation, old: before, new } => {
                let mut writer = writer.tag(b'U').u32(*relation);
                if let Some(before) = before {
                    writer = old(writer, before);
                }
                writer.tag(b'N').tuple(new)
            }
            Message::Delete { relation, old: before } => old(writer.tag(b'D').u32(*relation), before),
            Message::Truncate { relations, cascade, restart_identity } => relations.iter().fold(
                writer
                    .tag(b'T')
                    .u32(u32::try_from(relations.len()).unwrap())
                    .tag(u8::from(*cascade) | u8::from(*restart_identity) << 1),
                |writer, relation| writer.u32(*relation),
            ),
            Message::Other => writer.tag(b'O').u64(1).text("origin"),
        }
        .0
    }

    fn values() -> impl Strategy<Value = Tuple<'static>> {
        let value = prop_oneof![
            Just(Value::Null),
            Just(Value::Unchanged),
            "[a-zü\\\\\" ]{0,12}".prop_map(|text| Value::Text(text.leak())),
        ];
        proptest::collection::vec(value, 0..6)
    }

    fn message() -> impl Strategy<Value = Message<'static>> {
        let old = || prop_oneof![values().prop_map(Old::Key), values().prop_map(Old::Row)];
        let column = ("[a-z]{1,5}", any::<(bool, u32, i32)>()).prop_map(|(name, (key, type_oid, modifier))| {
            RelationColumn { key, name: name.leak(), type_oid, modifier }
        });
        let relation = (any::<u32>(), "[a-z]{0,4}", "[a-zü.]{1,5}", proptest::collection::vec(column, 0..5));
        prop_oneof![
            any::<(u64, i64, u32)>().prop_map(|(commit, time_us, xid)| Message::Begin {
                commit: Lsn(commit),
                time_us,
                xid
            }),
            any::<(u64, u64)>().prop_map(|(commit, end)| Message::Commit { commit: Lsn(commit), end: Lsn(end) }),
            relation.prop_map(|(oid, schema, name, columns)| Message::Relation(Relation {
                oid,
                schema: schema.leak(),
                name: name.leak(),
                identity: b'd',
                columns
            })),
            (any::<u32>(), values()).prop_map(|(relation, new)| Message::Insert { relation, new }),
            (any::<u32>(), proptest::option::of(old()), values()).prop_map(|(relation, old, new)| Message::Update {
                relation,
                old,
                new
            }),
            (any::<u32>(), old()).prop_map(|(relation, old)| Message::Delete { relation, old }),
            (proptest::collection::vec(any::<u32>(), 0..4), any::<(bool, bool)>()).prop_map(
                |(relations, (cascade, restart_identity))| Message::Truncate { relations, cascade, restart_identity }
            ),
            Just(Message::Other),
        ]
    }

    proptest! {
        #[test]
        fn every_message_reads_back_and_no_cut_or_added_byte_is_taken(message in message(), added in any::<u8>()) {
            let mut bytes = encode(&message);
            prop_assert_eq!(decode(&bytes), Ok(message.clone()));
            if message != Message::Other {
                for length in 0..bytes.len() {
                    prop_assert!(decode(&bytes[..length]).is_err());
                }
                bytes.push(added);
                prop_assert!(decode(&bytes).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn no_flipped_byte_panics(message in message(), place in any::<proptest::sample::Index>(), mask in 1u8..) {
            let mut bytes = encode(&message);
            let at = place.index(bytes.len());
            bytes[at] ^= mask;
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_claimed_length_is_not_believed() {
        let insert = Writer::default().tag(b'I').u32(1).tag(b'N').u16(1).tag(b't').u32(u32::MAX);
        assert_eq!(decode(&insert.0), Err(CUT));
        let truncate = Writer::default().tag(b'T').u32(u32::MAX).tag(0).u32(1);
        assert_eq!(decode(&truncate.0), Err(CUT));
        let row = Writer::default().tag(b'D').u32(1).tag(b'K').u16(65535);
        assert_eq!(decode(&row.0), Err(CUT));
    }
}
