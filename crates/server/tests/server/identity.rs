//! Who asks is what the token says and nothing else; the leases and cursors of others do not exist.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::database::{Database, Kind};
use crate::http::{Answer, ask};
use crate::process::{Server, run, stderr, until};
use crate::stream::{Held, Stream};

const SQL: &str = "select id, name, n from item order by id";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A server with the static tokens `alice-token` and `bob-token` of acme, `admin-token` with the scope admin alone, and one
/// HS256 key.
fn world(rows: u64) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().join("main.db"));
    database.run(&Database::items(Kind::Sqlite, rows));
    let mut toml =
        String::from("[sources.main]\nkind = \"sqlite\"\npath = \"main.db\"\n[auth]\naudience = \"tidegate\"\n");
    for (token, subject, scopes) in [
        ("alice-token", "alice", "[\"query\", \"stream:read\"]"),
        ("bob-token", "bob", "[\"query\"]"),
        ("admin-token", "root", "[\"admin\"]"),
    ] {
        let sha256 = hex::encode(Sha256::digest(token));
        toml.push_str(&format!(
            "[[auth.tokens]]\nsha256 = \"{sha256}\"\nsubject = \"{subject}\"\ntenant = \"acme\"\nscopes = {scopes}\n"
        ));
    }
    toml.push_str(&format!("[[auth.keys]]\nkid = \"k1\"\nalg = \"HS256\"\nsecret = \"{SECRET}\"\n"));
    std::fs::write(folder.path().join("tidegate.toml"), toml).unwrap();
    Server::launch(folder, &["--config", "tidegate.toml"])
}

