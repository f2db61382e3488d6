//! Objects: written, read, listed and removed; their names, their metadata, what is refused, and what is left of what broke off.

mod cold_fault;
mod condition;
mod signed;
mod upload;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tidegate_batch::ObjectSpec;
use tidegate_core::id::Name;
use tidegate_core::{Scope, Timestamp};
use tidegate_testkit::wait::until;
use tidegate_testkit::{ManualClock, block_on};
use tidegate_transport_http::auth::StaticToken;
use tidegate_transport_http::{AuthConfig, TokenConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::{Answer, Connection, ask, request};
use super::world::{Setup, World};

const MIB: usize = 1024 * 1024;

/// Bytes that differ from place to place.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at / 7 + at / 1_000_003) % 251).unwrap()).collect()
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(bytes)))
}

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status(), answer.code())
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

async fn nothing_is_left(world: &World) {
    until("what broke off to be cleared away", async || files(world.cold()).is_empty()).await;
}

#[test]
fn an_object_is_created_replaced_read_and_removed() {
    block_on(async {
        let world = World::start();
        let path = "/v1/objects/files/org=17;project=42/a.txt";
        let created = world.put(path, "one").await;
        assert_eq!(created.status(), 201);
        let replaced = world.put(path, "two!").await;
        assert_eq!(replaced.status(), 200);
        assert_ne!(created.header("etag"), replaced.header("etag"));
        let document = replaced.json();
        assert_eq!(
            (&document["key"], &document["length"], &document["tier"], &document["expires"]),
            (&json!("a.txt"), &json!(4), &json!("hot"), &Value::Null)
        );
        assert_eq!(document["etag"].as_str(), replaced.header("etag"));
        let got = world.get(path).await;
        assert_eq!((got.status(), got.body.as_slice(), got.whole), (200, b"two!".as_slice(), true));
        assert_eq!(got.header("etag"), replaced.header("etag"));
        assert_eq!(got.header("x-tidegate-created"), document["created"].as_str());
        assert_eq!(got.header("content-type"), Some("application/octet-stream"));
        assert_eq!((got.header("accept-ranges"), got.header("x-tidegate-tier")), (Some("bytes"), Some("hot")));
        let head = ask(world.address, "HEAD", path, &[], b"").await;
        assert_eq!(
            (head.status(), head.header("content-length"), head.header("etag")),
            (200, Some("4"), got.header("etag"))
        );
        // Another collection is another world.
        assert_eq!(world.get("/v1/objects/files/project=42;org=17/a.txt").await.status(), 404);
        assert_eq!(world.get("/v1/objects/other/org=17;project=42/a.txt").await.status(), 404);
        assert_eq!(world.delete(path).await.status(), 204);
        assert_eq!(world.delete(path).await.status(), 204, "what is missing is removed");
        assert_eq!(refused(&world.get(path).await), (404, "object_not_found".into()));
        assert_eq!(ask(world.address, "HEAD", path, &[], b"").await.status(), 404);
    });
}

#[test]
fn a_key_that_the_server_makes_is_found_where_it_says() {
    block_on(async {
        let world = World::start();
        let first = world.post("/v1/objects/files/_", "x").await;
        let second = world.post("/v1/objects/files/_", "y").await;
        assert_eq!((first.status(), second.status()), (201, 201));
        let location = first.header("location").unwrap().to_owned();
        assert_eq!(location, format!("/v1/objects/files/_/{}", first.json()["key"].as_str().unwrap()));
        assert_ne!(Some(location.as_str()), second.header("location"));
        assert_eq!(world.get(&location).await.body, b"x");
    });
}

#[test]
fn a_large_object_goes_through_whole_and_lies_in_the_cold_tier() {
    block_on(async {
        let world = World::start();
        let content = bytes(5 * MIB + 12_345);
        let path = "/v1/objects/files/_/large";
        let put = ask(world.address, "PUT", path, &[("content-digest", &digest_of(&content))], &content).await;
        assert_eq!((put.status(), put.json()["tier"].as_str()), (201, Some("cold")));
        let got = world.get(path).await;
        assert!(got.whole && got.body == content);
        assert_eq!(files(world.cold()).len(), 1);
        let part = ask(world.address, "GET", path, &[("range", "bytes=3145000-3146000")], b"").await;
        assert_eq!(part.status(), 206);
        assert_eq!(part.body, content[3_145_000..=3_146_000]);
    });
}

