//! Resumes: the exact row, the same snapshot, the same bytes; and what a wrong resume does, which is nothing.

use std::time::Duration;

use tidegate_core::Failure;
use tidegate_testkit::wait::{block_on, until, within};
use tidegate_testkit::{Gate, Script, SeededEntropy};

use super::world::{World, hash_of, principal, read_rows, read_to_end};

#[test]
fn an_undisturbed_read_is_open_rows_end_with_the_hash_of_all_rows() {
    block_on(async {
        let world = World::new(Script::numbers(2_500));
        let read = read_to_end(&mut world.open(&world.me).await.unwrap()).await;
        let end = read.end.clone().unwrap();
        assert_eq!((end.rows, end.from_row, read.status()), (2_500, 0, "complete"));
        assert_eq!(end.prefix_hash, hash_of(&read.rows));
        let open = read.open.unwrap();
        assert!(open.resumable && open.cursor.is_some_and(|cursor| cursor.len() == 48));
        assert_eq!(open.lease.to_string().len(), 32);
    });
}

/// The promise that Tidegate exists for, over every size of the kept window.
#[test]
fn a_hundred_resumes_in_a_chain_at_random_rows_give_the_bytes_of_one_undisturbed_read() {
    block_on(async {
        for keep_bytes in [0, 2_000, 8 << 20] {
            let world = World::new(Script::numbers(5_000));
            world.set("stream.keep_bytes", keep_bytes);
            world.set("stream.chunk.max_rows", 37);
            let expected = world.undisturbed().await;
            let dice = SeededEntropy::new(keep_bytes + 1);
            let mut read = read_rows(&mut world.open(&world.me).await.unwrap(), dice.below(50)).await;
            let cursor = read.cursor();
            for _ in 0..100 {
                world.source.commit();
                let mut stream = world.resume(&world.me, &cursor, &read.rows).await.unwrap();
                let more = read_rows(&mut stream, dice.below(48)).await;
                assert_eq!(more.open.unwrap().from_row, super::world::row_count(&read.rows));
                read.rows.extend_from_slice(&more.rows);
            }
            let last = read_to_end(&mut world.resume(&world.me, &cursor, &read.rows).await.unwrap()).await;
            read.rows.extend_from_slice(&last.rows);
            assert_eq!(read.rows, expected.rows, "kept {keep_bytes} bytes");
            assert_eq!(last.end.unwrap().prefix_hash, expected.end.unwrap().prefix_hash);
        }
    });
}

/// A client may throw rows away, and may come back with rows that a shorter resume did not reach again.
#[test]
fn resumes_at_any_row_in_any_order_give_the_same_bytes() {
    block_on(async {
        for keep_bytes in [0, 3_000, 8 << 20] {
            let world = World::new(Script::numbers(2_000));
            world.set("stream.keep_bytes", keep_bytes);
            world.set("stream.chunk.max_rows", 37);
            let whole = read_to_end(&mut world.open(&world.me).await.unwrap()).await;
            let ends: Vec<usize> = std::iter::once(0)
                .chain(whole.rows.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1))
                .collect();
            let dice = SeededEntropy::new(keep_bytes + 3);
            let mut rows = vec![0, 2_000, 1_999, 0, 2_000];
            rows.extend((0..40).map(|_| dice.below(2_001)));
            for row in rows {
                let held = &whole.rows[..ends[usize::try_from(row).unwrap()]];
                let mut stream = world.resume(&world.me, &whole.cursor(), held).await.unwrap();
                if dice.below(2) == 0 {
                    let rest = read_to_end(&mut stream).await;
                    assert_eq!([held, &rest.rows].concat(), whole.rows, "from row {row}, kept {keep_bytes}");
                } else {
                    read_rows(&mut stream, dice.below(2_001 - row)).await;
                }
            }
        }
    });
}

/// A refused resume leaves the lease as it was: its deadline, its slot, and the present reader's place.
#[test]
fn a_refused_resume_does_not_prolong_the_snapshot() {
    block_on(async {
        let world = World::new(Script::numbers(10_000));
        world.set("stream.snapshot.ttl_ms", 60_000);
        let read = read_rows(&mut world.open(&world.me).await.unwrap(), 10).await;
        until("the reader has left", async || !world.service.leases(&world.me)[0].reading).await;
        world.clock.advance(Duration::from_secs(40));
        let wrong = hash_of(b"{\"row\":{}}\n");
        world.resume_claiming(&world.me, &read.cursor(), 10, wrong).await.unwrap_err();
        world.clock.advance(Duration::from_secs(20));
        let refused = world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap_err();
        assert_eq!(refused.code(), "snapshot_expired");
    });
}

