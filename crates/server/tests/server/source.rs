//! A PostgreSQL's changes as streams of the real server: each record once and transactions whole, whoever is killed; and what is lost
//! is said.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};
use tidegate_testkit::PostgresServer;

use crate::http::ask;
use crate::process::{Server, stderr, stdout, until};

/// A database of a server of its own, and a `tidegate` that reads its changes as the source `x`.
struct World {
    postgres: PostgresServer,
    url: String,
    server: Server,
}

impl World {
    /// `None`, after saying so, where PostgreSQL is not installed.
    fn start(test: &str, sql: &str) -> Option<Self> {
        let Some(postgres) = PostgresServer::start().unwrap() else {
            PostgresServer::skip(test);
            return None;
        };
        let url = postgres.fresh_database();
        postgres.run_sql(&url, sql);
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "[sources.x]\nkind = \"postgres\"\nurl = \"{url}\"\npublication = \"tidegate\"\nslot = \"tidegate\"\n"
        );
        std::fs::write(folder.path().join("tidegate.toml"), config).unwrap();
        let server = Server::launch(folder, &[]);
        Some(Self { postgres, url, server })
    }

    fn sql(&self, sql: &str) -> String {
        self.postgres.run_sql(&self.url, sql)
    }

    fn source(&self) -> Value {
        self.server.get("/v1/sources/x").json()
    }

    fn until_state(&self, state: &str) {
        let mut last = Value::Null;
        until(&format!("the state {state}"), || {
            last = self.source();
            last["state"] == state
        });
    }

    /// Ends the server at once, and drops the slot once PostgreSQL has seen that.
    fn without_slot(&mut self) {
        self.server.child.kill().unwrap();
        self.server.child.wait().unwrap();
        let drop = "select pg_drop_replication_slot('tidegate')";
        until("the slot to be dropped", || self.postgres.try_sql(&self.url, drop).is_ok());
    }

    /// A table's rows by their keys, as the server itself writes them.
    fn rows(&self, table: &str, key: &str) -> BTreeMap<String, Value> {
        let printed =
            self.sql(&format!("select json_build_array(json_build_object({key}), to_json(t)) from {table} t"));
        let row = |line: &str| {
            let (key, row): (Value, Value) = serde_json::from_str(line).unwrap();
            (key.to_string(), row)
        };
        printed.lines().map(row).collect()
    }
}

/// One stream, read on and on. Its offsets are dense.
struct Reader {
    stream: String,
    records: Vec<Value>,
}

impl Reader {
    fn new(table: &str) -> Self {
        Self { stream: format!("x.public.{table}"), records: Vec::new() }
    }

    /// Reads all that is there.
    fn read(&mut self, server: &Server) -> &[Value] {
        loop {
            let from = self.records.len();
            let path = format!("/v1/streams/{}/records?partition=0&from={from}&limit=1000", self.stream);
            let answer = server.get(&path);
            if answer.status == 404 && from == 0 {
                return &[];
            }
            assert_eq!(answer.status, 200, "{}", answer.text());
            for line in answer.text().lines() {
                let mut line: Value = serde_json::from_str(line).unwrap();
                assert!(line.get("gap").is_none() && line.get("error").is_none(), "{line}");
                if line.get("record").is_some() {
                    let record = line["record"].take();
                    assert_eq!(record["offset"], self.records.len(), "{}", self.stream);
                    self.records.push(record);
                }
            }
            if self.records.len() == from {
                return &self.records;
            }
        }
    }

    /// Waits for a record whose value has this text.
    fn until(&mut self, server: &Server, text: &str) {
        let mut seen = 0;
        let what = format!("{text} in {}", self.stream);
        until(&what, || {
            let records = self.read(server);
            let found = records[seen..].iter().any(|record| record["value"].to_string().contains(text));
            seen = records.len();
            found
        });
    }

    /// How many records each transaction after `floor` has here. Of one before it, the copy may have had a part: in ranges that
    /// were copied after a kill.
    fn transactions(&mut self, server: &Server, floor: u64) -> BTreeMap<u64, usize> {
        let mut counted = BTreeMap::new();
        for record in self.read(server).iter().filter(|record| record["op"] != "message") {
            let transaction = record["source"]["tx"].as_str().unwrap().parse().unwrap_or(0);
            if transaction > floor {
                *counted.entry(transaction).or_default() += 1;
            }
        }
        counted
    }

