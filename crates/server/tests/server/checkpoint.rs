//! Checkpoints that a job wrote by the library: the server and the command line list, show, verify and remove them.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use serde_json::Value;
use tidegate_checkpoint::{CheckpointParts, Checkpoints, ClaimOutcome, Draft, Mode, Next, Spec, Written};
use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::position::{Offset, Partition, SourcePosition};
use tidegate_testkit::{ManualClock, SeededEntropy, block_on};

use crate::process::{Server, run, stderr, stdout};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Makes so many checkpoints of a job, each with a state of its own, and gives their generations, oldest first. The sink of all but the
/// newest has committed.
fn write(folder: &Path, job: &str, count: u64) -> Vec<u64> {
    std::fs::create_dir_all(folder).unwrap();
    block_on(async {
        let job = Checkpoints::new(CheckpointParts {
            store: Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap()),
            root: object_store::path::Path::default(),
            clock: Arc::new(ManualClock::new()),
            entropy: Arc::new(SeededEntropy::new(7)),
            spec: Spec::default(),
        })
        .job(&name(job));
        let claimed = job.claim(&name("worker"), Duration::from_secs(30), Mode::IfFree).await.unwrap();
        let ClaimOutcome::Claimed { writer, .. } = claimed else { panic!("nobody holds it") };
        let mut generations = Vec::new();
        for at in 1..=count {
            let mut save = writer.begin().await.unwrap();
            let state = bytes::Bytes::from(format!("total={at};").repeat(1_000));
            save.state(name("sums"), futures::stream::iter([Ok::<_, std::io::Error>(state)])).await.unwrap();
            let mut draft =
                Draft { watermark: Some(Timestamp::from_unix_ms(i64::try_from(at).unwrap())), ..Draft::default() };
            draft.positions.entry(name("orders")).or_default().insert(Partition(0), Next::Offset(Offset(10 * at)));
            let lsn = Next::Source(SourcePosition("0/16B3748".into()));
            draft.positions.entry(name("crm")).or_default().insert(Partition(0), lsn);
            draft.pending.insert(name("out"), vec![1]);
            draft.savepoint = (at == 1).then(|| name("before the change"));
            let Written::Done(id) = save.publish(draft).await.unwrap() else { panic!("the term is not over") };
            if at < count {
                assert!(matches!(writer.committed(id.generation).await.unwrap(), Written::Done(())));
            }
            generations.push(id.generation.0);
        }
        generations
    })
}

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

fn slot(folder: &Path, job: &str, generation: u64) -> PathBuf {
    folder.join(job).join("log").join(format!("{generation:020}"))
}

/// Flips one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn code(output: &Output) -> Value {
    serde_json::from_slice::<Value>(&output.stderr).unwrap_or_else(|_| panic!("{output:?}"))["error"]["code"].clone()
}

#[test]
fn the_server_lists_jobs_and_checkpoints_newest_first_page_by_page() {
    let server = Server::start(1, &[]);
    assert_eq!(server.get("/v1/checkpoints").json(), serde_json::json!({"jobs": [], "next": null}));
    let folder = server.path("data/checkpoints");
    let made = write(&folder, "totals", 3);
    write(&folder, "a/b", 1);

    let jobs = server.get("/v1/checkpoints").json();
    assert_eq!((&jobs["jobs"][0]["job"], &jobs["jobs"][1]["job"]), (&"a/b".into(), &"totals".into()), "{jobs}");
    assert_eq!(jobs["jobs"][1]["newest"]["generation"], made[2]);
    let first = server.get("/v1/checkpoints?limit=1").json();
    assert_eq!((&first["next"], first["jobs"].as_array().unwrap().len()), (&"a/b".into(), 1));
    assert_eq!(server.get("/v1/checkpoints?limit=1&after=a%2Fb").json()["jobs"][0]["job"], "totals");

    let page = server.get("/v1/checkpoints/totals?limit=2").json();
    let of = |page: &Value| -> Vec<u64> {
        page["checkpoints"].as_array().unwrap().iter().map(|one| one["generation"].as_u64().unwrap()).collect()
    };
    assert_eq!((of(&page), &page["next"]), (vec![made[2], made[1]], &made[1].into()));
    let newest = &page["checkpoints"][0];
    assert_eq!((&newest["state"], &newest["epoch"]), (&"complete".into(), &1.into()), "{newest}");
    assert_eq!(page["checkpoints"][1]["state"], "committed");
    assert_eq!(newest["positions"], serde_json::json!({"orders": {"0": 30}, "crm": {"0": "0/16B3748"}}));
    assert_eq!(newest["watermark"], "1970-01-01T00:00:00.003Z");
    assert!(newest["size_bytes"].as_u64().unwrap() > 8_000, "{newest}");
    assert_eq!(newest["parents"][0]["generation"], made[1]);
    let last = server.get(&format!("/v1/checkpoints/totals?limit=2&before={}", made[1])).json();
    assert_eq!((of(&last), &last["next"]), (vec![made[0]], &Value::Null));
    assert_eq!(last["checkpoints"][0]["savepoint"], "before the change");
    assert_eq!(server.get("/v1/checkpoints/a%2Fb").json()["job"], "a/b");
}

