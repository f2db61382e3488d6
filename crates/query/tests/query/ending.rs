//! How streams and leases end: cancelled, expired, stalled, drained; and that nothing of them is left.

use std::time::Duration;

use tidegate_core::Failure;
use tidegate_core::id::CursorToken;
use tidegate_testkit::wait::{block_on, until};
use tidegate_testkit::{Gate, Script};

use super::world::{World, read_rows, read_to_end};

#[test]
fn cancel_ends_the_stream_is_idempotent_and_refuses_a_resume() {
    block_on(async {
        let world = World::new(Script::numbers(100_000));
        let mut stream = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut stream, 2).await;
        let cursor = CursorToken::parse(&read.cursor()).unwrap();
        world.service.cancel(&world.me, &cursor).await.unwrap();
        world.service.cancel(&world.me, &cursor).await.unwrap();
        let rest = read_to_end(&mut stream).await;
        assert_eq!((rest.status(), rest.error.is_none()), ("cancelled", true));
        let refused = world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap_err();
        assert_eq!(refused.code(), "cursor_cancelled");
        world.until_at_rest().await;
        let stranger = super::world::principal("acme", "mallory");
        assert_eq!(world.service.cancel(&stranger, &cursor).await.unwrap_err().code(), "cursor_not_found");
    });
}

#[test]
fn a_snapshot_expires_its_ttl_after_the_last_read_and_not_before() {
    block_on(async {
        let world = World::new(Script::numbers(100_000));
        world.set("stream.snapshot.ttl_ms", 60_000);
        let mut stream = world.open(&world.me).await.unwrap();
        let mut read = read_rows(&mut stream, 10).await;
        let cursor = read.cursor();
        // Being read, it is renewed, however long that takes.
        world.clock.advance(Duration::from_secs(20));
        drop(stream);
        until("the reader has left", async || !world.service.leases(&world.me)[0].reading).await;
        world.clock.advance(Duration::from_millis(59_999));
        let mut stream = world.resume(&world.me, &cursor, &read.rows).await.unwrap();
        read.rows.extend_from_slice(&read_rows(&mut stream, 10).await.rows);
        drop(stream);
        until("the reader has left", async || !world.service.leases(&world.me)[0].reading).await;
        world.clock.advance(Duration::from_millis(60_000));
        let refused = world.resume(&world.me, &cursor, &read.rows).await.unwrap_err();
        assert_eq!(refused.code(), "snapshot_expired");
        world.until_at_rest().await;
        let refused = world.resume(&world.me, &cursor, &read.rows).await.unwrap_err();
        assert_eq!(refused.code(), "snapshot_expired", "it is remembered");
    });
}

#[test]
fn a_reader_that_takes_nothing_loses_its_slot_and_keeps_its_cursor() {
    block_on(async {
        let world = World::new(Script::numbers(100_000));
        world.set("stream.max_global", 1);
        world.set("stream.idle_timeout_ms", 30_000);
        let mut stream = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut stream, 10).await;
        assert_eq!(world.open(&world.me).await.unwrap_err().code(), "stream_capacity_exhausted");
        let clock = world.clock.clone();
        until("the slot is free", async || {
            clock.advance(Duration::from_secs(1));
            !world.service.leases(&world.me)[0].reading
        })
        .await;
        assert!(world.audit.records().iter().any(|record| format!("{record:?}").contains("reader_stalled")));
        let rest = read_to_end(&mut world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap()).await;
        assert_eq!(rest.status(), "complete");
    });
}

#[test]
fn a_reader_that_takes_one_frame_bit_by_bit_is_slow_and_not_stalled() {
    block_on(async {
        let world = World::new(Script::numbers(100_000));
        world.set("stream.idle_timeout_ms", 1_000);
        let mut stream = world.open(&world.me).await.unwrap();
        read_rows(&mut stream, 10).await;
        for _ in 0..50 {
            world.clock.wait_for_waiters(2).await;
            stream.note_progress();
            world.clock.advance(Duration::from_millis(1_000));
            tokio::task::yield_now().await;
        }
        assert!(world.service.leases(&world.me)[0].reading);
        assert_eq!(read_to_end(&mut stream).await.status(), "complete");
    });
}

