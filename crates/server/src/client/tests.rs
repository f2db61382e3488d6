//! Promises of the client, kept against a server that cuts, stalls, lies and refuses.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_frame::prefix::PrefixHasher;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::cli::Exit;
use crate::config::Secret;

const CURSOR: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";

/// How the server answers one POST; without instructions it gives all rows.
#[derive(Debug, Clone)]
enum Answer {
    /// The stream, but only so many bytes of its body.
    Cut { bytes: usize, chunked: bool },
    /// The stream up to so many bytes, and then silence.
    Stall { bytes: usize },
    /// These bytes in place of the body.
    Body(String),
    /// A problem document.
    Problem(u16, &'static str),
    /// No answer at all.
    Drop,
}

struct Fake {
    rows: usize,
    cursor: Option<&'static str>,
    answers: Mutex<VecDeque<Answer>>,
    seen: Mutex<Vec<String>>,
    bad_resumes: Mutex<Vec<String>>,
}

fn row_line(row: usize) -> String {
    format!(r#"{{"row":{{"id":{row},"name":"Größe {row}"}}}}"#)
}

fn hash_of(rows: usize) -> String {
    let mut hasher = PrefixHasher::new();
    for row in 0..rows {
        hasher.line(row_line(row).as_bytes());
    }
    hasher.digest().to_string()
}

impl Fake {
    /// The whole answer from a row on.
    fn body(&self, from: usize) -> String {
        let cursor = self.cursor.map_or("null".to_owned(), |cursor| format!("{cursor:?}"));
        let mut body = format!(
            r#"{{"open":{{"lease":"00","cursor":{cursor},"snapshot":"s","resumable":true,"not_resumable_because":"no order","columns":[{{"name":"id","type":"integer","nullable":false}},{{"name":"name","type":"text","nullable":true}}],"schema":"x","ttl_ms":60000,"from_row":{from}}}}}"#
        );
        body.push('\n');
        for row in from..self.rows {
            writeln!(body, "{}", row_line(row)).unwrap();
        }
        writeln!(
            body,
            r#"{{"end":{{"rows":{},"from_row":{from},"prefix_hash":"{}","status":"complete"}}}}"#,
            self.rows,
            hash_of(self.rows)
        )
        .unwrap();
        body
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((socket, _)) = listener.accept().await else { return };
            tokio::spawn(Arc::clone(&self).connection(socket));
        }
    }

    async fn connection(self: Arc<Self>, mut socket: TcpStream) {
        let mut request = Vec::new();
        let (head, body) = loop {
            let mut piece = [0; 4096];
            let Ok(read @ 1..) = socket.read(&mut piece).await else { return };
            request.extend_from_slice(&piece[..read]);
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            if body.len() >= length.parse().unwrap() {
                break (head.to_owned(), body.to_owned());
            }
        };
        self.seen.lock().push(head.clone());
        if head.starts_with("DELETE") {
            let _ = socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            return;
        }
        let from = if head.starts_with("POST /v1/query/resume ") { self.resume(&body) } else { 0 };
        let whole = self.body(from);
        let answer = self.answers.lock().pop_front();
        let (status, kind, sent, chunked, stall) = match answer {
            None => (200, "application/x-ndjson", whole, true, false),
            Some(Answer::Cut { bytes, chunked }) => {
                let cut = whole.as_bytes()[..bytes.min(whole.len())].to_vec();
                return send_cut(socket, &cut, chunked).await;
            }
            Some(Answer::Stall { bytes }) => {
                let cut = whole.as_bytes()[..bytes.min(whole.len())].to_vec();
                (200, "application/x-ndjson", String::from_utf8_lossy(&cut).into_owned(), false, true)
            }
            Some(Answer::Body(body)) => (200, "application/x-ndjson", body, true, false),
            Some(Answer::Problem(status, body)) => (status, "application/problem+json", body.to_owned(), true, false),
            Some(Answer::Drop) => return,
        };
        let framing = if chunked { format!("content-length: {}", sent.len()) } else { "connection: close".to_owned() };
        let head = format!("HTTP/1.1 {status} Any\r\ncontent-type: {kind}\r\n{framing}\r\n\r\n");
        let _ = socket.write_all(head.as_bytes()).await;
        let _ = socket.write_all(sent.as_bytes()).await;
        if stall {
            // Until the client goes away.
            let _ = socket.read(&mut [0; 16]).await;
        }
    }

    fn resume(&self, body: &str) -> usize {
        let request: serde_json::Value = serde_json::from_str(body).unwrap();
        let rows = usize::try_from(request["rows"].as_u64().unwrap()).unwrap();
        if request["cursor"] != CURSOR || request["prefix_hash"] != hash_of(rows) {
            self.bad_resumes.lock().push(body.to_owned());
        }
        rows
    }
}

/// Part of a body, then the end of the connection: in the middle of a chunk, or as if it were the end of the body.
async fn send_cut(mut socket: TcpStream, cut: &[u8], chunked: bool) {
    let (framing, chunk_head) = if chunked {
        ("transfer-encoding: chunked", format!("{:x}\r\n", cut.len() + 100))
    } else {
        ("connection: close", String::new())
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n{framing}\r\n\r\n{chunk_head}");
    let _ = socket.write_all(head.as_bytes()).await;
    let _ = socket.write_all(cut).await;
    let _ = socket.shutdown().await;
}

struct World {
    fake: Arc<Fake>,
    client: Client,
}

async fn world(rows: usize, cursor: Option<&'static str>, answers: Vec<Answer>) -> World {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let fake = Arc::new(Fake {
        rows,
        cursor,
        answers: Mutex::new(answers.into()),
        seen: Mutex::default(),
        bad_resumes: Mutex::default(),
    });
    tokio::spawn(Arc::clone(&fake).serve(listener));
    let client = Client::new(ClientOptions {
        token: Some(Secret::new("secret")),
        attempts: 3,
        // A busy machine is not a silent server.
        stall_timeout: Duration::from_secs(20),
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        line_max_bytes: 4096,
        ..ClientOptions::new(url)
    })
    .unwrap();
    World { fake, client }
}

