//! The Durable Streams protocol beside what its own suite asks: the same streams through both doors, rights, bounds, ends.

use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tidegate_core::Scope;
use tidegate_core::id::Name;
use tidegate_testkit::{block_on, block_on_threads, within};
use tidegate_transport_http::auth::StaticToken;
use tidegate_transport_http::{AuthConfig, TokenConfig};

use super::client::{Answer, Connection, ask, request};
use super::world::{Setup, World};

const TEXT: (&str, &str) = ("content-type", "text/plain");
const JSON: (&str, &str) = ("content-type", "application/json");

async fn ds(world: &World, method: &str, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
    ask(world.address, method, &format!("/ds/v1/stream/{path}"), headers, body.as_ref()).await
}

fn text(answer: &Answer) -> String {
    assert!(answer.whole, "{answer:?}");
    String::from_utf8(answer.body.clone()).unwrap()
}

/// Waits until a request is being served.
async fn until_in_flight(world: &World, count: usize) {
    within("a request to wait", async {
        while world.in_flight() != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[test]
fn a_stream_is_the_same_through_both_doors() {
    block_on(async {
        let world = World::start();
        let made = ds(&world, "PUT", "chat/room%201", &[JSON], r#"[{"n":1}, {"n": 2}]"#).await;
        assert_eq!(made.status(), 201);
        assert_eq!(made.header("location"), Some("http://tidegate/ds/v1/stream/chat/room%201"));
        // The same name, however the path is written.
        assert_eq!(text(&ds(&world, "GET", "chat%2Froom%201", &[], "").await), r#"[{"n":1},{"n": 2}]"#);
        let door = "/v1/streams/chat%2Froom%201";
        assert_eq!(world.get(door).await.json()["name"], "chat/room 1");
        assert_eq!(world.post(&format!("{door}/records"), r#"{"value":{"n":3.10}}"#).await.status(), 200);
        let lines = world.get(&format!("{door}/records?from=1")).await.lines();
        assert_eq!((&lines[0]["record"]["value"], &lines[2]["next"]["offset"]), (&json!({"n": 2}), &json!(3)));
        assert_eq!(text(&ds(&world, "GET", "chat/room%201", &[], "").await), r#"[{"n":1},{"n": 2},{"n":3.10}]"#);

        assert_eq!(world.put("/v1/streams/wide", r#"{"partitions":2}"#).await.status(), 201);
        for method in ["GET", "PUT", "POST", "DELETE"] {
            let refused = ds(&world, method, "wide", &[JSON], "[1]").await;
            assert_eq!((refused.status(), refused.code()), (409, "stream_partitioned".into()), "{method}");
        }
        assert_eq!(ds(&world, "PUT", "bytes", &[TEXT], "x").await.status(), 201);
        let refused = world.post("/v1/streams/bytes/records", r#"{"value":1}"#).await;
        assert_eq!((refused.status(), refused.code()), (409, "content_type_mismatch".into()));
        assert_eq!(ds(&world, "POST", "bytes", &[("stream-closed", "true")], "").await.status(), 204);
        assert_eq!(world.delete("/v1/streams/bytes").await.status(), 204);
        assert_eq!(ds(&world, "GET", "bytes", &[], "").await.code(), "stream_not_found");
    });
}

#[test]
fn what_is_closed_is_refused_with_its_end_through_the_other_door_too() {
    block_on(async {
        let world = World::start();
        ds(&world, "PUT", "s", &[JSON, ("stream-closed", "true")], "[1,2]").await;
        let refused = ds(&world, "POST", "s", &[JSON], "3").await;
        assert_eq!((refused.status(), refused.code()), (409, "stream_closed".into()));
        assert_eq!(refused.header("stream-closed"), Some("true"));
        assert_eq!(refused.header("stream-next-offset"), Some("0000000000000000_0000000000000002"));
        assert_eq!(world.post("/v1/streams/s/records", r#"{"value":3}"#).await.code(), "stream_closed");
    });
}

#[test]
fn a_read_is_whole_however_long_and_however_the_records_are_cut() {
    block_on_threads(async {
        let world = World::start();
        ds(&world, "PUT", "s", &[], "").await;
        let mut expected = Vec::new();
        let sizes = [1, 100, 8_191, 8_192, 200_000, 3, 1_500_000, 7];
        for (place, size) in sizes.iter().cycle().take(24).enumerate() {
            let body: Vec<u8> = (0..*size).map(|byte| (byte as usize * 31 + place) as u8).collect();
            let octets = ("content-type", "application/octet-stream");
            assert_eq!(ds(&world, "POST", "s", &[octets], &body).await.status(), 204);
            expected.extend_from_slice(&body);
        }
        let read = ds(&world, "GET", "s", &[], "").await;
        assert!(read.whole && read.body == expected, "{} of {}", read.body.len(), expected.len());
        assert_eq!(read.header("stream-up-to-date"), Some("true"));
        let etag = read.header("etag").unwrap().to_owned();
        let known = ds(&world, "GET", "s", &[("if-none-match", &format!("\"x\", W/{etag}"))], "").await;
        assert_eq!((known.status(), known.body.len()), (304, 0));
        // To close it changes what is said of it.
        ds(&world, "POST", "s", &[("stream-closed", "true")], "").await;
        let closed = ds(&world, "HEAD", "s", &[], "").await;
        assert_eq!(closed.header("stream-closed"), Some("true"));
        assert_eq!(ds(&world, "GET", "s", &[("if-none-match", &etag)], "").await.status(), 200);
        let json = "[".to_owned() + &"12345678,".repeat(9_000) + "0]";
        for _ in 0..20 {
            ds(&world, "PUT", "j", &[JSON], "").await;
            assert_eq!(ds(&world, "POST", "j", &[JSON], &json).await.status(), 204);
        }
        let values: Vec<u64> = serde_json::from_slice(&ds(&world, "GET", "j", &[], "").await.body).unwrap();
        assert_eq!(values.len(), 20 * 9_001);
    });
}

#[test]
fn what_is_gone_is_said_to_be_gone_and_what_never_was_is_out_of_range() {
    block_on(async {
        let world = World::start();
        world.put("/v1/streams/s", r#"{"retention":{"records":2}}"#).await;
        for n in 0..5 {
            world.post("/v1/streams/s/records", format!("{{\"value\":{n}}}")).await;
        }
        let gone = ds(&world, "GET", "s?offset=0000000000000000_0000000000000001", &[], "").await;
        assert_eq!((gone.status(), gone.code()), (410, "gap".into()));
        assert_eq!(gone.json()["to"], 3);
        assert_eq!(gone.header("stream-next-offset"), Some("0000000000000000_0000000000000003"));
        assert_eq!(text(&ds(&world, "GET", "s?offset=-1", &[], "").await), "[3,4]");
        let beyond = ds(&world, "GET", "s?offset=0000000000000000_0000000000000006", &[], "").await;
        assert_eq!((beyond.status(), beyond.code()), (416, "offset_out_of_range".into()));
    });
}

#[test]
fn what_is_too_large_or_malformed_is_refused_with_the_bound_and_changes_nothing() {
    block_on(async {
        let settings = vec![("limits.batch_max_bytes", 4_096), ("limits.record_max_bytes", 1_024)];
        let world = Setup { settings, ..Setup::default() }.start();
        ds(&world, "PUT", "s", &[TEXT], "x").await;
        let large = ds(&world, "POST", "s", &[TEXT], "y".repeat(5_000)).await;
        assert_eq!(
            (large.status(), large.code(), large.json()["max_bytes"].clone()),
            (413, "batch_too_large".into(), json!(4_096))
        );
        let record = ds(&world, "POST", "s", &[TEXT], "y".repeat(2_000)).await;
        assert_eq!((record.status(), record.code()), (413, "record_too_large".into()));
        let long = "q".repeat(1_025);
        for (headers, code) in [
            (vec![("content-type", "text")], "content_type_mismatch"),
            (vec![TEXT, ("stream-seq", long.as_str())], "malformed_header"),
            (vec![TEXT, ("stream-seq", "a"), ("stream-seq", "b")], "malformed_header"),
            (vec![TEXT, ("producer-id", "p")], "malformed_producer"),
        ] {
            assert_eq!(ds(&world, "POST", "s", &headers, "z").await.code(), code, "{headers:?}");
        }
        for (headers, code) in [
            (vec![("content-type", "text")], "malformed_content_type"),
            (vec![TEXT, ("stream-ttl", "18446744073709551616")], "malformed_header"),
            (vec![TEXT, ("stream-forked-from", "elsewhere")], "malformed_header"),
            (vec![TEXT, ("stream-fork-offset", "0000000000000000_0000000000000000")], "malformed_header"),
        ] {
            assert_eq!(ds(&world, "PUT", "new", &headers, "").await.code(), code, "{headers:?}");
        }
        assert_eq!(ds(&world, "PUT", &"n".repeat(256), &[TEXT], "").await.code(), "invalid_name");
        assert_eq!(ds(&world, "GET", "new", &[], "").await.status(), 404);
        assert_eq!(text(&ds(&world, "GET", "s", &[], "").await), "x");
    });
}

#[test]
fn a_fork_is_named_by_any_form_of_its_source_and_a_chain_has_an_end() {
    block_on(async {
        let world = World::start();
        ds(&world, "PUT", "f0", &[TEXT], "root").await;
        for n in 1..=64 {
            let source = match n % 3 {
                0 => format!("/v1/stream/f{}", n - 1),
                1 => format!("/ds/v1/stream/f{}", n - 1),
                _ => format!("http://tidegate/ds/v1/stream/f{}", n - 1),
            };
            let made = ds(&world, "PUT", &format!("f{n}"), &[("stream-forked-from", &source)], "").await;
            assert_eq!((n, made.status()), (n, 201));
        }
        assert_eq!(text(&ds(&world, "GET", "f64", &[], "").await), "root");
        let refused = ds(&world, "PUT", "f65", &[("stream-forked-from", "/v1/stream/f64")], "").await;
        assert_eq!((refused.status(), refused.code()), (409, "too_many_forks".into()));
    });
}

#[test]
fn who_reads_cannot_write_and_a_browser_may_ask_without_a_token() {
    block_on(async {
        let token = |subject: &str, scopes: &[Scope]| StaticToken {
            sha256: Sha256::digest(subject.as_bytes()).into(),
            subject: Name::new(subject).unwrap(),
            tenant: Name::new("acme").unwrap(),
            scopes: scopes.iter().copied().collect(),
        };
        let tokens = vec![token("reader", &[Scope::StreamRead]), token("writer", &[Scope::StreamWrite])];
        let auth = AuthConfig::Token(TokenConfig { tokens, ..TokenConfig::default() });
        let world = Setup { auth, ..Setup::default() }.start();
        let reader = ("authorization", "Bearer reader");
        let writer = ("authorization", "Bearer writer");
        for (method, who, status) in [
            ("PUT", reader, 403),
            ("PUT", writer, 201),
            ("POST", reader, 403),
            ("POST", writer, 204),
            ("GET", reader, 200),
            ("GET", writer, 403),
            ("HEAD", reader, 200),
            ("DELETE", reader, 403),
            ("DELETE", writer, 204),
        ] {
            let answer = ds(&world, method, "s", &[TEXT, who], if method == "POST" { "x" } else { "" }).await;
            assert_eq!(answer.status(), status, "{method} {who:?}");
            assert_eq!(answer.header("cross-origin-resource-policy"), Some("cross-origin"), "{method}");
        }
        let refused = ds(&world, "GET", "s", &[("origin", "https://page.example")], "").await;
        assert_eq!(refused.status(), 401);
        assert_eq!(refused.header("access-control-allow-origin"), Some("*"), "a page must be able to see why");
        let asked = ds(&world, "OPTIONS", "s", &[("origin", "https://page.example")], "").await;
        assert_eq!(asked.status(), 204);
        for name in ["if-none-match", "authorization", "producer-epoch", "stream-fork-sub-offset"] {
            assert!(asked.header("access-control-allow-headers").unwrap().contains(name), "{name}");
        }
        // What is read with a token is nobody else's.
        ds(&world, "PUT", "t", &[TEXT, writer], "x").await;
        let read = ds(&world, "GET", "t", &[reader], "").await;
        assert!(read.header("cache-control").unwrap().starts_with("private"));
    });
}

#[test]
fn a_long_poll_ends_with_what_came_with_the_time_or_with_the_server() {
    block_on_threads(async {
        let mut world = World::start();
        ds(&world, "PUT", "s", &[TEXT], "").await;
        let poll = request("GET", "/ds/v1/stream/s?offset=now&live=long-poll", &[], b"");
        let mut waiting = Connection::open(world.address).await;
        waiting.send(&poll).await;
        until_in_flight(&world, 1).await;
        ds(&world, "POST", "s", &[TEXT, ("stream-closed", "false")], "came").await;
        let came = waiting.answer().await.unwrap();
        assert_eq!((came.status(), text(&came)), (200, "came".into()));
        assert_eq!(came.header("stream-next-offset"), Some("0000000000000000_0000000000000001"));

        world.settings.patch(&[("stream.long_poll_ms", 1)]).unwrap();
        waiting.send(&poll).await;
        let nothing = waiting.answer().await.unwrap();
        assert_eq!((nothing.status(), nothing.header("stream-up-to-date")), (204, Some("true")));

        world.settings.patch(&[("stream.long_poll_ms", 3_600_000)]).unwrap();
        waiting.send(&poll).await;
        until_in_flight(&world, 1).await;
        world.delete("/v1/streams/s").await;
        assert_eq!(waiting.answer().await.unwrap().status(), 404);

        ds(&world, "PUT", "s", &[TEXT], "").await;
        waiting.send(&poll).await;
        until_in_flight(&world, 1).await;
        world.stop();
        assert_eq!(waiting.answer().await.unwrap().status(), 204);
        world.gone().await;
    });
}

#[test]
fn an_event_stream_gives_a_closed_streams_last_record_before_its_end() {
    block_on_threads(async {
        let world = World::start();
        ds(&world, "PUT", "s", &[TEXT], "a").await;
        let mut following = Connection::open(world.address).await;
        following.send(request("GET", "/ds/v1/stream/s?offset=-1&live=sse", &[], b"")).await;
        let head = following.head().await.unwrap();
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
        let mut events = Vec::new();
        while !String::from_utf8_lossy(&events).contains("upToDate") {
            events.extend(following.chunk().await.expect("a chunk"));
        }
        ds(&world, "POST", "s", &[TEXT, ("stream-closed", "true")], "b\nc").await;
        while let Some(chunk) = following.chunk().await.filter(|chunk| !chunk.is_empty()) {
            events.extend(chunk);
        }
        let events = String::from_utf8(events).unwrap();
        let (before, last) = events.split_once("data:b\ndata:c\n\n").expect(&events);
        assert!(before.starts_with("event: data\ndata:a\n\nevent: control\n"), "{events}");
        assert!(last.trim_end().ends_with(r#""streamClosed":true,"upToDate":true}"#), "{events}");
        assert!(last.contains("0000000000000000_0000000000000002"), "{events}");
    });
}

#[test]
fn an_event_stream_ends_after_its_time_and_says_where_to_go_on() {
    block_on_threads(async {
        let world = Setup { settings: vec![("stream.sse_ms", 50)], ..Setup::default() }.start();
        ds(&world, "PUT", "s", &[JSON], "[1]").await;
        let mut following = Connection::open(world.address).await;
        following.send(request("GET", "/ds/v1/stream/s?offset=now&live=sse", &[], b"")).await;
        let answer = following.answer().await.unwrap();
        assert!(answer.whole);
        let events = text(&answer);
        assert!(
            events.contains(r#"{"streamNextOffset":"0000000000000000_0000000000000001","streamCursor":""#),
            "{events}"
        );
    });
}
