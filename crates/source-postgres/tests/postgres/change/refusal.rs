//! What cannot be read is refused with a code and what to do; what is lost is said.

use futures::StreamExt;
use tidegate_core::port::{ChangeSource, ChangeSourceError, ChangeStream, Resume};
use tidegate_core::position::SourcePosition;
use tidegate_source_postgres::{ChangeConfig, PostgresChanges, PostgresConfig};
use tidegate_testkit::wait::{until, within};
use tidegate_testkit::{PostgresServer, block_on_threads};

use super::world::{Taken, World};

async fn refused(source: &PostgresChanges, from: Option<Resume>) -> ChangeSourceError {
    match within("an answer", source.changes(from)).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

/// Why the stream ends, once it has.
async fn end(stream: &mut ChangeStream) -> ChangeSourceError {
    loop {
        if let Err(error) = within("the end", stream.next()).await.expect("an error") {
            return error;
        }
    }
}

#[track_caller]
fn is_setup(error: &ChangeSourceError, expected: &str) {
    assert!(matches!(error, ChangeSourceError::Setup { code, .. } if *code == expected), "{expected}: {error:?}");
}

#[test]
fn what_is_not_set_up_right_is_refused_with_a_code() {
    block_on_threads(async {
        let Some(world) = World::fresh("what_is_not_set_up_right_is_refused_with_a_code") else { return };
        world.sql("create table item (id int primary key)");
        let name = &world.name;
        is_setup(&refused(&world.source(|config| config.create = false), None).await, "publication_missing");
        world.sql("create table keyless (x int)");
        is_setup(&refused(&world.source(|_| ()), None).await, "table_without_key");
        assert_eq!(world.sql("select count(*) from pg_publication"), "0\n", "nothing was made");
        world.sql("drop table keyless");
        world.sql(&format!("create publication {name} for table item"));
        is_setup(&refused(&world.source(|config| config.create = false), None).await, "slot_missing");

        world.sql(&format!("select pg_create_physical_replication_slot('{name}_p')"));
        let physical = world.source(|config| config.slot = format!("{name}_p").into());
        is_setup(&refused(&physical, None).await, "slot_wrong_plugin");
        world.sql(&format!("select pg_drop_replication_slot('{name}_p')"));

        let other = world.server.fresh_database();
        let here = format!("select pg_create_logical_replication_slot('{name}_o', 'pgoutput')");
        world.server.run_sql(&other, &here);
        let elsewhere = world.source(|config| config.slot = format!("{name}_o").into());
        is_setup(&refused(&elsewhere, None).await, "slot_of_another_database");
        world.sql(&format!("select pg_drop_replication_slot('{name}_o')"));

        world.sql(&format!("create role plain_{name} login; grant select on item to plain_{name}"));
        let url = world.url.replace("postgres@", &format!("plain_{name}@"));
        let config = ChangeConfig::new(name.as_str(), name.as_str());
        let plain = PostgresChanges::connect(PostgresConfig::new(url.as_str()), config).expect("a URL");
        is_setup(&refused(&plain, None).await, "permission_denied");
        world.sql(&format!("alter role plain_{name} replication"));
        let mut taken = Taken::default();
        let mut stream = taken.open(&plain).await;
        taken.until(&plain, &mut stream, |taken| taken.batches == 1).await;
        drop(stream);

        // A copy that may not read a table.
        world.sql(&format!("create table secret (id int primary key); alter publication {name} add table secret"));
        let config = ChangeConfig::new(format!("{name}_s"), name.as_str());
        let plain = PostgresChanges::connect(PostgresConfig::new(url.as_str()), config).expect("a URL");
        is_setup(&refused(&plain, None).await, "permission_denied");
        let left = format!("select count(*) from pg_replication_slots where slot_name = '{name}_s'");
        assert_eq!(world.sql(&left), "0\n", "a slot without a copy is not left behind");
        let nowhere = PostgresConfig::new(world.server.url("no_such_database"));
        let nowhere = PostgresChanges::connect(nowhere, ChangeConfig::new("s", "p")).expect("a URL");
        is_setup(&refused(&nowhere, None).await, "database_missing");
    });
}

#[test]
fn a_slot_that_is_gone_or_was_read_on_is_a_loss_and_one_that_is_read_is_in_use() {
    block_on_threads(async {
        let Some(world) = World::fresh("a_slot_that_is_gone_or_was_read_on_is_a_loss") else { return };
        world.sql("create table item (id int primary key)");
        let name = &world.name;
        let source = world.source(|_| ());
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        world.sql("insert into item values (1)");
        taken.until(&source, &mut stream, |taken| taken.has("1")).await;

        let second = world.source(|_| ());
        let pid = world.sql(&format!("select active_pid from pg_replication_slots where slot_name = '{name}'"));
        let error = refused(&second, taken.resume.clone()).await;
        assert!(matches!(&error, ChangeSourceError::InUse { holder } if holder.contains(pid.trim())), "{error:?}");
        drop(stream);

        let lost = |error: ChangeSourceError, why: &str| match error {
            ChangeSourceError::Lost { from, reason } => {
                assert_eq!(Some(&from), taken.resume.as_ref().map(|at| &at.position));
                assert!(reason.contains(why), "{why}: {reason}");
            }
            other => panic!("{why}: {other:?}"),
        };
        let resume = taken.resume.clone().expect("a batch");
        let altered = |from: &str, to: &str| {
            let text = String::from_utf8(resume.state.to_vec()).expect("JSON");
            assert!(text.contains(from), "{text}");
            Some(Resume { state: text.replace(from, to).into(), ..resume.clone() })
        };
        lost(refused(&source, altered("\"timeline\":1", "\"timeline\":9")).await, "timeline");
        lost(refused(&source, altered("\"system\":\"", "\"system\":\"9")).await, "system identifier");
        let ahead = Resume { position: SourcePosition("FFFF/0".into()), ..resume.clone() };
        let error = refused(&source, Some(ahead)).await;
        assert!(matches!(&error, ChangeSourceError::Lost { reason, .. } if reason.contains("backup")), "{error:?}");
        for broken in [
            Resume { position: SourcePosition("nonsense".into()), ..resume.clone() },
            Resume { state: "{}".into(), ..resume.clone() },
        ] {
            let error = refused(&source, Some(broken)).await;
            assert!(matches!(error, ChangeSourceError::Unreadable(_)), "{error:?}");
        }

        world.sql("insert into item values (2)");
        world.sql(&format!("select pg_replication_slot_advance('{name}', pg_current_wal_insert_lsn())"));
        lost(refused(&source, taken.resume.clone()).await, "slot begins at");
        world.sql(&format!("select pg_drop_replication_slot('{name}')"));
        lost(refused(&source, taken.resume.clone()).await, "gone");
        assert_eq!(
            world.sql(&format!("select count(*) from pg_replication_slots where slot_name = '{name}'")),
            "0\n",
            "it was not made again"
        );
    });
}

#[test]
fn a_publication_that_is_dropped_and_a_sender_that_is_killed_end_the_stream_with_what_happened() {
    block_on_threads(async {
        let Some(world) = World::fresh("a_publication_that_is_dropped_ends_the_stream") else { return };
        world.sql("create table item (id int primary key)");
        let source = world.source(|_| ());
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        taken.until(&source, &mut stream, |taken| taken.batches == 1).await;
        let kill = format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '{}'",
            world.name
        );
        world.sql(&kill);
        let error = end(&mut stream).await;
        assert!(matches!(error, ChangeSourceError::Unavailable(_)), "{error:?}");
        assert!(within("the end", stream.next()).await.is_none());

        let mut stream = taken.open(&source).await;
        world.sql("insert into item values (1)");
        taken.until(&source, &mut stream, |taken| taken.has("1")).await;
        world.sql(&format!("drop publication {}", world.name));
        world.sql("insert into item values (2)");
        let error = end(&mut stream).await;
        is_setup(&error, "publication_missing");
    });
}

