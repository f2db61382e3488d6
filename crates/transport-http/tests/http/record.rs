//! Records of change streams over the wire: appended whole or not at all, read with their gaps, waited for.

use serde_json::{Value, json};
use tidegate_testkit::wait::until;
use tidegate_testkit::{block_on, within};

use super::client::{Answer, Connection, ask, request};
use super::world::{Setup, World};

/// A world with a stream of so many partitions, called `s`.
pub(crate) async fn world_with_stream(partitions: u32) -> World {
    let world = World::start();
    let made = world.put("/v1/streams/s", json!({"partitions": partitions}).to_string()).await;
    assert_eq!(made.status(), 201, "{made:?}");
    world
}

/// Appends messages with these values to partition 0.
pub(crate) async fn append(world: &World, values: impl IntoIterator<Item = Value>) {
    let lines: String =
        values.into_iter().map(|value| format!("{}\n", json!({"value": value, "partition": 0}))).collect();
    let answer = world.post("/v1/streams/s/records", lines).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
}

fn offsets(answer: &Answer) -> Vec<u64> {
    answer.lines().iter().filter_map(|line| line["record"]["offset"].as_u64()).collect()
}

#[test]
fn what_is_appended_is_read_as_it_was_given() {
    block_on(async {
        let world = world_with_stream(2).await;
        let lines = concat!(
            r#"{"key":"a","op":"insert","value":{"n": 18446744073709551616},"headers":{"h":[1.10]},"event_time":"2026-11-21T10:00:00Z","partition":1}"#,
            "\n",
            r#"{"key":null,"value":null,"before":{"n":1},"op":"delete","partition":0}"#,
        );
        let answer = world.post("/v1/streams/s/records", lines).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(
            answer.json(),
            json!({"count": 2, "appended": [
                {"partition": 0, "base": 0, "next": 1}, {"partition": 1, "base": 0, "next": 1},
            ]})
        );
        let read = world.get("/v1/streams/s/records?partition=1").await;
        assert_eq!((read.status(), read.header("content-type")), (200, Some("application/x-ndjson")));
        let text = String::from_utf8(read.body.clone()).unwrap();
        assert!(text.contains(r#""value":{"n":18446744073709551616}"#) && text.contains("[1.10]"), "{text}");
        let record = &read.lines()[0]["record"];
        assert_eq!((&record["op"], &record["key"], &record["before"]), (&json!("insert"), &json!("a"), &Value::Null));
        assert_eq!((&record["partition"], &record["offset"], &record["source"]), (&json!(1), &json!(0), &Value::Null));
        assert_eq!(record["event_time"], "2026-11-21T10:00:00.000Z");
        assert!(record["append_time"].is_string());
        assert_eq!(read.lines()[1], json!({"next": {"partition": 1, "offset": 1}}));
        let all = world.get("/v1/streams/s/records").await.lines();
        assert_eq!(all.len(), 4);
        assert_eq!(all[0]["record"]["before"], json!({"n": 1}));
        assert_eq!(all[2], json!({"next": {"partition": 0, "offset": 1}}));
        assert_eq!(all[3], json!({"next": {"partition": 1, "offset": 1}}));
    });
}

#[test]
fn a_read_keeps_to_its_bounds_and_says_where_to_go_on() {
    block_on(async {
        let world = world_with_stream(1).await;
        append(&world, (0..25).map(|n| json!(n))).await;
        let mut from = 0;
        let mut seen = Vec::new();
        loop {
            let answer = world.get(&format!("/v1/streams/s/records?partition=0&from={from}&limit=10")).await;
            assert_eq!(answer.status(), 200);
            seen.extend(offsets(&answer));
            let next = answer.lines().last().unwrap()["next"]["offset"].as_u64().unwrap();
            if next == from {
                break;
            }
            from = next;
        }
        assert_eq!(seen, (0..25).collect::<Vec<u64>>());
        let one = world.get("/v1/streams/s/records?from=3&max_bytes=1").await;
        assert_eq!(offsets(&one), [3], "at least one record is given");
        let latest = world.get("/v1/streams/s/records?from=latest").await;
        assert_eq!(latest.lines(), [json!({"next": {"partition": 0, "offset": 25}})]);
        for limit in [1, 2, 3] {
            let waited = world.get(&format!("/v1/streams/s/records?from=20&limit={limit}&wait_ms=60000")).await;
            assert_eq!(offsets(&waited).len(), limit, "a shared piece is cut to the bounds too");
            assert_eq!(waited.lines().last().unwrap()["next"]["offset"], json!(20 + limit));
        }
    });
}

#[test]
fn a_long_read_goes_on_piece_by_piece() {
    block_on(async {
        let world = world_with_stream(1).await;
        let text = "x".repeat(10_000);
        append(&world, (0..200).map(|n| json!({"n": n, "text": text}))).await;
        for coding in ["identity", "gzip"] {
            let mut connection = Connection::open(world.address).await;
            let path = "/v1/streams/s/records?max_bytes=16777216";
            connection.send(request("GET", path, &[("accept-encoding", coding)], b"")).await;
            let answer = connection.answer().await.unwrap();
            assert!(answer.whole && answer.status() == 200);
            let mut body = answer.body.clone();
            if coding == "gzip" {
                assert_eq!(answer.header("content-encoding"), Some("gzip"));
                body.clear();
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&answer.body[..]), &mut body).unwrap();
            }
            let text = String::from_utf8(body).unwrap();
            assert_eq!(text.lines().count(), 201);
            assert_eq!(text.lines().last(), Some(r#"{"next":{"partition":0,"offset":200}}"#));
        }
    });
}

#[test]
fn records_of_every_size_arrive_as_they_are_read_one_by_one() {
    block_on(async {
        let world = world_with_stream(1).await;
        // Some are copied into the answer and some shared with the log; several parts of both.
        let sizes = [10, 9_000, 200, 70_000, 70_000, 1, 300_000];
        let values = (0..42).map(|n| json!({"n": n, "text": "x".repeat(sizes[n % sizes.len()])}));
        append(&world, values).await;
        let mut one_by_one = String::new();
        for n in 0..42 {
            let answer = world.get(&format!("/v1/streams/s/records?from={n}&limit=1")).await;
            one_by_one += String::from_utf8(answer.body).unwrap().lines().next().unwrap();
            one_by_one.push('\n');
        }
        let whole = world.get("/v1/streams/s/records?max_bytes=16777216").await;
        assert!(whole.whole);
        let end = "{\"next\":{\"partition\":0,\"offset\":42}}\n";
        assert!(String::from_utf8(whole.body).unwrap() == one_by_one + end);
    });
}

#[test]
fn a_read_that_finds_nothing_is_encoded_like_any_other() {
    block_on(async {
        let world = world_with_stream(1).await;
        let headers = [("accept-encoding", "gzip")];
        let answer = ask(world.address, "GET", "/v1/streams/s/records", &headers, b"").await;
        assert_eq!((answer.status(), answer.header("content-encoding")), (200, Some("gzip")));
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&answer.body[..]), &mut text).unwrap();
        assert_eq!(text, "{\"next\":{\"partition\":0,\"offset\":0}}\n");
    });
}

