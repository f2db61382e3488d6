//! Rows as one long request: committed while they come, checked to the last byte, and never more in memory than a chunk.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tidegate_testkit::wait::until;
use tidegate_testkit::{block_on, within};

use super::client::{Connection, Head};
use super::world::{Setup, World};

/// An upload whose body goes on: sent chunk by chunk, its answer read line by line while it is sent.
struct Upload {
    connection: Connection,
    text: String,
}

impl Upload {
    /// Sends the head and the first piece, and reads the head of the answer.
    async fn open(world: &World, stream: &str, first: &str) -> (Head, Self) {
        let mut connection = Connection::open(world.address).await;
        let head = format!("POST /v1/ingest/{stream} HTTP/1.1\r\nhost: tidegate\r\ntransfer-encoding: chunked\r\n\r\n");
        connection.send(head).await;
        let mut upload = Self { connection, text: String::new() };
        if !first.is_empty() {
            upload.send(first).await;
        }
        let head = upload.connection.head().await.expect("an answer");
        (head, upload)
    }

    async fn send(&mut self, piece: &str) {
        self.connection.send(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
    }

    async fn close(&mut self) {
        self.connection.send("0\r\n\r\n").await;
    }

    /// The next line of the answer; `None` at its end.
    async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text.find('\n') {
                let line: String = self.text.drain(..=end).collect();
                return Some(serde_json::from_str(&line).unwrap());
            }
            let chunk = self.connection.chunk().await.expect("the answer is not cut");
            if chunk.is_empty() {
                return None;
            }
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

fn rows(from: u64, to: u64) -> String {
    (from..to).map(|n| format!("{{\"row\":{{\"n\":{n}}}}}\n")).collect()
}

/// SHA-256 over the lines as they are sent, without their line breaks.
fn sha256(lines: &str) -> String {
    let hash = lines.lines().fold(Sha256::new(), |hash, line| hash.chain_update(line)).finalize();
    hash.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

const OPEN: &str = "{\"open\":{}}\n";
const CHECKED: &str = "{\"open\":{\"verify\":\"sha256\"}}\n";

async fn world_with(settings: Vec<(&'static str, u64)>) -> World {
    let world = Setup { settings, ..Setup::default() }.start();
    assert_eq!(world.put("/v1/streams/s", "").await.status(), 201);
    world
}

async fn count(world: &World) -> u64 {
    world.get("/v1/streams/s").await.json()["partitions"][0]["next"].as_u64().unwrap()
}

#[test]
fn an_upload_is_answered_while_it_goes_on() {
    block_on(async {
        let world = world_with(vec![("stream.chunk.max_rows", 10)]).await;
        let (head, mut upload) = Upload::open(&world, "s", OPEN).await;
        assert_eq!((head.status, head.header("content-type")), (200, Some("application/x-ndjson")));
        // Each commit is told although the request has no end yet; lines may break anywhere.
        let text = rows(0, 25);
        let (first, second) = text.split_at(text.len() / 2 + 3);
        upload.send(first).await;
        assert_eq!(upload.line().await, Some(json!({"committed": {"rows": 10, "next": {"0": 10}}})));
        assert_eq!(count(&world).await, 10, "told is there");
        upload.send(second).await;
        assert_eq!(upload.line().await, Some(json!({"committed": {"rows": 20, "next": {"0": 20}}})));
        upload.close().await;
        assert_eq!(upload.line().await, Some(json!({"committed": {"rows": 25, "next": {"0": 25}}})));
        assert_eq!(upload.line().await, Some(json!({"end": {"rows": 25, "chunks": 3, "integrity": "unchecked"}})));
        assert_eq!(upload.line().await, None);
        let read = world.get("/v1/streams/s/records").await.lines();
        assert_eq!(read[24]["record"]["value"], json!({"n": 24}));
        assert_eq!(read[24]["record"]["op"], "message");
    });
}

#[test]
fn rows_keep_their_order_and_their_digits_in_a_stream_of_many_partitions() {
    block_on(async {
        let world = Setup { settings: vec![("stream.chunk.max_rows", 3)], ..Setup::default() }.start();
        world.put("/v1/streams/s", r#"{"partitions":4}"#).await;
        let lines = "{\"row\": [18446744073709551616, 1.10]}\r\n\n{\"row\":null}\n{ \"row\" : \"a b\" }\n".repeat(3);
        let answer = world.post("/v1/ingest/s", format!("{OPEN}{lines}{{\"end\":{{}}}}")).await;
        assert_eq!(answer.lines().last().unwrap()["end"]["rows"], 9);
        let partitions = world.get("/v1/streams/s").await.json()["partitions"].clone();
        let used: Vec<&Value> =
            partitions.as_array().unwrap().iter().filter(|partition| partition["next"] != 0).collect();
        assert_eq!(used.len(), 1, "one upload lies in one partition, in its order");
        let path = format!("/v1/streams/s/records?partition={}", used[0]["partition"]);
        let text = String::from_utf8(world.get(&path).await.body).unwrap();
        let values: Vec<&str> =
            text.lines().filter_map(|line| line.split_once("\"value\":")).map(|(_, rest)| rest).collect();
        assert!(values[0].starts_with("[18446744073709551616,1.10],"), "{}", values[0]);
        assert!(values[1].starts_with("null,") && values[2].starts_with("\"a b\","));
    });
}

#[test]
fn a_checked_upload_ends_well_only_if_every_byte_came() {
    block_on(async {
        let world = world_with(vec![("stream.chunk.max_rows", 4)]).await;
        let lines = rows(0, 6);
        let hash = sha256(&lines);
        let end = |hash: &str| format!("{{\"end\":{{\"sha256\":\"{hash}\"}}}}\n");
        let good = world.post("/v1/ingest/s", format!("{CHECKED}{lines}{}", end(&hash))).await.lines();
        assert_eq!(good.last(), Some(&json!({"end": {"rows": 6, "chunks": 2, "integrity": "ok"}})));
        let upper = world.post("/v1/ingest/s", format!("{CHECKED}{lines}{}", end(&hash.to_uppercase()))).await.lines();
        assert_eq!(upper.last().unwrap()["end"]["integrity"], "ok");
        assert_eq!(count(&world).await, 12);
        // A byte of a row is another one: what was committed stays, the rest is not.
        let changed = lines.replace("\"n\":2", "\"n\":7");
        let bad = world.post("/v1/ingest/s", format!("{CHECKED}{changed}{}", end(&hash))).await.lines();
        let error = &bad.last().unwrap()["error"];
        assert_eq!((&error["code"], &error["committed_rows"]), (&json!("integrity_failed"), &json!(4)));
        assert_eq!((&error["expected"], &error["actual"]), (&json!(hash), &json!(sha256(&changed))));
        assert_eq!(count(&world).await, 16);
        // Cut off before its end line.
        for cut in [format!("{CHECKED}{lines}"), format!("{CHECKED}{lines}{{\"end\":{{}}}}\n")] {
            let missing = world.post("/v1/ingest/s", cut).await.lines();
            assert_eq!(missing.last().unwrap()["error"]["code"], "end_missing");
        }
        // A hash that nobody asked to check is a mistake, not a decoration.
        let unasked = world.post("/v1/ingest/s", format!("{OPEN}{}", end(&hash))).await.lines();
        assert_eq!(unasked.last().unwrap()["error"]["code"], "invalid_field");
        let nothing = world.post("/v1/ingest/s", format!("{CHECKED}{}", end(&sha256("")))).await.lines();
        assert_eq!(nothing, [json!({"end": {"rows": 0, "chunks": 0, "integrity": "ok"}})]);
    });
}

#[test]
fn a_broken_line_is_named_and_what_was_committed_stays() {
    block_on(async {
        let world = world_with(vec![("stream.chunk.max_rows", 2), ("limits.record_max_bytes", 2_048)]).await;
        let large = format!("{{\"row\":\"{}\"}}\n", "x".repeat(3_000));
        let nearly = format!("{{\"row\":\"{}\"}}\n", "x".repeat(2_030));
        let deep = format!("{{\"row\":{}{}}}\n", "[".repeat(200), "]".repeat(200));
        for (line, code) in [
            ("{\"row\":\n", "malformed_json"),
            ("{\"row\":\"\u{1}\"}\n", "malformed_json"),
            ("{\"rows\":1}\n", "unknown_field"),
            ("{\"row\":1,\"row\":2}\n", "duplicate_field"),
            ("{}\n", "missing_field"),
            ("[]\n", "invalid_field"),
            (OPEN, "unknown_field"),
            (large.as_str(), "record_too_large"),
            (nearly.as_str(), "record_too_large"),
            (deep.as_str(), "invalid_field"),
        ] {
            let before = count(&world).await;
            let answer = world.post("/v1/ingest/s", format!("{OPEN}{}{line}{}", rows(0, 5), rows(5, 9))).await;
            let lines = answer.lines();
            assert_eq!(lines.len(), 3, "{lines:?}");
            let error = &lines[2]["error"];
            assert_eq!((&error["code"], &error["line"]), (&json!(code), &json!(7)), "{line}");
            assert_eq!((&error["committed_rows"], &error["retry"]), (&json!(4), &json!("never")));
            assert_eq!(count(&world).await, before + 4);
        }
    });
}

#[test]
fn an_upload_that_cannot_begin_is_a_problem() {
    block_on(async {
        let world = world_with(Vec::new()).await;
        // Before a byte of the body is read.
        let mut connection = Connection::open(world.address).await;
        connection
            .send("POST /v1/ingest/none HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
            .await;
        let refused = connection.answer().await.unwrap();
        assert_eq!((refused.status(), refused.code().as_str()), (404, "stream_not_found"));
        for (body, code) in [
            ("", "missing_field"),
            ("{}\n", "missing_field"),
            ("{\"row\":1}\n", "unknown_field"),
            ("{\"open\":{\"verify\":\"md5\"}}\n", "invalid_field"),
            ("{\"open\":{\"columns\":[]}}\n", "unknown_field"),
            ("nope\n", "malformed_json"),
            (&"x".repeat(5_000), "invalid_field"),
        ] {
            let answer = world.post("/v1/ingest/s", body).await;
            assert_eq!((answer.status(), answer.code().as_str()), (400, code), "{body}");
            assert_eq!(answer.json()["line"], 1);
        }
        assert_eq!(world.get("/v1/ingest/s").await.status(), 405);
        assert_eq!(world.post("/v1/ingest/s?verify=sha256", OPEN).await.code(), "unknown_field");
        assert_eq!(count(&world).await, 0);
    });
}

#[test]
fn a_client_that_stalls_or_goes_away_holds_nothing() {
    block_on(async {
        let world = world_with(vec![("stream.chunk.max_rows", 2), ("limits.body_timeout_ms", 50)]).await;
        let (_, mut upload) = Upload::open(&world, "s", &format!("{OPEN}{}", rows(0, 3))).await;
        assert_eq!(upload.line().await.unwrap()["committed"]["rows"], 2);
        let error = upload.line().await.unwrap()["error"].clone();
        assert_eq!((&error["code"], &error["committed_rows"]), (&json!("body_timeout"), &json!(2)));
        assert_eq!((&error["timeout_ms"], upload.line().await), (&json!(50), None));
        world.settings.patch(&[("limits.body_timeout_ms", 60_000)]).unwrap();
        until("the upload to end", async || world.in_flight() == 0).await;
        let (_, mut upload) = Upload::open(&world, "s", &format!("{OPEN}{}", rows(0, 3))).await;
        assert_eq!(upload.line().await.unwrap()["committed"]["rows"], 2);
        drop(upload);
        until("the upload to be given up", async || world.in_flight() == 0).await;
        assert_eq!(count(&world).await, 4, "half a chunk is not committed");
    });
}

#[test]
fn an_upload_of_any_length_is_read_in_chunks_even_by_who_reads_no_answer() {
    block_on(async {
        let world = world_with(vec![("stream.chunk.max_rows", 50)]).await;
        let text = "x".repeat(1_050);
        let mut body = OPEN.to_owned();
        for n in 0..20_000 {
            let _ = writeln!(body, "{{\"row\":{{\"n\":{n},\"text\":\"{text}\"}}}}");
        }
        // Twenty times what may be read whole, sent to the end before anything of the answer is read.
        assert!(body.len() as u64 > 20 * world.settings.freeze().limits_body_max_bytes());
        let answer = within("the upload", world.post("/v1/ingest/s", body)).await;
        let lines = answer.lines();
        assert_eq!(lines.last(), Some(&json!({"end": {"rows": 20_000, "chunks": 400, "integrity": "unchecked"}})));
        assert_eq!(count(&world).await, 20_000);
    });
}

#[test]
fn an_upload_is_told_when_its_stream_or_its_server_goes() {
    block_on(async {
        let mut world = world_with(vec![("stream.chunk.max_rows", 2), ("limits.drain_ms", 100)]).await;
        let (_, mut upload) = Upload::open(&world, "s", &format!("{OPEN}{}", rows(0, 2))).await;
        assert_eq!(upload.line().await.unwrap()["committed"]["rows"], 2);
        world.delete("/v1/streams/s").await;
        upload.send(&rows(2, 4)).await;
        let error = upload.line().await.unwrap()["error"].clone();
        assert_eq!((&error["code"], &error["committed_rows"]), (&json!("stream_not_found"), &json!(2)));
        world.put("/v1/streams/s", "").await;
        let (_, mut upload) = Upload::open(&world, "s", &format!("{OPEN}{}", rows(0, 3))).await;
        assert_eq!(upload.line().await.unwrap()["committed"]["rows"], 2);
        world.stop();
        // It may go on for a while.
        upload.send(&rows(3, 4)).await;
        assert_eq!(upload.line().await.unwrap()["committed"]["rows"], 4);
        let error = upload.line().await.unwrap()["error"].clone();
        assert_eq!((&error["code"], &error["committed_rows"]), (&json!("draining"), &json!(4)));
        assert_eq!(upload.line().await, None);
        world.gone().await;
    });
}

#[test]
fn over_http_2_an_upload_is_answered_while_it_goes_on_too() {
    block_on(async {
        let world = world_with(vec![("stream.chunk.max_rows", 2)]).await;
        super::tls::install_provider();
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let (pieces, sent) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(4);
        let body = futures::stream::unfold(sent, async |mut sent| sent.recv().await.map(|piece| (piece, sent)));
        let request = client
            .post(format!("http://{}/v1/ingest/s", world.address))
            .body(reqwest::Body::wrap_stream(Box::pin(body)));
        pieces.send(Ok(format!("{OPEN}{}", rows(0, 2)))).await.unwrap();
        let mut answer = within("the head", request.send()).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
        let first = within("the first commit", answer.chunk()).await.unwrap().unwrap();
        assert!(first.starts_with(b"{\"committed\":{\"next\":{\"0\":2},\"rows\":2}}"), "{first:?}");
        pieces.send(Ok(rows(2, 3))).await.unwrap();
        drop(pieces);
        let mut rest = String::new();
        while let Some(chunk) = within("the rest", answer.chunk()).await.unwrap() {
            rest.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert!(rest.ends_with("{\"end\":{\"chunks\":2,\"integrity\":\"unchecked\",\"rows\":3}}\n"), "{rest}");
    });
}
