//! End to end: rows out of SQLite over HTTP by the real binary, beside a bare loop in one thread that steps the same statement
//! and writes the same JSON into a buffer. Numbers are compared within one run only; rounds alternate, medians count.
//!
//! Needs the release binary (`cargo build --release`, done by `cargo xtask bench`). `TIDEGATE_BENCH_ROWS` (1,000,000),
//! `TIDEGATE_BENCH_ROUNDS` (5) and `TIDEGATE_BENCH_MEMORY=0` (leave the 10 million rows out) change the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use tidegate_benches::report::{Report, median};

const SQL: &str = "select id, customer, status, total, note from orders order by id";
const WIDE_SQL: &str =
    "select o.id as id, d.n as n, o.customer, o.status, o.total, o.note from orders o, digit d order by o.id, d.n";

fn main() {
    let rows = number("TIDEGATE_BENCH_ROWS", 1_000_000);
    let rounds = number("TIDEGATE_BENCH_ROUNDS", 5);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let database = folder.path().join("orders.db");
    build(&database, rows);
    let server = Server::start(&database, folder.path());
    let mut report = Report::new("query");

    throughput(&server, &database, rows, rounds, &mut report);
    first_row(&server, &mut report);
    resumes(&server, rows, &mut report);
    if number("TIDEGATE_BENCH_MEMORY", 1) != 0 {
        memory(&server, rows, &mut report);
    }
    report.finish();
}