#[test]
fn a_stalled_reader_that_wakes_up_is_told_why_it_was_stopped() {
    block_on(async {
        let world = World::new(Script::numbers(100_000));
        let mut stream = world.open(&world.me).await.unwrap();
        read_rows(&mut stream, 10).await;
        let clock = world.clock.clone();
        until("the slot is free", async || {
            clock.advance(Duration::from_secs(1));
            !world.service.leases(&world.me)[0].reading
        })
        .await;
        let rest = read_to_end(&mut stream).await;
        assert_eq!((rest.code(), rest.status()), ("reader_stalled", "failed"));
    });
}

#[test]
fn drain_refuses_new_work_lets_streams_finish_and_gives_the_rest_their_end_line() {
    block_on(async {
        let gate = Gate::closed();
        let world = World::new(Script::numbers(3_000).hold_at(2_000, &gate));
        let mut stuck = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut stuck, 1_000).await;
        let service = world.service.clone();
        let drained = tokio::spawn(async move { service.drain().await });
        until("new work is refused", async || {
            world.open(&world.me).await.is_err_and(|refused| refused.code() == "draining")
        })
        .await;
        let refused = world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap_err();
        assert_eq!(refused.code(), "draining");
        let clock = world.clock.clone();
        let ticking = tokio::spawn(async move {
            loop {
                clock.advance(Duration::from_millis(200));
                tokio::task::yield_now().await;
            }
        });
        let rest = read_to_end(&mut stuck).await;
        assert_eq!((rest.code(), rest.status()), ("draining", "failed"));
        drained.await.unwrap();
        ticking.abort();
        assert_eq!((world.source.live_snapshots(), world.source.live_runs()), (0, 0));
    });
}

#[test]
fn a_thousand_streams_opened_and_dropped_cancelled_or_expired_leave_nothing() {
    block_on(async {
        let world = World::new(Script::numbers(10_000));
        for round in 0..1_000 {
            let mut stream = world.open(&world.me).await.unwrap();
            let read = read_rows(&mut stream, round % 3).await;
            match round % 3 {
                0 => drop(stream),
                1 => {
                    let cursor = CursorToken::parse(&read.cursor()).unwrap();
                    world.service.cancel(&world.me, &cursor).await.unwrap();
                }
                _ => drop(read_to_end(&mut stream).await),
            }
            world.clock.advance(Duration::from_secs(60));
        }
        let clock = world.clock.clone();
        until("all is at rest", async || {
            clock.advance(Duration::from_secs(60));
            world.source.live_snapshots() == 0 && world.service.leases(&world.me).is_empty()
        })
        .await;
        let closed = world.audit.events().iter().filter(|event| **event == "stream.closed").count();
        assert_eq!(closed, 1_000, "every stream's end is in the audit trail");
    });
}

/// The machine forgets ended leases beyond a bound, and new ones then begin at a higher epoch: nothing may rely on the first.
#[test]
fn after_five_thousand_leases_a_cancel_still_frees_everything_at_once() {
    block_on(async {
        let world = World::new(Script::numbers(10_000));
        for _ in 0..5_000 {
            let mut stream = world.open(&world.me).await.unwrap();
            let cursor = CursorToken::parse(&read_rows(&mut stream, 0).await.cursor()).unwrap();
            world.service.cancel(&world.me, &cursor).await.unwrap();
        }
        let mut stream = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut stream, 1).await;
        assert!(world.service.leases(&world.me)[0].epoch > 1);
        let mut second = world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap();
        assert_eq!(read_to_end(&mut stream).await.code(), "cursor_taken_over");
        world.service.cancel(&world.me, &CursorToken::parse(&read.cursor()).unwrap()).await.unwrap();
        assert_eq!(read_to_end(&mut second).await.status(), "cancelled");
        world.until_at_rest().await;
    });
}

#[test]
fn a_stream_that_cannot_be_resumed_says_why_and_ends_with_its_reader() {
    block_on(async {
        let world = World::new(Script::numbers(10_000));
        let mut stream = world.open_sql(&world.me, "select * from item").await.unwrap();
        let open = read_rows(&mut stream, 1).await.open.unwrap();
        assert!(!open.resumable && open.cursor.is_none());
        assert!(open.not_resumable_because.unwrap().starts_with("no_order"));
        drop(stream);
        world.until_at_rest().await;
    });
}
