//! Objects: a batch of 1,000 gets of 1 KiB over HTTP beside 1,000 single requests on one connection, out of the real binary (`TIDEGATE_BIN`,
//! else the release build); the server's memory while it answers 1,000 gets of 5 MB in one batch; and a large object read by the
//! library beside the bare `object_store` read of the same file. Numbers are compared within one run only; rounds alternate, medians count.
//!
//! `TIDEGATE_BENCH_ROUNDS` (7), `TIDEGATE_BENCH_BYTES` (268,435,456 of the large object) and `TIDEGATE_BENCH_ONLY` (beginnings of `batch`,
//! `memory`, `large`) change the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use tidegate_batch::service::{Get, Got, Put};
use tidegate_batch::{BLOCK_BYTES, Collection, ObjectKey, ObjectParts, ObjectService, ObjectSpec, Scopes, blob};
use tidegate_benches::http::{Connection, request};
use tidegate_benches::load::runtime;
use tidegate_benches::process::{Server, number, own_cpu_seconds};
use tidegate_benches::report::{Report, median};
use tidegate_core::id::Name;
use tidegate_core::port::Durability;
use tidegate_core::system::{OsEntropy, SystemClock};
use tidegate_store_embedded::{EmbeddedConfig, EmbeddedStore};

/// As in the product's binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const OBJECTS: usize = 1_000;
const SMALL_BYTES: usize = 1_024;
const LARGE_BYTES: usize = 5_000_000;
const FOLDER: &str = "/v1/objects/bench/_";

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let only = std::env::var("TIDEGATE_BENCH_ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|part| name.starts_with(part));
    let mut report = Report::new("object");
    if wanted("batch") || wanted("memory") {
        let server = Server::tidegate(&folder.path().join("server"));
        if wanted("batch") {
            runtime().block_on(batch(&server, &mut report));
        }
        if wanted("memory") {
            runtime().block_on(memory(&server, &mut report));
        }
    }
    if wanted("large") {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(large(folder.path(), &mut report));
    }
    report.finish();
}

/// A batch of gets.
fn gets(keys: impl Iterator<Item = String>) -> Vec<u8> {
    let mut body = String::new();
    for key in keys {
        body.push_str(&format!("--b\r\nx-tidegate-op: get\r\nx-tidegate-key: {key}\r\n\r\n\r\n"));
    }
    body.push_str("--b--\r\n");
    request("POST", "/v1/objects:batch/bench/_", Some("multipart/mixed; boundary=b"), body.as_bytes())
}

/// Sends a request and counts the bytes of its answer.
async fn count(connection: &mut Connection, request: &[u8]) -> u64 {
    let mut bytes = 0;
    let head = connection.exchange(request, &mut |piece: &[u8]| bytes += piece.len() as u64).await;
    assert_eq!(head.status, 200);
    bytes
}