#[test]
fn what_is_asked_wrongly_of_checkpoints_is_refused_by_name() {
    let server = Server::start(1, &[]);
    for (path, status, code) in [
        ("/v1/checkpoints/nobody", 404, "job_not_found"),
        ("/v1/checkpoints?limit=0", 400, "invalid_field"),
        ("/v1/checkpoints?limit=101", 400, "invalid_field"),
        ("/v1/checkpoints?before=1", 400, "unknown_field"),
        ("/v1/checkpoints/x?before=-1", 400, "invalid_field"),
        ("/v1/checkpoints/x?after=1", 400, "unknown_field"),
    ] {
        let answer = server.get(path);
        assert_eq!((answer.status, &answer.json()["code"]), (status, &code.into()), "{path}");
    }
    let output = server.client(&["checkpoint", "ls", "nobody", "--json"]);
    assert_eq!((output.status.code(), code(&output)), (Some(3), "job_not_found".into()));
}

#[test]
fn a_checkpoint_with_a_flipped_bit_is_listed_and_named_and_the_one_before_it_is_the_newest() {
    let server = Server::start(1, &[]);
    let folder = server.path("data/checkpoints");
    let made = write(&folder, "totals", 3);
    flip(&slot(&folder, "totals", made[2]));
    let page = server.get("/v1/checkpoints/totals").json();
    let corrupt = &page["checkpoints"][0];
    assert_eq!((&corrupt["generation"], &corrupt["state"]), (&made[2].into(), &"corrupt".into()), "{page}");
    let object = format!("totals/log/{:020}", made[2]);
    assert_eq!(corrupt["object"], object);
    let jobs = server.get("/v1/checkpoints").json();
    assert_eq!((&jobs["jobs"][0]["newest"]["generation"], &jobs["jobs"][0]["corrupt"]), (&made[1].into(), &1.into()));
    let table = stdout(&server.client(&["checkpoint", "ls", "totals"]));
    assert!(table.contains("corrupt"), "{table}");
}

#[test]
fn the_command_line_shows_the_same_of_a_server_and_of_a_store() {
    let server = Server::start(1, &[]);
    let folder = server.path("data/checkpoints");
    let made = write(&folder, "totals", 2);
    let store = url(&folder);
    let oldest = made[0].to_string();
    for command in [&["ls"][..], &["ls", "totals"], &["show", "totals"], &["show", "totals", &oldest]] {
        let arguments = [&["checkpoint"], command, &["--json"]].concat();
        let asked = server.client(&arguments);
        let opened = run(&[&arguments[..], &["--store", &store]].concat());
        assert!(asked.status.success() && opened.status.success(), "{}{}", stderr(&asked), stderr(&opened));
        assert_eq!(json(&asked), json(&opened), "{command:?}");
    }
    let shown = stdout(&run(&["checkpoint", "show", "totals", &oldest, "--store", &store]));
    assert!(shown.contains("orders partition 0: 10") && shown.contains("before the change"), "{shown}");
    let absent = run(&["checkpoint", "show", "totals", "9999", "--store", &store, "--json"]);
    assert_eq!((absent.status.code(), code(&absent)), (Some(3), "checkpoint_not_found".into()));
}

#[test]
fn a_verification_reads_every_byte_and_names_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let made = write(folder.path(), "totals", 2);
    let store = url(folder.path());
    let verify = || run(&["checkpoint", "verify", "--store", &store, "--json"]);
    let whole = verify();
    assert_eq!(whole.status.code(), Some(0), "{}", stderr(&whole));
    let verified = &json(&whole)["verified"];
    assert_eq!((verified.as_array().unwrap().len(), &verified[0]["ok"]), (2, &true.into()), "{verified}");

    let packs = folder.path().join("totals/packs");
    let pack = std::fs::read_dir(&packs).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    flip(&pack);
    let broken = verify();
    assert_eq!((broken.status.code(), code(&broken)), (Some(1), "checkpoint_corrupt".into()));
    let report = json(&broken);
    let object = format!("totals/packs/{}", pack.file_name().unwrap().to_str().unwrap());
    assert_eq!(report["verified"][0]["damages"][0]["object"], object, "{report}");
    assert_eq!(report["verified"][0]["damages"][0]["code"], "checkpoint_chunk_mismatch");
    assert_eq!((&report["verified"][1]["ok"], &report["corrupt"]), (&true.into(), &1.into()));
    let one = run(&["checkpoint", "verify", "totals", &made[0].to_string(), "--store", &store]);
    assert_eq!((one.status.code(), stdout(&one)), (Some(0), format!("totals generation {}: ok\n", made[0])));
    let words = stdout(&run(&["checkpoint", "verify", "totals", "--store", &store]));
    assert!(words.contains("DAMAGED") && words.contains(&object), "{words}");
}

