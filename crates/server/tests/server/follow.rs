//! What `stream tail` and `top` promise over the real server: every record once, in order, and every loss said.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use serde_json::Value;
use tidegate_testkit::FaultProxy;

use crate::process::{Server, signal, stderr, stdout, tidegate, wait};
use crate::publish::{lines, piped, server};

/// A `tidegate stream tail` that runs.
struct Follower {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    fn start(url: &str, arguments: &[&str]) -> Self {
        let mut child = tidegate()
            .args(["stream", "tail"])
            .args(arguments)
            .args(["--url", url])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next lines.
    fn take(&mut self, count: usize) -> Vec<Value> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "it ended after {} lines", taken.len());
            taken.push(serde_json::from_str(&line).unwrap());
        }
        taken
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The values of each partition, in the order in which they came.
fn by_partition(lines: &[Value], partitions: usize) -> Vec<Vec<u64>> {
    let mut found = vec![Vec::new(); partitions];
    for line in lines {
        let record = &line["record"];
        let of = &mut found[usize::try_from(record["partition"].as_u64().unwrap()).unwrap()];
        assert_eq!(record["offset"], of.len(), "each offset once, in order");
        of.push(record["value"].as_u64().unwrap());
    }
    found
}

fn publish(server: &Server, numbers: std::ops::Range<u64>) {
    let output = piped(&server.url(), &["stream", "publish", "s", "--values"], &lines(numbers));
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn what_is_published_is_seen_at_once_and_ctrl_c_ends_with_130() {
    let server = server();
    server.client(&["stream", "create", "s", "--partitions", "2"]);
    publish(&server, 0..10);
    let mut follower = Follower::start(&server.url(), &["s", "--from", "earliest", "--json"]);
    let mut seen = follower.take(10);
    publish(&server, 10..30);
    seen.extend(follower.take(20));
    let mut all: Vec<u64> = by_partition(&seen, 2).concat();
    all.sort_unstable();
    assert_eq!(all, (0..30).collect::<Vec<_>>());
    signal(&follower.child, "INT");
    assert_eq!(wait(&mut follower.child).code(), Some(130));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_over_a_network_that_cuts_shows_every_record_once() {
    let server = server();
    server.client(&["stream", "create", "s", "--partitions", "3"]);
    tokio::task::block_in_place(|| publish(&server, 0..3_000));
    let proxy = FaultProxy::start(server.address).await.unwrap();
    proxy.cut_after(Some(40_000));
    let mut follower =
        Follower::start(&format!("http://{}", proxy.address()), &["s", "--from", "0", "--json", "--retries", "50"]);
    let seen = tokio::task::block_in_place(|| {
        let mut seen = follower.take(3_000);
        publish(&server, 3_000..4_000);
        seen.extend(follower.take(1_000));
        seen
    });
    let mut all: Vec<u64> = by_partition(&seen, 3).concat();
    all.sort_unstable();
    assert_eq!(all, (0..4_000).collect::<Vec<_>>());
    assert!(proxy.connections() > 10, "{} connections", proxy.connections());
}

#[test]
fn a_tail_goes_on_at_the_exact_record_when_the_server_was_killed() {
    let mut server = server();
    server.client(&["stream", "create", "s", "--partitions", "2"]);
    let mut follower = Follower::start(&server.url(), &["s", "--from", "earliest", "--json", "--retries", "100"]);
    let mut seen = Vec::new();
    for round in 0..3 {
        publish(&server, round * 100..(round + 1) * 100);
        seen.extend(follower.take(100));
        server.kill_and_restart();
    }
    publish(&server, 300..310);
    seen.extend(follower.take(10));
    let mut all: Vec<u64> = by_partition(&seen, 2).concat();
    all.sort_unstable();
    assert_eq!(all, (0..310).collect::<Vec<_>>());
}

#[test]
fn what_retention_took_is_said_with_its_bounds() {
    let server = server();
    server.client(&["stream", "create", "s", "--retention-records", "10"]);
    publish(&server, 0..5_000);
    let shown: Value = serde_json::from_slice(&server.client(&["stream", "show", "s", "--json"]).stdout).unwrap();
    let earliest = shown["partitions"][0]["earliest"].as_u64().unwrap();
    assert!(earliest > 0, "{shown}");
    let output = server.client(&["stream", "tail", "s", "--no-follow", "--from", "3"]);
    let gap = format!("GAP: partition 0: offsets 3 to {} are gone (retention)", earliest - 1);
    assert!(stderr(&output).contains(&gap), "{gap}: {}", stderr(&output));
    assert_eq!(stdout(&output).lines().count() as u64, 5_000 - earliest);
    let mut follower = Follower::start(&server.url(), &["s", "--from", "3", "--json"]);
    let gap = serde_json::json!({"gap": {"partition": 0, "from": 3, "to": earliest, "reason": "retention"}});
    assert_eq!(follower.take(1), [gap]);
    let quiet = server.client(&["stream", "tail", "s", "--no-follow", "--from", "earliest"]);
    assert_eq!(stderr(&quiet), "", "who asks for what is there misses nothing");
}

#[test]
fn places_that_are_not_there_are_refused() {
    let server = server();
    server.client(&["stream", "create", "s"]);
    publish(&server, 0..3);
    for (arguments, code, word) in [
        (&["stream", "tail", "s", "--from", "4"][..], 1, "offset_out_of_range"),
        (&["stream", "tail", "s", "--from", "18446744073709551615", "--no-follow"], 1, "offset_out_of_range"),
        (&["stream", "tail", "s", "--partition", "1"], 3, "partition 1 is not there"),
        (&["stream", "tail", "none"], 3, "stream_not_found"),
    ] {
        let output = server.client(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
    }
    let output = server.client(&["stream", "tail", "s", "--from", "3", "--no-follow"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), ""), "the tail itself is a place");
}

#[test]
fn a_stream_that_is_removed_ends_its_tails() {
    let server = server();
    server.client(&["stream", "create", "s"]);
    publish(&server, 0..3);
    let mut follower = Follower::start(&server.url(), &["s", "--from", "earliest", "--json"]);
    follower.take(3);
    assert!(server.client(&["stream", "rm", "s"]).status.success());
    assert_eq!(wait(&mut follower.child).code(), Some(3));
}

#[test]
fn top_shows_streams_groups_and_lag_and_ends_where_there_is_no_terminal() {
    let server = server();
    server.client(&["stream", "create", "s", "--partitions", "2"]);
    publish(&server, 0..7);
    server.client(&["group", "create", "s", "g"]);
    let text = stdout(&server.client(&["top"]));
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["stream", "partitions", "appended", "bytes", "group", "mode", "members", "lag"]);
    assert_eq!((&rows[1][..3], &rows[1][4..]), (&["s", "2", "7"][..], &["g", "ordered", "0", "7"][..]), "{text}");
    let json: Value = serde_json::from_slice(&server.client(&["top", "s", "--json"]).stdout).unwrap();
    assert_eq!((&json["streams"][0]["appended"], &json["streams"][0]["groups"][0]["lag"]), (&7.into(), &7.into()));
    assert_eq!(server.client(&["top", "none"]).status.code(), Some(3));
}
