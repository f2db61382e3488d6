//! Sources of changes over the wire: their state, whose they are, and how they go on after a loss.

use std::sync::Arc;

use serde_json::json;
use tidegate_cdc::source::SourceSpec;
use tidegate_core::id::Name;
use tidegate_testkit::wait::until;
use tidegate_testkit::{ScriptedChanges, block_on, scripted_change};

use super::world::World;

#[test]
fn a_source_is_shown_with_its_state_and_goes_on_after_a_loss_as_a_person_says() {
    block_on(async {
        let world = World::start();
        assert_eq!(world.get("/v1/sources").await.json(), json!({"sources": []}));
        assert_eq!(world.get("/v1/sources/db").await.json()["code"], "source_not_found");
        let source = ScriptedChanges::new(vec![vec![scripted_change("public.item", "[1]", "{\"id\":1}")]]);
        source.commit(vec![scripted_change("public.item", "[2]", "{\"id\":2}")]);
        let spec = SourceSpec::new(Name::new("db").unwrap(), "scripted");
        world.sources.start(spec, Arc::new(source.clone())).unwrap();
        until("the changes", async || {
            let shown = world.get("/v1/sources/db").await.json();
            shown["position"] == "1" && shown["confirmed"] == "1" && shown["lag_bytes"] == 0
        })
        .await;
        let shown = world.get("/v1/sources/db").await.json();
        assert_eq!((&shown["state"], &shown["records"], &shown["epoch"]), (&json!("streaming"), &json!(2), &json!(1)));
        assert_eq!((&shown["copy"], &shown["last_error"]), (&json!({"state": "done"}), &json!(null)));
        let stream = json!({
            "name": "db.public.item", "position": "1", "spilled_records": 0, "spilled_bytes": 0, "refused_because": null,
        });
        assert_eq!(shown["streams"], json!([stream]));
        assert_eq!(world.get("/v1/sources").await.json()["sources"][0]["name"], "db");
        assert_eq!(world.get("/readyz").await.json(), json!({"status": "ready", "storage": "ok"}));

        let acknowledge = json!({"action": "restart_copy"}).to_string();
        let refused = world.post("/v1/sources/db/acknowledge", &acknowledge).await;
        assert_eq!((refused.status(), refused.json()["code"].as_str()), (409, Some("source_no_gap")));
        source.lose(Some("the slot is gone"));
        source.cut();
        until("the gap", async || world.get("/v1/sources/db").await.json()["state"] == "gap").await;
        let gap = world.get("/v1/sources/db").await.json()["gap"].clone();
        assert_eq!((&gap["from"], &gap["reason"]), (&json!("1"), &json!("the slot is gone")));
        let ready = world.get("/readyz").await;
        assert_eq!((ready.status(), &ready.json()["sources"]), (200, &json!({"db": "gap"})));
        let bad = world.post("/v1/sources/db/acknowledge", json!({"action": "forget"}).to_string()).await;
        assert_eq!(bad.status(), 400);
        assert_eq!(world.post("/v1/sources/db/acknowledge", &acknowledge).await.status(), 204);
        until("the second copy", async || world.get("/v1/sources/db").await.json()["records"] == 4).await;
        assert_eq!(world.post("/v1/sources/db/retry", "").await.status(), 204);
    });
}
