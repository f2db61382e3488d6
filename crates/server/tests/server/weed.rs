//! An S3 of the tests' own: SeaweedFS on loopback, on ephemeral ports and in a temporary folder, gone with the process that started it,
//! whatever way that ends. And a look at a bucket that does not go through our server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer as _};
use object_store::{ObjectStore as _, ObjectStoreExt as _, RetryConfig};
use tidegate_testkit::FaultProxy;

use crate::process::PATIENCE;

/// Set to `1` where every service must be there: then a test that misses one fails instead of being skipped.
const REQUIRE_SERVICES: &str = "TIDEGATE_REQUIRE_SERVICES";
/// Names the program, before any other place is looked at.
const PROGRAM: &str = "TIDEGATE_WEED";
const BUCKET: &str = "tide";
const ACCESS_KEY: &str = "tide-access";
const SECRET_KEY: &str = "tide-secret";
const ATTEMPTS: usize = 5;

/// Runs until its input ends: then it ends the server and removes what is left of it. So the server ends with the process that holds the
/// other end of the pipe, even when that is killed.
const KEEPER: &str = r#"
log="$1"; folder="$2"; shift 2
"$@" </dev/null >>"$log" 2>&1 &
server=$!
echo "$server"
read -r _
kill -KILL "$server" 2>/dev/null
wait "$server" 2>/dev/null
# Its sockets lie where nobody can tell it not to.
for port in $PORTS; do rm -f "$SOCKETS"/seaweedfs-*-"$port".sock; done
if [ -n "$folder" ]; then rm -rf "$folder"; fi
"#;

/// A running SeaweedFS.
pub(crate) struct Weed {
    program: PathBuf,
    folder: PathBuf,
    ports: Vec<u16>,
    /// What keeps it, and its own process.
    running: Option<(Child, u32)>,
    /// The folder goes with it; `None` = the keeper removes it.
    own: Option<tempfile::TempDir>,
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        // It may be there already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    })
}

/// Runs what is async to its end.
pub(crate) fn wait_for<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(async { tokio::time::timeout(PATIENCE * 2, future).await.expect("it ends in time") })
}

fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(PROGRAM) {
        return Some(path.into());
    }
    // target/debug/deps/server-<hash> -> target
    let own = std::env::current_exe().unwrap();
    let installed = own.ancestors().nth(3).unwrap().join("seaweedfs-4.48/bin/weed");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let anywhere = std::env::split_paths(&path).map(|folder| folder.join("weed"));
    std::iter::once(installed).chain(anywhere).find(|program| program.is_file())
}

