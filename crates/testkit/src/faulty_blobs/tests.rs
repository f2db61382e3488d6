//! A faulty blob store without a plan is the store inside; with one it fails as told and loses nothing.

use object_store::memory::InMemory;
use object_store::{ObjectStoreExt as _, PutMode};

use super::*;
use crate::wait::block_on;

fn faulty() -> Arc<FaultyBlobs<InMemory>> {
    FaultyBlobs::new(Arc::new(InMemory::new()))
}

/// What a caller sees of a store, step by step.
async fn seen(store: &dyn ObjectStore) -> Vec<String> {
    let (a, b) = (Path::from("x/a"), Path::from("x/b"));
    let mut seen = Vec::new();
    let mut see = |what: &dyn fmt::Debug| seen.push(format!("{what:?}"));
    see(&store.put(&a, "one".into()).await.is_ok());
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    see(&matches!(store.put_opts(&a, "two".into(), create).await, Err(Error::AlreadyExists { .. })));
    let mut upload = store.put_multipart(&b).await.unwrap();
    upload.put_part("first ".into()).await.unwrap();
    upload.put_part("second".into()).await.unwrap();
    see(&matches!(store.get(&b).await, Err(Error::NotFound { .. })));
    see(&upload.complete().await.is_ok());
    let mut given_up = store.put_multipart(&Path::from("x/c")).await.unwrap();
    given_up.put_part("never".into()).await.unwrap();
    see(&given_up.abort().await.is_ok());
    see(&store.get(&b).await.unwrap().bytes().await.unwrap());
    see(&store.get_range(&b, 1..4).await.unwrap());
    see(&store.get_ranges(&b, &[0..1, 6..8]).await.unwrap());
    see(&store.head(&a).await.unwrap().size);
    see(&store.copy(&a, &Path::from("y/d")).await.is_ok());
    see(&store.list(None).map(|found| found.unwrap().location).collect::<Vec<_>>().await);
    see(&store.list_with_delimiter(None).await.unwrap().common_prefixes);
    see(&store.delete(&a).await.is_ok());
    see(&matches!(store.get(&a).await, Err(Error::NotFound { .. })));
    see(&store.list(None).map(|found| found.unwrap().location).collect::<Vec<_>>().await);
    seen
}

#[test]
fn without_a_plan_it_does_what_the_store_inside_does() {
    block_on(async {
        let bare = seen(&InMemory::new()).await;
        let store = faulty();
        assert_eq!(seen(&*store).await, bare);
        assert_eq!(store.plan().injected(), 0);
        // And when all faults are over.
        let store = faulty();
        store.plan().fill();
        store.plan().fail(BlobCall::Get, Fault::Unavailable);
        store.plan().cut_reads_after(1);
        assert!(store.put(&Path::from("a"), "x".into()).await.is_err());
        store.plan().heal();
        assert_eq!(seen(&*store).await, bare);
    });
}

#[test]
fn a_fault_is_one_that_a_store_would_have_and_changes_nothing_that_it_does_not_say() {
    block_on(async {
        let (store, at) = (faulty(), Path::from("a"));
        store.plan().fail_next(BlobCall::Put, 1, Fault::Full);
        let full = store.put(&at, "x".into()).await.unwrap_err();
        let Error::Generic { source, .. } = full else { panic!("{full}") };
        assert_eq!(source.downcast_ref::<io::Error>().map(io::Error::kind), Some(io::ErrorKind::StorageFull));
        assert!(store.inner().head(&at).await.is_err(), "nothing happened");
        store.plan().fail_next(BlobCall::Put, 1, Fault::Indeterminate { applied: true });
        assert!(store.put(&at, "x".into()).await.is_err());
        assert!(store.inner().head(&at).await.is_ok(), "it happened and was not told");
        store.plan().fail_next(BlobCall::Delete, 1, Fault::Unavailable);
        assert!(store.delete(&at).await.is_err());
        assert!(store.delete(&at).await.is_ok());
        assert_eq!(store.plan().injected(), 3);
        store.plan().fail(BlobCall::List, Fault::Unavailable);
        assert!(store.list(None).next().await.unwrap().is_err());
    });
}

#[test]
fn what_is_read_breaks_off_where_it_is_told() {
    block_on(async {
        let (store, at) = (faulty(), Path::from("a"));
        store.put(&at, "0123456789".into()).await.unwrap();
        store.plan().cut_reads_after(9);
        let got = store.get(&at).await.unwrap();
        assert_eq!(got.meta.size, 10);
        assert!(got.bytes().await.is_err());
        assert_eq!(store.plan().injected(), 1);
        assert_eq!(store.get_range(&at, 0..9).await.unwrap(), "012345678");
    });
}

#[test]
fn a_call_that_is_held_goes_on_or_never_happened() {
    block_on(async {
        let (store, at) = (faulty(), Path::from("a"));
        store.plan().hold(BlobCall::Put);
        let put = |text: &'static str| {
            let (store, at) = (Arc::clone(&store), at.clone());
            tokio::spawn(async move { store.put(&at, text.into()).await })
        };
        let held = put("one");
        store.plan().wait_for_held(1).await;
        held.abort();
        assert!(held.await.unwrap_err().is_cancelled());
        assert!(store.head(&at).await.is_err(), "other calls are not held");
        let held = put("two");
        store.plan().wait_for_held(1).await;
        store.plan().resume();
        held.await.unwrap().unwrap();
        assert_eq!(store.get(&at).await.unwrap().bytes().await.unwrap(), "two");
    });
}
