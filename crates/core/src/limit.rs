//! Settings and bounds that a user can read, meet and (some) change. It never enforces one itself: who uses a value does.

use std::sync::Arc;

use serde::Serialize;

use crate::id::Name;

/// A numeric setting that can be changed at run time, with the range that it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its key, as in `tidegate.toml` and `PATCH /v1/config`; its unit stands at the end.
    pub key: &'static str,
    /// What it is unless told otherwise.
    pub default: u64,
    /// The least that it may be.
    pub min: u64,
    /// The most that it may be.
    pub max: u64,
    /// What it bounds and what happens beyond it.
    pub meaning: &'static str,
}

/// A bound that is built in, as listed at `/v1/limits` beside the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Its name; its unit stands at the end.
    pub name: &'static str,
    /// The bound.
    pub value: u64,
    /// What it bounds and what happens beyond it.
    pub meaning: &'static str,
}

/// The bounds of this crate.
pub const LIMITS: &[Limit] = &[Limit {
    name: "name_max_bytes",
    value: Name::MAX_BYTES as u64,
    meaning: "A name that a user chooses, such as a source's; a longer one is refused.",
}];

/// A bound that is read each time that it is needed, because it can change while the server runs. Cheap to clone.
#[derive(Clone)]
pub struct Bound(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Bound {
    /// Reads the bound where it stands. `read` is called often: it must be quick and must not block.
    #[must_use]
    pub fn live(read: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// What it is now.
    #[must_use]
    pub fn get(&self) -> u64 {
        (self.0)()
    }
}

/// A bound that does not change.
impl From<u64> for Bound {
    fn from(value: u64) -> Self {
        Self::live(move || value)
    }
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bound").field(&self.get()).finish()
    }
}

/// Why a setting was not changed. Nothing was: a change of several settings is all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// There is no such setting.
    #[error("there is no setting {key:?}; GET /v1/limits lists them")]
    Unknown {
        /// The key that was given.
        key: Box<str>,
    },
    /// The value is outside its range.
    #[error("{key} is {value}, it must be from {min} to {max}")]
    OutOfRange {
        /// Which.
        key: &'static str,
        /// What was given.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
}

macro_rules! settings {
    ($($name:ident = $key:literal, $default:expr, $min:expr => $max:expr, $meaning:literal;)*) => {
        /// The values of all `stream.*` and `limits.*` settings. Cheap to copy: who opens a stream keeps the values
        /// that it opened with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct Settings { $($name: u64,)* }

        impl Default for Settings {
            fn default() -> Self { Self { $($name: $default,)* } }
        }

        impl Settings {
            /// Every setting, in the order of the documentation.
            pub const ALL: &'static [Setting] = &[
                $(Setting { key: $key, default: $default, min: $min, max: $max, meaning: $meaning },)*
            ];

            $(
                #[doc = $meaning]
                #[doc = concat!("\n\nThe setting `", $key, "`.")]
                #[must_use]
                pub const fn $name(&self) -> u64 { self.$name }
            )*

            /// The value of the setting with this key.
            #[must_use]
            pub fn get(&self, key: &str) -> Option<u64> {
                match key { $($key => Some(self.$name),)* _ => None }
            }

            /// Sets one value. On an error nothing is changed.
            pub fn set(&mut self, key: &str, value: u64) -> Result<(), SettingError> {
                match key {
                    $($key => {
                        if !($min..=$max).contains(&value) {
                            return Err(SettingError::OutOfRange { key: $key, value, min: $min, max: $max });
                        }
                        self.$name = value;
                        Ok(())
                    })*
                    _ => Err(SettingError::Unknown { key: key.into() }),
                }
            }
        }
    };
}

const MIB: u64 = 1024 * 1024;
const DAY_MS: u64 = 86_400_000;

