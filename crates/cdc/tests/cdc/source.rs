//! Sources of changes: each change once and in order, whatever fails on either side; what a stream refuses waits; what is lost stops.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tidegate_cdc::durable::{DurableAppend, DurableSpec};
use tidegate_cdc::source::{GapAction, SourceService, SourceSpec, SourceState, SourceStatus, SpillBounds};
use tidegate_cdc::{ReadFrom, Selection, StreamParts, StreamService};
use tidegate_core::Failure as _;
use tidegate_core::port::{ChangeLog, ChangeSourceError, Durability, MetaStore};
use tidegate_testkit::wait::until;
use tidegate_testkit::{Call, Fault, FaultyStore, ScriptedChanges, SeededEntropy, block_on, scripted_change};

use crate::world::{World, document, name, principal, spec};

type Row = (u64, u64, String, String);

/// Another process over this store.
fn process<S: ChangeLog + MetaStore>(world: &World, store: &Arc<S>, seed: u64) -> (StreamService, SourceService) {
    let clock = Arc::clone(&world.clock) as Arc<dyn tidegate_core::Clock>;
    let streams = StreamService::new(StreamParts {
        log: Arc::clone(store) as Arc<dyn ChangeLog>,
        meta: Arc::clone(store) as Arc<dyn MetaStore>,
        settings: Arc::clone(&world.settings),
        clock,
        entropy: Arc::new(SeededEntropy::new(1_000 + seed)),
        durability: Durability::Fsync,
    });
    (streams.clone(), SourceService::new(streams))
}

fn source_spec() -> SourceSpec {
    SourceSpec { tenant: name("acme"), ..SourceSpec::new(name("db"), "scripted") }
}

fn start(sources: &SourceService, source: &ScriptedChanges) {
    sources.start(source_spec(), Arc::new(source.clone())).unwrap();
}

fn status(sources: &SourceService) -> SourceStatus {
    sources.show(&principal("acme", "ann"), &name("db")).unwrap()
}

/// Lets time pass until it is so.
async fn passes(what: &str, world: &World, mut condition: impl FnMut() -> bool) {
    until(what, async || {
        world.clock.advance(Duration::from_millis(300));
        condition()
    })
    .await;
}

async fn reaches(world: &World, sources: &SourceService, position: u64) {
    let position: Box<str> = position.to_string().into();
    passes("the position", world, || {
        let status = status(sources);
        status.position.as_ref() == Some(&position) && status.streams.iter().all(|stream| stream.spilled_records == 0)
    })
    .await;
}

/// What a stream has: position, place in the transaction, key and value of each record.
async fn rows(streams: &StreamService, table: &str) -> Vec<Row> {
    let ann = principal("acme", "ann");
    let stream = name(&format!("db.{table}"));
    let Ok(mut reader) = streams.read(&ann, &stream, Selection::All, ReadFrom::Earliest, false).await else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    while let Some(segment) = reader.next(crate::world::BOUNDS).await.unwrap() {
        for line in String::from_utf8(segment.ndjson().to_vec()).unwrap().lines() {
            let record = document(line)["record"].clone();
            let position = record["source"]["position"].as_str().unwrap().parse().unwrap();
            let index = record["source"]["index"].as_u64().unwrap();
            rows.push((position, index, record["key"].to_string(), record["value"].to_string()));
        }
    }
    rows
}

fn scripted(source: &ScriptedChanges, table: &str) -> Vec<Row> {
    let changes = source.changes_of(table).into_iter().map(|change| {
        let origin = change.source.unwrap();
        (origin.position.0.parse().unwrap(), origin.index, change.key.unwrap().to_string(), change.value.to_string())
    });
    changes.collect()
}

fn two_tables(number: u64) -> Vec<(Box<str>, tidegate_core::record::Change)> {
    vec![
        scripted_change("public.a", &format!("[{}]", number % 5), &format!("{{\"a\":{number}}}")),
        scripted_change("public.b", &format!("[{}]", number % 3), &format!("{{\"b\":{number}}}")),
    ]
}

