//! What an operator sees: health, version, limits, metrics, audit, configuration without secrets; and compressed streams.

use std::io::Read as _;

use serde_json::{Value, json};

use crate::database::{Database, Kind};
use crate::http::{Answer, ask};
use crate::process::{Server, until};
use crate::stream::{Held, Stream, rows};

const SQL: &str = "select id, name, n from item where name <> 'not-for-the-audit' order by id";

fn world(rows: u64, arguments: &[&str]) -> Server {
    Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, rows), arguments).unwrap().1
}

fn audit(server: &Server) -> Vec<Value> {
    // The last line may be half written.
    let text = server.audit();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_audit_trail_says_who_opened_what_and_how_it_ended_and_no_secret() {
    let server = world(100_000, &[]);
    let mut complete = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    complete.complete(&mut Held::default());
    let mut cancelled = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    assert_eq!(ask(server.address, "DELETE", &format!("/v1/query/{}", cancelled.cursor()), &[], "").status, 204);
    cancelled.rest(&mut Held::default());
    let mut gone = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(gone.take(&mut held, 10), None);
    let gone_cursor = gone.cursor();
    gone.connection.cut();
    let closed = |reason: &str| {
        let records = audit(&server);
        records.into_iter().filter(|record| record["event"] == "stream.closed" && record["reason"] == reason).count()
    };
    until("the cut to be audited", || closed("reader_gone") == 1);
    let mut fenced =
        Stream::resume(server.address, &[], &gone_cursor, &held).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut resumed =
        Stream::resume(server.address, &[], &gone_cursor, &held).unwrap_or_else(|answer| panic!("{answer:?}"));
    assert_eq!(fenced.rest(&mut held.clone()).code(), "cursor_taken_over");
    resumed.complete(&mut held);
    let mut failed =
        Stream::query(server.address, &[], "select abs(-9223372036854775807 - (n = 50)) from item").ok().unwrap();
    assert_eq!(failed.rest(&mut Held::default()).status(), "failed");
    until("all ends to be audited", || {
        closed("complete") == 2 && closed("cancelled") == 1 && closed("taken_over") == 1 && closed("failed") == 1
    });
    let records = audit(&server);
    let of = |event: &str| records.iter().filter(|record| record["event"] == event).collect::<Vec<_>>();
    let opened = of("stream.opened");
    assert_eq!(opened.len(), 6);
    for record in &opened {
        assert_eq!((&record["tenant"], &record["subject"]), (&json!("default"), &json!("anonymous")));
        assert_eq!(record["query_hash"].as_str().unwrap().len(), 64);
        let at = record["at"].as_str().unwrap();
        assert!(at.len() == 24 && at.ends_with('Z') && &at[10..11] == "T", "{at}");
    }
    assert_eq!(opened[0]["query_hash"], hex::encode(<sha2::Sha256 as sha2::Digest>::digest(SQL)));
    assert_eq!(opened[3]["from_row"], 10, "a resume says from where");
    assert_eq!(of("lease.fenced").len(), 1);
    let text = server.audit();
    let log = std::fs::read_to_string(server.path("stderr")).unwrap();
    for secret in [complete.cursor(), cancelled.cursor(), gone_cursor, "not-for-the-audit".into(), "Größe".into()] {
        assert!(!text.contains(&secret) && !log.contains(&secret), "{secret}");
    }
}

#[test]
fn the_metrics_count_what_happened() {
    let server = world(1_000, &[]);
    let mut held = Held::default();
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    stream.complete(&mut held);
    Stream::resume(server.address, &[], &stream.cursor(), &held)
        .unwrap_or_else(|answer| panic!("{answer:?}"))
        .complete(&mut held);
    assert_eq!(Stream::query(server.address, &[], "nonsense").err().expect("no statement").status, 400);
    let answer = server.get("/metrics");
    assert!(answer.header("content-type").unwrap().starts_with("text/plain"), "{answer:?}");
    until("the streams to be counted", || server.metric("tidegate_stream_closed_total", "complete") == 2.0);
    for (name, label, value) in [
        ("tidegate_stream_opened_total", "kind=\"open\"", 1.0),
        ("tidegate_stream_opened_total", "resume", 1.0),
        ("tidegate_stream_rows_total", "", 1_000.0),
        ("tidegate_stream_readers", "", 0.0),
        ("tidegate_lease_held", "", 1.0),
    ] {
        assert_eq!(server.metric(name, label), value, "{name} {label}: {}", server.get("/metrics").text());
    }
    let bytes = server.metric("tidegate_stream_bytes_total", "");
    assert!(bytes >= held.bytes.len() as f64, "{bytes}");
    assert!(server.metric("tidegate_http_requests_total", "4xx") >= 1.0);
    let text = server.get("/metrics").text();
    assert!(!text.contains("select") && !text.contains(&stream.cursor()), "no label is a caller's text");
}

#[test]
fn health_version_limits_and_leases_are_told() {
    let server = world(100_000, &[]);
    assert_eq!(server.get("/healthz").status, 200);
    until("the server is ready", || server.get("/readyz").status == 200);
    assert_eq!(server.get("/v1/version").json()["version"], env!("CARGO_PKG_VERSION"));
    let limits = server.get("/v1/limits").json();
    for key in ["stream.snapshot.ttl_ms", "stream.max_global", "limits.body_max_bytes", "limits.row_max_bytes"] {
        let found = limits["settings"].as_array().unwrap().iter().find(|setting| setting["key"] == key);
        assert!(found.is_some_and(|setting| setting["value"].is_u64() && setting["meaning"].is_string()), "{key}");
    }
    assert!(server.leases().is_empty());
    let stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let leases = server.leases();
    assert_eq!(
        (leases.len(), &leases[0]["lease"], &leases[0]["snapshot"]),
        (1, &stream.open["lease"], &stream.open["snapshot"])
    );
    assert_eq!((&leases[0]["reading"], &leases[0]["source"]), (&json!(true), &json!("main")));
    assert!(!leases[0].to_string().contains(&stream.cursor()), "a list of leases gives no cursor away");
}

#[test]
fn asking_whether_the_server_is_ready_writes_nothing() {
    let server = Server::start(1, &[]);
    assert_eq!(ask(server.address, "PUT", "/v1/streams/s", &[], "{}").status, 201);
    let written = || ["true", "false"].map(|fsync| server.metric("tidegate_store_groups_total", fsync));
    until("the server is ready", || server.get("/readyz").status == 200);
    let before = written();
    assert!(before[0] > 0.0, "{before:?}");
    for _ in 0..20 {
        assert_eq!(server.get("/readyz").json(), json!({"status": "ready", "storage": "ok"}));
    }
    assert_eq!(written(), before);
}

#[test]
fn the_configuration_is_shown_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let source = "main=postgres://reader:p4ssw0rd@127.0.0.1:1/shop";
    let server = Server::launch(folder, &["--source", source, "--set", "stream.chunk.pages=8"]);
    let config = server.get("/v1/config");
    assert_eq!(config.json()["stream.chunk.pages"], 8);
    assert_eq!(config.json()["stream.snapshot.ttl_ms"], 60_000);
    assert!(config.text().contains("sources.main"), "{}", config.text());
    // Nor where the database cannot be reached.
    let refused = Stream::query(server.address, &[], "select 1").err().expect("there is no database");
    let log = std::fs::read_to_string(server.path("stderr")).unwrap();
    for text in [config.text(), refused.text(), server.get("/readyz").text(), server.get("/metrics").text(), log] {
        assert!(!text.contains("p4ssw0rd"), "{text}");
    }
}

