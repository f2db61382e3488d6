//! Large objects in parts.

use serde_json::{Value, json};
use tidegate_testkit::block_on;

use super::super::client::{Answer, ask};
use super::super::world::World;
use super::{MIB, bytes, digest_of, files, refused};

const PATH: &str = "/v1/objects/files/_/parts";

async fn begin(world: &World, headers: &[(&str, &str)]) -> String {
    let begun = ask(world.address, "POST", &format!("{PATH}?uploads"), headers, b"").await;
    assert_eq!(begun.status(), 201);
    begun.json()["upload"].as_str().unwrap().to_owned()
}

async fn part(world: &World, upload: &str, number: &str, content: &[u8]) -> Answer {
    world.put(&format!("{PATH}?upload={upload}&part={number}"), content).await
}

async fn complete(world: &World, upload: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    world.post(&format!("{PATH}?upload={upload}"), body).await
}

#[test]
fn parts_in_any_order_become_the_object_in_one_step() {
    block_on(async {
        let world = World::start();
        let upload = begin(&world, &[("content-type", "video/mp4"), ("x-tidegate-meta-a", "1")]).await;
        let (first, second) = (bytes(MIB + 1), bytes(3));
        let two = part(&world, &upload, "2", &second).await;
        assert_eq!((two.status(), two.json()["etag"].as_str()), (200, two.header("etag")));
        part(&world, &upload, "1", b"is sent again").await;
        let one = part(&world, &upload, "1", &first).await;
        assert_eq!(world.get(PATH).await.status(), 404, "it is not there before it is complete");
        let listed = world.get(&format!("{PATH}?upload={upload}")).await.json();
        assert_eq!(listed["parts"], json!([one.json(), two.json()]));
        let named = json!({"parts": [{"part": 1, "etag": one.header("etag")}, {"part": 2}]});
        let done = complete(&world, &upload, &named).await;
        assert_eq!((done.status(), &done.json()["length"]), (201, &json!(MIB + 4)));
        let got = world.get(PATH).await;
        assert_eq!(got.body, [first, second].concat());
        assert_eq!((got.header("content-type"), got.header("x-tidegate-meta-a")), (Some("video/mp4"), Some("1")));
        assert_eq!(got.header("etag"), done.header("etag"));
        // It has ended: nothing of it can be used again.
        assert_eq!(refused(&part(&world, &upload, "3", b"late").await), (404, "upload_not_found".into()));
        // Who lost the answer is told the same again.
        let again = complete(&world, &upload, &named).await;
        assert_eq!((again.status(), again.json(), again.header("etag")), (201, done.json(), done.header("etag")));
    });
}

#[test]
fn an_upload_that_is_not_whole_is_not_completed_and_goes_on() {
    block_on(async {
        let world = World::start();
        let upload = begin(&world, &[]).await;
        assert_eq!(refused(&complete(&world, &upload, &Value::Null).await), (409, "upload_part_missing".into()));
        let one = part(&world, &upload, "1", b"one").await.json()["etag"].clone();
        part(&world, &upload, "3", b"three").await;
        part(&world, &upload, "1", b"ONE").await;
        for (body, status, code) in [
            (Value::Null, 409, "upload_part_missing"),
            (json!({"parts": [{"part": 1}, {"part": 2}]}), 409, "upload_part_missing"),
            (json!({"parts": []}), 409, "upload_part_missing"),
            (json!({"parts": [{"part": 3}, {"part": 1}]}), 400, "upload_part_order"),
            (json!({"parts": [{"part": 1}, {"part": 1}]}), 400, "upload_part_order"),
            (json!({"parts": [{"part": 1, "etag": one}]}), 409, "upload_part_replaced"),
            (json!({"parts": [{"part": 1, "etag": "x"}]}), 400, "invalid_field"),
            (json!({"parts": [{"part": "1"}]}), 400, "invalid_field"),
            (json!({"parts": [{"number": 1}]}), 400, "unknown_field"),
            (json!({"parts": [{}]}), 400, "missing_field"),
            (json!({}), 400, "missing_field"),
            (json!([]), 400, "invalid_field"),
        ] {
            assert_eq!(refused(&complete(&world, &upload, &body).await), (status, code.into()), "{body}");
        }
        for (number, code) in [
            ("0", "upload_part_number"),
            ("1001", "upload_part_number"),
            ("x", "invalid_field"),
            ("-1", "invalid_field"),
        ] {
            assert_eq!(refused(&part(&world, &upload, number, b"").await), (400, code.into()), "{number}");
        }
        let wrong = [("content-digest", digest_of(b"other"))];
        let wrong: Vec<(&str, &str)> = wrong.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mismatch = ask(world.address, "PUT", &format!("{PATH}?upload={upload}&part=2"), &wrong, b"two").await;
        assert_eq!(refused(&mismatch), (422, "checksum_mismatch".into()));
        let named = json!({"parts": [{"part": 1}, {"part": 3}]});
        assert_eq!(complete(&world, &upload, &named).await.status(), 201);
        assert_eq!(world.get(PATH).await.body, b"ONEthree");
    });
}

