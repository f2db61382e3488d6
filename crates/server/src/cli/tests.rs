//! Promises of the command line.

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_documented_commands_are_understood() {
    for line in [
        "tidegate serve --data-dir d --http 127.0.0.1:0 --source main=sqlite:x.db --source pg=postgres://u@h/d",
        "tidegate serve --config t.toml --durability os --insecure --log-format json --set stream.chunk.max_rows=5",
        "tidegate demo --http 127.0.0.1:0 --exit --data-dir d",
        "tidegate query select --source main --param 5 --param -1 --format csv --output f --limit 3 --url http://h --token t --json",
        "tidegate stream ls --json",
        "tidegate stream create a/b:c --partitions 4 --retention-records 9 --retention-age 1h --retention-bytes 1MiB",
        "tidegate stream create s --compaction key --late drop --description text",
        "tidegate stream show s",
        "tidegate stream rm s",
        "tidegate stream publish s -5 --key k --partition 3 --header a=b=c --op delete --event-time 2026-11-21T10:00:00Z",
        "tidegate stream publish s -",
        "tidegate stream publish s --file f --values --batch-records 5 --batch-bytes 1KiB --retries 0",
        "tidegate stream publish s --lines",
        "tidegate stream tail s --from 18446744073709551615 --partition 0 -n 3 --no-follow",
        "tidegate stream tail s --from earliest",
        "tidegate group ls s",
        "tidegate group create s g --mode shared --ack-timeout 30s --max-deliveries 5 --dead-letter dead --on-gap stop",
        "tidegate group show s g",
        "tidegate group rm s g",
        "tidegate group seek s g --to latest",
        "tidegate group seek s g --partition 0=105 --partition 1=0",
        "tidegate group consume s g --client one --create --session 1500ms --start latest -n 3 --quiet",
        "tidegate object put photos/_ file",
        "tidegate object put photos/org=17;project=42 ../x - --content-type text/plain --expires ttl:30s --meta a=b=c",
        "tidegate object put photos/_ k file --if-absent --part-size 1MiB",
        "tidegate object put photos/_ k file --if-match abc",
        "tidegate object get photos/_ k -o file",
        "tidegate object get photos/_ k --range -50",
        "tidegate object rm photos/_ a b",
        "tidegate object ls photos/_ --prefix a/ --json",
        "tidegate object batch up photos/_ folder --at-once 4",
        "tidegate object batch down photos/_ - --to folder",
        "tidegate object batch down photos/_ --prefix a --to folder",
        "tidegate top --once",
        "tidegate top s --interval-ms 500 --url http://h",
        "tidegate config check tidegate.toml",
        "tidegate completions bash",
    ] {
        assert!(parse(line).is_ok(), "{line}");
    }
}

#[test]
fn what_is_unknown_is_a_usage_error_with_exit_code_2() {
    for line in [
        "tidegate",
        "tidegate nonsense",
        "tidegate serve --nonsense",
        "tidegate serve --source nonsense",
        "tidegate serve --source main=mysql://h/d",
        "tidegate serve --set novalue",
        "tidegate query",
        "tidegate query q --format xml",
        "tidegate query q --url nonsense",
        "tidegate query q --stall-timeout-ms 0",
        "tidegate stream",
        "tidegate stream create s --partitions 0",
        "tidegate stream create s --retention-age 5",
        "tidegate stream create ..",
        "tidegate stream publish s v --file f",
        "tidegate stream publish s --values --lines",
        "tidegate stream publish s --header novalue",
        "tidegate stream publish s --op upsert",
        "tidegate stream publish s --batch-records 0",
        "tidegate stream tail s --from -1",
        "tidegate stream tail s --from 18446744073709551616",
        "tidegate stream tail s --partition 4294967296",
        "tidegate group seek s g",
        "tidegate group seek s g --to latest --partition 0=1",
        "tidegate group seek s g --partition 0:1",
        "tidegate group create s g --mode unordered",
        "tidegate group consume s",
        "tidegate object put photos/_",
        "tidegate object put photos k file",
        "tidegate object put photos/_ k file --expires soon",
        "tidegate object put photos/_ k file --if-absent --if-match x",
        "tidegate object put photos/_ k file --part-size 1KiB",
        "tidegate object put photos/_ k file --meta novalue",
        "tidegate object get photos/_ ..",
        "tidegate object get photos/_ k --range 5-4",
        "tidegate object rm photos/_",
        "tidegate object batch down photos/_ --to folder",
        "tidegate object batch down photos/_ list --prefix a --to folder",
        "tidegate object batch up photos/_",
        "tidegate top --interval-ms 1",
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(u8::try_from(error.exit_code()).unwrap(), Exit::Usage.code(), "{line}: {error}");
    }
    assert_eq!(parse("tidegate -V").unwrap_err().exit_code(), 0);
}

#[test]
fn a_bad_source_is_told_what_a_source_looks_like() {
    let error = parse("tidegate serve --source main=mysql://h/d").unwrap_err().to_string();
    assert!(error.contains("sqlite:PATH or postgres://"), "{error}");
}

#[test]
fn the_token_is_in_no_debug_output() {
    let cli = parse("tidegate query q --token geheim").unwrap();
    assert!(!format!("{cli:?}").contains("geheim"));
}

#[test]
fn listeners_that_do_not_exist_yet_are_refused_by_name() {
    let cli = parse("tidegate serve --grpc 127.0.0.1:7071 --pg 127.0.0.1:7072").unwrap();
    let Command::Serve(args) = cli.command else { panic!("serve") };
    let inputs = crate::config::Inputs { flags: args.flags(), ..Default::default() };
    let error = crate::config::load(&inputs).unwrap_err().to_string();
    assert!(error.contains("flag --grpc") && error.contains("flag --pg"), "{error}");
    assert!(error.contains("not in this version"), "{error}");
}

#[test]
fn flags_reach_the_configuration() {
    let cli = parse(
        "tidegate serve --data-dir d --http 127.0.0.1:9 --durability os --set stream.chunk.max_rows=5 --source a=sqlite:x --source a=sqlite:y",
    )
    .unwrap();
    let Command::Serve(args) = cli.command else { panic!("serve") };
    let config =
        crate::config::load(&crate::config::Inputs { flags: args.flags(), ..Default::default() }).unwrap().config;
    assert_eq!(config.data_dir, PathBuf::from("d"));
    assert_eq!(config.listen.http.port(), 9);
    assert_eq!(config.settings.get("stream.chunk.max_rows"), Some(5));
    let shown = config.effective(&config.settings);
    assert_eq!(shown["sources.a.path"], "y");
    assert_eq!(shown["durability"], "os");
}
