//! What goes wrong is told apart: the statement, the parameter, the server, the snapshot. No message holds the password.

use std::time::Duration;

use tidegate_core::Failure;
use tidegate_core::port::{QuerySource, SourceError, StatementRefused};
use tidegate_source_postgres::{ConfigError, PostgresConfig, PostgresSource};
use tidegate_testkit::query_source_suite::statement;
use tidegate_testkit::wait::{until, within};
use tidegate_testkit::{FaultProxy, PostgresServer, block_on, collect_sink};

use crate::world::{Database, query};

async fn refused(database: &Database, sql: &str) -> SourceError {
    let snapshot = database.open().await;
    match snapshot.describe(&statement(sql)).await {
        Err(error) => error,
        Ok(_) => query(&*snapshot, sql).await.expect_err(sql),
    }
}

#[test]
fn refusals_carry_the_servers_code_and_the_position_in_the_users_statement() {
    block_on(async {
        let Some(database) = Database::fresh("refusals_carry_the_servers_code_and_the_position", |_| ()) else {
            return;
        };
        database.sql("create sequence s; create table t (x int)");
        for (sql, expected_code, native_code, position) in [
            ("selec 1", "syntax_error", "42601", Some(1)),
            ("select 'ü', from", "syntax_error", "42601", Some(13)),
            ("select 'ü', nope from t", "statement_refused", "42703", Some(13)),
            ("select * from nope", "statement_refused", "42P01", Some(15)),
            ("select 1 / 0", "statement_refused", "22012", None),
            ("select 1 / x from (values (1), (0)) v(x)", "statement_refused", "22012", None),
            ("select nextval('s')", "read_only", "25006", None),
            ("select set_config('transaction_read_only', 'off', false)", "statement_refused", "25001", None),
            ("select from t", "statement_refused", "42601", None),
            ("show timezone", "read_only", "25006", None),
            ("select \0", "syntax_error", "42601", Some(8)),
        ] {
            let error = refused(&database, sql).await;
            assert_eq!(error.code(), expected_code, "{sql}: {error:?}");
            match &error {
                SourceError::Syntax(words) | SourceError::Statement(words) | SourceError::ReadOnly(words) => {
                    let StatementRefused { native_code: code, position: at, .. } = words;
                    assert_eq!((&**code, *at), (native_code, position), "{sql}: {error:?}");
                }
                other => panic!("{sql}: {other:?}"),
            }
        }
    });
}

#[test]
fn a_terminated_backend_ends_the_run_and_the_snapshot() {
    block_on(async {
        let Some(database) = Database::fresh("a_terminated_backend_ends_the_run_and_the_snapshot", |_| ()) else {
            return;
        };
        let snapshot = database.open().await;
        let (sink, reader) = collect_sink(10);
        let run = tokio::spawn({
            let snapshot = snapshot.clone();
            async move {
                let long = statement("select i, repeat('x', 1000) from generate_series(1, 100000) i");
                snapshot.stream(&long, Box::new(sink)).await
            }
        });
        reader.wait_until_full().await;
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'";
        assert_eq!(database.sql(kill), "1\n");
        while reader.next_rows().await.is_some() {}
        let error = within("the run", run).await.expect("no panic").expect_err("the server went away");
        assert!(matches!(error, SourceError::SnapshotLost(_)), "{error:?}");
        assert!(reader.pushed() < 100_000);
        let error = query(&*snapshot, "select 1").await.expect_err("the snapshot is gone");
        assert!(matches!(error, SourceError::SnapshotLost(_)), "{error:?}");
        assert_eq!(query(&*database.open().await, "select 1").await.expect("a new one works").len(), 1);
    });
}

#[test]
fn a_snapshot_that_is_dropped_or_closed_in_a_long_step_leaves_nothing_running() {
    block_on(async {
        let test = "a_snapshot_that_is_dropped_or_closed_in_a_long_step_leaves_nothing_running";
        let Some(database) = Database::fresh(test, |config| config.warm_connections = 0) else { return };
        let connections =
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
        for close in [true, false] {
            let snapshot = database.open().await;
            let (sink, reader) = collect_sink(1);
            let run = tokio::spawn({
                let snapshot = snapshot.clone();
                async move { snapshot.stream(&statement("select 1 from pg_sleep(600)"), Box::new(sink)).await }
            });
            let sleeping =
                "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()";
            until("the server to be in the long step", async || database.sql(sleeping) == "1\n").await;
            if close {
                within("close", snapshot.close()).await;
                let error = within("the run", run).await.expect("no panic").expect_err("it was closed");
                assert!(matches!(error, SourceError::SnapshotLost(_)), "{error:?}");
            } else {
                run.abort();
                drop(snapshot);
                drop(reader);
            }
            until("the backend to end", async || database.sql(connections) == "0\n").await;
            assert_eq!(database.source.open_snapshots(), 0);
        }
    });
}

