//! A database of a test's own, of either kind, with a server on it; and who writes to it all the time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidegate_testkit::PostgresServer;

use crate::process::{Server, until};

/// The kinds of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// A database.
#[derive(Clone)]
pub(crate) enum Database {
    Sqlite(PathBuf),
    Postgres { server: &'static PostgresServer, url: String },
}

impl Database {
    /// A fresh one with the statements run, and a server whose source `main` it is. `None`, after saying so, where PostgreSQL
    /// is wanted and not installed.
    pub(crate) fn serve(kind: Kind, test: &str, sql: &str, arguments: &[&str]) -> Option<(Self, Server)> {
        let folder = tempfile::tempdir().unwrap();
        let database = match kind {
            Kind::Sqlite => Self::Sqlite(folder.path().join("main.db")),
            Kind::Postgres => {
                let server = PostgresServer::shared(test)?;
                Self::Postgres { server, url: server.fresh_database() }
            }
        };
        database.run(sql);
        let source = match &database {
            Self::Sqlite(path) => format!("main=sqlite:{}", path.display()),
            Self::Postgres { url, .. } => format!("main={url}"),
        };
        let server = Server::launch(folder, &[&["--source", &source], arguments].concat());
        Some((database, server))
    }

    /// Runs statements.
    pub(crate) fn run(&self, sql: &str) {
        match self {
            Self::Sqlite(path) => {
                let connection = rusqlite::Connection::open(path).unwrap();
                connection.busy_timeout(Duration::from_secs(30)).unwrap();
                connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
            Self::Postgres { server, url } => drop(server.run_sql(url, sql)),
        }
    }

    /// The rows of a statement of one text column.
    pub(crate) fn texts(&self, sql: &str) -> Vec<String> {
        match self {
            Self::Sqlite(path) => {
                let connection = rusqlite::Connection::open(path).unwrap();
                let mut statement = connection.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
                let rows = statement.query_map((), |row| row.get::<_, String>(0)).unwrap();
                rows.map(Result::unwrap).collect()
            }
            Self::Postgres { server, url } => server.run_sql(url, sql).lines().map(str::to_owned).collect(),
        }
    }

    /// A table `item(id, name, n)` with the ids 10, 20, ... of so many rows.
    pub(crate) fn items(kind: Kind, rows: u64) -> String {
        match kind {
            Kind::Sqlite => format!(
                "pragma journal_mode = wal;
                 create table item (id integer primary key, name text not null, n integer);
                 with recursive c(i) as (select 1 union all select i + 1 from c where i < {rows})
                 insert into item select i * 10, 'Größe ' || i || substr(hex(zeroblob(40)), 1, i % 80), i from c;"
            ),
            Kind::Postgres => format!(
                "create table item (id bigint primary key, name text not null, n bigint);
                 insert into item select i * 10, 'Größe ' || i || repeat('0', (i % 80)::int), i
                 from generate_series(1::bigint, {rows}) i;"
            ),
        }
    }

    /// Runs `work` while somebody changes the table `item` all the time: rows go, come and change at its start, in its middle
    /// and at its end.
    pub(crate) fn while_written<T>(&self, work: impl FnOnce(&Commits) -> T) -> T {
        let commits = Commits { count: AtomicU64::new(0), stopped: AtomicBool::new(false) };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut round = 0;
                while !commits.stopped.load(Ordering::Relaxed) {
                    round += 1;
                    let (low, high) = (round * 7 % 900, round * 7 % 900 + 300);
                    // Whole numbers of either database's type; the two ids of a round never meet an id that is there.
                    self.run(&format!(
                        "begin;
                         update item set name = 'changed in {round}' || name, n = -n where id % 1000 between {low} and {high};
                         delete from item where id % 5000 = {gone};
                         insert into item values ({early}, 'early', {round}), ({late}, 'late', {round});
                         commit;",
                        gone = round * 10 % 5000,
                        early = -round,
                        late = round * 10 + 5,
                    ));
                    commits.count.fetch_add(1, Ordering::Relaxed);
                }
            });
            // The writer ends with the work, also where that panics.
            let _stop = Stop(&commits.stopped);
            commits.more(&writer);
            work(&commits)
        })
    }
}

/// What a writer has done.
pub(crate) struct Commits {
    count: AtomicU64,
    stopped: AtomicBool,
}

impl Commits {
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn more(&self, writer: &std::thread::ScopedJoinHandle<'_, ()>) {
        until("the writer to commit", || self.count() > 0 || writer.is_finished());
    }

    /// Waits until there was one more commit than at `before`.
    pub(crate) fn after(&self, before: u64) {
        until("the writer to commit again", || self.count() > before);
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
