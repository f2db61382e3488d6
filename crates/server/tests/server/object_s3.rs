//! Objects whose large bytes lie in a bucket: over the real binary and a real S3, with kills, outages and a look at the bucket that does
//! not go through us. Skipped, by name, where SeaweedFS is not installed.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use object_store::path::Path as Key;
use serde_json::Value;

use crate::http::{Answer, ask};
use crate::object::{MIB, begin, is_whole, piece, put};
use crate::process::{Server, run_in, stderr, stdout, until};
use crate::weed::{Weed, proxy_to};

/// A server whose large objects lie in a bucket.
fn serve(config: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tidegate.toml"), config).unwrap();
    Server::launch(folder, &[])
}

/// A server that must not start, by what it says.
fn refuses(config: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tidegate.toml"), config).unwrap();
    let ended = run_in(folder.path(), &["serve", "--http", "127.0.0.1:0", "--data-dir", "data"]);
    assert_eq!((ended.status.code(), stdout(&ended)), (Some(1), String::new()), "{}", stderr(&ended));
    stderr(&ended)
}

fn of(server: &Server, method: &str, key: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
    ask(server.address, method, &format!("/v1/objects/files/_/{key}"), headers, body)
}

fn bytes(pieces: usize) -> Vec<u8> {
    (0..pieces).flat_map(piece).collect()
}

