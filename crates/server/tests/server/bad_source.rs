//! Databases that are missing, broken, or go away: told by a code, before the stream or in it, and never by wrong rows.

use std::fs::OpenOptions;

use tidegate_testkit::PostgresServer;

use crate::database::{Database, Kind};
use crate::process::{Server, run_in, stderr, until};
use crate::stream::{Held, Stream, rows};

const SQL: &str = "select id, name, n from item order by id";

#[test]
fn a_file_that_is_missing_or_no_database_stops_the_start_and_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("letter.db"), "Dear reader, this is no database. ".repeat(100)).unwrap();
    std::fs::create_dir(folder.path().join("folder.db")).unwrap();
    for name in ["missing.db", "letter.db", "folder.db"] {
        let source = format!("shop=sqlite:{name}");
        let arguments = ["serve", "--http", "127.0.0.1:0", "--data-dir", "data", "--source", &source];
        let output = run_in(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(output.stdout.is_empty() && stderr(&output).contains("shop"), "{}", stderr(&output));
    }
    assert!(!folder.path().join("missing.db").exists());
    assert!(std::fs::read_to_string(folder.path().join("letter.db")).unwrap().starts_with("Dear reader"));
}

#[test]
fn a_file_that_goes_missing_or_bad_refuses_new_streams_until_it_is_back() {
    let (_, server) = Database::serve(Kind::Sqlite, "", &Database::items(Kind::Sqlite, 100), &[]).unwrap();
    let good = rows(server.address, SQL);
    until("what an earlier process left is cleared away", || server.get("/readyz").status == 200);
    let (path, aside) = (server.path("main.db"), server.path("aside.db"));
    let refusal = || Stream::query(server.address, &[], SQL).err().expect("there is no database").refusal();
    std::fs::rename(&path, &aside).unwrap();
    assert_eq!(refusal(), (503, "source_unavailable".to_owned()));
    assert_eq!(server.get("/readyz").refusal(), (503, "source_unavailable".to_owned()));
    std::fs::write(&path, "Dear reader, this is no database. ".repeat(100)).unwrap();
    assert_eq!(refusal(), (500, "source_corrupt".to_owned()));
    std::fs::rename(&aside, &path).unwrap();
    assert!(rows(server.address, SQL).bytes == good.bytes, "it serves again");
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_file_that_is_cut_off_under_a_stream_ends_it_with_an_error() {
    let fill = format!("{}; pragma wal_checkpoint(truncate)", Database::items(Kind::Sqlite, 200_000));
    let (_, server) = Database::serve(Kind::Sqlite, "", &fill, &[]).unwrap();
    let good = rows(server.address, SQL);
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 10), None);
    OpenOptions::new().write(true).open(server.path("main.db")).unwrap().set_len(16 * 1024).unwrap();
    let ending = stream.rest(&mut held);
    assert!(matches!(ending.code(), "source_corrupt" | "snapshot_lost"), "{ending:?}");
    assert_eq!(ending.status(), "failed");
    let end = ending.end.unwrap();
    assert_eq!((&end["rows"], &end["prefix_hash"]), (&held.rows.into(), &held.hash().into()));
    assert!(held.rows < 200_000 && good.bytes.starts_with(&held.bytes), "the rows before are right");
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_postgres_backend_that_is_terminated_ends_its_stream_with_an_error_and_no_other() {
    let test = "a_postgres_backend_that_is_terminated_ends_its_stream_with_an_error_and_no_other";
    let sql = Database::items(Kind::Postgres, 200_000);
    let Some((database, server)) = Database::serve(Kind::Postgres, test, &sql, &[]) else { return };
    let good = rows(server.address, SQL);
    let mut stream = Stream::query(server.address, &[], SQL).unwrap_or_else(|answer| panic!("{answer:?}"));
    let mut held = Held::default();
    assert_eq!(stream.take(&mut held, 10), None);
    let kill = "select count(pg_terminate_backend(pid))::text from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'";
    assert_ne!(database.texts(kill), ["0"]);
    let ending = stream.rest(&mut held);
    assert_eq!((ending.code(), ending.status()), ("snapshot_lost", "failed"), "{ending:?}");
    assert_eq!(ending.end.unwrap()["prefix_hash"], held.hash());
    assert!(held.rows < 200_000 && good.bytes.starts_with(&held.bytes), "the rows before are right");
    // What is kept can be had again; then, or at once, the client is told that the snapshot is gone.
    match Stream::resume(server.address, &[], &stream.cursor(), &held) {
        Ok(mut stream) => assert_eq!(stream.rest(&mut held).status(), "failed"),
        Err(answer) => assert_eq!(answer.refusal(), (410, "snapshot_expired".to_owned())),
    }
    assert!(rows(server.address, SQL).bytes == good.bytes, "a new stream has a connection of its own");
}

#[test]
fn a_postgres_server_that_is_stopped_is_not_ready_and_refuses_new_streams() {
    let test = "a_postgres_server_that_is_stopped_is_not_ready_and_refuses_new_streams";
    let Some(postgres) = PostgresServer::start().unwrap() else { return PostgresServer::skip(test) };
    let url = postgres.fresh_database();
    postgres.run_sql(&url, &Database::items(Kind::Postgres, 100));
    let server = Server::launch(tempfile::tempdir().unwrap(), &["--source", &format!("main={url}")]);
    assert_eq!(rows(server.address, SQL).rows, 100);
    until("the server is ready", || server.get("/readyz").status == 200);
    drop(postgres);
    until("it is noticed", || server.get("/readyz").refusal() == (503, "source_unavailable".to_owned()));
    let refused = Stream::query(server.address, &[], SQL).err().expect("there is no database");
    assert_eq!(refused.refusal(), (503, "source_unavailable".to_owned()));
    assert_eq!(server.get("/healthz").status, 200, "the process is up");
}

#[test]
fn a_postgres_server_that_is_not_there_yet_does_not_stop_the_start() {
    let server = Server::launch(tempfile::tempdir().unwrap(), &["--source", "main=postgres://nobody@127.0.0.1:1/none"]);
    let refused = Stream::query(server.address, &[], SQL).err().expect("there is no database");
    assert_eq!(refused.refusal(), (503, "source_unavailable".to_owned()));
    until("it is noticed", || server.get("/readyz").refusal() == (503, "source_unavailable".to_owned()));
}
