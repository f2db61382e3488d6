//! Streams followed as server-sent events: nothing lost over a reconnect, one piece of bytes for all, an end that says why.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_testkit::wait::until;
use tidegate_testkit::{ManualClock, block_on, within};
use tokio::io::AsyncReadExt as _;

use super::client::{Connection, Head, ask, request};
use super::record::{append, world_with_stream};
use super::world::{Setup, World};

/// An event as a browser sees it.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    kind: String,
    id: String,
    data: Value,
}

/// A tail that reads events one by one.
struct Tail {
    connection: Connection,
    text: String,
    comments: usize,
}

impl Tail {
    async fn open(world: &World, query: &str, headers: &[(&str, &str)]) -> (Head, Self) {
        let mut connection = Connection::open(world.address).await;
        let headers = [headers, &[("accept", "text/event-stream")]].concat();
        connection.send(request("GET", &format!("/v1/streams/s/records{query}"), &headers, b"")).await;
        let head = connection.head().await.expect("an answer");
        (head, Self { connection, text: String::new(), comments: 0 })
    }

    /// The next event; `None` where the answer has come to its end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                let mut event = Event { kind: String::new(), id: String::new(), data: Value::Null };
                for line in block.lines() {
                    match line.split_once(": ") {
                        Some(("event", kind)) => event.kind = kind.to_owned(),
                        Some(("id", id)) => event.id = id.to_owned(),
                        Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                        Some(("retry", ms)) => assert_eq!(ms, "1000"),
                        _ if line == ":" => self.comments += 1,
                        _ => assert!(line.is_empty(), "{line}"),
                    }
                }
                if !event.kind.is_empty() {
                    return Some(event);
                }
            }
            self.more().await?;
        }
    }

    /// Takes in what comes next; `None` at the end.
    async fn more(&mut self) -> Option<()> {
        let chunk = self.connection.chunk().await.expect("the answer is not cut");
        self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        (!chunk.is_empty()).then_some(())
    }

    async fn values(&mut self, count: usize) -> Vec<Value> {
        let mut values = Vec::new();
        while values.len() < count {
            let event = self.next().await.expect("the tail goes on");
            assert_eq!(event.kind, "record");
            values.push(event.data["value"].clone());
        }
        values
    }
}

#[test]
fn a_tail_gives_what_is_there_and_then_what_comes() {
    block_on(async {
        let world = world_with_stream(1).await;
        append(&world, [json!("old")]).await;
        let (head, mut tail) = Tail::open(&world, "", &[]).await;
        assert_eq!(head.status, 200);
        for (name, value) in
            [("content-type", "text/event-stream"), ("cache-control", "no-store"), ("x-accel-buffering", "no")]
        {
            assert_eq!(head.header(name), Some(value));
        }
        assert_eq!(head.header("content-encoding"), None);
        let first = tail.next().await.unwrap();
        assert_eq!((first.kind.as_str(), first.id.as_str()), ("record", "0:0"));
        assert_eq!((&first.data["value"], &first.data["offset"]), (&json!("old"), &json!(0)));
        append(&world, [json!("new")]).await;
        assert_eq!(tail.values(1).await, ["new"]);
        let (_, mut latest) = Tail::open(&world, "?partition=0&from=latest", &[]).await;
        append(&world, [json!("newest")]).await;
        assert_eq!(latest.values(1).await, ["newest"]);
    });
}

#[test]
fn a_tail_that_comes_back_goes_on_after_the_last_event() {
    block_on(async {
        let world = world_with_stream(3).await;
        let lines: String = (0..60).map(|n| format!("{}\n", json!({"value": n, "key": n}))).collect();
        world.post("/v1/streams/s/records", lines).await;
        // In the order that a tail without an interruption gives.
        let (_, mut whole) = Tail::open(&world, "", &[]).await;
        let mut expected = Vec::new();
        for _ in 0..60 {
            expected.push(whole.next().await.unwrap());
        }
        // Cut after every seventh event.
        let (mut seen, mut last): (Vec<Event>, String) = (Vec::new(), String::new());
        while seen.len() < 60 {
            let headers = [("last-event-id", last.as_str())];
            let headers = if last.is_empty() { &[][..] } else { &headers[..] };
            // `from` stays in the URL of a browser that connects again: the id counts.
            let (head, mut tail) = Tail::open(&world, "?from=earliest", headers).await;
            assert_eq!(head.status, 200);
            for _ in 0..7.min(60 - seen.len()) {
                seen.push(tail.next().await.unwrap());
            }
            last = seen.last().unwrap().id.clone();
        }
        assert_eq!(seen, expected);
    });
}