#[test]
fn a_key_may_have_every_character_that_is_no_control() {
    block_on(async {
        let world = World::start();
        let keys = [
            ("a//b", "a//b"),
            ("a/b", "a/b"),
            ("a%2Fc", "a/c"),
            ("..", ".."),
            ("%2e%2e/%2e", "../."),
            ("../../etc/passwd", "../../etc/passwd"),
            ("/etc/passwd", "/etc/passwd"),
            ("a/", "a/"),
            ("what%3Fnow=1%26x", "what?now=1&x"),
            ("a%23b", "a#b"),
            ("a+b", "a+b"),
            ("a%20b%25", "a b%"),
            ("%F0%9F%8C%8A", "🌊"),
            ("x;y=z:@!$'()*,", "x;y=z:@!$'()*,"),
            ("%EF%BB%BF", "\u{feff}"),
        ];
        for (sent, key) in keys {
            let path = format!("/v1/objects/odd/_/{sent}");
            let put = world.put(&path, key).await;
            assert_eq!(put.status(), 201, "{sent}");
            assert_eq!(put.json()["key"], key, "{sent}");
            assert_eq!(world.get(&path).await.body, key.as_bytes(), "{sent}");
        }
        let listed = world.get("/v1/objects/odd/_").await.json();
        let mut expected: Vec<&str> = keys.iter().map(|(_, key)| *key).collect();
        expected.sort_unstable();
        let found: Vec<&str> =
            listed["objects"].as_array().unwrap().iter().map(|o| o["key"].as_str().unwrap()).collect();
        assert_eq!(found, expected);
        // The usecase and the scopes may be encoded too, and mean the same.
        assert_eq!(world.get("/v1/objects/o%64d/%5F/a%2Fb").await.body, b"a/b");
        let longest = "x".repeat(1_024);
        assert_eq!(world.put(&format!("/v1/objects/odd/_/{longest}"), "").await.status(), 201);
        let long = world.put(&format!("/v1/objects/odd/_/{longest}x"), "").await;
        assert_eq!((refused(&long), &long.json()["max_bytes"]), ((400, "invalid_name".into()), &json!(1_024)));
    });
}

#[test]
fn what_names_no_object_is_refused() {
    block_on(async {
        let world = World::start();
        for path in [
            "u/_/%ff",
            "u/_/a%00b",
            "u/_/a%0Ab",
            "u/_/%C2%85",
            "u/_/%zz",
            "u/_/%",
            "u/org/k",
            "u/a=1;a=2/k",
            "u/a=/k",
            "%00/_/k",
        ] {
            for method in ["PUT", "GET", "DELETE"] {
                let answer = ask(world.address, method, &format!("/v1/objects/{path}"), &[], b"").await;
                assert_eq!(refused(&answer), (400, "invalid_name".into()), "{method} {path}");
            }
        }
        for path in ["/v1/objects", "/v1/objects/u", "/v1/objects/u/_/"] {
            assert_eq!(world.get(path).await.status(), 404, "{path}");
        }
        let wrong = ask(world.address, "PATCH", "/v1/objects/u/_/k", &[], b"").await;
        assert_eq!(
            (refused(&wrong), wrong.header("allow")),
            ((405, "method_not_allowed".into()), Some("GET, HEAD, PUT, POST, DELETE, OPTIONS"))
        );
        for (method, path) in [
            ("GET", "k?form=1"),
            ("PUT", "k?uploads"),
            ("DELETE", "k?part=1"),
            ("GET", "?prefiks=a"),
            ("POST", "?uploads"),
        ] {
            let path = if let Some(query) = path.strip_prefix('?') { format!("?{query}") } else { format!("/{path}") };
            let answer = ask(world.address, method, &format!("/v1/objects/u/_{path}"), &[], b"").await;
            assert_eq!(refused(&answer), (400, "unknown_field".into()), "{method} {path}");
        }
        for (method, query) in [
            ("PUT", "upload=x"),
            ("PUT", "part=1"),
            ("POST", ""),
            ("POST", "uploads=1"),
            ("POST", "uploads&upload=x"),
            ("GET", "key_id=k"),
            ("GET", "upload=x&expires=1"),
        ] {
            let answer = ask(world.address, method, &format!("/v1/objects/u/_/k?{query}"), &[], b"").await;
            assert_eq!(refused(&answer), (400, "invalid_field".into()), "{method} {query}");
        }
    });
}

