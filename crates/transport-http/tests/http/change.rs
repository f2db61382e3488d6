//! Change streams themselves: made, described, listed, removed; their names, their owners, who may do what.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tidegate_core::Scope;
use tidegate_core::id::Name;
use tidegate_testkit::block_on;
use tidegate_transport_http::auth::StaticToken;
use tidegate_transport_http::{AuthConfig, TokenConfig};

use super::client::{Answer, ask};
use super::world::{Setup, World};

fn code(answer: &Answer) -> (u16, String) {
    (answer.status(), answer.code())
}

#[test]
fn a_stream_is_made_once_and_described() {
    block_on(async {
        let world = World::start();
        let spec = json!({
            "partitions": 2, "retention": {"records": 10, "age_ms": 1000, "bytes": null},
            "compaction": "key", "late": "drop", "description": "orders",
        })
        .to_string();
        let made = world.put("/v1/streams/orders", &spec).await;
        assert_eq!(made.status(), 201);
        let mut document = made.json();
        assert!(document["created_at"].take().is_string());
        let partition = |n: u32| json!({"partition": n, "earliest": 0, "next": 0, "bytes": 0, "watermark": null});
        assert_eq!(
            document,
            json!({
                "name": "orders", "partitions": [partition(0), partition(1)],
                "retention": {"records": 10, "age_ms": 1000, "bytes": null},
                "compaction": "key", "late": "drop", "description": "orders", "created_at": null,
            })
        );
        assert_eq!(world.put("/v1/streams/orders", &spec).await.status(), 200);
        let other = world.put("/v1/streams/orders", r#"{"partitions":3}"#).await;
        assert_eq!(code(&other), (409, "stream_exists".into()));
        assert!(other.json()["difference"].as_str().unwrap().contains("partitions is 2, not 3"));
        world.post("/v1/streams/orders/records", r#"{"value":1,"partition":1}"#).await;
        let shown = world.get("/v1/streams/orders").await.json();
        assert_eq!((&shown["partitions"][1]["next"], &shown["partitions"][0]["next"]), (&json!(1), &json!(0)));
        assert!(shown["partitions"][1]["bytes"].as_u64().unwrap() > 0);
        assert_eq!(world.delete("/v1/streams/orders").await.status(), 204);
        for answer in [world.delete("/v1/streams/orders").await, world.get("/v1/streams/orders").await] {
            assert_eq!(code(&answer), (404, "stream_not_found".into()));
        }
        // Made again, it has nothing of the one before.
        assert_eq!(world.put("/v1/streams/orders", "").await.status(), 201);
        assert_eq!(world.get("/v1/streams/orders/records").await.lines().len(), 1);
    });
}

#[test]
fn what_a_stream_cannot_be_is_refused_with_the_bound() {
    block_on(async {
        let world = World::start();
        for (body, status, expected) in [
            (r#"{"partitions":0}"#, 400, "too_many_partitions"),
            (r#"{"partitions":1025}"#, 400, "too_many_partitions"),
            (r#"{"partitions":18446744073709551615}"#, 400, "too_many_partitions"),
            (r#"{"partitions":18446744073709551616}"#, 400, "invalid_field"),
            (r#"{"partitions":-1}"#, 400, "invalid_field"),
            (r#"{"partitions":1,"partitions":1}"#, 400, "duplicate_field"),
            (r#"{"retention":{"records":0}}"#, 400, "invalid_field"),
            (r#"{"retention":{"record":1}}"#, 400, "unknown_field"),
            (r#"{"compaction":"yes"}"#, 400, "invalid_field"),
            (r#"{"late":"recompute"}"#, 400, "invalid_field"),
            (r#"{"format":"json"}"#, 400, "unknown_field"),
            ("[1]", 400, "invalid_field"),
            ("{", 400, "malformed_json"),
        ] {
            assert_eq!(code(&world.put("/v1/streams/s", body).await), (status, expected.into()), "{body}");
        }
        let long = json!({"description": "x".repeat(4_097)}).to_string();
        let answer = world.put("/v1/streams/s", long).await;
        assert_eq!(code(&answer), (400, "description_too_long".into()));
        assert_eq!(answer.json()["max_bytes"], 4_096);
        assert_eq!(world.get("/v1/streams/s").await.status(), 404, "nothing was made");
    });
}

#[test]
fn every_legal_name_comes_back_as_it_was_given() {
    block_on(async {
        let world = World::start();
        let longest = "n".repeat(255);
        let names = [
            ("a:b", "a:b"),
            ("a%2Fb", "a/b"),
            ("a%3Ab", "a:b"),
            ("100%25", "100%"),
            ("%F0%9F%8C%8A", "🌊"),
            ("%20%22%5C%3F%23", " \"\\?#"),
            ("a%252Fb", "a%2Fb"),
            (longest.as_str(), longest.as_str()),
        ];
        for (segment, name) in names {
            let path = format!("/v1/streams/{segment}");
            assert_eq!(world.put(&path, "").await.json()["name"], name);
            let value = json!({"value": name}).to_string();
            assert_eq!(world.post(&format!("{path}/records"), value).await.status(), 200, "{name}");
            let read = world.get(&format!("{path}/records")).await.lines();
            assert_eq!(read[0]["record"]["value"], name);
            assert_eq!(world.get(&path).await.json()["name"], name);
        }
        let list = world.get("/v1/streams").await.json();
        let mut listed: Vec<&str> =
            list["streams"].as_array().unwrap().iter().map(|stream| stream["name"].as_str().unwrap()).collect();
        assert!(listed.is_sorted());
        let mut given: Vec<&str> = names.iter().map(|(_, name)| *name).collect();
        given.sort_unstable();
        given.dedup();
        listed.dedup();
        assert_eq!(listed, given);
        for segment in ["n%00", "%0A", "%7F", "%C2%80", "%FF", "%F0%9F", &"n".repeat(256)] {
            for path in [format!("/v1/streams/{segment}"), format!("/v1/streams/{segment}/records")] {
                assert_eq!(code(&world.get(&path).await), (400, "invalid_name".into()), "{path}");
            }
        }
        assert_eq!(code(&world.get("/v1/streams//records").await), (400, "invalid_name".into()), "none is no name");
    });
}

#[test]
fn a_list_has_pages_and_a_prefix() {
    block_on(async {
        let world = World::start();
        for name in ["a", "b", "b%2F1", "b%2F2", "b%2F3", "c"] {
            world.put(&format!("/v1/streams/{name}"), "").await;
        }
        let page = async |query: &str| {
            let document = world.get(&format!("/v1/streams{query}")).await.json();
            let names: Vec<String> = document["streams"]
                .as_array()
                .unwrap_or_else(|| panic!("{document}"))
                .iter()
                .map(|stream| stream["name"].as_str().unwrap().to_owned())
                .collect();
            (names.join(" "), document["next"].clone())
        };
        let none = Value::Null;
        assert_eq!(page("").await, ("a b b/1 b/2 b/3 c".into(), none.clone()));
        assert_eq!(page("?limit=4").await, ("a b b/1 b/2".into(), json!("b/2")));
        assert_eq!(page("?limit=4&after=b%2F2").await, ("b/3 c".into(), none.clone()));
        assert_eq!(page("?prefix=b").await, ("b b/1 b/2 b/3".into(), none.clone()));
        assert_eq!(page("?prefix=b&limit=1").await, ("b".into(), json!("b")));
        assert_eq!(page("?prefix=b&limit=1&after=b").await, ("b/1".into(), json!("b/1")));
        assert_eq!(page("?prefix=b%2F&limit=3").await, ("b/1 b/2 b/3".into(), none.clone()));
        assert_eq!(page("?prefix=b%2F&after=a").await, ("b/1 b/2 b/3".into(), none.clone()));
        assert_eq!(page("?prefix=b&after=c").await, (String::new(), none.clone()));
        assert_eq!(page("?prefix=zz").await, (String::new(), none));
        for query in ["?limit=0", "?limit=1001", "?limit=x"] {
            assert_eq!(code(&world.get(&format!("/v1/streams{query}")).await), (400, "invalid_field".into()));
        }
        assert_eq!(code(&world.get("/v1/streams?after=%00").await), (400, "invalid_name".into()));
        assert_eq!(code(&world.get("/v1/streams?page=2").await), (400, "unknown_field".into()));
    });
}

/// Alice of acme may read and write, rob of acme only read, wendy of acme only write, eve is of another tenant.
fn world_with_tokens() -> World {
    let token = |subject: &str, tenant: &str, scopes: &[Scope]| StaticToken {
        sha256: Sha256::digest(subject.as_bytes()).into(),
        subject: Name::new(subject).unwrap(),
        tenant: Name::new(tenant).unwrap(),
        scopes: scopes.iter().copied().collect(),
    };
    let both = [Scope::StreamRead, Scope::StreamWrite];
    let tokens = vec![
        token("alice", "acme", &both),
        token("rob", "acme", &both[..1]),
        token("wendy", "acme", &both[1..]),
        token("eve", "other", &both),
    ];
    Setup { auth: AuthConfig::Token(TokenConfig { tokens, ..TokenConfig::default() }), ..Setup::default() }.start()
}

async fn as_(world: &World, who: &str, method: &str, path: &str, body: &str) -> Answer {
    ask(world.address, method, path, &[("authorization", &format!("Bearer {who}"))], body.as_bytes()).await
}

#[test]
fn names_of_two_tenants_never_meet() {
    block_on(async {
        let world = world_with_tokens();
        let record = r#"{"value":"secret"}"#;
        assert_eq!(as_(&world, "alice", "PUT", "/v1/streams/s", "").await.status(), 201);
        assert_eq!(as_(&world, "alice", "POST", "/v1/streams/s/records", record).await.status(), 200);
        for (method, path, body) in [
            ("GET", "/v1/streams/s", ""),
            ("DELETE", "/v1/streams/s", ""),
            ("GET", "/v1/streams/s/records", ""),
            ("POST", "/v1/streams/s/records", record),
        ] {
            let foreign = as_(&world, "eve", method, path, body).await;
            let unknown = as_(&world, "eve", method, &path.replace("/streams/s", "/streams/t"), body).await;
            assert_eq!(code(&foreign), (404, "stream_not_found".into()), "{method} {path}");
            assert_eq!(code(&unknown), code(&foreign));
        }
        assert_eq!(as_(&world, "eve", "GET", "/v1/streams", "").await.json()["streams"], json!([]));
        // The same name is free in the other tenant, and is another stream.
        assert_eq!(as_(&world, "eve", "PUT", "/v1/streams/s", "").await.status(), 201);
        assert_eq!(as_(&world, "eve", "GET", "/v1/streams/s/records", "").await.lines().len(), 1);
        assert_eq!(as_(&world, "eve", "DELETE", "/v1/streams/s", "").await.status(), 204);
        assert_eq!(as_(&world, "rob", "GET", "/v1/streams/s/records", "").await.lines().len(), 2);
    });
}

#[test]
fn who_may_only_read_cannot_write_and_the_other_way_round() {
    block_on(async {
        let world = world_with_tokens();
        as_(&world, "alice", "PUT", "/v1/streams/s", "").await;
        let write = [
            ("PUT", "/v1/streams/t"),
            ("DELETE", "/v1/streams/s"),
            ("POST", "/v1/streams/s/records"),
            ("PUT", "/v1/streams/s/groups/g"),
            ("DELETE", "/v1/streams/s/groups/g"),
            ("POST", "/v1/streams/s/groups/g/seek"),
            ("POST", "/v1/ingest/s"),
        ];
        let read = [
            ("GET", "/v1/streams"),
            ("GET", "/v1/streams/s"),
            ("GET", "/v1/streams/s/records"),
            ("GET", "/v1/streams/s/groups"),
            ("GET", "/v1/streams/s/groups/g"),
            ("POST", "/v1/streams/s/groups/g/members"),
            ("POST", "/v1/streams/s/groups/g/members/m/heartbeat"),
            ("DELETE", "/v1/streams/s/groups/g/members/m"),
            ("POST", "/v1/streams/s/groups/g/poll"),
            ("POST", "/v1/streams/s/groups/g/commit"),
            ("POST", "/v1/streams/s/groups/g/ack"),
        ];
        for (routes, may_not, scope) in [(&write[..], "rob", "stream:write"), (&read[..], "wendy", "stream:read")] {
            for (method, path) in routes {
                let refused = as_(&world, may_not, method, path, "{}").await;
                assert_eq!(code(&refused), (403, "scope_missing".into()), "{method} {path}");
                assert_eq!(refused.json()["scope"], scope);
                assert_eq!(ask(world.address, method, path, &[], b"{}").await.code(), "token_missing");
            }
        }
    });
}
