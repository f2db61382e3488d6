//! Capacity and settings: refusals tell the bound, hurt nobody, and leak nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_core::Failure;
use tidegate_frame::ndjson::RowShape;
use tidegate_lease::audit::Auditor;
use tidegate_lease::frozen::SettingsCell;
use tidegate_query::{Frame, OpenRequest, QueryParts, QueryService};
use tidegate_testkit::wait::{block_on, until, within};
use tidegate_testkit::{FailingAudit, ManualClock, NoEntropy, Script, ScriptedSource, SeededEntropy};

use super::world::{SQL, World, principal, read_rows, read_to_end};

#[test]
fn the_caps_refuse_with_limit_and_current_and_one_principal_cannot_use_up_anothers() {
    block_on(async {
        let world = World::new(Script::numbers(100_000));
        world.set("stream.max_per_principal", 2);
        world.set("stream.max_global", 3);
        let held = [world.open(&world.me).await.unwrap(), world.open(&world.me).await.unwrap()];
        let refused = world.open(&world.me).await.unwrap_err();
        assert_eq!((refused.code(), refused.bound()), ("principal_stream_quota_exhausted", Some((2, 2))));
        let other = principal("acme", "bob");
        let others = world.open(&other).await.unwrap();
        let refused = world.open(&other).await.unwrap_err();
        assert_eq!((refused.code(), refused.bound()), ("stream_capacity_exhausted", Some((3, 3))));
        drop((held, others));
        until("the slots are free", async || world.open(&other).await.is_ok()).await;
    });
}

#[test]
fn a_resume_takes_its_slot_before_it_does_any_work() {
    block_on(async {
        let world = World::new(Script::numbers(10_000));
        world.set("stream.keep_bytes", 0);
        world.set("stream.max_per_principal", 1);
        let read = read_rows(&mut world.open(&world.me).await.unwrap(), 1_500).await;
        until("the reader has left", async || !world.service.leases(&world.me)[0].reading).await;
        let held = world.open(&world.me).await.unwrap();
        let runs = world.source.counters().runs;
        let refused = world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap_err();
        assert_eq!((refused.code(), refused.bound()), ("principal_stream_quota_exhausted", Some((1, 1))));
        assert_eq!(world.source.counters().runs, runs, "the query was not run again for it");
        drop(held);
        until("a slot is free", async || world.resume(&world.me, &read.cursor(), &read.rows).await.is_ok()).await;
        let refusals = world.audit.records().iter().filter(|it| format!("{it:?}").contains("capacity_refused")).count();
        assert!(refusals > 0, "refusals are in the audit trail");
    });
}

#[test]
fn a_take_over_needs_no_second_slot() {
    block_on(async {
        let world = World::new(Script::numbers(100_000));
        world.set("stream.max_per_principal", 1);
        let mut first = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut first, 5).await;
        let mut second = world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap();
        assert_eq!(read_to_end(&mut first).await.code(), "cursor_taken_over");
        assert_eq!(read_to_end(&mut second).await.status(), "complete");
    });
}

#[test]
fn when_leases_run_out_a_finished_one_is_given_up_then_the_askers_own_and_never_anothers() {
    block_on(async {
        let world = World::new(Script::numbers(10_000));
        world.set("limits.lease_max_global", 3);
        let other = principal("acme", "bob");
        let others = read_rows(&mut world.open(&other).await.unwrap(), 5).await;
        let finished = read_to_end(&mut world.open(&world.me).await.unwrap()).await;
        let unfinished = read_rows(&mut world.open(&world.me).await.unwrap(), 5).await;
        let left = |who| world.service.leases(who).iter().all(|lease| !lease.reading);
        until("all are left", async || left(&world.me) && left(&other)).await;
        let mut reading = vec![world.open(&world.me).await.unwrap()];
        let gone = world.resume(&world.me, &finished.cursor(), &finished.rows).await.unwrap_err();
        assert_eq!(gone.code(), "snapshot_expired", "the finished one first");
        reading.push(world.open(&world.me).await.unwrap());
        let gone = world.resume(&world.me, &unfinished.cursor(), &unfinished.rows).await.unwrap_err();
        assert_eq!(gone.code(), "snapshot_expired", "then what the asker itself had left");
        let refused = world.open(&world.me).await.unwrap_err();
        assert_eq!((refused.code(), refused.bound()), ("lease_capacity_exhausted", Some((3, 3))));
        world.resume(&other, &others.cursor(), &others.rows).await.unwrap();
    });
}