#[test]
fn what_a_writer_says_of_an_object_comes_back_as_it_was() {
    block_on(async {
        let world = World::start();
        let path = "/v1/objects/files/_/m";
        let headers = [
            ("content-type", "text/html; charset=utf-8"),
            ("content-encoding", "zstd"),
            ("x-tidegate-expires", "tti:1h"),
            ("X-Tidegate-Meta-Owner", "Jürgen 🌊"),
            ("x-tidegate-meta-a.b", ""),
        ];
        let stored = ask(world.address, "PUT", path, &headers, b"not really zstd").await;
        assert_eq!(stored.status(), 201);
        for method in ["GET", "HEAD"] {
            let got = ask(world.address, method, path, &[], b"").await;
            assert_eq!(got.header("content-type"), Some("text/html; charset=utf-8"));
            assert_eq!(got.header("content-encoding"), Some("zstd"), "it describes what is stored");
            assert_eq!(got.header("x-tidegate-expires"), Some("tti:3600s"));
            assert_eq!(got.header("x-tidegate-meta-owner"), Some("Jürgen 🌊"));
            assert_eq!(got.header("x-tidegate-meta-a.b"), Some(""));
            let moment = |name: &str| Timestamp::parse(got.header(name).unwrap()).unwrap().unix_ms();
            assert_eq!(moment("x-tidegate-expires-at") - moment("x-tidegate-created"), 3_600_000);
        }
        for (name, value, code, status) in [
            ("x-tidegate-expires", "soon", "invalid_field", 400),
            ("x-tidegate-expires", "ttl:0s", "invalid_field", 400),
            ("x-tidegate-expire", "ttl:1s", "unknown_field", 400),
            ("x-tidegate-meta-", "x", "unknown_field", 400),
            ("x-tidegate-meta-big", &"x".repeat(8 * 1_024), "metadata_too_large", 413),
        ] {
            let answer = ask(world.address, "PUT", path, &[(name, value)], b"x").await;
            assert_eq!(refused(&answer), (status, code.into()), "{name}: {value:.20}");
        }
        let twice = [("x-tidegate-meta-a", "1"), ("x-tidegate-meta-a", "2")];
        assert_eq!(refused(&ask(world.address, "PUT", path, &twice, b"x").await), (400, "duplicate_field".into()));
        assert_eq!(world.get(path).await.body, b"not really zstd", "what was refused changed nothing");
    });
}

#[test]
fn bytes_that_are_not_those_that_were_announced_are_not_stored() {
    block_on(async {
        let world = World::start();
        for (key, length) in [("small", 10), ("large", 2 * MIB)] {
            let content = bytes(length);
            let path = format!("/v1/objects/files/_/{key}");
            let put =
                async |digest: &str| ask(world.address, "PUT", &path, &[("content-digest", digest)], &content).await;
            assert_eq!(refused(&put(&digest_of(b"other")).await), (422, "checksum_mismatch".into()));
            for malformed in ["sha-256", "sha-256=:AAAA:", "sha-512=:AAAA:"] {
                assert_eq!(refused(&put(malformed).await), (400, "invalid_field".into()), "{malformed}");
            }
            assert_eq!(world.get(&path).await.status(), 404);
            nothing_is_left(&world).await;
            assert_eq!(put(&digest_of(&content)).await.status(), 201);
            world.delete(&path).await;
        }
    });
}