#[test]
fn a_resume_that_takes_longer_than_the_ttl_still_finds_its_row_and_one_without_end_is_bounded() {
    block_on(async {
        let gate = Gate::closed();
        let world = World::new(Script::numbers(5_000).hold_at(4_000, &gate));
        world.set("stream.keep_bytes", 0);
        world.set("stream.snapshot.ttl_ms", 1_000);
        gate.open();
        let whole = read_to_end(&mut world.open(&world.me).await.unwrap()).await;
        until("the reader has left", async || !world.service.leases(&world.me)[0].reading).await;
        gate.close();
        let (service, me, clock) = (world.service.clone(), world.me.clone(), world.clock.clone());
        let request = tidegate_query::ResumeRequest {
            cursor: tidegate_core::id::CursorToken::parse(&whole.cursor()).unwrap(),
            rows: 4_500,
            prefix_hash: hash_of(&super::world::first_rows(&whole.rows, 4_500)),
        };
        let resuming = tokio::spawn({
            let (service, request) = (service.clone(), request.clone());
            async move { service.resume(&me, request).await }
        });
        until("the query is run again", async || world.source.counters().runs == 2).await;
        clock.advance(Duration::from_secs(30));
        gate.open();
        let rest = read_to_end(&mut resuming.await.unwrap().unwrap()).await;
        assert_eq!(rest.end.unwrap().prefix_hash, whole.end.unwrap().prefix_hash);
        until("the reader has left", async || !world.service.leases(&world.me)[0].reading).await;
        gate.close();
        let me = world.me.clone();
        let resuming = tokio::spawn(async move { service.resume(&me, request).await });
        until("the query is run once more", async || world.source.counters().runs == 3).await;
        until("the time-out is met", async || {
            clock.advance(Duration::from_secs(60));
            resuming.is_finished()
        })
        .await;
        assert_eq!(resuming.await.unwrap().unwrap_err().code(), "resume_timeout");
    });
}

#[test]
fn what_commits_after_open_is_in_no_row_resumed_or_not() {
    block_on(async {
        let world = World::new(Script::numbers(3_000));
        world.set("stream.keep_bytes", 0);
        let mut stream = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut stream, 10).await;
        world.source.commit();
        let rest = read_to_end(&mut world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap()).await;
        assert!(rest.rows.windows(11).all(|at| at != b"\"version\":2"));
        let fresh = world.undisturbed().await;
        assert!(fresh.rows.windows(11).any(|at| at == b"\"version\":2"), "a new stream sees the commit");
    });
}

#[test]
fn a_resume_from_row_0_with_the_empty_hash_reads_all_again() {
    block_on(async {
        let world = World::new(Script::numbers(100));
        let first = read_to_end(&mut world.open(&world.me).await.unwrap()).await;
        let again = read_to_end(&mut world.resume(&world.me, &first.cursor(), b"").await.unwrap()).await;
        assert_eq!(again.rows, first.rows);
    });
}

#[test]
fn after_the_end_a_client_that_lost_the_last_bytes_still_gets_them() {
    block_on(async {
        let world = World::new(Script::numbers(1_000));
        let first = read_to_end(&mut world.open(&world.me).await.unwrap()).await;
        // All rows are in memory: the database is not held for a resume that may never come.
        until("the snapshot is released", async || world.source.live_snapshots() == 0).await;
        let all = world.resume(&world.me, &first.cursor(), &first.rows).await.unwrap();
        let all = read_to_end(&mut { all }).await;
        assert!(all.rows.is_empty());
        assert_eq!(all.end.unwrap().prefix_hash, first.end.unwrap().prefix_hash);
    });
}

