//! Where large objects lie is slow, fails, is full, or lost a blob: each has its code, nothing that was answered is lost, and the next
//! request works.

use tidegate_testkit::wait::until;
use tidegate_testkit::{BlobCall, Fault, block_on, within};

use super::super::client::{Answer, Connection, ask, request};
use super::super::world::World;
use super::{MIB, bytes, files, nothing_is_left, refused};

const LARGE: &str = "/v1/objects/files/_/large";
const SMALL: &str = "/v1/objects/files/_/small";

async fn reads(world: &World, path: &str, content: &[u8]) {
    let got = world.get(path).await;
    assert_eq!((got.status(), got.whole), (200, true), "{got:?}");
    assert!(got.body == content, "{} bytes of {}", got.body.len(), content.len());
}

async fn small_ones_work(world: &World) {
    assert!(matches!(world.put(SMALL, "small").await.status(), 200 | 201));
    reads(world, SMALL, b"small").await;
}

#[test]
fn a_full_cold_store_refuses_what_is_large_and_keeps_what_was_there() {
    block_on(async {
        let world = World::start();
        let (old, new) = (bytes(2 * MIB), bytes(20 * MIB + 1));
        for call in BlobCall::WRITES {
            world.blobs.fail(call, Fault::Full);
            let put = world.put(LARGE, &new).await;
            if call == BlobCall::Put {
                // Large objects go in parts.
                assert_eq!(put.status(), 201);
                world.blobs.heal();
                assert_eq!(world.delete(LARGE).await.status(), 204);
                continue;
            }
            assert_eq!(refused(&put), (503, "storage_full".into()), "{call:?}");
            assert_eq!(refused(&world.get(LARGE).await), (404, "object_not_found".into()));
            small_ones_work(&world).await;
            world.blobs.heal();
            assert_eq!(world.put(LARGE, &old).await.status(), 201);
            world.blobs.fail(call, Fault::Full);
            assert_eq!(refused(&world.put(LARGE, &new).await), (503, "storage_full".into()), "{call:?}");
            reads(&world, LARGE, &old).await;
            world.blobs.heal();
            assert_eq!(world.put(LARGE, &new).await.status(), 200);
            reads(&world, LARGE, &new).await;
            assert_eq!(world.delete(LARGE).await.status(), 204);
        }
    });
}

#[test]
fn a_write_that_fails_leaves_no_blob_and_the_next_one_works() {
    block_on(async {
        let world = World::start();
        let content = bytes(9 * MIB);
        for (call, fault) in [
            (BlobCall::Begin, Fault::Unavailable),
            (BlobCall::Part, Fault::Unavailable),
            (BlobCall::Part, Fault::Indeterminate { applied: true }),
            (BlobCall::Complete, Fault::Unavailable),
            (BlobCall::Complete, Fault::Indeterminate { applied: true }),
        ] {
            world.blobs.fail_next(call, 1, fault);
            let put = refused(&world.put(LARGE, &content).await);
            assert_eq!(put, (503, "storage_unavailable".into()), "{call:?} {fault:?}");
            assert_eq!(world.get(LARGE).await.status(), 404, "{call:?} {fault:?}");
            nothing_is_left(&world).await;
        }
        assert_eq!(world.put(LARGE, &content).await.status(), 201);
        reads(&world, LARGE, &content).await;
    });
}

#[test]
fn a_read_that_fails_says_so_and_one_that_breaks_off_is_not_whole() {
    block_on(async {
        let world = World::start();
        let content = bytes(5 * MIB);
        assert_eq!(world.put(LARGE, &content).await.status(), 201);
        world.blobs.fail(BlobCall::Get, Fault::Unavailable);
        for range in [None, Some(("range", "bytes=5-9"))] {
            let got = ask(world.address, "GET", LARGE, range.as_slice(), b"").await;
            assert_eq!(refused(&got), (503, "storage_unavailable".into()));
        }
        let head = ask(world.address, "HEAD", LARGE, &[], b"").await;
        assert_eq!((head.status(), head.header("content-length")), (200, Some("5242880")), "what is known, is known");
        small_ones_work(&world).await;
        world.blobs.heal();
        world.blobs.cut_reads_after(3 * MIB as u64);
        let got = world.get(LARGE).await;
        assert_eq!((got.status(), got.whole), (200, false));
        assert!(content.starts_with(&got.body) && got.body.len() < content.len());
        world.blobs.cut_reads_after(1_000);
        let mut connection = Connection::open(world.address).await;
        connection.send(request("GET", LARGE, &[], b"")).await;
        // What breaks off at its first byte may take the answer's head with it.
        if let Some(got) = connection.answer().await {
            assert!(got.status() == 503 || !got.whole, "{:?}", got.head);
        }
        world.blobs.heal();
        reads(&world, LARGE, &content).await;
    });
}

#[test]
fn a_blob_that_was_deleted_behind_our_back_is_damage_and_the_object_can_be_written_again() {
    block_on(async {
        let world = World::start();
        let content = bytes(3 * MIB);
        let lose = || {
            for file in files(world.cold()) {
                std::fs::remove_file(file).unwrap();
            }
        };
        assert_eq!(world.put(LARGE, &content).await.status(), 201);
        small_ones_work(&world).await;
        lose();
        for _ in 0..2 {
            assert_eq!(refused(&world.get(LARGE).await), (500, "storage_corrupt".into()));
        }
        reads(&world, SMALL, b"small").await;
        assert_eq!(world.put(LARGE, &content).await.status(), 200, "what has no bytes is there, and replaced");
        reads(&world, LARGE, &content).await;
        lose();
        assert_eq!(world.delete(LARGE).await.status(), 204);
        assert_eq!(refused(&world.get(LARGE).await), (404, "object_not_found".into()));
        assert_eq!(world.put(LARGE, &content).await.status(), 201);
        reads(&world, LARGE, &content).await;
    });
}

