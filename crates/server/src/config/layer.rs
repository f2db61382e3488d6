//! The three layers of a configuration as figment providers: a TOML file with the place of every key, the environment,
//! and flags. It never judges a value: a layer only says what was written where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Tag, Value};
use figment::{Metadata, Profile, Provider};
use toml::de::{DeTable, DeValue};

use super::problem::{Origin, Problem};

/// A step of a key's path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// The path of a key.
pub(super) type KeyPath = Vec<Step>;

/// How a path looks in TOML.
pub(super) fn display(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                if bare {
                    text.push_str(key);
                } else {
                    text.push_str(&format!("{key:?}"));
                }
            }
            Step::Index(at) => text.push_str(&format!("[{at}]")),
        }
    }
    text
}

/// A TOML file's content.
#[derive(Debug)]
pub(super) struct FileLayer {
    path: PathBuf,
    text: String,
    dict: Dict,
    /// Byte offsets of each key and of its value.
    places: BTreeMap<KeyPath, (usize, usize)>,
}

impl FileLayer {
    pub(super) const NAME: &'static str = "file";

    /// Parses; every syntax error is a problem with its line.
    pub(super) fn parse(path: &Path, text: String) -> Result<Self, Vec<Problem>> {
        let (table, errors) = DeTable::parse_recoverable(&text);
        if !errors.is_empty() {
            // The message only: an excerpt could show a secret.
            let problem = |error: &toml::de::Error| Problem {
                origin: file_origin(path, &text, error.span().map_or(0, |span| span.start)),
                key: String::new(),
                why: error.message().replace('\n', "; "),
            };
            return Err(errors.iter().map(problem).collect());
        }
        let mut places = BTreeMap::new();
        let mut key_path = Vec::new();
        let dict = table_to_dict(table.get_ref(), &mut key_path, &mut places);
        Ok(Self { path: path.to_owned(), dict, places, text })
    }

    /// Takes a value away, so that a later layer replaces it whole.
    pub(super) fn forget(&mut self, section: &str, key: &str) {
        if let Some(Value::Dict(_, dict)) = self.dict.get_mut(section) {
            dict.remove(key);
        }
    }

    /// Where a key stands (`of_key`), or its value.
    pub(super) fn origin(&self, path: &[Step], of_key: bool) -> Origin {
        // A value that has no place of its own stands where the nearest thing around it does.
        let offset = (0..=path.len())
            .rev()
            .find_map(|length| self.places.get(&path[..length]))
            .map_or(0, |(key, value)| if of_key { *key } else { *value });
        file_origin(&self.path, &self.text, offset)
    }
}

