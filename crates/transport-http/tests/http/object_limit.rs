//! Kill switches and rate limits of objects: every way to an object is judged, a change counts from the next request on, and what is
//! refused costs nobody anything.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tidegate_core::Scope;
use tidegate_core::id::Name;
use tidegate_testkit::wait::until;
use tidegate_testkit::{ManualClock, block_on, within};
use tidegate_transport_http::auth::StaticToken;
use tidegate_transport_http::{AuthConfig, TokenConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::{Answer, Connection, ask, request};
use super::world::{Setup, World};

const KILL: &str = "limits.object.kill";
const RATE: &str = "limits.object.rate";

fn still() -> (ManualClock, World) {
    let clock = ManualClock::new();
    let world = Setup { clock: Arc::new(clock.clone()), ..Setup::default() }.start();
    (clock, world)
}

async fn patch(world: &World, body: &Value) -> Answer {
    ask(world.address, "PATCH", "/v1/config", &[], body.to_string().as_bytes()).await
}

async fn set(world: &World, body: Value) {
    let answer = patch(world, &body).await;
    assert_eq!(answer.status(), 200, "{}", String::from_utf8_lossy(&answer.body));
    for (key, value) in body.as_object().unwrap() {
        if value.as_array().is_some_and(Vec::is_empty) {
            assert_eq!(answer.json()[key], json!([]));
        }
    }
}

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status(), answer.code())
}

fn disabled() -> (u16, String) {
    (403, "operation_disabled".to_owned())
}

fn limited() -> (u16, String) {
    (429, "rate_limited".to_owned())
}

/// The statuses and codes of a batch's parts, by index.
async fn batch(world: &World, path: &str, ops: &[(&str, &str)]) -> Vec<(u16, String)> {
    let mut body = String::new();
    for (op, key) in ops {
        body.push_str(&format!("--edge\r\nx-tidegate-op: {op}\r\nx-tidegate-key: {key}\r\n\r\n\r\n"));
    }
    body.push_str("--edge--\r\n");
    let headers = [("content-type", "multipart/mixed; boundary=edge")];
    let answer = ask(world.address, "POST", path, &headers, body.as_bytes()).await;
    assert_eq!((answer.status(), answer.whole), (200, true), "{:?}", String::from_utf8_lossy(&answer.body));
    let text = String::from_utf8(answer.body).unwrap();
    let field = |part: &str, name: &str| {
        let rest = part.split_once(&format!("{name}: ")).map(|(_, rest)| rest.split("\r\n").next().unwrap().to_owned());
        rest.unwrap_or_default()
    };
    let mut parts: Vec<(usize, (u16, String))> = text
        .split("x-tidegate-index: ")
        .skip(1)
        .map(|part| {
            let index = part.split("\r\n").next().unwrap().parse().unwrap();
            let code = part.split_once("\"code\":\"").map(|(_, rest)| rest.split('"').next().unwrap().to_owned());
            (index, (field(part, "x-tidegate-status").parse().unwrap(), code.unwrap_or_default()))
        })
        .collect();
    parts.sort_unstable();
    parts.into_iter().map(|(_, outcome)| outcome).collect()
}