#[test]
fn an_id_is_good_for_its_object_and_for_no_other() {
    block_on(async {
        let world = World::start();
        let upload = begin(&world, &[]).await;
        part(&world, &upload, "1", b"one").await;
        let last = if upload.ends_with('0') { '1' } else { '0' };
        let forged = format!("{}{last}", &upload[..63]);
        for (path, id) in [
            (PATH, forged.as_str()),
            (PATH, "x"),
            (PATH, ""),
            (PATH, &"0".repeat(64)),
            ("/v1/objects/files/_/other", &upload),
            ("/v1/objects/files/a=1/parts", &upload),
            ("/v1/objects/other/_/parts", &upload),
        ] {
            for (method, query) in [("GET", ""), ("PUT", "&part=1"), ("POST", ""), ("DELETE", "")] {
                let answer = ask(world.address, method, &format!("{path}?upload={id}{query}"), &[], b"").await;
                assert_eq!(refused(&answer), (404, "upload_not_found".into()), "{method} {path} {id}");
            }
        }
        assert_eq!(complete(&world, &upload, &Value::Null).await.status(), 201);
    });
}

#[test]
fn an_upload_that_is_given_up_is_gone() {
    block_on(async {
        let world = World::start();
        let upload = begin(&world, &[]).await;
        part(&world, &upload, "1", b"one").await;
        assert_eq!(files(world.cold()).len(), 1);
        let path = format!("{PATH}?upload={upload}");
        assert_eq!(world.delete(&path).await.status(), 204);
        assert_eq!(refused(&world.delete(&path).await), (404, "upload_not_found".into()));
        assert_eq!(refused(&part(&world, &upload, "1", b"one").await), (404, "upload_not_found".into()));
        assert_eq!(world.get(PATH).await.status(), 404);
    });
}

#[test]
fn completing_obeys_conditions_and_takes_no_coding() {
    block_on(async {
        let world = World::start();
        world.put(PATH, "there").await;
        let upload = begin(&world, &[]).await;
        part(&world, &upload, "1", b"one").await;
        let path = format!("{PATH}?upload={upload}");
        let absent = ask(world.address, "POST", &path, &[("if-none-match", "*")], b"").await;
        assert_eq!(refused(&absent), (412, "precondition_failed".into()));
        let coded = ask(world.address, "POST", &path, &[("content-encoding", "gzip")], b"{}").await;
        assert_eq!(refused(&coded), (415, "content_encoding_unsupported".into()));
        assert_eq!(complete(&world, &upload, &Value::Null).await.status(), 200, "it replaces what was there");
        let begun = world.post(&format!("{PATH}?uploads"), "content").await;
        assert_eq!(refused(&begun), (400, "invalid_field".into()));
    });
}

#[test]
fn a_completion_with_conditions_whose_answer_was_lost_is_answered_the_same_again() {
    block_on(async {
        let world = World::start();
        let mut tag = String::new();
        for name in ["if-none-match", "if-match", "if-unmodified-since"] {
            let upload = begin(&world, &[]).await;
            part(&world, &upload, "1", name.as_bytes()).await;
            let path = format!("{PATH}?upload={upload}");
            let condition = match name {
                "if-none-match" => (name, "*"),
                "if-match" => (name, tag.as_str()),
                _ => (name, "Fri, 01 Jan 2100 00:00:00 GMT"),
            };
            let first = ask(world.address, "POST", &path, &[condition], b"").await;
            assert_eq!(first.status(), if name == "if-none-match" { 201 } else { 200 }, "{name}");
            let made = first.header("etag").unwrap().to_owned();
            if name == "if-unmodified-since" {
                assert_eq!(world.delete(PATH).await.status(), 204);
            }
            let again = ask(world.address, "POST", &path, &[condition], b"").await;
            assert_eq!((again.status(), again.json()), (first.status(), first.json()), "{name}");
            tag = made;
        }
        assert_eq!(world.get(PATH).await.status(), 404, "an answer makes nothing");
        // An upload that is none is told as such, whatever the conditions.
        let path = format!("{PATH}?upload={}", "0".repeat(64));
        let unknown = ask(world.address, "POST", &path, &[("if-match", "*")], b"").await;
        assert_eq!(refused(&unknown), (404, "upload_not_found".into()));
    });
}

#[test]
fn what_is_said_of_the_whole_object_with_a_part_is_refused_and_not_lost() {
    block_on(async {
        let world = World::start();
        let upload = begin(&world, &[]).await;
        let path = format!("{PATH}?upload={upload}&part=1");
        let digest = digest_of(b"bytes");
        let said = [
            ("if-match", "*"),
            ("if-none-match", "*"),
            ("x-tidegate-meta-a", "1"),
            ("content-encoding", "gzip"),
            ("repr-digest", digest.as_str()),
        ];
        for (name, value) in said {
            let answer = ask(world.address, "PUT", &path, &[(name, value)], b"bytes").await;
            assert_eq!((answer.status(), answer.json()["field"].as_str()), (400, Some(name)));
        }
        assert_eq!(part(&world, &upload, "1", b"bytes").await.status(), 200);
        // Nor can metadata come with the completion.
        for (name, value) in
            [("x-tidegate-meta-a", "1"), ("x-tidegate-expires", "never"), ("repr-digest", digest.as_str())]
        {
            let path = format!("{PATH}?upload={upload}");
            let answer = ask(world.address, "POST", &path, &[(name, value)], b"").await;
            assert_eq!((answer.status(), answer.json()["field"].as_str()), (400, Some(name)));
        }
        assert_eq!(complete(&world, &upload, &Value::Null).await.status(), 201);
    });
}

#[test]
fn the_digest_of_the_whole_object_is_compared_before_it_is_stored() {
    block_on(async {
        let world = World::start();
        for (bytes, status) in [(b"other".as_slice(), 422), (b"bytes", 201)] {
            let digest = digest_of(b"bytes");
            assert_eq!(
                ask(world.address, "PUT", PATH, &[("repr-digest", digest.as_str())], bytes).await.status(),
                status
            );
            assert_eq!(world.get(PATH).await.status(), if status == 201 { 200 } else { 404 });
        }
    });
}
