//! Query streams over the wire: every byte at its time, nothing taken for whole that is not.

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tidegate_core::port::{AuditRecord, SourceError};
use tidegate_testkit::wait::until;
use tidegate_testkit::{Gate, Script, block_on, within};

use tokio::io::AsyncWriteExt as _;

use super::client::{Connection, ask, request};
use super::world::{SELECT, Setup, World};

#[test]
fn a_stream_is_its_open_line_its_rows_and_its_end() {
    block_on(async {
        let world = World::start();
        let answer = world.post("/v1/query", json!({"source": "main", "sql": SELECT}).to_string()).await;
        assert_eq!(answer.status(), 200);
        for (name, value) in [
            ("content-type", "application/x-ndjson"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
            ("vary", "Accept-Encoding"),
        ] {
            assert_eq!(answer.header(name), Some(value));
        }
        assert_eq!(answer.header("content-encoding"), None);
        assert!(answer.whole);
        let lines = answer.lines();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0]["open"]["from_row"], 0);
        assert_eq!(lines[0]["open"]["resumable"], true);
        assert_eq!(lines[1], json!({"row": {"id": 1, "name": "item 1", "version": 1}}));
        let rows: Vec<&[u8]> = answer.body.split(|byte| *byte == b'\n').skip(1).take(3).collect();
        let hash = rows.iter().fold(Sha256::new(), |hash, row| hash.chain_update(row)).finalize();
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(lines[4], json!({"end": {"rows": 3, "from_row": 0, "prefix_hash": hash, "status": "complete"}}));

        let closed = serde_json::to_value(&world.audit.wait_for("stream.closed").await).unwrap();
        assert_eq!((&closed["reason"], &closed["rows"]), (&json!("complete"), &json!(3)));

        let arrays = json!({"source": "main", "sql": SELECT, "rows": "array", "params": [1, "a", null]}).to_string();
        assert_eq!(world.post("/v1/query", arrays).await.lines()[3], json!({"row": [3, "item 3", 1]}));
    });
}

#[test]
fn rows_arrive_while_the_stream_goes_on_whatever_the_coding() {
    block_on(async {
        let world = World::start();
        for coding in ["identity", "gzip", "zstd"] {
            let gate = Gate::closed();
            world.source.on(SELECT, Script::numbers(2).hold_at(1, &gate));
            let mut connection = world.query(SELECT, &[("accept-encoding", coding)]).await;
            let head = connection.head().await.unwrap();
            assert_eq!(head.header("content-encoding"), (coding != "identity").then_some(coding));
            let mut sent = Vec::new();
            // The gate is shut, so the row can only be here because it did not wait for the rest.
            while !decoded(coding, &sent).ends_with("\"item 1\",\"version\":1}}\n") {
                let chunk = within("the first row", connection.chunk()).await.expect("the stream goes on");
                assert!(!chunk.is_empty(), "the stream goes on");
                sent.extend_from_slice(&chunk);
            }
            gate.open();
            loop {
                let chunk = connection.chunk().await.expect("the stream ends well");
                if chunk.is_empty() {
                    break;
                }
                sent.extend_from_slice(&chunk);
            }
            let text = decoded(coding, &sent);
            assert_eq!(text.lines().count(), 4);
            assert!(text.ends_with("\"status\":\"complete\"}}\n"), "{text}");
        }
    });
}

/// What a decoder can read out of the first part of an encoded body.
fn decoded(coding: &str, sent: &[u8]) -> String {
    let mut text = Vec::new();
    match coding {
        "gzip" => read_what_is_there(flate2::read::GzDecoder::new(sent), &mut text),
        "zstd" if !sent.is_empty() => read_what_is_there(zstd::stream::read::Decoder::new(sent).unwrap(), &mut text),
        _ => text.extend_from_slice(sent),
    }
    String::from_utf8(text).unwrap()
}

fn read_what_is_there(mut decoder: impl std::io::Read, text: &mut Vec<u8>) {
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = decoder.by_ref().read(&mut piece) {
        text.extend_from_slice(&piece[..length]);
    }
}