#[test]
fn each_change_comes_once_in_order_and_what_is_durable_is_confirmed() {
    block_on(async {
        let world = World::new();
        let (streams, sources) = process(&world, &world.store, 1);
        let source = ScriptedChanges::new((0..3).map(two_tables).collect());
        start(&sources, &source);
        for number in 3..40 {
            source.commit(two_tables(number));
        }
        source.commit_in_parts((40..45).map(two_tables).collect());
        source.commit(vec![]);
        reaches(&world, &sources, 39).await;
        for table in ["public.a", "public.b"] {
            assert_eq!(rows(&streams, table).await, scripted(&source, table), "{table}");
        }
        passes("the last confirmation", &world, || source.confirms().last() == Some(&39)).await;
        passes("what the source says", &world, || status(&sources).lag_bytes == Some(0)).await;
        let shown = status(&sources);
        assert_eq!((shown.state, shown.records, shown.lag_seconds), (SourceState::Streaming, 90, 0));
        assert_eq!(
            shown.streams.iter().map(|stream| &*stream.name).collect::<Vec<_>>(),
            ["db.public.a", "db.public.b"]
        );
        assert!(sources.list(&principal("other", "eve")).is_empty(), "another tenant's sources are not there");
        assert_eq!(sources.show(&principal("other", "eve"), &name("db")).unwrap_err().code(), "source_not_found");
        sources.stop(None).await;
    });
}

#[test]
fn no_reader_sees_a_transaction_in_one_stream_and_not_in_the_other() {
    block_on(async {
        let world = World::new();
        let (streams, sources) = process(&world, &world.store, 1);
        let source = ScriptedChanges::new(vec![two_tables(0)]);
        start(&sources, &source);
        reaches(&world, &sources, 0).await;
        let ann = principal("acme", "ann");
        let tail = async |table: &str| streams.describe(&ann, &name(table)).await.unwrap().partitions[0].next.0;
        for number in 1..50 {
            source.commit(two_tables(number));
            for _ in 0..4 {
                let (first, second) = if number % 2 == 0 { ("a", "b") } else { ("b", "a") };
                let seen = tail(&format!("db.public.{first}")).await;
                assert!(tail(&format!("db.public.{second}")).await >= seen);
                tokio::task::yield_now().await;
            }
        }
        reaches(&world, &sources, 49).await;
        assert_eq!(tail("db.public.a").await, 50);
    });
}

#[test]
fn of_two_processes_the_one_that_began_last_reads_and_the_other_takes_over_when_it_is_gone() {
    block_on(async {
        let world = World::new();
        let source = ScriptedChanges::new(vec![two_tables(0)]);
        let (streams, first) = process(&world, &world.store, 1);
        let (_, second) = process(&world, &world.store, 2);
        start(&first, &source);
        reaches(&world, &first, 0).await;
        start(&second, &source);
        for number in 1..20 {
            source.commit(two_tables(number));
        }
        reaches(&world, &second, 19).await;
        passes("the fenced one", &world, || {
            status(&first).last_error.is_some_and(|error| error.code == "source_held_elsewhere")
        })
        .await;
        assert_eq!((status(&first).epoch, status(&second).epoch), (1, 2));
        second.stop(None).await;
        for number in 20..30 {
            source.commit(two_tables(number));
        }
        reaches(&world, &first, 29).await;
        assert_eq!(status(&first).epoch, 3);
        for table in ["public.a", "public.b"] {
            assert_eq!(rows(&streams, table).await, scripted(&source, table), "{table}");
        }
    });
}

