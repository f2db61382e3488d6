//! Health, readiness, metrics, version, limits, and the settings that change at run time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tidegate_core::limit::Settings;
use tidegate_core::port::SourceError;
use tidegate_testkit::block_on;

use super::client::ask;
use super::world::World;

#[test]
fn every_route_that_can_be_read_answers_get_and_head_alike() {
    block_on(async {
        let world = World::start();
        for path in ["/healthz", "/readyz", "/metrics", "/v1/version", "/v1/limits", "/v1/config", "/v1/leases"] {
            let get = world.get(path).await;
            let head = ask(world.address, "HEAD", path, &[], b"").await;
            assert_eq!((get.status(), head.status()), (200, 200), "{path}");
            assert_eq!(get.header("content-type"), head.header("content-type"));
            assert_eq!(get.header("content-length"), head.header("content-length"));
            let options = ask(world.address, "OPTIONS", path, &[], b"").await;
            assert_eq!(options.status(), 204);
            assert!(options.header("allow").unwrap().contains("GET, HEAD"));
        }
        assert_eq!(world.get("/v1/version").await.json()["name"], "tidegate");
        assert_eq!(world.get("/v1/version").await.json()["api"], "v1");
        assert_eq!(world.get("/v1/leases").await.json(), json!({"leases": []}));
        let metrics = world.get("/metrics").await;
        assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
        assert!(metrics.body.ends_with(b"tidegate_test 1\n"));
    });
}

#[test]
fn readiness_says_which_source_does_not_answer() {
    block_on(async {
        let world = World::start();
        world.source.fail_ping(Some(Arc::new(|| SourceError::Unavailable("10.0.0.7 refused".into()))));
        let answer = world.get("/readyz").await;
        assert_eq!((answer.status(), answer.code().as_str()), (503, "source_unavailable"));
        assert_eq!(answer.json()["source"], "main");
        assert!(!String::from_utf8_lossy(&answer.body).contains("10.0.0.7"), "this route is open to everybody");
        assert_eq!(world.get("/healthz").await.status(), 200, "the process is up all the same");
        world.source.fail_ping(None);
        assert_eq!(world.get("/readyz").await.status(), 200);
    });
}

#[test]
fn every_bound_is_listed_with_its_value_and_meaning() {
    block_on(async {
        let world = World::start();
        let limits = world.get("/v1/limits").await.json();
        let settings = limits["settings"].as_array().unwrap();
        assert_eq!(settings.len(), Settings::ALL.len());
        for (listed, setting) in settings.iter().zip(Settings::ALL) {
            assert_eq!(listed["key"], setting.key);
            assert_eq!(listed["value"], setting.default);
            assert_eq!((&listed["min"], &listed["max"]), (&json!(setting.min), &json!(setting.max)));
            assert!(listed["meaning"].as_str().unwrap().len() > 10);
        }
        assert!(limits["built_in"].as_array().unwrap().iter().any(|limit| limit["name"] == "http.token_max_bytes"));
    });
}

#[test]
fn a_change_of_settings_is_all_or_nothing_and_audited() {
    block_on(async {
        let world = World::start();
        let patch =
            async |body: Value| ask(world.address, "PATCH", "/v1/config", &[], body.to_string().as_bytes()).await;
        for (body, code, field) in [
            (json!({"stream.max_global": 7, "stream.nonsense": 1}), "unknown_field", "stream.nonsense"),
            (json!({"stream.max_global": 7, "stream.chunk.pages": 65}), "out_of_range", "stream.chunk.pages"),
            (json!({"stream.max_global": 7, "stream.chunk.pages": -1}), "out_of_range", "stream.chunk.pages"),
            (json!({"stream.max_global": 7, "stream.chunk.pages": "4"}), "invalid_field", "stream.chunk.pages"),
            (json!({"stream.max_global": 7, "stream.chunk.pages": 4.5}), "invalid_field", "stream.chunk.pages"),
            (json!({"stream.max_global": 7, "listen.http": "x"}), "not_changeable_at_run_time", "listen.http"),
        ] {
            let answer = patch(body.clone()).await;
            assert_eq!((answer.status(), answer.code().as_str()), (400, code), "{body}");
            assert_eq!(answer.json()["field"], field);
        }
        assert_eq!(world.settings.freeze(), Settings::default(), "nothing was changed");
        assert!(world.audit.events().is_empty());

        let changed = patch(json!({"stream.max_global": 7, "stream.chunk.pages": 4})).await;
        assert_eq!(changed.status(), 200);
        assert_eq!(changed.json()["stream.max_global"], 7);
        assert_eq!(world.settings.freeze().stream_max_global(), 7);
        assert_eq!(world.audit.events(), ["config.changed"], "a value that stays is no change");
        let record = serde_json::to_value(&world.audit.records()[0]).unwrap();
        assert_eq!(
            (&record["key"], &record["from"], &record["to"]),
            (&json!("stream.max_global"), &json!(256), &json!(7))
        );
        assert_eq!(record["subject"], "anonymous");

        let shown = world.get("/v1/config").await.json();
        assert_eq!(shown["stream.max_global"], 7);
        assert_eq!(shown["listen.http"], "127.0.0.1:7070");
    });
}

#[test]
fn a_panic_in_a_handler_is_one_requests_trouble() {
    block_on(async {
        let world = World::start();
        world.config.panics.store(true, Ordering::SeqCst);
        let answer = world.get("/v1/config").await;
        assert_eq!((answer.status(), answer.code().as_str()), (500, "internal"));
        assert!(!String::from_utf8_lossy(&answer.body).contains("told to panic"));
        world.config.panics.store(false, Ordering::SeqCst);
        assert_eq!(world.get("/v1/config").await.status(), 200);
    });
}

#[test]
fn every_answer_has_a_request_id_and_a_harmless_one_is_kept() {
    block_on(async {
        let world = World::start();
        let first = world.get("/healthz").await.header("x-request-id").unwrap().to_owned();
        let second = world.get("/no-such-route").await.header("x-request-id").unwrap().to_owned();
        assert_ne!(first, second);
        let with = async |id: &str| {
            let answer = ask(world.address, "GET", "/healthz", &[("x-request-id", id)], b"").await;
            answer.header("x-request-id").unwrap().to_owned()
        };
        assert_eq!(with("trace-1.a_B").await, "trace-1.a_B");
        assert_ne!(with("a b").await, "a b");
        assert_ne!(with(&"x".repeat(65)).await, "x".repeat(65));
    });
}
