//! Reading a merged configuration key by key: each answer is a value of the right type, or nothing and a problem with
//! its place. It never stops at the first problem.

use std::cell::RefCell;
use std::collections::BTreeSet;

use figment::Figment;
use figment::value::{Dict, Num, Tag, Value};

use super::layer::{FileLayer, KeyPath, PairLayer, Step, display};
use super::problem::{Origin, Problem};

/// What the readers share: the layers, to find places in, and what was found wrong.
pub(super) struct Context {
    figment: Figment,
    file: Option<FileLayer>,
    env: PairLayer,
    flags: PairLayer,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl Context {
    pub(super) fn new(file: Option<FileLayer>, env: PairLayer, flags: PairLayer, problems: Vec<Problem>) -> Self {
        let mut figment = Figment::new();
        if let Some(file) = &file {
            figment = figment.merge(file);
        }
        let figment = figment.merge(&env).merge(&flags);
        Self { figment, file, env, flags, problems: RefCell::new(problems), warnings: RefCell::default() }
    }

    /// The merged values.
    pub(super) fn root(&self) -> Dict {
        use figment::Provider;
        // The layers above cannot fail: they hold what is already read.
        let mut data = self.figment.data().unwrap_or_default();
        data.remove(&figment::Profile::Default).unwrap_or_default()
    }

    fn layer(&self, tag: Tag) -> Option<&str> {
        self.figment.get_metadata(tag).map(|metadata| metadata.name.as_ref())
    }

    fn origin(&self, tag: Tag, path: &[Step], of_key: bool) -> Origin {
        let absent = Origin::Absent;
        match self.layer(tag) {
            Some(PairLayer::ENV) => {
                self.env.setter(path).map_or(absent, |name| Origin::Variable { name: name.to_owned() })
            }
            Some(PairLayer::FLAGS) => {
                self.flags.setter(path).map_or(absent, |name| Origin::Flag { name: name.to_owned() })
            }
            Some(FileLayer::NAME) => self.file.as_ref().map_or(absent, |file| file.origin(path, of_key)),
            _ => absent,
        }
    }

    /// Whether a value was written as bare text, so that its type is for the reader to find.
    fn is_untyped(&self, tag: Tag) -> bool {
        matches!(self.layer(tag), Some(PairLayer::ENV | PairLayer::FLAGS))
    }

    pub(super) fn problem(&self, origin: Origin, key: &[Step], why: impl Into<String>) {
        self.problems.borrow_mut().push(Problem { origin, key: display(key), why: why.into() });
    }

    pub(super) fn warn(&self, origin: Origin, key: &[Step], why: impl Into<String>) {
        self.warnings.borrow_mut().push(Problem { origin, key: display(key), why: why.into() });
    }

    /// Problems (in the order of the file) and warnings.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| match &problem.origin {
            Origin::File { line, column, .. } => (0, *line, *column),
            Origin::Variable { .. } => (1, 0, 0),
            Origin::Flag { .. } => (2, 0, 0),
            Origin::Absent => (3, 0, 0),
        });
        problems.dedup();
        (problems, self.warnings.into_inner())
    }
}

/// A value with its path.
#[derive(Clone)]
pub(super) struct Node<'a> {
    context: &'a Context,
    path: KeyPath,
    value: &'a Value,
}

impl<'a> Node<'a> {
    pub(super) fn origin(&self) -> Origin {
        self.context.origin(self.value.tag(), &self.path, false)
    }

    pub(super) fn refuse(&self, why: impl Into<String>) {
        self.context.problem(self.origin(), &self.path, why);
    }

    pub(super) fn warn(&self, why: impl Into<String>) {
        self.context.warn(self.origin(), &self.path, why);
    }

    fn refuse_type<T>(&self, wanted: &str) -> Option<T> {
        self.refuse(format!("must be {wanted}, not {}", kind_of(self.value)));
        None
    }

    /// The value as JSON, for who reads that.
    pub(super) fn json(&self) -> Option<String> {
        let json = json_of(self.value);
        if json.is_none() {
            self.refuse("must have no number that is none: nan");
        }
        Some(json?.to_string())
    }

