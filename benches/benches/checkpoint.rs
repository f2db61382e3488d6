//! Checkpoints on a local directory with fsync: saving a state beside writing and fsyncing the same bytes in one file, recovering it beside reading
//! that file, the bytes that a change of one percent costs, and how long a barrier stops the stream and takes until it is durable. Numbers
//! are compared within one run only; rounds alternate, medians count.
//!
//! `TIDEGATE_BENCH_ROUNDS` (5), `TIDEGATE_BENCH_BYTES` (1,073,741,824) and `TIDEGATE_BENCH_ONLY` (beginnings of `save`, `change`, `barrier`) change
//! the work.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use object_store::local::LocalFileSystem;
use tidegate_benches::process::number;
use tidegate_benches::report::{Report, median};
use tidegate_checkpoint::{
    CheckpointParts, Checkpoints, ClaimOutcome, Draft, KeyedState, Mode, Recovery, Spec, Writer, Written,
};
use tidegate_core::id::Name;
use tidegate_core::system::{OsEntropy, SystemClock};

/// As in the product's binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PIECE_BYTES: usize = 4 << 20;
const TTL: Duration = Duration::from_secs(600);

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let only = std::env::var("TIDEGATE_BENCH_ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|part| name.starts_with(part));
    let mut report = Report::new("checkpoint");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    if wanted("save") {
        runtime.block_on(save(folder.path(), &mut report));
    }
    if wanted("change") {
        runtime.block_on(change(folder.path(), &mut report));
    }
    if wanted("barrier") {
        runtime.block_on(barrier(folder.path(), &mut report));
    }
    report.finish();
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// Bytes that repeat nowhere: SplitMix64.
fn noise(seed: u64, bytes: usize) -> Bytes {
    let mut state = seed;
    let words = (0..bytes.div_ceil(8)).flat_map(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    });
    words.take(bytes).collect::<Vec<u8>>().into()
}

async fn claim(folder: &Path) -> (Writer, Recovery) {
    std::fs::create_dir_all(folder).expect("a folder");
    let checkpoints = Checkpoints::new(CheckpointParts {
        store: Arc::new(LocalFileSystem::new_with_prefix(folder).expect("a folder").with_fsync(true)),
        root: object_store::path::Path::default(),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(OsEntropy),
        spec: Spec::default(),
    });
    match checkpoints.job(&name("bench")).claim(&name("bench"), TTL, Mode::Force).await.expect("a term") {
        ClaimOutcome::Claimed { writer, recovery } => (writer, *recovery),
        ClaimOutcome::HeldBy { .. } => panic!("it is taken by force"),
    }
}

async fn save(folder: &Path, report: &mut Report) {
    let length = usize::try_from(number("TIDEGATE_BENCH_BYTES", 1 << 30)).expect("it fits");
    let pieces: Vec<Bytes> =
        (0..length.div_ceil(PIECE_BYTES)).map(|n| noise(n as u64 * 1_000_003, PIECE_BYTES)).collect();
    let rate = |time: Duration| length as f64 / time.as_secs_f64() / 1e6;
    let (mut plain_write, mut ours_save, mut save_ratio) = (Vec::new(), Vec::new(), Vec::new());
    let (mut plain_read, mut ours_read, mut read_ratio) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("TIDEGATE_BENCH_ROUNDS", 5) {
        let path = folder.join("one-file");
        let begun = Instant::now();
        let mut file = std::fs::File::create(&path).expect("a file");
        for piece in &pieces {
            file.write_all(piece).expect("room");
        }
        file.sync_all().expect("it is durable");
        let wrote = begun.elapsed();
        let job = folder.join("save");
        let (writer, _) = claim(&job).await;
        let begun = Instant::now();
        let mut making = writer.begin().await.expect("a save");
        let state = stream::iter(pieces.clone()).map(Ok::<_, std::io::Error>);
        making.state(name("state"), state).await.expect("it is written");
        let Ok(Written::Done(_)) = making.publish(Draft::default()).await else { panic!("it is published") };
        let saved = begun.elapsed();
        let begun = Instant::now();
        let (mut file, mut buffer) = (std::fs::File::open(&path).expect("the file"), vec![0; 1 << 20]);
        let mut bytes = 0;
        loop {
            match file.read(&mut buffer).expect("the file") {
                0 => break,
                read => bytes += read,
            }
        }
        let read = begun.elapsed();
        assert_eq!(bytes, pieces.len() * PIECE_BYTES);
        let begun = Instant::now();
        let (_, recovery) = claim(&job).await;
        let found = recovery.newest().expect("it was published");
        let mut state = found.state("state").expect("it was saved").stream();
        let mut bytes = 0;
        while let Some(piece) = state.next().await {
            bytes += piece.expect("it is whole").len();
        }
        let recovered = begun.elapsed();
        assert_eq!(bytes, pieces.len() * PIECE_BYTES);
        std::fs::remove_dir_all(&job).expect("the folder");
        std::fs::remove_file(&path).expect("the file");
        if round > 0 {
            plain_write.push(rate(wrote));
            ours_save.push(rate(saved));
            save_ratio.push(wrote.as_secs_f64() / saved.as_secs_f64());
            plain_read.push(rate(read));
            ours_read.push(rate(recovered));
            read_ratio.push(read.as_secs_f64() / recovered.as_secs_f64());
        }
    }
    report.rounds("one file: write and fsync", &plain_write, "MB/s", true, None);
    report.rounds("save", &ours_save, "MB/s", true, Some("one file: write and fsync"));
    report.value("save to one file", median(&save_ratio), "times", true);
    report.rounds("one file: read", &plain_read, "MB/s", true, None);
    report.rounds("recover", &ours_read, "MB/s", true, Some("one file: read"));
    report.value("recover to one file", median(&read_ratio), "times", true);
}

