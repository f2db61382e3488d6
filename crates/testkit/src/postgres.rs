//! A PostgreSQL server of a test's own: on an ephemeral loopback port, in its own temporary folder, gone with the process
//! that started it, whatever way that ends. It never touches a server that it did not start, and installs nothing.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Set to `1` where every service must be there: then a test that misses one fails instead of being skipped.
pub const REQUIRE_SERVICES: &str = "TIDEGATE_REQUIRE_SERVICES";

/// Names the folder of PostgreSQL's programs, before any other place is looked at.
pub const BINDIR: &str = "TIDEGATE_PG_BINDIR";

const START_TIMEOUT: Duration = Duration::from_secs(60);
const PORT_ATTEMPTS: usize = 5;

/// Runs until its input ends: then it stops the server at once and removes the folder. So the server ends with the process
/// that holds the other end of the pipe, even when that is killed. At each line it waits for the server's end and starts it again.
const KEEPER: &str = r#"
start() {
    "$program" -D "$folder/data" -p "$port" -k "$sockets" -c listen_addresses=127.0.0.1 -c wal_level=logical \
        -c max_connections=200 -c fsync="$fsync" -c max_wal_senders=20 -c max_replication_slots=20 \
        </dev/null >>"$folder/log" 2>&1 &
    server=$!
    echo "$server"
}
program=$1 folder=$2 port=$3 sockets=$4 fsync=$5
start
while read -r _; do
    { wait "$server"; } 2>/dev/null
    start
done
kill -QUIT "$server" 2>/dev/null
wait "$server"
rm -rf "$folder"
"#;

/// Why a server that should run does not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresServerError {
    /// A program could not be run, or a file not be made.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program of PostgreSQL failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which.
        program: &'static str,
        /// What it said.
        output: String,
    },
    /// The server did not come up.
    #[error("the server did not come up: {log}")]
    NotReady {
        /// The end of its log.
        log: String,
    },
    /// PostgreSQL refuses to run as root, and there is no account to run it as.
    #[error("PostgreSQL does not run as root, and there is neither an account `postgres` nor `nobody`")]
    NoAccount,
}

/// A running server. Dropped: stopped, and its folder removed.
#[derive(Debug)]
pub struct PostgresServer {
    programs: PathBuf,
    folder: PathBuf,
    port: u16,
    pid: AtomicU32,
    keeper: Child,
    /// What the keeper says and is told.
    talk: Mutex<(BufReader<ChildStdout>, Option<ChildStdin>)>,
    account: Option<(u32, u32)>,
    databases: AtomicU32,
}

impl PostgresServer {
    /// Starts a server without fsync; `None` where PostgreSQL is not installed. Takes one to two seconds.
    ///
    /// # Errors
    /// PostgreSQL is there and does not start.
    pub fn start() -> Result<Option<Self>, PostgresServerError> {
        Self::start_with_fsync(false)
    }

    /// As [`start`](Self::start), with `fsync` as wanted: tests that kill the machine's processes want it.
    ///
    /// # Errors
    /// PostgreSQL is there and does not start.
    pub fn start_with_fsync(fsync: bool) -> Result<Option<Self>, PostgresServerError> {
        let Some(programs) = programs() else { return Ok(None) };
        let account = account()?;
        let folder = tempfile::Builder::new()
            .prefix("tidegate-pg-")
            .tempdir()
            .map_err(|source| PostgresServerError::Io { what: "a temporary folder", source })?
            .keep();
        match Self::start_in(&programs, &folder, account, fsync) {
            Ok(server) => Ok(Some(server)),
            Err(error) => {
                // What could not be started is not to be left behind; the error is what matters.
                let _ = fs::remove_dir_all(&folder);
                Err(error)
            }
        }
    }

