//! Promises of a faulty store around any other: what each fault leaves behind, and that everything goes on after it.

use std::sync::Arc;

use futures::StreamExt;
use tidegate_core::port::{
    AppendOutcome, ChangeLog, Durability, LogError, LogReadItem, LogSpec, MetaError, MetaStore, Trim,
};
use tidegate_core::position::Offset;

use super::*;
use crate::faulty_store::{Call, Fault, FaultyStore};
use crate::wait::{until, within};

/// A stream of three records and the entry `k`, behind a decorator without faults as yet.
async fn faulty<W: StoreWorld>() -> (W, Arc<FaultyStore<W::Store>>) {
    let world = W::fresh().await;
    let store = FaultyStore::new(world.store(), 7);
    create(&*store, &stream("s"), &keep_all(1)).await;
    append_to(&world, &stream("s"), records("r", 3)).await;
    swap(&*store, vec![put("k", None, "1")]).await;
    (world, store)
}

type Answers = [Result<(), LogError>; 3];

/// One of every changing call of the log, and a swap.
async fn change_all<W: StoreWorld>(world: &W, store: &FaultyStore<W::Store>) -> (Answers, Result<(), MetaError>) {
    let created = store.create(&stream("new"), &keep_all(1)).await.map(drop);
    let mut one = batch(world, &stream("s"), [(0, records("new", 1))]);
    one.state = vec![put("state", None, "1")];
    let appended = store.append(one).await.map(drop);
    let trim = Trim::Before { partition: P0, before: Offset(2) };
    let trimmed = store.trim(&stream("s"), trim).await.map(drop);
    let (_, revision) = value(&*world.store(), "k").await.expect("it is there");
    let swapped = store.compare_and_swap(vec![put("k", Some(revision), "2")], Durability::Fsync).await.map(drop);
    ([created, appended, trimmed], swapped)
}

async fn is_changed<W: StoreWorld>(world: &W) -> bool {
    let store = world.store();
    let of = bounds(&*store, &stream("s")).await;
    let changes = [
        !all_bounds(&*store, &stream("new")).await.is_empty(),
        of.next == Offset(4),
        value(&*store, "state").await.is_some(),
        of.earliest == Offset(2),
        value(&*store, "k").await.is_some_and(|(value, _)| value == "2"),
    ];
    assert!(changes.iter().all(|change| *change == changes[0]), "all of it or none: {changes:?}");
    changes[0]
}

/// And the same calls succeed afterwards.
pub async fn unavailable_changes_nothing<W: StoreWorld>() {
    let (world, store) = faulty::<W>().await;
    store.plan().fail_next(4, Fault::Unavailable);
    let (log, meta) = change_all(&world, &store).await;
    assert!(log.iter().all(|answer| matches!(answer, Err(LogError::Unavailable(_)))), "{log:?}");
    assert!(matches!(meta, Err(MetaError::Unavailable(_))), "{meta:?}");
    assert!(!is_changed(&world).await);
    store.plan().fail_next_of(Call::Read, 1, Fault::Unavailable);
    let read = store.read(&stream("s"), P0, Offset::ZERO, WIDE).await;
    assert!(matches!(read, Err(LogError::Unavailable(_))));
    assert_eq!(store.plan().injected(), 5);
    let (log, meta) = change_all(&world, &store).await;
    assert!(log.iter().all(Result::is_ok) && meta.is_ok());
    assert!(is_changed(&world).await);
    assert_eq!(store.plan().calls(Call::Append), 2, "a call that fails is counted");
}

/// Readers do not notice.
pub async fn a_full_disk_changes_nothing_and_reads_go_on<W: StoreWorld>() {
    let (world, store) = faulty::<W>().await;
    store.plan().fail_with_probability(1.0, Fault::Full);
    let (log, meta) = change_all(&world, &store).await;
    assert!(log.iter().all(|answer| matches!(answer, Err(LogError::Full))), "{log:?}");
    assert!(matches!(meta, Err(MetaError::Full)), "{meta:?}");
    assert!(!is_changed(&world).await);
    assert_eq!(texts(&*store, &stream("s"), P0).await, ["r0", "r1", "r2"]);
    assert!(value(&*store, "k").await.is_some());
    drop(watch_log(&*store, &stream("s")).await);
    store.plan().heal();
    let (log, meta) = change_all(&world, &store).await;
    assert!(log.iter().all(Result::is_ok) && meta.is_ok());
    assert!(is_changed(&world).await);
}

/// The caller is answered the same; only the plan knows.
pub async fn indeterminate_happened_or_not_as_told<W: StoreWorld>() {
    for applied in [false, true] {
        let (world, store) = faulty::<W>().await;
        store.plan().fail_next(4, Fault::Indeterminate { applied });
        let (log, meta) = change_all(&world, &store).await;
        assert!(log.iter().all(|answer| matches!(answer, Err(LogError::Indeterminate(_)))), "{log:?}");
        assert!(matches!(meta, Err(MetaError::Indeterminate(_))), "{meta:?}");
        assert_eq!(is_changed(&world).await, applied);
        append(&*store, batch(&world, &stream("s"), [(0, records("after", 1))])).await;
        let last = texts(&*store, &stream("s"), P0).await.pop();
        assert_eq!(last.as_deref(), Some("after0"));
    }
}