#[test]
fn a_tail_that_cannot_begin_is_refused() {
    block_on(async {
        let world = world_with_stream(2).await;
        append(&world, [json!(1)]).await;
        for (query, id, status, code) in [
            ("", "0", 400, "malformed_last_event_id"),
            ("", "0:-1", 400, "malformed_last_event_id"),
            ("", "0:18446744073709551616", 400, "malformed_last_event_id"),
            ("?partition=1", "0:0", 400, "malformed_last_event_id"),
            ("", "2:0", 404, "partition_not_found"),
            ("", "0:1", 416, "offset_out_of_range"),
            ("", "0:18446744073709551615", 416, "offset_out_of_range"),
            ("?from=2", "", 416, "offset_out_of_range"),
            ("?limit=2", "", 400, "invalid_field"),
            ("?wait_ms=2", "", 400, "invalid_field"),
        ] {
            let headers = [("accept", "text/event-stream"), ("last-event-id", id)];
            let answer = ask(world.address, "GET", &format!("/v1/streams/s/records{query}"), &headers, b"").await;
            assert_eq!((answer.status(), answer.code().as_str()), (status, code), "{query} {id}");
        }
        world.settings.patch(&[("limits.tail_max_per_principal", 1)]).unwrap();
        let (_, _tail) = Tail::open(&world, "", &[]).await;
        let headers = [("accept", "text/event-stream")];
        let full = ask(world.address, "GET", "/v1/streams/s/records", &headers, b"").await;
        assert_eq!((full.status(), full.code().as_str()), (429, "principal_tail_quota_exhausted"));
        assert_eq!((&full.json()["limit"], &full.json()["current"]), (&json!(1), &json!(1)));
    });
}

#[test]
fn a_place_where_records_are_gone_is_an_event_with_its_bounds() {
    block_on(async {
        let world = World::start();
        world.put("/v1/streams/s", r#"{"retention":{"records":2}}"#).await;
        append(&world, (0..5).map(|n| json!(n))).await;
        let lines = world.get("/v1/streams/s/records?from=0").await.lines();
        let gap = json!({"partition": 0, "from": 0, "to": 3, "reason": "retention"});
        assert_eq!(lines[0], json!({"gap": gap}));
        let (_, mut tail) = Tail::open(&world, "?from=0", &[]).await;
        assert_eq!(tail.next().await, Some(Event { kind: "gap".into(), id: "0:2".into(), data: gap }));
        assert_eq!(tail.values(2).await, [3, 4]);
        let (_, mut after) = Tail::open(&world, "", &[("last-event-id", "0:2")]).await;
        assert_eq!(after.values(2).await, [3, 4], "a gap is told once");
    });
}

#[test]
fn many_tails_see_the_same_records_and_one_that_takes_nothing_is_ended_alone() {
    block_on(async {
        let settings = vec![("stream.idle_timeout_ms", 200)];
        let world = Setup { settings, ..Setup::default() }.start();
        world.put("/v1/streams/s", "").await;
        let mut tails = Vec::new();
        for _ in 0..10 {
            tails.push(Tail::open(&world, "", &[]).await.1);
        }
        let (_, mut stuck) = Tail::open(&world, "", &[]).await;
        let text = "x".repeat(100_000);
        let mut sent = 0;
        // Until the one that reads nothing is cut off; the others have read all along.
        while world.in_flight() > 10 {
            append(&world, [json!({"n": sent, "text": text})]).await;
            for tail in &mut tails {
                assert_eq!(tail.values(1).await[0]["n"], sent);
            }
            sent += 1;
            tokio::task::yield_now().await;
        }
        append(&world, [json!({"n": sent})]).await;
        for tail in &mut tails {
            assert_eq!(tail.values(1).await, [json!({"n": sent})]);
        }
        let mut rest = Vec::new();
        let _ = within("the cut", stuck.connection.stream.read_to_end(&mut rest)).await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "it was cut, and does not look whole");
        assert_eq!(world.in_flight(), 10);
    });
}