/// Rows a second: the bare loop and the server in turn.
fn throughput(server: &Server, database: &Path, rows: u64, rounds: u64, report: &mut Report) {
    let (mut bare, mut http, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for round in 0..=rounds {
        let loop_rate = rate(rows, || bytes = bare_loop(database));
        let http_rate = rate(rows, || {
            let mut stream = server.query(SQL);
            let read = stream.drain();
            assert_eq!(read.rows, rows, "every row came");
            assert_eq!(read.row_bytes, bytes, "the same JSON");
        });
        // The first round warms the page cache.
        if round > 0 {
            bare.push(loop_rate);
            http.push(http_rate);
            ratio.push(http_rate / loop_rate);
        }
    }
    report.rate("bare_loop", &bare, None);
    report.rate("sqlite_over_http", &http, Some("bare_loop"));
    report.value("sqlite_over_http_ratio", median(&ratio), "of the bare loop", true);
    report.value("row_line", bytes as f64 / rows as f64, "byte", false);
}

/// From the request to the first byte of the first row, for a query whose first row is ready.
fn first_row(server: &Server, report: &mut Report) {
    let times: Vec<f64> = (0..200)
        .map(|_| {
            let begun = Instant::now();
            let mut stream = server.query(SQL);
            stream.until_row();
            begun.elapsed().as_secs_f64() * 1_000.0
        })
        .collect();
    report.latency("first_row", &times);
}

/// From a resume inside the kept rows to its first row, at three depths of the result.
fn resumes(server: &Server, rows: u64, report: &mut Report) {
    for (name, depth) in [
        ("resume_at_1_percent", rows / 100),
        ("resume_at_50_percent", rows / 2),
        ("resume_at_95_percent", rows / 20 * 19),
    ] {
        let mut stream = server.query(SQL);
        let (cursor, mut hash) = (stream.cursor(), tidegate_frame::prefix::PrefixHasher::new());
        stream.take_rows(depth, &mut hash);
        drop(stream);
        let body =
            format!("{{\"cursor\":\"{cursor}\",\"rows\":{},\"prefix_hash\":\"{}\"}}", hash.rows(), hash.digest());
        let times: Vec<f64> = (0..50)
            .map(|_| {
                let begun = Instant::now();
                let mut stream = server.post("/v1/query/resume", &body);
                stream.until_row();
                begun.elapsed().as_secs_f64() * 1_000.0
            })
            .collect();
        report.latency(name, &times);
    }
}

/// How much the server grows while it streams ten times the rows: to a fast reader to the end, to a slow one for a while.
fn memory(server: &Server, rows: u64, report: &mut Report) {
    let before = server.resident_kib();
    let mut stream = server.query(WIDE_SQL);
    let mut peak = before;
    let read = stream.drain_watching(|_| peak = peak.max(server.resident_kib()));
    assert_eq!(read.rows, rows * 10);
    report.value("fast_reader_rows", read.rows as f64, "row", true);
    report.value("fast_reader_bytes", read.row_bytes as f64 / 1e6, "MB", true);
    report.value("fast_reader_growth", (peak - before) as f64 / 1024.0, "MiB", false);

    let before = server.resident_kib();
    let mut peak = before;
    let mut stream = server.query(WIDE_SQL);
    let begun = Instant::now();
    // One megabyte a second.
    while begun.elapsed() < Duration::from_secs(20) {
        let due = begun.elapsed().as_secs_f64() * 1e6;
        if (stream.received as f64) < due {
            stream.fill();
        } else {
            std::thread::sleep(Duration::from_millis(2));
        }
        peak = peak.max(server.resident_kib());
    }
    report.value("slow_reader_growth", (peak - before) as f64 / 1024.0, "MiB", false);
}

/// Steps the statement and writes the same lines into a buffer that is emptied at 64 KiB; gives the bytes.
fn bare_loop(database: &Path) -> u64 {
    let connection = rusqlite::Connection::open(database).expect("the database opens");
    let mut statement = connection.prepare(SQL).expect("the statement is good");
    let mut rows = statement.query([]).expect("the statement runs");
    let names = ["id", "customer", "status", "total", "note"];
    let (mut buffer, mut bytes): (Vec<u8>, u64) = (Vec::with_capacity(80 * 1024), 0);
    while let Some(row) = rows.next().expect("a row") {
        buffer.extend_from_slice(b"{\"row\":{");
        for (index, name) in names.iter().enumerate() {
            if index > 0 {
                buffer.push(b',');
            }
            serde_json::to_writer(&mut buffer, name).expect("a buffer takes all");
            buffer.push(b':');
            match row.get_ref_unwrap(index) {
                ValueRef::Null => buffer.extend_from_slice(b"null"),
                ValueRef::Integer(integer) => serde_json::to_writer(&mut buffer, &integer).expect("a buffer takes all"),
                ValueRef::Real(real) => serde_json::to_writer(&mut buffer, &real).expect("a buffer takes all"),
                ValueRef::Text(text) => {
                    let text = std::str::from_utf8(text).expect("UTF-8");
                    serde_json::to_writer(&mut buffer, text).expect("a buffer takes all");
                }
                ValueRef::Blob(_) => unreachable!("the table has no blobs"),
            }
        }
        buffer.extend_from_slice(b"}}\n");
        if buffer.len() >= 64 * 1024 {
            bytes += buffer.len() as u64;
            std::hint::black_box(&buffer);
            buffer.clear();
        }
    }
    bytes + buffer.len() as u64
}

fn build(database: &Path, rows: u64) {
    let mut connection = rusqlite::Connection::open(database).expect("a new database");
    connection.pragma_update(None, "journal_mode", "wal").expect("WAL");
    let transaction = connection.transaction().expect("a transaction");
    transaction
        .execute_batch(
            "create table orders(id integer primary key, customer text not null, status text, total real, note text);
             create table digit(n integer primary key);
             insert into digit values (0),(1),(2),(3),(4),(5),(6),(7),(8),(9);",
        )
        .expect("tables");
    {
        let mut insert = transaction.prepare("insert into orders values (?1, ?2, ?3, ?4, ?5)").expect("an insert");
        for order in tidegate_benches::orders(usize::try_from(rows).expect("fits")) {
            insert.execute((order.id, order.customer, order.status, order.total, order.note)).expect("a row");
        }
    }
    transaction.commit().expect("committed");
    connection.execute_batch("analyze; pragma wal_checkpoint(truncate)").expect("checkpointed");
}

fn rate(rows: u64, work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    rows as f64 / begun.elapsed().as_secs_f64()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a whole number"))
}

/// The real binary.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(database: &Path, folder: &Path) -> Self {
        let binary = binary();
        let mut child = Command::new(&binary)
            .args(["serve", "--http", "127.0.0.1:0", "--data-dir"])
            .arg(folder.join("data"))
            .arg("--source")
            .arg(format!("main=sqlite:{}", database.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start ({error}): cargo build --release", binary.display()));
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = loop {
            let line = lines.next().expect("the server says where it listens").expect("UTF-8");
            if let Some(address) = line.strip_prefix("listening http ") {
                break address.trim().to_owned();
            }
        };
        Self { child, address }
    }

    fn query(&self, sql: &str) -> Stream {
        self.post("/v1/query", &serde_json::json!({"source": "main", "sql": sql}).to_string())
    }

    fn post(&self, path: &str, body: &str) -> Stream {
        let mut socket = TcpStream::connect(&self.address).expect("the server listens");
        socket.set_nodelay(true).expect("an option");
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes()).expect("sent");
        Stream { socket, buffer: Vec::new(), read: vec![0; 256 * 1024], received: 0 }
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TIDEGATE_BIN") {
        return path.into();
    }
    // target/release/deps/query-<hash> -> target/release/tidegate
    let own = std::env::current_exe().expect("an executable has a path");
    own.ancestors().nth(2).expect("deps lies in a profile's folder").join("tidegate")
}

struct Stream {
    socket: TcpStream,
    buffer: Vec<u8>,
    read: Vec<u8>,
    received: u64,
}

struct Drained {
    rows: u64,
    row_bytes: u64,
}

impl Stream {
    /// More bytes; `false` at the end.
    fn fill(&mut self) -> bool {
        let count = self.socket.read(&mut self.read).expect("the server sends");
        self.received += count as u64;
        count > 0
    }