#[test]
fn a_waiting_read_is_woken_by_the_append_and_by_nothing_else() {
    block_on(async {
        let mut world = world_with_stream(1).await;
        let path = "/v1/streams/s/records?from=latest&wait_ms=60000";
        let read = async { ask(world.address, "GET", path, &[], b"").await };
        let write = async {
            until("the read to wait", async || world.in_flight() == 1).await;
            append(&world, [json!("now")]).await;
        };
        let (answer, ()) = futures::join!(read, write);
        assert_eq!(offsets(&answer), [0]);
        // Nothing comes: the wait is over in its time.
        let empty = world.get("/v1/streams/s/records?from=latest&wait_ms=20").await;
        assert_eq!(empty.lines(), [json!({"next": {"partition": 0, "offset": 1}})]);
        // A client that goes away leaves nothing behind.
        let mut gone = Connection::open(world.address).await;
        gone.send(request("GET", path, &[], b"")).await;
        until("the read to wait", async || world.in_flight() == 1).await;
        drop(gone);
        until("the read to be given up", async || world.in_flight() == 0).await;
        // A server that leaves ends the wait.
        let mut last = Connection::open(world.address).await;
        last.send(request("GET", path, &[], b"")).await;
        until("the read to wait", async || world.in_flight() == 1).await;
        world.stop();
        let answer = within("the wait to end", last.answer()).await.unwrap();
        assert_eq!(answer.lines(), [json!({"next": {"partition": 0, "offset": 1}})]);
        world.gone().await;
    });
}