#[test]
fn every_way_to_an_object_passes_the_switch_of_what_it_does() {
    block_on(async {
        let world = World::start();
        for key in ["a", "b", "c"] {
            assert_eq!(world.put(&format!("/v1/objects/u/_/{key}"), key).await.status(), 201);
        }
        let begun = world.post("/v1/objects/u/_/large?uploads", "").await;
        let upload = begun.json()["upload"].as_str().unwrap().to_owned();
        let part = format!("/v1/objects/u/_/large?upload={upload}");
        let ways = [
            ("read", "GET", "/v1/objects/u/_".to_owned(), 200),
            ("read", "GET", "/v1/objects/u/_/a".to_owned(), 200),
            ("read", "HEAD", "/v1/objects/u/_/a".to_owned(), 200),
            ("write", "POST", "/v1/objects/u/_".to_owned(), 201),
            ("write", "PUT", "/v1/objects/u/_/a".to_owned(), 200),
            ("write", "POST", "/v1/objects/u/_/other?uploads".to_owned(), 201),
            ("write", "PUT", format!("{part}&part=1"), 200),
            ("write", "GET", part.clone(), 200),
            ("write", "POST", part.clone(), 201),
            ("write", "DELETE", format!("{part}x"), 404),
            ("delete", "DELETE", "/v1/objects/u/_/c".to_owned(), 204),
        ];
        for (switched, _) in [("read", 0), ("write", 0), ("delete", 0)] {
            set(&world, json!({KILL: [{"operations": [switched]}]})).await;
            for (access, method, path, _) in ways.iter().filter(|(access, ..)| *access == switched) {
                let answer = ask(world.address, method, path, &[], b"").await;
                assert_eq!(answer.status(), 403, "{access}: {method} {path}");
                if *method != "HEAD" {
                    assert_eq!(refused(&answer), disabled(), "{method} {path}");
                    let document = answer.json();
                    assert_eq!(
                        (&document["retry"], document["detail"].as_str().unwrap().contains("\"u\"")),
                        (&json!("never"), true)
                    );
                }
            }
            let ops = [("get", "a"), ("head", "a"), ("insert", "b"), ("delete", "nothing")];
            let found = batch(&world, "/v1/objects:batch/u/_", &ops).await;
            let wanted: Vec<(u16, String)> = [("read", 200), ("read", 200), ("write", 200), ("delete", 204)]
                .into_iter()
                .map(|(access, status)| if access == switched { disabled() } else { (status, String::new()) })
                .collect();
            assert_eq!(found, wanted, "{switched} is switched off");
        }
        // What another switch is for goes on.
        for (access, method, path, status) in &ways {
            let others: Vec<&str> = ["read", "write", "delete"].into_iter().filter(|other| other != access).collect();
            set(&world, json!({KILL: [{"operations": others}, {"usecase": "v"}, {"scopes": "org=1"}]})).await;
            let answer = ask(world.address, method, path, &[], b"").await;
            assert_eq!(answer.status(), *status, "{access}: {method} {path}");
        }
        set(&world, json!({KILL: []})).await;
        assert_eq!(world.get("/v1/objects/u/_/a").await.status(), 200);
    });
}

#[test]
fn a_switch_is_for_a_usecase_and_scopes_and_all_below_them() {
    block_on(async {
        let world = World::start();
        let places = ["u/_", "u/org=17", "u/org=17;project=4", "u/org=170", "v/org=17"];
        for place in places {
            assert_eq!(world.put(&format!("/v1/objects/{place}/k"), "x").await.status(), 201);
        }
        set(&world, json!({KILL: [{"usecase": "u", "scopes": "org=17"}]})).await;
        let mut found = Vec::new();
        for place in places {
            found.push(world.get(&format!("/v1/objects/{place}/k")).await.status());
        }
        assert_eq!(found, [200, 403, 403, 200, 200]);
        set(&world, json!({KILL: [{"scopes": "_"}]})).await;
        assert_eq!(world.get("/v1/objects/u/_/k").await.status(), 403);
        assert_eq!(world.get("/v1/objects/u/org=17/k").await.status(), 200);
        set(&world, json!({KILL: [{}]})).await;
        assert_eq!(world.get("/v1/objects/v/org=17/k").await.status(), 403, "an empty rule is for everything");
    });
}

