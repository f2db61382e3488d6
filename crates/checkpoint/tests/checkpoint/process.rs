//! Real processes of one job on one folder, stopped, continued and killed: what they output is there once. A child is this test binary again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::totals;

const FOLDER: &str = "TIDEGATE_CHECKPOINT_TEST_FOLDER";
/// Set for a child that goes on after it lost its term.
const AGAIN: &str = "TIDEGATE_CHECKPOINT_TEST_AGAIN";
const RECORDS: u64 = 1_500;
const TTL: Duration = Duration::from_millis(600);

fn plan() -> totals::Plan {
    let interval = Duration::from_millis(20);
    totals::Plan { records: RECORDS, pause: Duration::from_micros(500), ttl: TTL, interval }
}

/// What a child does; in the test run itself, nothing.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let again = std::env::var_os(AGAIN).is_some();
    let ended = tidegate_testkit::block_on_threads(async {
        loop {
            let ended = totals::run(Path::new(&folder), &plan(), "child").await;
            // On a machine that is busy a term of this length may end before it is renewed: whoever runs a job starts it again.
            if !(again && matches!(ended, Ok(totals::Ended::Fenced))) {
                break ended;
            }
        }
    });
    let text = match ended {
        Ok(ended) => format!("{ended:?}"),
        Err(error) => format!("failed: {error}: {:?}", error.source()),
    };
    std::fs::write(Path::new(&folder).join(format!("ended-{}", std::process::id())), text).unwrap();
}

fn spawn(folder: &Path, again: bool) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["process::child", "--exact"])
        .env(FOLDER, folder)
        .env_remove(AGAIN)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if again {
        child.env(AGAIN, "yes");
    }
    child.spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

fn ended(folder: &Path, child: &Child) -> String {
    std::fs::read_to_string(folder.join(format!("ended-{}", child.id()))).unwrap_or_default()
}

fn newest_slot(folder: &Path) -> u64 {
    let log = folder.join("checkpoints").join("windowed-totals").join("log");
    let Ok(listed) = std::fs::read_dir(log) else { return 0 };
    let names = listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).max().unwrap_or(0)
}

fn until(what: &str, mut true_at_last: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !true_at_last() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn of_two_processors_one_asleep_for_longer_than_its_term_exactly_one_publishes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut sleeper = spawn(folder, false);
    until("some checkpoints", || newest_slot(folder) >= 10);
    signal(&sleeper, "-STOP");
    let mut other = spawn(folder, true);
    let before = newest_slot(folder);
    until("the other one publishes", || newest_slot(folder) >= before + 6);
    signal(&sleeper, "-CONT");
    assert!(sleeper.wait().unwrap().success());
    assert!(other.wait().unwrap().success());
    assert_eq!(ended(folder, &sleeper), "Fenced");
    assert_eq!(ended(folder, &other), "Finished");
    assert_eq!(totals::read(folder).unwrap(), totals::expected(RECORDS));
}

#[test]
fn killed_again_and_again_it_outputs_every_total_once() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let dice = tidegate_testkit::SeededEntropy::new(11);
    for _ in 0..6 {
        let mut child = spawn(folder, true);
        let from = newest_slot(folder);
        let slots = 2 + dice.below(9);
        until("some slots, or its end", || newest_slot(folder) >= from + slots || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut last = spawn(folder, true);
    assert!(last.wait().unwrap().success());
    assert_eq!(ended(folder, &last), "Finished");
    assert_eq!(totals::read(folder).unwrap(), totals::expected(RECORDS));
}
