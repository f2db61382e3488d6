//! A fresh database file in a folder of its own. Its writer is a plain connection, as any other program's.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::Connection;
use tempfile::TempDir;
use tidegate_core::port::{QuerySnapshot, QuerySource, SourceError};
use tidegate_source_sqlite::{SqliteConfig, SqliteSource};
use tidegate_testkit::query_source_suite::{rows, statement};
use tidegate_testkit::{OwnedRow, QuerySourceWorld};

/// A database file with a source on it.
pub(crate) struct SqliteWorld {
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) source: Arc<SqliteSource>,
}

impl SqliteWorld {
    /// A database made by `sql`, with a source of the default configuration.
    pub(crate) fn with(sql: &str) -> Self {
        Self::configured(sql, |_| {})
    }

    pub(crate) fn configured(sql: &str, configure: impl FnOnce(&mut SqliteConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.db");
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let mut config = SqliteConfig::new(&path);
        configure(&mut config);
        let source = Arc::new(SqliteSource::open(config).unwrap());
        Self { folder, path, source }
    }

    pub(crate) fn writer(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }

    pub(crate) async fn snapshot(&self) -> Arc<dyn QuerySnapshot> {
        self.source.open().await.unwrap()
    }

    /// The rows of one statement on a snapshot of its own.
    pub(crate) async fn query(&self, sql: &str) -> Result<Vec<OwnedRow>, SourceError> {
        rows(&*self.snapshot().await, &statement(sql)).await
    }
}

#[async_trait]
impl QuerySourceWorld for SqliteWorld {
    const MAX_SNAPSHOTS: usize = 4;
    const ENDLESS: &'static str =
        "with recursive c(x) as (select 1 union all select x + 1 from c) select x from c where x < 0";
    const WRITES: &'static [&'static str] = &[
        "insert into item (id, name) values (100, 'x')",
        "insert into item (id, name) values (100, 'x') returning id",
        "insert or replace into item (id, name) values (1, 'x')",
        "update item set name = 'x'",
        "delete from item",
        "with gone as (select 1 as id) delete from item where id in (select id from gone)",
        "explain delete from item",
        "create table other (id integer)",
        "create temp table other (id integer)",
        "create view other as select 1",
        "create index other on item (name)",
        "drop table item",
        "alter table item rename to other",
        "attach ':memory:' as other",
        "attach 'other.db' as other",
        "detach main",
        "vacuum",
        "vacuum into 'copy.db'",
        "reindex",
        "analyze",
        "begin",
        "commit",
        "rollback",
        "savepoint a",
        "release a",
        "pragma user_version = 7",
        "pragma journal_mode = delete",
        "pragma query_only = off",
        "pragma writable_schema = on",
        "pragma wal_checkpoint",
        "pragma database_list",
        "select load_extension('evil')",
    ];

    fn parameter(number: usize) -> String {
        format!("?{number}")
    }

    async fn fresh(count: u64) -> Option<Self> {
        let sql = format!(
            "create table item (id integer primary key, name text not null, n integer);
             with recursive c(id) as (select 1 union all select id + 1 from c where id < {count})
             insert into item select id, 'item ' || id, iif(id % 7 = 0, null, id * 10) from c"
        );
        Some(Self::configured(&sql, |config| config.max_snapshots = Self::MAX_SNAPSHOTS))
    }

    fn source(&self) -> Arc<dyn QuerySource> {
        Arc::clone(&self.source) as Arc<dyn QuerySource>
    }

    async fn write(&self, sql: &str) {
        self.writer().execute_batch(sql).unwrap();
    }
}