#[test]
fn a_body_that_breaks_off_stores_nothing() {
    block_on(async {
        let world = World::start();
        for (announced, sent) in [(100, 10), (8 * MIB, 3 * MIB)] {
            let mut connection = Connection::open(world.address).await;
            let mut whole = request("PUT", "/v1/objects/files/_/cut", &[], &bytes(announced));
            whole.truncate(whole.len() - announced + sent);
            connection.send(whole).await;
            connection.stream.shutdown().await.unwrap();
            if let Some(answer) = connection.answer().await {
                assert_eq!(refused(&answer), (400, "body_incomplete".into()));
            }
            until("the write to be over", async || world.in_flight() == 0).await;
            assert_eq!(world.get("/v1/objects/files/_/cut").await.status(), 404);
            nothing_is_left(&world).await;
        }
    });
}

#[test]
fn a_body_that_stops_coming_is_given_up() {
    block_on(async {
        let world = Setup { settings: vec![("limits.body_timeout_ms", 100)], ..Setup::default() }.start();
        let mut connection = Connection::open(world.address).await;
        let mut whole = request("PUT", "/v1/objects/files/_/slow", &[], &bytes(100));
        whole.truncate(whole.len() - 50);
        connection.send(whole).await;
        let answer = connection.answer().await.unwrap();
        assert_eq!((refused(&answer), &answer.json()["timeout_ms"]), ((408, "body_timeout".into()), &json!(100)));
        assert_eq!(answer.header("connection"), Some("close"));
    });
}

#[test]
fn an_object_beyond_the_bound_is_refused_before_its_first_byte_where_its_length_is_told() {
    block_on(async {
        let mut objects = ObjectSpec::default();
        (objects.hot_max_bytes, objects.object_max_bytes) = (10, 1_000);
        let world = Setup { objects, ..Setup::default() }.start();
        let path = "/v1/objects/files/_/big";
        let mut connection = Connection::open(world.address).await;
        let mut head = request("PUT", path, &[("expect", "100-continue")], &bytes(1_001));
        head.truncate(head.len() - 1_001);
        connection.send(head).await;
        let answer = connection.answer().await.unwrap();
        assert_eq!((refused(&answer), &answer.json()["max_bytes"]), ((413, "object_too_large".into()), &json!(1_000)));
        let chunked = format!(
            "PUT {path} HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n{}\r\n0\r\n\r\n",
            "x".repeat(1_001)
        );
        let mut connection = Connection::open(world.address).await;
        connection.send(chunked).await;
        assert_eq!(refused(&connection.answer().await.unwrap()), (413, "object_too_large".into()));
        assert_eq!(world.get(path).await.status(), 404);
        nothing_is_left(&world).await;
        assert_eq!(world.put(path, bytes(1_000)).await.status(), 201);
    });
}

#[test]
fn a_condition_without_any_tag_is_refused_rather_than_lost() {
    block_on(async {
        let world = World::start();
        let path = "/v1/objects/files/_/k";
        assert_eq!(world.put(path, "x").await.status(), 201);
        for name in ["if-match", "if-none-match"] {
            for value in ["", ","] {
                let answer = ask(world.address, "PUT", path, &[(name, value)], b"y").await;
                assert_eq!(refused(&answer), (400, "invalid_field".into()), "{name}: {value:?}");
                assert_eq!(answer.json()["field"], name);
            }
        }
        assert_eq!(world.get(path).await.body, b"x");
    });
}

#[test]
fn an_expired_object_is_absent_for_everybody_at_once() {
    block_on(async {
        let clock = ManualClock::new();
        let world = Setup { clock: Arc::new(clock.clone()), ..Setup::default() }.start();
        let path = "/v1/objects/files/_/brief";
        let put = ask(world.address, "PUT", path, &[("x-tidegate-expires", "ttl:30s")], b"x").await;
        assert_eq!(put.status(), 201);
        clock.advance(Duration::from_millis(29_999));
        assert_eq!(world.get(path).await.status(), 200);
        assert_eq!(world.get("/v1/objects/files/_").await.json()["objects"][0]["expires"], put.json()["expires"]);
        clock.advance(Duration::from_millis(1));
        assert_eq!(refused(&world.get(path).await), (404, "object_not_found".into()));
        assert_eq!(ask(world.address, "HEAD", path, &[], b"").await.status(), 404);
        assert_eq!(world.get("/v1/objects/files/_").await.json(), json!({"objects": [], "next": null}));
        assert_eq!(world.put(path, "y").await.status(), 201, "there was nothing to replace");
    });
}

