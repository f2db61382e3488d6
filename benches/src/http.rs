//! The load generator's HTTP/1.1: one connection that is kept, one request at a time, answers read with as little work as can be,
//! because client and server share the machine. It is no client for anything else: no redirects, no TLS, no retries.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const READ_BYTES: usize = 256 * 1024;
const HEADERS_MAX: usize = 64;

/// A connection that is kept.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    /// What was read; the bytes before `start` are used up.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// What the benchmarks look at in an answer's head.
#[derive(Debug, Default, Clone)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// `Content-Length`.
    pub length: Option<u64>,
    /// Whether the body comes in chunks.
    pub chunked: bool,
    /// `Stream-Next-Offset`, of Durable Streams.
    pub next_offset: Option<String>,
    /// Whether there is a `Stream-Up-To-Date`, of Durable Streams.
    pub up_to_date: bool,
}

/// Whole bytes of a request.
#[must_use]
pub fn request(method: &str, path: &str, content_type: Option<&str>, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n").into_bytes();
    if let Some(content_type) = content_type {
        bytes.extend_from_slice(format!("content-type: {content_type}\r\n").as_bytes());
    }
    if !body.is_empty() || method != "GET" {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// A request for server-sent events.
#[must_use]
pub fn events(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\naccept: text/event-stream\r\n\r\n").into_bytes()
}

impl Connection {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("the server listens");
        socket.set_nodelay(true).expect("an option of the socket");
        Self { socket, buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Connects if somebody listens.
    pub async fn try_open(address: SocketAddr) -> Option<Self> {
        let socket = TcpStream::connect(address).await.ok()?;
        socket.set_nodelay(true).ok()?;
        Some(Self { socket, buffer: Vec::new(), start: 0, end: 0 })
    }

    /// Sends a request and throws the answer's body away.
    ///
    /// # Panics
    /// When the connection breaks or the answer is no success: a benchmark of refusals measures nothing.
    pub async fn succeed(&mut self, request: &[u8]) {
        let mut body = Vec::new();
        let head = self.exchange(request, &mut |_| {}).await;
        if !(200..300).contains(&head.status) {
            // Asked again, to show why.
            let head = self.exchange(request, &mut |piece| body.extend_from_slice(piece)).await;
            let sent = String::from_utf8_lossy(&request[..request.len().min(300)]);
            panic!("{} for {sent}: {}", head.status, String::from_utf8_lossy(&body));
        }
    }

    /// Sends a request and hands over the body's pieces; gives the head.
    ///
    /// # Panics
    /// When the connection breaks.
    pub async fn exchange(&mut self, request: &[u8], take: &mut impl FnMut(&[u8])) -> Head {
        self.try_exchange(request, take).await.expect("the server answers")
    }

    /// Sends a request and hands over the body's pieces; `None` when the connection breaks.
    pub async fn try_exchange(&mut self, request: &[u8], take: &mut impl FnMut(&[u8])) -> Option<Head> {
        self.socket.write_all(request).await.ok()?;
        let head = self.head().await?;
        if head.chunked {
            let mut framing = Dechunker::default();
            while !framing.done() {
                if self.start == self.end {
                    self.fill().await?;
                }
                self.start += framing.feed(&self.buffer[self.start..self.end], take);
            }
        } else {
            let mut left = usize::try_from(head.length.unwrap_or(0)).ok()?;
            while left > 0 {
                if self.start == self.end {
                    self.fill().await?;
                }
                let count = left.min(self.end - self.start);
                take(&self.buffer[self.start..self.start + count]);
                self.start += count;
                left -= count;
            }
        }
        Some(head)
    }

    /// Sends a request whose answer has no end; gives the head, and [`Connection::pieces`] the rest.
    ///
    /// # Panics
    /// When the connection breaks or the answer is no success.
    pub async fn tail(&mut self, request: &[u8]) -> Head {
        self.socket.write_all(request).await.expect("the server takes a request");
        let head = self.head().await.expect("the server answers");
        assert_eq!(head.status, 200, "{}", String::from_utf8_lossy(&self.buffer[..self.end]));
        head
    }

    /// The next pieces of a body in chunks: at least one read. `false` when the server ended it.
    pub async fn pieces(&mut self, framing: &mut Dechunker, take: &mut impl FnMut(&[u8])) -> bool {
        if self.start == self.end && self.fill().await.is_none() {
            return false;
        }
        self.start += framing.feed(&self.buffer[self.start..self.end], take);
        !framing.done()
    }

    async fn head(&mut self) -> Option<Head> {
        loop {
            if self.start < self.end {
                let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
                let mut response = httparse::Response::new(&mut headers);
                let parsed = response.parse(&self.buffer[self.start..self.end]).expect("an HTTP answer");
                if let httparse::Status::Complete(length) = parsed {
                    let head = of(&response);
                    self.start += length;
                    return Some(head);
                }
            }
            self.fill().await?;
        }
    }

    /// Reads more behind what is there.
    async fn fill(&mut self) -> Option<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() - self.end < READ_BYTES / 16 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            // A small answer needs no large buffer: it grows when it was filled.
            let wanted = (self.end * 2).clamp(READ_BYTES / 16, READ_BYTES).max(self.end + READ_BYTES / 16);
            self.buffer.resize(wanted.max(self.buffer.len()), 0);
        }
        let count = self.socket.read(&mut self.buffer[self.end..]).await.ok().filter(|count| *count > 0)?;
        self.end += count;
        if self.end == self.buffer.len() && self.buffer.len() < READ_BYTES {
            self.buffer.resize(self.buffer.len() * 4, 0);
        }
        Some(())
    }
}

fn of(response: &httparse::Response<'_, '_>) -> Head {
    let mut head = Head { status: response.code.unwrap_or(0), ..Head::default() };
    for header in response.headers.iter() {
        let text = || std::str::from_utf8(header.value).unwrap_or_default();
        if header.name.eq_ignore_ascii_case("content-length") {
            head.length = text().parse().ok();
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            head.chunked = text().eq_ignore_ascii_case("chunked");
        } else if header.name.eq_ignore_ascii_case("stream-next-offset") {
            head.next_offset = Some(text().to_owned());
        } else if header.name.eq_ignore_ascii_case("stream-up-to-date") {
            head.up_to_date = true;
        }
    }
    head
}

/// HTTP/1.1's chunked framing, just enough to hand over what is in it without copying.
#[derive(Debug, Default)]
pub struct Dechunker {
    state: Chunk,
    left: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// In the line that gives the size.
    #[default]
    Size,
    /// In an extension of that line.
    Extension,
    Data,
    /// The line break behind the data.
    Break,
    /// The line behind the last chunk, or a trailer.
    Last,
    Trailer,
    Done,
}

impl Dechunker {
    /// Whether the last chunk was seen whole.
    #[must_use]
    pub fn done(&self) -> bool {
        self.state == Chunk::Done
    }

    /// Takes bytes, hands over the payload among them, and gives how many were used: all, unless the body ended.
    pub fn feed(&mut self, bytes: &[u8], take: &mut impl FnMut(&[u8])) -> usize {
        let mut at = 0;
        while at < bytes.len() && self.state != Chunk::Done {
            if self.state == Chunk::Data {
                let count = self.left.min(bytes.len() - at);
                take(&bytes[at..at + count]);
                at += count;
                self.left -= count;
                if self.left == 0 {
                    self.state = Chunk::Break;
                }
                continue;
            }
            let byte = bytes[at];
            at += 1;
            self.state = match (self.state, byte) {
                (Chunk::Size | Chunk::Extension, b'\n') if self.left == 0 => Chunk::Last,
                (Chunk::Size | Chunk::Extension, b'\n') => Chunk::Data,
                (Chunk::Size, digit) if digit.is_ascii_hexdigit() => {
                    let value = char::from(digit).to_digit(16).expect("a digit of base 16");
                    self.left = self.left * 16 + value as usize;
                    Chunk::Size
                }
                (Chunk::Size, b'\r') => Chunk::Size,
                (Chunk::Size | Chunk::Extension, _) => Chunk::Extension,
                (Chunk::Break, b'\n') => Chunk::Size,
                (Chunk::Break, _) => Chunk::Break,
                (Chunk::Last, b'\r') => Chunk::Last,
                (Chunk::Last, b'\n') => Chunk::Done,
                (Chunk::Trailer, b'\n') => Chunk::Last,
                (Chunk::Last | Chunk::Trailer, _) => Chunk::Trailer,
                (Chunk::Data | Chunk::Done, _) => unreachable!("left above"),
            };
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_taken_apart_wherever_they_are_cut() {
        let framed = b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\nGET";
        for cut in 0..framed.len() {
            let (mut framing, mut payload, mut used) = (Dechunker::default(), Vec::new(), 0);
            for part in [&framed[..cut], &framed[cut..]] {
                used += framing.feed(part, &mut |piece| payload.extend_from_slice(piece));
            }
            assert_eq!(payload, b"hello!", "cut at {cut}");
            assert!(framing.done());
            assert_eq!(used, framed.len().min(used), "nothing behind the end is used");
            assert_eq!(used, framed.len() - 3);
        }
    }
}
