//! Bad input: each has its status and its code, and nothing comes of it: no row changes, no file appears, no lease is left.

use std::path::Path;

use serde_json::json;

use crate::database::{Database, Kind};
use crate::http::ask;
use crate::process::Server;
use crate::stream::{Held, Stream, rows};

/// Everything in a database that a statement could have changed.
fn contents(database: &Database) -> Vec<String> {
    let questions: &[&str] = match database {
        Database::Sqlite(_) => &[
            "select name || ' ' || coalesce(sql, '') from sqlite_schema order by name",
            "select id || name || n from item order by id",
            "select user_version || ' ' || application_id from pragma_user_version, pragma_application_id",
            "select journal_mode from pragma_journal_mode",
        ],
        Database::Postgres { .. } => &[
            "select relname || ' ' || relkind::text from pg_class where relnamespace = 'public'::regnamespace order by relname",
            "select id || name || n from item order by id",
            "select last_value || ' ' || is_called from counter",
            "select count(*) from pg_largeobject_metadata",
        ],
    };
    questions.iter().flat_map(|sql| database.texts(sql)).collect()
}

/// The names of the files in a folder, but for those that a SQLite database has while somebody reads it.
fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with("-wal") && !name.ends_with("-shm"));
    names.sort();
    names
}

/// Every statement is refused with its status and code, and the database and the folders stay as they are.
fn refused(kind: Kind, test: &str, more: &str, cases: &[(&str, u16, &str)]) {
    let sql = format!("{} {more}", Database::items(kind, 20));
    let Some((database, server)) = Database::serve(kind, test, &sql, &[]) else { return };
    let (before, files_before) = (contents(&database), files(&server.path(".")));
    let mut wrong = Vec::new();
    for (sql, status, code) in cases {
        let answer = server.post("/v1/query", &json!({"source": "main", "sql": sql}));
        if answer.refusal() != (*status, (*code).to_owned()) {
            wrong.push(format!("{sql}: expected {status} {code}, not {} {}", answer.status, answer.text()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(contents(&database), before);
    assert_eq!(files(&server.path(".")), files_before);
    assert!(server.leases().iter().all(|lease| lease["reading"] == false), "{:?}", server.leases());
    assert_eq!(rows(server.address, "select * from item order by id").rows, 20, "and it serves on");
}

#[test]
fn a_statement_that_sqlite_must_not_run_is_refused_and_changes_nothing() {
    refused(
        Kind::Sqlite,
        "",
        "",
        &[
            ("insert into item values (1, 'x', 1)", 400, "read_only"),
            ("insert into item values (1, 'x', 1) returning id", 400, "read_only"),
            ("replace into item values (10, 'x', 1)", 400, "read_only"),
            ("update item set name = 'x'", 400, "read_only"),
            ("delete from item", 400, "read_only"),
            ("with gone as (select 10 as id) delete from item where id in (select id from gone)", 400, "read_only"),
            ("drop table item", 400, "read_only"),
            ("create table other (x)", 400, "read_only"),
            ("create table copy as select * from item", 400, "read_only"),
            ("create temp table t (x)", 400, "read_only"),
            ("alter table item add column x", 400, "read_only"),
            ("create index i on item (name)", 400, "read_only"),
            ("attach 'other.db' as other", 400, "read_only"),
            ("pragma user_version = 7", 400, "read_only"),
            ("pragma journal_mode = delete", 400, "read_only"),
            ("pragma writable_schema = on", 400, "read_only"),
            ("vacuum", 400, "read_only"),
            ("vacuum into 'copy.db'", 400, "read_only"),
            ("reindex", 400, "read_only"),
            ("select 1; select 2", 400, "multiple_statements"),
            ("select 1; delete from item", 400, "multiple_statements"),
            ("selec 1", 400, "syntax_error"),
            ("select (1", 400, "syntax_error"),
            ("select 'x", 400, "syntax_error"),
            ("", 400, "empty_statement"),
            (" \n-- nothing\n/* at all */ ;", 400, "empty_statement"),
            ("select * from nowhere", 400, "statement_refused"),
            ("select absent from item", 400, "statement_refused"),
            ("select 1 as a, 2 as a", 400, "duplicate_column"),
            ("select * from item where id = ?", 400, "parameter_count"),
        ],
    );
}

#[test]
fn a_statement_that_postgres_must_not_run_is_refused_and_changes_nothing() {
    refused(
        Kind::Postgres,
        "a_statement_that_postgres_must_not_run_is_refused_and_changes_nothing",
        "create sequence counter",
        &[
            ("insert into item values (1, 'x', 1)", 400, "read_only"),
            ("insert into item values (1, 'x', 1) returning id", 400, "read_only"),
            ("update item set name = 'x'", 400, "read_only"),
            ("delete from item", 400, "read_only"),
            ("with gone as (delete from item returning id) select id from gone", 400, "read_only"),
            ("select * into copy from item", 400, "read_only"),
            ("create table copy as select * from item", 400, "read_only"),
            ("drop table item", 400, "read_only"),
            ("create table other (x int)", 400, "read_only"),
            ("create temp table t (x int)", 400, "read_only"),
            ("truncate item", 400, "read_only"),
            ("select id from item for update", 400, "read_only"),
            ("explain analyze delete from item", 400, "read_only"),
            ("do $$ begin delete from item; end $$", 400, "read_only"),
            ("select 1; select 2", 400, "multiple_statements"),
            ("commit; delete from item", 400, "multiple_statements"),
            ("selec 1", 400, "syntax_error"),
            ("select (1", 400, "syntax_error"),
            ("", 400, "empty_statement"),
            (" \n-- nothing\n/* at all */ ;", 400, "empty_statement"),
            ("select * from nowhere", 400, "statement_refused"),
            ("select absent from item", 400, "statement_refused"),
            ("select 1 as a, 2 as a", 400, "duplicate_column"),
            ("select * from item where id = $1", 400, "parameter_count"),
        ],
    );
}

#[test]
fn a_function_that_writes_ends_the_stream_and_changes_nothing() {
    let test = "a_function_that_writes_ends_the_stream_and_changes_nothing";
    let sql = format!(
        "{}; create sequence counter;
         create function write() returns int language sql as 'delete from item; select 1';",
        Database::items(Kind::Postgres, 20)
    );
    let Some((database, server)) = Database::serve(Kind::Postgres, test, &sql, &[]) else { return };
    let before = contents(&database);
    // Nobody sees that a function writes before it runs: then the stream is open already.
    for sql in
        ["select nextval('counter')", "select setval('counter', 7)", "select write()", "select id, write() from item"]
    {
        let mut held = Held::default();
        match Stream::query(server.address, &[], sql) {
            Ok(mut stream) => {
                let ending = stream.rest(&mut held);
                assert_eq!((ending.code(), ending.status(), held.rows), ("read_only", "failed", 0), "{sql}");
            }
            Err(answer) => assert_eq!(answer.refusal(), (400, "read_only".to_owned()), "{sql}"),
        }
    }
    // Old servers let a large object be made in a transaction that only reads; it goes with the transaction.
    if let Ok(mut stream) = Stream::query(server.address, &[], "select lo_create(0)") {
        let _ = stream.rest(&mut Held::default());
    }
    server.at_rest();
    assert_eq!(contents(&database), before);
}

#[test]
fn a_body_that_is_not_what_is_read_is_refused() {
    let server = Server::start(3, &[]);
    let cases: [(&[u8], u16, &str); 19] = [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b"select 1", 400, "malformed_json"),
        (b"{\"source\":\"main\",\"sql\":\"select 1\"} {}", 400, "malformed_json"),
        (b"{\"source\":\"main\",\"sql\":\"select '\xff'\"}", 400, "malformed_json"),
        (b"[]", 400, "invalid_field"),
        (b"{}", 400, "missing_field"),
        (b"{\"source\":\"main\"}", 400, "missing_field"),
        (b"{\"source\":\"main\",\"sql\":1}", 400, "invalid_field"),
        (b"{\"source\":[\"main\"],\"sql\":\"select 1\"}", 400, "invalid_field"),
        (b"{\"source\":\"main\",\"sql\":\"select 1\",\"params\":{}}", 400, "invalid_field"),
        (b"{\"source\":\"main\",\"sql\":\"select 1\",\"rows\":\"csv\"}", 400, "invalid_field"),
        (b"{\"source\":\"main\",\"sql\":\"select 1\",\"limit\":1}", 400, "unknown_field"),
        (b"{\"source\":\"main\",\"sql\":\"select 1\",\"tenant\":\"other\"}", 400, "unknown_field"),
        (b"{\"source\":\"other\",\"sql\":\"select 1\"}", 404, "source_not_found"),
        (b"{\"source\":\"\",\"sql\":\"select 1\"}", 404, "source_not_found"),
        (b"{\"source\":\"main\",\"sql\":\"select 1\",\"params\":[1]}", 400, "parameter_count"),
        (b"{\"source\":\"main\",\"sql\":\"select ?\"}", 400, "parameter_count"),
        (b"{\"source\":\"main\",\"sql\":\"select ?, ?\",\"params\":[1]}", 400, "parameter_count"),
    ];
    for (body, status, code) in cases {
        let answer = ask(server.address, "POST", "/v1/query", &[], body);
        assert_eq!(answer.refusal(), (status, code.to_owned()), "{}", String::from_utf8_lossy(body));
    }
    let answer = ask(server.address, "POST", "/v1/query?source=main", &[], r#"{"source":"main","sql":"select 1"}"#);
    assert_eq!(answer.refusal(), (400, "unknown_field".to_owned()));
    for (method, path, status, code) in [
        ("GET", "/v1/query", 405, "method_not_allowed"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("DELETE", "/v1/query/no-cursor", 404, "cursor_not_found"),
    ] {
        assert_eq!(ask(server.address, method, path, &[], "").refusal(), (status, code.to_owned()), "{path}");
    }
    let long = format!("select 1 -- {}", "x".repeat(256 * 1024));
    let answer = server.post("/v1/query", &json!({"source": "main", "sql": long}));
    assert_eq!(answer.refusal(), (413, "sql_too_large".to_owned()));
    assert_eq!(answer.json()["max_bytes"], 256 * 1024);
    let many = vec![1; 1_001];
    let answer = server.post("/v1/query", &json!({"source": "main", "sql": "select 1", "params": many}));
    assert_eq!(answer.refusal(), (400, "too_many_parameters".to_owned()));
    assert!(server.leases().is_empty());
    server.at_rest();
}

#[test]
fn two_columns_of_one_name_are_read_as_arrays() {
    let server = Server::start(3, &[]);
    let body = json!({"source": "main", "sql": "select id as a, id + 1 as a from t order by id", "rows": "array"});
    let mut stream =
        Stream::request(server.address, "/v1/query", &[], &body).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    stream.complete(&mut held);
    assert_eq!(held.json(), [json!([0, 1]), json!([1, 2]), json!([2, 3])]);
}

#[test]
fn text_that_is_not_utf8_and_numbers_beyond_a_double_arrive_as_they_are() {
    let server = Server::start(1, &[]);
    let held = rows(
        server.address,
        "select cast(x'ff' as text) as broken, 9007199254740993 as big, x'00ff' as bytes, null as absent, 1e999 as inf,
         'a' || char(0) || char(10) || '\"\\' as odd",
    );
    assert_eq!(
        held.json(),
        [json!({
            "broken": {"text_base64": "/w=="}, "big": 9_007_199_254_740_993_i64, "bytes": {"blob": "AP8="},
            "absent": null, "inf": {"real": "Infinity"}, "odd": "a\0\n\"\\",
        })]
    );
}

#[test]
fn parameters_are_bound_as_values() {
    let server = Server::start(10, &[]);
    let evil = "1; drop table t; --";
    let body = json!({"source": "main", "sql": "select ?1 as a, ?2 as b, ?3 as c", "params": [evil, 9_007_199_254_740_993_i64, null]});
    let mut stream =
        Stream::request(server.address, "/v1/query", &[], &body).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    stream.complete(&mut held);
    assert_eq!(held.json(), [json!({"a": evil, "b": 9_007_199_254_740_993_i64, "c": null})]);
    assert_eq!(rows(server.address, "select id from t order by id").rows, 10);
}
