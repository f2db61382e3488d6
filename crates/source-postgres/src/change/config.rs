//! What is read, and the bounds of reading it. It never opens anything.

use std::time::Duration;

use crate::config::ConfigError;

pub(crate) const TRANSACTION_MAX_BYTES: usize = 64 * 1024 * 1024;
const COPY_WORKERS: usize = 2;
pub(crate) const COPY_WORKERS_MAX: usize = 32;
const COPY_ROWS: usize = 2_000;
/// PostgreSQL's bound on names.
const NAME_BYTES_MAX: usize = 63;

/// Which changes are read, and how.
///
/// ```
/// use tidegate_source_postgres::ChangeConfig;
///
/// let config = ChangeConfig { copy_workers: 4, ..ChangeConfig::new("tidegate_crm", "tidegate_crm") };
/// assert!(config.create && config.copy);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeConfig {
    /// The replication slot: small letters, digits and `_`, at most 63. One reader has it at one time.
    pub slot: Box<str>,
    /// The publication that names the tables and what of them is published.
    pub publication: Box<str>,
    /// The tables (`schema.table`) of a publication that is made here. Empty = all tables, which takes a superuser. Default empty.
    pub tables: Vec<Box<str>>,
    /// Whether a publication and a slot that are missing are made. A slot that vanished later is never made again. Default
    /// true.
    pub create: bool,
    /// Whether a published table without a replica identity is refused: PostgreSQL refuses to update it and to delete from it
    /// once it is published. Default true.
    pub require_keys: bool,
    /// Whether the rows that there are come first. Default true.
    pub copy: bool,
    /// A transaction whose changes take more memory comes in several batches. Default 64 MiB.
    pub transaction_max_bytes: usize,
    /// Connections that copy at one time, at most 32; one more holds their snapshot. Default 2.
    pub copy_workers: usize,
    /// Rows of the copy in a batch, at most. Default 2000.
    pub copy_rows: usize,
    /// How often the server hears from us at least; more often where its `wal_sender_timeout` asks for it. Default 10 s.
    pub status_interval: Duration,
    /// How long nothing may happen in the published tables before a batch without changes moves the position on, so that the
    /// server can forget the log of other tables. Default 5 s.
    pub idle_advance: Duration,
}

impl ChangeConfig {
    /// The defaults, for this slot and this publication.
    #[must_use]
    pub fn new(slot: impl Into<Box<str>>, publication: impl Into<Box<str>>) -> Self {
        Self {
            slot: slot.into(),
            publication: publication.into(),
            tables: Vec::new(),
            create: true,
            require_keys: true,
            copy: true,
            transaction_max_bytes: TRANSACTION_MAX_BYTES,
            copy_workers: COPY_WORKERS,
            copy_rows: COPY_ROWS,
            status_interval: Duration::from_secs(10),
            idle_advance: Duration::from_secs(5),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let bounds = [
            ("transaction_max_bytes", self.transaction_max_bytes as u128),
            ("copy_workers", self.copy_workers as u128),
            ("copy_rows", self.copy_rows as u128),
            ("status_interval", self.status_interval.as_nanos()),
            ("idle_advance", self.idle_advance.as_nanos()),
        ];
        if let Some((name, _)) = bounds.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::ZeroBound { name });
        }
        if self.copy_workers > COPY_WORKERS_MAX {
            return Err(ConfigError::Name { what: "copy_workers", rule: "at most 32" });
        }
        if !(1..=NAME_BYTES_MAX).contains(&self.slot.len()) || !self.slot.bytes().all(plain) {
            return Err(ConfigError::Name { what: "slot", rule: "1 to 63 small letters, digits and _" });
        }
        let name = |name: &str| (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control);
        if !name(&self.publication) {
            return Err(ConfigError::Name { what: "publication", rule: "1 to 63 bytes without control characters" });
        }
        let table = |table: &str| split(table).is_some_and(|(schema, table)| name(schema) && name(table));
        if !self.tables.iter().all(|name| table(name)) {
            return Err(ConfigError::Name { what: "tables", rule: "names such as public.customer" });
        }
        Ok(())
    }
}

/// Schema and table of `schema.table`.
pub(crate) fn split(table: &str) -> Option<(&str, &str)> {
    table.split_once('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_before_anything_is_opened() {
        let good = ChangeConfig::new("slot_1", "Some \"publication\"");
        assert!(good.check().is_ok());
        assert!(ChangeConfig { tables: vec!["public.a b".into()], ..good.clone() }.check().is_ok());
        for bad in [
            ChangeConfig { slot: "".into(), ..good.clone() },
            ChangeConfig { slot: "Slot".into(), ..good.clone() },
            ChangeConfig { slot: "s'; drop".into(), ..good.clone() },
            ChangeConfig { publication: "".into(), ..good.clone() },
            ChangeConfig { publication: "a\0b".into(), ..good.clone() },
            ChangeConfig { tables: vec!["customer".into()], ..good.clone() },
            ChangeConfig { tables: vec!["public.".into()], ..good.clone() },
            ChangeConfig { copy_workers: 0, ..good.clone() },
            ChangeConfig { copy_workers: 33, ..good.clone() },
            ChangeConfig { transaction_max_bytes: 0, ..good.clone() },
            ChangeConfig { idle_advance: Duration::ZERO, ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
