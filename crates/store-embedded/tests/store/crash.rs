//! The process is killed: what was acknowledged is there, what was not may be, and nothing is there in part.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use tidegate_core::port::{
    AppendOutcome, ChangeLog as _, CompareAndSwap, Durability, MetaStore as _, StreamAppend, Swap, SwapOutcome,
};
use tidegate_store_embedded::{EmbeddedConfig, EmbeddedStore, OpenError};
use tidegate_testkit::{ManualClock, block_on};

use super::world::{append, batch, config, copy, files, open, read_all, record, spec, stream};

const FOLDER: &str = "TIDEGATE_TEST_STORE_CHILD";

/// Runs this test binary again, with only one test, which finds its folder in the environment.
fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(FOLDER, folder).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn body(number: u64) -> Bytes {
    Bytes::from(vec![number.to_le_bytes()[0]; 100 + usize::try_from(number % 7).unwrap() * 5_000])
}

#[test]
fn the_child_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    block_on(async {
        let store = EmbeddedStore::open(EmbeddedConfig::new(folder, std::sync::Arc::new(ManualClock::new()))).unwrap();
        let id = stream("s");
        store.create(&id, &spec()).await.unwrap();
        store.create(&stream("other"), &spec()).await.unwrap();
        let mut next = store.bounds(&id).await.unwrap()[0].next.0;
        let key = Bytes::from_static(b"next");
        let mut revision = store.get(&key).await.unwrap().map(|entry| entry.revision);
        loop {
            let count = next % 3 + 1;
            let mut batch = batch(&id, (next..next + count).map(|number| record(body(number))).collect());
            // The same records go to two streams, in one step.
            let other = batch.streams[0].partitions.clone();
            batch.streams.push(StreamAppend { stream: stream("other"), partitions: other });
            next += count;
            let put = Swap::Put(Bytes::copy_from_slice(&next.to_le_bytes()));
            batch.state = vec![CompareAndSwap { key: key.clone(), expected: revision, swap: put }];
            assert!(matches!(store.append(batch).await.unwrap(), AppendOutcome::Appended(_)));
            revision = store.get(&key).await.unwrap().map(|entry| entry.revision);
            println!("acknowledged {next}");
        }
    });
}

#[test]
fn what_was_acknowledged_survives_kill_9_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut floor = 0;
    for round in 0..5 {
        let mut child = child("store::crash::the_child_that_is_killed", folder.path()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        for _ in 0..60 + round * 37 {
            let line = lines.find_map(|line| Some(line.ok()?.strip_prefix("acknowledged ")?.to_owned()));
            acknowledged = line.expect("the child lives").parse().unwrap();
        }
        child.kill().unwrap();
        // What it managed to say before it was dead counts too.
        for line in lines.map_while(Result::ok) {
            acknowledged =
                line.strip_prefix("acknowledged ").and_then(|number| number.parse().ok()).unwrap_or(acknowledged);
        }
        child.wait().unwrap();
        assert!(acknowledged > floor);
        floor = acknowledged;
        block_on(async {
            let store = open(folder.path());
            let (records, gaps) = read_all(&store, &stream("s"), 0).await.unwrap();
            assert!(records.len() as u64 >= acknowledged && gaps.is_empty());
            assert!(records.iter().all(|(offset, bytes)| *bytes == body(*offset)));
            assert!(read_all(&store, &stream("other"), 0).await.unwrap().0 == records, "two streams drift");
            let state = store.get(b"next").await.unwrap().unwrap().value.unwrap();
            assert_eq!(
                u64::from_le_bytes(state[..].try_into().unwrap()),
                records.len() as u64,
                "state and records drift"
            );
            store.close();
        });
    }
}

#[test]
fn a_copy_of_the_folder_while_it_is_open_is_a_whole_store() {
    block_on(async {
        let (folder, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = open(folder.path());
        let id = stream("s");
        store.create(&id, &spec()).await.unwrap();
        for number in 0..50 {
            append(&store, &id, vec![record(body(number))]).await;
        }
        copy(folder.path(), copied.path());
        let second = open(copied.path());
        assert_eq!(read_all(&second, &id, 0).await.unwrap().0.len(), 50);
        assert_eq!(append(&second, &id, vec![record(body(50))]).await, 50);
    });
}

#[test]
fn a_torn_end_that_was_never_acknowledged_is_cut_and_nothing_else() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let id = stream("s");
        let store = open(folder.path());
        store.create(&id, &spec()).await.unwrap();
        for number in 0..5 {
            append(&store, &id, vec![record(body(number))]).await;
        }
        store.close();
        // What a write looks like that a crash tore: its beginning, its beginning and zeros, or anything.
        let journal =
            files(folder.path()).into_iter().find(|path| path.extension().is_some_and(|end| end == "jnl")).unwrap();
        let whole = std::fs::read(&journal).unwrap();
        let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let first = &whole[..end.min(400)];
        for torn in [&first[..1], &first[..13], &first[..200], &[2; 300][..], &[3; 21][..], b"\x01\xff\xff\xff\xff"] {
            let copied = tempfile::tempdir().unwrap();
            copy(folder.path(), copied.path());
            let mut bytes = whole[..end].to_vec();
            bytes.extend(torn);
            bytes.resize(bytes.len() + 5_000, 0);
            std::fs::write(copied.path().join(journal.strip_prefix(folder.path()).unwrap()), bytes).unwrap();
            for more in 0..2 {
                let store = open(copied.path());
                assert_eq!(read_all(&store, &id, 0).await.unwrap().0.len(), 5 + more);
                append(&store, &id, vec![record("more")]).await;
                store.close();
            }
        }
    });
}

