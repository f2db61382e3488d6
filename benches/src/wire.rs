//! What is published, and how, on each wire: the same 256 bytes as a line of ours, as a message of Durable Streams, as a message of NATS
//! and as an entry of Redis. It measures nothing.

use std::rc::Rc;

use crate::http::{Connection, request};
use crate::load::Lane;
use crate::process::Server;

/// Digits of the time in a record: a record's size does not depend on it.
pub const TIME_DIGITS: usize = 20;
const TIME_FIELD: &[u8] = b"\"t\":\"";
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

/// A JSON object of exactly so many bytes with a time in it: `{"t":"000...","p":"xxx"}`.
///
/// # Panics
/// When it does not fit.
#[must_use]
pub fn record(bytes: usize, time: u64) -> Vec<u8> {
    let mut out = format!("{{\"t\":\"{time:0TIME_DIGITS$}\",\"p\":\"").into_bytes();
    let fill = bytes.checked_sub(out.len() + 2).expect("a record has room for its time");
    out.extend((0..fill).map(|index| b'a' + (index % 26) as u8));
    out.extend_from_slice(b"\"}");
    out
}

/// Finds the times in a stream of bytes that is cut anywhere.
#[derive(Debug, Default)]
pub struct Times {
    rest: Vec<u8>,
}

impl Times {
    /// Takes bytes, and hands over every time that is whole.
    pub fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(u64)) {
        self.rest.extend_from_slice(bytes);
        let whole = TIME_FIELD.len() + TIME_DIGITS;
        let mut used = 0;
        while let Some(at) = memchr::memmem::find(&self.rest[used..], TIME_FIELD) {
            let at = used + at;
            let Some(field) = self.rest.get(at..at + whole) else {
                used = at;
                self.rest.drain(..used);
                return;
            };
            let digits = std::str::from_utf8(&field[TIME_FIELD.len()..]).expect("digits");
            take(digits.parse().expect("a time"));
            used = at + whole;
        }
        // The beginning of a field may be what is left.
        let keep = self.rest.len().saturating_sub(TIME_FIELD.len() - 1).max(used);
        self.rest.drain(..keep);
    }
}

/// A wire for records over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// `/v1/streams/{s}/records` of ours.
    Native,
    /// Durable Streams in JSON mode, at ours or at the peer.
    Durable,
    /// Durable Streams with bytes as they are; a body is one append, whatever is in it.
    DurableBytes,
}

impl Wire {
    /// The path of a stream; every server that is measured takes it.
    #[must_use]
    pub fn path(self, stream: &str) -> String {
        match self {
            Self::Native => format!("/v1/streams/{stream}"),
            Self::Durable | Self::DurableBytes => format!("/ds/v1/stream/{stream}"),
        }
    }

    /// The request that creates a stream of one partition.
    #[must_use]
    pub fn create(self, stream: &str) -> Vec<u8> {
        match self {
            Self::Native => request("PUT", &self.path(stream), Some(JSON), b"{\"partitions\":1}"),
            Self::Durable => request("PUT", &self.path(stream), Some(JSON), b""),
            Self::DurableBytes => request("PUT", &self.path(stream), Some("application/octet-stream"), b""),
        }
    }

    /// The request that appends these records.
    #[must_use]
    pub fn append(self, stream: &str, records: &[Vec<u8>]) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::Native => {
                for record in records {
                    body.extend_from_slice(b"{\"value\":");
                    body.extend_from_slice(record);
                    body.extend_from_slice(b"}\n");
                }
                request("POST", &format!("{}/records", self.path(stream)), Some(NDJSON), &body)
            }
            Self::Durable => {
                for record in records {
                    body.push(if body.is_empty() { b'[' } else { b',' });
                    body.extend_from_slice(record);
                }
                body.push(b']');
                request("POST", &self.path(stream), Some(JSON), &body)
            }
            Self::DurableBytes => {
                let body = records.concat();
                request("POST", &self.path(stream), Some("application/octet-stream"), &body)
            }
        }
    }

    /// The request that tails a stream from its end, or from its start.
    #[must_use]
    pub fn tail(self, stream: &str, from_start: bool) -> Vec<u8> {
        let path = match (self, from_start) {
            (Self::Native, false) => format!("{}/records?partition=0&from=latest", self.path(stream)),
            (Self::Native, true) => format!("{}/records?partition=0&from=0", self.path(stream)),
            (_, false) => format!("{}?offset=now&live=sse", self.path(stream)),
            (_, true) => format!("{}?offset=-1&live=sse", self.path(stream)),
        };
        crate::http::events(&path)
    }
}

/// Creates streams, one after the other over one connection.
pub async fn create(server: &Server, wire: Wire, streams: &[String]) {
    let mut connection = Connection::open(server.address).await;
    for stream in streams {
        connection.succeed(&wire.create(stream)).await;
    }
}

/// Names for streams.
#[must_use]
pub fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|index| format!("{prefix}{index}")).collect()
}

/// A lane that appends the same requests in turn, over one connection.
#[derive(Debug)]
pub struct HttpLane {
    connection: Connection,
    requests: Rc<Vec<Vec<u8>>>,
    lane: usize,
    lanes: usize,
    /// Turns of earlier loops, so that a new loop goes on with the next stream.
    before: usize,
}

impl Lane for HttpLane {
    async fn step(&mut self, _turn: usize) {
        let index = (self.lane + self.before * self.lanes) % self.requests.len();
        self.before += 1;
        self.connection.succeed(&self.requests[index]).await;
    }
}

/// So many connections that append `batch` records a request to the streams in turn.
pub async fn http_lanes(
    server: &Server,
    wire: Wire,
    streams: &[String],
    batch: usize,
    record_bytes: usize,
    lanes: usize,
) -> Vec<HttpLane> {
    let records = vec![record(record_bytes, 0); batch];
    let requests = Rc::new(streams.iter().map(|stream| wire.append(stream, &records)).collect::<Vec<_>>());
    let mut all = Vec::new();
    for lane in 0..lanes {
        let connection = Connection::open(server.address).await;
        all.push(HttpLane { connection, requests: Rc::clone(&requests), lane, lanes, before: 0 });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_its_size_and_its_time_is_found_wherever_the_stream_is_cut() {
        let line = [record(64, 7), record(256, u64::MAX)].concat();
        assert_eq!(line.len(), 320);
        for cut in 0..line.len() {
            let (mut times, mut found) = (Times::default(), Vec::new());
            times.feed(&line[..cut], |time| found.push(time));
            times.feed(&line[cut..], |time| found.push(time));
            assert_eq!(found, [7, u64::MAX], "cut at {cut}");
        }
    }
}