#[test]
fn as_many_as_the_burst_are_let_in_however_they_come_and_then_one_after_the_other() {
    block_on(async {
        let (clock, world) = still();
        assert_eq!(world.put("/v1/objects/u/_/k", "x").await.status(), 201);
        set(&world, json!({RATE: [{"usecase": "u", "requests_per_second": 4, "burst": 10, "each": "tenant"}]})).await;
        let asked = (0..40).map(|_| async { world.get("/v1/objects/u/_/k").await });
        let answers = futures::future::join_all(asked).await;
        let (let_in, turned_away): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status() == 200);
        assert_eq!((let_in.len(), turned_away.len()), (10, 30));
        for answer in turned_away {
            assert_eq!(refused(answer), limited());
            assert_eq!(answer.header("retry-after"), Some("1"));
            let document = answer.json();
            let told = ["limit", "unit", "rule", "retry", "retry_after_ms"].map(|field| document[field].clone());
            assert_eq!(
                json!(told),
                json!([4, "requests_per_second", null, "after", 250]),
                "which rule is for the operator"
            );
        }
        clock.advance(Duration::from_millis(249));
        let early = world.get("/v1/objects/u/_/k").await;
        assert_eq!((early.status(), &early.json()["retry_after_ms"]), (429, &json!(1)));
        clock.advance(Duration::from_millis(1));
        assert_eq!(world.get("/v1/objects/u/_/k").await.status(), 200, "it was told to come back now");
        assert_eq!(world.get("/v1/objects/u/_/k").await.status(), 429);
        assert_eq!(world.get("/v1/objects/v/_/k").await.status(), 404, "another usecase is not limited");
        // Every part counts, and fails alone.
        clock.advance(Duration::from_millis(750));
        let parts = batch(&world, "/v1/objects:batch/u/_", &[("head", "k"); 5]).await;
        let let_in = parts.iter().filter(|part| part.0 == 200).count();
        assert_eq!((let_in, parts.iter().filter(|part| **part == limited()).count()), (3, 2), "{parts:?}");
        // What was in the bucket is there after a change of other rules, and not after its own.
        set(&world, json!({RATE: [{"usecase": "v", "requests_per_second": 1}, {"usecase": "u", "requests_per_second": 4, "burst": 10, "each": "tenant"}]})).await;
        assert_eq!(world.get("/v1/objects/u/_/k").await.status(), 429);
        set(&world, json!({RATE: [{"usecase": "u", "requests_per_second": 4, "burst": 1}]})).await;
        assert_eq!(world.get("/v1/objects/u/_/k").await.status(), 200);
        let shared = world.get("/v1/objects/u/_/k").await;
        assert_eq!((shared.status(), &shared.json()["retry_after_ms"]), (429, &json!(1_000)), "others may use it too");
        set(&world, json!({RATE: []})).await;
        assert_eq!(world.get("/v1/objects/u/_/k").await.status(), 200);
    });
}

#[test]
fn what_one_rule_refuses_costs_nothing_in_another() {
    block_on(async {
        let (_clock, world) = still();
        let rules = json!([{"requests_per_second": 1, "burst": 3}, {"scopes": "org=1", "requests_per_second": 1}]);
        set(&world, json!({RATE: rules})).await;
        assert_eq!(world.get("/v1/objects/u/org=1/k").await.status(), 404);
        for _ in 0..5 {
            let answer = world.get("/v1/objects/u/org=1;project=2/k").await;
            assert_eq!((refused(&answer), answer.json().get("rule")), (limited(), None));
        }
        for _ in 0..2 {
            assert_eq!(world.get("/v1/objects/u/_/k").await.status(), 404);
        }
        assert_eq!(refused(&world.get("/v1/objects/u/_/k").await), limited());
    });
}

fn token(subject: &str, tenant: &str, scopes: &[Scope]) -> StaticToken {
    StaticToken {
        sha256: Sha256::digest(subject.as_bytes()).into(),
        subject: Name::new(subject).unwrap(),
        tenant: Name::new(tenant).unwrap(),
        scopes: scopes.iter().copied().collect(),
    }
}

