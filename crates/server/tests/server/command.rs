//! What the commands promise: outputs, exit codes, signals.

use std::process::Stdio;

use tidegate_testkit::FaultProxy;

use crate::process::{Server, run, run_in, signal, stderr, stdout, tidegate, until, wait};

#[test]
fn the_demo_holds_its_promises_and_ends() {
    let output = run(&["demo", "--exit"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    assert!(text.contains("135,233 places") && text.contains("Not a byte differs"), "{text}");
    assert!(text.contains("listening http 127.0.0.1:"), "{text}");
    assert!(text.contains("GeoNames.org, licensed under CC BY 4.0"), "{text}");
}

#[test]
fn the_demo_serves_on_until_ctrl_c_and_takes_its_folder_away() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = tidegate()
        .arg("demo")
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap());
    while !text.contains("/metrics") {
        assert_ne!(std::io::BufRead::read_line(&mut lines, &mut text).unwrap(), 0, "{text}");
    }
    let url = text.lines().find_map(|line| line.strip_prefix("listening http ")).unwrap();
    let output = run(&["query", "--url", &format!("http://{url}"), "select count(*) as n from city"]);
    assert_eq!(stdout(&output), "{\"n\":130635}\n", "{}", stderr(&output));
    signal(&child, "INT");
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn rows_come_in_every_format() {
    let server = Server::start(3, &[]);
    let sql = "select id, substr(name, 1, 7) as name from t order by id";
    let output = server.query(&[sql]);
    assert_eq!(
        stdout(&output),
        "{\"id\":0,\"name\":\"Größe 0\"}\n{\"id\":1,\"name\":\"Größe 1\"}\n{\"id\":2,\"name\":\"Größe 2\"}\n",
        "without a terminal it is NDJSON"
    );
    let output = server.query(&[sql, "--format", "csv"]);
    assert_eq!(stdout(&output), "id,name\n0,Größe 0\n1,Größe 1\n2,Größe 2\n");
    let output = server.query(&[sql, "--format", "table"]);
    assert_eq!(stdout(&output).lines().count(), 5);
    let output = server.query(&[sql, "--json"]);
    let lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("{\"open\":") && lines[4].starts_with("{\"end\":"), "{lines:?}");
    let output =
        server.query(&["select ? + 1 as a, ? as b, ? as c", "--param", "41", "--param", "x y", "--param", "null"]);
    assert_eq!(stdout(&output), "{\"a\":42,\"b\":\"x y\",\"c\":null}\n");
}

