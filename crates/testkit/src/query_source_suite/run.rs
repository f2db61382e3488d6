//! Promises about runs: rows, back-pressure, stopping, the runtime. Nothing about what a statement may be.

use std::time::Duration;

use tidegate_core::port::{SinkError, SourceError};

use super::{ALL, QuerySourceWorld, all, fresh, items, open, statement};
use crate::sink::{collect_sink, collect_sink_with};
use crate::wait::within;

/// Every row, whole, in the order of the statement.
pub async fn rows_come_whole_and_in_order<W: QuerySourceWorld>() {
    let world = fresh!(W, 2_500);
    let snapshot = open(&*world.source()).await;
    assert_eq!(all(&*snapshot).await, items(2_500));
    let descending = super::rows(&*snapshot, &statement("select id, name, n from item order by id desc")).await;
    let mut expected = items(2_500);
    expected.reverse();
    assert_eq!(descending.expect("no error"), expected);
    let none = super::rows(&*snapshot, &statement("select id from item where id < 0")).await;
    assert_eq!(none.expect("no error"), Vec::<Vec<_>>::new());
}

/// After `Full` no row is pushed until the sink is ready again, over the whole of a result.
pub async fn a_full_sink_stops_the_source<W: QuerySourceWorld>() {
    let world = fresh!(W, 2_000);
    let snapshot = open(&*world.source()).await;
    let (sink, reader) = collect_sink(7);
    let run = tokio::spawn(async move { snapshot.stream(&statement(ALL), Box::new(sink)).await });
    let mut seen = Vec::new();
    loop {
        if seen.len() < 1_990 {
            reader.wait_until_full().await;
        }
        match reader.next_rows().await {
            Some(rows) => seen.extend(rows),
            None => break,
        }
    }
    within("the run", run).await.expect("no panic").expect("no error");
    assert_eq!(seen, items(2_000));
    assert_eq!(reader.overfull_pushes(), 0, "rows were pushed into a full sink");
    assert_eq!(reader.most_held(), 7);
}

/// A dropped future stops its run, lets the sink go and leaves the snapshot as it was.
pub async fn a_dropped_run_stops_and_the_next_run_gives_the_same_rows<W: QuerySourceWorld>() {
    let world = fresh!(W, 400);
    let snapshot = open(&*world.source()).await;
    for capacity in [1, 13, 200] {
        let (sink, reader) = collect_sink(capacity);
        let statement = statement(ALL);
        {
            let run = snapshot.stream(&statement, Box::new(sink));
            tokio::select! {
                outcome = run => panic!("a full sink ended a run: {outcome:?}"),
                () = reader.wait_until_full() => {}
            }
        }
        reader.wait_for_sink_gone().await;
        assert_eq!(reader.drain(), items(capacity as i64));
        world.write("update item set n = n + 1").await;
        assert_eq!(all(&*snapshot).await, items(400));
    }
}

/// A future that is dropped in a long step without rows interrupts that step.
pub async fn a_dropped_run_stops_even_before_its_first_row<W: QuerySourceWorld>() {
    let world = fresh!(W, 20);
    let snapshot = open(&*world.source()).await;
    let (sink, reader) = collect_sink(1);
    let endless = statement(W::ENDLESS);
    {
        let mut run = snapshot.stream(&endless, Box::new(sink));
        for _ in 0..50 {
            assert!(futures::poll!(&mut run).is_pending(), "the endless statement ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    reader.wait_for_sink_gone().await;
    assert_eq!(reader.pushed(), 0);
    assert_eq!(all(&*snapshot).await, items(20));
}

/// A second run waits for the first; both are whole.
pub async fn runs_on_one_snapshot_take_turns<W: QuerySourceWorld>() {
    let world = fresh!(W, 100);
    let snapshot = open(&*world.source()).await;
    let (sink, first) = collect_sink(10);
    let run = tokio::spawn({
        let snapshot = snapshot.clone();
        async move { snapshot.stream(&statement(ALL), Box::new(sink)).await }
    });
    first.wait_until_full().await;
    let (sink, second) = collect_sink(1_000);
    let next = tokio::spawn({
        let snapshot = snapshot.clone();
        async move { snapshot.stream(&statement(ALL), Box::new(sink)).await }
    });
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(second.pushed(), 0, "a second run did not wait");
    let mut seen = Vec::new();
    while let Some(rows) = first.next_rows().await {
        seen.extend(rows);
    }
    within("the first run", run).await.expect("no panic").expect("no error");
    within("the second run", next).await.expect("no panic").expect("no error");
    assert_eq!(seen, items(100));
    assert_eq!(second.drain(), items(100));
}

/// A reader that goes away ends the run with the sink's own error, and the snapshot lives on.
pub async fn a_closed_reader_ends_the_run<W: QuerySourceWorld>() {
    let world = fresh!(W, 300);
    let snapshot = open(&*world.source()).await;
    let (sink, reader) = collect_sink(10);
    let run = tokio::spawn({
        let snapshot = snapshot.clone();
        async move { snapshot.stream(&statement(ALL), Box::new(sink)).await }
    });
    reader.wait_until_full().await;
    reader.close();
    let error = within("the run", run).await.expect("no panic").expect_err("290 rows are missing");
    assert!(matches!(error, SourceError::Sink(SinkError::Closed)), "{error}");
    assert_eq!(all(&*snapshot).await, items(300));
}

/// The sink's refusal of a row comes back as it is.
pub async fn a_row_that_is_too_large_ends_the_run<W: QuerySourceWorld>() {
    let world = fresh!(W, 30);
    world.write("update item set name = 'one that is longer than all the others are' where id = 21").await;
    let snapshot = open(&*world.source()).await;
    let (sink, reader) = collect_sink_with(1_000, 40);
    let error = within("the run", snapshot.stream(&statement(ALL), Box::new(sink))).await.expect_err("row 20 is long");
    assert!(matches!(error, SourceError::Sink(SinkError::RowTooLarge { row: 20, limit_bytes: 40 })), "{error}");
    assert_eq!(reader.drain(), items(20));
}

/// A current-thread runtime goes on with other work while a query works without giving a row.
pub async fn a_running_query_does_not_block_the_runtime<W: QuerySourceWorld>() {
    let world = fresh!(W, 10);
    let snapshot = open(&*world.source()).await;
    let (sink, reader) = collect_sink(1);
    let endless = statement(W::ENDLESS);
    let run = snapshot.stream(&endless, Box::new(sink));
    let ticks = async {
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        biased;
        outcome = run => panic!("the runtime stood still until the endless statement ended: {outcome:?}"),
        () = within("50 ticks of the runtime", ticks) => {}
    }
    reader.wait_for_sink_gone().await;
}