#[test]
fn a_slow_cold_store_holds_up_those_who_use_it_and_nobody_else() {
    block_on(async {
        let world = World::start();
        let content = bytes(2 * MIB);
        assert_eq!(world.put(LARGE, &content).await.status(), 201);
        world.blobs.hold(BlobCall::Get);
        let mut slow = Vec::new();
        for _ in 0..20 {
            let mut connection = Connection::open(world.address).await;
            connection.send(request("GET", LARGE, &[], b"")).await;
            slow.push(connection);
        }
        world.blobs.wait_for_held(20).await;
        small_ones_work(&world).await;
        assert_eq!(world.put("/v1/objects/files/_/other", &content).await.status(), 201, "writes are not held");
        // One goes away.
        slow.pop();
        world.blobs.resume();
        for connection in &mut slow {
            let got = within("what was slow", connection.answer()).await.unwrap();
            assert!(got.whole && got.body == content);
        }
        drop(slow);

        world.blobs.hold(BlobCall::Complete);
        let mut writer = Connection::open(world.address).await;
        writer.send(request("PUT", LARGE, &[], &bytes(4 * MIB))).await;
        world.blobs.wait_for_held(1).await;
        reads(&world, LARGE, &content).await;
        small_ones_work(&world).await;
        world.blobs.resume();
        assert_eq!(within("a slow write", writer.answer()).await.unwrap().status(), 200);
        reads(&world, LARGE, &bytes(4 * MIB)).await;
    });
}

#[test]
fn a_writer_that_goes_away_while_storage_is_slow_leaves_a_whole_object_or_none() {
    block_on(async {
        let world = World::start();
        for call in [BlobCall::Begin, BlobCall::Part, BlobCall::Complete] {
            world.blobs.hold(call);
            let mut writer = Connection::open(world.address).await;
            writer.send(request("PUT", LARGE, &[], &bytes(2 * MIB))).await;
            world.blobs.wait_for_held(1).await;
            drop(writer);
            world.blobs.resume();
            until("the request to end", async || world.in_flight() == 0).await;
            let got = world.get(LARGE).await;
            assert!(got.status() == 404 || (got.whole && got.body == bytes(2 * MIB)), "{call:?}: {:?}", got.head);
            assert_eq!(world.put(LARGE, "small now").await.status(), if got.status() == 404 { 201 } else { 200 });
            reads(&world, LARGE, b"small now").await;
            assert_eq!(world.delete(LARGE).await.status(), 204);
        }
    });
}

#[test]
fn a_part_that_found_no_room_is_sent_again_and_the_upload_goes_on() {
    block_on(async {
        let world = World::start();
        let (first, second) = (bytes(3 * MIB), bytes(MIB + 7));
        let begun = world.post(&format!("{LARGE}?uploads"), "").await;
        let id = begun.json()["upload"].as_str().unwrap().to_owned();
        let part = |number: usize| format!("{LARGE}?upload={id}&part={number}");
        assert_eq!(world.put(&part(1), &first).await.status(), 200);
        world.blobs.fill();
        assert_eq!(refused(&world.put(&part(2), &second).await), (503, "storage_full".into()));
        assert_eq!(refused(&world.put(&part(1), &second).await), (503, "storage_full".into()));
        world.blobs.heal();
        assert_eq!(world.put(&part(2), &second).await.status(), 200);
        assert_eq!(world.post(&format!("{LARGE}?upload={id}"), "").await.status(), 201);
        reads(&world, LARGE, &[first, second].concat()).await;
    });
}

#[test]
fn in_a_batch_a_cold_store_that_fails_fails_the_parts_that_need_it() {
    block_on(async {
        let world = World::start();
        assert_eq!(world.put(LARGE, bytes(2 * MIB)).await.status(), 201);
        small_ones_work(&world).await;
        let get = |key: &str| format!("--edge\r\nx-tidegate-op: get\r\nx-tidegate-key: {key}\r\n\r\n\r\n");
        let body = format!("{}{}{}--edge--\r\n", get("large"), get("small"), get("large"));
        let batch = async || -> Answer {
            let kind = [("content-type", "multipart/mixed; boundary=edge")];
            ask(world.address, "POST", "/v1/objects:batch/files/_", &kind, body.as_bytes()).await
        };
        world.blobs.fail(BlobCall::Get, Fault::Unavailable);
        let failed = batch().await;
        let text = String::from_utf8_lossy(&failed.body);
        assert!(failed.whole, "a part that fails ends no batch");
        assert_eq!(text.matches("x-tidegate-status: 503").count(), 2, "{text}");
        assert_eq!(text.matches("\"storage_unavailable\"").count(), 2, "{text}");
        assert_eq!(text.matches("x-tidegate-status: 200").count(), 1, "{text}");
        world.blobs.heal();
        let whole = batch().await;
        assert!(whole.whole && whole.body.len() > 4 * MIB);
        assert_eq!(String::from_utf8_lossy(&whole.body).matches("x-tidegate-status: 200").count(), 3);
    });
}
