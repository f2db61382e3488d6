//! Batches of objects: each part answered as its result comes, each failure its part's alone, and nobody waits for who does not read.

mod room;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tidegate_core::Scope;
use tidegate_core::id::Name;
use tidegate_testkit::wait::until;
use tidegate_testkit::{block_on, within};
use tidegate_transport_http::auth::StaticToken;
use tidegate_transport_http::{AuthConfig, TokenConfig};

use super::client::{Answer, Connection, ask, request};
use super::world::{Setup, World};

const PATH: &str = "/v1/objects:batch/files/_";
const MIXED: (&str, &str) = ("content-type", "multipart/mixed; boundary=edge");
const MIB: usize = 1024 * 1024;

/// A part of a request.
fn part(head: &[(&str, &str)], bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut text = String::from("--edge\r\n");
    for (name, value) in head {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    [text.as_bytes(), bytes.as_ref(), b"\r\n"].concat()
}

fn op(op: &str, key: &str) -> Vec<u8> {
    part(&[("x-tidegate-op", op), ("x-tidegate-key", key)], "")
}

fn insert(key: &str, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    part(&[("x-tidegate-op", "insert"), ("x-tidegate-key", key)], bytes)
}

fn body(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut body = parts.into_iter().collect::<Vec<_>>().concat();
    body.extend_from_slice(b"--edge--\r\n");
    body
}

/// A part of an answer.
#[derive(Debug, Clone)]
struct Part {
    head: BTreeMap<String, String>,
    bytes: Vec<u8>,
}

impl Part {
    fn get(&self, name: &str) -> Option<&str> {
        self.head.get(name).map(String::as_str)
    }

    fn index(&self) -> Option<usize> {
        self.get("x-tidegate-index").map(|index| index.parse().unwrap())
    }

    fn status(&self) -> u16 {
        self.get("x-tidegate-status").unwrap().parse().unwrap()
    }

    /// The status, and the code of the problem if it is one.
    fn outcome(&self) -> (u16, String) {
        if self.get("content-type") != Some("application/problem+json") {
            return (self.status(), String::new());
        }
        let document: Value = serde_json::from_slice(&self.bytes).unwrap();
        assert_eq!(document["status"], self.status());
        assert_eq!(self.get("content-length").unwrap(), self.bytes.len().to_string());
        (self.status(), document["code"].as_str().unwrap().to_owned())
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The parts of an answer, and whether it came to its last delimiter.
fn parts_of(content_type: &str, mut bytes: &[u8]) -> (Vec<Part>, bool) {
    let boundary = content_type.strip_prefix("multipart/mixed; boundary=").unwrap();
    assert!(boundary.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{boundary} needs no quotes");
    let (open, close) = (format!("--{boundary}\r\n"), format!("--{boundary}--\r\n"));
    let mut parts = Vec::new();
    while let Some(rest) = bytes.strip_prefix(open.as_bytes()) {
        let end = find(rest, b"\r\n\r\n").unwrap();
        let head: BTreeMap<_, _> = std::str::from_utf8(&rest[..end])
            .unwrap()
            .split("\r\n")
            .map(|line| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap())
            .collect();
        let rest = &rest[end + 4..];
        // A length that is told is the part's own.
        let length = match head.get("content-length") {
            Some(length) => length.parse().unwrap(),
            None => 0,
        };
        parts.push(Part { head, bytes: rest[..length].to_vec() });
        bytes = rest[length..].strip_prefix(b"\r\n").unwrap();
    }
    (parts, bytes == close.as_bytes())
}

fn parts(answer: &Answer) -> Vec<Part> {
    assert_eq!((answer.status(), answer.whole), (200, true), "{:?}", String::from_utf8_lossy(&answer.body));
    let (mut parts, ended) = parts_of(answer.header("content-type").unwrap(), &answer.body);
    assert!(ended, "the last delimiter");
    parts.sort_by_key(|part| part.index().unwrap_or(usize::MAX));
    parts
}

async fn send(world: &World, body: Vec<u8>) -> Vec<Part> {
    parts(&ask(world.address, "POST", PATH, &[MIXED], &body).await)
}

fn outcomes(parts: &[Part]) -> Vec<(u16, String)> {
    parts.iter().map(Part::outcome).collect()
}

/// Files below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn every_operation_is_answered_with_its_index_its_key_and_what_is_known() {
    block_on(async {
        let world = World::start();
        let meta = [
            ("x-tidegate-op", "insert"),
            ("x-tidegate-key", "a%2Fb%20%C3%A9"),
            ("content-type", "text/plain"),
            ("x-tidegate-expires", "ttl:1h"),
            ("x-tidegate-meta-color", "red"),
        ];
        let made = send(&world, body([part(&meta, "hello"), part(&[("x-tidegate-op", "insert")], "")])).await;
        assert_eq!(outcomes(&made), [(201, String::new()), (201, String::new())]);
        assert_eq!(made[0].get("x-tidegate-key"), Some("a/b%20%C3%A9"));
        assert_eq!((made[0].get("x-tidegate-op"), made[0].get("x-tidegate-tier")), (Some("insert"), Some("hot")));
        assert!(made[0].get("etag").is_some() && made[0].get("x-tidegate-created").is_some());
        assert!(made[0].get("content-type").is_none() && made[0].get("x-tidegate-meta-color").is_none());
        assert_eq!(made[1].get("x-tidegate-key").unwrap().len(), 36, "the server made a key");
        assert_eq!(outcomes(&send(&world, body([part(&meta, "hello")])).await), [(200, String::new())], "replaced");

        let key = "a%2fb%20%C3%A9";
        let read = send(&world, body([op("get", key), op("head", key), op("get", "none"), op("head", "none")])).await;
        let missing = || (404, "object_not_found".to_owned());
        assert_eq!(outcomes(&read), [(200, String::new()), (200, String::new()), missing(), missing()]);
        assert_eq!((read[0].bytes.as_slice(), read[0].get("content-length")), (&b"hello"[..], Some("5")));
        assert_eq!((read[1].bytes.len(), read[1].get("x-tidegate-length")), (0, Some("5")));
        for part in &read[..2] {
            assert_eq!(part.get("content-type"), Some("text/plain"));
            assert_eq!(part.get("x-tidegate-expires"), Some("ttl:3600s"));
            assert_eq!(part.get("x-tidegate-meta-color"), Some("red"));
            assert!(part.get("etag").is_some() && part.get("x-tidegate-expires-at").is_some());
        }
        let gone = send(&world, body([op("delete", key), op("delete", "none")])).await;
        assert_eq!(outcomes(&gone), [(204, String::new()), (204, String::new())]);
        assert_eq!(world.get("/v1/objects/files/_/a%2Fb%20%C3%A9").await.status(), 404);
        assert!(send(&world, body([])).await.is_empty());
    });
}

#[test]
fn a_bad_part_fails_alone() {
    block_on(async {
        let world = World::start();
        let digest = |bytes: &[u8]| {
            use base64::Engine as _;
            format!("sha-256=:{}:", base64::engine::general_purpose::STANDARD.encode(Sha256::digest(bytes)))
        };
        let (good, bad) = (digest(b"x"), digest(b"y"));
        let with = |name: &str, value: &str| part(&[("x-tidegate-op", "insert"), (name, value)], "x");
        let long = "k".repeat(1_025);
        let cases: Vec<(Vec<u8>, u16, &str)> = vec![
            (insert("first", "x"), 201, ""),
            (part(&[], "x"), 400, "missing_field"),
            (b"--edge\r\nnonsense\r\n\r\nx\r\n".to_vec(), 400, "malformed_part_head"),
            (part(&[("a", &"x".repeat(30_000))], "x"), 413, "part_head_too_large"),
            (op("rename", "k"), 400, "unknown_operation"),
            (part(&[("x-tidegate-op", "get")], ""), 400, "missing_field"),
            (op("get", "%zz"), 400, "invalid_name"),
            (op("get", "%ff"), 400, "invalid_name"),
            (op("get", "a%00b"), 400, "invalid_name"),
            (op("get", ""), 400, "invalid_name"),
            (op("get", &long), 400, "invalid_name"),
            (part(&[("x-tidegate-op", "get"), ("x-tidegate-key", "first")], "body"), 400, "unexpected_body"),
            (with("x-tidegate-colour", "red"), 400, "unknown_field"),
            (with("x-tidegate-expires", "soon"), 400, "invalid_field"),
            (with("if-none-match", "*"), 400, "invalid_field"),
            (with("x-tidegate-op", "get"), 400, "duplicate_field"),
            (with("content-digest", &bad), 422, "checksum_mismatch"),
            (with("content-digest", &good), 201, ""),
            (with("content-length", "1"), 201, ""),
            (with("content-length", "2"), 400, "invalid_field"),
            (with("content-length", "0"), 400, "invalid_field"),
            (with("content-length", "one"), 400, "invalid_field"),
            (with("x-tidegate-meta-a", &"x".repeat(9_000)), 413, "metadata_too_large"),
            (insert("large", vec![7; MIB + 1]), 413, "object_too_large"),
            (insert("..", vec![7; MIB]), 201, ""),
            (insert("/etc/passwd", "x"), 201, ""),
            (insert("last", "x"), 201, ""),
        ];
        let wanted: Vec<_> = cases.iter().map(|(_, status, code)| (*status, (*code).to_owned())).collect();
        let answered = send(&world, body(cases.into_iter().map(|(part, ..)| part))).await;
        assert_eq!(outcomes(&answered), wanted);
        let indices: Vec<_> = answered.iter().map(|part| part.index().unwrap()).collect();
        assert_eq!(indices, (0..wanted.len()).collect::<Vec<_>>());
        assert_eq!(world.get("/v1/objects/files/_/large").await.status(), 404);
        assert_eq!(world.get("/v1/objects/files/_/..").await.body.len(), MIB);
    });
}

#[test]
fn what_is_no_batch_is_refused_before_anything() {
    block_on(async {
        let world = World::start();
        for (content_type, status, code) in [
            ("application/json", 415, "content_type_unsupported"),
            ("multipart/related; boundary=edge", 415, "content_type_unsupported"),
            ("multipart/mixed", 400, "invalid_field"),
            ("multipart/mixed; boundary=\"a@b\"", 400, "invalid_field"),
        ] {
            let headers = [("content-type", content_type)];
            let answer = ask(world.address, "POST", PATH, &headers, &body([insert("a", "x")])).await;
            assert_eq!((answer.status(), answer.code()), (status, code.to_owned()), "{content_type}");
        }
        let answer = ask(world.address, "POST", "/v1/objects:batch/files/org", &[MIXED], &body([])).await;
        assert_eq!((answer.status(), answer.code()), (400, "invalid_name".into()));
        let answer = ask(world.address, "POST", PATH, &[MIXED], b"").await;
        assert_eq!((answer.status(), answer.code()), (400, "body_incomplete".into()));
        let mut connection = Connection::open(world.address).await;
        connection
            .send(format!(
                "POST {PATH} HTTP/1.1\r\nhost: t\r\n{}: {}\r\ncontent-length: {}\r\n\r\n",
                MIXED.0,
                MIXED.1,
                (1 << 30) + 1
            ))
            .await;
        let answer = connection.answer().await.unwrap();
        assert_eq!((answer.status(), answer.code()), (413, "body_too_large".into()));
        // Of the other form that a browser can send, what it says of itself is not needed.
        let headers = [("content-type", "multipart/form-data; boundary=edge")];
        let form = part(&[("content-disposition", "form-data; name=\"a\""), ("x-tidegate-op", "insert")], "x");
        assert_eq!(parts(&ask(world.address, "POST", PATH, &headers, &body([form])).await)[0].status(), 201);
        let foreign =
            ask(world.address, "POST", PATH, &[MIXED], &[b"--other\r\n\r\n"[..].into(), vec![b'x'; 70_000]].concat())
                .await;
        assert_eq!(outcomes(&parts(&foreign)), [(400, "malformed_multipart".into())]);
    });
}

#[test]
fn of_more_parts_than_there_may_be_the_first_thousand_are_executed() {
    block_on(async {
        let world = World::start();
        let many = (0..1_003).map(|at| insert(&format!("k{at}"), "x"));
        let answered = send(&world, body(many)).await;
        assert_eq!(answered.len(), 1_001);
        assert!(
            answered[..1_000].iter().enumerate().all(|(at, part)| part.index() == Some(at) && part.status() == 201)
        );
        assert_eq!((answered[1_000].index(), answered[1_000].outcome()), (None, (413, "too_many_parts".into())));
        assert_eq!(world.get("/v1/objects/files/_/k999").await.status(), 200);
        assert_eq!(world.get("/v1/objects/files/_/k1000").await.status(), 404);
    });
}

#[test]
fn of_a_body_that_is_cut_what_was_read_whole_is_executed_and_answered() {
    block_on(async {
        let world = World::start();
        let whole = body([insert("a", "one"), insert("b", "two"), insert("c", "three")]);
        let cut = find(&whole, b"three").unwrap() + 2;
        let wanted = [(201, String::new()), (201, String::new()), (400, "body_incomplete".to_owned())];
        // The request is whole, its body is not.
        let answered = send(&world, whole[..cut].to_vec()).await;
        assert_eq!(outcomes(&answered), wanted);
        let document: Value = serde_json::from_slice(&answered[2].bytes).unwrap();
        assert_eq!((answered[2].index(), &document["parts"], &document["retry"]), (None, &json!(2), &json!("never")));
        for key in ["a", "b"] {
            assert_eq!(world.delete(&format!("/v1/objects/files/_/{key}")).await.status(), 204);
        }
        // The connection breaks on the way there.
        let mut connection = Connection::open(world.address).await;
        let bytes = request("POST", PATH, &[MIXED], &whole);
        connection.send(&bytes[..bytes.len() - (whole.len() - cut)]).await;
        tokio::io::AsyncWriteExt::shutdown(&mut connection.stream).await.unwrap();
        assert_eq!(outcomes(&parts(&connection.answer().await.unwrap())), wanted);
        assert_eq!(world.get("/v1/objects/files/_/c").await.status(), 404);
    });
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn chunked_head() -> String {
    format!("POST {PATH} HTTP/1.1\r\nhost: t\r\n{}: {}\r\ntransfer-encoding: chunked\r\n\r\n", MIXED.0, MIXED.1)
}

#[test]
fn a_part_is_answered_before_the_next_is_sent_and_the_connection_serves_again() {
    block_on(async {
        let world = World::start();
        let mut connection = Connection::open(world.address).await;
        for round in 0..2 {
            connection.send(chunked_head()).await;
            let mut first = insert("a", "one");
            // The part's end is known with the next delimiter's line.
            first.extend_from_slice(b"--edge\r\n");
            connection.send(chunk(&first)).await;
            let head = connection.head().await.unwrap();
            assert_eq!((head.status, head.header("connection")), (200, None));
            let told = connection.chunk().await.unwrap();
            let status = if round == 0 { "201" } else { "200" };
            assert!(find(&told, format!("x-tidegate-status: {status}\r\n").as_bytes()).is_some());
            connection.send(chunk(b"x-tidegate-op: get\r\nx-tidegate-key: a\r\n\r\n\r\n--edge--")).await;
            let told = connection.chunk().await.unwrap();
            assert!(find(&told, b"\r\n\r\none\r\n").is_some(), "{:?}", String::from_utf8_lossy(&told));
            connection.send("0\r\n\r\n").await;
            while !connection.chunk().await.unwrap().is_empty() {}
        }
    });
}

#[test]
fn over_http_2_a_part_is_answered_before_the_next_is_sent_too() {
    block_on(async {
        let world = World::start();
        super::tls::install_provider();
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let (pieces, sent) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(4);
        let stream = futures::stream::unfold(sent, async |mut sent| sent.recv().await.map(|piece| (piece, sent)));
        let request = client
            .post(format!("http://{}{PATH}", world.address))
            .header(MIXED.0, MIXED.1)
            .body(reqwest::Body::wrap_stream(Box::pin(stream)));
        pieces.send(Ok([insert("a", "one"), b"--edge\r\n".to_vec()].concat())).await.unwrap();
        let mut answer = within("the head", request.send()).await.unwrap();
        let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
        let mut all = within("the first reply", answer.chunk()).await.unwrap().unwrap().to_vec();
        pieces.send(Ok(b"x-tidegate-op: get\r\nx-tidegate-key: a\r\n\r\n\r\n--edge--".to_vec())).await.unwrap();
        drop(pieces);
        while let Some(chunk) = within("the rest", answer.chunk()).await.unwrap() {
            all.extend_from_slice(&chunk);
        }
        let (parts, ended) = parts_of(&content_type, &all);
        assert!(ended);
        assert_eq!(outcomes(&parts), [(201, String::new()), (200, String::new())]);
        assert_eq!(parts[1].bytes, b"one");
    });
}

#[test]
fn a_client_that_sends_everything_before_it_reads_is_not_waited_for() {
    block_on(async {
        let world = World::start();
        let large = vec![7; 100_000];
        assert_eq!(world.put("/v1/objects/files/_/large", &large).await.status(), 201);
        // 60 MB of answers that nobody takes, more than all buffers on the way hold; behind them inserts and bad parts.
        let gets = (0..600).map(|_| op("get", "large"));
        let inserts = (0..399).map(|at| insert(&format!("k{at}"), vec![1; 2_000]));
        let bytes = body(gets.chain(inserts).chain([op("rename", "x")]));
        let mut connection = Connection::open(world.address).await;
        within("all of it to be taken", connection.send(request("POST", PATH, &[MIXED], &bytes))).await;
        until("the inserts to be executed though nothing was read", async || {
            world.get("/v1/objects/files/_/k398").await.status() == 200
        })
        .await;
        let answered = parts(&connection.answer().await.unwrap());
        assert_eq!(answered.len(), 1_000);
        assert!(answered[..600].iter().all(|part| part.status() == 200 && part.bytes == large));
        assert!(answered[600..999].iter().all(|part| part.status() == 201));
        assert_eq!(answered[999].outcome(), (400, "unknown_operation".into()));
    });
}

#[test]
fn over_http_2_a_client_that_sends_everything_before_it_reads_is_not_waited_for_either() {
    block_on(async {
        let world = World::start();
        let large = vec![7; 100_000];
        assert_eq!(world.put("/v1/objects/files/_/large", &large).await.status(), 201);
        super::tls::install_provider();
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let gets = (0..200).map(|_| op("get", "large"));
        let inserts = (0..300).map(|at| insert(&format!("k{at}"), vec![1; 20_000]));
        let bytes = body(gets.chain(inserts));
        let request = client.post(format!("http://{}{PATH}", world.address)).header(MIXED.0, MIXED.1).body(bytes);
        let answer = within("the head", request.send()).await.unwrap();
        until("the inserts to be executed though nothing was read", async || {
            world.get("/v1/objects/files/_/k299").await.status() == 200
        })
        .await;
        let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
        let all = within("the whole", answer.bytes()).await.unwrap();
        let (parts, ended) = parts_of(&content_type, &all);
        assert!(ended);
        assert_eq!(parts.len(), 500);
        let got = parts.iter().filter(|part| part.status() == 200 && part.bytes == large);
        assert_eq!(got.count(), 200);
    });
}

#[test]
fn at_capacity_a_batch_is_refused_unread_and_those_who_go_away_give_their_room_back() {
    block_on(async {
        let world = World::start();
        let mut held = Vec::new();
        loop {
            let mut connection = Connection::open(world.address).await;
            connection.send(chunked_head()).await;
            connection.send(chunk(&[insert("held", "x"), b"--edge\r\n".to_vec()].concat())).await;
            let head = connection.head().await.unwrap();
            if head.status == 429 {
                assert_eq!(head.header("connection"), Some("close"));
                break;
            }
            held.push(connection);
            assert!(held.len() < 500, "each holds a part of the room");
        }
        let mut connection = Connection::open(world.address).await;
        let head = chunked_head().replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
        connection.send(head).await;
        let answer = connection.answer().await.unwrap();
        assert_eq!((answer.status(), answer.code()), (429, "batch_capacity_exhausted".into()), "and no 100 Continue");
        drop(held);
        until("the room to come back", async || {
            ask(world.address, "POST", PATH, &[MIXED], &body([op("head", "held")])).await.status() == 200
        })
        .await;
        // Who asks first is told to go on.
        let mut connection = Connection::open(world.address).await;
        connection.send(chunked_head().replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n")).await;
        assert_eq!(connection.head().await.unwrap().status, 100);
        connection.send([chunk(&body([op("head", "held")])), b"0\r\n\r\n".to_vec()].concat()).await;
        assert_eq!(outcomes(&parts(&connection.answer().await.unwrap())), [(200, String::new())]);
    });
}

#[test]
fn a_damaged_object_is_a_problem_of_its_part_or_breaks_the_connection_but_is_never_short() {
    block_on(async {
        let world = World::start();
        let content: Vec<u8> = (0..3 * MIB).map(|at| u8::try_from(at % 251).unwrap()).collect();
        assert_eq!(world.put("/v1/objects/files/_/d", &content).await.status(), 201);
        let file = files(world.cold()).pop().unwrap();
        let batch = || body([op("get", "d"), op("head", "d")]);
        assert_eq!(send(&world, batch()).await[0].bytes, content);
        let stored = std::fs::read(&file).unwrap();
        let damage = |at: usize| {
            let mut damaged = stored.clone();
            damaged[at] ^= 1;
            std::fs::write(&file, &damaged).unwrap();
        };
        damage(5);
        let answered = send(&world, batch()).await;
        assert_eq!(outcomes(&answered), [(500, "storage_corrupt".into()), (200, String::new())]);
        damage(2 * MIB + 1_000);
        let answer = ask(world.address, "POST", PATH, &[MIXED], &batch()).await;
        assert!(!answer.whole, "the connection broke");
        assert!(answer.body.len() < 2 * MIB + 4_096, "no byte of a damaged block was given");
    });
}

#[test]
fn each_part_needs_its_own_permission() {
    block_on(async {
        let token = |name: &str, scopes: &[Scope]| StaticToken {
            sha256: Sha256::digest(name.as_bytes()).into(),
            subject: Name::new("someone").unwrap(),
            tenant: Name::new("acme").unwrap(),
            scopes: scopes.iter().copied().collect(),
        };
        let tokens = vec![
            token("read", &[Scope::ObjectRead]),
            token("write", &[Scope::ObjectWrite]),
            token("delete", &[Scope::ObjectDelete]),
            token("query", &[Scope::Query]),
        ];
        let auth = AuthConfig::Token(TokenConfig { tokens, ..TokenConfig::default() });
        let world = Setup { auth, ..Setup::default() }.start();
        let batch = async |token: &str, parts: Vec<Vec<u8>>| {
            let bearer = format!("Bearer {token}");
            ask(world.address, "POST", PATH, &[MIXED, ("authorization", &bearer)], &body(parts)).await
        };
        let all = || vec![insert("a", "x"), op("get", "a"), op("head", "a"), op("delete", "a")];
        let no = || (403, "scope_missing".to_owned());
        let ok = |status: u16| (status, String::new());
        assert_eq!(outcomes(&parts(&batch("write", all()).await)), [ok(201), no(), no(), no()]);
        assert_eq!(outcomes(&parts(&batch("read", all()).await)), [no(), ok(200), ok(200), no()]);
        assert_eq!(outcomes(&parts(&batch("delete", all()).await)), [no(), no(), no(), ok(204)]);
        let refused = batch("query", all()).await;
        assert_eq!((refused.status(), refused.code()), no());
        assert_eq!(ask(world.address, "POST", PATH, &[MIXED], &body(all())).await.status(), 401);
    });
}

#[test]
fn a_client_that_trickles_is_given_up_and_its_room_is_free_again() {
    block_on(async {
        let world = Setup { settings: vec![("limits.body_timeout_ms", 100)], ..Setup::default() }.start();
        let mut connection = Connection::open(world.address).await;
        connection.send(chunked_head()).await;
        connection.send(chunk(b"--edge\r\nx-tidegate-op: ins")).await;
        let mut told = Vec::new();
        let over = async {
            assert_eq!(connection.head().await.unwrap().status, 200);
            while find(&told, b"body_too_slow").is_none() {
                // A byte before every look, well within the time that one piece may take.
                connection.send(chunk(b"x")).await;
                let look = tokio::time::timeout(Duration::from_millis(10), connection.chunk()).await;
                told.extend(look.ok().flatten().unwrap_or_default());
            }
        };
        within("the batch to be given up", over).await;
        assert!(find(&told, b"\"min_bytes_per_second\":16384").is_some());
        until("the batch to be over", async || world.in_flight() == 0).await;
    });
}

#[test]
fn after_five_hundred_batches_whose_clients_went_away_all_room_is_free() {
    block_on(async {
        let world = World::start();
        world.put("/v1/objects/files/_/large", vec![7; 3 * MIB]).await;
        world.put("/v1/objects/files/_/small", vec![7; 100]).await;
        for number in 0..500 {
            let mut connection = Connection::open(world.address).await;
            let many = body((0..40).map(|part| match (number + part) % 4 {
                0 => insert(&format!("new-{part}"), "x"),
                1 => op("get", "large"),
                2 => op("get", "small"),
                _ => op("head", "large"),
            }));
            let whole = request("POST", PATH, &[MIXED], &many);
            match number % 3 {
                // Cut in the middle of what it sends; sent whole and never read; gone after the answer's head.
                0 => connection.send(&whole[..whole.len() / 2]).await,
                1 => connection.send(&whole).await,
                _ => {
                    connection.send(&whole).await;
                    let _ = connection.head().await;
                }
            }
            drop(connection);
        }
        until("what was begun to be over", async || world.in_flight() == 0).await;
        // All of the room: as many batches at one time as on the first day.
        let mut held = Vec::new();
        let full = loop {
            let mut connection = Connection::open(world.address).await;
            connection.send(chunked_head()).await;
            connection.send(chunk(&[insert("held", "x"), b"--edge\r\n".to_vec()].concat())).await;
            if connection.head().await.unwrap().status == 429 {
                break held.len();
            }
            held.push(connection);
        };
        // One tenant holds as much as it leaves free.
        let (mut free, mut batches) = (500_usize, 0);
        while free > 250 {
            free -= free.div_ceil(10).min((2 * free - 500).div_ceil(2));
            batches += 1;
        }
        assert_eq!(full, batches, "permits were lost");
    });
}
