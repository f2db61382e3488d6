//! Tidy: the rules of style that no compiler knows. Every rule is a pure function over the files' text, so that a unit
//! test can break it; nothing here changes a file.

mod layout;
mod link;
mod source;
mod text;
mod token;

use std::fmt;
use std::path::Path;

use anyhow::Context as _;

use crate::workspace::Workspace;

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    file: String,
    /// From 1; 0 when it is about the whole file.
    line: usize,
    rule: &'static str,
    what: String,
}

impl Finding {
    fn new(file: &str, line: usize, rule: &'static str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, rule, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", self.file)?;
        if self.line > 0 {
            write!(out, "{}:", self.line)?;
        }
        write!(out, " [{}] {}", self.rule, self.what)
    }
}

/// A file of the project: its path relative to the root, with `/`, and its text when it is one that rules read.
#[derive(Debug, Clone)]
pub(crate) struct File {
    path: String,
    text: String,
}

impl File {
    fn extension(&self) -> &str {
        Path::new(&self.path).extension().and_then(|extension| extension.to_str()).unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn is_rust(&self) -> bool {
        self.extension() == "rs"
    }

    /// Whether rules about text apply: what people write by hand.
    fn is_prose_or_source(&self) -> bool {
        matches!(self.extension(), "rs" | "md" | "toml" | "sh" | "sql" | "html" | "yml" | "yaml" | "proto")
            || self.path == ".ci/run"
    }
}

/// A package's folder.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    name: String,
    folder: String,
    /// On a floor: part of the product.
    product: bool,
}

/// All that the rules look at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Project {
    files: Vec<File>,
    packages: Vec<Package>,
}

impl Project {
    fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Whether there is such a file, or a folder with a file in it.
    fn has(&self, path: &str) -> bool {
        self.files.iter().any(|file| {
            file.path.strip_prefix(path).is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/'))
        })
    }

    fn package_of(&self, path: &str) -> Option<&Package> {
        self.packages
            .iter()
            .find(|package| path.strip_prefix(&package.folder).is_some_and(|rest| rest.starts_with('/')))
    }
}

/// `cargo xtask tidy`.
pub(crate) fn run() -> anyhow::Result<()> {
    let project = load(&crate::workspace::read()?)?;
    let found: Vec<String> = findings(&project).iter().map(ToString::to_string).collect();
    crate::refuse("tidy", &found)?;
    println!("tidy: {} files, nothing to say", project.files.len());
    Ok(())
}

/// Every breach of every rule, in the order of the files.
pub(crate) fn findings(project: &Project) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in &project.files {
        text::check(file, &mut found);
        link::check(project, file, &mut found);
    }
    source::check(project, &mut found);
    layout::check(project, &mut found);
    found.sort();
    found.dedup();
    found
}

/// Reads the project's files: what `.gitignore` does not leave out.
fn load(workspace: &Workspace) -> anyhow::Result<Project> {
    let mut walk = ignore::WalkBuilder::new(&workspace.root);
    walk.hidden(false).parents(false).ignore(false).git_global(false).git_exclude(false).require_git(false);
    walk.filter_entry(|entry| entry.file_name() != ".git");
    let mut files = Vec::new();
    for entry in walk.build() {
        let entry = entry.context("reading the project's folders")?;
        if !entry.file_type().is_some_and(|kind| kind.is_file()) {
            continue;
        }
        let relative = entry.path().strip_prefix(&workspace.root).context("a file outside the root")?;
        let parts: Vec<_> = relative.components().map(|part| part.as_os_str().to_string_lossy()).collect();
        let mut file = File { path: parts.join("/"), text: String::new() };
        if file.is_prose_or_source() {
            file.text = std::fs::read_to_string(entry.path()).with_context(|| format!("reading {}", file.path))?;
        }
        files.push(file);
    }
    files.sort_by(|left, right| left.path.cmp(&right.path));
    let packages = workspace
        .members
        .iter()
        .map(|member| Package {
            name: member.name.clone(),
            folder: member.folder.clone(),
            product: workspace.layers.floors.contains_key(&member.name),
        })
        .collect();
    Ok(Project { files, packages })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A project of these files, whose packages are `tidegate-one` (product) and `tidegate-kit`.
    pub(super) fn project(files: &[(&str, &str)]) -> Project {
        let package =
            |name: &str, folder: &str, product| Package { name: name.to_owned(), folder: folder.to_owned(), product };
        Project {
            files: files
                .iter()
                .map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() })
                .collect(),
            packages: vec![
                package("tidegate-one", "crates/one", true),
                package("tidegate-kit", "crates/kit", false),
                package("xtask", "xtask", false),
            ],
        }
    }

    /// The rules that these files break, each once.
    pub(super) fn broken(files: &[(&str, &str)]) -> Vec<&'static str> {
        let mut rules: Vec<_> = findings(&project(files)).into_iter().map(|finding| finding.rule).collect();
        // The made-up projects have no front pages; the test of that rule looks at it by itself.
        rules.retain(|rule| *rule != "front-page");
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    #[test]
    fn the_real_project_is_tidy() {
        let found = findings(&load(&crate::workspace::read().unwrap()).unwrap());
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{} finding(s)\n{}", lines.len(), lines.join("\n"));
    }

    #[test]
    fn a_finding_names_the_file_the_line_and_the_rule() {
        let finding = Finding::new("a.rs", 3, "header", "say what it is");
        assert_eq!(finding.to_string(), "a.rs:3: [header] say what it is");
    }

    #[test]
    fn a_path_that_merely_begins_alike_is_not_there() {
        let project = project(&[("docs/formats.md", "")]);
        assert!(project.has("docs") && project.has("docs/formats.md"));
        assert!(!project.has("doc") && !project.has("docs/formats"));
    }
}
