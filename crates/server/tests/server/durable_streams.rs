//! The Durable Streams protocol's published suite and its published client against the real binary. They run on Node; skipped, by
//! name, where there is none.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::Server;

/// Set to `1` where every service must be there: then a test that misses one fails instead of being skipped.
const REQUIRE_SERVICES: &str = "TIDEGATE_REQUIRE_SERVICES";
/// The suite's core tests, of the version that the lock file pins.
const CORE_TESTS: usize = 332;
/// What is an option of the protocol, which a server says that it has: the suite runs these only where it is told to.
const OPTIONAL: &str = "Reserved subscription APIs";
/// The suite takes a minute; a machine that does other things too takes longer.
const PATIENCE: Duration = Duration::from_secs(1_800);

#[test]
fn the_published_suite_and_client_of_durable_streams_pass_with_no_test_left_out() {
    if !programs_are_there() {
        let required = std::env::var(REQUIRE_SERVICES).is_ok_and(|value| value == "1");
        assert!(!required, "Node and npm are not installed and {REQUIRE_SERVICES} is 1");
        // Not `eprintln!`: libtest keeps that of a passing test to itself.
        let _ = writeln!(std::io::stderr(), "skipped: durable streams: Node and npm are not installed");
        return;
    }
    let folder = installed();
    // The suite asks a thousand times what the protocol says, not whether the disk keeps it: that is the crash tests' to ask.
    let server = Server::start(0, &["--durability", "os", "--set", "stream.long_poll_ms=1500"]);
    let report = folder.join("report.json");
    let _ = fs::remove_file(&report);
    let passed = run(
        Command::new("node")
            .args(["node_modules/vitest/vitest.mjs", "run", "--reporter=json", "--outputFile=report.json"])
            .env("STREAMS_URL", format!("{}/ds", server.url())),
        &folder,
    );
    let text = fs::read_to_string(&report).unwrap_or_else(|_| panic!("no report; {}", output(&folder)));
    let report: Value = serde_json::from_str(&text).unwrap();
    let tests = |file: &str, status: &str| -> Vec<String> {
        let files = report["testResults"].as_array().unwrap();
        let of_file = files.iter().filter(|one| one["name"].as_str().unwrap().ends_with(file));
        let all = of_file.flat_map(|one| one["assertionResults"].as_array().unwrap());
        all.filter(|test| test["status"] == status)
            .map(|test| format!("{}: {}", test["fullName"].as_str().unwrap(), test["failureMessages"]))
            .collect()
    };
    for file in ["conformance.test.ts", "client.test.ts"] {
        let failed = tests(file, "failed");
        assert!(failed.is_empty(), "{file}: {} failed: {failed:#?}", failed.len());
    }
    assert!(passed, "{}", output(&folder));
    let core = tests("conformance.test.ts", "passed").len();
    assert!(core >= CORE_TESTS, "{core} of the suite's tests passed, it has {CORE_TESTS}");
    for status in ["skipped", "pending", "todo", "disabled"] {
        let left_out: Vec<String> = ["conformance.test.ts", "client.test.ts"]
            .iter()
            .flat_map(|file| tests(file, status))
            .filter(|test| !test.contains(OPTIONAL))
            .collect();
        assert!(left_out.is_empty(), "left out ({status}): {left_out:#?}");
    }
    assert!(tests("client.test.ts", "passed").len() >= 6, "the client's tests did not run");
}

fn programs_are_there() -> bool {
    ["node", "npm"].iter().all(|program| {
        let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    })
}

/// The folder with the suite in it, got once for each state of the lock file.
fn installed() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/durable_streams");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("durable_streams");
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    let lock = fs::read(folder.join("package-lock.json")).unwrap();
    let marker = folder.join("installed.json");
    if fs::read(&marker).is_ok_and(|known| known == lock) {
        return folder;
    }
    let got = run(Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]), &folder);
    assert!(got, "npm ci failed: {}", output(&folder));
    fs::write(marker, lock).unwrap();
    folder
}

/// Runs a command in the folder to its end; whether it succeeded.
fn run(command: &mut Command, folder: &Path) -> bool {
    let log = fs::File::create(folder.join("output")).unwrap();
    let mut child =
        command.current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it did not end; {}", output(folder));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The end of what the last command said.
fn output(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("output")).unwrap_or_default();
    let from = text.len().saturating_sub(4_000);
    text.get(from..).unwrap_or(&text).to_owned()
}