    fn drain(&mut self) -> Drained {
        self.drain_watching(|_| {})
    }

    /// Reads to the end as cheaply as can be: the rows and bytes are those that the end line and the counts tell.
    fn drain_watching(&mut self, mut every_64_mb: impl FnMut(u64)) -> Drained {
        let mut tail = Vec::new();
        let (mut framing, mut watched) = (Dechunker::default(), 0);
        let mut first_line = Vec::new();
        while self.fill_counted(&mut framing, &mut first_line, &mut tail) {
            if self.received / (1 << 26) > watched {
                watched = self.received / (1 << 26);
                every_64_mb(self.received);
            }
        }
        let tail = String::from_utf8_lossy(&tail);
        let end_at = tail.rfind("{\"end\":").expect("the stream has an end line");
        let end: serde_json::Value = serde_json::from_str(tail[end_at..].trim_end()).expect("JSON");
        assert_eq!(end["end"]["status"], "complete");
        let end_line = tail[end_at..].trim_end().len() as u64 + 1;
        let open_line = first_line.iter().position(|byte| *byte == b'\n').expect("an open line") as u64 + 1;
        let rows = end["end"]["rows"].as_u64().expect("a count");
        Drained { rows, row_bytes: framing.payload - end_line - open_line }
    }

    fn fill_counted(&mut self, framing: &mut Dechunker, first_line: &mut Vec<u8>, tail: &mut Vec<u8>) -> bool {
        let count = self.socket.read(&mut self.read).expect("the server sends");
        self.received += count as u64;
        framing.feed(&self.read[..count], |payload| {
            if !first_line.contains(&b'\n') {
                first_line.extend_from_slice(payload);
            }
            tail.extend_from_slice(&payload[payload.len().saturating_sub(4_096)..]);
            if tail.len() > 64 * 1024 {
                tail.drain(..tail.len() - 4_096);
            }
        });
        count > 0
    }

    fn until_row(&mut self) {
        while !contains(&self.buffer, b"{\"row\":") {
            let count = self.socket.read(&mut self.read).expect("the server sends");
            assert!(count > 0, "no row came: {}", String::from_utf8_lossy(&self.buffer));
            self.buffer.extend_from_slice(&self.read[..count]);
        }
    }

    fn cursor(&mut self) -> String {
        self.until_row();
        let text = String::from_utf8_lossy(&self.buffer);
        let at = text.find("\"cursor\":\"").expect("resumable") + 10;
        text[at..at + 48].to_owned()
    }

    /// Takes rows one by one and hashes them, as a client does.
    fn take_rows(&mut self, rows: u64, hash: &mut tidegate_frame::prefix::PrefixHasher) {
        let (mut framing, mut line) = (Dechunker::default(), Vec::new());
        let mut pending = std::mem::take(&mut self.buffer);
        loop {
            framing.feed(&pending, |payload| {
                for piece in payload.split_inclusive(|byte| *byte == b'\n') {
                    line.extend_from_slice(piece);
                    if line.ends_with(b"\n") {
                        if line.starts_with(b"{\"row\":") && hash.rows() < rows {
                            hash.line(&line[..line.len() - 1]);
                        }
                        line.clear();
                    }
                }
            });
            if hash.rows() >= rows {
                return;
            }
            let count = self.socket.read(&mut self.read).expect("the server sends");
            assert!(count > 0, "the stream ended early");
            pending = self.read[..count].to_vec();
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// HTTP/1.1 chunked framing, just enough to count what is in it without copying.
#[derive(Default)]
struct Dechunker {
    head: Vec<u8>,
    in_body: bool,
    size_line: Vec<u8>,
    left: usize,
    payload: u64,
}

impl Dechunker {
    fn feed(&mut self, mut bytes: &[u8], mut take: impl FnMut(&[u8])) {
        if !self.in_body {
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else { return };
            assert!(self.head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&self.head));
            self.in_body = true;
            let rest = self.head.split_off(end + 4);
            return self.feed(&rest, take);
        }
        while !bytes.is_empty() {
            if self.left > 0 {
                let count = self.left.min(bytes.len());
                let data = count.min(self.left.saturating_sub(2));
                take(&bytes[..data]);
                self.payload += data as u64;
                self.left -= count;
                bytes = &bytes[count..];
            } else {
                let byte = bytes[0];
                bytes = &bytes[1..];
                if byte == b'\n' {
                    let text = std::str::from_utf8(&self.size_line).expect("hex").trim();
                    let size = usize::from_str_radix(text, 16).expect("a chunk's size");
                    // The chunk's own line break counts too; the last chunk is empty and nothing follows.
                    self.left = if size == 0 { 0 } else { size + 2 };
                    self.size_line.clear();
                    if size == 0 {
                        return;
                    }
                } else {
                    self.size_line.push(byte);
                }
            }
        }
    }
}