#[test]
fn a_stream_that_refuses_holds_up_no_other_and_gets_what_it_missed_in_order() {
    block_on(async {
        let world = World::new();
        let source = ScriptedChanges::new(vec![two_tables(0)]);
        let (streams, sources) = process(&world, &world.store, 1);
        start(&sources, &source);
        reaches(&world, &sources, 0).await;
        let (ann, a) = (principal("acme", "ann"), name("db.public.a"));
        streams.delete(&ann, &a).await.unwrap();
        for number in 1..30 {
            source.commit(two_tables(number));
            tokio::task::yield_now().await;
        }
        let spilled = |sources: &SourceService| {
            let shown = status(sources);
            let stream =
                shown.streams.iter().find(|stream| &*stream.name == "db.public.a").cloned().unwrap_or_default();
            (shown.position.as_deref().map(str::to_owned), stream.spilled_records, stream.refused_because, shown.state)
        };
        let expected = (Some("29".to_owned()), 29, Some("stream_removed"), SourceState::Spilling);
        passes("the others go on", &world, || spilled(&sources) == expected).await;
        assert_eq!(rows(&streams, "public.b").await, scripted(&source, "public.b"));
        passes("all of it is confirmed", &world, || source.confirms().last() == Some(&29)).await;
        // What is kept survives the process.
        drop(sources);
        let (streams, sources) = process(&world, &world.store, 2);
        start(&sources, &source);
        passes("the next process knows", &world, || spilled(&sources) == expected).await;
        for number in 30..33 {
            source.commit(two_tables(number));
        }
        // A person makes it again, with other settings: it is used as it is.
        streams.create(&ann, &a, &spec(4)).await.unwrap();
        reaches(&world, &sources, 32).await;
        let mut got = rows(&streams, "public.a").await;
        got.sort();
        assert_eq!(got, scripted(&source, "public.a")[1..]);
        source.commit(two_tables(33));
        reaches(&world, &sources, 33).await;
        assert_eq!(status(&sources).state, SourceState::Streaming);
        assert_eq!(rows(&streams, "public.a").await.len(), 33);
    });
}

#[test]
fn at_the_bound_of_what_is_kept_the_source_waits_and_loses_nothing() {
    block_on(async {
        let world = World::new();
        let source = ScriptedChanges::new(vec![two_tables(0)]);
        let (streams, sources) = process(&world, &world.store, 1);
        let (ann, a) = (principal("acme", "ann"), name("db.public.a"));
        // A closed stream of that name is there before the source is.
        let json = DurableSpec { content_type: Some("application/json".into()), ..DurableSpec::default() };
        streams.create_durable(&ann, &a, &json).await.unwrap();
        let close = DurableAppend { close: true, ..DurableAppend::default() };
        streams.append_durable(&ann, &a, close).await.unwrap();
        let bounded = SourceSpec { spill: SpillBounds { records: 10, bytes: 1 << 20 }, ..source_spec() };
        sources.start(bounded, Arc::new(source.clone())).unwrap();
        for number in 1..30 {
            source.commit(two_tables(number));
            let position = number.min(9).to_string();
            passes("each transaction for itself", &world, || {
                status(&sources).position.is_some_and(|at| *at == *position)
            })
            .await;
        }
        passes("it waits", &world, || {
            let shown = status(&sources);
            shown.state == SourceState::Waiting
                && shown.last_error.is_some_and(|error| error.code == "source_spill_full")
        })
        .await;
        let shown = status(&sources);
        let stream = shown.streams.iter().find(|stream| &*stream.name == "db.public.a").unwrap();
        assert_eq!((stream.spilled_records, stream.refused_because), (10, Some("stream_closed")));
        assert_eq!(rows(&streams, "public.b").await.len(), 10);
        streams.delete(&ann, &a).await.unwrap();
        reaches(&world, &sources, 29).await;
        for table in ["public.a", "public.b"] {
            assert_eq!(rows(&streams, table).await, scripted(&source, table), "{table}");
        }
    });
}

