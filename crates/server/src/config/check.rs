//! From the merged layers to a [`Config`]: every key read, ranged and crossed with the others. It never stops at the
//! first problem, and gives a configuration only if there is none.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_core::id::Name;
use tidegate_core::limit::Settings;
use tidegate_transport_http::TokenConfig;

use super::layer::{FileLayer, PairLayer};
use super::read::{Context, Node, Section};
use super::{
    Cold, Config, ConfigError, Durability, ENV_PREFIX, Inputs, Listen, ListenTls, Loaded, Problem, Source, auth,
    checkpoint, object, object_limit, source,
};

const DEFAULT_DATA_DIR: &str = "./tidegate-data";
const DEFAULT_HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7070);
const DEFAULT_AUDIT: &str = "audit.jsonl";

/// A configuration file is written by people: beyond this it is something else.
const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;

pub(super) fn load(inputs: &Inputs<'_>) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    let mut file = match inputs.file {
        Some(path) => Some(
            FileLayer::parse(
                path,
                read_file(path).map_err(|source| ConfigError::Unreadable { path: path.into(), source })?,
            )
            .map_err(ConfigError::Wrong)?,
        ),
        None => None,
    };
    let env = PairLayer::env(ENV_PREFIX, &inputs.env, &mut problems);
    let flags = PairLayer::flags(&inputs.flags, &mut problems);
    if let Some(file) = &mut file {
        for name in flags.keys_of("sources") {
            file.forget("sources", &name);
        }
    }

    let context = Context::new(file, env, flags, problems);
    let dict = context.root();
    let config = read(&Section::root(&context, &dict), &context, inputs.flags.insecure);
    let (problems, warnings) = context.finish();
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded { config, warnings }),
        _ => Err(ConfigError::Wrong(problems)),
    }
}

fn read_file(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(std::io::Error::other(format!("it is larger than {FILE_MAX_BYTES} bytes")));
    }
    Ok(text)
}

fn read(root: &Section<'_>, context: &Context, insecure: bool) -> Option<Config> {
    let data_dir = match root.get("data_dir") {
        Some(node) => node.line().map(PathBuf::from),
        None => Some(PathBuf::from(DEFAULT_DATA_DIR)),
    };
    let durability = match root.get("durability") {
        Some(node) => node.choice(&[("fsync", Durability::Fsync), ("os", Durability::Os)]),
        None => Some(Durability::default()),
    };
    let has_auth = root.get("auth").is_some();
    let listen = listen(root, has_auth, insecure);
    let sources = sources(root);
    let auth: Option<Option<TokenConfig>> = match root.get("auth") {
        Some(node) => node.section().and_then(auth::read).map(Some),
        None => Some(None),
    };
    let objects = object::read(root);
    let checkpoints = checkpoint::read(root);
    let audit = audit(root);
    let settings = settings(root);
    let object_rules = object_limit::read(root);
    for key in root.keys().filter(|key| !KEYS.contains(key)) {
        root.refuse_key(key, format!("unknown key; the keys here are {}", KEYS.join(", ")));
    }
    let _ = context;

    let data_dir = data_dir?;
    Some(Config {
        audit_path: audit?.unwrap_or_else(|| data_dir.join(DEFAULT_AUDIT)),
        objects: objects?.under(&data_dir),
        checkpoints: checkpoints?.unwrap_or_else(|| Cold::Directory(data_dir.join(checkpoint::DEFAULT_FOLDER))),
        data_dir,
        durability: durability?,
        listen: listen?,
        sources: sources?,
        auth: auth?,
        settings,
        object_rules: object_rules?,
    })
}

const KEYS: [&str; 10] =
    ["audit", "auth", "checkpoints", "data_dir", "durability", "limits", "listen", "objects", "sources", "stream"];

fn listen(root: &Section<'_>, has_auth: bool, insecure: bool) -> Option<Listen> {
    let Some(node) = root.get("listen") else { return Some(Listen { http: DEFAULT_HTTP, tls: None }) };
    let section = node.section()?;
    let http = match section.get("http") {
        Some(node) => address(&node).inspect(|address| {
            if !address.ip().is_loopback() && !has_auth {
                let open = "everybody who reaches it is `anonymous` with every right";
                if insecure {
                    node.warn(format!("{address} is not a loopback address and there is no [auth]: {open}"));
                } else {
                    node.refuse(format!(
                        "{address} is not a loopback address and there is no [auth]: {open}; add [auth], or say --insecure"
                    ));
                }
            }
        }),
        None => Some(DEFAULT_HTTP),
    };
    for key in ["grpc", "pg"] {
        if let Some(node) = section.get(key) {
            node.refuse("is not in this version: only http can be listened on");
        }
    }
    let tls = match section.get("tls") {
        Some(node) => node.section().and_then(tls).map(Some),
        None => Some(None),
    };
    section.finish();
    Some(Listen { http: http?, tls: tls? })
}