/// Saves a keyed state; how long the snapshot stopped the stream, how long until it was durable, bytes that were written.
async fn keyed(writer: &Writer, state: &mut KeyedState) -> (Duration, Duration, u64) {
    let begun = Instant::now();
    let snapshot = state.snapshot();
    let stopped = begun.elapsed();
    let mut making = writer.begin().await.expect("a save");
    making.keyed(name("state"), snapshot).await.expect("it is written");
    let packs = making.stats().written_bytes;
    let Ok(Written::Done(id)) = making.publish(Draft::default()).await else { panic!("it is published") };
    let durable = begun.elapsed();
    state.confirm(id.generation);
    let manifest = writer.newest().expect("it was published").manifest_bytes;
    (stopped, durable, packs + manifest)
}

fn fill(keys: u64, value_bytes: usize) -> KeyedState {
    let mut state = KeyedState::new();
    for key in 0..keys {
        state.insert(noise(key, 16), noise(key + 1, value_bytes)).expect("it is small");
    }
    state
}

async fn change(folder: &Path, report: &mut Report) {
    let length = number("TIDEGATE_BENCH_BYTES", 1 << 30) / 4;
    let keys = length / 256;
    let mut state = fill(keys, 232);
    let (writer, _) = claim(&folder.join("change")).await;
    let (_, _, whole) = keyed(&writer, &mut state).await;
    let mut shares = Vec::new();
    for round in 1..=number("TIDEGATE_BENCH_ROUNDS", 5) * 4 {
        for n in 0..keys / 100 {
            let key = (n * 97 + round * 31) % keys;
            state.insert(noise(key, 16), noise(round * keys + n, 232)).expect("it is small");
        }
        let (_, _, written) = keyed(&writer, &mut state).await;
        shares.push(written as f64 * 100.0 / whole as f64);
        let Ok(Written::Done(_)) = writer.collect().await else { panic!("the term is not over") };
    }
    report.rounds("1 % of the keys changed: bytes written", &shares, "%", false, None);
}

async fn barrier(folder: &Path, report: &mut Report) {
    let (writer, _) = claim(&folder.join("barrier")).await;
    let mut state = fill(4_000, 232);
    let (mut stops, mut durables) = (Vec::new(), Vec::new());
    for round in 0..=number("TIDEGATE_BENCH_ROUNDS", 5) * 20 {
        for key in 0..4_000 {
            state.insert(noise(key, 16), noise(round * 4_000 + key, 232)).expect("it is small");
        }
        let (stopped, durable, _) = keyed(&writer, &mut state).await;
        let Ok(Written::Done(_)) = writer.collect().await else { panic!("the term is not over") };
        if round > 0 {
            stops.push(stopped.as_secs_f64() * 1e3);
            durables.push(durable.as_secs_f64() * 1e3);
        }
    }
    report.rounds("1 MB of state, all of it changed: the stream stops for", &stops, "ms", false, None);
    report.rounds("1 MB of state, all of it changed: barrier to durable", &durables, "ms", false, None);
}