impl Weed {
    /// The one that all tests of this process share. `None`, after saying so, where it is not installed.
    pub(crate) fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Weed>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| program().map(|program| Self::on_free_ports(program, None)));
        if shared.is_none() {
            skip(test);
        }
        shared.as_ref()
    }

    /// One of the test's own, that it may kill.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let Some(program) = program() else {
            skip(test);
            return None;
        };
        Some(Self::on_free_ports(program, Some(tempfile::tempdir().unwrap())))
    }

    fn on_free_ports(program: PathBuf, own: Option<tempfile::TempDir>) -> Self {
        let folder = match &own {
            Some(own) => own.path().to_path_buf(),
            None => tempfile::tempdir().unwrap().keep(),
        };
        let keys = serde_json::json!({"identities": [{
            "name": "tide",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        std::fs::write(folder.join("s3.json"), keys.to_string()).unwrap();
        std::fs::create_dir(folder.join("data")).unwrap();
        let mut weed = Self { program, folder, ports: Vec::new(), running: None, own };
        for _ in 0..ATTEMPTS {
            // Found free, then given to the server: between the two somebody else may take one.
            let held: Vec<TcpListener> = (0..10).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
            weed.ports = held.iter().map(|port| port.local_addr().unwrap().port()).collect();
            drop(held);
            if weed.run() {
                return weed;
            }
        }
        panic!("SeaweedFS does not start: {}", std::fs::read_to_string(weed.folder.join("log")).unwrap_or_default());
    }

    /// Starts the process on its ports and its data; `false` = it did not come up.
    fn run(&mut self) -> bool {
        let [s3, s3_grpc, master, master_grpc, filer, filer_grpc, volume, volume_grpc, admin, admin_grpc] =
            self.ports[..].try_into().unwrap();
        let numbers: [(&str, u16); 12] = [
            ("s3.port", s3),
            ("s3.port.grpc", s3_grpc),
            ("s3.port.iceberg", 0),
            ("s3.port.lance", 0),
            ("master.port", master),
            ("master.port.grpc", master_grpc),
            ("filer.port", filer),
            ("filer.port.grpc", filer_grpc),
            ("volume.port", volume),
            ("volume.port.grpc", volume_grpc),
            ("admin.port", admin),
            ("admin.port.grpc", admin_grpc),
        ];
        let removed = if self.own.is_some() { Path::new("") } else { self.folder.as_path() };
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper"]).arg(self.folder.join("log")).arg(removed).arg(&self.program);
        command.args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false"]);
        command.args(["-master.telemetry=false", &format!("-bucket={BUCKET}")]);
        command.arg(format!("-dir={}", self.folder.join("data").display()));
        command.arg(format!("-s3.config={}", self.folder.join("s3.json").display()));
        command.args(numbers.map(|(name, port)| format!("-{name}={port}")));
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        command
            .env("PORTS", ports.join(" "))
            .env("SOCKETS", std::env::temp_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut keeper = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let server = line.trim().parse().unwrap();
        self.running = Some((keeper, server));
        let end = Instant::now() + PATIENCE;
        let is_there = || Path::new("/proc").join(server.to_string()).join("exe").read_link().is_ok();
        while is_there() && Instant::now() < end {
            let key = Key::from("ready");
            let wrote = wait_for(async {
                let bucket = bucket_at(self.address());
                bucket.put(&key, "yes".into()).await?;
                bucket.delete(&key).await
            });
            if wrote.is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.stop();
        false
    }

    /// Kills it, and waits until it is gone.
    pub(crate) fn stop(&mut self) {
        let Some((mut keeper, server)) = self.running.take() else { return };
        let _ = Command::new("kill").args(["-KILL", &server.to_string()]).stderr(Stdio::null()).status();
        // The keeper reads the end of its input, and tidies up.
        drop(keeper.stdin.take());
        let _ = keeper.wait();
    }

    /// Starts it again where it was.
    pub(crate) fn start_again(&mut self) {
        assert!(self.run(), "SeaweedFS does not start again on its ports");
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports[0]).into()
    }

    /// A prefix of its bucket that nobody else uses.
    pub(crate) fn fresh_prefix(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        format!("test/{}", NUMBER.fetch_add(1, Ordering::Relaxed))
    }

    /// What a configuration says of a prefix of its bucket, reached at `address`.
    pub(crate) fn config(&self, prefix: &str, address: SocketAddr, more: &str) -> String {
        format!(
            "[objects]\ncold = \"s3://{BUCKET}/{prefix}\"\n[objects.s3]\nendpoint = \"http://{address}\"\n\
             access_key_id = \"{ACCESS_KEY}\"\nsecret_access_key = \"{SECRET_KEY}\"\n{more}\n"
        )
    }

    /// The names of the objects of a prefix.
    pub(crate) fn objects(&self, prefix: &str) -> Vec<Key> {
        let mut keys: Vec<Key> = wait_for(async {
            let listed = bucket_at(self.address()).list(Some(&Key::from(prefix))).map_ok(|meta| meta.location);
            listed.try_collect().await.unwrap()
        });
        keys.sort();
        keys
    }

    /// Deletes an object behind our server's back.
    pub(crate) fn remove(&self, key: &Key) {
        wait_for(bucket_at(self.address()).delete(key)).unwrap();
    }

    /// The names of the objects of a prefix of which an upload in parts is open that holds parts. One without holds nothing and costs
    /// nothing: the request that began it was answered to nobody.
    pub(crate) fn open_uploads(&self, prefix: &str) -> Vec<String> {
        let text = self.get(&Key::default(), &[("uploads", "")]);
        assert!(text.contains("ListMultipartUploadsResult") && text.contains("<IsTruncated>false"), "{text}");
        let mut holding = Vec::new();
        for upload in between(&text, "<Upload>", "</Upload>") {
            let key = between(upload, "<Key>", "</Key>")[0];
            let id = between(upload, "<UploadId>", "</UploadId>")[0];
            if key.starts_with(prefix) && self.get(&Key::from(key), &[("uploadId", id)]).contains("<Part>") {
                holding.push(key.to_owned());
            }
        }
        holding
    }

    /// Asks for what `object_store` has no word for.
    fn get(&self, key: &Key, query: &[(&str, &str)]) -> String {
        wait_for(async {
            let options = SignedUrlOptions::default().with_query(query.iter().copied());
            let bucket = bucket_at(self.address());
            let signed = bucket.signed_url_opts(reqwest::Method::GET, key, PATIENCE, &options).await.unwrap();
            reqwest::get(signed).await.unwrap().text().await.unwrap()
        })
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Vec<&'a str> {
    text.split(from).skip(1).filter_map(|rest| Some(rest.split_once(to)?.0)).collect()
}

impl Drop for Weed {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A client of the bucket at an address.
fn bucket_at(address: SocketAddr) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(format!("http://{address}"))
        .with_allow_http(true)
        .with_bucket_name(BUCKET)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
        .build()
        .unwrap()
}

/// Says that a test is skipped because SeaweedFS is not installed.
fn skip(test: &str) {
    let required = std::env::var(REQUIRE_SERVICES).is_ok_and(|value| value == "1");
    assert!(!required, "{test}: SeaweedFS is not installed and {REQUIRE_SERVICES} is 1");
    // Not `eprintln!`: libtest keeps that of a passing test to itself.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: SeaweedFS is not installed (cargo xtask services install)");
}

/// A proxy in front of it.
pub(crate) fn proxy_to(address: SocketAddr) -> FaultProxy {
    wait_for(FaultProxy::start(address)).unwrap()
}
