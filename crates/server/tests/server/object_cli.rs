//! What the object commands promise: what comes back is what went in, whatever its key and size; what was interrupted goes on; nothing
//! is written outside the folder that was named.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tidegate_testkit::FaultProxy;

use crate::http::ask;
use crate::process::{run_in, stderr, stdout, tidegate, until, wait};
use crate::publish::{piped, server};

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
    stdout(output)
}

fn json(output: &Output) -> Vec<Value> {
    ok(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Bytes that repeat nowhere, and their hash.
fn patterned(path: &Path, bytes: u64) -> [u8; 32] {
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    let mut hash = Sha256::new();
    let mut block = vec![0; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        for (at, word) in block.chunks_exact_mut(8).enumerate() {
            let number = (left << 13 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&number.to_le_bytes());
        }
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        file.write_all(&block[..room]).unwrap();
        hash.update(&block[..room]);
        left -= room as u64;
    }
    file.flush().unwrap();
    hash.finalize().into()
}

fn hash_of(path: &Path) -> [u8; 32] {
    let mut hash = Sha256::new();
    let (mut file, mut block) = (fs::File::open(path).unwrap(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut block).unwrap() {
            0 => break,
            read => hash.update(&block[..read]),
        }
    }
    hash.finalize().into()
}

/// All files of a folder but the notes at its top.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn enter(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                enter(root, &path, files);
            } else if path != root.join(".tidegate-batch") {
                files.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    enter(root, root, &mut files);
    files
}

#[test]
fn objects_come_back_as_they_went_in_whatever_their_keys() {
    let server = server();
    let keys = ["a", "../x", "a//b/", "/etc/passwd", "%2F?#&+", "💧 ü", "C:\\x", "...", "-"];
    for (number, key) in keys.iter().enumerate() {
        let body = format!("{key} {number}\0\r\n");
        fs::write(server.path("in"), &body).unwrap();
        let put = ok(&server.client(&["object", "put", "photos/org=17;project=42", key, "in"]));
        assert!(put.starts_with(&format!("created photos/org=17;project=42/{key} (")), "{put}");
        let got = server.client(&["object", "get", "photos/org=17;project=42", key]);
        assert_eq!(ok(&got), body, "{key}");
    }
    let listed: Vec<String> = json(&server.client(&["object", "ls", "photos/org=17;project=42", "--json"]))
        .iter()
        .map(|object| object["key"].as_str().unwrap().to_owned())
        .collect();
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.sort_unstable();
    assert_eq!(listed, sorted, "in the order of their bytes");
    let table = ok(&server.client(&["object", "ls", "photos/org=17;project=42", "--prefix", "a"]));
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(server.client(&["object", "ls", "photos/_"]).stdout.len() < 80, "another collection is empty");

    let removed = [&["object", "rm", "photos/org=17;project=42"][..], &keys, &["never there"]].concat();
    ok(&server.client(&removed));
    assert!(json(&server.client(&["object", "ls", "photos/org=17;project=42", "--json"])).is_empty());
    let gone = server.client(&["object", "get", "photos/org=17;project=42", "a", "--json"]);
    assert_eq!(gone.status.code(), Some(3));
    assert_eq!(serde_json::from_slice::<Value>(&gone.stderr).unwrap()["error"]["code"], "object_not_found");
}

#[test]
fn what_is_said_of_an_object_and_what_must_be_there_count() {
    let server = server();
    fs::write(server.path("page.html"), "<p>").unwrap();
    let put = ["object", "put", "c/_", "k", "page.html", "--expires", "ttl:1h", "--meta", "owner=me", "--json"];
    let first = json(&server.client(&put)).remove(0);
    assert_eq!((&first["replaced"], &first["content_type"]), (&false.into(), &"text/html".into()));
    let head = ask(server.address, "GET", "/v1/objects/c/_/k", &[], "");
    assert_eq!(head.header("x-tidegate-meta-owner"), Some("me"));
    assert_eq!(head.header("x-tidegate-expires"), Some("ttl:3600s"));

    let absent = server.client(&["object", "put", "c/_", "k", "page.html", "--if-absent", "--json"]);
    assert_eq!(absent.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&absent.stderr).unwrap()["error"]["code"], "precondition_failed");
    let etag = first["etag"].as_str().unwrap();
    let matched = ["object", "put", "c/_", "k", "page.html", "--if-match", etag];
    assert!(ok(&server.client(&matched)).starts_with("replaced "));
    assert_eq!(server.client(&matched).status.code(), Some(1), "that write is not there any more");

    let made = piped(&server.url(), &["object", "put", "c/_", "-", "--json"], "from a pipe");
    let made = json(&made).remove(0);
    let key = made["key"].as_str().unwrap();
    assert_eq!(ok(&server.client(&["object", "get", "c/_", key])), "from a pipe");
    assert_eq!(ok(&server.client(&["object", "get", "c/_", key, "--range", "5-5"])), "a");
    assert_eq!(ok(&server.client(&["object", "get", "c/_", key, "--range", "-4"])), "pipe");
    assert_eq!(server.client(&["object", "get", "c/_", key, "--range", "100-"]).status.code(), Some(1));
    ok(&server.client(&["object", "get", "c/_", key, "-o", "out"]));
    assert_eq!(fs::read_to_string(server.path("out")).unwrap(), "from a pipe");
    assert!(!server.path("out.partial").exists() && !server.path("out.partial.note").exists());
    assert_eq!(ok(&server.client(&["object", "get", "c/_", key, "-o", "/dev/stdout"])), "from a pipe");
    assert_eq!(server.client(&["object", "put", "c/_", "k", "missing"]).status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_go_in_parts_and_come_back_over_a_network_that_cuts() {
    let server = server();
    let hash = patterned(&server.path("large"), 100_000_000);
    let put = ["object", "put", "c/_", "large", "large", "--part-size", "16MiB"];
    assert!(
        ok(&tokio::task::block_in_place(|| server.client(&put)))
            .starts_with("created c/_/large (100000000 bytes, cold")
    );
    assert!(
        !fs::read_dir(server.path("."))
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_str().unwrap().ends_with(".tidegate-upload") })
    );
    let proxy = FaultProxy::start(server.address).await.unwrap();
    proxy.cut_after(Some(7_000_000));
    let url = format!("http://{}", proxy.address());
    let folder = server.path(".");
    let get = ["object", "get", "c/_", "large", "-o", "back", "--url", &url];
    ok(&tokio::task::block_in_place(|| run_in(&folder, &get)));
    assert_eq!(hash_of(&server.path("back")), hash);
    assert!(proxy.connections() > 10, "{} connections", proxy.connections());
}