#[test]
fn a_slot_whose_log_the_server_has_removed_is_a_loss_and_is_made_again_where_a_person_says_how_to_go_on() {
    block_on_threads(async {
        let test = "a_slot_whose_log_the_server_has_removed_is_a_loss";
        let Some(server) = PostgresServer::start().expect("it is installed") else { return PostgresServer::skip(test) };
        let url = server.fresh_database();
        server.run_sql(&url, "create table item (id int primary key)");
        let config = ChangeConfig::new("s", "p");
        let source = PostgresChanges::connect(PostgresConfig::new(url.as_str()), config).expect("a URL");
        let mut taken = Taken::default();
        let mut stream = taken.open(&source).await;
        taken.until(&source, &mut stream, |taken| taken.batches == 1).await;
        drop(stream);
        server.run_sql(&url, "alter system set max_slot_wal_keep_size = '1MB'");
        server.run_sql(&url, "select pg_reload_conf()");
        let status = "select coalesce(wal_status, '-') from pg_replication_slots";
        until("the slot to be invalidated", async || {
            server.run_sql(&url, "insert into item select coalesce(max(id), 0) + 1 from item");
            server.run_sql(&url, "select pg_switch_wal()");
            server.run_sql(&url, "checkpoint");
            server.run_sql(&url, status) == "lost\n"
        })
        .await;
        let error = refused(&source, taken.resume.clone()).await;
        assert!(matches!(&error, ChangeSourceError::Lost { reason, .. } if reason.contains("removed")), "{error:?}");
        let config = ChangeConfig { create: false, ..ChangeConfig::new("s", "p") };
        let careful = PostgresChanges::connect(PostgresConfig::new(url.as_str()), config).expect("a URL");
        is_setup(&refused(&careful, None).await, "slot_invalidated");

        let mut again = Taken::default();
        let mut stream = again.open(&source).await;
        again.until(&source, &mut stream, |taken| taken.has("1")).await;
        assert_eq!(server.run_sql(&url, status), "reserved\n", "the dead slot was made again, and a copy with it");
    });
}