    fn start_in(
        programs: &Path,
        folder: &Path,
        account: Option<(u32, u32)>,
        fsync: bool,
    ) -> Result<Self, PostgresServerError> {
        if let Some((uid, gid)) = account {
            std::os::unix::fs::chown(folder, Some(uid), Some(gid)).map_err(|source| PostgresServerError::Io {
                what: "giving the folder to PostgreSQL's account",
                source,
            })?;
        }
        let mut initdb = as_account(programs.join("initdb"), folder, account);
        initdb.arg("-D").arg(folder.join("data"));
        initdb.args(["-U", "postgres", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C"]);
        succeeded("initdb", initdb.output())?;

        let mut last = PostgresServerError::NotReady { log: String::new() };
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port().map_err(|source| PostgresServerError::Io { what: "a free port", source })?;
            let mut command = as_account("sh", folder, account);
            command.args(["-c", KEEPER, "keeper"]).arg(programs.join("postgres")).arg(folder).arg(port.to_string());
            // A Unix socket's path is limited to about 100 bytes.
            let sockets = if folder.as_os_str().len() < 80 { folder.as_os_str() } else { "".as_ref() };
            command.arg(sockets).arg(if fsync { "on" } else { "off" });
            let mut keeper = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|source| PostgresServerError::Io { what: "starting a shell", source })?;
            let mut talk = match (keeper.stdout.take(), keeper.stdin.take()) {
                (Some(says), hears @ Some(_)) => (BufReader::new(says), hears),
                _ => return Err(PostgresServerError::NotReady { log: "the shell has no pipes".to_owned() }),
            };
            let pid = read_pid(&mut talk.0)?;
            match wait_until_ready(pid, folder) {
                Ok(()) => {
                    return Ok(Self {
                        programs: programs.to_owned(),
                        folder: folder.to_owned(),
                        port,
                        pid: AtomicU32::new(pid),
                        keeper,
                        talk: Mutex::new(talk),
                        account,
                        databases: AtomicU32::new(0),
                    });
                }
                // Another process may have taken the port in between. The keeper would remove the folder: it is ended first.
                Err(error) => {
                    let _ = Command::new("kill").args(["-QUIT", &pid.to_string()]).stderr(Stdio::null()).status();
                    let _ = keeper.kill();
                    let _ = keeper.wait();
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// The server that all tests of this process share. `None`, after saying `skipped: <test>: ...`, where PostgreSQL is not
    /// installed.
    ///
    /// # Panics
    /// When it does not start, and when it is not installed although [`REQUIRE_SERVICES`] is `1`.
    pub fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Option<PostgresServer>> = OnceLock::new();
        let server = SHARED.get_or_init(|| Self::start().unwrap_or_else(|error| panic!("PostgreSQL: {error}")));
        if server.is_none() {
            Self::skip(test);
        }
        server.as_ref()
    }

    /// Says that a test is skipped because PostgreSQL is not installed.
    ///
    /// # Panics
    /// When [`REQUIRE_SERVICES`] is `1`.
    pub fn skip(test: &str) {
        let required = std::env::var(REQUIRE_SERVICES).is_ok_and(|value| value == "1");
        assert!(!required, "{test}: PostgreSQL is not installed and {REQUIRE_SERVICES} is 1");
        // Not `println!` or `eprintln!`: libtest keeps those of a passing test to itself. Nothing is lost when nobody reads.
        let _ = writeln!(io::stderr(), "skipped: {test}: PostgreSQL is not installed");
    }

    /// The URL of a database of this server.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database and gives its URL.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn fresh_database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run_sql(&self.url("postgres"), &format!("create database {name}"));
        self.url(&name)
    }

    /// Runs statements by `psql`, each in a transaction of its own; gives what they print, unaligned.
    ///
    /// # Panics
    /// When one fails.
    pub fn run_sql(&self, url: &str, sql: &str) -> String {
        match self.try_sql(url, sql) {
            Ok(printed) => printed,
            Err(error) => panic!("{error}: {sql}"),
        }
    }

    /// As [`run_sql`](Self::run_sql), for statements that may fail.
    ///
    /// # Errors
    /// One failed, or the server is not there. What was done before it stays done.
    pub fn try_sql(&self, url: &str, sql: &str) -> Result<String, PostgresServerError> {
        let mut psql = as_account(self.programs.join("psql"), &self.folder, self.account);
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--dbname", url]);
        psql.args(["--command", sql]);
        let output = succeeded("psql", psql.output())?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends the server with a signal and starts it again on its data and port: `KILL` for a crash of its main process, `QUIT` for an
    /// immediate shutdown. It returns when the server takes connections again.
    ///
    /// # Panics
    /// When it does not come up again.
    pub fn end_and_restart(&self, signal: &str) {
        let mut talk = self.talk.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.pid().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "the signal {signal} cannot be sent");
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let told = talk.1.as_mut().map(|keeper| keeper.write_all(b"\n"));
            assert!(matches!(told, Some(Ok(()))), "the keeper is gone");
            let pid = read_pid(&mut talk.0).unwrap_or_else(|error| panic!("{error}"));
            self.pid.store(pid, Ordering::Relaxed);
            match wait_until_ready(pid, &self.folder) {
                Ok(()) => return,
                // After a crash the last of its processes may still hold its shared memory.
                Err(error) => assert!(Instant::now() < deadline, "PostgreSQL does not start again: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket, of the log (`log`) and of the data (`data`).
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process id of the server.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // The end of its input ends the keeper, which stops the server and removes the folder.
        let talk = self.talk.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(talk.1.take());
        let _ = self.keeper.wait();
    }
}

/// The folder of PostgreSQL's server programs, where it is installed.
fn programs() -> Option<PathBuf> {
    let has_server = |folder: &PathBuf| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    if let Some(named) = std::env::var_os(BINDIR) {
        return Some(PathBuf::from(named)).filter(has_server);
    }
    let asked = Command::new("pg_config").arg("--bindir").output().ok().filter(|output| output.status.success());
    let asked = asked.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut packaged: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect())
        .unwrap_or_default();
    packaged.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    asked.into_iter().chain(packaged.into_iter().rev()).chain(std::env::split_paths(&path)).find(has_server)
}

/// The account to run PostgreSQL as: none where this process is not root's.
fn account() -> Result<Option<(u32, u32)>, PostgresServerError> {
    let process = fs::metadata("/proc/self")
        .map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata))
        .map_err(|source| PostgresServerError::Io { what: "reading /proc/self", source })?;
    if process != 0 {
        return Ok(None);
    }
    let accounts = fs::read_to_string("/etc/passwd")
        .map_err(|source| PostgresServerError::Io { what: "reading /etc/passwd", source })?;
    let find = |name: &str| {
        accounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.first() == Some(&name))
                .then(|| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))?
        })
    };
    find("postgres").or_else(|| find("nobody")).map(Some).ok_or(PostgresServerError::NoAccount)
}

