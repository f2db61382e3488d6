//! Many streams cost little, and those that are not in memory are found again.

use futures::StreamExt as _;
use tidegate_core::port::ChangeLog as _;
use tidegate_core::position::Offset;
use tidegate_store_embedded::EmbeddedStore;
use tidegate_testkit::{ManualClock, block_on, within};

use super::world::{append, batch, config, files, open, read_all, record, spec, stream};

#[test]
fn twenty_thousand_streams_open_as_one_does() {
    block_on(async {
        const STREAMS: usize = 20_000;
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let made = futures::stream::iter(0..STREAMS).for_each_concurrent(1_000, |number| {
            let (store, id) = (store.clone(), stream(&number.to_string()));
            async move {
                store.create(&id, &spec()).await.unwrap();
                append(&store, &id, vec![record(format!("record of {number}"))]).await;
            }
        });
        made.await;
        store.close();
        let files = files(folder.path()).len();
        assert!(files < 100, "{files} files");
        let store = open(folder.path());
        for number in (0..STREAMS).step_by(501) {
            let id = stream(&number.to_string());
            let (records, _) = read_all(&store, &id, 0).await.unwrap();
            assert_eq!(records, [(0, format!("record of {number}").into())]);
            assert_eq!(append(&store, &id, vec![record("more")]).await, 1);
        }
    });
}

#[test]
fn streams_that_were_forgotten_are_as_they_were_and_a_watched_one_is_not_forgotten() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), &ManualClock::new());
        config.loaded_stream_max = 8;
        let store = EmbeddedStore::open(config).unwrap();
        let watched = stream("watched");
        store.create(&watched, &spec()).await.unwrap();
        let mut watch = tidegate_core::port::ChangeLog::watch(&store, &watched).await.unwrap();
        for round in 0..3 {
            for number in 0..100 {
                let id = stream(&number.to_string());
                store.create(&id, &spec()).await.unwrap();
                assert_eq!(append(&store, &id, vec![record("x")]).await, round);
            }
        }
        append(&store, &watched, vec![record("x")]).await;
        assert_eq!(within("the watch", watch.next()).await.unwrap().next, Offset(1));
        for number in 0..100 {
            assert_eq!(read_all(&store, &stream(&number.to_string()), 0).await.unwrap().0.len(), 3);
        }
        let mut wrong = batch(&stream("7"), vec![record("x")]);
        wrong.streams[0].partitions[0].expected_next = Some(Offset(4));
        let outcome = store.append(wrong).await.unwrap();
        assert!(matches!(outcome, tidegate_core::port::AppendOutcome::OffsetMismatch { next: Offset(3), .. }));
    });
}