#[test]
fn bounds_of_a_read_are_named() {
    block_on(async {
        let world = world_with_stream(1).await;
        append(&world, [json!(1), json!(2)]).await;
        for (query, status, code) in [
            ("from=3", 416, "offset_out_of_range"),
            ("from=9223372036854775808", 416, "offset_out_of_range"),
            ("from=18446744073709551615", 416, "offset_out_of_range"),
            ("from=18446744073709551616", 400, "invalid_field"),
            ("from=-1", 400, "invalid_field"),
            ("from=1.0", 400, "invalid_field"),
            ("from=", 400, "invalid_field"),
            ("from=tail", 400, "invalid_field"),
            ("limit=0", 400, "invalid_field"),
            ("limit=-1", 400, "invalid_field"),
            ("limit=10001", 400, "invalid_field"),
            ("limit=18446744073709551616", 400, "invalid_field"),
            ("max_bytes=0", 400, "invalid_field"),
            ("max_bytes=16777217", 400, "invalid_field"),
            ("wait_ms=60001", 400, "invalid_field"),
            ("wait_ms=-1", 400, "invalid_field"),
            ("partition=1", 404, "partition_not_found"),
            ("partition=4294967295", 404, "partition_not_found"),
            ("partition=4294967296", 400, "invalid_field"),
            ("partition=x", 400, "invalid_field"),
            ("offset=1", 400, "unknown_field"),
            ("from=1&from=1", 400, "duplicate_field"),
            ("from=%ff", 400, "invalid_field"),
        ] {
            let answer = world.get(&format!("/v1/streams/s/records?{query}")).await;
            assert_eq!((answer.status(), answer.code().as_str()), (status, code), "{query}");
        }
        let document = world.get("/v1/streams/s/records?from=9").await.json();
        assert_eq!((&document["asked"], &document["next"], &document["earliest"]), (&json!(9), &json!(2), &json!(0)));
        let unknown = world.get("/v1/streams/none/records").await;
        assert_eq!((unknown.status(), unknown.code().as_str()), (404, "stream_not_found"));
        // Read at the very tail, nothing is wrong.
        assert_eq!(world.get("/v1/streams/s/records?from=2").await.status(), 200);
    });
}