impl World {
    async fn open(&self) -> Result<QueryStream, ClientError> {
        let request =
            QueryRequest { source: "main".into(), sql: "select 1".into(), params: vec![], rows: RowShape::Object };
        self.client.query(&request).await
    }

    /// Everything, and how the stream ended.
    async fn read_all(&self) -> (Vec<String>, Result<Summary, ClientError>) {
        let mut lines = Vec::new();
        let mut stream = match self.open().await {
            Ok(stream) => stream,
            Err(error) => return (lines, Err(error)),
        };
        loop {
            match stream.next().await {
                Ok(Event::Row(line)) => lines.push(String::from_utf8(line.to_vec()).unwrap()),
                Ok(Event::Resumed { .. }) => {}
                Ok(Event::End(summary)) => return (lines, Ok(summary)),
                Err(error) => return (lines, Err(error)),
            }
        }
    }
}

fn all_rows(rows: usize) -> Vec<String> {
    (0..rows).map(row_line).collect()
}

#[tokio::test]
async fn a_cut_at_any_byte_loses_no_row_and_repeats_none() {
    let rows = 6;
    let probe = world(rows, Some(CURSOR), vec![]).await;
    let body = probe.fake.body(0);
    let open_line = body.find('\n').unwrap();
    for bytes in 0..body.len() {
        let chunked = bytes % 2 == 0;
        let world = world(rows, Some(CURSOR), vec![Answer::Cut { bytes, chunked }]).await;
        let (lines, end) = world.read_all().await;
        if bytes <= open_line {
            assert!(end.is_err() && lines.is_empty(), "before the first line there is nothing to resume ({bytes})");
            continue;
        }
        let summary = end.unwrap_or_else(|error| panic!("cut after {bytes} bytes: {error}"));
        assert_eq!(lines, all_rows(rows), "cut after {bytes} bytes");
        assert_eq!((summary.rows, summary.resumes), (rows as u64, 1));
        assert_eq!(summary.prefix_hash, hash_of(rows));
        assert_eq!(*world.fake.bad_resumes.lock(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_chain_of_cuts_longer_than_the_attempts_ends_whole_while_rows_keep_coming() {
    let rows = 80;
    // Each connection gives its open line and a row or two.
    let answers = (0..22).map(|at| Answer::Cut { bytes: 390 + (at * 7) % 50, chunked: at % 3 == 0 }).collect();
    let world = world(rows, Some(CURSOR), answers).await;
    let (lines, end) = world.read_all().await;
    assert_eq!(lines, all_rows(rows));
    assert_eq!(end.unwrap().resumes, 22);
    assert_eq!(*world.fake.bad_resumes.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stream_without_a_cursor_ends_with_the_reason_when_it_is_cut() {
    let world = world(6, None, vec![Answer::Cut { bytes: 400, chunked: true }]).await;
    let (lines, end) = world.read_all().await;
    assert_eq!(lines, all_rows(lines.len()));
    let error = end.unwrap_err();
    assert!(matches!(error, ClientError::NotResumable { .. }), "{error:?}");
    assert!(error.to_string().contains("no order"), "{error}");
    assert_eq!(error.exit(), Exit::Failed);
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left_and_the_stream_goes_on() {
    let mut world = world(6, Some(CURSOR), vec![Answer::Stall { bytes: 400 }]).await;
    world.client.options.stall_timeout = Duration::from_millis(300);
    let mut stream = world.open().await.unwrap();
    let mut stalled = 0;
    loop {
        match stream.next().await.unwrap() {
            Event::Resumed { why: Interruption::Stalled(_) } => stalled += 1,
            Event::End(summary) => break assert_eq!(summary.rows, 6),
            _ => {}
        }
    }
    assert_eq!(stalled, 1);
}

#[tokio::test]
async fn attempts_are_bounded_and_the_last_reason_is_told() {
    let mut answers = vec![Answer::Cut { bytes: 400, chunked: true }];
    answers.extend(std::iter::repeat_n(Answer::Drop, 20));
    let world = world(6, Some(CURSOR), answers).await;
    let (_, end) = world.read_all().await;
    let error = end.unwrap_err();
    assert!(
        matches!(error, ClientError::GaveUp { attempts: 3, source: Interruption::Unreachable(_), .. }),
        "{error:?}"
    );
    assert_eq!(world.fake.seen.lock().len(), 4);
}

#[tokio::test]
async fn a_refusal_for_now_is_tried_again_and_one_for_good_is_not() {
    let draining = r#"{"code":"draining","detail":"going away","retry":"after","retry_after_ms":1}"#;
    let gone = r#"{"code":"snapshot_expired","detail":"too late","retry":"never"}"#;
    let cut = Answer::Cut { bytes: 400, chunked: true };
    let first = world(6, Some(CURSOR), vec![cut.clone(), Answer::Problem(503, draining)]).await;
    assert_eq!(first.read_all().await.1.unwrap().rows, 6);
    let second = world(6, Some(CURSOR), vec![cut, Answer::Problem(410, gone)]).await;
    let error = second.read_all().await.1.unwrap_err();
    assert_eq!((error.code(), error.exit()), (Some("snapshot_expired"), Exit::NotFound), "{error}");
    assert_eq!(second.fake.seen.lock().len(), 2);
}

#[tokio::test]
async fn exit_codes_follow_the_servers_refusals() {
    for (status, exit) in [
        (400, Exit::Failed),
        (401, Exit::Refused),
        (403, Exit::Refused),
        (404, Exit::NotFound),
        (410, Exit::NotFound),
        (429, Exit::Refused),
        (500, Exit::Failed),
        (503, Exit::Refused),
    ] {
        let world = world(1, None, vec![Answer::Problem(status, "not json")]).await;
        let error = world.read_all().await.1.unwrap_err();
        assert_eq!(error.exit(), exit, "{status}: {error}");
        assert_eq!(world.fake.seen.lock().len(), 1, "a query that never began is not sent twice");
    }
}

#[tokio::test]
async fn rows_that_are_not_the_servers_rows_are_an_error() {
    let honest = world(3, Some(CURSOR), vec![]).await.fake.body(0);
    let lies = [
        honest.replace("Größe 1", "Grosse 1"),
        honest.replace(&format!("{}\n", row_line(1)), ""),
        honest.replace(r#""rows":3"#, r#""rows":4"#),
    ];
    for lie in lies {
        let world = world(3, Some(CURSOR), vec![Answer::Body(lie)]).await;
        let error = world.read_all().await.1.unwrap_err();
        assert!(matches!(error, ClientError::Integrity { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn an_error_line_ends_the_stream_or_is_resumed_as_it_says() {
    let open = world(3, Some(CURSOR), vec![]).await.fake.body(0).lines().next().unwrap().to_owned();
    let failing = |retry: &str| {
        Answer::Body(format!(
            "{open}\n{}\n{{\"error\":{{\"code\":\"c\",\"message\":\"m\",\"retry\":\"{retry}\"}}}}\n{{\"end\":{{\"rows\":1,\"from_row\":0,\"prefix_hash\":\"\",\"status\":\"failed\"}}}}\n",
            row_line(0)
        ))
    };
    let never = world(3, Some(CURSOR), vec![failing("never")]).await;
    let error = never.read_all().await.1.unwrap_err();
    assert!(matches!(error, ClientError::Failed { rows: 1, .. }), "{error:?}");
    let now = world(3, Some(CURSOR), vec![failing("now")]).await;
    let (lines, end) = now.read_all().await;
    assert_eq!((lines, end.unwrap().resumes), (all_rows(3), 1));
}

#[tokio::test]
async fn a_line_without_end_is_refused_in_bounded_memory() {
    let long = format!("{{\"row\":\"{}", "x".repeat(100_000));
    let open = world(1, None, vec![]).await.fake.body(0).lines().next().unwrap().to_owned();
    let world = world(1, None, vec![Answer::Body(format!("{open}\n{long}"))]).await;
    let error = world.read_all().await.1.unwrap_err();
    assert!(matches!(error, ClientError::Line(LineError::TooLong { limit_bytes: 4096 })), "{error:?}");
}

#[tokio::test]
async fn what_is_no_query_stream_is_not_taken_for_one() {
    let open = world(1, Some(CURSOR), vec![]).await.fake.body(0).lines().next().unwrap().to_owned();
    for body in ["<html>\n".to_owned(), format!("{open}\n{open}\n"), format!("{open}\n[1]\n")] {
        let world = world(1, Some(CURSOR), vec![Answer::Body(body.clone())]).await;
        let error = world.read_all().await.1.unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{body}: {error:?}");
    }
}

#[tokio::test]
async fn a_cancel_names_the_cursor_and_carries_the_token() {
    let world = world(1, Some(CURSOR), vec![]).await;
    world.client.cancel(CURSOR).await.unwrap();
    let seen = world.fake.seen.lock().join("\n");
    assert!(seen.starts_with(&format!("DELETE /v1/query/{CURSOR} ")), "{seen}");
    assert!(seen.contains("authorization: Bearer secret"), "{seen}");
    assert!(!format!("{:?}", world.client).contains("secret"));
}

#[test]
fn a_client_is_refused_a_url_that_it_cannot_speak_to() {
    for url in ["ftp://h/", "file:///x", "mailto:a@b"] {
        assert!(Client::new(ClientOptions::new(Url::parse(url).unwrap())).is_err(), "{url}");
    }
}
