//! What the stream commands promise: what is published is there once, whatever becomes of the connection and of the server.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;
use tidegate_testkit::FaultProxy;

use crate::process::{Server, run, run_in, stderr, stdout, tidegate, wait};

/// A server without sources.
pub(crate) fn server() -> Server {
    Server::launch(tempfile::tempdir().unwrap(), &[])
}

/// Runs a client command with this on its standard input.
pub(crate) fn piped(url: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = tidegate()
        .args(arguments)
        .args(["--url", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A command that refuses its input does not read it to its end.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// All records of a stream, as JSON, partition by partition.
pub(crate) fn records(server: &Server, stream: &str) -> Vec<Value> {
    let output = server.client(&["stream", "tail", stream, "--no-follow", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["record"].clone()).collect()
}

/// The values of these, sorted.
pub(crate) fn numbers(records: &[Value]) -> Vec<u64> {
    let mut numbers: Vec<u64> = records.iter().map(|record| record["value"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

pub(crate) fn lines(numbers: std::ops::Range<u64>) -> String {
    numbers.map(|number| format!("{number}\n")).collect()
}

#[test]
fn streams_are_created_listed_shown_and_removed_whatever_their_names() {
    let server = server();
    let name = "a/b:%2F 💧";
    let create = ["stream", "create", name, "--partitions", "2", "--retention-age", "1h", "--description", "d"];
    assert_eq!(stdout(&server.client(&create)), format!("created {name}\n"));
    let again = server.client(&create);
    assert_eq!((again.status.code(), stdout(&again).starts_with("there already")), (Some(0), true));
    let other = server.client(&["stream", "create", name, "--partitions", "3", "--json"]);
    assert_eq!(other.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&other.stderr).unwrap()["error"]["code"], "stream_exists");
    let listed = stdout(&server.client(&["stream", "ls"]));
    assert!(listed.lines().count() == 2 && listed.contains(name), "{listed}");
    let shown = stdout(&server.client(&["stream", "show", name]));
    assert!(shown.contains("retention    3600000 ms") && shown.contains("description  d"), "{shown}");
    let json = server.client(&["stream", "show", name, "--json"]);
    let shown: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&shown["name"], &shown["partitions"][1]["next"]), (&name.into(), &0.into()));
    assert!(server.client(&["stream", "rm", name]).status.success());
    for command in
        [&["stream", "show", name][..], &["stream", "rm", name], &["stream", "tail", name], &["group", "ls", name]]
    {
        assert_eq!(server.client(command).status.code(), Some(3), "{command:?}");
    }
    assert_eq!(run(&["stream", "ls", "--url", "http://127.0.0.1:1"]).status.code(), Some(1));
}

#[test]
fn values_texts_and_records_keep_their_digits_keys_and_headers() {
    let server = server();
    server.client(&["stream", "create", "s"]);
    let output = server.client(&[
        "stream",
        "publish",
        "s",
        "{\"n\": 9007199254740993,\n \"d\": 1.10}",
        "--key",
        "k",
        "--op",
        "update",
        "--header",
        "a=1",
        "--event-time",
        "2026-11-21T10:00:00Z",
    ]);
    assert_eq!(stdout(&output), "partition 0: offset 0\n", "{}", stderr(&output));
    let url = server.url();
    let text = stdout(&piped(&url, &["stream", "publish", "s", "--lines"], "5\n\nx y\n"));
    assert_eq!(text, "partition 0: offsets 1 to 3 (3 records)\n");
    let record = r#"{"key":[1],"op":"delete","value":null,"before":{"n":18446744073709551616},"headers":{"h":"v"}}"#;
    std::fs::write(server.path("records"), format!("{record}\n\n{record}")).unwrap();
    let json = server.client(&["stream", "publish", "s", "--file", "records", "--json"]);
    let appended: Vec<Value> = stdout(&json).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = &appended[appended.len() - 1]["appended"][0];
    assert_eq!((&last["partition"], &last["next"]), (&0.into(), &6.into()));

    let output = server.client(&["stream", "tail", "s", "--no-follow", "--json"]);
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    for word in [
        r#""key":"k""#,
        r#""op":"update""#,
        "9007199254740993",
        "1.10",
        r#""headers":{"a":"1"}"#,
        "2026-11-21T10:00:00.000Z",
    ] {
        assert!(lines[0].contains(word), "{word}: {}", lines[0]);
    }
    assert!(lines[1].contains(r#""value":"5""#) && lines[2].contains(r#""value":"""#), "{lines:?}");
    assert!(
        lines[5].contains(r#""before":{"n":18446744073709551616}"#) && lines[5].contains(r#""key":[1]"#),
        "{lines:?}"
    );
    let people = stdout(&server.client(&["stream", "tail", "s", "--no-follow", "-n", "1"]));
    assert!(people.starts_with("0:0  2") && people.contains("  update  \"k\"  {\"n\":9007199254740993"), "{people}");
}

#[test]
fn a_broken_line_is_named_and_what_stood_before_it_is_there() {
    let server = server();
    server.client(&["stream", "create", "s"]);
    let url = server.url();
    for (broken, word) in [("{\"value\":3", "line 7: EOF"), ("{\"valeu\":3}", "line 7: unknown field `valeu`")] {
        let before = records(&server, "s").len();
        let input = "{\"value\":1}\n".repeat(6) + broken + "\n{\"value\":2}\n";
        let output = piped(&url, &["stream", "publish", "s"], &input);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains(word) && stderr(&output).contains("6 records published before"),
            "{}",
            stderr(&output)
        );
        assert_eq!(records(&server, "s").len(), before + 6);
    }
    // What only the server knows to be wrong is named by its line, too, and takes its batch with it.
    let before = records(&server, "s").len();
    std::fs::write(server.path("wrong"), "\n{\"value\":1}\n{\"value\":1,\"op\":\"upsert\"}\n").unwrap();
    let output = server.client(&["stream", "publish", "s", "--file", "wrong"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("line 3 was refused"), "{}", stderr(&output));
    assert!(records(&server, "s").len() <= before + 1);
    for (arguments, code) in [
        (&["stream", "publish", "none", "1"][..], 3),
        (&["stream", "publish", "s", "1", "--partition", "9"], 3),
        (&["stream", "publish", "s", "1", "--event-time", "yesterday"], 1),
        (&["stream", "publish", "s", "--file", "missing"], 1),
        (&["stream", "publish", "s", "--key", "k"], 2),
        (&["stream", "publish", "s", "1", "--lines"], 2),
    ] {
        let output = server.client(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_cuts_repeats_no_record_and_loses_none() {
    let server = server();
    server.client(&["stream", "create", "s", "--partitions", "3"]);
    let proxy = FaultProxy::start(server.address).await.unwrap();
    proxy.cut_after(Some(5_000));
    let url = format!("http://{}", proxy.address());
    let publish = ["stream", "publish", "s", "--values", "--batch-records", "50", "--retries", "50"];
    let output = tokio::task::block_in_place(|| piped(&url, &publish, &lines(0..5_000)));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(numbers(&records(&server, "s")), (0..5_000).collect::<Vec<_>>());
    assert!(proxy.connections() > 5, "{} connections", proxy.connections());
}

#[test]
fn a_server_that_is_killed_while_it_is_published_to_has_every_record_once() {
    let mut server = server();
    server.client(&["stream", "create", "s", "--partitions", "3"]);
    let mut child = tidegate()
        .args([
            "stream",
            "publish",
            "s",
            "--values",
            "--batch-records",
            "20",
            "--retries",
            "100",
            "--url",
            &server.url(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The publisher is held up while the server is away: what it has not sent waits in the pipe.
    for round in 0..3 {
        stdin.write_all(lines(round * 2_000..(round + 1) * 2_000).as_bytes()).unwrap();
        server.kill_and_restart();
    }
    drop(stdin);
    assert_eq!(wait(&mut child).code(), Some(0));
    let found = records(&server, "s");
    assert_eq!(numbers(&found), (0..6_000).collect::<Vec<_>>());
    let file = run_in(&server.path("."), &["stream", "show", "s", "--json", "--url", &server.url()]);
    let shown: Value = serde_json::from_slice(&file.stdout).unwrap();
    let next: u64 = shown["partitions"].as_array().unwrap().iter().map(|bounds| bounds["next"].as_u64().unwrap()).sum();
    assert_eq!(next, 6_000, "not an offset more than records");
}
