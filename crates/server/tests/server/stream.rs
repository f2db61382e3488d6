//! A query stream as a client sees it that was written from the contract alone: lines, what it holds, and its own SHA-256.

use std::net::SocketAddr;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::http::{Answer, Connection};

/// What a client holds: row lines from row 0 on, over any number of connections.
#[derive(Clone, Default)]
pub(crate) struct Held {
    pub(crate) rows: u64,
    hasher: Sha256,
    /// Every row line with its newline.
    pub(crate) bytes: Vec<u8>,
}

impl Held {
    fn take(&mut self, line: &[u8]) {
        self.rows += 1;
        self.hasher.update(line);
        self.bytes.extend_from_slice(line);
        self.bytes.push(b'\n');
    }

    /// SHA-256 over the row lines without their newlines, in hexadecimal.
    pub(crate) fn hash(&self) -> String {
        hex::encode(self.hasher.clone().finalize())
    }

    /// The rows as JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        let lines = self.bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()["row"].take()).collect()
    }
}

/// How a stream ended, as far as it did.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ending {
    /// The content of the error line.
    pub(crate) error: Option<Value>,
    /// The content of the end line; nothing where the stream was cut.
    pub(crate) end: Option<Value>,
}

impl Ending {
    pub(crate) fn code(&self) -> &str {
        self.error.as_ref().and_then(|error| error["code"].as_str()).unwrap_or_default()
    }

    pub(crate) fn status(&self) -> &str {
        self.end.as_ref().and_then(|end| end["status"].as_str()).unwrap_or_default()
    }
}

/// An open stream.
pub(crate) struct Stream {
    pub(crate) connection: Connection,
    /// The content of the open line.
    pub(crate) open: Value,
    /// Bytes of the body that are no whole line yet, or not looked at yet.
    text: Vec<u8>,
    looked_at: usize,
}

impl Stream {
    /// Sends a request whose answer is a stream; a refusal is given back.
    pub(crate) fn request(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Self, Answer> {
        let mut connection = Connection::open(address);
        connection.request("POST", path, headers, body.to_string());
        let mut head = connection.head().expect("an answer");
        if head.status != 200 {
            while let Some(piece) = connection.piece() {
                head.body.extend_from_slice(&piece);
            }
            return Err(head);
        }
        assert_eq!(head.header("content-type"), Some("application/x-ndjson"));
        let mut stream = Self { connection, open: Value::Null, text: Vec::new(), looked_at: 0 };
        let line = stream.line().expect("an open line");
        let mut line: Value = serde_json::from_slice(&line).unwrap();
        stream.open = line["open"].take();
        assert!(stream.open.is_object(), "the first line opens");
        Ok(stream)
    }

    /// `POST /v1/query`.
    pub(crate) fn query(address: SocketAddr, headers: &[(&str, &str)], sql: &str) -> Result<Self, Answer> {
        Self::request(address, "/v1/query", headers, &json!({"source": "main", "sql": sql}))
    }

    /// `POST /v1/query/resume` after the rows that are held.
    pub(crate) fn resume(
        address: SocketAddr,
        headers: &[(&str, &str)],
        cursor: &str,
        held: &Held,
    ) -> Result<Self, Answer> {
        let body = json!({"cursor": cursor, "rows": held.rows, "prefix_hash": held.hash()});
        let stream = Self::request(address, "/v1/query/resume", headers, &body)?;
        assert_eq!(stream.open["from_row"], held.rows);
        Ok(stream)
    }

    pub(crate) fn cursor(&self) -> String {
        self.open["cursor"].as_str().expect("a stream that can be resumed").to_owned()
    }

    /// The next line without its newline; `None` when the body is over or cut.
    fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.text[self.looked_at..]) {
                let line = self.text[self.looked_at..self.looked_at + at].to_vec();
                self.looked_at += at + 1;
                return Some(line);
            }
            self.text.drain(..std::mem::take(&mut self.looked_at));
            let piece = self.connection.piece()?;
            self.text.extend_from_slice(&piece);
        }
    }

    /// Takes up to `rows` rows; the ending, if it comes first.
    pub(crate) fn take(&mut self, held: &mut Held, rows: u64) -> Option<Ending> {
        let until = held.rows.saturating_add(rows);
        while held.rows < until {
            let Some(line) = self.line() else { return Some(Ending::default()) };
            if line.starts_with(b"{\"row\":") {
                held.take(&line);
                continue;
            }
            let mut ending = Ending::default();
            let mut last: Value = serde_json::from_slice(&line).unwrap();
            if last["error"].is_object() {
                ending.error = Some(last["error"].take());
                let Some(line) = self.line() else { return Some(ending) };
                last = serde_json::from_slice(&line).unwrap();
            }
            assert!(last["end"].is_object(), "neither row nor error nor end: {last}");
            ending.end = Some(last["end"].take());
            assert_eq!(self.line(), None, "the end line is the last");
            assert!(self.connection.is_whole(), "the body ends after the end line");
            return Some(ending);
        }
        None
    }

    /// Reads to the end, whatever that is.
    pub(crate) fn rest(&mut self, held: &mut Held) -> Ending {
        self.take(held, u64::MAX).expect("no stream is that long")
    }

    /// Reads to the end, which is `complete` and whose count and hash are those of what is held.
    pub(crate) fn complete(&mut self, held: &mut Held) {
        let from = self.open["from_row"].clone();
        let ending = self.rest(held);
        let expected = json!({"rows": held.rows, "from_row": from, "prefix_hash": held.hash(), "status": "complete"});
        assert_eq!((ending.error, ending.end), (None, Some(expected)));
    }
}

/// Every row of a statement, read without disturbance.
pub(crate) fn rows(address: SocketAddr, sql: &str) -> Held {
    let mut held = Held::default();
    match Stream::query(address, &[], sql) {
        Ok(mut stream) => stream.complete(&mut held),
        Err(answer) => panic!("{sql}: {answer:?}"),
    }
    held
}
