//! What the parts are given when they are put together. No test here needs a service.

use tidegate_core::id::Name;
use tidegate_core::port::{QuerySnapshot, Statement};
use tidegate_testkit::{block_on, collect_sink};

use super::*;
use crate::config::{Durability, JournalMode, Listen, Objects};

fn config(sources: BTreeMap<Name, Source>) -> Config {
    Config {
        data_dir: PathBuf::new(),
        durability: Durability::default(),
        listen: Listen { http: ([127, 0, 0, 1], 0).into(), tls: None },
        sources,
        auth: None,
        objects: Objects { cold: Cold::Directory(PathBuf::new()), hot_max_bytes: 0 },
        checkpoints: Cold::Directory(PathBuf::new()),
        object_rules: tidegate_batch::policy::Rules::default(),
        audit_path: PathBuf::new(),
        settings: Settings::default(),
    }
}

fn sqlite(folder: &std::path::Path) -> Config {
    let path = folder.join("shop.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("create table item (id integer primary key)").unwrap();
    let source = Source::Sqlite { path, journal_mode: JournalMode::Wal };
    config(BTreeMap::from([(Name::new("main").unwrap(), source)]))
}

async fn runs(snapshot: &dyn QuerySnapshot, sql: &str) -> bool {
    let (sink, _reader) = collect_sink(10);
    let statement = Statement { sql: sql.into(), parameters: [].into() };
    snapshot.stream(&statement, Box::new(sink)).await.is_ok()
}

#[test]
fn every_part_lists_its_bounds_each_under_one_name() {
    let all: Vec<Limit> = limits().into_iter().chain(tidegate_transport_http::LIMITS.iter().copied()).collect();
    let names: std::collections::BTreeSet<&str> = all.iter().map(|limit| limit.name).collect();
    assert_eq!(names.len(), all.len());
    for name in ["name_max_bytes", "query.readiness_max_ms", "sqlite.busy_timeout_ms", "postgres.connections_max"] {
        assert!(names.contains(name), "{name}");
    }
    let of = |name: &str| all.iter().find(|limit| limit.name == name).map(|limit| limit.value);
    assert_eq!(of("audit.queue_max_records"), Some(4_096));
    let cursors = tidegate_lease::cursor::CursorBounds::default();
    assert_eq!(of("query.cursors_remembered_max"), Some(cursors.tombstone_max as u64));
    assert_eq!(of("query.cursors_remembered_ms"), Some(cursors.keep.as_millis() as u64));
}

#[test]
fn a_setting_that_bounds_a_source_counts_from_the_moment_that_it_is_changed() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let config = sqlite(folder.path());
        let mut at_start = config.settings;
        at_start.set("limits.lease_max_global", 1).unwrap();
        at_start.set("limits.row_max_bytes", 4_096).unwrap();
        let settings = Arc::new(SettingsCell::new(at_start));
        let sources = open_sources(&Config { settings: at_start, ..config }, &settings).unwrap();
        let source = &sources["main"];

        let wide = "select zeroblob(10000)";
        let first = source.open().await.unwrap();
        assert!(!runs(&*first, wide).await);
        settings.patch(&[("limits.row_max_bytes", 20_000), ("limits.lease_max_global", 2)]).unwrap();
        let second = source.open().await.unwrap();
        assert!(runs(&*second, wide).await);
    });
}

#[test]
fn a_sources_certificate_authorities_reach_it() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").unwrap();
        let open = |ca: &std::path::Path| {
            let source = Source::Postgres {
                url: config::Secret::new("postgres://127.0.0.1:1/d?sslmode=require"),
                publication: None,
                slot: None,
                max_connections: None,
                ca: Some(ca.to_owned()),
            };
            let sources = BTreeMap::from([(Name::new("crm").unwrap(), source)]);
            open_sources(&config(sources), &Arc::default()).err()
        };
        // The certificate in it is none, which only the source itself finds.
        assert!(matches!(open(&path), Some(StartError::SourceConfig { .. })));
        assert!(matches!(open(&folder.path().join("gone.pem")), Some(StartError::CertificateAuthority { .. })));
    });
}
