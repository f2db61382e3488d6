//! A client of HTTP/1.1 with one connection, which says of every request whether it certainly was not sent, was answered, or may
//! have happened. It never retries: whoever uses it knows what a retry would mean.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::history::Outcome;
use super::wire;

const CONNECT_BOUND: Duration = Duration::from_secs(2);
/// No operation of this tester may take longer; what waits for records waits much less.
pub(crate) const ANSWER_BOUND: Duration = Duration::from_secs(20);
/// What stays as it is in a segment of a path; everything else, `/` too, is percent-encoded.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A name as a segment of a path.
pub(crate) fn segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The request never left: it certainly did not happen.
    NotSent,
    /// The connection broke, or the time was over: it may have happened.
    Lost,
}

/// An answer with its whole body.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or("")
    }

    /// The code of the problem document.
    pub(crate) fn code(&self) -> String {
        wire::code(self.text()).unwrap_or_else(|| "no_problem_document".to_owned())
    }

    /// For people: what was answered.
    pub(crate) fn told(&self) -> String {
        let text: String = self.text().chars().take(300).collect();
        format!("{} {text}", self.status)
    }

    /// Whether the server leaves open if it happened: its own failure, or a proxy's idea of one.
    pub(crate) fn undecided(&self) -> bool {
        matches!(self.status, 500 | 502 | 504)
            || self.code().contains("indeterminate")
            || self.code().contains("unknown_outcome")
    }

    /// The outcome of an answer that is not a success.
    pub(crate) fn refusal<T>(&self) -> Outcome<T> {
        if self.undecided() { Outcome::Unknown } else { Outcome::Refused { status: self.status, code: self.code() } }
    }
}

impl Failed {
    pub(crate) fn outcome<T>(self) -> Outcome<T> {
        match self {
            Self::NotSent => Outcome::Refused { status: 0, code: "not_sent".to_owned() },
            Self::Lost => Outcome::Unknown,
        }
    }
}

/// A request as the workload describes it.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub method: Method,
    /// With its query, already encoded.
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

impl Ask {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn put(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: Method::PUT, ..Self::post(path, body) }
    }

    pub(crate) fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { method: Method::POST, path: path.into(), headers, body: body.into() }
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.retain(|(there, _)| *there != name);
        self.headers.push((name, value.to_string()));
        self
    }
}

/// One connection, made again when it broke.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// Sends and reads the whole answer.
    pub(crate) async fn ask(&mut self, ask: Ask) -> Result<Answer, Failed> {
        let whole = async {
            let response = self.send(ask).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|_| Failed::Lost)?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        let result = timeout(ANSWER_BOUND, whole).await.unwrap_or(Err(Failed::Lost));
        if result.is_err() {
            // An answer that comes later must not be taken for the next one's.
            self.connection = None;
        }
        result
    }

    /// Sends and gives the body to be read piece by piece.
    pub(crate) async fn send(&mut self, ask: Ask) -> Result<Response<Incoming>, Failed> {
        let mut connection = self.connect().await?;
        let mut request = Request::builder().method(ask.method).uri(&ask.path).header("host", "127.0.0.1");
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(ask.body)).map_err(|_| Failed::NotSent)?;
        let response = connection.send_request(request).await.map_err(|_| Failed::Lost)?;
        self.connection = Some(connection);
        Ok(response)
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, Failed> {
        if let Some(mut connection) = self.connection.take()
            && connection.ready().await.is_ok()
        {
            return Ok(connection);
        }
        let stream = timeout(CONNECT_BOUND, TcpStream::connect(self.address)).await;
        let stream = stream.map_err(|_| Failed::NotSent)?.map_err(|_| Failed::NotSent)?;
        let _ = stream.set_nodelay(true);
        let (connection, driver) = handshake(TokioIo::new(stream)).await.map_err(|_| Failed::NotSent)?;
        tokio::spawn(driver);
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_segment_of_a_path() {
        assert_eq!(segment("a/b: 50%😀"), "a%2Fb%3A%2050%25%F0%9F%98%80");
    }

    #[test]
    fn an_answer_that_leaves_the_outcome_open_is_unknown() {
        let answer = |status, code: &str| {
            let body = Bytes::from(format!("{{\"code\":\"{code}\"}}"));
            Answer { status, headers: HeaderMap::new(), body }.refusal::<()>()
        };
        assert_eq!(answer(500, "internal"), Outcome::Unknown);
        assert_eq!(answer(503, "log_indeterminate"), Outcome::Unknown);
        assert_eq!(answer(507, "log_full"), Outcome::Refused { status: 507, code: "log_full".to_owned() });
        assert_eq!(Failed::NotSent.outcome::<()>(), Outcome::Refused { status: 0, code: "not_sent".to_owned() });
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_was_certainly_not_asked() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let failed = Client::new(address).ask(Ask::get("/")).await.unwrap_err();
        assert_eq!(failed, Failed::NotSent);
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_leaves_the_outcome_open() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"] {
                let (mut socket, _) = listener.accept().await.unwrap();
                let _ = socket.read(&mut [0; 1000]).await;
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        let mut client = Client::new(address);
        for _ in 0..2 {
            assert_eq!(client.ask(Ask::get("/")).await.unwrap_err(), Failed::Lost);
        }
    }
}