#[test]
fn a_stream_that_was_cut_goes_on_at_the_exact_row() {
    block_on(async {
        let world = Setup { rows: 2_000, ..Setup::default() }.start();
        let body = json!({"source": "main", "sql": SELECT}).to_string();
        let undisturbed = world.post("/v1/query", &body).await;
        let rows: Vec<&[u8]> = undisturbed.body.split_inclusive(|byte| *byte == b'\n').skip(1).take(2_000).collect();

        let gate = Gate::closed();
        world.source.on(SELECT, Script::numbers(2_000).hold_at(1_500, &gate));
        let mut connection = world.query(SELECT, &[]).await;
        connection.head().await.unwrap();
        let mut held = Vec::new();
        while held.iter().filter(|byte| **byte == b'\n').count() < 1_001 {
            held.extend_from_slice(&connection.chunk().await.unwrap());
        }
        drop(connection);
        gate.open();
        world.source.commit();
        let lines: Vec<&[u8]> = held.split_inclusive(|byte| *byte == b'\n').collect();
        let open: serde_json::Value = serde_json::from_slice(lines[0]).unwrap();
        let cursor = open["open"]["cursor"].as_str().unwrap();
        let hash = lines[1..1_001].iter().fold(Sha256::new(), |hash, row| hash.chain_update(&row[..row.len() - 1]));
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let resume = json!({"cursor": cursor, "rows": 1_000, "prefix_hash": hash}).to_string();
        let resumed = world.post("/v1/query/resume", &resume).await;
        assert_eq!(resumed.status(), 200, "{}", String::from_utf8_lossy(&resumed.body));
        let rest: Vec<&[u8]> = resumed.body.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(rest[1..1_001], rows[1_000..], "byte for byte, although the data changed meanwhile");
        assert_eq!(
            resumed.lines().last().unwrap()["end"],
            undisturbed.lines().last().unwrap()["end"].clone().take_from(1_000)
        );

        let wrong = json!({"cursor": cursor, "rows": 999, "prefix_hash": hash}).to_string();
        let refused = world.post("/v1/query/resume", wrong).await;
        assert_eq!((refused.status(), refused.code().as_str()), (409, "prefix_hash_mismatch"));

        for _ in 0..2 {
            let cancelled = ask(world.address, "DELETE", &format!("/v1/query/{cursor}"), &[], b"").await;
            assert_eq!(cancelled.status(), 204, "cancelling is idempotent");
        }
        let refused = world.post("/v1/query/resume", &resume).await;
        assert_eq!((refused.status(), refused.code().as_str()), (409, "cursor_cancelled"));
    });
}

/// The same end line, read from another row on.
trait TakeFrom {
    fn take_from(self, row: u64) -> Self;
}

impl TakeFrom for serde_json::Value {
    fn take_from(mut self, row: u64) -> Self {
        self["from_row"] = row.into();
        self
    }
}

#[test]
fn a_cursor_that_is_none_is_answered_like_one_that_does_not_exist() {
    block_on(async {
        let world = World::start();
        let mut documents = Vec::new();
        for cursor in ["ab".repeat(24).as_str(), "ab", "%C3%BF", "x%2Fy", &"z".repeat(48)] {
            let answer = ask(world.address, "DELETE", &format!("/v1/query/{cursor}"), &[], b"").await;
            assert_eq!((answer.status(), answer.code().as_str()), (404, "cursor_not_found"), "{cursor}");
            documents.push(answer.body);
        }
        documents.dedup();
        assert_eq!(documents.len(), 1, "not a byte tells them apart");
    });
}

#[test]
fn an_error_after_the_first_line_is_a_line_and_the_stream_still_ends_well() {
    block_on(async {
        let world = World::start();
        world.source.on(SELECT, Script::numbers(5).fail_at(2, || SourceError::Unavailable("gone".into())));
        let answer = world.post("/v1/query", json!({"source": "main", "sql": SELECT}).to_string()).await;
        assert_eq!((answer.status(), answer.whole), (200, true));
        let lines = answer.lines();
        let [.., error, end] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!(error["error"]["code"], "source_unavailable");
        assert_eq!((&end["end"]["status"], &end["end"]["rows"]), (&json!("failed"), &json!(2)));
    });
}