#[test]
fn what_is_lost_stops_the_source_until_a_person_says_how_to_go_on() {
    block_on(async {
        for action in [GapAction::RestartCopy, GapAction::GoOnFromCurrent] {
            let world = World::new();
            let source = ScriptedChanges::new(vec![two_tables(0)]);
            let (_, sources) = process(&world, &world.store, 1);
            start(&sources, &source);
            source.commit(two_tables(1));
            reaches(&world, &sources, 1).await;
            let ann = principal("acme", "ann");
            assert_eq!(
                sources.acknowledge(&ann, &name("db"), action).await.unwrap_err().code(),
                "source_no_gap",
                "there is nothing to go on after"
            );
            source.lose(Some("the slot is gone"));
            source.cut();
            source.commit(two_tables(2));
            passes("the gap", &world, || status(&sources).state == SourceState::Gap).await;
            drop(sources);
            // The loss is known to the next process before it asks the source, which says nothing of it any more.
            source.lose(None);
            let (streams, sources) = process(&world, &world.store, 2);
            start(&sources, &source);
            passes("the gap after a restart", &world, || status(&sources).state == SourceState::Gap).await;
            let opened = source.opened();
            for _ in 0..50 {
                world.clock.advance(Duration::from_secs(1));
                tokio::task::yield_now().await;
            }
            assert_eq!(source.opened(), opened, "it is not opened again by itself");
            let gap = status(&sources).gap.unwrap();
            assert_eq!((&*gap.from, &*gap.reason), ("1", "the slot is gone"));
            sources.acknowledge(&ann, &name("db"), action).await.unwrap();
            source.commit(two_tables(3));
            reaches(&world, &sources, 3).await;
            let got: Vec<u64> = rows(&streams, "public.a").await.iter().map(|row| row.0).collect();
            let expected: &[u64] = match action {
                GapAction::RestartCopy => &[0, 1, 0, 1, 2, 3],
                GapAction::GoOnFromCurrent => &[0, 1, 3],
            };
            assert_eq!(got, expected);
            assert!(status(&sources).gap.is_none());
        }
    });
}

#[test]
fn what_a_person_must_mend_is_shown_with_its_code_and_tried_again() {
    block_on(async {
        let world = World::new();
        let source = ScriptedChanges::new(vec![two_tables(0)]);
        let (_, sources) = process(&world, &world.store, 1);
        source.fail_open(ChangeSourceError::Unavailable("no route".into()));
        source.fail_open(ChangeSourceError::Setup { problem: "wal_level is replica".into(), code: "wal_level" });
        source.fail_open(ChangeSourceError::InUse { holder: "pid 7".into() });
        start(&sources, &source);
        let seen = |code: &'static str, state| {
            let status = status(&sources);
            status.state == state && status.last_error.is_some_and(|error| error.code == code)
        };
        passes("no answer", &world, || seen("source_unavailable", SourceState::Waiting)).await;
        passes("the set-up", &world, || seen("wal_level", SourceState::Failed)).await;
        passes("somebody else", &world, || seen("source_in_use", SourceState::Waiting)).await;
        reaches(&world, &sources, 0).await;
        assert_eq!(status(&sources).state, SourceState::Streaming);
    });
}

/// What happens to a source on its way.
#[derive(Debug, Clone, Copy)]
enum Event {
    Commit(u8),
    Large(u8),
    Cut,
    Kill,
    Second,
    Remove,
    Create,
    Fail(u8),
    Heal,
    Later,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (1..6_u8).prop_map(Event::Commit),
        2 => (2..5_u8).prop_map(Event::Large),
        1 => Just(Event::Cut),
        1 => Just(Event::Kill),
        1 => Just(Event::Second),
        1 => Just(Event::Remove),
        2 => Just(Event::Create),
        2 => (0..4_u8).prop_map(Event::Fail),
        2 => Just(Event::Heal),
        3 => Just(Event::Later),
    ]
}