fn as_account(program: impl AsRef<std::ffi::OsStr>, folder: &Path, account: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env("LC_ALL", "C").env("HOME", folder).stdin(Stdio::null());
    if let Some((uid, gid)) = account {
        command.uid(uid).gid(gid);
    }
    command
}

fn succeeded(program: &'static str, output: io::Result<Output>) -> Result<Output, PostgresServerError> {
    let output = output.map_err(|source| PostgresServerError::Io { what: program, source })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout, output.stderr].concat();
    Err(PostgresServerError::Program { program, output: String::from_utf8_lossy(&said).trim().to_owned() })
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The server writes its state into its pid file: the eighth line says `ready`.
fn wait_until_ready(pid: u32, folder: &Path) -> Result<(), PostgresServerError> {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        let state = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = state.lines().map(str::trim).collect();
        if lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready") {
            return Ok(());
        }
        // One that ended and was not waited for yet still has an entry.
        let process = fs::read_to_string(format!("/proc/{pid}/stat"));
        if process.map_or(true, |text| text.contains(") Z ")) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    let tail: Vec<&str> = log.lines().rev().take(10).collect();
    Err(PostgresServerError::NotReady { log: tail.into_iter().rev().collect::<Vec<_>>().join("\n") })
}

fn read_pid(keeper: &mut impl BufRead) -> Result<u32, PostgresServerError> {
    let mut line = String::new();
    keeper
        .read_line(&mut line)
        .map_err(|source| PostgresServerError::Io { what: "reading the server's process id", source })?;
    line.trim().parse().map_err(|_| PostgresServerError::NotReady { log: format!("no process id: {line:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_answers_keeps_databases_apart_and_leaves_nothing_behind() {
        let Some(server) = PostgresServer::start().unwrap() else {
            return PostgresServer::skip("a_server_answers_keeps_databases_apart_and_leaves_nothing_behind");
        };
        let (first, second) = (server.fresh_database(), server.fresh_database());
        server.run_sql(&first, "create table t as select 1 as x");
        assert_eq!(server.run_sql(&first, "select x from t"), "1\n");
        assert_eq!(server.run_sql(&second, "select count(*) from pg_class where relname = 't'"), "0\n");
        assert_eq!(server.run_sql(&first, "show wal_level"), "logical\n");
        for signal in ["QUIT", "KILL"] {
            let before = server.pid();
            server.end_and_restart(signal);
            assert_ne!(server.pid(), before);
            assert_eq!(server.run_sql(&first, "select x from t"), "1\n", "{signal}");
        }
        assert!(server.try_sql(&first, "select y from t").is_err());
        let (folder, pid) = (server.folder().to_owned(), server.pid());
        drop(server);
        assert!(!folder.exists());
        assert!(fs::metadata(format!("/proc/{pid}")).is_err());
    }

    #[test]
    fn a_skipped_test_says_so_although_it_passes() {
        let test = "a_server_answers_keeps_databases_apart_and_leaves_nothing_behind";
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("postgres::tests::{test}")])
            .env(BINDIR, "/no/such/folder")
            .env_remove(REQUIRE_SERVICES)
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(said.contains(&format!("skipped: {test}: PostgreSQL is not installed")), "{run:?}");
    }
}