#[test]
fn a_job_none_of_whose_entries_is_readable_is_named_by_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "whole", 1);
    write(folder.path(), "torn", 1);
    std::fs::create_dir(folder.path().join("lost+found")).unwrap();
    for entry in std::fs::read_dir(folder.path().join("torn/log")).unwrap() {
        flip(&entry.unwrap().path());
    }
    let output = run(&["checkpoint", "verify", "--store", &url(folder.path()), "--json"]);
    assert_eq!((output.status.code(), code(&output)), (Some(1), "checkpoint_corrupt".into()));
    let report = json(&output);
    assert_eq!((&report["corrupt"], report["verified"].as_array().unwrap().len()), (&1.into(), 2), "{report}");
    assert_eq!(report["verified"][0]["damages"][0]["object"], "torn");
    assert_eq!(report["verified"][1]["job"], "whole");
}

#[test]
fn a_removal_takes_what_is_named_and_never_the_last_complete_one() {
    let folder = tempfile::tempdir().unwrap();
    let made = write(folder.path(), "totals", 2);
    let store = url(folder.path());
    let remove =
        |generation: u64| run(&["checkpoint", "rm", "totals", &generation.to_string(), "--store", &store, "--json"]);
    let kept = remove(made[1]);
    assert_eq!((kept.status.code(), code(&kept)), (Some(1), "checkpoint_kept".into()));
    assert!(slot(folder.path(), "totals", made[1]).exists());
    let gone = remove(made[0]);
    assert_eq!((gone.status.code(), &json(&gone)["removed"]), (Some(0), &made[0].into()));
    assert!(!slot(folder.path(), "totals", made[0]).exists());
    let again = remove(made[0]);
    assert_eq!((again.status.code(), code(&again)), (Some(3), "checkpoint_not_found".into()));
    assert_eq!(run(&["checkpoint", "verify", "--store", &store]).status.code(), Some(0));
}

#[test]
fn a_store_is_named_by_a_url_or_a_configuration_and_must_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("jobs");
    write(&store, "totals", 1);
    let config = folder.path().join("tidegate.toml");
    std::fs::write(&config, format!("[checkpoints]\nstore = \"{}\"\n", url(&store))).unwrap();
    let listed = run(&["checkpoint", "ls", "--json", "--config", config.to_str().unwrap()]);
    assert_eq!(json(&listed)["jobs"][0]["job"], "totals", "{}", stderr(&listed));
    let away = url(&folder.path().join("away"));
    for (arguments, exit) in [
        (&["verify", "--store", &away][..], 3),
        (&["verify"], 2),
        (&["rm", "totals", "1"], 2),
        (&["ls", "--store", "jobs"], 2),
        (&["ls", "--store", "s3://bucket/jobs"], 2),
        (&["ls", "--store", "file:///x", "--config", "x"], 2),
        (&["verify", "nobody", "--store", &url(&store)], 3),
    ] {
        let output = run(&[&["checkpoint"], arguments].concat());
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {}", stderr(&output));
    }
    assert!(!folder.path().join("away").exists(), "a store that is looked at is not made");
}

#[test]
fn only_who_may_see_the_whole_server_sees_checkpoints() {
    use sha2::{Digest as _, Sha256};
    let folder = tempfile::tempdir().unwrap();
    let token = |text: &str, scope: &str| {
        format!(
            "[[auth.tokens]]\nsha256 = \"{}\"\nsubject = \"{text}\"\ntenant = \"t\"\nscopes = [\"{scope}\"]\n",
            hex::encode(Sha256::digest(text))
        )
    };
    let config = folder.path().join("own.toml");
    std::fs::write(&config, token("reader", "query") + &token("boss", "admin")).unwrap();
    let server = Server::launch(folder, &["--config", "own.toml"]);
    let list = |token: &str| server.client(&["checkpoint", "ls", "--json", "--token", token]);
    let refused = list("reader");
    assert_eq!((refused.status.code(), code(&refused)), (Some(4), "scope_missing".into()));
    assert_eq!(json(&list("boss")), serde_json::json!({"jobs": []}));
}