#[test]
fn an_idle_tail_is_sent_a_comment_now_and_then() {
    block_on(async {
        let clock = ManualClock::new();
        let world = Setup { clock: Arc::new(clock.clone()), ..Setup::default() }.start();
        world.put("/v1/streams/s", "").await;
        let (_, mut tail) = Tail::open(&world, "", &[]).await;
        tail.more().await.unwrap();
        append(&world, [json!(1)]).await;
        assert_eq!(tail.values(1).await, [1]);
        for beats in 1..=3 {
            while tail.comments < beats {
                clock.advance(Duration::from_secs(5));
                let more = tokio::time::timeout(Duration::from_millis(20), tail.more()).await;
                if more.is_ok() {
                    // Parses what came: a comment is no event.
                    let mut next = Box::pin(tail.next());
                    assert!(futures::poll!(&mut next).is_pending());
                }
            }
        }
    });
}

#[test]
fn a_tail_ends_with_the_reason() {
    block_on(async {
        let mut world = world_with_stream(1).await;
        let (_, mut tail) = Tail::open(&world, "", &[]).await;
        assert_eq!(world.delete("/v1/streams/s").await.status(), 204);
        let end = tail.next().await.unwrap();
        assert_eq!((end.kind.as_str(), &end.data["code"]), ("error", &json!("stream_not_found")));
        assert_eq!((&end.data["status"], &end.data["retry"]), (&json!(404), &json!("never")));
        assert!(end.data["message"].is_string());
        assert_eq!(tail.next().await, None);

        world.put("/v1/streams/s", "").await;
        let (_, mut tail) = Tail::open(&world, "", &[]).await;
        world.stop();
        let end = tail.next().await.unwrap();
        assert_eq!((end.kind.as_str(), &end.data["code"]), ("error", &json!("draining")));
        assert_eq!(end.data["retry"], "after");
        assert_eq!(tail.next().await, None);
        world.gone().await;
    });
}

#[test]
fn events_are_compressed_for_who_asks_and_come_at_once_all_the_same() {
    block_on(async {
        let world = world_with_stream(1).await;
        let mut connection = Connection::open(world.address).await;
        let headers = [("accept", "text/event-stream"), ("accept-encoding", "gzip")];
        connection.send(request("GET", "/v1/streams/s/records", &headers, b"")).await;
        assert_eq!(connection.head().await.unwrap().header("content-encoding"), Some("gzip"));
        let mut sent = connection.chunk().await.unwrap();
        for n in 0..3 {
            append(&world, [json!(n)]).await;
            let value = format!("\"value\":{n},");
            until("the event", async || {
                let mut text = Vec::new();
                let _ = std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&sent[..]), &mut text);
                if String::from_utf8(text).unwrap().contains(&value) {
                    return true;
                }
                sent.extend(connection.chunk().await.unwrap());
                false
            })
            .await;
        }
    });
}

#[test]
fn over_http_2_a_tail_and_a_publisher_share_a_connection() {
    block_on(async {
        let world = world_with_stream(1).await;
        super::tls::install_provider();
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let url = format!("http://{}/v1/streams/s/records", world.address);
        let mut tail = client.get(&url).header("accept", "text/event-stream").send().await.unwrap();
        let sent = client.post(&url).body(r#"{"value":"over h2"}"#).send().await.unwrap();
        assert_eq!((sent.status().as_u16(), sent.version()), (200, reqwest::Version::HTTP_2));
        let mut text = String::new();
        while !text.contains("over h2") {
            let chunk = within("the event", tail.chunk()).await.unwrap().expect("the tail goes on");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    });
}