#[test]
fn a_listing_gives_each_object_once_in_the_order_of_keys() {
    block_on(async {
        let world = World::start();
        for key in ["b/1", "a", "b/3", "c", "b/2"] {
            world.put(&format!("/v1/objects/files/_/{key}"), key).await;
        }
        world.put("/v1/objects/files/x=1/b/0", "elsewhere").await;
        let page = async |query: &str| {
            let page = world.get(&format!("/v1/objects/files/_?{query}")).await.json();
            let keys = page["objects"].as_array().unwrap().iter().map(|object| object["key"].as_str().unwrap());
            (keys.collect::<Vec<_>>().join(" "), page["next"].as_str().map(str::to_owned))
        };
        assert_eq!(page("").await, ("a b/1 b/2 b/3 c".into(), None));
        assert_eq!(page("prefix=b%2F&limit=2").await, ("b/1 b/2".into(), Some("b/2".into())));
        assert_eq!(page("after=&limit=1000").await, page("limit=1000").await, "after nothing is the beginning");
        assert_eq!(page("prefix=b/&limit=2&after=b/2").await, ("b/3".into(), None));
        assert_eq!(page("after=b/2&limit=1000").await, ("b/3 c".into(), None));
        assert_eq!(page("prefix=nothing").await, (String::new(), None));
        for bad in ["limit=0", "limit=1001", "limit=x"] {
            assert_eq!(refused(&world.get(&format!("/v1/objects/files/_?{bad}")).await), (400, "invalid_field".into()));
        }
        assert_eq!(refused(&world.get("/v1/objects/files/_?after=%00").await), (400, "invalid_name".into()));
    });
}

#[test]
fn every_method_needs_its_scope_and_tenants_never_meet() {
    block_on(async {
        let token = |name: &str, tenant: &str, scopes: &[Scope]| StaticToken {
            sha256: Sha256::digest(name.as_bytes()).into(),
            subject: Name::new("someone").unwrap(),
            tenant: Name::new(tenant).unwrap(),
            scopes: scopes.iter().copied().collect(),
        };
        let all = [Scope::ObjectRead, Scope::ObjectWrite, Scope::ObjectDelete];
        let tokens = vec![
            token("all", "acme", &all),
            token("foreign", "evil", &all),
            token("read", "acme", &all[..1]),
            token("write", "acme", &all[1..2]),
            token("delete", "acme", &all[2..]),
        ];
        let auth = AuthConfig::Token(TokenConfig { tokens, ..TokenConfig::default() });
        let world = Setup { auth, ..Setup::default() }.start();
        let path = "/v1/objects/files/_/secret";
        let status = async |who: &str, method: &str, path: &str| {
            ask(world.address, method, path, &[("authorization", &format!("Bearer {who}"))], b"").await.status()
        };
        assert_eq!(status("all", "PUT", path).await, 201);
        let upload = format!("{path}?upload={}", "0".repeat(64));
        for (method, path, scope) in [
            ("GET", path, "read"),
            ("HEAD", path, "read"),
            ("GET", "/v1/objects/files/_", "read"),
            ("PUT", path, "write"),
            ("POST", "/v1/objects/files/_", "write"),
            ("POST", &format!("{path}?uploads"), "write"),
            ("GET", &upload, "write"),
            ("DELETE", &upload, "write"),
            ("DELETE", path, "delete"),
        ] {
            for who in ["read", "write", "delete"] {
                let expected = who == scope;
                assert_eq!(status(who, method, path).await != 403, expected, "{who}: {method} {path}");
            }
        }
        assert_eq!(ask(world.address, "GET", path, &[], b"").await.status(), 401);
        assert_eq!(status("all", "PUT", path).await, 201);
        assert_eq!(status("foreign", "GET", path).await, 404);
        assert_eq!(status("foreign", "DELETE", path).await, 204);
        assert_eq!(status("all", "GET", path).await, 200);
    });
}