fn jwt(secret: &str, changes: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut claims = json!({"sub": "carol", "tenant": "acme", "scope": "query", "exp": now + 600, "aud": "tidegate"});
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let header = Header { kid: Some("k1".to_owned()), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn get(server: &Server, path: &str, authorization: &str) -> Answer {
    ask(server.address, "GET", path, &[("authorization", authorization)], "")
}

#[test]
fn a_static_token_and_a_jwt_may_what_their_scopes_say() {
    let server = world(100);
    for token in ["alice-token".to_owned(), jwt(SECRET, &json!({}))] {
        let authorization = bearer(&token);
        let mut held = Held::default();
        let mut stream = Stream::query(server.address, &[("authorization", &authorization)], SQL)
            .unwrap_or_else(|answer| panic!("{answer:?}"));
        stream.complete(&mut held);
        assert_eq!(held.rows, 100);
        assert_eq!(get(&server, "/v1/leases", &authorization).json()["leases"].as_array().unwrap().len(), 1);
        assert_eq!(get(&server, "/v1/config", &authorization).refusal(), (403, "scope_missing".to_owned()));
    }
    let config = get(&server, "/v1/config", &bearer("admin-token"));
    assert_eq!(config.status, 200);
    assert!(!config.text().contains(SECRET), "{}", config.text());
    assert_eq!(get(&server, "/v1/leases", &bearer("admin-token")).refusal(), (403, "scope_missing".to_owned()));
    until("both to be audited", || {
        let audit = server.audit();
        audit.contains("\"subject\":\"alice\"") && audit.contains("\"subject\":\"carol\"")
    });
}

#[test]
fn a_token_that_is_missing_expired_or_forged_is_refused() {
    let server = world(1);
    let other = "f".repeat(32);
    let forged = jwt(&other, &json!({}));
    let good = jwt(SECRET, &json!({}));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let swapped = format!("{}.{signature}", jwt(SECRET, &json!({"sub": "root"})).rsplit_once('.').unwrap().0);
    let unsigned = format!("{signed}.");
    for (authorization, code) in [
        (bearer(&jwt(SECRET, &json!({"exp": 1_000_000_000}))), "token_expired"),
        (bearer(&forged), "token_invalid"),
        (bearer(&swapped), "token_invalid"),
        (bearer(&unsigned), "token_invalid"),
        (bearer(&jwt(SECRET, &json!({"aud": "another"}))), "token_invalid"),
        (bearer("eve-token"), "token_invalid"),
        ("Basic YWxpY2U6".to_owned(), "token_malformed"),
        ("Bearer".to_owned(), "token_malformed"),
    ] {
        let answer = get(&server, "/v1/leases", &authorization);
        assert_eq!(answer.refusal(), (401, code.to_owned()), "{authorization}");
        assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"));
    }
    for (method, path) in [
        ("POST", "/v1/query"),
        ("POST", "/v1/query/resume"),
        ("GET", "/v1/leases"),
        ("GET", "/v1/config"),
        ("GET", "/v1/limits"),
    ] {
        assert_eq!(ask(server.address, method, path, &[], "{}").refusal(), (401, "token_missing".to_owned()), "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        until(&format!("{path} is open"), || server.get(path).status == 200);
    }
    // 8 bad ones and 5 without any.
    until("every refusal to be audited", || server.audit().matches("\"event\":\"auth.refused\"").count() == 13);
    assert!(!server.audit().contains("eve-token"));
}

#[test]
fn a_foreign_cursor_is_not_found_whatever_headers_claim() {
    let server = world(100_000);
    let alice = bearer("alice-token");
    let mut stream =
        Stream::query(server.address, &[("authorization", &alice)], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 10), None);
    let cursor = stream.cursor();
    let others = [
        bearer("bob-token"),
        bearer(&jwt(SECRET, &json!({"sub": "alice", "tenant": "other"}))),
        bearer(&jwt(SECRET, &json!({"sub": "bob", "tenant": "acme"}))),
    ];
    for other in &others {
        let headers = [
            ("authorization", other.as_str()),
            ("x-tenant", "acme"),
            ("x-tidegate-tenant", "acme"),
            ("x-subject", "alice"),
            ("x-tidegate-subject", "alice"),
            ("x-principal", "alice"),
            ("x-forwarded-user", "alice"),
        ];
        let unknown = "ab".repeat(24);
        let answers = [&cursor, &unknown].map(|cursor| {
            let refused = Stream::resume(server.address, &headers, cursor, &held).err().expect("it is not theirs");
            let cancelled = ask(server.address, "DELETE", &format!("/v1/query/{cursor}"), &headers, "");
            assert_eq!(refused.refusal(), (404, "cursor_not_found".to_owned()));
            assert_eq!(cancelled.refusal(), (404, "cursor_not_found".to_owned()));
            (refused.body, cancelled.body)
        });
        assert_eq!(answers[0], answers[1], "a foreign cursor and an unknown one are answered alike");
        assert_eq!(ask(server.address, "GET", "/v1/leases", &headers, "").json(), json!({"leases": []}));
    }
    // The same subject and tenant by another token is the same principal.
    let same = bearer(&jwt(SECRET, &json!({"sub": "alice"})));
    assert_eq!(get(&server, "/v1/leases", &same).json()["leases"].as_array().unwrap().len(), 1);
    stream.complete(&mut held);
    assert_eq!(held.rows, 100_000, "the reader was not touched");
}

#[test]
fn the_quota_of_one_is_not_anothers() {
    let server = world(150_000);
    let patch = json!({"stream.max_per_principal": 1}).to_string();
    let admin = bearer("admin-token");
    assert_eq!(ask(server.address, "PATCH", "/v1/config", &[("authorization", &admin)], patch).status, 200);
    let [alice, bob] = ["alice-token", "bob-token"].map(bearer);
    let open = |who: &str| Stream::query(server.address, &[("authorization", who), ("x-principal", "fresh")], SQL);
    let (first, second) = (open(&alice).ok().unwrap(), open(&bob).ok().unwrap());
    for who in [&alice, &bob] {
        let refused = open(who).err().expect("one stream each");
        assert_eq!(refused.refusal(), (429, "principal_stream_quota_exhausted".to_owned()));
    }
    let url = server.url();
    let refused = run(&["query", "--url", &url, "--token", "alice-token", SQL, "--retries", "0"]);
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
    drop((first, second));
}

#[test]
fn the_command_line_tells_who_may_not_from_what_is_not_there() {
    let server = world(3);
    let url = server.url();
    for (token, more, code) in [
        (Some("alice-token"), &[][..], 0),
        (Some("alice-token"), &["--source", "other"], 3),
        (Some("wrong"), &[], 4),
        (Some("admin-token"), &[], 4),
        (None, &[], 4),
    ] {
        let token: Vec<&str> = token.iter().flat_map(|token| ["--token", token]).collect();
        let output = run(&[&["query", "--url", &url, SQL][..], &token, more].concat());
        assert_eq!(output.status.code(), Some(code), "{token:?} {more:?}: {}", stderr(&output));
    }
}
