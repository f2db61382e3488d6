//! The rules about where things lie: folders, front pages, the map, the decisions. They look at names, and at documents
//! only to see whether a name is in them.

use super::{Finding, Project};

const TOP_FOLDERS: [&str; 4] = ["crates", "xtask", "benches", "docs"];
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 8] = ["utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"];
const README_COMMANDS: [&str; 2] = ["cargo run --release -- demo", "cargo test --workspace"];
const FRONT_PAGE: &str = "#![doc = include_str!(\"../README.md\")]";

pub(super) fn check(project: &Project, found: &mut Vec<Finding>) {
    names(project, found);
    front_pages(project, found);
    map(project, found);
    decisions(project, found);
    if let Some(readme) = project.file("README.md") {
        for command in README_COMMANDS.iter().filter(|command| !readme.text.contains(*command)) {
            found.push(Finding::new("README.md", 0, "readme", format!("`{command}` is not in it: people start there")));
        }
    }
}

/// Whether a word of a name, in lower case, says nothing.
pub(super) fn is_empty_name(word: &str) -> bool {
    EMPTY_NAMES.contains(&word)
}

fn names(project: &Project, found: &mut Vec<Finding>) {
    for file in &project.files {
        let mut parts = file.path.split('/');
        let first = parts.next().unwrap_or_default();
        if first != file.path && !first.starts_with('.') && !TOP_FOLDERS.contains(&first) {
            let what = format!("the top level holds {} and dot-folders only", TOP_FOLDERS.join(", "));
            found.push(Finding::new(first, 0, "top-level", what));
        }
        if file.name() == "mod.rs" {
            found.push(Finding::new(&file.path, 0, "mod-rs", "use `foo.rs` beside the folder `foo/`"));
        }
        let stem = file.name().split('.').next().unwrap_or_default();
        let folders = file.path.rsplit_once('/').map_or("", |(folders, _)| folders).split('/');
        for part in folders.chain(std::iter::once(stem)) {
            let words = part.split(['-', '_']).map(str::to_lowercase);
            if words.into_iter().any(|word| is_empty_name(&word)) {
                let what = format!("`{part}` says nothing: name it after what is in it");
                found.push(Finding::new(&file.path, 0, "empty-name", what));
            }
        }
    }
}

fn front_pages(project: &Project, found: &mut Vec<Finding>) {
    for package in project.packages.iter().filter(|package| package.folder.starts_with("crates/")) {
        let folder = &package.folder;
        if project.file(&format!("{folder}/README.md")).is_none() {
            found.push(Finding::new(folder, 0, "front-page", "no README.md: every crate has a front page"));
        }
        let library = project.file(&format!("{folder}/src/lib.rs"));
        if let Some(library) = library.filter(|library| !library.text.contains(FRONT_PAGE)) {
            found.push(Finding::new(&library.path, 1, "front-page", format!("it does not say `{FRONT_PAGE}`")));
        }
        if folder.rsplit('/').next() == package.name.strip_prefix("tidegate-") || package.name == "tidegate" {
            continue;
        }
        found.push(Finding::new(folder, 0, "front-page", format!("the folder is not named after `{}`", package.name)));
    }
}

fn map(project: &Project, found: &mut Vec<Finding>) {
    let Some(map) = project.file("docs/ARCHITECTURE.md") else { return };
    for package in &project.packages {
        let folder = package.folder.rsplit('/').next().unwrap_or_default();
        let named = [
            format!("`{}`", package.name),
            format!("`{folder}`"),
            format!("{}/", package.folder),
            package.folder.clone(),
        ];
        if !named.iter().any(|name| map.text.contains(name)) {
            found.push(Finding::new(
                &map.path,
                0,
                "map",
                format!("`{}` is not on the map: say what it is for", package.name),
            ));
        }
    }
}

fn decisions(project: &Project, found: &mut Vec<Finding>) {
    let mut expected = 1;
    for file in &project.files {
        let Some(name) = file.path.strip_prefix("docs/adr/").filter(|name| *name != "README.md") else { continue };
        let number =
            name.split_once('-').filter(|(number, _)| number.len() == 4).and_then(|(number, _)| number.parse().ok());
        if !name.ends_with(".md") || number != Some(expected) {
            let what = format!("decisions are `NNNN-name.md`, numbered without a hole: here {expected:04} is expected");
            found.push(Finding::new(&file.path, 0, "adr", what));
        }
        expected = number.unwrap_or(expected) + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::super::tests::{broken, project};
    use super::*;

    fn rules(files: &[(&str, &str)]) -> Vec<String> {
        findings(&project(files)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn top_level_folders_are_the_agreed_ones() {
        assert_eq!(broken(&[("scripts/a.sh", "")]), ["top-level"]);
        assert!(broken(&[(".ci/run", ""), ("docs/a.md", ""), ("deny.toml", "")]).is_empty());
    }

    #[test]
    fn mod_rs_is_refused() {
        assert_eq!(broken(&[("crates/one/src/a/mod.rs", "//! A.\n")]), ["mod-rs"]);
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        for path in ["crates/one/src/utils.rs", "crates/one/tests/common/a.rs", "crates/one/src/lease_manager.rs"] {
            assert_eq!(broken(&[(path, "//! A.\n")]), ["empty-name"], "{path}");
        }
        assert!(broken(&[("crates/one/src/commonplace.rs", "//! A.\n")]).is_empty());
    }

    #[test]
    fn a_crate_without_a_front_page_is_refused() {
        let lines = rules(&[("crates/one/src/lib.rs", "//! One.\n")]);
        assert!(lines.iter().any(|line| line.starts_with("crates/one: [front-page]")), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("crates/one/src/lib.rs:1: [front-page]")), "{lines:?}");
        let front = format!("{FRONT_PAGE}\n");
        let lines = rules(&[
            ("crates/one/README.md", "One.\n"),
            ("crates/one/src/lib.rs", &front),
            ("crates/kit/README.md", "Kit.\n"),
        ]);
        assert!(lines.is_empty(), "{lines:?}");
    }

    #[test]
    fn a_crate_whose_folder_has_another_name_is_refused() {
        let mut project = project(&[("crates/one/README.md", ""), ("crates/kit/README.md", "")]);
        project.packages[0].name = "tidegate-other".to_owned();
        let found = findings(&project);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].rule, "front-page");
    }

    #[test]
    fn a_crate_that_is_not_on_the_map_is_refused() {
        assert_eq!(broken(&[("docs/ARCHITECTURE.md", "`one`, xtask/\n")]), ["map"]);
        assert!(broken(&[("docs/ARCHITECTURE.md", "`one`, `tidegate-kit`, xtask/\n")]).is_empty());
    }

    #[test]
    fn decisions_are_numbered_in_sequence() {
        assert!(broken(&[("docs/adr/0001-a.md", ""), ("docs/adr/0002-b.md", "")]).is_empty());
        assert_eq!(broken(&[("docs/adr/0001-a.md", ""), ("docs/adr/0003-b.md", "")]), ["adr"]);
        assert_eq!(broken(&[("docs/adr/0001-a.md", ""), ("docs/adr/0001-b.md", "")]), ["adr"]);
        assert_eq!(broken(&[("docs/adr/one.md", "")]), ["adr"]);
    }

    #[test]
    fn the_readme_names_both_commands() {
        assert_eq!(broken(&[("README.md", "cargo test --workspace\n")]), ["readme"]);
    }
}
