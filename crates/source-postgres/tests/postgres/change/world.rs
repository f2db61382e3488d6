//! A reader of changes that keeps what a log would keep: the records, and the position and state of the last batch that it took. It
//! can be cut at any moment and goes on from there.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tidegate_core::port::{ChangeBatch, ChangeSource, ChangeSourceError, ChangeStream, Resume};
use tidegate_core::record::{Change, Operation};
use tidegate_source_postgres::{ChangeConfig, PostgresChanges, PostgresConfig};
use tidegate_testkit::PostgresServer;
use tidegate_testkit::wait::within;

/// A database, and a source of its changes.
pub(crate) struct World {
    pub(crate) server: &'static PostgresServer,
    pub(crate) url: String,
    pub(crate) name: String,
}

impl World {
    pub(crate) fn fresh(test: &str) -> Option<Self> {
        let server = PostgresServer::shared(test)?;
        let url = server.fresh_database();
        let name = url.rsplit('/').next().expect("a name").to_owned();
        Some(Self { server, url, name })
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.server.run_sql(&self.url, sql)
    }

    pub(crate) fn source(&self, configure: impl FnOnce(&mut ChangeConfig)) -> PostgresChanges {
        let mut config = ChangeConfig::new(self.name.as_str(), self.name.as_str());
        configure(&mut config);
        PostgresChanges::connect(PostgresConfig::new(self.url.as_str()), config).expect("a URL that the server gave")
    }

    /// The rows of a table as JSON of the server's own making, by key.
    pub(crate) fn rows(&self, table: &str, key: &str) -> BTreeMap<String, Value> {
        let out = self.sql(&format!("select json_build_array(({key})::text, to_json(t)) from {table} t"));
        out.lines()
            .map(|line| {
                let pair: (String, Value) = serde_json::from_str(line).expect("JSON");
                pair
            })
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Slots are few, and one that nobody reads keeps the log. A test that fails may leave it active.
        let drop = "select count(pg_drop_replication_slot(slot_name)) from pg_replication_slots \
                    where database = current_database() and not active";
        if !std::thread::panicking() {
            self.sql(drop);
        }
    }
}

/// What was taken from a source.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) records: Vec<(Box<str>, Change)>,
    pub(crate) resume: Option<Resume>,
    pub(crate) batches: usize,
    places: HashSet<(String, String, u64)>,
}

impl Taken {
    pub(crate) fn take(&mut self, source: &PostgresChanges, batch: ChangeBatch) {
        if let Some(before) = &self.resume {
            let order = source.compare(&before.position, &batch.position).expect("positions");
            assert!(order.is_le(), "a position goes back: {before:?} {batch:?}");
        }
        for (table, change) in batch.changes {
            let origin = change.source.clone().expect("every change has its place");
            let place = (origin.position.0.into(), origin.transaction.into(), origin.index);
            assert!(self.places.insert(place), "a record came twice: {change:?}");
            self.records.push((table, change));
        }
        self.resume = Some(Resume { position: batch.position, state: batch.state });
        self.batches += 1;
    }

    pub(crate) async fn open(&self, source: &PostgresChanges) -> ChangeStream {
        within("the stream to open", async {
            loop {
                match source.changes(self.resume.clone()).await {
                    Ok(stream) => return stream,
                    Err(ChangeSourceError::Unavailable(_) | ChangeSourceError::InUse { .. }) => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
        })
        .await
    }

    /// Takes batches until `done`.
    pub(crate) async fn until(
        &mut self,
        source: &PostgresChanges,
        stream: &mut ChangeStream,
        mut done: impl FnMut(&Self) -> bool,
    ) {
        while !done(self) {
            let batch = within("a batch", stream.next()).await.expect("it goes on").expect("no error");
            self.take(source, batch);
        }
    }

    /// The last record of a table with this text in its value.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.records.iter().rev().any(|(_, change)| change.value.contains(text))
    }

    /// The table that the records make, by `key`.
    pub(crate) fn fold(&self, table: &str, key: &str) -> BTreeMap<String, Value> {
        let mut rows: BTreeMap<String, Value> = BTreeMap::new();
        let name = |json: &str| {
            let value: Value = serde_json::from_str(json).expect("JSON");
            match &value[key] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            }
        };
        let mut moved: Option<Value> = None;
        for (at, change) in self.records.iter().filter(|(at, _)| &**at == table) {
            let headers: Value = serde_json::from_str(change.headers.as_deref().expect("headers")).expect("JSON");
            match change.operation {
                Operation::Message => {}
                Operation::Truncate => rows.clear(),
                Operation::Delete => {
                    let key = name(change.key.as_deref().expect("a key"));
                    moved = rows.remove(&key);
                    assert!(moved.is_some(), "{at}: a row that is not there is deleted: {change:?}");
                }
                operation => {
                    let key = name(change.key.as_deref().expect("a key"));
                    let mut row: Value = serde_json::from_str(&change.value).expect("JSON");
                    let before = rows.remove(&key);
                    assert_eq!(before.is_some(), operation == Operation::Update, "{at}: {change:?}");
                    let before = before.or(moved.take());
                    for column in headers["unchanged_toast"].as_array().into_iter().flatten() {
                        let column = column.as_str().expect("a name");
                        row[column] = before.as_ref().expect("a row before")[column].clone();
                    }
                    rows.insert(key, row);
                }
            }
        }
        rows
    }
}