fn address(node: &Node<'_>) -> Option<SocketAddr> {
    let text = node.line()?;
    let spelled = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.clone(),
    };
    match spelled.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            node.refuse(format!("must be an IP address and a port, such as 127.0.0.1:7070, not {text:?}"));
            None
        }
    }
}

fn tls(section: Section<'_>) -> Option<ListenTls> {
    let cert = section.require("cert").and_then(|node| certificates(&node));
    let key = section.require("key").and_then(|node| private_key(&node));
    let client_ca = match section.get("client_ca") {
        Some(node) => certificates(&node).map(Some),
        None => Some(None),
    };
    section.finish();
    Some(ListenTls { cert: cert?, key: key?, client_ca: client_ca? })
}

pub(super) fn certificates(node: &Node<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(node.line()?);
    let found = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if !found.is_empty() => return Some(path),
        Ok(_) => node.refuse(format!("{} has no certificate in it (-----BEGIN CERTIFICATE-----)", path.display())),
        Err(why) => node.refuse(format!("{} cannot be read as PEM: {why}", path.display())),
    }
    None
}

fn private_key(node: &Node<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(node.line()?);
    match PrivateKeyDer::from_pem_file(&path) {
        Ok(_) => Some(path),
        Err(why) => {
            node.refuse(format!("{} cannot be read as a private key in PEM: {why}", path.display()));
            None
        }
    }
}

fn sources(root: &Section<'_>) -> Option<BTreeMap<Name, Source>> {
    let Some(node) = root.get("sources") else { return Some(BTreeMap::new()) };
    let section = node.section()?;
    let mut sources = BTreeMap::new();
    let mut all = true;
    for key in section.keys() {
        let name = match Name::new(key) {
            Ok(name) => Some(name),
            Err(why) => {
                section.refuse_key(key, why.to_string());
                None
            }
        };
        let source = section.get(key).and_then(|node| node.section()).and_then(|section| {
            let source = source::read(&section);
            if source.is_some() {
                section.finish();
            }
            source
        });
        match (name, source) {
            (Some(name), Some(source)) => drop(sources.insert(name, source)),
            _ => all = false,
        }
    }
    all.then_some(sources)
}

fn audit(root: &Section<'_>) -> Option<Option<PathBuf>> {
    let Some(node) = root.get("audit") else { return Some(None) };
    let section = node.section()?;
    let path = match section.get("path") {
        Some(node) => node.line().map(|path| Some(PathBuf::from(path))),
        None => Some(None),
    };
    section.finish();
    path
}

/// `stream.*` and `limits.*`: every leaf is a setting of [`Settings::ALL`].
fn settings(root: &Section<'_>) -> Settings {
    let mut settings = Settings::default();
    for top in ["stream", "limits"] {
        if let Some(section) = root.get(top).and_then(|node| node.section()) {
            setting_section(&section, top, &mut settings);
        }
    }
    settings
}

fn setting_section(section: &Section<'_>, prefix: &str, settings: &mut Settings) {
    for key in section.keys() {
        let dotted = format!("{prefix}.{key}");
        let below = format!("{dotted}.");
        let Some(node) = section.get(key) else { continue };
        if prefix == "limits" && key == object_limit::TABLE {
            // Its rules are read by themselves.
            continue;
        }
        if let Some(setting) = Settings::ALL.iter().find(|setting| setting.key == dotted) {
            if let Some(value) = node.integer()
                && let Err(_) = settings.set(setting.key, value)
            {
                node.refuse(format!("is {value}, it must be from {} to {}", setting.min, setting.max));
            }
        } else if Settings::ALL.iter().any(|setting| setting.key.starts_with(&below)) {
            if let Some(section) = node.section() {
                setting_section(&section, &dotted, settings);
            }
        } else {
            let prefix = format!("{prefix}.");
            let names: Vec<&str> =
                Settings::ALL.iter().map(|setting| setting.key).filter(|key| key.starts_with(&prefix)).collect();
            section.refuse_key(key, format!("unknown setting; the settings here are {}", names.join(", ")));
        }
    }
}

impl Problem {
    /// The problem as a JSON object, for `--json`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        use super::Origin;
        let mut object = serde_json::json!({ "key": self.key, "why": self.why });
        match &self.origin {
            Origin::File { path, line, column } => {
                object["file"] = path.display().to_string().into();
                object["line"] = (*line).into();
                object["column"] = (*column).into();
            }
            Origin::Variable { name } => object["variable"] = name.as_str().into(),
            Origin::Flag { name } => object["flag"] = name.as_str().into(),
            Origin::Absent => {}
        }
        object
    }
}
