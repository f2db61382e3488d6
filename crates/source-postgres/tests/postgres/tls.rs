//! TLS: `require` verifies, `prefer` takes what there is, and a run is cancelled over TLS too.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use tidegate_core::port::{QuerySource, SourceError};
use tidegate_source_postgres::{PostgresConfig, PostgresSource};
use tidegate_testkit::query_source_suite::statement;
use tidegate_testkit::wait::until;
use tidegate_testkit::{OwnedCell, PostgresServer, block_on, collect_sink};

use crate::world::{cell, query};

fn source(url: &str, authority: Option<&str>) -> PostgresSource {
    let certificate_authorities = authority.map(|pem| pem.as_bytes().into());
    PostgresSource::connect(PostgresConfig { certificate_authorities, ..PostgresConfig::new(url) }).expect("a URL")
}

#[test]
fn require_verifies_the_server_and_prefer_takes_what_there_is() {
    block_on(async {
        let test = "require_verifies_the_server_and_prefer_takes_what_there_is";
        let Some(server) = PostgresServer::start().expect("it is installed") else { return PostgresServer::skip(test) };
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let data = server.folder().join("data");
        let owner = fs::metadata(&data).expect("the data folder");
        for (name, content) in [("server.crt", own.cert.pem()), ("server.key", own.signing_key.serialize_pem())] {
            let path = data.join(name);
            fs::write(&path, content).expect("the data folder is ours");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("the file is ours");
        }
        let plain = server.url("postgres");
        let by_name = |mode: &str| {
            format!("postgres://postgres@localhost:{}/postgres?hostaddr=127.0.0.1&sslmode={mode}", server.port())
        };
        let encrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

        // Without TLS on the server.
        let refused = source(&by_name("require"), None).ping().await.expect_err("the server has no TLS");
        assert!(matches!(refused, SourceError::Unavailable(_)), "{refused:?}");
        let snapshot = source(&by_name("prefer"), None).open().await.expect("in the clear");
        assert_eq!(cell(&*snapshot, encrypted).await, OwnedCell::Bool(false));

        server.run_sql(&plain, "alter system set ssl = on");
        server.run_sql(&plain, "select pg_reload_conf()");
        let trusting = source(&by_name("require"), Some(&own.cert.pem()));
        until("the server to have TLS", async || trusting.ping().await.is_ok()).await;
        let snapshot = trusting.open().await.expect("verified");
        assert_eq!(cell(&*snapshot, encrypted).await, OwnedCell::Bool(true));

        for (mode, authority, works) in [
            ("require", None, false),
            ("require", Some(other.cert.pem()), false),
            ("prefer", None, true),
            ("disable", None, true),
        ] {
            let outcome = source(&by_name(mode), authority.as_deref()).ping().await;
            assert_eq!(outcome.is_ok(), works, "{mode}: {outcome:?}");
        }
        let wrong_name = format!("{plain}?sslmode=require");
        let refused = source(&wrong_name, Some(&own.cert.pem())).ping().await.expect_err("the name is another");
        assert!(matches!(refused, SourceError::Unavailable(_)), "{refused:?}");

        // A row beyond the bound is dropped above the encryption, and a run is cancelled.
        let (sink, reader) = collect_sink(1);
        let endless = statement("select 1 from pg_sleep(600)");
        tokio::select! {
            outcome = snapshot.stream(&endless, Box::new(sink)) => panic!("it takes 10 minutes: {outcome:?}"),
            () = until("the server to sleep", async || {
                server.run_sql(&plain, "select count(*) from pg_stat_activity where wait_event = 'PgSleep'") == "1\n"
            }) => {}
        }
        drop(reader);
        let wide = query(&*snapshot, "select repeat('x', 40000000)").await.expect_err("more than 32 MiB");
        assert!(matches!(wide, SourceError::Sink(_)), "{wide:?}");
        assert_eq!(cell(&*snapshot, "select 1").await, OwnedCell::Integer(1));
    });
}