#[test]
fn an_upload_that_is_killed_goes_on_with_the_parts_that_are_missing() {
    let server = server();
    let hash = patterned(&server.path("large"), 60_000_001);
    let arguments = ["object", "put", "c/_", "k", "large", "--part-size", "256KiB", "--url", &server.url()];
    let mut child = tidegate()
        .args(arguments)
        .current_dir(server.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let note = || {
        let entries = fs::read_dir(server.path(".")).unwrap().map(|entry| entry.unwrap().path());
        entries.into_iter().find(|path| path.to_str().unwrap().ends_with(".tidegate-upload"))
    };
    let mut parts = 0;
    until("some parts are there", || {
        let Some(text) = note().and_then(|path| fs::read(path).ok()) else { return false };
        let id = serde_json::from_slice::<Value>(&text).unwrap()["upload"].as_str().unwrap().to_owned();
        parts = server.get(&format!("/v1/objects/c/_/k?upload={id}")).json()["parts"].as_array().unwrap().len();
        parts >= 5
    });
    child.kill().unwrap();
    wait(&mut child);
    assert!(note().is_some(), "it was not done before it was killed: {parts} parts");
    assert_eq!(server.client(&["object", "get", "c/_", "k"]).status.code(), Some(3), "half an object is none");
    let again = server.client(&arguments[..7]);
    assert!(ok(&again).starts_with("created "), "{}", stdout(&again));
    let going_on = stderr(&again);
    let there: usize = going_on.split_once("going on: ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap();
    assert!((parts..229).contains(&there), "{going_on}");
    assert!(note().is_none());
    ok(&server.client(&["object", "get", "c/_", "k", "-o", "back"]));
    assert_eq!(hash_of(&server.path("back")), hash);
}

#[test]
fn a_download_that_is_killed_goes_on_and_never_mixes_two_writes() {
    let server = server();
    let hash = patterned(&server.path("large"), 30_000_000);
    ok(&server.client(&["object", "put", "c/_", "k", "large"]));
    let mut child = tidegate()
        .args(["object", "get", "c/_", "k", "--url", &server.url()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Half of it, as a run that was killed would leave it.
    let mut half = vec![0; 15_000_000];
    child.stdout.as_mut().unwrap().read_exact(&mut half).unwrap();
    child.kill().unwrap();
    wait(&mut child);
    let info = json(&server.client(&["object", "ls", "c/_", "--json"])).remove(0);
    let note = serde_json::json!({
        "place": {"url": format!("{}/", server.url()), "collection": {"usecase": "c", "scopes": "_"}, "key": "k"},
        "etag": info["etag"],
        "length": 30_000_000,
    });
    let leave = || {
        fs::write(server.path("back.partial"), &half).unwrap();
        fs::write(server.path("back.partial.note"), note.to_string()).unwrap();
    };
    leave();
    ok(&server.client(&["object", "get", "c/_", "k", "-o", "back"]));
    assert_eq!(hash_of(&server.path("back")), hash);
    // It is replaced: what was begun is of no use.
    let hash = patterned(&server.path("large"), 29_999_999);
    ok(&server.client(&["object", "put", "c/_", "k", "large"]));
    leave();
    ok(&server.client(&["object", "get", "c/_", "k", "-o", "back"]));
    assert_eq!(hash_of(&server.path("back")), hash);
}

#[test]
fn a_folder_goes_up_and_comes_down_byte_for_byte_and_a_second_run_does_what_is_left() {
    let server = server();
    let folder = server.path("up");
    for number in 0..2_500_u64 {
        let path = folder.join(format!("d{}/ü {}", number % 7, number % 50));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(format!("{number}.json")), format!("{number} ").repeat((number % 300) as usize)).unwrap();
    }
    let up = ["object", "batch", "up", "many/_", "up"];
    assert_eq!(ok(&server.client(&up)), "2500 up, 0 there already, 0 failed\n");
    fs::write(folder.join("d0/new"), "new").unwrap();
    fs::write(folder.join("d1/ü 1/1.json"), "changed").unwrap();
    assert_eq!(ok(&server.client(&up)), "2 up, 2499 there already, 0 failed\n");

    let down = ["object", "batch", "down", "many/_", "--prefix", "d", "--to", "down"];
    assert_eq!(ok(&server.client(&down)), "2501 down, 0 there already, 0 failed\n");
    assert!(files(&folder) == files(&server.path("down")), "byte for byte");
    fs::remove_file(server.path("down/d0/new")).unwrap();
    fs::write(server.path("down/d1/ü 1/1.json"), "not that").unwrap();
    assert_eq!(ok(&server.client(&down)), "2 down, 2499 there already, 0 failed\n");
    assert!(files(&folder) == files(&server.path("down")), "byte for byte");
}

#[test]
fn no_key_writes_outside_the_folder_and_what_fails_is_told_by_name() {
    let server = server();
    fs::write(server.path("in"), "x").unwrap();
    let bad = ["../x", "/tmp/tidegate-x", "a/../../x", "a\\..\\x", ".tidegate-batch"];
    for key in [&bad[..], &["good", "a/good"]].concat() {
        ok(&server.client(&["object", "put", "c/_", key, "in"]));
    }
    fs::write(server.path("list"), format!("{}\ngood\na/good\n\nmissing\n", bad.join("\n"))).unwrap();
    let down = server.client(&["object", "batch", "down", "c/_", "list", "--to", "to"]);
    assert_eq!(down.status.code(), Some(1));
    assert_eq!(stdout(&down), "2 down, 0 there already, 6 failed\n");
    for key in bad.iter().chain(&["missing"]) {
        assert!(stderr(&down).contains(&format!("failed: {key}: ")), "{key}: {}", stderr(&down));
    }
    assert!(!server.path("x").exists() && !Path::new("/tmp/tidegate-x").exists());
    let found: Vec<String> = files(&server.path("to")).into_keys().collect();
    assert_eq!(found, ["a/good", "good"]);

    let listed = piped(
        &server.url(),
        &["object", "batch", "down", "c/_", "-", "--to", server.path("to2").to_str().unwrap(), "--json"],
        "good\n../x\n",
    );
    assert_eq!(listed.status.code(), Some(1));
    let lines: Vec<Value> = stdout(&listed).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["key"] == "../x" && line["code"] == "unsafe_key"), "{lines:?}");
    assert!(lines.iter().any(|line| line["key"] == "good" && line["status"] == "done"), "{lines:?}");
    assert_eq!(lines.last().unwrap()["end"]["failed"], 1);
}

#[test]
fn a_batch_that_is_killed_does_what_is_left() {
    let server = server();
    fs::create_dir(server.path("up")).unwrap();
    for number in 0..3_500 {
        fs::write(server.path(&format!("up/{number}")), format!("{number}")).unwrap();
    }
    let mut child = tidegate()
        .args(["object", "batch", "up", "many/_", "up", "--url", &server.url()])
        .current_dir(server.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let noted = || fs::metadata(server.path("up/.tidegate-batch")).is_ok_and(|metadata| metadata.len() > 0);
    until("something is done", noted);
    child.kill().unwrap();
    wait(&mut child);
    let text = ok(&server.client(&["object", "batch", "up", "many/_", "up"]));
    let numbers: Vec<u64> = text.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[1] > 0 && numbers[0] + numbers[1] == 3_500 && numbers[2] == 0, "{text}");
    assert_eq!(ok(&server.client(&["object", "ls", "many/_", "--json"])).lines().count(), 3_500);
}

#[test]
fn keys_are_fetched_while_their_list_is_still_being_written() {
    let server = server();
    fs::write(server.path("in"), "x").unwrap();
    for key in ["one", "two"] {
        ok(&server.client(&["object", "put", "c/_", key, "in"]));
    }
    let mut child = tidegate()
        .args(["object", "batch", "down", "c/_", "-", "--to", "to", "--url", &server.url()])
        .current_dir(server.path("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut list = child.stdin.take().unwrap();
    for key in ["one", "two"] {
        list.write_all(format!("{key}\n").as_bytes()).unwrap();
        until("it is here", || server.path(&format!("to/{key}")).exists());
    }
    drop(list);
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_and_large_objects_come_down_together_over_a_network_that_cuts() {
    let server = server();
    for number in 0..1_200_u32 {
        fs::create_dir_all(server.path(&format!("up/{}", number % 5))).unwrap();
        fs::write(server.path(&format!("up/{}/{number}", number % 5)), number.to_le_bytes().repeat(700)).unwrap();
    }
    patterned(&server.path("up/large"), 6_000_000);
    patterned(&server.path("up/edge"), 1_048_576);
    fs::write(server.path("up/empty"), "").unwrap();
    ok(&tokio::task::block_in_place(|| server.client(&["object", "batch", "up", "c/_", "up"])));
    let proxy = FaultProxy::start(server.address).await.unwrap();
    proxy.cut_after(Some(2_000_000));
    let url = format!("http://{}", proxy.address());
    let folder = server.path(".");
    let down = ["object", "batch", "down", "c/_", "--prefix", "", "--to", "down", "--url", &url];
    let told = ok(&tokio::task::block_in_place(|| run_in(&folder, &down)));
    assert_eq!(told, "1203 down, 0 there already, 0 failed\n");
    assert!(files(&server.path("up")) == files(&server.path("down")), "byte for byte");
    assert!(proxy.connections() > 1, "it was cut: {} connections", proxy.connections());
    // A key that stands there twice is fetched once: two would write one file.
    fs::write(server.path("list"), "large\nlarge\nempty\nempty\nlarge\n").unwrap();
    let listed = ["object", "batch", "down", "c/_", "list", "--to", "again"];
    let told = ok(&tokio::task::block_in_place(|| server.client(&listed)));
    assert_eq!(told, "2 down, 3 there already, 0 failed\n");
    assert_eq!(hash_of(&server.path("again/large")), hash_of(&server.path("up/large")));
}

#[test]
fn many_are_removed_at_once_each_told_by_name() {
    let server = server();
    fs::create_dir(server.path("up")).unwrap();
    for number in 0..1_100 {
        fs::write(server.path(&format!("up/{number}")), "x").unwrap();
    }
    ok(&server.client(&["object", "batch", "up", "c/_", "up"]));
    let keys: Vec<String> = (0..1_100).map(|number| number.to_string()).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let removed = json(&server.client(&[&["object", "rm", "c/_", "--json", "never there"][..], &keys].concat()));
    assert_eq!(removed.len(), 1_101);
    assert!(removed.iter().zip([&["never there"][..], &keys].concat()).all(|(line, key)| line["removed"] == key));
    assert!(json(&server.client(&["object", "ls", "c/_", "--json"])).is_empty());
}

#[test]
fn what_can_be_read_once_is_sent_once_and_says_so() {
    // A port on which nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let failed = piped(&url, &["object", "put", "c/_", "k", "-"], "from a pipe");
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("it was sent once"), "{}", stderr(&failed));
    // A refusal says what is wrong, and that is all.
    let server = server();
    let put = ["object", "put", "c/_", "k", "-", "--if-match", "nothing", "--json"];
    let refused = piped(&server.url(), &put, "from a pipe");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&refused.stderr).unwrap()["error"]["code"], "precondition_failed");
    assert_eq!(server.client(&["object", "get", "c/_", "k"]).status.code(), Some(3));
}
