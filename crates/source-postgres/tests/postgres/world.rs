//! A database of its own for each test, and the suite's world over it.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::port::{QuerySnapshot, QuerySource, SourceError};
use tidegate_source_postgres::{PostgresConfig, PostgresSource};
use tidegate_testkit::query_source_suite::{rows, statement};
use tidegate_testkit::{OwnedCell, OwnedRow, PostgresServer, QuerySourceWorld};

/// A database, and a source of it.
pub(crate) struct Database {
    pub(crate) server: &'static PostgresServer,
    pub(crate) url: String,
    pub(crate) source: Arc<PostgresSource>,
}

impl Database {
    /// An empty database; `None`, after saying so, without PostgreSQL. Call it inside a runtime.
    pub(crate) fn fresh(test: &str, configure: impl FnOnce(&mut PostgresConfig)) -> Option<Self> {
        let server = PostgresServer::shared(test)?;
        let url = server.fresh_database();
        let mut config = PostgresConfig::new(url.as_str());
        configure(&mut config);
        let source = Arc::new(PostgresSource::connect(config).expect("a URL that the server gave"));
        Some(Self { server, url, source })
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.server.run_sql(&self.url, sql)
    }

    pub(crate) async fn open(&self) -> Arc<dyn QuerySnapshot> {
        self.source.open().await.expect("the server runs")
    }
}

/// The rows of a statement without parameters.
pub(crate) async fn query(snapshot: &dyn QuerySnapshot, sql: &str) -> Result<Vec<OwnedRow>, SourceError> {
    rows(snapshot, &statement(sql)).await
}

/// The only cell of a statement.
pub(crate) async fn cell(snapshot: &dyn QuerySnapshot, sql: &str) -> OwnedCell {
    let mut rows = query(snapshot, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert_eq!((rows.len(), rows[0].len()), (1, 1), "{sql}");
    rows.remove(0).remove(0)
}

pub(crate) struct PostgresWorld(Database);

#[async_trait]
impl QuerySourceWorld for PostgresWorld {
    const MAX_SNAPSHOTS: usize = 3;
    const ENDLESS: &'static str = "select 1 as one from pg_sleep(600)";
    const WRITES: &'static [&'static str] = &[
        "insert into item values (100, 'x', 1)",
        "insert into item values (100, 'x', 1) returning id",
        "update item set n = 1",
        "delete from item returning *",
        "with gone as (delete from item returning id) select id from gone",
        "select * into item2 from item",
        "create table item2 as select * from item",
        "create table t (x int)",
        "drop table item",
        "truncate item",
        "select id from item for update",
        "select id from item for share",
        "merge into item using (values (1)) v(x) on item.id = v.x when matched then delete",
        "copy item to stdout",
        "copy item from stdin",
        "explain analyze delete from item",
        "lock table item",
        "do $$ begin delete from item; end $$",
        "set timezone = 'Asia/Tokyo'",
        "set transaction read write",
        "reset all",
        "discard all",
        "begin",
        "commit",
        "end",
        "rollback",
        "savepoint x",
        "release savepoint tidegate",
        "rollback to savepoint tidegate",
        "prepare transaction 'x'",
        "prepare p as select 1",
        "deallocate all",
        "declare c cursor for select 1",
        "close all",
        "listen x",
        "notify x",
        "vacuum",
        "grant select on item to public",
    ];

    fn parameter(number: usize) -> String {
        format!("${number}")
    }

    async fn fresh(rows: u64) -> Option<Self> {
        let test = std::thread::current().name().unwrap_or("query_source_suite").to_owned();
        let database = Database::fresh(&test, |config| config.max_snapshots = Self::MAX_SNAPSHOTS)?;
        database.sql("create table item (id bigint primary key, name text not null, n bigint)");
        database.sql(&format!(
            "insert into item select i, 'item ' || i, case when i % 7 <> 0 then i * 10 end from generate_series(1, {rows}) i"
        ));
        Some(Self(database))
    }

    fn source(&self) -> Arc<dyn QuerySource> {
        self.0.source.clone()
    }

    async fn write(&self, sql: &str) {
        self.0.sql(sql);
    }
}