#[test]
fn a_connection_that_is_cut_at_any_byte_loses_the_snapshot_and_nothing_else() {
    block_on(async {
        let test = "a_connection_that_is_cut_at_any_byte_loses_the_snapshot_and_nothing_else";
        let Some(database) = Database::fresh(test, |_| ()) else { return };
        let server = ([127, 0, 0, 1], database.server.port()).into();
        let proxy = FaultProxy::start(server).await.expect("a port");
        let name = database.url.rsplit('/').next().expect("a name");
        let mut config = PostgresConfig::new(format!("postgres://postgres@{}/{name}", proxy.address()));
        config.warm_connections = 0;
        let source = PostgresSource::connect(config).expect("a URL");
        let (mut unavailable, mut lost, mut whole) = (0, 0, 0);
        for bytes in (0..12_000).step_by(487) {
            proxy.cut_after(Some(bytes));
            match source.open().await {
                Err(SourceError::Unavailable(_)) => unavailable += 1,
                Err(error) => panic!("cut after {bytes} bytes: {error:?}"),
                Ok(snapshot) => {
                    match query(&*snapshot, "select i, repeat('x', 40) from generate_series(1, 120) i").await {
                        Ok(rows) => {
                            assert_eq!(rows.len(), 120);
                            whole += 1;
                        }
                        Err(SourceError::SnapshotLost(_)) => lost += 1,
                        Err(error) => panic!("cut after {bytes} bytes: {error:?}"),
                    }
                }
            }
        }
        assert!(unavailable > 0 && lost > 0 && whole > 0, "{unavailable} {lost} {whole}");
        assert_eq!(source.open_snapshots(), 0);
    });
}

#[test]
fn ready_connections_that_died_are_not_used() {
    block_on(async {
        let Some(database) = Database::fresh("ready_connections_that_died_are_not_used", |_| ()) else { return };
        let ready = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'tidegate'";
        until("ready connections", async || database.sql(ready) == "2\n").await;
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where datname = current_database() and application_name = 'tidegate'";
        assert_eq!(database.sql(kill), "2\n");
        assert_eq!(query(&*database.open().await, "select 1").await.expect("rows").len(), 1);
        database.source.ping().await.expect("the server runs");
    });
}

#[test]
fn a_server_that_is_not_there_is_unavailable_and_comes_back() {
    block_on(async {
        let test = "a_server_that_is_not_there_is_unavailable_and_comes_back";
        let Some(server) = PostgresServer::shared(test) else { return };
        let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port").local_addr().expect("bound").port();
        let down = PostgresSource::connect(PostgresConfig::new(format!("postgres://u:s3cret@127.0.0.1:{nobody}/db")));
        let down = down.expect("the server need not be there");
        for error in
            [down.ping().await.expect_err("nobody listens"), down.open().await.map(|_| ()).expect_err("the same")]
        {
            assert!(matches!(error, SourceError::Unavailable(_)), "{error:?}");
            assert!(!format!("{error} {error:?} {down:?}").contains("s3cret"), "{error:?}");
        }
        assert_eq!(down.open_snapshots(), 0, "a refused open takes no place");

        let missing = PostgresSource::connect(PostgresConfig::new(server.url("no_such_database"))).expect("a URL");
        assert!(matches!(missing.ping().await, Err(SourceError::Unavailable(_))));

        let deaf = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = deaf.local_addr().expect("bound").port();
        let mut config = PostgresConfig::new(format!("postgres://u:s3cret@127.0.0.1:{port}/db"));
        config.connect_timeout = Duration::from_millis(50);
        let deaf_source = PostgresSource::connect(config).expect("a URL");
        assert!(matches!(within("a ping", deaf_source.ping()).await, Err(SourceError::Unavailable(_))));
        drop(deaf);
    });
}

#[test]
fn a_configuration_that_cannot_work_is_refused_at_once() {
    block_on(async {
        let refused = PostgresSource::connect(PostgresConfig::new("nonsense")).expect_err("no URL");
        assert!(matches!(refused, ConfigError::Url { .. }), "{refused:?}");
    });
    let outside = PostgresSource::connect(PostgresConfig::new("postgres://h/db")).expect_err("no runtime");
    assert!(matches!(outside, ConfigError::NoRuntime), "{outside:?}");
}