    /// The table that the records make.
    fn fold(&self) -> BTreeMap<String, Value> {
        let mut rows: BTreeMap<String, Value> = BTreeMap::new();
        let mut moved = None;
        for record in &self.records {
            let (key, at) = (record["key"].to_string(), format!("{}: {record}", self.stream));
            match record["op"].as_str().unwrap() {
                "message" => {}
                "truncate" => rows.clear(),
                "delete" => {
                    moved = rows.remove(&key);
                    assert!(moved.is_some(), "a row that is not there is deleted: {at}");
                }
                operation => {
                    let before = rows.remove(&key);
                    assert_eq!(before.is_some(), operation == "update", "{at}");
                    let before = before.or(moved.take());
                    let mut row = record["value"].clone();
                    for column in record["headers"]["unchanged_toast"].as_array().into_iter().flatten() {
                        let column = column.as_str().unwrap();
                        row[column] = before.as_ref().unwrap()[column].clone();
                    }
                    rows.insert(key, row);
                }
            }
        }
        rows
    }
}

/// A consumer group of one stream, read between the kills.
#[derive(Default)]
struct Consumer {
    offsets: Vec<u64>,
}

impl Consumer {
    const PATH: &'static str = "/v1/streams/x.public.item/groups/g";

    fn create(server: &Server) {
        let made = ask(server.address, "PUT", Self::PATH, &[], json!({"start": "earliest"}).to_string());
        assert_eq!(made.status, 201, "{}", made.text());
    }

    /// Takes what is there, and commits it.
    fn take(&mut self, server: &Server) {
        loop {
            let answer = server.post(&format!("{}/poll", Self::PATH), &json!({"limit": 500}));
            assert_eq!(answer.status, 200, "{}", answer.text());
            let polled = answer.json();
            let records = polled["records"].as_array().unwrap();
            if records.is_empty() {
                return;
            }
            self.offsets.extend(records.iter().map(|record| record["offset"].as_u64().unwrap()));
            let commit = json!({"positions": polled["delivered"]});
            let committed = server.post(&format!("{}/commit", Self::PATH), &commit);
            assert_eq!(committed.status, 200, "{}", committed.text());
        }
    }
}

/// The rows of [`TABLES`]: before them nothing but the copy comes.
const COPIED: u64 = 23_050;
const TABLES: &str = "\
create table item (id bigint primary key, name text not null, note text, n bigint);
create table line (item bigint, no int, text text, primary key (item, no));
create table gone (id bigint primary key, n int);
create table still (id int primary key, name text);
insert into item select i, 'item ' || i, null, i from generate_series(1, 20000) i;
insert into line select i, 1, 'line of ' || i from generate_series(1, 3000) i;
insert into still select i, 'Größe ' || i from generate_series(1, 50) i;";