#[test]
fn exit_codes_say_what_happened() {
    let server = Server::start(1, &["--set", "stream.max_global=1", "--set", "stream.max_per_principal=1"]);
    for (arguments, code) in [
        (&["select 1 as a"][..], 0),
        (&["select nonsense"], 1),
        (&["delete from t"], 1),
        (&["select 1", "--source", "nope"], 3),
        (&["select 1", "--format", "xml"], 2),
    ] {
        let output = server.query(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    }
    let nobody = run(&["query", "--url", "http://127.0.0.1:1", "select 1"]);
    assert_eq!(nobody.status.code(), Some(1), "{}", stderr(&nobody));
    let json = server.query(&["delete from t", "--json"]);
    let error: serde_json::Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(error["error"]["code"], "read_only");
}

#[test]
fn a_file_is_whole_or_not_there() {
    let server = Server::start(5000, &[]);
    let output = server.query(&["select * from t order by id", "--format", "csv", "--output", "out.csv"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(server.path("out.csv")).unwrap().lines().count(), 5001);
    assert!(!server.path("out.csv.partial").exists());
    let output = server.query(&["select abs(-9223372036854775807 - id) from t order by id", "--output", "bad.csv"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(!server.path("bad.csv").exists());
}

#[test]
fn a_limit_stops_and_frees_the_stream_at_the_server() {
    let server = Server::start(200_000, &[]);
    let output = server.query(&["select * from t order by id", "--limit", "10"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 10);
    until("the audit trail says cancelled", || server.audit().contains("\"reason\":\"cancelled\""));
}

#[test]
fn ctrl_c_cancels_the_stream_at_the_server_and_exits_130() {
    let server = Server::start(300_000, &[]);
    let mut child = tidegate()
        .args(["query", "--url", &server.url(), "select * from t order by id"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The first byte says that rows come; nobody reads the others, so that it will stand in a write sooner or later.
    let mut output = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut output, &mut [0; 1]).unwrap();
    signal(&child, "INT");
    assert_eq!(wait(&mut child).code(), Some(130));
    until("the audit trail says cancelled", || server.audit().contains("\"reason\":\"cancelled\""));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let server = Server::start(200_000, &[]);
    let mut child = tidegate()
        .args(["query", "--url", &server.url(), "select * from t order by id"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut one = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut one).unwrap();
    drop(child.stdout.take());
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_over_a_network_that_cuts_prints_every_row_once() {
    let server = Server::start(20_000, &[]);
    let proxy = FaultProxy::start(server.address).await.unwrap();
    proxy.cut_after(Some(100_000));
    let url = format!("http://{}", proxy.address());
    let arguments = ["query", "--url", &url, "select id from t order by id, name", "--format", "csv"];
    let wide = ["query", "--url", &url, "select id, name from t order by id", "--format", "csv"];
    let folder = server.path(".");
    let run = move |arguments: [&str; 6]| run_in(&folder, &arguments);
    let (narrow, wide) = tokio::task::block_in_place(|| (run(arguments), run(wide)));
    for output in [&narrow, &wide] {
        assert!(output.status.success(), "{}", stderr(output));
    }
    let ids = |output| -> Vec<u64> {
        let text = stdout(output);
        text.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap()).collect()
    };
    let all: Vec<u64> = (0..20_000).collect();
    assert_eq!(ids(&narrow), all);
    assert_eq!(ids(&wide), all);
    assert!(proxy.connections() > 10, "{} connections", proxy.connections());
}

#[test]
fn sigterm_drains_and_exits_0_and_the_audit_trail_is_whole() {
    let mut server = Server::start(10, &[]);
    assert!(server.query(&["select * from t"]).status.success());
    signal(&server.child, "TERM");
    assert_eq!(wait(&mut server.child).code(), Some(0));
    let audit = server.audit();
    assert!(audit.ends_with('\n') && audit.contains("stream.closed"), "{audit}");
}

#[test]
fn a_second_sigterm_exits_at_once() {
    let mut server = Server::start(300_000, &["--set", "limits.drain_ms=600000"]);
    let mut reader = tidegate()
        .args(["query", "--url", &server.url(), "select * from t order by id"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the stream is open", || server.audit().contains("stream.opened"));
    signal(&server.child, "TERM");
    until("it drains", || std::fs::read_to_string(server.path("stderr")).unwrap().contains("draining"));
    assert!(server.child.try_wait().unwrap().is_none(), "it still serves its reader");
    signal(&server.child, "TERM");
    assert_eq!(wait(&mut server.child).code(), Some(1));
    let _ = reader.kill();
    let _ = reader.wait();
}

#[test]
fn a_configuration_is_checked_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.toml"), "[stream.chunk]\npages = 65\nmax_row = 1\n").unwrap();
    std::fs::write(folder.path().join("good.toml"), "[stream.chunk]\npages = 64\n").unwrap();
    let bad = run_in(folder.path(), &["config", "check", "bad.toml"]);
    assert_eq!(bad.status.code(), Some(1));
    let text = stdout(&bad);
    assert!(text.contains("bad.toml:2:9: stream.chunk.pages: is 65, it must be from 1 to 64"), "{text}");
    assert!(text.contains("bad.toml:3:1: stream.chunk.max_row: unknown setting"), "{text}");
    let json = run_in(folder.path(), &["config", "check", "bad.toml", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&value["ok"], &value["problems"][1]["line"]), (&false.into(), &3.into()));
    let good = run_in(folder.path(), &["config", "check", "good.toml"]);
    assert_eq!((good.status.code(), stdout(&good).as_str()), (Some(0), "ok\n"));
    let missing = run_in(folder.path(), &["config", "check", "none.toml"]);
    assert_eq!(missing.status.code(), Some(1));
    for arguments in
        [&["serve", "--config", "bad.toml"][..], &["serve", "--http", "0.0.0.0:0"], &["serve", "--grpc", "127.0.0.1:0"]]
    {
        let refused = run_in(folder.path(), arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", stderr(&refused));
        assert!(stdout(&refused).is_empty() && !folder.path().join("tidegate-data").exists());
    }
}

#[test]
fn a_source_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = run_in(folder.path(), &["serve", "--http", "127.0.0.1:0", "--source", "shop=sqlite:none.db"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("shop"), "{}", stderr(&output));
}

#[test]
fn the_version_and_the_completions_are_printed() {
    assert_eq!(stdout(&run(&["-V"])), format!("tidegate {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && stdout(&output).contains("tidegate"), "{shell}");
    }
}
