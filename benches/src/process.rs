//! The servers that are measured, as processes: ours and its peers. Each gets a free port of the loopback and a folder of its own, and is
//! ended by its id when its value goes out of scope. No process is looked for by its name.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the binary of ours is, when it is not beside the benchmark's own.
pub const SERVER_VARIABLE: &str = "TIDEGATE_BIN";
/// The folder with the peers' programs; without it no peer is measured.
pub const PEERS_VARIABLE: &str = "TIDEGATE_BENCH_PEERS";
const START_BOUND: Duration = Duration::from_secs(120);
/// The unit of the times in `/proc/PID/stat`: Linux shows hundredths to programs, whatever it counts in.
const TICKS_A_SECOND: f64 = 100.0;

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// How its process was started, for people.
    pub name: &'static str,
}

impl Server {
    /// The real binary of ours on this data directory, once it has said where it listens.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn tidegate(data: &Path) -> Self {
        let binary = binary();
        let mut command = dying_with_us(&binary);
        command.args(["serve", "--http", "127.0.0.1:0", "--data-dir"]).arg(data);
        let log = File::create(data.with_extension("log")).expect("a log beside the data");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start ({error}): cargo build --release", binary.display()));
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = loop {
            let line = lines.next().expect("the server says where it listens").expect("UTF-8");
            if let Some(address) = line.strip_prefix("listening http ") {
                break address.trim().parse().expect("an address");
            }
        };
        Self { child, address, name: "tidegate" }
    }

    /// The crate `durable-streams`, in its default durable mode.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn durable_streams(peers: &Path, data: &Path) -> Self {
        let port = free_port();
        let mut command = dying_with_us(&peers.join("bin/durable-streams-server"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--data-dir"]).arg(data);
        Self::start("durable-streams", command, port, data)
    }

    /// NATS JetStream: file storage, every write synced before its acknowledgement.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn nats(peers: &Path, data: &Path) -> Self {
        let port = free_port();
        std::fs::create_dir_all(data).expect("a folder");
        let config = data.join("nats.conf");
        let text = format!(
            "listen: 127.0.0.1:{port}\nmax_payload: 8MB\njetstream {{\n  store_dir: \"{}\"\n  sync_interval: always\n}}\n",
            data.join("store").display()
        );
        std::fs::write(&config, text).expect("a file");
        let mut command = dying_with_us(&peers.join("python/bin/nats-server"));
        command.arg("-c").arg(config);
        Self::start("nats-server", command, port, data)
    }

    /// Redis: an append-only file, synced before every answer.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn redis(data: &Path) -> Self {
        let port = free_port();
        std::fs::create_dir_all(data).expect("a folder");
        let mut command = dying_with_us(Path::new("redis-server"));
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--appendonly", "yes"]);
        command.args(["--appendfsync", "always", "--save", "", "--dir"]).arg(data);
        Self::start("redis-server", command, port, data)
    }

    /// This program itself with an argument, as another server.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn this_program(argument: &str, folder: &Path) -> Self {
        let port = free_port();
        let mut command = dying_with_us(&std::env::current_exe().expect("a program has a path"));
        command.args([argument, &port.to_string()]);
        Self::start("bare", command, port, &folder.join(argument))
    }

    fn start(name: &'static str, mut command: Command, port: u16, data: &Path) -> Self {
        let log = File::create(data.with_extension("log")).expect("a log beside the data");
        let second = log.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(log).stderr(second).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut server = Self { child, address, name };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait().expect("a child");
            assert!(ended.is_none(), "{name} ended: {ended:?}: {}", data.with_extension("log").display());
            assert!(begun.elapsed() < START_BOUND, "{name} does not listen");
            std::thread::sleep(Duration::from_micros(500));
        }
        server
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Seconds of processor time so far, of all its threads.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(&self.id().to_string())
    }

    /// MiB in memory now.
    #[must_use]
    pub fn resident_mib(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// MiB in memory at most, since it started.
    #[must_use]
    pub fn resident_peak_mib(&self) -> f64 {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end; gives how long that took.
    ///
    /// # Panics
    /// When there is no program `kill`.
    pub fn terminate(mut self) -> Duration {
        let begun = Instant::now();
        let status = Command::new("kill").args(["-TERM", &self.id().to_string()]).status().expect("a program `kill`");
        assert!(status.success(), "the process is there");
        let _ = self.child.wait();
        begun.elapsed()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of processor time that this program used so far.
#[must_use]
pub fn own_cpu_seconds() -> f64 {
    cpu_seconds("self")
}

fn cpu_seconds(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name is in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_A_SECOND
}

/// The folder with the peers' programs, when peers are to be measured.
#[must_use]
pub fn peers() -> Option<PathBuf> {
    std::env::var_os(PEERS_VARIABLE).map(PathBuf::from)
}

/// A number out of the environment.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a whole number"))
}

/// How many files and bytes lie under a folder.
#[must_use]
pub fn files_and_bytes(folder: &Path) -> (u64, u64) {
    let (mut files, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let (more_files, more_bytes) =
            if metadata.is_dir() { files_and_bytes(&entry.path()) } else { (1, metadata.len()) };
        files += more_files;
        bytes += more_bytes;
    }
    (files, bytes)
}

/// A command whose process the kernel ends when this one ends, however it does: `setpriv` sets that and becomes the program.
fn dying_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// The server's release build: named by the environment, else beside this program's folder.
///
/// # Panics
/// When this program has no path.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os(SERVER_VARIABLE) {
        return path.into();
    }
    // target/release/deps/append-<hash> -> target/release/tidegate
    let own = std::env::current_exe().expect("a program has a path");
    own.ancestors().nth(2).expect("deps lies in a profile's folder").join("tidegate")
}