#[test]
fn a_client_that_vanishes_frees_its_slot_and_keeps_its_cursor() {
    block_on(async {
        let world = Setup { settings: vec![("stream.max_global", 1)], ..Setup::default() }.start();
        let gate = Gate::closed();
        world.source.on(SELECT, Script::numbers(5).hold_at(1, &gate));
        for (before, coding) in ["identity", "gzip", "zstd"].into_iter().enumerate() {
            let mut connection = world.query(SELECT, &[("accept-encoding", coding)]).await;
            assert_eq!(connection.head().await.unwrap().status, 200, "the one slot is free again");
            drop(connection);
            // The source gives nothing all the while: it is the connection's end that is noticed.
            until("the reader's leaving to be reported", async || {
                let left = |record: &AuditRecord| serde_json::to_value(record).unwrap()["reason"] == "reader_gone";
                world.audit.records().iter().filter(|record| left(record)).count() == before + 1
            })
            .await;
        }
        let leases = world.get("/v1/leases").await.json();
        assert_eq!(leases["leases"].as_array().unwrap().len(), 3, "the cursors live on");
        assert!(leases["leases"][0]["cursor"].is_null(), "and stay secret");
    });
}

#[test]
fn a_reader_that_stalls_holds_the_source_back_and_is_then_cut_off() {
    block_on(async {
        let rows = 100_000_000;
        let world = Setup { rows, settings: vec![("stream.idle_timeout_ms", 100)], ..Setup::default() }.start();
        let mut connection = world.query(SELECT, &[]).await;
        connection.head().await.unwrap();
        // Nothing is read from here on.
        let closed = world.audit.wait_for("stream.closed").await;
        let closed = serde_json::to_value(&closed).unwrap();
        assert_eq!(closed["reason"], "reader_stalled");
        let sent = world.source.counters().rows;
        assert!(sent < rows / 10, "{sent} rows were read for a client that took none");
        // A socket that the other side has closed takes no more, sooner or later.
        until("the connection to be cut off", async || connection.stream.write_all(b"x").await.is_err()).await;
        while let Some(chunk) = connection.chunk().await {
            assert!(!chunk.is_empty(), "a stream without its end line must not look complete");
        }
    });
}

#[test]
fn a_stream_that_stalls_on_http_2_is_reset_and_its_neighbours_go_on() {
    block_on(async {
        let rows = 100_000_000;
        let world = Setup { rows, settings: vec![("stream.idle_timeout_ms", 100)], ..Setup::default() }.start();
        let gate = Gate::closed();
        world.source.on("neighbour", Script::numbers(2).hold_at(1, &gate));
        super::tls::install_provider();
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let query = async |sql: &str| {
            let body = json!({"source": "main", "sql": sql}).to_string();
            let url = format!("http://{}/v1/query", world.address);
            client.post(url).body(body).send().await.unwrap()
        };
        let neighbour = query("neighbour").await;
        let mut stalled = query(SELECT).await;
        // Not read until the server has given it up; the neighbour's source gives nothing all the while.
        let closed = serde_json::to_value(&world.audit.wait_for("stream.closed").await).unwrap();
        assert_eq!(closed["reason"], "reader_stalled");
        until("the answer to be let go of", async || world.in_flight() == 1).await;
        let broken = within("the reset", async {
            loop {
                match stalled.chunk().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            }
        });
        assert!(broken.await, "a stream without its end line must not look complete");
        gate.open();
        let text = neighbour.text().await.unwrap();
        assert!(text.ends_with("\"status\":\"complete\"}}\n"), "{text}");
    });
}

#[test]
fn several_requests_share_a_connection() {
    block_on(async {
        let world = World::start();
        let mut connection = Connection::open(world.address).await;
        let body = json!({"source": "main", "sql": SELECT}).to_string();
        for _ in 0..3 {
            connection.send(request("POST", "/v1/query", &[], body.as_bytes())).await;
            assert_eq!(connection.answer().await.unwrap().lines().len(), 5);
            connection.send(request("GET", "/nope", &[], b"")).await;
            assert_eq!(connection.answer().await.unwrap().status(), 404);
        }
    });
}