/// One transaction over three tables: inserts, updates, deletes, keys that change, a value that is stored out of line, a TRUNCATE at
/// times. Two records of `line` at least, and an even number of them.
fn transaction(round: u64, out_of_line: bool) -> String {
    // While a copy goes on after a kill, a row that moves from a range that is not copied yet to one that is has no earlier record to take
    // such a value from.
    let note =
        if out_of_line { "(select string_agg(md5(i::text), '') from generate_series(1, 200) i)" } else { "null" };
    let truncate = if round.is_multiple_of(13) { "truncate gone;" } else { "" };
    format!(
        "begin;
         insert into item values ({id}, 'new', {note}, 0);
         insert into line values ({id}, 1, 'a'), ({id}, 2, 'b');
         update item set n = n + 1 where id between {low} and {low} + 3;
         update item set n = n + 1 where id = {id} - 1;
         delete from item where id = {low} * 2 + 500;
         update item set id = -id where id = {id} - 2;
         update line set no = no + 10 where item = {id} - 3 and no = 1;
         {truncate}
         insert into gone select {round} * 10 + k, k from generate_series(1, 3) k;
         commit;",
        id = 100_000 + round,
        low = round * 7 % 15_000 + 1,
    )
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What is in one stream of a transaction is in the other: read before, between and after, so that nothing hides behind time.
fn whole_transactions(server: &Server, readers: &mut [Reader], floor: u64) -> u64 {
    let [item, line, ..] = readers else { unreachable!("four of them") };
    let before = item.transactions(server, floor);
    let between = line.transactions(server, floor);
    let after = item.transactions(server, floor);
    let names = |of: &BTreeMap<u64, usize>| of.keys().copied().collect::<BTreeSet<_>>();
    let (first, middle, last) = (names(&before), names(&between), names(&after));
    assert!(first.is_subset(&middle), "half visible: {:?}", first.difference(&middle).collect::<Vec<_>>());
    assert!(middle.is_subset(&last), "half visible: {:?}", middle.difference(&last).collect::<Vec<_>>());
    for (transaction, records) in &between {
        assert!(records % 2 == 0, "{transaction} has {records} records of line");
    }
    between.len() as u64
}

#[test]
fn streams_folded_up_are_the_tables_whoever_is_killed_while_they_are_written() {
    let test = "streams_folded_up_are_the_tables_whoever_is_killed_while_they_are_written";
    let Some(mut world) = World::start(test, TABLES) else { return };
    let (stopped, copied, commits) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let mut readers: Vec<Reader> = ["item", "line", "gone", "still"].into_iter().map(Reader::new).collect();
    let mut consumer = Consumer::default();
    let mut dice = Dice(5);
    let (mut in_copy, mut floor, mut base) = (0, 0, 0);
    let (postgres, url) = (&world.postgres, &world.url);
    std::thread::scope(|scope| {
        let _stop = Stop(&stopped);
        scope.spawn(|| {
            for round in 1.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // What is written while PostgreSQL dies may or may not be there afterwards.
                if postgres.try_sql(url, &transaction(round, copied.load(Ordering::Relaxed))).is_ok() {
                    commits.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let server = &mut world.server;
        for least in [0, 1, 4_000, 9_000] {
            let mut records = 0;
            until("the copy to go on", || {
                records = server.get("/v1/sources/x").json()["records"].as_u64().unwrap();
                records >= least
            });
            in_copy += u64::from((1..COPIED).contains(&records));
            server.kill_and_restart();
        }
        until("the copy to be done", || server.get("/v1/sources/x").json()["copy"]["state"] == "done");
        floor = postgres.run_sql(url, "select pg_current_xact_id()").trim().parse().unwrap();
        base = commits.load(Ordering::Relaxed);
        copied.store(true, Ordering::Relaxed);
        Consumer::create(server);
        for round in 0..9 {
            let (seen, more) = (commits.load(Ordering::Relaxed), 1 + dice.below(8));
            until("the writer to go on", || commits.load(Ordering::Relaxed) >= seen + more);
            match round {
                2 | 6 => postgres.end_and_restart("QUIT"),
                4 => postgres.end_and_restart("KILL"),
                _ => server.kill_and_restart(),
            }
            whole_transactions(server, &mut readers, floor);
            consumer.take(server);
        }
        for _ in 0..2 {
            server.kill_and_restart();
        }
    });
    assert!(in_copy > 0, "no copy was cut");
    world.sql("begin; insert into item values (0, 'the end', null, 0); insert into line values (0, 0, 'x'), (0, 1, 'y'); commit");
    readers[0].until(&world.server, "the end");
    let transactions = whole_transactions(&world.server, &mut readers, floor);
    assert!(transactions >= commits.load(Ordering::Relaxed) - base, "{transactions} of {commits:?} after {base}");
    let mut places = HashSet::new();
    for (reader, key) in readers.iter_mut().zip(["'id', id", "'item', item, 'no', no", "'id', id", "'id', id"]) {
        reader.read(&world.server);
        for record in &reader.records {
            assert!(places.insert(record["source"].to_string()), "twice: {record}");
        }
        let table = reader.stream.rsplit('.').next().unwrap();
        let (folded, rows) = (reader.fold(), world.rows(table, key));
        let other = rows.iter().find(|(key, row)| folded.get(*key) != Some(row));
        let found = other.map(|(key, _)| folded.get(key));
        assert!(folded == rows, "{table}: {} rows of {}: {other:?} is {found:?}", folded.len(), rows.len());
        let mut again = Reader::new(table);
        assert!(again.read(&world.server) == reader.records, "{table} reads the same again");
    }
    consumer.take(&world.server);
    assert_eq!(consumer.offsets, (0..readers[0].records.len() as u64).collect::<Vec<_>>());

    world.until_state("streaming");
    until("the lag is known", || world.source()["lag_bytes"].is_u64());
    let listed = world.server.client(&["source", "ls", "--json"]);
    assert!(listed.status.success(), "{}", stderr(&listed));
    let listed: Value = serde_json::from_str(&stdout(&listed)).unwrap();
    let shown = &listed["sources"][0];
    let parts = (&shown["name"], &shown["kind"], &shown["state"], &shown["copy"]["state"], &shown["gap"]);
    assert_eq!(parts, (&json!("x"), &json!("postgres"), &json!("streaming"), &json!("done"), &Value::Null));
    assert_eq!(shown["records"], places.len(), "as many as there are");
    assert_eq!(shown["streams"].as_array().unwrap().len(), 4);
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn changes_that_are_lost_stop_the_source_until_a_person_says_how_it_goes_on() {
    let test = "changes_that_are_lost_stop_the_source_until_a_person_says_how_it_goes_on";
    let sql = "create table item (id int primary key, name text); insert into item values (1, 'first')";
    let Some(mut world) = World::start(test, sql) else { return };
    let mut item = Reader::new("item");
    item.until(&world.server, "first");
    world.sql("insert into item values (2, 'second')");
    item.until(&world.server, "second");
    world.until_state("streaming");

    world.without_slot();
    world.sql("insert into item values (3, 'third')");
    world.server.kill_and_restart();
    world.until_state("gap");
    let gap = world.source()["gap"].clone();
    assert!(gap["reason"].as_str().unwrap().contains("slot tidegate is gone"), "{gap}");
    world.server.kill_and_restart();
    world.until_state("gap");
    assert_eq!(world.source()["gap"], gap, "it is kept");
    assert_eq!(world.sql("select count(*) from pg_replication_slots"), "0\n", "and no slot was made");
    let acknowledge = |world: &World, how: &str| {
        let said = world.server.client(&["source", "acknowledge", "x", how]);
        assert!(said.status.success(), "{}", stderr(&said));
    };
    acknowledge(&world, "--go-on-from-current");
    world.until_state("streaming");
    world.sql("insert into item values (4, 'fourth')");
    item.until(&world.server, "fourth");
    world.server.kill_and_restart();
    world.sql("insert into item values (5, 'fifth')");
    item.until(&world.server, "fifth");
    let names = |records: &[Value]| -> Vec<String> {
        let rows = records.iter().filter(|record| record["op"] == "insert");
        rows.map(|record| record["value"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&item.records), ["first", "second", "fourth", "fifth"], "what lies between is in no stream");

    world.without_slot();
    world.sql("insert into item values (6, 'sixth')");
    world.server.kill_and_restart();
    world.until_state("gap");
    let before = item.read(&world.server).len();
    acknowledge(&world, "--restart-copy");
    item.until(&world.server, "sixth");
    world.sql("insert into item values (7, 'seventh')");
    item.until(&world.server, "seventh");
    let all = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"];
    assert_eq!(names(&item.records[before..]), all, "the rows come again");

    // A slot that is there and has nothing any more.
    world.server.child.kill().unwrap();
    world.server.child.wait().unwrap();
    world.sql("alter system set max_slot_wal_keep_size = '1MB'");
    world.sql("select pg_reload_conf()");
    until("the slot to be invalidated", || {
        world.sql("update item set name = name where id = 1");
        world.sql("select pg_switch_wal()");
        world.sql("checkpoint");
        world.sql("select coalesce(wal_status, '-') from pg_replication_slots") == "lost\n"
    });
    world.server.kill_and_restart();
    world.until_state("gap");
    acknowledge(&world, "--restart-copy");
    world.sql("insert into item values (8, 'eighth')");
    item.until(&world.server, "eighth");
    world.until_state("streaming");
    assert_eq!(world.sql("select wal_status from pg_replication_slots"), "reserved\n");
}