#[test]
fn a_request_is_all_or_nothing() {
    block_on(async {
        let world = Setup {
            settings: vec![
                ("limits.record_max_bytes", 2_048),
                ("limits.batch_max_records", 8),
                ("limits.batch_max_bytes", 8_192),
            ],
            ..Setup::default()
        }
        .start();
        world.put("/v1/streams/s", "").await;
        let good = "{\"value\":1}\n";
        let large = |bytes: usize| format!("{{\"value\":\"{}\"}}\n", "x".repeat(bytes));
        for (body, status, code) in [
            (String::new(), 400, "empty_batch"),
            ("\n\n".into(), 400, "empty_batch"),
            ("[]".into(), 400, "empty_batch"),
            (format!("{}{{\"value\":\n", good.repeat(6)), 400, "malformed_json"),
            (format!("{}{{\"valu\":1}}\n", good.repeat(6)), 400, "unknown_field"),
            (format!("{}{{\"value\":1,\"partition\":7}}\n", good.repeat(6)), 404, "partition_not_found"),
            (good.repeat(9), 413, "batch_too_large"),
            (format!("{good}{}", large(2_100)), 413, "record_too_large"),
            (large(8_192), 413, "batch_too_large"),
        ] {
            let answer = world.post("/v1/streams/s/records", &body).await;
            assert_eq!((answer.status(), answer.code().as_str()), (status, code), "{body}");
            match code {
                "malformed_json" | "unknown_field" => {
                    assert_eq!((&answer.json()["line"], &answer.json()["index"]), (&json!(7), &json!(6)));
                }
                "record_too_large" => assert_eq!(answer.json()["index"], 1),
                _ => {}
            }
        }
        let empty = world.get("/v1/streams/s/records").await;
        assert_eq!(empty.lines(), [json!({"next": {"partition": 0, "offset": 0}})]);
        let unknown = world.post("/v1/streams/none/records", good).await;
        assert_eq!((unknown.status(), unknown.code().as_str()), (404, "stream_not_found"));
        let array = world.post("/v1/streams/s/records", r#"[{"value":1},{"value":2}]"#).await;
        assert_eq!(array.json()["count"], 2);
    });
}

#[test]
fn a_producer_never_appends_twice_nor_out_of_turn() {
    block_on(async {
        let world = world_with_stream(1).await;
        let send = async |epoch: u64, seq: u64| {
            let (epoch, seq) = (epoch.to_string(), seq.to_string());
            let headers = [("producer-id", "p"), ("producer-epoch", epoch.as_str()), ("producer-seq", seq.as_str())];
            ask(world.address, "POST", "/v1/streams/s/records", &headers, b"{\"value\":1}").await
        };
        let first = send(0, 0).await.json();
        assert_eq!(first, json!({"count": 1, "appended": [{"partition": 0, "base": 0, "next": 1}]}));
        let mut again = first.clone();
        again["duplicate"] = json!(true);
        assert_eq!(send(0, 0).await.json(), again);
        let skipped = send(0, 2).await;
        assert_eq!((skipped.status(), skipped.code().as_str()), (409, "producer_sequence_gap"));
        assert_eq!(
            (skipped.header("producer-expected-seq"), skipped.header("producer-received-seq")),
            (Some("1"), Some("2"))
        );
        assert_eq!((&skipped.json()["expected"], &skipped.json()["received"]), (&json!(1), &json!(2)));
        assert_eq!(send(3, 1).await.code(), "producer_epoch_start");
        assert_eq!(send(3, 0).await.json()["appended"][0]["base"], 1);
        let fenced = send(2, 0).await;
        assert_eq!((fenced.status(), fenced.code().as_str()), (403, "producer_fenced"));
        assert_eq!(fenced.header("producer-epoch"), Some("3"));
        for half in [vec![("producer-id", "p")], vec![("producer-epoch", "1"), ("producer-seq", "0")]] {
            let refused = ask(world.address, "POST", "/v1/streams/s/records", &half, b"{\"value\":1}").await;
            assert_eq!((refused.status(), refused.code().as_str()), (400, "malformed_producer"));
        }
        assert_eq!(offsets(&world.get("/v1/streams/s/records").await), [0, 1]);
    });
}

#[test]
fn what_comes_too_late_is_told_and_not_appended() {
    block_on(async {
        let world = World::start();
        world.put("/v1/streams/s", r#"{"late":"drop"}"#).await;
        let record = |time: &str| json!({"value": 1, "event_time": time}).to_string();
        let (early, late) = ("2026-11-21T09:59:59.999Z", "2026-11-21T10:00:00.000Z");
        world.post("/v1/streams/s/records", record(late)).await;
        let answer = world.post("/v1/streams/s/records", format!("[{},{}]", record(late), record(early))).await.json();
        assert_eq!(answer["count"], 1);
        assert_eq!(answer["late"], json!([{"index": 1, "partition": 0, "event_time": early, "watermark": late}]));
        assert_eq!(world.get("/v1/streams/s").await.json()["partitions"][0]["watermark"], late);
    });
}
