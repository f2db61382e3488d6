//! An HTTP/1.1 client that sees every byte: a read can stop anywhere, and an answer that was cut is told from one that ended.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use crate::process::PATIENCE;

/// One connection, and what is left of the answer that is being read on it.
pub(crate) struct Connection {
    socket: TcpStream,
    raw: Vec<u8>,
    /// What of `raw` has been used.
    used: usize,
    body: Body,
}

/// How the rest of a body comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked {
        left: u64,
        first: bool,
    },
    /// It came to its own end, or did not.
    Over {
        whole: bool,
    },
}

/// An answer, whole or cut.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) whole: bool,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, raw: Vec::new(), used: 0, body: Body::Over { whole: true } }
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a request with these headers besides `host` and `content-length`.
    pub(crate) fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: tidegate\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send([head.as_bytes(), body].concat());
    }

    /// Another handle of the socket, for a thread of its own.
    pub(crate) fn socket(&self) -> TcpStream {
        self.socket.try_clone().unwrap()
    }

    /// Cuts the connection, with whatever is unread.
    pub(crate) fn cut(self) {
        // The server may have cut it first.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Reads more into `raw`; `false` at the end of the connection, in whatever way it came.
    fn more(&mut self) -> bool {
        self.raw.drain(..std::mem::take(&mut self.used));
        let start = self.raw.len();
        self.raw.resize(start + 64 * 1024, 0);
        let length = match self.socket.read(&mut self.raw[start..]) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing came for {PATIENCE:?}"),
            Err(_) => 0,
        };
        self.raw.truncate(start + length);
        length > 0
    }

    /// The bytes up to and with `end`; `None` if the connection ends first.
    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            let rest = &self.raw[self.used..];
            if let Some(at) = rest.windows(end.len()).position(|window| window == end) {
                let found = rest[..at + end.len()].to_vec();
                self.used += found.len();
                return Some(found);
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// The status and headers of the next answer, of which the body then can be read; `None` if the connection ended.
    pub(crate) fn head(&mut self) -> Option<Answer> {
        let text = String::from_utf8(self.until(b"\r\n\r\n")?).unwrap();
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let answer = Answer { status, headers, body: Vec::new(), whole: false };
        self.body = if answer.header("transfer-encoding") == Some("chunked") {
            Body::Chunked { left: 0, first: true }
        } else {
            Body::Length(answer.header("content-length").map_or(0, |length| length.parse().unwrap()))
        };
        Some(answer)
    }

    /// The next bytes of the body, in pieces as they come; `None` after the last, or when it was cut.
    pub(crate) fn piece(&mut self) -> Option<Vec<u8>> {
        loop {
            let left = match self.body {
                Body::Over { .. } => return None,
                Body::Length(0) => {
                    self.body = Body::Over { whole: true };
                    return None;
                }
                Body::Chunked { left: 0, first } => {
                    let Some(size) = self.chunk_size(first) else {
                        self.body = Body::Over { whole: false };
                        return None;
                    };
                    self.body = Body::Chunked { left: size, first: false };
                    if size == 0 {
                        self.body = Body::Over { whole: self.until(b"\r\n").is_some() };
                    }
                    continue;
                }
                Body::Length(left) | Body::Chunked { left, .. } => left,
            };
            if self.used == self.raw.len() && !self.more() {
                self.body = Body::Over { whole: false };
                return None;
            }
            let there = self.raw.len() - self.used;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(there);
            let piece = self.raw[self.used..self.used + length].to_vec();
            self.used += length;
            match &mut self.body {
                Body::Length(left) | Body::Chunked { left, .. } => *left -= length as u64,
                Body::Over { .. } => unreachable!("looked at above"),
            }
            return Some(piece);
        }
    }

    fn chunk_size(&mut self, first: bool) -> Option<u64> {
        if !first {
            assert_eq!(self.until(b"\r\n")?, b"\r\n", "a chunk ends where it said");
        }
        let line = String::from_utf8(self.until(b"\r\n")?).unwrap();
        Some(u64::from_str_radix(line.trim(), 16).unwrap())
    }

    /// Whether the body came to its own end.
    pub(crate) fn is_whole(&self) -> bool {
        self.body == Body::Over { whole: true }
    }

    /// The next answer with its body.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.head()?;
        while let Some(piece) = self.piece() {
            answer.body.extend_from_slice(&piece);
        }
        answer.whole = self.is_whole();
        Some(answer)
    }

    /// Whether the server closes now, without another byte.
    pub(crate) fn closes(&mut self) -> bool {
        self.used == self.raw.len() && !self.more()
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The status and the code of a problem, after a look at the whole document; (status, "") for what is none.
    pub(crate) fn refusal(&self) -> (u16, String) {
        if self.header("content-type") != Some("application/problem+json") {
            return (self.status, String::new());
        }
        let document = self.json();
        assert_eq!(document["status"], self.status, "{document}");
        for text in ["type", "title", "detail", "code"] {
            assert!(document[text].as_str().is_some_and(|text| !text.is_empty()), "{text}: {document}");
        }
        match document["retry"].as_str() {
            Some("never" | "now") => assert!(document["retry_after_ms"].is_null(), "{document}"),
            Some("after") => assert!(document["retry_after_ms"].is_u64(), "{document}"),
            other => panic!("retry {other:?}: {document}"),
        }
        (self.status, document["code"].as_str().unwrap().to_owned())
    }
}

/// Sends one request on a connection of its own.
pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Answer {
    let mut connection = Connection::open(address);
    connection.request(method, path, headers, body);
    connection.answer().expect("an answer")
}
