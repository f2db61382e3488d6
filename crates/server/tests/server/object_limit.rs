//! Kill switches and rate limits of a running server: from its file, changed under load, exact in real time, and told to its operator.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::ask;
use crate::process::{Server, run_in, stderr, until};

const KILL: &str = "limits.object.kill";
const RATE: &str = "limits.object.rate";

fn put(server: &Server, path: &str, bytes: impl AsRef<[u8]>) -> u16 {
    ask(server.address, "PUT", path, &[], bytes).status
}

#[test]
fn what_the_file_says_is_in_force_from_the_first_request_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let toml = r#"
[limits.object]
kill = [{ usecase = "old", operations = ["write"] }]
[[limits.object.rate]]
usecase = "new"
requests_per_second = 1
burst = 2
each = "scopes"
"#;
    std::fs::write(folder.path().join("tidegate.toml"), toml).unwrap();
    let server = Server::launch(folder, &["--config", "tidegate.toml"]);
    assert_eq!(
        ask(server.address, "PUT", "/v1/objects/old/_/k", &[], "x").refusal(),
        (403, "operation_disabled".into())
    );
    assert_eq!(server.get("/v1/objects/old/_/k").status, 404);
    let config = server.get("/v1/config").json();
    assert_eq!(config[KILL], json!([{"usecase": "old", "operations": ["write"]}]));
    assert_eq!(config[RATE], json!([{"usecase": "new", "requests_per_second": 1, "burst": 2, "each": "scopes"}]));
    let limits = server.get("/v1/limits").json();
    let named = |name: &str| limits["built_in"].as_array().unwrap().iter().any(|limit| limit["name"] == name);
    assert!(named("object_rate_bucket_max_count") && named("object_rule_max_count"), "{limits}");
    // What is shown can be sent back, and changes nothing.
    let audit = server.audit().lines().count();
    server.set(&json!({KILL: config[KILL], RATE: config[RATE]}));
    assert_eq!(server.audit().lines().count(), audit);
}

#[test]
fn a_file_with_a_wrong_rule_is_refused_with_its_line_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let toml = "[limits.object]\nkill = [\n  { usecase = \"u\" },\n  { use_case = \"u\" },\n]\n\
                [[limits.object.rate]]\nrequests_per_second = 99999999999999999999\n\
                [[limits.object.rate]]\nbytes_per_second = 1\n";
    std::fs::write(folder.path().join("tidegate.toml"), toml).unwrap();
    let checked = run_in(folder.path(), &["config", "check", "tidegate.toml"]);
    let text = [stderr(&checked), crate::process::stdout(&checked)].concat();
    assert!(!checked.status.success(), "{text}");
    for wanted in [
        "4:",
        "limits.object.kill[1].use_case",
        "limits.object.rate[0].requests_per_second",
        "limits.object.rate[1].bytes_per_second",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

#[test]
fn a_switch_that_is_thrown_under_load_counts_for_every_request_after_its_answer() {
    let server = Server::start(1, &[]);
    for usecase in ["files", "mail"] {
        assert_eq!(put(&server, &format!("/v1/objects/{usecase}/org=1/k"), "content"), 201);
    }
    let (thrown, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let (before, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let after = thrown.load(Ordering::SeqCst);
                    let status = server.get("/v1/objects/files/org=1/k").status;
                    if after {
                        assert_eq!(status, 403, "the change was answered before this was sent");
                        refused.fetch_add(1, Ordering::SeqCst);
                    } else {
                        assert!([200, 403].contains(&status), "{status}");
                        before.fetch_add(1, Ordering::SeqCst);
                    }
                    assert_eq!(server.get("/v1/objects/mail/org=1/k").status, 200, "nobody else is hit");
                }
            });
        }
        until("load", || before.load(Ordering::SeqCst) > 50);
        server.set(&json!({KILL: [{"usecase": "files", "scopes": "org=1", "operations": ["read"]}]}));
        thrown.store(true, Ordering::SeqCst);
        until("refusals", || refused.load(Ordering::SeqCst) > 50);
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(put(&server, "/v1/objects/files/org=1/k", "writing goes on"), 200);
    server.set(&json!({KILL: []}));
    assert_eq!(server.get("/v1/objects/files/org=1/k").status, 200);
    assert!(server.metric("tidegate_object_refused_total", "disabled") > 50.0);
    let line = |record: &&str| record.contains("config.changed") && record.contains(KILL);
    until("both changes to be audited", || server.audit().lines().filter(line).count() == 2);
    let audit = server.audit();
    let first: Value = serde_json::from_str(audit.lines().find(line).unwrap()).unwrap();
    assert_eq!((&first["from_rules"], &first["to_rules"]), (&json!(0), &json!(1)));
    assert!(first["rules"].as_str().unwrap().contains("files"), "{first}");
}

#[test]
fn no_more_are_let_in_than_the_burst_and_its_rate_and_who_waits_as_told_comes_in() {
    let server = Server::start(1, &[]);
    assert_eq!(put(&server, "/v1/objects/u/_/k", "x"), 201);
    server.set(&json!({RATE: [{"usecase": "u", "requests_per_second": 1, "burst": 10}]}));
    let let_in = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..8 {
                    match server.get("/v1/objects/u/_/k").status {
                        200 => drop(let_in.fetch_add(1, Ordering::SeqCst)),
                        status => assert_eq!(status, 429),
                    }
                }
            });
        }
    });
    let let_in = let_in.into_inner();
    let most = 10 + began.elapsed().as_secs() + 1;
    assert!((10..=most).contains(&let_in), "{let_in} of 64, at most {most}");
    let refused = loop {
        let answer = server.get("/v1/objects/u/_/k");
        if answer.status == 429 {
            break answer;
        }
    };
    let told = Instant::now();
    assert_eq!(refused.refusal(), (429, "rate_limited".to_owned()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let ms = refused.json()["retry_after_ms"].as_u64().unwrap();
    assert!((1..=1_000).contains(&ms), "{ms}");
    until("the time that was told", || told.elapsed() >= Duration::from_millis(ms));
    assert_eq!(server.get("/v1/objects/u/_/k").status, 200);
    assert!(server.metric("tidegate_object_refused_total", "requests") > 50.0);
}

#[test]
fn a_download_takes_as_long_as_its_rate_says_and_is_whole() {
    let server = Server::start(1, &[]);
    // Beyond the hot tier: it is streamed from the disk.
    let bytes: Vec<u8> = (0..3_u32 << 20).map(|at| u8::try_from(at % 251).unwrap()).collect();
    assert_eq!(put(&server, "/v1/objects/u/_/large", &bytes), 201);
    server.set(&json!({RATE: [{"usecase": "u", "bytes_per_second": 1 << 20, "burst_bytes": 1 << 20}]}));
    let began = Instant::now();
    let answer = server.get("/v1/objects/u/_/large");
    assert!(began.elapsed() >= Duration::from_secs(2), "2 MiB beyond the burst in {:?}", began.elapsed());
    assert!(answer.status == 200 && answer.whole && answer.body == bytes);
    // Taken off, the next is not held back.
    server.set(&json!({RATE: []}));
    assert_eq!(server.get("/v1/objects/u/_/large").body.len(), bytes.len());
}
