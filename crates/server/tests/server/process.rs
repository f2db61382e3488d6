//! A running `tidegate serve`, and the binary run to its end. Everything is bounded in time and killed when dropped.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::{Answer, ask};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, with nothing of this process's environment that could steer it.
pub(crate) fn tidegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

/// Waits for the end of a process.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("a process did not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a condition is true.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal by name.
pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Runs the binary to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    run_in(Path::new("."), arguments)
}

/// Runs the binary in a folder to its end.
pub(crate) fn run_in(folder: &Path, arguments: &[&str]) -> Output {
    let mut child = tidegate()
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    let status = wait(&mut child);
    Output { status, stdout: bytes, stderr: errors.join().unwrap().unwrap() }
}

/// What a process printed on stdout.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a process printed on stderr.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A running server with a folder of its own.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    folder: tempfile::TempDir,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    /// On a SQLite file with the table `t(id integer primary key, name text)` of so many rows.
    pub(crate) fn start(rows: u64, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = rusqlite::Connection::open(folder.path().join("x.db")).unwrap();
        database
            .execute_batch(&format!(
                "create table t(id integer primary key, name text not null);
                 with recursive n(i) as (select 0 union all select i + 1 from n where i + 1 < {rows})
                 insert into t select i, 'Größe ' || i || ' {padding}' from n;",
                padding = "x".repeat(80),
            ))
            .unwrap();
        drop(database);
        Self::launch(folder, &[&["--source", "main=sqlite:x.db"], arguments].concat())
    }

    /// On what the arguments say, in this folder.
    pub(crate) fn launch(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        let errors = std::fs::File::create(folder.path().join("stderr")).unwrap();
        let mut child = tidegate()
            .args(["serve", "--http", "127.0.0.1:0", "--data-dir", "data"])
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening http ").map(|address| address.parse().unwrap());
        let Some(address) = address else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no address: {line:?}; {}", std::fs::read_to_string(folder.path().join("stderr")).unwrap());
        };
        Self { child, address, folder, _stdout: stdout }
    }

    /// Kills it with SIGKILL and starts it again on the same folder and address.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let errors = std::fs::File::options().append(true).open(self.path("stderr")).unwrap();
        self.child = tidegate()
            .args(["serve", "--http", &self.address.to_string(), "--data-dir", "data"])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(self.child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let stderr = || std::fs::read_to_string(self.path("stderr")).unwrap();
        assert!(line.starts_with("listening http "), "{line:?}; {}", stderr());
        self._stdout = stdout;
    }

    /// Runs a client command at this server to its end.
    pub(crate) fn client(&self, arguments: &[&str]) -> Output {
        let url = self.url();
        run_in(self.folder.path(), &[arguments, &["--url", &url]].concat())
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A file in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The audit trail so far.
    pub(crate) fn audit(&self) -> String {
        std::fs::read_to_string(self.path("data/audit.jsonl")).unwrap()
    }

    /// Runs `tidegate query` at this server.
    pub(crate) fn query(&self, arguments: &[&str]) -> Output {
        let url = self.url();
        let arguments: Vec<&str> = ["query", "--url", &url].into_iter().chain(arguments.iter().copied()).collect();
        run_in(self.folder.path(), &arguments)
    }
}

/// What a running server says of itself and takes.
impl Server {
    /// Sends a request without a body.
    pub(crate) fn get(&self, path: &str) -> Answer {
        ask(self.address, "GET", path, &[], "")
    }

    /// Sends a request with a JSON body.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        ask(self.address, "POST", path, &[], body.to_string())
    }

    /// Changes settings at run time.
    pub(crate) fn set(&self, settings: &Value) {
        let answer = ask(self.address, "PATCH", "/v1/config", &[], settings.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// The leases of `anonymous`.
    pub(crate) fn leases(&self) -> Vec<Value> {
        self.get("/v1/leases").json()["leases"].as_array().unwrap().clone()
    }

    /// The sum of a metric over all its labels that contain `label`.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.get("/metrics").text();
        let of_name =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        of_name
            .filter(|line| line.contains(label))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            .sum()
    }

    /// A line of the kernel's account of the process, in bytes.
    fn memory(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// How much memory the process has now, and from when on [`Self::memory_peak`] counts.
    pub(crate) fn memory_mark(&self) -> u64 {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
        self.memory("VmRSS")
    }

    /// The most memory that the process had since the last [`Self::memory_mark`].
    pub(crate) fn memory_peak(&self) -> u64 {
        self.memory("VmHWM")
    }

    /// Waits until no stream is being read and none can be resumed.
    pub(crate) fn at_rest(&self) {
        until("no stream is left", || {
            self.leases().is_empty()
                && self.metric("tidegate_stream_readers", "") == 0.0
                && self.metric("tidegate_lease_held", "") == 0.0
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