#[test]
fn without_a_state_it_goes_on_from_the_position_without_a_copy_and_a_later_loss_is_one() {
    block_on_threads(async {
        let Some(world) = World::fresh("without_a_state_it_goes_on_from_the_position") else { return };
        world.sql("create table item (id int primary key, name text); insert into item values (1, 'before')");
        let source = world.source(|_| ());
        let here = source.status().await.expect("a status").position;
        let from = Resume { position: here, state: Default::default() };
        let mut taken = Taken::default();
        taken.resume = Some(from.clone());
        is_setup(&refused(&world.source(|config| config.create = false), Some(from)).await, "publication_missing");
        let mut stream = taken.open(&source).await;
        taken.until(&source, &mut stream, |taken| taken.batches == 1).await;
        assert!(taken.resume.as_ref().is_some_and(|resume| !resume.state.is_empty()), "said before anything happens");
        world.sql("insert into item values (2, 'after')");
        taken.until(&source, &mut stream, |taken| taken.has("after")).await;
        assert!(!taken.has("before"), "no copy was made");
        drop(stream);
        let mut stream = taken.open(&source).await;
        world.sql("insert into item values (3, 'again')");
        taken.until(&source, &mut stream, |taken| taken.has("again")).await;
        drop(stream);
        let drop = format!("select pg_drop_replication_slot('{}')", world.name);
        until("the slot to be dropped", async || world.server.try_sql(&world.url, &drop).is_ok()).await;
        let error = refused(&source, taken.resume.clone()).await;
        assert!(matches!(error, ChangeSourceError::Lost { .. }), "{error:?}");
    });
}