#[test]
fn tenants_neither_share_a_bucket_of_their_own_nor_hear_of_each_other() {
    block_on(async {
        let objects = [Scope::ObjectRead, Scope::ObjectWrite];
        let tokens = vec![
            token("alice", "acme", &objects),
            token("bob", "umbrella", &objects),
            token("root", "operator", &[Scope::Admin]),
        ];
        let auth = AuthConfig::Token(TokenConfig { tokens, ..TokenConfig::default() });
        let clock = ManualClock::new();
        let world = Setup { auth, clock: Arc::new(clock.clone()), ..Setup::default() }.start();
        let as_admin = [("authorization", "Bearer root")];
        let set = async |body: Value| {
            let answer = ask(world.address, "PATCH", "/v1/config", &as_admin, body.to_string().as_bytes()).await;
            assert_eq!(answer.status(), 200);
        };
        for (each, place) in [("tenant", "u/_"), ("usecase", "w/_"), ("scopes", "x/org=1")] {
            set(json!({RATE: [{"requests_per_second": 1, "burst": 2, "each": each}]})).await;
            let path = format!("/v1/objects/{place}/k");
            for who in ["alice", "bob"] {
                for _ in 0..2 {
                    assert_eq!(world.get_as(who, &path).await.status(), 404, "{each} {who}");
                }
                let answer = world.get_as(who, &path).await;
                assert_eq!(refused(&answer), limited(), "{each} {who}");
                assert!(!String::from_utf8(answer.body).unwrap().contains("umbrella"));
            }
            let elsewhere = world.get_as("alice", "/v1/objects/other/org=2/k").await.status();
            assert_eq!(elsewhere, if each == "tenant" { 429 } else { 404 }, "{each}");
        }
        set(json!({RATE: [], KILL: [{"tenant": "umbrella"}]})).await;
        assert_eq!(world.get_as("alice", "/v1/objects/u/_/k").await.status(), 404);
        let answer = world.get_as("bob", "/v1/objects/u/_/k").await;
        assert_eq!(refused(&answer), disabled());
        let whole = ask(world.address, "PATCH", "/v1/config", &[("authorization", "Bearer alice")], b"{}").await;
        assert_eq!(refused(&whole), (403, "scope_missing".to_owned()));
    });
}

#[test]
fn a_change_is_all_or_nothing_and_names_what_is_wrong() {
    block_on(async {
        let world = World::start();
        let good =
            json!({KILL: [{"usecase": "u", "operations": ["write"]}], RATE: [{"requests_per_second": 7, "burst": 7}]});
        set(&world, good.clone()).await;
        let shown = async || {
            let config = world.get("/v1/config").await.json();
            json!([config[KILL], config[RATE], config["stream.max_global"]])
        };
        let before = json!([good[KILL], good[RATE], 256]);
        assert_eq!(shown().await, before);
        for (body, code, field) in [
            (json!({KILL: {}}), "invalid_field", KILL.to_owned()),
            (json!({KILL: null}), "invalid_field", KILL.to_owned()),
            (json!({RATE: [{"requests_per_second": 1}, 5]}), "invalid_field", format!("{RATE}[1]")),
            (json!({RATE: [{"requests_per_second": 1, "key": "k"}]}), "unknown_field", format!("{RATE}[0].key")),
            (json!({RATE: [{"requests_per_second": 0}]}), "out_of_range", format!("{RATE}[0].requests_per_second")),
            (json!({KILL: [{}], RATE: [{}]}), "invalid_field", format!("{RATE}[0]")),
            (json!({"stream.max_global": 3, KILL: [{"usecase": ""}]}), "invalid_field", format!("{KILL}[0].usecase")),
            (json!({KILL: [], RATE: [], "stream.max_global": 0}), "out_of_range", "stream.max_global".to_owned()),
            (json!({KILL: [], "limits.object.nonsense": []}), "unknown_field", "limits.object.nonsense".to_owned()),
            (json!({KILL: vec![json!({}); 257]}), "invalid_field", KILL.to_owned()),
        ] {
            let answer = patch(&world, &body).await;
            assert_eq!(refused(&answer), (400, code.to_owned()), "{body}");
            assert_eq!(answer.json()["field"], field, "{body}");
            assert_eq!(shown().await, before, "{body}");
        }
        let twice = format!("{{\"{KILL}\":[],\"{KILL}\":[]}}");
        let answer = ask(world.address, "PATCH", "/v1/config", &[], twice.as_bytes()).await;
        assert_eq!(refused(&answer), (400, "duplicate_field".to_owned()));
        assert_eq!(shown().await, before);
        assert_eq!(
            *world.policy.rules().rate(),
            [tidegate_batch::policy::RateRule {
                of: Default::default(),
                requests: Some(tidegate_batch::policy::Rate { per_second: 7, burst: 7 }),
                bytes: None,
                each: None,
            }]
        );
        set(&world, json!({KILL: vec![json!({"usecase": "nobody"}); 256]})).await;
        let told: Vec<Value> = world
            .audit
            .records()
            .iter()
            .filter(|record| record.event == "config.changed")
            .map(|record| json!(format!("{:?}", record.fields)))
            .collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].as_str().unwrap().contains("operations"), "{told:?}");
    });
}