#[test]
fn the_child_that_is_refused() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    match EmbeddedStore::open(config(Path::new(&folder), &ManualClock::new())) {
        Err(OpenError::InUse { path }) => println!("refused {}", path.display()),
        other => println!("not refused: {other:?}"),
    }
}

#[test]
fn a_second_store_on_the_folder_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let again = EmbeddedStore::open(config(folder.path(), &ManualClock::new()));
    assert!(matches!(again, Err(OpenError::InUse { path }) if path == folder.path()));
    let output = child("store::crash::the_child_that_is_refused", folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!("refused {}", folder.path().display())), "{said}");
    store.close();
    open(folder.path()).close();
}

#[test]
fn a_closed_store_says_so_and_what_waited_is_written() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let id = stream("s");
        store.create(&id, &spec()).await.unwrap();
        let mut watch = tidegate_core::port::ChangeLog::watch(&store, &id).await.unwrap();
        let mut entries = tidegate_core::port::MetaStore::watch(&store, Bytes::new()).await.unwrap();
        store.close();
        store.close();
        assert!(futures::StreamExt::next(&mut watch).await.is_none());
        assert!(futures::StreamExt::next(&mut entries).await.is_none());
        assert!(matches!(
            store.append(batch(&id, vec![record("x")])).await,
            Err(tidegate_core::port::LogError::Unavailable(_))
        ));
        assert!(store.get(b"k").await.is_err());
        let put = CompareAndSwap { key: Bytes::new(), expected: None, swap: Swap::Put(Bytes::new()) };
        drop(store);
        let store = open(folder.path());
        assert!(matches!(store.compare_and_swap(vec![put], Durability::Os).await.unwrap(), SwapOutcome::Swapped(_)));
    });
}

#[test]
fn the_child_whose_files_may_not_grow() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    block_on(async {
        let store = open(Path::new(&folder));
        let id = stream("s");
        let mut acknowledged = store.bounds(&id).await.unwrap()[0].next.0;
        let mut unsure = 0;
        // The journal cannot grow beyond the limit: the database fails in earnest, is opened again, and fails again.
        for _ in 0..400 {
            match store.append(batch(&id, vec![record(body(1)); 1])).await {
                Ok(AppendOutcome::Appended(ranges)) => acknowledged = ranges[0].next.0,
                Ok(other) => panic!("{other:?}"),
                Err(tidegate_core::port::LogError::Indeterminate(_)) => unsure += 1,
                Err(tidegate_core::port::LogError::Unavailable(_)) => {}
                Err(other) => panic!("{other}"),
            }
            if unsure == 3 {
                break;
            }
        }
        let bounds = tidegate_testkit::wait::until("the store", async || {
            read_all(&store, &id, 0).await.is_ok_and(|(records, _)| records.len() as u64 >= acknowledged)
        });
        bounds.await;
        println!("acknowledged {acknowledged} unsure {unsure}");
    });
}

#[test]
fn a_disk_that_fails_in_earnest_loses_nothing_that_was_acknowledged() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let id = stream("s");
        store.create(&id, &spec()).await.unwrap();
        append(&store, &id, vec![record(body(1))]).await;
        store.close();
        let child = child("store::crash::the_child_whose_files_may_not_grow", folder.path());
        let output = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""])
            .arg(child.get_program())
            .args(child.get_args())
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said.lines().find_map(|line| line.strip_prefix("acknowledged "));
        let (acknowledged, unsure) =
            line.and_then(|line| line.split_once(" unsure ")).unwrap_or_else(|| panic!("{said}{errors}"));
        let (acknowledged, unsure): (u64, u64) = (acknowledged.parse().unwrap(), unsure.parse().unwrap());
        assert!(acknowledged > 5 && unsure > 0, "{said}");
        let store = open(folder.path());
        let (records, gaps) = read_all(&store, &id, 0).await.unwrap();
        assert!(gaps.is_empty() && (acknowledged..=acknowledged + unsure).contains(&(records.len() as u64)));
        assert!(records.iter().all(|(_, bytes)| *bytes == body(1)));
        append(&store, &id, vec![record(body(1))]).await;
    });
}
