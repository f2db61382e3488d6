//! Windowed totals by key, from a change stream of two partitions into SQLite, exactly once: kill it at any moment and start it again.
//!
//! `cargo run -p tidegate-checkpoint --example windowed_totals -- FOLDER [RECORDS]`
#![allow(clippy::disallowed_methods, reason = "a program: it reads the system's clock and paces itself")]

mod totals;

use std::path::PathBuf;
use std::time::Duration;

#[tokio::main]
async fn main() -> Result<(), totals::Cause> {
    let mut args = std::env::args_os().skip(1);
    let folder = args.next().map_or_else(|| std::env::temp_dir().join("tidegate-windowed-totals"), PathBuf::from);
    let records = match args.next() {
        Some(records) => records.to_string_lossy().parse()?,
        None => 100_000,
    };
    let plan = totals::Plan {
        records,
        pause: Duration::ZERO,
        ttl: Duration::from_secs(10),
        interval: Duration::from_millis(200),
    };
    let ended = totals::run(&folder, &plan, "windowed_totals").await?;
    println!("{ended:?}");
    for (window, key, total) in totals::read(&folder)?.into_iter().take(10) {
        println!("window {window:>6} ms  key {key}  total {total}");
    }
    Ok(())
}