async fn batch(server: &Server, report: &mut Report) {
    let mut connection = Connection::open(server.address).await;
    for number in 0..OBJECTS {
        let path = format!("{FOLDER}/small-{number}");
        connection.succeed(&request("PUT", &path, None, &vec![b'x'; SMALL_BYTES])).await;
    }
    let single: Vec<_> =
        (0..OBJECTS).map(|number| request("GET", &format!("{FOLDER}/small-{number}"), None, b"")).collect();
    let together = gets((0..OBJECTS).map(|number| format!("small-{number}")));
    let (mut one_by_one, mut as_batch, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    // A batch takes a few milliseconds: so many of them are one round, so that the clock's and the scheduler's grain do not count.
    const BATCHES: usize = 20;
    let (mut client_s, mut server_s, mut wall_s) = (0.0, 0.0, 0.0);
    for round in 0..=number("TIDEGATE_BENCH_ROUNDS", 7) {
        let begun = Instant::now();
        for request in &single {
            assert_eq!(count(&mut connection, request).await, SMALL_BYTES as u64);
        }
        let alone = begun.elapsed().as_secs_f64();
        let (client, served, begun) = (own_cpu_seconds(), server.cpu_seconds(), Instant::now());
        for _ in 0..BATCHES {
            let bytes = count(&mut connection, &together).await;
            assert!(bytes > (OBJECTS * SMALL_BYTES) as u64, "every object came");
        }
        let wall = begun.elapsed().as_secs_f64();
        let together = wall / BATCHES as f64;
        if round > 0 {
            client_s += own_cpu_seconds() - client;
            server_s += server.cpu_seconds() - served;
            wall_s += wall;
            one_by_one.push(OBJECTS as f64 / alone);
            as_batch.push(OBJECTS as f64 / together);
            ratio.push(alone / together);
        }
    }
    report.rounds("single gets of 1 KiB", &one_by_one, "object/s", true, None);
    report.rounds("batch of 1,000", &as_batch, "object/s", true, Some("single gets of 1 KiB"));
    report.value("batch to single", median(&ratio), "times", true);
    report.value("batch of 1,000: the client's share of a core", client_s / wall_s, "cores", false);
    report.value("batch of 1,000: the server's share", server_s / wall_s, "cores", false);
}

async fn memory(server: &Server, report: &mut Report) {
    let mut connection = Connection::open(server.address).await;
    connection.succeed(&request("PUT", &format!("{FOLDER}/five"), None, &vec![b'x'; LARGE_BYTES])).await;
    let before = server.resident_mib();
    let begun = Instant::now();
    let bytes = count(&mut connection, &gets((0..OBJECTS).map(|_| "five".to_owned()))).await;
    assert!(bytes > (OBJECTS * LARGE_BYTES) as u64, "every object came");
    let rate = bytes as f64 / begun.elapsed().as_secs_f64() / 1e6;
    report.value("1,000 x 5 MB: memory over idle", server.resident_peak_mib() - before, "MiB", false);
    report.value("1,000 x 5 MB", rate, "MB/s", true);
}

async fn large(folder: &std::path::Path, report: &mut Report) {
    let clock = Arc::new(SystemClock::new());
    let store = EmbeddedStore::open(EmbeddedConfig::new(folder.join("meta"), clock.clone())).expect("a store");
    let cold = folder.join("cold");
    let objects = ObjectService::new(ObjectParts {
        meta: Arc::new(store),
        cold: blob::local(&cold).expect("a folder"),
        clock,
        entropy: Arc::new(OsEntropy),
        durability: Durability::Os,
        spec: ObjectSpec::default(),
    })
    .expect("randomness");
    let name = |text: &str| Name::new(text).expect("a name");
    let scopes = Scopes::parse("_").expect("no scopes");
    let collection = Collection { tenant: name("bench"), usecase: name("bench"), scopes };
    let key = ObjectKey::new("large").expect("a key");
    let length = number("TIDEGATE_BENCH_BYTES", 1 << 28);
    let piece = Bytes::from(vec![7; 1 << 20]);
    let body = stream::iter((0..length >> 20).map(move |_| Ok(piece.clone()))).boxed();
    objects.put(&collection, &key, Put::default(), body).await.expect("it is stored");
    let bare = LocalFileSystem::new_with_prefix(&cold).expect("a folder");
    let path = bare.list(None).next().await.expect("one blob").expect("a folder that is read").location;
    let (mut ours, mut beside, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("TIDEGATE_BENCH_ROUNDS", 7) {
        let begun = Instant::now();
        let Ok(Got::Object(object)) = objects.get(&collection, &key, &Get::default()).await else {
            panic!("it is there")
        };
        let mut body = object.body;
        let mut bytes = 0;
        while let Some(piece) = body.next().await {
            bytes += piece.expect("it is whole").len() as u64;
        }
        let own = begun.elapsed();
        assert_eq!(bytes, length);
        let begun = Instant::now();
        let mut body = bare.get(&path).await.expect("it is there").into_stream();
        let mut bytes = 0;
        while let Some(piece) = body.next().await {
            bytes += piece.expect("it is whole").len() as u64;
        }
        let plain = begun.elapsed();
        // A block of ours has its checksum behind it.
        assert_eq!(bytes, length + length.div_ceil(BLOCK_BYTES as u64) * 4);
        if round > 0 {
            let rate = |time: Duration| length as f64 / time.as_secs_f64() / 1e6;
            ours.push(rate(own));
            beside.push(rate(plain));
            ratio.push(plain.as_secs_f64() / own.as_secs_f64());
        }
    }
    report.rounds("bare object_store", &beside, "MB/s", true, None);
    report.rounds("large get", &ours, "MB/s", true, Some("bare object_store"));
    report.value("large get to object_store", median(&ratio), "times", true);
}
