//! What `group consume` promises over the real server: every record at least once, committed after it was written out, across
//! kills of members and of the server.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::process::{Server, signal, stderr, stdout, tidegate, until, wait};
use crate::publish::{lines, piped, server};

/// A `tidegate group consume` that runs; its output goes to a file, so that it is never held up.
struct Member {
    child: Child,
    output: std::path::PathBuf,
}

impl Member {
    fn start(server: &Server, name: &str, arguments: &[&str]) -> Self {
        let output = server.path(name);
        let child = tidegate()
            .args([
                "group",
                "consume",
                "s",
                "g",
                "--client",
                name,
                "--json",
                "--retries",
                "100",
                "--url",
                &server.url(),
            ])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&output).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, output }
    }

    /// The records that it printed so far: partition, offset and value.
    fn printed(&self) -> Vec<(u64, u64, u64)> {
        let text = std::fs::read_to_string(&self.output).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let record = |line: &str| {
            let value = serde_json::from_str::<Value>(line).unwrap()["record"].clone();
            let number = |name: &str| value[name].as_u64().unwrap();
            (number("partition"), number("offset"), number("value"))
        };
        whole.lines().map(record).collect()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn publish(server: &Server, numbers: std::ops::Range<u64>) {
    let output =
        piped(&server.url(), &["stream", "publish", "s", "--values", "--batch-records", "50"], &lines(numbers));
    assert!(output.status.success(), "{}", stderr(&output));
}

fn group(server: &Server) -> Value {
    serde_json::from_slice(&server.client(&["group", "show", "s", "g", "--json"]).stdout).unwrap()
}

fn lag(group: &Value) -> u64 {
    group["positions"].as_array().unwrap().iter().map(|position| position["lag"].as_u64().unwrap()).sum()
}

fn values<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<u64> {
    members.into_iter().flat_map(Member::printed).map(|(_, _, value)| value).collect()
}

fn start(partitions: &str, arguments: &[&str]) -> Server {
    let server = server();
    assert!(server.client(&["stream", "create", "s", "--partitions", partitions]).status.success());
    let create = [&["group", "create", "s", "g"], arguments].concat();
    assert!(server.client(&create).status.success());
    server
}

#[test]
fn groups_are_created_listed_moved_and_removed() {
    let server = start("2", &["--session", "1500ms"]);
    publish(&server, 0..10);
    let again = server.client(&["group", "create", "s", "g", "--session", "1500ms"]);
    assert!(stdout(&again).starts_with("there already"), "{}", stdout(&again));
    assert_eq!(
        server.client(&["group", "create", "s", "g"]).status.code(),
        Some(1),
        "another session is another group"
    );
    let listed = stdout(&server.client(&["group", "ls", "s"]));
    assert!(listed.lines().nth(1).unwrap().split_whitespace().eq(["g", "ordered", "1", "0", "10"]), "{listed}");
    assert!(server.client(&["group", "seek", "s", "g", "--to", "latest"]).status.success());
    assert_eq!(lag(&group(&server)), 0);
    assert!(server.client(&["group", "seek", "s", "g", "--partition", "0=0", "--partition", "1=0"]).status.success());
    assert_eq!(lag(&group(&server)), 10);
    assert_eq!(server.client(&["group", "seek", "s", "g", "--partition", "0=99"]).status.code(), Some(1));
    assert_eq!(server.client(&["group", "seek", "s", "g", "--to", "yesterday"]).status.code(), Some(1));
    assert!(server.client(&["group", "rm", "s", "g"]).status.success());
    for command in ["rm", "show", "consume"] {
        assert_eq!(server.client(&["group", command, "s", "g"]).status.code(), Some(3), "{command}");
    }
}

#[test]
fn a_member_prints_commits_exactly_what_it_printed_and_leaves() {
    let server = start("2", &[]);
    publish(&server, 0..100);
    let output = server.client(&["group", "consume", "s", "g", "-n", "30", "--json"]);
    assert_eq!((output.status.code(), stdout(&output).lines().count()), (Some(0), 30), "{}", stderr(&output));
    let after = group(&server);
    assert_eq!((lag(&after), &after["members"]), (70, &serde_json::json!([])));
    let rest = server.client(&["group", "consume", "s", "g", "-n", "70", "--json"]);
    assert_eq!(stderr(&rest), "");
    let all = stdout(&output) + &stdout(&rest);
    let all: BTreeSet<&str> = all.lines().collect();
    assert_eq!((all.len(), lag(&group(&server))), (100, 0), "none of them came twice");
    let new =
        server.client(&["group", "consume", "s", "new", "--create", "--start", "earliest", "-n", "100", "--quiet"]);
    assert_eq!((stdout(&new).lines().count(), stderr(&new).as_str()), (100, ""));
    assert_eq!(server.client(&["group", "consume", "s", "g", "--start", "latest"]).status.code(), Some(2));
}

#[test]
fn a_member_that_is_told_to_stop_leaves_at_once_and_its_partitions_go_on() {
    let server = start("2", &["--session", "60s"]);
    let mut one = Member::start(&server, "one", &[]);
    let two = Member::start(&server, "two", &[]);
    until("both hold a partition", || {
        let members = group(&server)["members"].as_array().unwrap().clone();
        members.len() == 2 && members.iter().all(|member| member["partitions"].as_array().unwrap().len() == 1)
    });
    publish(&server, 0..100);
    until("all is committed", || lag(&group(&server)) == 0);
    signal(&one.child, "TERM");
    assert_eq!(wait(&mut one.child).code(), Some(130));
    until("the other has both", || group(&server)["members"][0]["partitions"] == serde_json::json!([0, 1]));
    publish(&server, 100..200);
    until("all is committed", || lag(&group(&server)) == 0);
    let mut all = values([&one, &two]);
    all.sort_unstable();
    assert_eq!(all, (0..200).collect::<Vec<_>>(), "in good order nothing comes twice");
}

#[test]
fn a_member_that_is_killed_loses_nothing() {
    let server = start("4", &["--session", "500ms"]);
    let mut one = Member::start(&server, "one", &["--batch-records", "20"]);
    let two = Member::start(&server, "two", &["--batch-records", "20"]);
    until("both are there", || group(&server)["members"].as_array().unwrap().len() == 2);
    publish(&server, 0..2_000);
    until("both work", || !one.printed().is_empty() && !two.printed().is_empty());
    one.child.kill().unwrap();
    wait(&mut one.child);
    publish(&server, 2_000..3_000);
    until("all is committed", || lag(&group(&server)) == 0);
    let all: BTreeSet<u64> = values([&one, &two]).into_iter().collect();
    assert_eq!(all, (0..3_000).collect());
    let printed = two.printed();
    for partition in 0..4 {
        let offsets: Vec<u64> = printed.iter().filter(|record| record.0 == partition).map(|record| record.1).collect();
        assert!(offsets.is_sorted_by(|a, b| a < b), "partition {partition} in order: {offsets:?}");
    }
}

#[test]
fn a_server_that_is_killed_loses_nothing_of_a_group() {
    let mut server = start("3", &["--session", "2s"]);
    let one = Member::start(&server, "one", &["--batch-records", "20"]);
    for round in 0..3 {
        publish(&server, round * 500..(round + 1) * 500);
        until("it works", || one.printed().len() as u64 > round * 500 + 50);
        server.kill_and_restart();
    }
    until("all is committed", || lag(&group(&server)) == 0);
    let printed = values([&one]);
    assert_eq!(printed.iter().copied().collect::<BTreeSet<_>>(), (0..1_500).collect());
}

#[test]
fn records_of_a_shared_group_are_acknowledged_one_by_one() {
    let server = start("2", &["--mode", "shared", "--ack-timeout", "2s"]);
    publish(&server, 0..100);
    let output = server.client(&["group", "consume", "s", "g", "-n", "30", "--json"]);
    assert_eq!((output.status.code(), stdout(&output).lines().count()), (Some(0), 30), "{}", stderr(&output));
    let one = Member::start(&server, "one", &[]);
    let two = Member::start(&server, "two", &[]);
    until("all is acknowledged", || lag(&group(&server)) == 0);
    let mut all = values([&one, &two]);
    all.extend(
        stdout(&output)
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["record"]["value"].as_u64().unwrap()),
    );
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<_>>());
    assert_eq!(group(&server)["in_flight"], 0);
}
