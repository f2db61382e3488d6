//! Consumer groups over the wire: the shapes and codes that a client is written from. Who holds what, and when, is proved where
//! the groups live.

use serde_json::{Value, json};
use tidegate_testkit::wait::until;
use tidegate_testkit::{block_on, within};

use super::client::{Answer, Connection, request};
use super::record::{append, world_with_stream};
use super::world::World;

const GROUP: &str = "/v1/streams/s/groups/g";

fn code(answer: &Answer) -> (u16, String) {
    (answer.status(), answer.code())
}

async fn post(world: &World, path: &str, body: Value) -> Answer {
    world.post(&format!("{GROUP}/{path}"), body.to_string()).await
}

/// A good answer's document.
async fn done(world: &World, path: &str, body: Value) -> Value {
    let answer = post(world, path, body).await;
    assert_eq!(answer.status(), 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

async fn world_with_group(partitions: u32, spec: Value) -> World {
    let world = world_with_stream(partitions).await;
    let made = world.put(GROUP, spec.to_string()).await;
    assert_eq!(made.status(), 201, "{made:?}");
    world
}

fn values(polled: &Value) -> Vec<Value> {
    polled["records"].as_array().unwrap().iter().map(|record| record["value"].clone()).collect()
}

#[test]
fn a_group_is_made_once_described_listed_and_removed() {
    block_on(async {
        let world = world_with_stream(2).await;
        let made = world.put(GROUP, "").await;
        assert_eq!(made.status(), 201);
        let position =
            |partition: u32| json!({"partition": partition, "committed": 0, "next": 0, "earliest": 0, "lag": 0});
        let mut document = made.json();
        assert!(document["generation"].take().is_u64());
        assert_eq!(
            document,
            json!({
                "name": "g", "mode": "ordered", "start": "earliest", "session_ms": 10_000, "ack_timeout_ms": 30_000,
                "max_deliveries": 5, "dead_letter": null, "on_gap": "report", "generation": null, "members": [],
                "positions": [position(0), position(1)],
            })
        );
        assert_eq!(world.put(GROUP, "{}").await.status(), 200);
        let other = world.put(GROUP, r#"{"mode":"shared"}"#).await;
        assert_eq!(code(&other), (409, "group_exists".into()));
        assert!(other.json()["difference"].as_str().unwrap().contains("mode"));
        append(&world, [json!(1)]).await;
        let shown = world.get(GROUP).await.json();
        assert_eq!((&shown["positions"][0]["lag"], &shown["positions"][0]["next"]), (&json!(1), &json!(1)));
        for name in ["a%2Fb", "z%3A%F0%9F%8C%8A"] {
            assert_eq!(world.put(&format!("/v1/streams/s/groups/{name}"), "").await.status(), 201);
        }
        let names = async |query: &str| {
            let list = world.get(&format!("/v1/streams/s/groups{query}")).await.json();
            let names: Vec<Value> =
                list["groups"].as_array().unwrap().iter().map(|group| group["name"].clone()).collect();
            (names, list["next"].clone())
        };
        assert_eq!(names("").await, (vec![json!("a/b"), json!("g"), json!("z:🌊")], Value::Null));
        assert_eq!(names("?limit=2").await, (vec![json!("a/b"), json!("g")], json!("g")));
        assert_eq!(names("?limit=2&after=g").await, (vec![json!("z:🌊")], Value::Null));
        assert_eq!(world.delete(GROUP).await.status(), 204);
        for answer in [world.delete(GROUP).await, world.get(GROUP).await, post(&world, "poll", json!({})).await] {
            assert_eq!(code(&answer), (404, "group_not_found".into()));
        }
        for answer in [
            world.put("/v1/streams/none/groups/g", "").await,
            world.get("/v1/streams/none/groups").await,
            world.post("/v1/streams/none/groups/g/poll", "").await,
        ] {
            assert_eq!(code(&answer), (404, "stream_not_found".into()));
        }
    });
}

#[test]
fn what_a_group_cannot_be_is_refused_with_the_bound() {
    block_on(async {
        let world = world_with_stream(1).await;
        for (body, status, expected) in [
            (r#"{"session_ms":0}"#, 400, "invalid_group"),
            (r#"{"session_ms":86400001}"#, 400, "invalid_group"),
            (r#"{"max_deliveries":0}"#, 400, "invalid_group"),
            (r#"{"max_deliveries":18446744073709551615}"#, 400, "invalid_group"),
            (r#"{"dead_letter":"s","mode":"shared"}"#, 400, "invalid_group"),
            (r#"{"dead_letter":"none","mode":"shared"}"#, 404, "dead_letter_not_found"),
            (r#"{"mode":"queue"}"#, 400, "invalid_field"),
            (r#"{"commit":"auto"}"#, 400, "unknown_field"),
            ("[", 400, "malformed_json"),
        ] {
            assert_eq!(code(&world.put(GROUP, body).await), (status, expected.into()), "{body}");
        }
        let answer = world.put(GROUP, r#"{"session_ms":99}"#).await.json();
        assert_eq!(
            (&answer["field"], &answer["min"], &answer["max"]),
            (&json!("session_ms"), &json!(100), &json!(86_400_000))
        );
        assert_eq!(code(&world.put("/v1/streams/s/groups/%00", "").await), (400, "invalid_name".into()));
        assert_eq!(world.get("/v1/streams/s/groups").await.json()["groups"], json!([]));
    });
}

#[test]
fn a_group_without_members_polls_and_commits() {
    block_on(async {
        let world = world_with_group(1, json!({})).await;
        append(&world, (0..5).map(|n| json!(n))).await;
        let polled = done(&world, "poll", json!({"limit": 3})).await;
        assert_eq!(values(&polled), [0, 1, 2]);
        assert_eq!((&polled["delivered"], &polled["gaps"]), (&json!({"0": 3}), &json!([])));
        let record = &polled["records"][0];
        assert_eq!((&record["offset"], &record["delivery"]), (&json!(0), &Value::Null));
        let beyond = post(&world, "commit", json!({"positions": {"0": 4}})).await;
        assert_eq!(code(&beyond), (422, "offset_beyond_delivered".into()));
        assert_eq!((&beyond.json()["delivered"], &beyond.json()["given"]), (&json!(3), &json!(4)));
        assert_eq!(done(&world, "commit", json!({"positions": {"0": 2}})).await, json!({"committed": {"0": 2}}));
        let back = post(&world, "commit", json!({"positions": {"0": 1}})).await;
        assert_eq!(code(&back), (422, "offset_regression".into()));
        assert_eq!(back.json()["committed"], 2);
        let nowhere = post(&world, "commit", json!({"positions": {"7": 1}})).await;
        assert_eq!(code(&nowhere), (404, "partition_not_found".into()));
        assert_eq!(values(&done(&world, "poll", json!({})).await), [3, 4], "it goes on after what was delivered");
        assert_eq!(done(&world, "seek", json!({"positions": {"0": 1}})).await["committed"], json!({"0": 1}));
        assert_eq!(values(&done(&world, "poll", json!({})).await), [1, 2, 3, 4]);
        assert_eq!(done(&world, "seek", json!({"to": "latest"})).await["committed"], json!({"0": 5}));
        assert_eq!(done(&world, "seek", json!({"to": "earliest"})).await["committed"], json!({"0": 0}));
        let far = post(&world, "seek", json!({"positions": {"0": 6}})).await;
        assert_eq!(code(&far), (416, "offset_out_of_range".into()));
        assert_eq!((&far.json()["asked"], &far.json()["next"]), (&json!(6), &json!(5)));
        assert_eq!(code(&post(&world, "ack", json!({"ack": ["x"]})).await), (409, "wrong_mode".into()));
    });
}

#[test]
fn members_share_the_partitions_and_a_late_one_is_fenced() {
    block_on(async {
        let world = world_with_group(2, json!({})).await;
        let join = async |client: &str| {
            let answer = post(&world, "members", json!({"client": client})).await;
            assert_eq!(answer.status(), 201, "{answer:?}");
            answer.json()
        };
        let first = join("one").await;
        assert_eq!((&first["partitions"], &first["session_ms"]), (&json!([0, 1]), &json!(10_000)));
        let stamp = |member: &Value, generation: &Value| json!({"member": member["member"], "generation": generation});
        let second = join("two").await;
        let beat = async |member: &Value, generation: &Value| {
            let path = format!("members/{}/heartbeat", member["member"].as_str().unwrap());
            post(&world, &path, json!({"generation": generation})).await
        };
        // The first learns what it still holds.
        let held = beat(&first, &second["generation"]).await;
        assert_eq!(held.status(), 200, "{held:?}");
        let held = held.json();
        assert_eq!(held["partitions"].as_array().unwrap().len(), 1);
        let shown = world.get(GROUP).await.json();
        assert_eq!(shown["members"].as_array().unwrap().len(), 2);
        let fields: Vec<&String> = shown["members"][0].as_object().unwrap().keys().collect();
        assert_eq!(fields, ["client", "last_seen", "member", "partitions"]);
        let old = post(&world, "poll", stamp(&first, &json!(0))).await;
        assert_eq!(code(&old), (409, "fenced".into()));
        assert!(old.json()["generation"].is_u64());
        let nobody = json!({"member": "nobody", "generation": held["generation"]});
        assert_eq!(code(&post(&world, "poll", nobody.clone()).await), (404, "unknown_member".into()));
        assert_eq!(
            code(&post(&world, "poll", json!({"member": first["member"]})).await),
            (400, "missing_field".into())
        );
        append(&world, [json!("a")]).await;
        let holder = if held["partitions"][0] == 0 { &first } else { &second };
        let mut poll = stamp(holder, &held["generation"]);
        let polled = done(&world, "poll", poll.clone()).await;
        assert_eq!(values(&polled), ["a"]);
        poll["positions"] = json!({"0": 1});
        assert_eq!(done(&world, "commit", poll.clone()).await["committed"], json!({"0": 1}));
        let path = format!("{GROUP}/members/{}", holder["member"].as_str().unwrap());
        assert_eq!(world.delete(&path).await.status(), 204);
        assert_eq!(code(&world.delete(&path).await), (404, "unknown_member".into()));
        assert_eq!(code(&post(&world, "commit", poll).await), (404, "unknown_member".into()));
        let long = post(&world, "members", json!({"client": "x".repeat(256)})).await;
        assert_eq!(code(&long), (400, "invalid_field".into()));
    });
}

#[test]
fn records_of_a_shared_group_are_settled_one_by_one() {
    block_on(async {
        let world = world_with_group(1, json!({"mode": "shared"})).await;
        append(&world, (0..3).map(|n| json!(n))).await;
        let polled = done(&world, "poll", json!({"limit": 3})).await;
        let ids: Vec<Value> =
            polled["records"].as_array().unwrap().iter().map(|record| record["delivery"]["id"].clone()).collect();
        assert!(ids.iter().all(Value::is_string));
        let delivery = &polled["records"][0]["delivery"];
        assert_eq!(delivery["count"], 1);
        assert!(delivery["expires_at"].as_str().unwrap().ends_with('Z'));
        assert_eq!(world.get(GROUP).await.json()["in_flight"], 3);
        let settled = done(
            &world,
            "ack",
            json!({"ack": [ids[0], "never"], "nack": [{"id": ids[1]}], "extend": [{"id": ids[2], "ms": 60_000}]}),
        )
        .await;
        assert_eq!(settled, json!({"acked": 1, "nacked": 1, "extended": 1, "unknown": ["never"]}));
        let again = done(&world, "poll", json!({})).await;
        assert_eq!(values(&again), [1]);
        assert_eq!(again["records"][0]["delivery"]["count"], 2);
        assert_eq!(code(&post(&world, "commit", json!({"positions": {"0": 1}})).await), (409, "wrong_mode".into()));
    });
}

#[test]
fn a_waiting_poll_is_woken_given_up_and_ended() {
    block_on(async {
        let mut world = world_with_group(1, json!({})).await;
        let body = json!({"wait_ms": 60_000});
        let wait = post(&world, "poll", body.clone());
        let write = async {
            until("the poll to wait", async || world.in_flight() == 1).await;
            append(&world, [json!("now")]).await;
        };
        let (polled, ()) = futures::join!(wait, write);
        assert_eq!(values(&polled.json()), ["now"]);
        let path = format!("{GROUP}/poll");
        let send = async || {
            let mut connection = Connection::open(world.address).await;
            connection.send(request("POST", &path, &[], body.to_string().as_bytes())).await;
            until("the poll to wait", async || world.in_flight() == 1).await;
            connection
        };
        drop(send().await);
        until("the poll to be given up", async || world.in_flight() == 0).await;
        let mut last = send().await;
        world.stop();
        let answer = within("the poll to end", last.answer()).await.unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert_eq!(values(&answer.json()), Vec::<Value>::new());
        world.gone().await;
    });
}

#[test]
fn a_group_that_stops_at_a_gap_says_which_until_somebody_seeks() {
    block_on(async {
        let world = World::start();
        world.put("/v1/streams/s", r#"{"retention":{"records":2}}"#).await;
        world.put(GROUP, r#"{"on_gap":"stop"}"#).await;
        world.put("/v1/streams/s/groups/reports", "").await;
        append(&world, (0..5).map(|n| json!(n))).await;
        let gap = json!({"partition": 0, "from": 0, "to": 3, "reason": "retention"});
        for _ in 0..2 {
            let stopped = post(&world, "poll", json!({})).await;
            assert_eq!(code(&stopped), (410, "gap".into()));
            assert_eq!(stopped.json()["gap"], gap);
        }
        done(&world, "seek", json!({"positions": {"0": 3}})).await;
        assert_eq!(values(&done(&world, "poll", json!({})).await), [3, 4]);
        let reported = world.post("/v1/streams/s/groups/reports/poll", "").await.json();
        assert_eq!((&reported["gaps"], values(&reported)), (&json!([gap]), vec![json!(3), json!(4)]));
        assert_eq!(reported["delivered"], json!({"0": 5}));
    });
}

#[test]
fn bodies_of_a_groups_routes_are_strict() {
    block_on(async {
        let world = world_with_group(1, json!({})).await;
        for (path, body, expected) in [
            ("poll", r#"{"limit":0}"#, "invalid_field"),
            ("poll", r#"{"limit":10001}"#, "invalid_field"),
            ("poll", r#"{"limit":9223372036854775808}"#, "invalid_field"),
            ("poll", r#"{"wait_ms":60001}"#, "invalid_field"),
            ("poll", r#"{"max_bytes":-1}"#, "invalid_field"),
            ("poll", r#"{"timeout":1}"#, "unknown_field"),
            ("commit", "{}", "missing_field"),
            ("commit", r#"{"positions":{"0":-1}}"#, "invalid_field"),
            ("commit", r#"{"positions":{"0":18446744073709551616}}"#, "invalid_field"),
            ("commit", r#"{"positions":{"0":1,"0":1}}"#, "duplicate_field"),
            ("ack", r#"{"ack":[1]}"#, "invalid_field"),
            ("ack", r#"{"acks":[]}"#, "unknown_field"),
            ("seek", "{}", "missing_field"),
            ("seek", r#"{"to":"tomorrow"}"#, "invalid_field"),
            ("members", r#"{"client":7}"#, "invalid_field"),
            ("members/m/heartbeat", "{}", "missing_field"),
            ("members/m/heartbeat", r#"{"generation":"1"}"#, "invalid_field"),
        ] {
            let answer = world.post(&format!("{GROUP}/{path}"), body).await;
            assert_eq!(code(&answer), (400, expected.into()), "{path} {body}");
        }
        let absurd = post(&world, "commit", json!({"positions": {"0": u64::MAX}})).await;
        assert_eq!(code(&absurd), (422, "offset_beyond_delivered".into()));
    });
}
