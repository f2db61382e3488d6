//! Reads changes and says how many came a second, for measuring by hand beside `pg_recvlogical`. It confirms what it counts, and keeps
//! nothing.
//!
//! ```text
//! cargo run --release -p tidegate-source-postgres --example changes -- URL SLOT PUBLICATION copy|stream RECORDS
//! ```

#![allow(clippy::disallowed_methods, reason = "it measures")]

use std::time::Instant;

use futures::StreamExt;
use tidegate_core::port::{Cause, ChangeSource};
use tidegate_source_postgres::{ChangeConfig, PostgresChanges, PostgresConfig};

#[tokio::main]
async fn main() -> Result<(), Cause> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, slot, publication, what, records] = &arguments[..] else {
        return Err("usage: changes URL SLOT PUBLICATION copy|stream RECORDS".into());
    };
    let wanted: usize = records.parse()?;
    let config = ChangeConfig { copy: what == "copy", ..ChangeConfig::new(slot.as_str(), publication.as_str()) };
    let source = PostgresChanges::connect(PostgresConfig::new(url.as_str()), config)?;
    let mut stream = source.changes(None).await?;
    let (mut begun, mut records, mut bytes, mut batches, mut largest) = (Instant::now(), 0, 0, 0, 0);
    while records < wanted {
        let Some(batch) = stream.next().await else { break };
        let batch = batch?;
        if records == 0 {
            begun = Instant::now();
        }
        let size: usize = batch.changes.iter().map(|(_, change)| change.value.len()).sum();
        records += batch.changes.len();
        bytes += size;
        batches += 1;
        largest = largest.max(size);
        source.confirm(&batch.position).await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{records} records, {bytes} bytes of values, {batches} batches, the largest of {largest} bytes, in {seconds:.2} s: \
         {:.0} records a second; peak memory {}",
        records as f64 / seconds,
        peak_memory().unwrap_or_default()
    );
    Ok(())
}

/// As Linux counts it.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(|peak| peak.trim().to_owned())
}
