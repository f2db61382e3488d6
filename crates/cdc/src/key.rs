//! Keys in the metadata store. Names have no control characters, so a zero byte separates them without escaping: names with
//! `:` or `/` never collide. Everything that belongs to a stream but the stream itself lies under its incarnation, so that
//! a stream that was removed and made again has nothing of the old one.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tidegate_core::id::Name;
use tidegate_core::port::StreamId;
use tidegate_core::position::Partition;

/// One life of a stream: 128 random bits, drawn when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Incarnation(pub(crate) [u8; 16]);

/// The key of a stream's own entry.
pub(crate) fn stream(id: &StreamId) -> Bytes {
    let mut key = streams_of(&id.tenant);
    key.put_slice(id.stream.as_str().as_bytes());
    key.freeze()
}

/// What the keys of all tenants' streams begin with.
pub(crate) fn all_streams() -> Bytes {
    Bytes::from_static(b"s\0")
}

/// What the keys of a tenant's streams begin with.
pub(crate) fn streams_of(tenant: &Name) -> BytesMut {
    let mut key = BytesMut::with_capacity(128);
    key.put_slice(b"s\0");
    key.put_slice(tenant.as_str().as_bytes());
    key.put_u8(0);
    key
}

/// The key of a source's entry.
pub(crate) fn source(tenant: &Name, source: &Name) -> Bytes {
    let mut key = sources_of(tenant);
    key.put_slice(source.as_str().as_bytes());
    key.put_u8(0);
    key.freeze()
}

fn sources_of(tenant: &Name) -> BytesMut {
    let mut key = BytesMut::with_capacity(128);
    key.put_slice(b"c\0");
    key.put_slice(tenant.as_str().as_bytes());
    key.put_u8(0);
    key
}

/// The key of what is known of one stream of a source; `table` is what the source calls it. All of them begin with the source's own key.
pub(crate) fn source_stream(tenant: &Name, source_name: &Name, table: &str) -> Bytes {
    let mut key = BytesMut::from(source(tenant, source_name));
    key.put_slice(table.as_bytes());
    key.freeze()
}

/// What the keys of everything that belongs to a stream's life begin with.
pub(crate) fn life(incarnation: Incarnation) -> BytesMut {
    let mut key = BytesMut::with_capacity(64);
    key.put_slice(b"i\0");
    key.put_slice(&incarnation.0);
    key
}

/// A part of a stream's life: `kind` says of what sort.
fn part(incarnation: Incarnation, kind: u8) -> BytesMut {
    let mut key = life(incarnation);
    key.put_u8(kind);
    key
}

/// A producer's state.
pub(crate) fn producer(incarnation: Incarnation, producer: &str) -> Bytes {
    let mut key = part(incarnation, b'p');
    key.put_slice(producer.as_bytes());
    key.freeze()
}

/// What the keys of a stream's producers begin with.
pub(crate) fn producers(incarnation: Incarnation) -> Bytes {
    part(incarnation, b'p').freeze()
}

/// A partition's watermark.
pub(crate) fn watermark(incarnation: Incarnation, partition: Partition) -> Bytes {
    let mut key = part(incarnation, b'w');
    key.put_u32(partition.0);
    key.freeze()
}

/// When a stream with a time to live was last used.
pub(crate) fn access(incarnation: Incarnation) -> Bytes {
    part(incarnation, b'a').freeze()
}

/// The last writer's sequence (`Stream-Seq`).
pub(crate) fn writer_seq(incarnation: Incarnation) -> Bytes {
    part(incarnation, b's').freeze()
}

/// What the keys of a group begin with; its cells follow.
pub(crate) fn group(incarnation: Incarnation, group: &Name) -> BytesMut {
    let mut key = groups(incarnation);
    key.put_slice(group.as_str().as_bytes());
    key.put_u8(0);
    key
}

/// What the keys of a stream's groups begin with.
pub(crate) fn groups(incarnation: Incarnation) -> BytesMut {
    part(incarnation, b'g')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_separators_never_collide() {
        let name = |text: &str| Name::new(text).unwrap();
        let id = |tenant: &str, stream: &str| StreamId { tenant: name(tenant), stream: name(stream) };
        let keys = [id("a", "b:c"), id("a:b", "c"), id("a/b", "c"), id("a", "b/c"), id("a", "b"), id("ab", "c")];
        let mut all: Vec<Bytes> = keys.iter().map(stream).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), keys.len());
        let life = Incarnation([7; 16]);
        assert!(!group(life, &name("ab")).starts_with(&group(life, &name("a"))));
    }
}
