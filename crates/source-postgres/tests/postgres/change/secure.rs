//! The replication connection logs in as a driver would: by SCRAM and by MD5, over TLS and without.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use tidegate_core::port::{ChangeSource, ChangeSourceError};
use tidegate_source_postgres::{ChangeConfig, PostgresChanges, PostgresConfig};
use tidegate_testkit::wait::{until, within};
use tidegate_testkit::{PostgresServer, block_on_threads};

use super::world::Taken;

#[test]
fn passwords_and_tls_work_on_the_replication_connection_and_wrong_ones_are_refused() {
    block_on_threads(async {
        let test = "passwords_and_tls_work_on_the_replication_connection";
        let Some(server) = PostgresServer::start().expect("it is installed") else { return PostgresServer::skip(test) };
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let data = server.folder().join("data");
        let owner = fs::metadata(&data).expect("the data folder");
        let rules = "host all postgres all trust\nhost all old all md5\nhostssl all new all scram-sha-256\n";
        for (name, content) in [
            ("server.crt", own.cert.pem()),
            ("server.key", own.signing_key.serialize_pem()),
            ("pg_hba.conf", rules.to_owned()),
        ] {
            let path = data.join(name);
            fs::write(&path, content).expect("the data folder is ours");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("the file is ours");
        }
        let plain = server.url("postgres");
        server.run_sql(&plain, "create role new superuser login password 'pencil'");
        server.run_sql(&plain, "set password_encryption = 'md5'; create role old superuser login password 'pencil'");
        server.run_sql(&plain, "alter system set ssl = on");
        server.run_sql(&plain, "select pg_reload_conf()");
        until("TLS", async || server.run_sql(&plain, "show ssl") == "on\n").await;

        let source = |user: &str, password: &str, options: &str, authority: &str| {
            let at = format!("localhost:{}/postgres?hostaddr=127.0.0.1&{options}", server.port());
            let config = PostgresConfig {
                certificate_authorities: Some(authority.as_bytes().into()),
                ..PostgresConfig::new(format!("postgres://{user}:{password}@{at}"))
            };
            PostgresChanges::connect(config, ChangeConfig::new("s", "p")).expect("a URL")
        };
        let (own, other) = (own.cert.pem(), other.cert.pem());
        for (user, options, encrypted) in
            [("new", "sslmode=require", "t\n"), ("old", "sslmode=disable", "f\n"), ("new", "sslmode=prefer", "t\n")]
        {
            let source = source(user, "pencil", options, &own);
            let stream = Taken::default().open(&source).await;
            let ssl = "select ssl from pg_stat_ssl join pg_replication_slots on active_pid = pid";
            assert_eq!(server.run_sql(&plain, ssl), encrypted, "{user} {options}");
            drop(stream);
            let free = "select not active from pg_replication_slots";
            until("the slot to be free", async || server.run_sql(&plain, free) == "t\n").await;
        }
        for (password, authority) in [("wrong", &own), ("pencil", &other)] {
            let source = source("new", password, "sslmode=require", authority);
            match within("an answer", source.changes(None)).await {
                Err(ChangeSourceError::Setup { code: "login_refused", .. }) if password == "wrong" => {}
                Err(ChangeSourceError::Unavailable(_)) if password == "pencil" => {}
                Err(error) => panic!("{password}: {error:?}"),
                Ok(_) => panic!("{password}: it was opened"),
            }
        }
    });
}