/// Nothing before, everything after.
pub async fn a_held_call_happens_after_the_release<W: StoreWorld>() {
    let (world, store) = faulty::<W>().await;
    store.plan().pause();
    let one = batch(&world, &stream("s"), [(0, records("late", 1))]);
    let appends: Vec<_> = (0..3)
        .map(|_| {
            let (store, one) = (Arc::clone(&store), one.clone());
            tokio::spawn(async move { try_append(&*store, one).await })
        })
        .collect();
    store.plan().wait_for_held(3).await;
    assert_eq!(bounds(&*world.store(), &stream("s")).await.next, Offset(3));
    store.plan().resume();
    for append in appends {
        let outcome = within("a released append", append).await.expect("the task does not panic");
        assert!(matches!(outcome, AppendOutcome::Appended(_)));
    }
    assert_eq!(store.plan().held(), 0);
    assert_eq!(bounds(&*store, &stream("s")).await.next, Offset(6));
}

/// Its caller went away in time.
pub async fn a_held_call_that_is_dropped_never_happened<W: StoreWorld>() {
    let (world, store) = faulty::<W>().await;
    store.plan().hold(Call::Append);
    let mut append = store.append(batch(&world, &stream("s"), [(0, records("x", 1))]));
    assert!(futures::poll!(&mut append).is_pending());
    assert_eq!(store.plan().held(), 1);
    drop(append);
    assert_eq!(store.plan().held(), 0);
    store.plan().resume();
    append_to(&world, &stream("s"), records("y", 1)).await;
    assert_eq!(texts(&*store, &stream("s"), P0).await, ["r0", "r1", "r2", "y0"]);
}

/// A caller that goes away while it waits for the answer does not know that it happened.
pub async fn a_held_answer_is_to_what_happened<W: StoreWorld>() {
    let (world, store) = faulty::<W>().await;
    store.plan().hold_answers(Call::Append);
    let one = batch(&world, &stream("s"), [(0, records("x", 1))]);
    let append = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.append(one).await.map(drop) }
    });
    store.plan().wait_for_held(1).await;
    assert_eq!(texts(&*store, &stream("s"), P0).await, ["r0", "r1", "r2", "x0"]);
    append.abort();
    until("the caller's end", async || store.plan().held() == 0).await;
    store.plan().resume();
    append_to(&world, &stream("s"), records("y", 1)).await;
    assert_eq!(bounds(&*store, &stream("s")).await.next, Offset(5));
}

/// They get what is there; a watch ends with its stream all the same.
pub async fn watchers_bear_wakes_for_nothing<W: StoreWorld>() {
    let (world, store) = faulty::<W>().await;
    let mut log = watch_log(&*store, &stream("s")).await;
    let mut meta = watch_entries(&*store, "k").await;
    for _ in 0..3 {
        store.plan().wake_watchers();
        let of = within("a wake for nothing", log.next()).await;
        assert_eq!(of, Some(bounds(&*store, &stream("s")).await));
        let entry = within("a wake for nothing", meta.next()).await.expect("the watch goes on");
        assert_eq!(entry.value.as_deref(), Some(&b"1"[..]));
    }
    store.plan().wake_twice(true);
    append_to(&world, &stream("s"), records("new", 1)).await;
    for _ in 0..2 {
        let woken = wait_for("an append, twice", &mut log, |of| of.next == Offset(4)).await;
        assert!(woken.is_some());
    }
    store.trim(&stream("s"), Trim::Stream).await.expect("a removal is answered");
    within("the end of the watch", async { while log.next().await.is_some() {} }).await;
}

/// A producer that numbers its records and expects its offset survives any mixture of faults: each record is there once.
pub async fn who_reads_before_trying_again_loses_and_repeats_nothing<W: StoreWorld>() {
    const RECORDS: u64 = 300;
    let world = W::fresh().await;
    let store = FaultyStore::new(world.store(), 11);
    let id = stream("s");
    create(&*store, &id, &LogSpec { start: Offset(5), ..keep_all(1) }).await;
    store.plan().fail_with_probability(0.1, Fault::Unavailable);
    store.plan().fail_with_probability(0.1, Fault::Full);
    store.plan().fail_with_probability(0.2, Fault::Indeterminate { applied: true });
    store.plan().fail_with_probability(0.2, Fault::Indeterminate { applied: false });
    store.plan().fail_reads_with_probability(0.3);
    let mut number = 0;
    while number < RECORDS {
        let mut one = batch(&world, &id, [(0, vec![record(number.to_string())])]);
        one.streams[0].partitions[0].expected_next = Some(Offset(5 + number));
        match store.append(one).await {
            Ok(AppendOutcome::Appended(_)) => number += 1,
            Ok(AppendOutcome::OffsetMismatch { next, .. }) => number = next.0 - 5,
            Ok(other) => panic!("nothing else can come of it: {other:?}"),
            Err(LogError::Unavailable(_) | LogError::Full) => {}
            Err(LogError::Indeterminate(_)) => loop {
                if let Ok(bounds) = store.bounds(&id).await {
                    number = bounds[0].next.0 - 5;
                    break;
                }
            },
            Err(other) => panic!("no such fault was planned: {other}"),
        }
    }
    assert!(store.plan().injected() > RECORDS / 4);
    let items = whole(&*world.store(), &id, P0, Offset(5)).await;
    assert_eq!(items.len() as u64, RECORDS);
    for (number, item) in items.iter().enumerate() {
        let LogReadItem::Record { bytes, .. } = item else { panic!("nothing is gone") };
        assert_eq!(bytes, &number.to_string());
    }
}