const KIB: u64 = 1_024;

#[test]
fn bytes_of_an_answer_pass_at_their_rate_and_hold_nobody_else_up() {
    block_on(async {
        let (clock, world) = still();
        let size = 512 * KIB;
        let bytes = vec![7; usize::try_from(size).unwrap()];
        assert_eq!(world.put("/v1/objects/u/_/k", &bytes).await.status(), 201);
        assert_eq!(world.put("/v1/objects/v/_/k", &bytes).await.status(), 201);
        set(&world, json!({RATE: [{"usecase": "u", "bytes_per_second": 64 * KIB, "burst_bytes": 128 * KIB}]})).await;
        let mut socket = TcpStream::connect(world.address).await.unwrap();
        socket.write_all(&request("GET", "/v1/objects/u/_/k", &[], b"")).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within("the head", socket.read_u8()).await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200"));
        let mut found = 0;
        for seconds in 0..=6 {
            // An object goes out in pieces of 72 KiB, and the last is smaller: those that the bucket has paid for.
            let paid = (128 + 64 * seconds) * KIB;
            let expected = if paid < size { paid / (72 * KIB) * (72 * KIB) } else { size };
            let mut piece = vec![0; usize::try_from(expected - found).unwrap()];
            within("what may pass", socket.read_exact(&mut piece)).await.unwrap();
            found = expected;
            assert!(socket.try_read(&mut [0]).is_err(), "nothing more after {seconds} s");
            if seconds == 0 {
                let other = within("somebody else's answer", world.get("/v1/objects/v/_/k")).await;
                assert_eq!((other.status(), other.body.len()), (200, bytes.len()));
            }
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(found, size);
    });
}

#[test]
fn bytes_of_a_request_pass_at_their_rate_whatever_the_time_out_of_a_body_is() {
    block_on(async {
        let world = World::start();
        let rules = json!([{"bytes_per_second": 16 * KIB, "burst_bytes": 16 * KIB, "each": "usecase"}]);
        set(&world, json!({RATE: rules, "limits.body_timeout_ms": 500})).await;
        let bytes = vec![7; 48 * 1024];
        let began = std::time::Instant::now();
        let put = async {
            let answer = world.put("/v1/objects/u/_/k", &bytes).await;
            assert_eq!(answer.status(), 201);
            began.elapsed()
        };
        let batch = async {
            let head = b"--edge\r\nx-tidegate-op: insert\r\nx-tidegate-key: k\r\n\r\n";
            let body = [head.as_slice(), &bytes, b"\r\n--edge--\r\n"].concat();
            let headers = [("content-type", "multipart/mixed; boundary=edge")];
            let answer = ask(world.address, "POST", "/v1/objects:batch/v/_", &headers, &body).await;
            let text = String::from_utf8(answer.body).unwrap();
            assert!(answer.whole && text.contains("x-tidegate-status: 201"), "{text}");
            began.elapsed()
        };
        let (put, batch) = futures::future::join(put, batch).await;
        for (what, took) in [("put", put), ("batch", batch)] {
            assert!(took >= Duration::from_secs(2), "{what}: 32 KiB beyond the burst at 16 KiB/s took {took:?}");
        }
    });
}

#[test]
fn no_more_bodies_begin_than_can_be_served_in_time_and_a_refused_one_was_no_request() {
    block_on(async {
        let (clock, world) = still();
        assert_eq!(world.put("/v1/objects/u/_/k", vec![7; 64 * 1024]).await.status(), 201);
        let rules = json!([{"bytes_per_second": 16 * KIB, "burst_bytes": 1}, {"requests_per_second": 1, "burst": 3}]);
        set(&world, json!({RATE: rules})).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut connection = Connection::open(world.address).await;
            connection.send(request("GET", "/v1/objects/u/_/k", &[], b"")).await;
            assert_eq!(connection.head().await.unwrap().status, 200);
            held.push(connection);
        }
        for _ in 0..5 {
            let answer = world.get("/v1/objects/u/_/k").await;
            assert_eq!(refused(&answer), limited());
            let document = answer.json();
            assert_eq!((&document["unit"], &document["limit"]), (&json!("bytes_per_second"), &json!(16 * KIB)));
            // 128 KiB are owed, that is 8 s; 5 may be.
            assert_eq!(document["retry_after_ms"], 3_000);
        }
        let head = ask(world.address, "HEAD", "/v1/objects/u/_/k", &[], b"").await;
        assert_eq!(head.status(), 200, "what was refused for its bytes took no request");
        let answer = world.get("/v1/objects/u/_/nothing").await;
        assert_eq!(refused(&answer), limited(), "nothing was looked for before");
        assert_eq!(refused(&world.get("/v1/objects/u/_").await), limited());
        assert_eq!(refused(&world.put("/v1/objects/u/_/other", "x").await), limited());
        // Who goes away pays for what it got: here for nothing.
        drop(held);
        until("the answers to be given up", async || world.in_flight() == 0).await;
        clock.advance(Duration::from_secs(1));
        let mut connection = Connection::open(world.address).await;
        connection.send(request("GET", "/v1/objects/u/_/k", &[], b"")).await;
        assert_eq!(connection.head().await.unwrap().status, 200);
        drop(connection);
        until("the answer to be given up", async || world.in_flight() == 0).await;
        clock.advance(Duration::from_secs(1));
        // And so for a request's body.
        assert_eq!(world.put("/v1/objects/u/_/other", "x").await.status(), 201);
    });
}

#[test]
fn rules_that_change_while_a_body_waits_give_nobody_what_they_were_not_charged() {
    block_on(async {
        let (clock, world) = still();
        assert_eq!(world.put("/v1/objects/u/_/k", vec![7; 64 * 1024]).await.status(), 201);
        set(&world, json!({RATE: [{"bytes_per_second": 16 * KIB, "burst_bytes": 1}]})).await;
        let open = async || {
            let mut connection = Connection::open(world.address).await;
            connection.send(request("GET", "/v1/objects/u/_/k", &[], b"")).await;
            assert_eq!(connection.head().await.unwrap().status, 200);
            connection
        };
        let before = open().await;
        // Another rule begins full, and one body owes it 4 s.
        set(&world, json!({RATE: [{"bytes_per_second": 16 * KIB, "burst_bytes": 2}]})).await;
        let _after = open().await;
        drop(before);
        until("one answer to be given up", async || world.in_flight() == 1).await;
        let _one_more = open().await;
        assert_eq!(refused(&world.get("/v1/objects/u/_/k").await), limited(), "both of its bodies are owed for");
        clock.advance(Duration::from_secs(9));
    });
}