#[test]
fn a_wrong_hash_or_count_gets_no_rows_and_does_not_disturb_the_present_reader() {
    block_on(async {
        for keep_bytes in [0, 8 << 20] {
            let world = World::new(Script::numbers(4_000));
            world.set("stream.keep_bytes", keep_bytes);
            let expected = world.undisturbed().await;
            let mut stream = world.open(&world.me).await.unwrap();
            let mut read = read_rows(&mut stream, 1_000).await;
            let cursor = read.cursor();
            let wrong = hash_of(b"{\"row\":{}}\n");
            for rows in [0, 1, 500, 1_000, 4_000, 4_001, u64::MAX] {
                let refused = world.resume_claiming(&world.me, &cursor, rows, wrong).await.unwrap_err();
                assert_eq!(refused.code(), "prefix_hash_mismatch", "{rows} rows");
            }
            let rest = read_to_end(&mut stream).await;
            assert_eq!(rest.status(), "complete", "{:?}", rest.error);
            read.rows.extend_from_slice(&rest.rows);
            assert_eq!(read.rows, expected.rows);
        }
    });
}

#[test]
fn a_second_reader_fences_the_first() {
    block_on(async {
        let world = World::new(Script::numbers(100_000));
        let mut first = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut first, 5).await;
        let mut second = world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap();
        let fenced = read_to_end(&mut first).await;
        assert_eq!((fenced.code(), fenced.status()), ("cursor_taken_over", "failed"));
        assert_eq!(read_to_end(&mut second).await.status(), "complete");
        assert!(world.audit.events().contains(&"lease.fenced"));
    });
}

#[test]
fn a_take_over_while_the_source_is_idle_does_not_wait_for_it() {
    block_on(async {
        let gate = Gate::closed();
        let world = World::new(Script::numbers(3_000).hold_at(1_500, &gate));
        let mut first = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut first, 1_000).await;
        let mut second = world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap();
        assert_eq!(read_to_end(&mut first).await.code(), "cursor_taken_over");
        gate.open();
        assert_eq!(read_to_end(&mut second).await.end.unwrap().rows, 3_000);
    });
}

#[test]
fn a_dropped_reader_leaves_a_paused_run_that_a_resume_goes_on_with() {
    block_on(async {
        let world = World::new(Script::numbers(50_000));
        let mut stream = world.open(&world.me).await.unwrap();
        let read = read_rows(&mut stream, 3_000).await;
        drop(stream);
        let rest = read_to_end(&mut world.resume(&world.me, &read.cursor(), &read.rows).await.unwrap()).await;
        assert_eq!(rest.end.unwrap().rows, 50_000);
        assert_eq!(world.source.counters().runs, 1, "the query was not run again");
    });
}

#[test]
fn a_foreign_cursor_and_an_unknown_one_are_the_same_answer() {
    block_on(async {
        let world = World::new(Script::numbers(1_000));
        let read = read_rows(&mut world.open(&world.me).await.unwrap(), 10).await;
        let unknown = world.resume(&world.me, &"0".repeat(48), &read.rows).await.unwrap_err();
        for foreigner in [principal("acme", "bob"), principal("umbrella", "alice")] {
            let foreign = world.resume(&foreigner, &read.cursor(), &read.rows).await.unwrap_err();
            assert_eq!((foreign.code(), foreign.to_string()), (unknown.code(), unknown.to_string()));
            assert!(world.service.leases(&foreigner).is_empty());
        }
        assert_eq!(unknown.code(), "cursor_not_found");
        assert_eq!(world.service.leases(&world.me).len(), 1);
    });
}

#[test]
fn an_idle_source_still_flushes_after_the_latency_bound() {
    block_on(async {
        let gate = Gate::closed();
        let world = World::new(Script::numbers(20).hold_at(7, &gate));
        let mut stream = world.open(&world.me).await.unwrap();
        let (clock, mut rows) = (world.clock.clone(), Vec::new());
        // Nothing but time passes: rows 0 to 6 must come although row 7 does not.
        let ticking = async {
            loop {
                clock.advance(Duration::from_millis(50));
                tokio::task::yield_now().await;
            }
        };
        let reading = within("the rows before the gate", read_rows(&mut stream, 7));
        tokio::select! {
            read = reading => rows.extend_from_slice(&read.rows),
            () = ticking => {}
        }
        assert_eq!(super::world::row_count(&rows), 7);
        gate.open();
    });
}