/// Waits until the bucket has so many blobs under a prefix, and no upload in parts is open.
fn settles(weed: &Weed, prefix: &str, blobs: usize) {
    let mut seen = (0, Vec::new());
    let end = Instant::now() + Duration::from_secs(150);
    loop {
        let now = (weed.objects(prefix).len(), weed.open_uploads(prefix));
        if now == (blobs, Vec::new()) {
            return;
        }
        assert!(Instant::now() < end, "{blobs} blobs were expected: {now:?}, before: {seen:?}");
        seen = now;
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn objects_in_a_bucket_are_written_read_in_parts_listed_and_deleted() {
    let Some(weed) = Weed::shared("objects in a bucket") else { return };
    let prefix = weed.fresh_prefix();
    let server = serve(&weed.config(&prefix, weed.address(), ""));
    assert_eq!(weed.objects(&prefix), [], "the start leaves nothing");

    let (hot, cold, large) = (b"small".to_vec(), bytes(3), bytes(20));
    for (key, body, tier) in [("hot", &hot, "hot"), ("cold", &cold, "cold"), ("large", &large, "cold")] {
        let put = of(&server, "PUT", key, &[("content-type", "text/plain")], body);
        assert_eq!(put.status, 201, "{}", put.text());
        let got = of(&server, "GET", key, &[], "");
        assert_eq!((got.status, got.header("x-tidegate-tier")), (200, Some(tier)));
        assert!(got.whole && got.body == *body, "{key}");
    }
    assert_eq!(weed.objects(&prefix).len(), 2);
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1048570-1048580", 1_048_570, 1_048_581),
        ("bytes=8388600-8388700", 8_388_600, 8_388_701),
        ("bytes=-5", 20 * MIB - 5, 20 * MIB),
    ] {
        let got = of(&server, "GET", "large", &[("range", range)], "");
        assert_eq!(got.status, 206, "{range}");
        assert!(got.body == large[from..to], "{range}");
    }
    assert_eq!(of(&server, "GET", "large", &[("range", "bytes=20971520-")], "").status, 416);

    let head = of(&server, "HEAD", "cold", &[], "");
    let tag = head.header("etag").unwrap().to_owned();
    assert_eq!(of(&server, "GET", "cold", &[("if-none-match", &tag)], "").status, 304);
    assert_eq!(of(&server, "PUT", "cold", &[("if-none-match", "*")], &large).status, 412);
    assert_eq!(of(&server, "PUT", "cold", &[("if-match", &tag)], &cold).status, 200);
    assert_eq!(of(&server, "PUT", "cold", &[("if-match", &tag)], &cold).status, 412, "it has another tag by now");

    in_parts(&server, &large);
    in_a_batch(&server, &hot, &cold);

    let listed = server.get("/v1/objects/files/_").json();
    let keys: Vec<&str> = listed["objects"].as_array().unwrap().iter().map(|o| o["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["cold", "hot", "large", "parts"]);
    for key in keys {
        assert_eq!(of(&server, "DELETE", key, &[], "").status, 204);
        assert_eq!(of(&server, "GET", key, &[], "").status, 404);
    }
    // The bytes stay a minute for those who read them.
    settles(weed, &prefix, 0);
}

/// A large object in parts, sent out of order; a part that was sent twice and one that is not named leave nothing.
fn in_parts(server: &Server, large: &[u8]) {
    let upload = of(server, "POST", "parts?uploads", &[], "").json()["upload"].as_str().unwrap().to_owned();
    let part = |number: u32, bytes: &[u8]| {
        let sent = of(server, "PUT", &format!("parts?upload={upload}&part={number}"), &[], bytes);
        assert_eq!(sent.status, 200, "{}", sent.text());
    };
    let (first, second) = large.split_at(9 * MIB);
    part(2, second);
    part(1, second);
    part(1, first);
    part(3, b"not wanted");
    let named = serde_json::json!({"parts": [{"part": 1}, {"part": 2}]}).to_string();
    let made = of(server, "POST", &format!("parts?upload={upload}"), &[("content-type", "application/json")], named);
    assert_eq!(made.status, 201, "{}", made.text());
    let got = of(server, "GET", "parts", &[], "");
    assert!(got.whole && got.body == large);
    let across = of(server, "GET", "parts", &[("range", "bytes=9437180-9437190")], "");
    assert!(across.body == large[9_437_180..=9_437_190], "a range over two blobs");
    // Another one is given up.
    let upload = of(server, "POST", "parts?uploads", &[], "").json()["upload"].as_str().unwrap().to_owned();
    assert_eq!(of(server, "PUT", &format!("parts?upload={upload}&part=1"), &[], first).status, 200);
    assert_eq!(of(server, "DELETE", &format!("parts?upload={upload}"), &[], "").status, 204);
}

fn in_a_batch(server: &Server, hot: &[u8], cold: &[u8]) {
    let mut body = Vec::new();
    for key in ["hot", "cold", "missing"] {
        body.extend_from_slice(
            format!("--b\r\nx-tidegate-op: get\r\nx-tidegate-key: {key}\r\ncontent-length: 0\r\n\r\n\r\n").as_bytes(),
        );
    }
    body.extend_from_slice(b"--b--\r\n");
    let kind = [("content-type", "multipart/mixed; boundary=b")];
    let answer = ask(server.address, "POST", "/v1/objects:batch/files/_", &kind, body);
    assert!(answer.status == 200 && answer.whole, "{}", answer.status);
    let has = |bytes: &[u8]| answer.body.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(hot) && has(b"object_not_found") && has(b"x-tidegate-status: 404"));
    // Windows over megabytes are slow: it is looked for where it begins.
    let at = answer.body.windows(64).position(|window| window == &cold[..64]).unwrap();
    assert!(answer.body[at..].starts_with(cold));
}

#[test]
fn a_kill_in_the_middle_of_large_writes_leaves_no_blob_and_no_upload_in_parts_and_what_was_there_is_whole() {
    let Some(weed) = Weed::shared("a kill and a bucket") else { return };
    let prefix = weed.fresh_prefix();
    let mut server = serve(&weed.config(&prefix, weed.address(), ""));
    put(&server, "first", 20);
    let before = weed.objects(&prefix);
    assert_eq!(before.len(), 1);
    for round in 0..3 {
        let upload = of(&server, "POST", "parts?uploads", &[], "").json()["upload"].as_str().unwrap().to_owned();
        let sent = of(&server, "PUT", &format!("parts?upload={upload}&part=1"), &[], bytes(2));
        assert_eq!(sent.status, 200);
        let mut sockets: Vec<TcpStream> = ["first", "second", &format!("parts?upload={upload}&part=2")]
            .into_iter()
            .map(|key| begin(&server, key, 64))
            .collect();
        for socket in &mut sockets {
            (0..18 + round * 8).for_each(|number| socket.write_all(&piece(number)).unwrap());
        }
        until("uploads in parts to be open", || weed.open_uploads(&prefix).len() == 3);
        server.kill_and_restart();
        until("the server is ready", || server.get("/readyz").status == 200);
        settles(weed, &prefix, 2 + round);
        is_whole(&server, "first", 20);
        assert_eq!(of(&server, "GET", "second", &[], "").status, 404);
        // What was acknowledged of the upload is there, nothing else is.
        let parts = of(&server, "GET", &format!("parts?upload={upload}"), &[], "").json();
        assert_eq!(parts["parts"].as_array().unwrap().len(), 1, "{parts}");
    }
    put(&server, "second", 9);
    is_whole(&server, "second", 9);
}

#[test]
fn writers_that_go_away_leave_nothing_in_the_bucket() {
    let Some(weed) = Weed::shared("writers that go away") else { return };
    let prefix = weed.fresh_prefix();
    let server = serve(&weed.config(&prefix, weed.address(), ""));
    for pieces in [10, 17, 33] {
        let mut socket = begin(&server, "gone", 64);
        (0..pieces).for_each(|number| socket.write_all(&piece(number)).unwrap());
        until("an upload in parts to be open", || !weed.open_uploads(&prefix).is_empty());
        drop(socket);
        settles(weed, &prefix, 0);
    }
    assert_eq!(of(&server, "GET", "gone", &[], "").status, 404);
}

#[test]
fn while_the_bucket_is_away_large_objects_are_503_small_ones_go_on_and_nothing_is_lost() {
    let Some(weed) = Weed::shared("a bucket that goes away") else { return };
    let prefix = weed.fresh_prefix();
    let proxy = proxy_to(weed.address());
    let quick = "connect_timeout_ms = 500\nread_timeout_ms = 2000\nretry_max = 1\nretry_timeout_ms = 1000";
    let mut server = serve(&weed.config(&prefix, proxy.address(), quick));
    put(&server, "large", 20);
    assert_eq!(of(&server, "PUT", "small", &[], "x").status, 201);
    assert_eq!(of(&server, "PUT", "doomed", &[], bytes(2)).status, 201);

    let away = |server: &Server| {
        for (method, body) in [("PUT", bytes(3)), ("GET", Vec::new())] {
            let answer = of(server, method, "large", &[], body);
            assert_eq!(answer.refusal(), (503, "storage_unavailable".to_owned()), "{method}");
        }
        assert_eq!(of(server, "HEAD", "large", &[], "").status, 200);
        assert_eq!(of(server, "GET", "small", &[], "").body, b"x");
        assert_eq!(of(server, "PUT", "small", &[], "x").status, 200);
    };
    // It refuses connections.
    proxy.refuse(true);
    proxy.cut_now();
    away(&server);
    assert_eq!(of(&server, "DELETE", "doomed", &[], "").status, 204, "what names it is here");
    proxy.refuse(false);
    is_whole(&server, "large", 20);

    // It takes connections and says nothing.
    proxy.stall();
    away(&server);
    proxy.resume();
    is_whole(&server, "large", 20);

    // It goes away in the middle of a write.
    let mut socket = begin(&server, "large", 64);
    (0..18).for_each(|number| socket.write_all(&piece(number)).unwrap());
    until("an upload in parts to be open", || !weed.open_uploads(&prefix).is_empty());
    proxy.refuse(true);
    proxy.cut_now();
    for number in 18..64 {
        // The server says that it is over before it has read everything.
        if socket.write_all(&piece(number)).is_err() {
            break;
        }
    }
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("storage_unavailable"), "{answer}");
    // And is still away when the server is killed and started again: it waits, and starts when the bucket is back.
    proxy.refuse(false);
    server.kill_and_restart();
    is_whole(&server, "large", 20);
    // `doomed` stays a minute for those who read it; what the outage interrupted is gone.
    settles(weed, &prefix, 1);
}

#[test]
fn a_bucket_that_was_killed_is_used_again_when_it_is_back() {
    let Some(mut weed) = Weed::start("a bucket that is killed") else { return };
    let prefix = weed.fresh_prefix();
    let quick = "connect_timeout_ms = 500\nretry_max = 1\nretry_timeout_ms = 1000";
    let server = serve(&weed.config(&prefix, weed.address(), quick));
    put(&server, "first", 12);
    weed.stop();
    let answer = of(&server, "PUT", "second", &[], bytes(2));
    assert_eq!(answer.refusal(), (503, "storage_unavailable".to_owned()));
    assert_eq!(of(&server, "GET", "first", &[], "").refusal(), (503, "storage_unavailable".to_owned()));
    weed.start_again();
    is_whole(&server, "first", 12);
    put(&server, "second", 2);
    settles(&weed, &prefix, 2);
}

#[test]
fn a_blob_that_was_deleted_behind_our_back_is_damage_of_that_object_alone() {
    let Some(weed) = Weed::shared("a blob deleted behind our back") else { return };
    let prefix = weed.fresh_prefix();
    let server = serve(&weed.config(&prefix, weed.address(), ""));
    put(&server, "kept", 2);
    let kept = weed.objects(&prefix);
    put(&server, "lost", 2);
    let lost: Vec<Key> = weed.objects(&prefix).into_iter().filter(|key| !kept.contains(key)).collect();
    let [lost] = &lost[..] else { panic!("one blob an object: {lost:?}") };
    weed.remove(lost);
    assert_eq!(of(&server, "GET", "lost", &[], "").refusal(), (500, "storage_corrupt".to_owned()));
    is_whole(&server, "kept", 2);
    assert_eq!(of(&server, "PUT", "lost", &[], bytes(2)).status, 200);
    is_whole(&server, "lost", 2);
}

#[test]
fn the_bucket_and_who_asks_are_shown_and_no_secret_is() {
    let Some(weed) = Weed::shared("a shown bucket") else { return };
    let prefix = weed.fresh_prefix();
    let server = serve(&weed.config(&prefix, weed.address(), ""));
    let shown = server.get("/v1/config");
    let text = shown.text();
    assert!(!text.contains("tide-secret"), "{text}");
    let shown = shown.json();
    let value = |key: &str| shown.pointer(&format!("/{key}")).or_else(|| shown["config"].get(key)).cloned();
    assert_eq!(value("objects.cold"), Some(Value::from(format!("s3://tide/{prefix}"))), "{shown}");
    assert_eq!(value("objects.s3.secret_access_key"), Some("***".into()));
}

#[test]
fn a_store_that_cannot_be_used_is_refused_at_the_start_with_its_name_and_what_failed() {
    let careless = careless_store();
    let at = |address: SocketAddr, more: &str| {
        format!(
            "[objects]\ncold = \"s3://some-bucket/x\"\n[objects.s3]\nendpoint = \"http://{address}\"\n\
             access_key_id = \"a\"\nsecret_access_key = \"hidden\"\n{more}\n"
        )
    };
    let said = refuses(&at(careless, ""));
    assert!(said.contains(&format!("s3://some-bucket/x at http://{careless}")), "{said}");
    assert!(said.contains("If-None-Match"), "{said}");

    // Nobody listens there.
    let gone = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let said = refuses(&at(gone, "start_timeout_ms = 1500"));
    assert!(said.contains(&format!("s3://some-bucket/x at http://{gone}")) && !said.contains("hidden"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(30), "it gives up");

    let Some(weed) = Weed::shared("a bucket that refuses") else { return };
    let said = refuses(&at(weed.address(), ""));
    assert!(said.contains("did not delete an object") || said.contains("did not take an object"), "{said}");
    assert!(!said.contains("hidden"), "{said}");
}

/// What speaks as much S3 as it takes to be asked, and writes over what is there.
fn careless_store() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            std::thread::spawn(move || careless(socket.unwrap()));
        }
    });
    address
}

fn careless(mut socket: TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while socket.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut head)).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        socket.read_exact(&mut body).unwrap();
        let answer = if text.starts_with("delete") { "204 No Content" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {answer}\r\netag: \"x\"\r\ncontent-length: 0\r\n\r\n");
        if socket.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