/// Plays the events; at the end everything that was committed is in the streams, once and in order, and nothing else.
async fn play(events: Vec<Event>, seed: u64) {
    let world = World::new();
    let faulty = FaultyStore::new(Arc::clone(&world.store), seed);
    let source = ScriptedChanges::new(vec![two_tables(0), two_tables(1)]);
    let mut processes = 1;
    let (_, mut sources) = process(&world, &faulty, seed * 1_000);
    start(&sources, &source);
    let mut others = Vec::new();
    let ann = principal("acme", "ann");
    let b = name("db.public.b");
    let plain = process(&world, &world.store, seed * 1_000 + 999).0;
    let mut committed = 0;
    // What the lives of b before the present one got is gone with them.
    let mut gone: Vec<Row> = Vec::new();
    for event in events {
        match event {
            Event::Commit(count) => {
                for _ in 0..count {
                    committed += 1;
                    source.commit(two_tables(committed));
                    tokio::task::yield_now().await;
                }
            }
            Event::Large(parts) => {
                committed += 1;
                source.commit_in_parts((0..u64::from(parts)).map(two_tables).collect());
            }
            Event::Cut => source.cut(),
            Event::Kill => {
                processes += 1;
                // The one before is a zombie: it may still have an append on its way.
                (_, sources) = process(&world, &faulty, seed * 1_000 + processes);
                start(&sources, &source);
            }
            Event::Second => {
                processes += 1;
                let (_, second) = process(&world, &faulty, seed * 1_000 + processes);
                start(&second, &source);
                others.push(second);
            }
            Event::Remove => {
                let before = rows(&plain, "public.b").await;
                // Between the look and the removal nothing runs: there is one thread, and neither waits.
                if plain.delete(&ann, &b).await.is_ok() {
                    gone.extend(before);
                }
            }
            Event::Create => {
                let _ = plain.create(&ann, &b, &spec(1)).await;
            }
            Event::Fail(kind) => {
                let fault = match kind {
                    0 => Fault::Unavailable,
                    1 => Fault::Full,
                    2 => Fault::Indeterminate { applied: false },
                    _ => Fault::Indeterminate { applied: true },
                };
                faulty.plan().fail_next_of(Call::Append, 2, fault);
                faulty.plan().fail_next_of(Call::Swap, 1, fault);
            }
            Event::Heal => faulty.plan().heal(),
            Event::Later => {
                for _ in 0..20 {
                    world.clock.advance(Duration::from_millis(500));
                    tokio::task::yield_now().await;
                }
            }
        }
        tokio::task::yield_now().await;
    }
    faulty.plan().heal();
    let _ = plain.create(&ann, &b, &spec(1)).await;
    let last = committed;
    passes("one of the processes has it all", &world, || {
        std::iter::once(&sources).chain(&others).any(|sources| {
            let shown = status(sources);
            let position = shown.position.as_ref().is_some_and(|at| at.parse() == Ok(last));
            position && shown.streams.iter().all(|stream| stream.spilled_records == 0)
        })
    })
    .await;
    assert_eq!(rows(&plain, "public.a").await, scripted(&source, "public.a"));
    gone.extend(rows(&plain, "public.b").await);
    assert_eq!(gone, scripted(&source, "public.b"));
    assert!(source.confirms().is_sorted());
}

#[test]
fn any_cuts_kills_faults_and_removals_leave_each_change_once_in_order() {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 40;
    }
    let events = (proptest::collection::vec(event(), 1..40), 1..1_000_000_u64);
    let outcome = proptest::test_runner::TestRunner::new(config).run(&events, |(events, seed)| {
        block_on(play(events, seed));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn a_fault_at_every_step_of_the_way_loses_and_repeats_nothing() {
    block_on(async {
        for call in [Call::Append, Call::Swap, Call::Get, Call::Scan, Call::Create, Call::Bounds] {
            for fault in
                [Fault::Unavailable, Fault::Indeterminate { applied: false }, Fault::Indeterminate { applied: true }]
            {
                for step in 0..6_usize {
                    let world = World::new();
                    let faulty = FaultyStore::new(Arc::clone(&world.store), 1);
                    let source = ScriptedChanges::new(vec![two_tables(0)]);
                    let (streams, sources) = process(&world, &faulty, 1);
                    start(&sources, &source);
                    for number in 1..5 {
                        if number as usize == step {
                            faulty.plan().fail_next_of(call, 1, fault);
                        }
                        source.commit(two_tables(number));
                        for _ in 0..step {
                            tokio::task::yield_now().await;
                        }
                    }
                    if step == 0 {
                        faulty.plan().fail_next_of(call, 1, fault);
                    }
                    reaches(&world, &sources, 4).await;
                    faulty.plan().heal();
                    for table in ["public.a", "public.b"] {
                        assert_eq!(
                            rows(&streams, table).await,
                            scripted(&source, table),
                            "{table}: {call:?} {fault:?} at {step}"
                        );
                    }
                }
            }
        }
    });
}