fn encoded(server: &Server, accept: &str) -> Answer {
    let body = json!({"source": "main", "sql": SQL}).to_string();
    let answer = ask(server.address, "POST", "/v1/query", &[("accept-encoding", accept)], body);
    assert!(answer.status == 200 && answer.whole);
    answer
}

/// The row lines of a body.
fn row_lines(body: &[u8]) -> Vec<u8> {
    let lines = body.split_inclusive(|byte| *byte == b'\n');
    lines.filter(|line| line.starts_with(b"{\"row\":")).flatten().copied().collect()
}

#[test]
fn a_compressed_stream_has_the_same_rows() {
    let server = world(20_000, &[]);
    let plain = rows(server.address, SQL);
    let gzip = encoded(&server, "gzip");
    assert_eq!(gzip.header("content-encoding"), Some("gzip"));
    let mut body = Vec::new();
    flate2::read::GzDecoder::new(gzip.body.as_slice()).read_to_end(&mut body).unwrap();
    assert!(row_lines(&body) == plain.bytes && gzip.body.len() < body.len() / 2);
    let zstd = encoded(&server, "zstd, gzip;q=0.5");
    assert_eq!(zstd.header("content-encoding"), Some("zstd"));
    let body = zstd::decode_all(zstd.body.as_slice()).unwrap();
    assert!(row_lines(&body) == plain.bytes && zstd.body.len() < body.len() / 2);
    for accept in ["identity", "br", "gzip;q=0"] {
        let answer = encoded(&server, accept);
        assert_eq!(answer.header("content-encoding"), None, "{accept}");
        assert!(row_lines(&answer.body) == plain.bytes);
    }
}
