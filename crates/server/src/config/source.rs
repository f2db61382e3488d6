//! `[sources.NAME]` and `--source NAME=URL`. It never opens a database: whether one answers is the source's to say.

use std::path::PathBuf;

use super::check::certificates;
use super::layer::{Flag, Flags};
use super::read::{Node, Section};
use super::{JournalMode, Secret, Source};

/// `--source NAME=URL`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    name: String,
    address: Address,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Sqlite(String),
    Postgres(Secret),
}

/// Why a text is no `NAME=URL` of a source. It never quotes the URL, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceSpecError {
    /// There is no `=`, or nothing before it.
    #[error("a source is NAME=URL, such as main=sqlite:shop.db")]
    NoName,
    /// The URL is of no known kind.
    #[error("the URL of a source is sqlite:PATH or postgres://USER@HOST/DATABASE")]
    UnknownKind,
    /// The URL has no path.
    #[error("sqlite: must be followed by the path of a database file")]
    NoPath,
}

impl std::str::FromStr for SourceSpec {
    type Err = SourceSpecError;

    fn from_str(text: &str) -> Result<Self, SourceSpecError> {
        let (name, url) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(SourceSpecError::NoName)?;
        let address = if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(SourceSpecError::NoPath);
            }
            Address::Sqlite(path.to_owned())
        } else if is_postgres_url(url) {
            Address::Postgres(Secret::new(url))
        } else {
            return Err(SourceSpecError::UnknownKind);
        };
        Ok(Self { name: name.to_owned(), address })
    }
}

impl Flags {
    /// Adds a SQLite file as a source.
    pub fn sqlite(&mut self, name: &str, path: &std::path::Path) {
        let address = Address::Sqlite(path.display().to_string());
        self.source(SourceSpec { name: name.to_owned(), address });
    }

    /// Adds `--source`: it replaces a source of the same name of the file or the environment whole.
    pub fn source(&mut self, spec: SourceSpec) {
        // The same name twice: the later one counts, with nothing of the former.
        let same = |flag: &Flag| flag.key.len() == 3 && flag.key[0] == "sources" && flag.key[1] == spec.name;
        // What `--set` says of it stays: `--set sources.main.journal_mode=keep` must not be lost beside `--source`.
        self.given.retain(|flag| flag.name != "--source" || !same(flag));
        let mut set = |key: &str, value: String| {
            let key = vec!["sources".to_owned(), spec.name.clone(), key.to_owned()];
            self.given.push(Flag { name: "--source".to_owned(), key, value });
        };
        match spec.address {
            Address::Sqlite(path) => {
                set("kind", "sqlite".to_owned());
                set("path", path);
            }
            Address::Postgres(url) => {
                set("kind", "postgres".to_owned());
                set("url", url.reveal().to_owned());
            }
        }
    }
}

fn is_postgres_url(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

#[derive(Clone, Copy)]
enum Kind {
    Sqlite,
    Postgres,
}

/// Reads one `[sources.NAME]`.
pub(super) fn read(section: &Section<'_>) -> Option<Source> {
    let kind = section.require("kind")?.choice(&[("sqlite", Kind::Sqlite), ("postgres", Kind::Postgres)])?;
    match kind {
        Kind::Sqlite => {
            let path = section.require("path").and_then(|node| node.line());
            let modes = [("wal", JournalMode::Wal), ("keep", JournalMode::Keep)];
            let journal_mode = match section.get("journal_mode") {
                Some(node) => node.choice(&modes),
                None => Some(JournalMode::default()),
            };
            Some(Source::Sqlite { path: PathBuf::from(path?), journal_mode: journal_mode? })
        }
        Kind::Postgres => {
            let url = section.require("url").and_then(|node| postgres_url(&node));
            let publication = section.get("publication").map(|node| publication_name(&node));
            let slot = section.get("slot").map(|node| slot_name(&node));
            let ca = section.get("ca").map(|node| authorities(&node, url.as_ref()));
            let max_connections = section.get("max_connections").map(|node| connections(&node));
            if publication.is_some() != slot.is_some() {
                section.refuse("publication and slot go together: name both or neither");
            }
            Some(Source::Postgres {
                url: url?,
                publication: publication.flatten(),
                slot: slot.flatten(),
                max_connections: max_connections.flatten(),
                ca: ca.flatten(),
            })
        }
    }
}

fn postgres_url(node: &Node<'_>) -> Option<Secret> {
    let url = node.line()?;
    if !is_postgres_url(&url) {
        node.refuse("must begin with postgres:// or postgresql://");
        return None;
    }
    Some(Secret::new(url))
}

/// Without `sslmode=require` no certificate is verified: then naming who signs it would promise what is not kept.
fn authorities(node: &Node<'_>, url: Option<&Secret>) -> Option<PathBuf> {
    let verified = |url: &Secret| {
        let query = url.reveal().rsplit_once('?').map_or("", |(_, query)| query);
        query.split('&').rfind(|pair| pair.starts_with("sslmode=")) == Some("sslmode=require")
    };
    if url.is_some_and(|url| !verified(url)) {
        node.refuse("has an effect with sslmode=require in the url only: without it no certificate is verified");
        return None;
    }
    certificates(node)
}

/// PostgreSQL's bound on names, in bytes.
const NAME_BYTES_MAX: usize = 63;

fn publication_name(node: &Node<'_>) -> Option<String> {
    let name = node.line()?;
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) {
        node.refuse("must be the name of a publication: 1 to 63 bytes");
        return None;
    }
    Some(name)
}

fn slot_name(node: &Node<'_>) -> Option<String> {
    let name = node.line()?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(plain) {
        node.refuse("must be the name of a replication slot: 1 to 63 small letters, digits and _");
        return None;
    }
    Some(name)
}

fn connections(node: &Node<'_>) -> Option<usize> {
    let number = node.integer()?;
    if !(1..=10_000).contains(&number) {
        node.refuse(format!("is {number}, it must be from 1 to 10000"));
        return None;
    }
    usize::try_from(number).ok()
}