fn file_origin(path: &Path, text: &str, offset: usize) -> Origin {
    let before = &text[..text.floor_char_boundary(offset.min(text.len()))];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Origin::File {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

fn table_to_dict(table: &DeTable<'_>, path: &mut KeyPath, places: &mut BTreeMap<KeyPath, (usize, usize)>) -> Dict {
    let mut dict = Dict::new();
    for (key, value) in table.iter() {
        path.push(Step::Key(key.get_ref().to_string()));
        let key_at = key.span().start;
        // What is wrong with a table as a whole is shown at its head.
        let value_at = if value.get_ref().is_table() { key_at } else { value.span().start };
        places.insert(path.clone(), (key_at, value_at));
        dict.insert(key.get_ref().to_string(), to_value(value.get_ref(), path, places));
        path.pop();
    }
    dict
}

fn to_value(value: &DeValue<'_>, path: &mut KeyPath, places: &mut BTreeMap<KeyPath, (usize, usize)>) -> Value {
    match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(digits) => {
            match i64::from_str_radix(digits.as_str(), digits.radix()) {
                Ok(number) => Value::from(number),
                // Beyond 64 bits: kept as a double, which no key takes, so it is refused with its key.
                Err(_) => Value::from(f64::INFINITY),
            }
        }
        DeValue::Float(digits) => Value::from(digits.as_str().parse::<f64>().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::from(*flag),
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Array(items) => {
            let items: Vec<Value> = items
                .iter()
                .enumerate()
                .map(|(at, item)| {
                    path.push(Step::Index(at));
                    places.insert(path.clone(), (item.span().start, item.span().start));
                    let value = to_value(item.get_ref(), path, places);
                    path.pop();
                    value
                })
                .collect();
            Value::Array(Tag::Default, items)
        }
        DeValue::Table(table) => Value::Dict(Tag::Default, table_to_dict(table, path, places)),
    }
}

impl Provider for FileLayer {
    fn metadata(&self) -> Metadata {
        Metadata::named(Self::NAME)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

/// Values that came one by one, each with the name of the variable or flag that set it.
#[derive(Debug, Default)]
pub(super) struct PairLayer {
    name: &'static str,
    dict: Dict,
    setters: BTreeMap<KeyPath, String>,
}

impl PairLayer {
    pub(super) const ENV: &'static str = "env";
    pub(super) const FLAGS: &'static str = "flags";

    /// The environment: `TIDEGATE__STREAM__CHUNK__PAGES` is `stream.chunk.pages`. Names are lower case.
    pub(super) fn env(prefix: &str, vars: &[(String, String)], problems: &mut Vec<Problem>) -> Self {
        let mut layer = Self { name: Self::ENV, ..Self::default() };
        for (name, value) in vars {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            let keys: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
            layer.insert(&keys, value, name, |name| Origin::Variable { name }, problems);
        }
        layer
    }

    /// The command line.
    pub(super) fn flags(flags: &Flags, problems: &mut Vec<Problem>) -> Self {
        let mut layer = Self { name: Self::FLAGS, ..Self::default() };
        for flag in &flags.given {
            layer.insert(&flag.key, &flag.value, &flag.name, |name| Origin::Flag { name }, problems);
        }
        layer
    }

    fn insert(
        &mut self,
        keys: &[String],
        text: &str,
        setter: &str,
        origin: fn(String) -> Origin,
        problems: &mut Vec<Problem>,
    ) {
        let path: KeyPath = keys.iter().cloned().map(Step::Key).collect();
        let mut refuse = |why: &str| {
            problems.push(Problem { origin: origin(setter.to_owned()), key: display(&path), why: why.to_owned() });
        };
        let Some((last, sections)) = keys.split_last().filter(|_| keys.iter().all(|key| !key.is_empty())) else {
            return refuse("the key has an empty part");
        };
        let mut dict = &mut self.dict;
        for section in sections {
            let slot = dict.entry(section.clone()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new()));
            match slot {
                Value::Dict(_, inner) => dict = inner,
                _ => return refuse("a part of this key was already given a value of its own"),
            }
        }
        if matches!(dict.get(last), Some(Value::Dict(..))) {
            return refuse("keys below this one were already given values");
        }
        dict.insert(last.clone(), value_of(text));
        for length in 1..=path.len() {
            self.setters.insert(path[..length].to_vec(), setter.to_owned());
        }
    }

    /// Whether the layer has something below this section's key.
    pub(super) fn keys_of(&self, section: &str) -> Vec<String> {
        match self.dict.get(section) {
            Some(Value::Dict(_, dict)) => dict.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// What set a key, or the nearest thing around it.
    pub(super) fn setter(&self, path: &[Step]) -> Option<&str> {
        (1..=path.len()).rev().find_map(|length| self.setters.get(&path[..length])).map(String::as_str)
    }
}

/// Lists and tables are written as in TOML; everything else stays text, and who reads it knows its type.
fn value_of(text: &str) -> Value {
    if text.starts_with(['[', '{'])
        && let Ok(value) = DeValue::parse(text)
    {
        return to_value(value.get_ref(), &mut Vec::new(), &mut BTreeMap::new());
    }
    Value::from(text)
}

impl Provider for PairLayer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

/// A flag that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// As it is written: `--http`.
    pub name: String,
    /// The key's parts.
    pub key: Vec<String>,
    /// The value's text.
    pub value: String,
}

/// What the command line said.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// Flags that set keys, in order; the last of the same key counts.
    pub given: Vec<Flag>,
    /// `--insecure`: everybody on the network may be `anonymous`.
    pub insecure: bool,
}

impl Flags {
    /// Adds a flag for a dotted key, no part of which has a dot.
    pub fn set(&mut self, name: &str, dotted: &str, value: impl Into<String>) {
        let key = dotted.split('.').map(str::to_owned).collect();
        self.given.push(Flag { name: name.to_owned(), key, value: value.into() });
    }
}
