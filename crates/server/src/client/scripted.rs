//! A small HTTP server for the client's tests: it answers each request as a test says, cuts its answers where it is told to,
//! and remembers what was asked. It is never part of the product.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Client, ClientOptions};

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// `GET /path?query`
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(super) fn is(&self, line: &str) -> bool {
        self.line == line
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// A whole one.
    Whole(u16, String),
    /// The head and these bytes, and then the end of the connection in the middle of a chunk.
    Cut(String),
    /// The head and these bytes, and then the end of the body.
    Ended(String),
    /// The head and these bytes, and then silence.
    Open(String),
    /// No answer: the connection ends.
    Drop,
}

impl Reply {
    pub(super) fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::Whole(status, value.to_string())
    }

    pub(super) fn problem(status: u16, code: &str, retry: &str) -> Self {
        let document = serde_json::json!({ "code": code, "title": code, "detail": "told so", "retry": retry });
        Self::json(status, &document)
    }
}

type Script = Box<dyn FnMut(&Asked) -> Reply + Send>;

/// The server and a client of it.
pub(super) struct World {
    pub(super) client: Client,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl World {
    /// One that answers by a function.
    pub(super) async fn new(script: impl FnMut(&Asked) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { return };
                tokio::spawn(serve(socket, Arc::clone(&script), Arc::clone(&seen)));
            }
        });
        let client = Client::new(ClientOptions {
            attempts: 4,
            // A busy machine is not a silent server.
            stall_timeout: Duration::from_secs(20),
            backoff_min: Duration::from_millis(1),
            backoff_max: Duration::from_millis(5),
            line_max_bytes: 4096,
            ..ClientOptions::new(url)
        })
        .unwrap();
        Self { client, asked }
    }

    /// One that gives these answers in turn, and then none.
    pub(super) async fn in_turn(answers: impl IntoIterator<Item = Reply>) -> Self {
        let mut answers: VecDeque<Reply> = answers.into_iter().collect();
        Self::new(move |_| answers.pop_front().unwrap_or(Reply::Drop)).await
    }

    /// The same with a client that does not wait long for a silent server.
    pub(super) fn impatient(mut self) -> Self {
        self.client.options.stall_timeout = Duration::from_millis(400);
        self
    }

    /// What was asked so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }
}

async fn serve(mut socket: TcpStream, script: Arc<Mutex<Script>>, seen: Arc<Mutex<Vec<Asked>>>) {
    let Some(asked) = read(&mut socket).await else { return };
    seen.lock().push(asked.clone());
    let reply = (script.lock())(&asked);
    let head = "content-type: any\r\nconnection: close\r\n";
    match reply {
        Reply::Whole(status, body) => {
            let length = if status == 204 { String::new() } else { format!("content-length: {}\r\n", body.len()) };
            let text = format!("HTTP/1.1 {status} Any\r\n{head}{length}\r\n{body}");
            let _ = socket.write_all(text.as_bytes()).await;
        }
        Reply::Cut(body) => {
            let size = body.len() + 100;
            let text = format!("HTTP/1.1 200 OK\r\n{head}transfer-encoding: chunked\r\n\r\n{size:x}\r\n{body}");
            let _ = socket.write_all(text.as_bytes()).await;
        }
        Reply::Ended(body) => {
            let _ = socket.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}").as_bytes()).await;
        }
        Reply::Open(body) => {
            let _ = socket.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}").as_bytes()).await;
            // Until the client goes away.
            let _ = socket.read(&mut [0; 16]).await;
        }
        Reply::Drop => {}
    }
    let _ = socket.shutdown().await;
}

async fn read(socket: &mut TcpStream) -> Option<Asked> {
    let mut request = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = socket.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        request.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let mut lines = head.lines();
        let line = lines.next()?.trim_end_matches(" HTTP/1.1").to_owned();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length").map_or("0", |(_, value)| value);
        if body.len() >= length.parse().unwrap() {
            return Some(Asked { line, headers, body: body.to_owned() });
        }
    }
}
