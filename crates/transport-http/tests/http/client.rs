//! A client that sees every byte: what it sends is exact, and an answer that was cut is told from one that ended.

use std::net::SocketAddr;

use serde_json::Value;
use tidegate_testkit::within;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The head of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its own end.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The problem's code; checks that the answer is a problem document in every respect.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let document = self.json();
        assert_eq!(document["status"], self.status());
        let code = document["code"].as_str().expect("a code").to_owned();
        assert_eq!(document["type"], format!("urn:tidegate:problem:{code}"));
        assert!(document["title"].is_string() && document["detail"].is_string(), "{document}");
        match document["retry"].as_str().expect("advice") {
            "never" | "now" => {
                assert!(document["retry_after_ms"].is_null() && self.header("retry-after").is_none(), "{document}");
            }
            "after" => {
                let ms = document["retry_after_ms"].as_u64().expect("a time");
                let seconds: u64 = self.header("retry-after").expect("the header too").parse().unwrap();
                assert!(seconds * 1_000 >= ms && seconds >= 1);
            }
            other => panic!("{other}"),
        }
        code
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        self.body.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect()
    }
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    ahead: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), ahead: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads more; `false` at the end, in whatever way it came.
    async fn more(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        match within("bytes from the server", self.stream.read(&mut piece)).await {
            Ok(0) | Err(_) => false,
            Ok(length) => {
                self.ahead.extend_from_slice(&piece[..length]);
                true
            }
        }
    }

    /// Reads up to and with the next `end`; `None` if the connection ends first.
    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|window| window == end) {
                let rest = self.ahead.split_off(at + end.len());
                return Some(std::mem::replace(&mut self.ahead, rest));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.ahead.len() < length {
            if !self.more().await {
                return None;
            }
        }
        let rest = self.ahead.split_off(length);
        Some(std::mem::replace(&mut self.ahead, rest))
    }

    /// The head of the next answer; `None` if the connection was closed instead.
    pub(crate) async fn head(&mut self) -> Option<Head> {
        let text = String::from_utf8(self.until(b"\r\n\r\n").await?).unwrap();
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        Some(Head { status, headers })
    }

    /// The next chunk of a chunked body: empty for its end, `None` if it was cut.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = String::from_utf8(self.until(b"\r\n").await?).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = self.exactly(size + 2).await?;
        chunk.truncate(size);
        Some(chunk)
    }

    /// The next answer, whole.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        let head = self.head().await?;
        let (mut body, mut whole) = (Vec::new(), true);
        if head.header("transfer-encoding") == Some("chunked") {
            loop {
                match self.chunk().await {
                    Some(chunk) if chunk.is_empty() => break,
                    Some(chunk) => body.extend_from_slice(&chunk),
                    None => {
                        whole = false;
                        break;
                    }
                }
            }
        } else if let Some(length) = head.header("content-length") {
            match self.exactly(length.parse().unwrap()).await {
                Some(bytes) => body = bytes,
                None => whole = false,
            }
        }
        Some(Answer { head, body, whole })
    }

    /// Waits until the server closes; whatever it still sends is dropped.
    pub(crate) async fn closed(&mut self) {
        while self.more().await {
            self.ahead.clear();
        }
    }
}

/// The bytes of a request.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: tidegate\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat()
}

/// Sends one request on a connection of its own.
pub(crate) async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut connection = Connection::open(address).await;
    let headers = [headers, &[("connection", "close")]].concat();
    connection.send(request(method, path, &headers, body)).await;
    if method == "HEAD" {
        let head = connection.head().await.expect("an answer");
        assert!(!connection.more().await, "HEAD has no body");
        return Answer { head, body: Vec::new(), whole: true };
    }
    connection.answer().await.expect("an answer")
}