#[test]
fn a_damaged_object_breaks_the_connection_rather_than_ending_as_if_whole() {
    block_on(async {
        let world = World::start();
        let content = bytes(4 * MIB);
        world.put("/v1/objects/files/_/d", &content).await;
        let [file] = files(world.cold()).try_into().unwrap();
        let mut damaged = std::fs::read(&file).unwrap();
        damaged[3 * MIB + 1_000] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        let got = world.get("/v1/objects/files/_/d").await;
        assert!(!got.whole, "a part must not be taken for the whole");
        assert!(got.body.is_empty() || got.body == content[..got.body.len()], "no damaged byte is given");
        // Gone altogether: nothing was answered yet, so it is an error.
        std::fs::remove_file(&file).unwrap();
        assert_eq!(refused(&world.get("/v1/objects/files/_/d").await), (500, "storage_corrupt".into()));
    });
}

#[test]
fn http_2_carries_objects_both_ways_and_resets_one_that_breaks_off() {
    block_on(async {
        let world = World::start();
        super::tls::install_provider();
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let url = format!("http://{}/v1/objects/files/_/h2", world.address);
        let content = bytes(4 * MIB);
        let put = client.put(&url).body(content.clone()).send().await.unwrap();
        assert_eq!(put.status(), 201);
        let got = client.get(&url).send().await.unwrap();
        assert_eq!(got.content_length(), Some(4 << 20));
        assert!(got.bytes().await.unwrap() == content);
        let [file] = files(world.cold()).try_into().unwrap();
        let mut damaged = std::fs::read(&file).unwrap();
        damaged[3 * MIB + 1_000] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        let got = client.get(&url).send().await.unwrap();
        assert!(got.bytes().await.is_err(), "a part must not be taken for the whole");
        assert_eq!(client.head(&url).send().await.unwrap().status(), 200, "the connection goes on");
    });
}

#[test]
fn a_reader_that_takes_nothing_is_let_go_of() {
    block_on(async {
        let world = Setup { settings: vec![("stream.idle_timeout_ms", 100)], ..Setup::default() }.start();
        world.put("/v1/objects/files/_/l", bytes(16 * MIB)).await;
        let mut connection = Connection::open(world.address).await;
        connection.send(request("GET", "/v1/objects/files/_/l", &[], b"")).await;
        assert_eq!(connection.head().await.unwrap().status, 200);
        until("the reader to be let go of", async || world.in_flight() == 0).await;
        let mut left = Vec::new();
        let _ = connection.stream.read_to_end(&mut left).await;
        assert!(left.len() < 15 * MIB, "it was not sent to a client that took none");
    });
}

#[test]
fn the_server_is_not_ready_while_it_recovers() {
    block_on(async {
        let world = World::start();
        world.recovering.store(true, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(refused(&world.get("/readyz").await), (503, "recovering".into()));
        world.recovering.store(false, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(world.get("/readyz").await.status(), 200);
    });
}

#[test]
fn what_was_to_be_unmodified_and_is_not_there_is_a_precondition_that_failed() {
    block_on(async {
        let world = World::start();
        let since = ("if-unmodified-since", "Sat, 21 Nov 2026 10:00:00 GMT");
        for (method, path) in [("PUT", "/v1/objects/files/_/gone"), ("DELETE", "/v1/objects/files/_/gone")] {
            let answer = ask(world.address, method, path, &[since], b"x").await;
            assert_eq!(refused(&answer), (412, "precondition_failed".into()), "{method}");
        }
        assert_eq!(world.get("/v1/objects/files/_/gone").await.status(), 404, "nothing was written");
        nothing_is_left(&world).await;
    });
}