settings! {
    stream_snapshot_ttl_ms = "stream.snapshot.ttl_ms", 60_000, 1 => DAY_MS,
        "How long a snapshot stays pinned after the last read of its stream; then a resume is 410 snapshot_expired.";
    stream_chunk_pages = "stream.chunk.pages", 4, 1 => 64,
        "A chunk is sent when it has this many pages of 16 KiB.";
    stream_chunk_max_rows = "stream.chunk.max_rows", 1_000, 1 => 1_000_000,
        "A chunk is sent when it has this many rows.";
    stream_chunk_max_latency_ms = "stream.chunk.max_latency_ms", 50, 1 => 60_000,
        "A chunk is sent this long after its first row, whether or not another row comes.";
    stream_max_global = "stream.max_global", 256, 1 => 65_536,
        "Streams that are being read at one time; beyond it 429 stream_capacity_exhausted.";
    stream_max_per_principal = "stream.max_per_principal", 32, 1 => 65_536,
        "Streams of one principal that are being read at one time; beyond it 429 principal_stream_quota_exhausted.";
    stream_idle_timeout_ms = "stream.idle_timeout_ms", 30_000, 1 => DAY_MS,
        "A client that does not take the next chunk in this time loses its slot (reader_stalled); its cursor lives on to the TTL.";
    stream_long_poll_ms = "stream.long_poll_ms", 30_000, 1 => DAY_MS,
        "How long a long poll of Durable Streams waits for something to come; then it is 204.";
    stream_sse_ms = "stream.sse_ms", 60_000, 1 => DAY_MS,
        "How long one answer of server-sent events of Durable Streams goes on; then the client comes back with its offset.";
    stream_keep_bytes = "stream.keep_bytes", 8 * MIB, 0 => 256 * MIB,
        "Bytes of recently sent rows that a stream keeps, so that a resume near the break is answered from memory.";
    limits_lease_max_global = "limits.lease_max_global", 1_024, 1 => 65_536,
        "Pinned snapshots at one time; beyond it one that is completed, or that the asker left, is given up, else 429 lease_capacity_exhausted.";
    limits_lease_max_per_principal = "limits.lease_max_per_principal", 128, 1 => 65_536,
        "Pinned snapshots of one principal at one time; beyond it as for limits.lease_max_global.";
    limits_row_max_bytes = "limits.row_max_bytes", 16 * MIB, 1_024 => 256 * MIB,
        "A row as a line of NDJSON; a longer one ends its stream with row_too_large.";
    limits_body_max_bytes = "limits.body_max_bytes", MIB, 1_024 => 64 * MIB,
        "A request's body where it is read whole; beyond it 413 body_too_large.";
    limits_body_timeout_ms = "limits.body_timeout_ms", 30_000, 10 => DAY_MS,
        "A request's body that is read whole must be there in this time; beyond it 408 body_timeout.";
    limits_header_timeout_ms = "limits.header_timeout_ms", 30_000, 10 => DAY_MS,
        "A request's head must be there in this time, and an idle connection is closed after it.";
    limits_connection_max = "limits.connection_max", 12_000, 1 => 1_000_000,
        "Connections at one time, as far as the system's open-file limit allows; beyond it new ones wait to be accepted.";
    limits_sql_max_bytes = "limits.sql_max_bytes", 256 * 1024, 16 => 16 * MIB,
        "A statement's text; beyond it 413 sql_too_large.";
    limits_parameter_max = "limits.parameter_max", 1_000, 0 => 32_766,
        "Parameters of a statement; beyond it 400 too_many_parameters.";
    limits_open_timeout_ms = "limits.open_timeout_ms", 30_000, 1 => DAY_MS,
        "A source must open and describe a statement in this time; beyond it 504 source_timeout.";
    limits_resume_timeout_ms = "limits.resume_timeout_ms", 600_000, 1 => DAY_MS,
        "A resume before the kept rows must find its row in this time; beyond it 504 resume_timeout.";
    limits_kept_max_bytes = "limits.kept_max_bytes", 512 * MIB, 0 => 1_024 * 1_024 * MIB,
        "Bytes of sent rows that all streams together keep; beyond it a stream that sends keeps fewer of its own.";
    limits_record_max_bytes = "limits.record_max_bytes", 16 * MIB, 1_024 => 32 * MIB,
        "A record of a change stream as it is stored; beyond it 413 record_too_large.";
    limits_batch_max_records = "limits.batch_max_records", 10_000, 1 => 100_000,
        "Records of one append; beyond it 413 batch_too_large.";
    limits_batch_max_bytes = "limits.batch_max_bytes", 32 * MIB, 1_024 => 48 * MIB,
        "The body of one append; beyond it 413 batch_too_large.";
    limits_stream_max_per_tenant = "limits.stream_max_per_tenant", 1_000_000, 1 => 100_000_000,
        "Change streams of one tenant; beyond it 429 stream_quota_exhausted.";
    limits_partition_max = "limits.partition_max", 1_024, 1 => 65_536,
        "Partitions of one change stream; beyond it 400 too_many_partitions.";
    limits_read_max_records = "limits.read_max_records", 10_000, 1 => 1_000_000,
        "Records of one read or poll; a greater limit in a request is 400 invalid_field.";
    limits_read_max_bytes = "limits.read_max_bytes", 16 * MIB, 1_024 => 256 * MIB,
        "Bytes of one read or poll, beyond which at least one record is given; a greater max_bytes is 400 invalid_field.";
    limits_wait_max_ms = "limits.wait_max_ms", 60_000, 0 => DAY_MS,
        "How long a read or poll may wait for records; a greater wait_ms is 400 invalid_field.";
    limits_tail_max_global = "limits.tail_max_global", 20_000, 1 => 1_000_000,
        "Readers that follow or wait on change streams at one time; beyond it 429 tail_capacity_exhausted.";
    limits_tail_max_per_principal = "limits.tail_max_per_principal", 12_000, 1 => 1_000_000,
        "The same of one principal; beyond it 429 principal_tail_quota_exhausted.";
    limits_tail_kept_max_bytes = "limits.tail_kept_max_bytes", 64 * MIB, 0 => 1_024 * MIB,
        "Bytes of the newest records that all streams together keep in memory for who follows them.";
    limits_group_max_per_stream = "limits.group_max_per_stream", 1_000, 1 => 100_000,
        "Consumer groups of one stream; beyond it 429 group_quota_exhausted.";
    limits_member_max_per_group = "limits.member_max_per_group", 1_000, 1 => 10_000,
        "Members of one consumer group; beyond it 429 member_quota_exhausted.";
    limits_in_flight_max_per_group = "limits.in_flight_max_per_group", 10_000, 1 => 1_000_000,
        "Records of a shared group that are delivered and not acknowledged; beyond it a poll gives no new ones.";
    limits_producer_idle_ms = "limits.producer_idle_ms", 7 * DAY_MS, 1_000 => 400 * DAY_MS,
        "A producer that appended nothing for this long is forgotten with its epoch and its sequence.";
    limits_tombstone_grace_ms = "limits.tombstone_grace_ms", DAY_MS, 0 => 400 * DAY_MS,
        "How long a compacted stream keeps the record that deletes a key; a stream keeps the value that it was created with.";
    limits_drain_ms = "limits.drain_ms", 3_000, 0 => DAY_MS,
        "After SIGTERM running streams may go on for this long; then they get their end line.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_found_by_its_key_and_keeps_its_range() {
        for setting in Settings::ALL {
            let mut settings = Settings::default();
            assert_eq!(settings.get(setting.key), Some(setting.default), "{}", setting.key);
            assert!((setting.min..=setting.max).contains(&setting.default), "{}", setting.key);
            settings.set(setting.key, setting.max).unwrap();
            assert_eq!(settings.get(setting.key), Some(setting.max));
            let before = settings;
            assert!(settings.set(setting.key, setting.max + 1).is_err());
            assert!(setting.min == 0 || settings.set(setting.key, setting.min - 1).is_err());
            assert_eq!(settings, before, "a refused value changes nothing");
        }
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        assert!(matches!(Settings::default().set("stream.nonsense", 1), Err(SettingError::Unknown { .. })));
    }
}
