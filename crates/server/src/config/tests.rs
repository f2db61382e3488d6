//! Promises of the configuration: every problem with its place, all at once, and no secret in any message.

use std::path::PathBuf;

use super::*;

mod object_limit;
mod s3;

const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn load_text(text: &str) -> Result<Loaded, ConfigError> {
    let files = Files::new();
    let path = files.write("tidegate.toml", text);
    load(&Inputs { file: Some(&path), ..Inputs::default() })
}

/// `line:column key` of every problem in the file.
fn places(error: &ConfigError) -> Vec<String> {
    let place = |problem: &Problem| match &problem.origin {
        Origin::File { line, column, .. } => format!("{line}:{column} {}", problem.key),
        other => format!("{other} {}", problem.key),
    };
    error.problems().iter().map(place).collect()
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn nothing_at_all_is_a_usable_configuration() {
    let config = load(&Inputs::default()).unwrap().config;
    assert_eq!(config.listen.http.to_string(), "127.0.0.1:7070");
    assert_eq!(config.audit_path, PathBuf::from("./tidegate-data/audit.jsonl"));
    assert_eq!(config.settings, Settings::default());
    assert!(config.auth.is_none() && config.sources.is_empty());
}

#[test]
fn the_documented_file_is_read_whole() {
    let text = format!(
        r#"
data_dir = "./data"
durability = "os"
[listen]
http = "127.0.0.1:0"
[sources.main]
kind = "sqlite"
path = "shop.db"
[sources."a/b:c d"]
kind = "postgres"
url = "postgres://user:pass@127.0.0.1/crm"
max_connections = 7
[auth]
audience = "tidegate"
[[auth.tokens]]
sha256 = "{hash}"
subject = "alice"
tenant = "acme"
scopes = ["query", "stream:read"]
[[auth.keys]]
kid = "k1"
alg = "EdDSA"
public_key = """
{PUBLIC_KEY}"""
[[auth.keys]]
kid = "k2"
alg = "HS256"
secret = "0123456789abcdef0123456789abcdef"
[stream]
max_global = 7
idle_timeout_ms = 100
[stream.chunk]
max_rows = 10
[limits]
connection_max = 5
[audit]
path = "/var/log/audit.jsonl"
"#,
        hash = "ab".repeat(32)
    );
    let Loaded { config, warnings } = load_text(&text).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.durability, Durability::Os);
    assert_eq!(config.settings.get("stream.chunk.max_rows"), Some(10));
    assert_eq!(config.settings.get("limits.connection_max"), Some(5));
    assert_eq!(config.audit_path, PathBuf::from("/var/log/audit.jsonl"));
    let names: Vec<&str> = config.sources.keys().map(Name::as_str).collect();
    assert_eq!(names, ["a/b:c d", "main"]);
    let auth = config.auth.as_ref().unwrap();
    assert_eq!((auth.tokens.len(), auth.keys.len()), (1, 2));
    assert_eq!(auth.tokens[0].sha256, [0xab; 32]);

    let shown = serde_json::to_string(&config.effective(&config.settings)).unwrap();
    for secret in ["user:pass", "0123456789abcdef", "abab", "MCow"] {
        assert!(!shown.contains(secret), "{shown}");
        assert!(!format!("{config:?}").contains(&format!("\"{secret}")), "{config:?}");
    }
    assert!(shown.contains(r#""sources.a/b:c d.url":"postgres://user:***@127.0.0.1/crm""#), "{shown}");
    assert!(shown.contains(r#""stream.chunk.max_rows":10"#), "{shown}");
}

#[test]
fn a_certificate_authority_is_taken_only_where_it_is_used() {
    let files = Files::new();
    let ca = files.write("ca.pem", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n");
    let empty = files.write("empty.pem", "nothing");
    let read = |kind: &str, path: &std::path::Path| {
        load_text(&format!("[sources.crm]\n{kind}\nca = {:?}\n", path.display().to_string()))
    };
    let verified = "kind = \"postgres\"\nurl = \"postgres://h/d?sslmode=require\"";
    let config = read(verified, &ca).unwrap().config;
    let Some(Source::Postgres { ca: Some(taken), .. }) = config.sources.values().next() else { panic!("{config:?}") };
    assert_eq!(taken, &ca);
    assert_eq!(config.effective(&config.settings)["sources.crm.ca"], ca.display().to_string());
    for (kind, path) in [
        (verified, &empty),
        ("kind = \"sqlite\"\npath = \"x.db\"", &ca),
        ("kind = \"postgres\"\nurl = \"postgres://h/d\"", &ca),
        ("kind = \"postgres\"\nurl = \"postgres://h/d?sslmode=require&sslmode=prefer\"", &ca),
    ] {
        let error = read(kind, path).unwrap_err();
        assert!(places(&error)[0].ends_with(" sources.crm.ca"), "{kind}: {error:?}");
    }
}

#[test]
fn every_problem_is_named_at_once_with_line_column_and_key() {
    let error = load_text(
        r#"data_dir = 5
colour = "red"
[listen]
http = "nonsense"
grpc = "127.0.0.1:7071"
[sources.main]
kind = "oracle"
[sources.other]
kind = "sqlite"
file = "x.db"
[sources.third]
kind = "postgres"
url = "mysql://root:geheim@h/d"
[auth]
audience = "tidegate"
[[auth.tokens]]
sha256 = "zz"
subject = ""
scopes = ["query", "root"]
[[auth.keys]]
kid = "k"
alg = "EdDSA"
secret = "geheim"
[stream.chunk]
pages = 65
max_row = 1
[limits]
connection_max = "many"
"#,
    )
    .unwrap_err();
    assert_eq!(
        places(&error),
        [
            "1:12 data_dir",
            "2:1 colour",
            "4:8 listen.http",
            "5:8 listen.grpc",
            "7:8 sources.main.kind",
            "8:10 sources.other.path",
            "13:7 sources.third.url",
            "16:1 auth.tokens[0].tenant",
            "17:10 auth.tokens[0].sha256",
            "18:11 auth.tokens[0].subject",
            "19:20 auth.tokens[0].scopes[1]",
            "20:1 auth.keys[0].public_key",
            "23:1 auth.keys[0].secret",
            "25:9 stream.chunk.pages",
            "26:1 stream.chunk.max_row",
            "28:18 limits.connection_max",
        ],
        "{error}"
    );
    assert!(!error.to_string().contains("geheim"), "{error}");
}

#[test]
fn a_syntax_error_has_its_line_and_shows_nothing_of_the_file() {
    let error = load_text("[auth]\naudience = \"a\"\nsecret = \"geheim\n").unwrap_err();
    assert!(places(&error)[0].starts_with("3:"), "{error}");
    assert!(!error.to_string().contains("geheim"), "{error}");
    let error = load_text("durability = \"os\"\ndurability = \"os\"\n").unwrap_err();
    assert_eq!(places(&error), ["2:1 "], "{error}");
}

#[test]
fn columns_count_characters_not_bytes() {
    let error = load_text("sources = { \"Größe\" = { kind = \"x\" } }\n").unwrap_err();
    assert_eq!(places(&error), ["1:32 sources.\"Größe\".kind"], "{error}");
}

#[test]
fn variables_go_over_the_file_and_flags_over_both() {
    let files = Files::new();
    let path = files.write(
        "t.toml",
        "[stream.chunk]\npages = 2\nmax_rows = 2\n[sources.main]\nkind = \"postgres\"\nurl = \"postgres://h/d\"\n",
    );
    let mut flags = Flags::default();
    flags.set("--set", "stream.chunk.pages", "5");
    flags.source("main=sqlite:x.db".parse().unwrap());
    let inputs = Inputs {
        file: Some(&path),
        env: env(&[
            ("TIDEGATE__STREAM__CHUNK__PAGES", "3"),
            ("TIDEGATE__STREAM__CHUNK__MAX_ROWS", "4"),
            ("TIDEGATE__LISTEN__HTTP", "[::1]:0"),
            ("TIDEGATE__DATA_DIR", "007"),
            ("TIDEGATE_URL", "ignored"),
        ]),
        flags,
    };
    let config = load(&inputs).unwrap().config;
    assert_eq!(config.settings.get("stream.chunk.pages"), Some(5));
    assert_eq!(config.settings.get("stream.chunk.max_rows"), Some(4));
    assert_eq!(config.listen.http.to_string(), "[::1]:0");
    assert_eq!(config.data_dir, PathBuf::from("007"), "a text stays the text that was written");
    let source = config.sources.values().next().unwrap();
    assert!(matches!(source, Source::Sqlite { path, .. } if path == &PathBuf::from("x.db")), "{source:?}");
}

#[test]
fn problems_of_variables_and_flags_name_the_variable_and_the_flag() {
    let mut flags = Flags::default();
    flags.set("--http", "listen.http", "x");
    flags.set("--set", "stream.nonsense", "1");
    let inputs = Inputs {
        file: None,
        env: env(&[
            ("TIDEGATE__STREAM__CHUNK__PAGES", "many"),
            ("TIDEGATE__NO__SUCH", "1"),
            ("TIDEGATE__AUTH__TOKENS", "x"),
        ]),
        flags,
    };
    let error = load(&inputs).unwrap_err();
    let mut found = places(&error);
    found.sort();
    assert_eq!(
        found,
        [
            "flag --http listen.http",
            "flag --set stream.nonsense",
            "variable TIDEGATE__AUTH__TOKENS auth.tokens",
            "variable TIDEGATE__NO__SUCH no",
            "variable TIDEGATE__STREAM__CHUNK__PAGES stream.chunk.pages",
        ]
    );
}

#[test]
fn a_list_in_a_variable_is_written_as_in_toml() {
    let tokens = format!(r#"[{{sha256="{}",subject="a",tenant="t",scopes=["query"]}}]"#, "0".repeat(64));
    let inputs = Inputs { env: env(&[("TIDEGATE__AUTH__TOKENS", &tokens)]), ..Inputs::default() };
    assert_eq!(load(&inputs).unwrap().config.auth.unwrap().tokens.len(), 1);
}

#[test]
fn a_key_and_a_key_below_it_are_not_both_taken() {
    let vars = env(&[("TIDEGATE__LISTEN", "x"), ("TIDEGATE__LISTEN__HTTP", "127.0.0.1:0")]);
    let error = load(&Inputs { env: vars, ..Inputs::default() }).unwrap_err();
    assert!(error.to_string().contains("variable TIDEGATE__LISTEN__HTTP"), "{error}");
}

#[test]
fn an_open_address_needs_auth_or_an_explicit_word() {
    let mut flags = Flags::default();
    flags.set("--http", "listen.http", "0.0.0.0:0");
    let inputs = Inputs { flags: flags.clone(), ..Inputs::default() };
    assert!(load(&inputs).unwrap_err().to_string().contains("--insecure"));
    flags.insecure = true;
    let loaded = load(&Inputs { flags, ..Inputs::default() }).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
}

#[test]
fn auth_that_lets_nobody_in_or_checks_no_audience_is_refused() {
    assert_eq!(places(&load_text("[auth]\naudience = \"a\"\n").unwrap_err()), ["1:2 auth"]);
    let key = format!("[auth]\n[[auth.keys]]\nkid = \"k\"\nalg = \"EdDSA\"\npublic_key = \"\"\"\n{PUBLIC_KEY}\"\"\"\n");
    assert_eq!(places(&load_text(&key).unwrap_err()), ["1:2 auth.audience"]);
    let tenant = format!("{}tenant = \"acme\"\n", key.replace("[auth]\n", "[auth]\naudience = \"a\"\n"));
    let config = load_text(&tenant).unwrap().config;
    assert_eq!(config.effective(&config.settings)["auth.keys[0].tenant"], "acme");
    assert_eq!(load_text(&tenant.replace("acme", "")).unwrap_err().problems().len(), 1);
    let wrong = key.replace("[auth]\n", "[auth]\naudience = \"a\"\n").replace("EdDSA", "RS256");
    assert_eq!(places(&load_text(&wrong).unwrap_err()), ["6:14 auth.keys[0].public_key"]);
}

#[test]
fn files_that_the_configuration_names_are_looked_into() {
    let files = Files::new();
    let empty = files.write("empty.pem", "nothing");
    let text = format!(
        "[listen.tls]\ncert = {empty:?}\nkey = \"/no/such/key.pem\"\n[auth]\naudience = \"a\"\njwks = \"/no/such/keys.json\"\n"
    );
    let error = load_text(&text).unwrap_err();
    assert_eq!(places(&error), ["2:8 listen.tls.cert", "3:7 listen.tls.key", "6:8 auth.jwks"], "{error}");
    assert!(matches!(
        load(&Inputs { file: Some(&PathBuf::from("/no/such.toml")), ..Inputs::default() }),
        Err(ConfigError::Unreadable { .. })
    ));
}

#[test]
fn what_this_version_cannot_do_is_said_and_not_ignored() {
    assert!(load_text("[listen]\npg = \"127.0.0.1:7072\"\n").unwrap_err().to_string().contains("not in this version"));
}

#[test]
fn changes_need_a_publication_and_a_slot_that_postgresql_can_have() {
    let text = |more: &str| format!("[sources.a]\nkind = \"postgres\"\nurl = \"postgres://h/d\"\n{more}");
    let loaded = load_text(&text("publication = \"Shop\"\nslot = \"shop_1\"\n")).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let shown = loaded.config.effective(&loaded.config.settings);
    assert_eq!((&shown["sources.a.publication"], &shown["sources.a.slot"]), (&"Shop".into(), &"shop_1".into()));
    for (bad, place) in [
        ("publication = \"p\"\nslot = \"Shop\"\n", "5:8 sources.a.slot"),
        ("publication = \"\"\nslot = \"s\"\n", "4:15 sources.a.publication"),
    ] {
        let error = load_text(&text(bad)).unwrap_err();
        assert_eq!(places(&error), [place], "{error}");
    }
    assert!(load_text(&text("slot = \"s\"\n")).unwrap_err().to_string().contains("name both or neither"));
}

#[test]
fn objects_lie_in_the_data_directory_unless_told_otherwise() {
    let config = load_text("data_dir = \"/srv/tidegate\"\n").unwrap().config;
    let default = Objects { cold: Cold::Directory("/srv/tidegate/objects".into()), hot_max_bytes: 1024 * 1024 };
    assert_eq!(config.objects, default);
    let text = "[objects]\ncold = \"file:///var/lib/my%20objects\"\nhot_max_bytes = 0\n";
    let config = load_text(text).unwrap().config;
    assert_eq!(config.objects, Objects { cold: Cold::Directory("/var/lib/my objects".into()), hot_max_bytes: 0 });
    let shown = config.effective(&config.settings);
    assert_eq!((&shown["objects.cold"], &shown["objects.hot_max_bytes"]), (&"/var/lib/my objects".into(), &0.into()));
    for bad in [
        "cold = \"/plain\"",
        "cold = \"file://host/x\"",
        "cold = \"file://\"",
        "cold = \"file:///%ff\"",
        "hot_max_bytes = 8388609",
        "colt = 1",
    ] {
        assert_eq!(load_text(&format!("[objects]\n{bad}\n")).unwrap_err().problems().len(), 1, "{bad}");
    }
    assert!(load_text("[objects]\nhot_max_bytes = 8388608\n").is_ok());
}

#[test]
fn what_set_says_of_a_source_stays_beside_the_flag_that_names_it() {
    let mut flags = Flags::default();
    flags.set("--set", "sources.main.journal_mode", "keep");
    flags.source("main=sqlite:other.db".parse().unwrap());
    flags.source("main=sqlite:shop.db".parse().unwrap());
    let config = load(&Inputs { file: None, env: Vec::new(), flags }).unwrap().config;
    let source = config.sources.values().next().unwrap();
    assert!(
        matches!(source, Source::Sqlite { path, journal_mode: JournalMode::Keep } if path.ends_with("shop.db")),
        "{source:?}"
    );
}