#[test]
fn a_thousand_readers_that_vanish_do_not_use_up_their_principals_leases() {
    block_on(async {
        let world = World::new(Script::numbers(10_000));
        world.source.set_max_snapshots(16);
        for _ in 0..1_000 {
            read_rows(&mut world.open(&world.me).await.unwrap(), 5).await;
            until("the reader has left", async || world.service.leases(&world.me).iter().all(|it| !it.reading)).await;
        }
        assert!(world.source.live_snapshots() <= 16);
    });
}

#[test]
fn an_open_stream_keeps_the_settings_that_it_opened_with() {
    block_on(async {
        let world = World::new(Script::numbers(1_000));
        world.set("stream.chunk.max_rows", 100);
        let mut before = world.open(&world.me).await.unwrap();
        world.set("stream.chunk.max_rows", 10);
        let mut after = world.open(&world.me).await.unwrap();
        for (stream, rows) in [(&mut before, 100), (&mut after, 10)] {
            let mut sizes = Vec::new();
            while let Some(frame) = within("a frame", stream.next()).await {
                if let Frame::Rows(bytes) = frame {
                    sizes.push(super::world::row_count(&bytes));
                }
            }
            assert!(sizes.iter().all(|size| *size <= rows) && sizes.contains(&rows), "{sizes:?}");
        }
    });
}

#[test]
fn a_statement_and_its_parameters_are_bounded() {
    block_on(async {
        let world = World::new(Script::numbers(1));
        world.set("limits.sql_max_bytes", 64);
        let long = format!("{SQL} -- {}", "x".repeat(64));
        assert_eq!(world.open_sql(&world.me, &long).await.unwrap_err().code(), "sql_too_large");
        world.set("limits.parameter_max", 0);
        let request = OpenRequest {
            source: "main".into(),
            sql: SQL.into(),
            parameters: vec![tidegate_core::port::Parameter::Null],
            shape: RowShape::Array,
        };
        assert_eq!(world.service.open(&world.me, request).await.unwrap_err().code(), "too_many_parameters");
        assert_eq!(world.source.counters().opened, 0, "nothing was opened for it");
    });
}

#[test]
fn without_randomness_there_is_no_stream() {
    block_on(async {
        let clock = ManualClock::new();
        let source = ScriptedSource::new(Script::numbers(1));
        let service = QueryService::new(QueryParts {
            sources: BTreeMap::from([("main".to_owned(), Arc::new(source.clone()) as _)]),
            settings: Arc::new(SettingsCell::default()),
            clock: Arc::new(clock.clone()),
            entropy: Arc::new(NoEntropy),
            auditor: Auditor::new(Arc::new(FailingAudit::default()), Arc::new(clock)),
        });
        let request =
            OpenRequest { source: "main".into(), sql: SQL.into(), parameters: vec![], shape: RowShape::Object };
        let refused = service.open(&principal("a", "b"), request).await.unwrap_err();
        assert_eq!(refused.code(), "entropy_unavailable");
        assert_eq!(source.counters().opened, 0);
    });
}

#[test]
fn a_failing_audit_trail_ends_no_stream() {
    block_on(async {
        let clock = ManualClock::new();
        let auditor = Auditor::new(Arc::new(FailingAudit::default()), Arc::new(clock.clone()));
        let service = QueryService::new(QueryParts {
            sources: BTreeMap::from([("main".to_owned(), Arc::new(ScriptedSource::new(Script::numbers(10))) as _)]),
            settings: Arc::new(SettingsCell::default()),
            clock: Arc::new(clock),
            entropy: Arc::new(SeededEntropy::new(1)),
            auditor: auditor.clone(),
        });
        let request =
            OpenRequest { source: "main".into(), sql: SQL.into(), parameters: vec![], shape: RowShape::Object };
        let mut stream = service.open(&principal("a", "b"), request).await.unwrap();
        assert_eq!(read_to_end(&mut stream).await.status(), "complete");
        assert!(auditor.dropped() > 0);
    });
}
