//! What the store counts. Labels never carry a stream's or a tenant's name.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

const GROUPS: &str = "tidegate_store_groups_total";
const GROUP_COMMANDS: &str = "tidegate_store_group_commands";
const WRITE_SECONDS: &str = "tidegate_store_write_seconds";
const RECORDS: &str = "tidegate_store_appended_records_total";
const BYTES: &str = "tidegate_store_appended_bytes_total";
const FAILURES: &str = "tidegate_store_failures_total";
const MAINTENANCE_FAILURES: &str = "tidegate_store_maintenance_failures_total";
const FULL: &str = "tidegate_store_full_total";
const READS: &str = "tidegate_store_read_bytes_total";

/// Says what each metric means to whoever collects them.
pub(crate) fn describe() {
    describe_counter!(GROUPS, "Groups of changes that were written, by whether they were synced to stable storage");
    describe_histogram!(GROUP_COMMANDS, "Changes that shared one write");
    describe_histogram!(WRITE_SECONDS, Unit::Seconds, "How long a group's write took, with its sync");
    describe_counter!(RECORDS, "Records appended");
    describe_counter!(BYTES, Unit::Bytes, "Bytes of records appended");
    describe_counter!(FAILURES, "Times that the database failed and was opened again");
    describe_counter!(MAINTENANCE_FAILURES, "Pieces of maintenance that failed and were left for later");
    describe_counter!(FULL, "Groups that met a full disk");
    describe_counter!(READS, Unit::Bytes, "Bytes of records read");
}

pub(crate) fn group(commands: usize, records: u64, bytes: u64, fsync: bool, took: Duration) {
    counter!(GROUPS, "fsync" => if fsync { "true" } else { "false" }).increment(1);
    #[expect(clippy::cast_precision_loss, reason = "a group has a few thousand commands at most")]
    histogram!(GROUP_COMMANDS).record(commands as f64);
    histogram!(WRITE_SECONDS).record(took.as_secs_f64());
    counter!(RECORDS).increment(records);
    counter!(BYTES).increment(bytes);
}

pub(crate) fn failed() {
    counter!(FAILURES).increment(1);
}

pub(crate) fn maintenance_failed() {
    counter!(MAINTENANCE_FAILURES).increment(1);
}

pub(crate) fn full() {
    counter!(FULL).increment(1);
}

pub(crate) fn read(bytes: u64) {
    counter!(READS).increment(bytes);
}