    /// A text without control characters.
    pub(super) fn text(&self) -> Option<String> {
        match self.value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => self.refuse_type("a string"),
        }
    }

    /// A text that is not empty and has no control characters: a name, a path, an address.
    pub(super) fn line(&self) -> Option<String> {
        let text = self.text()?;
        if text.is_empty() {
            self.refuse("must not be empty");
            return None;
        }
        if text.chars().any(char::is_control) {
            self.refuse("must have no control characters");
            return None;
        }
        Some(text)
    }

    /// True or false.
    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value {
            Value::Bool(_, flag) => Some(*flag),
            Value::String(tag, text) if self.context.is_untyped(*tag) => match text.parse() {
                Ok(flag) => Some(flag),
                Err(_) => {
                    self.refuse(format!("must be true or false, not {text:?}"));
                    None
                }
            },
            _ => self.refuse_type("true or false"),
        }
    }

    /// An integer from 0.
    pub(super) fn integer(&self) -> Option<u64> {
        let wanted = "an integer from 0";
        match self.value {
            Value::Num(_, Num::F32(_) | Num::F64(_)) => self.refuse_type(wanted),
            Value::Num(_, number) => match number.to_i128().and_then(|number| u64::try_from(number).ok()) {
                Some(number) => Some(number),
                None => {
                    self.refuse(format!("must be {wanted}, not a negative one"));
                    None
                }
            },
            Value::String(tag, text) if self.context.is_untyped(*tag) => match text.parse() {
                Ok(number) => Some(number),
                Err(_) => {
                    self.refuse(format!("must be {wanted}, not {text:?}"));
                    None
                }
            },
            _ => self.refuse_type(wanted),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = choices.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            self.refuse(format!("must be {}, not {text:?}", names.join(" or ")));
        }
        found.map(|(_, value)| *value)
    }

    /// The items of a list.
    pub(super) fn list(&self) -> Option<Vec<Node<'a>>> {
        match self.value {
            Value::Array(_, items) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(at, value)| {
                        let mut path = self.path.clone();
                        path.push(Step::Index(at));
                        Node { context: self.context, path, value }
                    })
                    .collect(),
            ),
            Value::String(tag, _) if self.context.is_untyped(*tag) => {
                self.refuse("must be a list, written as in TOML: [\"a\", \"b\"]");
                None
            }
            _ => self.refuse_type("a list"),
        }
    }

    /// The keys of a table.
    pub(super) fn section(&self) -> Option<Section<'a>> {
        match self.value {
            Value::Dict(tag, dict) => Some(Section {
                context: self.context,
                path: self.path.clone(),
                tag: *tag,
                dict,
                known: RefCell::default(),
            }),
            _ => self.refuse_type("a table"),
        }
    }
}

/// `None` = a number is in it that JSON does not have, nor anything like it.
fn json_of(value: &Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::String(_, text) => text.as_str().into(),
        Value::Char(_, character) => character.to_string().into(),
        Value::Bool(_, flag) => (*flag).into(),
        Value::Num(_, number) => {
            let whole = match number {
                Num::F32(_) | Num::F64(_) => None,
                _ => number.to_i128().and_then(serde_json::Number::from_i128),
            };
            // A number beyond 64 bits may be kept as infinity, which JSON does not have: it must not become nothing.
            let near = || number.to_f64().unwrap_or(f64::MAX).clamp(f64::MIN, f64::MAX);
            whole.or_else(|| serde_json::Number::from_f64(near()))?.into()
        }
        Value::Empty(..) => serde_json::Value::Null,
        Value::Dict(_, dict) => serde_json::Value::Object(
            dict.iter().map(|(key, value)| Some((key.clone(), json_of(value)?))).collect::<Option<_>>()?,
        ),
        Value::Array(_, items) => serde_json::Value::Array(items.iter().map(json_of).collect::<Option<_>>()?),
    })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "a string",
        Value::Bool(..) => "a boolean",
        Value::Num(_, Num::F32(_) | Num::F64(_)) => "a number with a fraction or beyond 64 bits",
        Value::Num(..) => "an integer",
        Value::Empty(..) => "nothing",
        Value::Dict(..) => "a table",
        Value::Array(..) => "a list",
    }
}

/// A table whose keys are asked for one by one; what was not asked for is unknown.
pub(super) struct Section<'a> {
    context: &'a Context,
    path: KeyPath,
    tag: Tag,
    dict: &'a Dict,
    known: RefCell<BTreeSet<String>>,
}

impl<'a> Section<'a> {
    pub(super) fn root(context: &'a Context, dict: &'a Dict) -> Self {
        Self { context, path: Vec::new(), tag: Tag::Default, dict, known: RefCell::default() }
    }

    /// The value of a key, if it is there.
    pub(super) fn get(&self, key: &str) -> Option<Node<'a>> {
        self.known.borrow_mut().insert(key.to_owned());
        let value = self.dict.get(key)?;
        let mut path = self.path.clone();
        path.push(Step::Key(key.to_owned()));
        Some(Node { context: self.context, path, value })
    }

    /// The value of a key that must be there.
    pub(super) fn require(&self, key: &str) -> Option<Node<'a>> {
        let node = self.get(key);
        if node.is_none() {
            let mut path = self.path.clone();
            path.push(Step::Key(key.to_owned()));
            self.context.problem(self.origin(), &path, "is missing");
        }
        node
    }

    /// The keys that are there.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.dict.keys().map(String::as_str)
    }

    pub(super) fn origin(&self) -> Origin {
        self.context.origin(self.tag, &self.path, true)
    }

    pub(super) fn refuse(&self, why: impl Into<String>) {
        self.context.problem(self.origin(), &self.path, why);
    }

    /// Refuses a key that is there, at the place of the key itself.
    pub(super) fn refuse_key(&self, key: &str, why: impl Into<String>) {
        let mut path = self.path.clone();
        path.push(Step::Key(key.to_owned()));
        let tag = self.dict.get(key).map_or(self.tag, Value::tag);
        self.context.problem(self.context.origin(tag, &path, true), &path, why);
    }

    /// Refuses every key that was never asked for.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for key in self.keys().filter(|key| !known.contains(*key)) {
            let mut names: Vec<&str> = known.iter().map(String::as_str).collect();
            names.sort_unstable();
            let why = if names.is_empty() {
                "unknown key".to_owned()
            } else {
                format!("unknown key; the keys here are {}", names.join(", "))
            };
            self.refuse_key(key, why);
        }
    }
}
